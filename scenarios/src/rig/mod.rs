//! Rigs: a stock kernel with its own KVM, on a processor that is emulated.
//!
//! Bochs has VMX and SVM, and QEMU's TCG has SVM as well, quicker and less exact, so that `kvm_amd` and `kvm_intel` can be had where the machine itself has neither,
//! with two-dimensional paging on and off, in the kernels that Debian ships. This same command ([`program`]) is the
//! only one inside ([`init`]): it takes [`Job`]s one after the other and sends back what each recorded ([`frame`]).
//! Everything that takes time is done outside afterwards ([`crate::crosscheck::judge`]).
//!
//! `rig/setup.sh` prepares what is needed ([`Setup`]); docs/rig.md tells more. Left out: more than one processor, kernels of
//! one's own, and checking that the emulators are right, which the comparison does by itself.

mod bochs;
mod boots;
mod emulator;
mod frame;
pub mod init;
mod initramfs;
mod job;
mod leftovers;
mod program;
mod pvh;
mod qemu;
mod rom;
mod setup;

pub use boots::{Taken, take};
pub use job::{Header, Job};
pub use setup::Setup;

use crate::crosscheck::{Engines, Host};
use crate::file::Vendor;
use crate::random::Paging;
use cpu::profile::TlbProfile;
use serde::{Deserialize, Serialize};

/// A rig: what it boots, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rig {
    /// What `rig/setup.sh` left.
    pub setup: Setup,
    /// Whose extension the emulator has.
    pub vendor: Vendor,
    /// Two-dimensional paging in the rig's KVM.
    pub paging: Paging,
    /// What it runs on.
    pub emulator: Kind,
}

/// An emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// QEMU's TCG, which has SVM.
    Qemu,
    /// Bochs, which has both.
    Bochs,
}

impl Kind {
    /// The translation caches that the emulated processor has. What QEMU invalidates beyond what it must is not modelled.
    #[must_use]
    pub const fn tlb(self) -> TlbProfile {
        match self {
            Self::Bochs => TlbProfile::Bochs,
            Self::Qemu => TlbProfile::Base,
        }
    }

    /// Whether CR2 of a page fault that a hypervisor injects is what it said: Bochs' VMRUN leaves CR2 of the VMCB alone, so that the
    /// guest reads the host's. Without two-dimensional paging every page fault of a guest is injected.
    #[must_use]
    pub fn loads_cr2(self, host: &Host) -> bool {
        self != Self::Bochs || host.tdp || host.engines != Engines::Hardware(Vendor::Amd)
    }
}

/// The module of a vendor, and its parameters: two-dimensional paging, which the vendors name differently, and nesting.
pub(crate) fn module(vendor: Vendor, paging: Paging) -> (&'static str, String) {
    let on = u8::from(paging == Paging::TwoDimensional);
    match vendor {
        Vendor::Intel => ("kvm-intel", format!("nested=1 ept={on}")),
        Vendor::Amd => ("kvm-amd", format!("nested=1 npt={on}")),
    }
}

/// The kernel's command line: nothing random, nothing slow, and this command as the first program.
fn command_line(rig: &Rig) -> String {
    let tdp = if rig.paging == Paging::TwoDimensional { "on" } else { "off" };
    let fixed = "console=ttyS0 quiet panic=-1 reboot=t nokaslr norandmaps random.trust_cpu=0 mitigations=off audit=0 \
                 cryptomgr.notests no_timer_check tsc=reliable nosmp";
    // What the kernel does not know and has an `=` it puts into the environment of the first program.
    let libraries = format!("LD_LIBRARY_PATH=/{}", program::LIBRARIES);
    format!("{fixed} {libraries} rdinit=/rolecall -- rig-init --vendor {} --tdp {tdp}", rig.vendor.name())
}
