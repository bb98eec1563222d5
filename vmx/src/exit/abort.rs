//! VMX aborts: VM-exits that can't be completed (SDM 3C 27.7). The reason goes to bytes 7:4 of the VMCS, and the processor
//! shuts down.

use crate::unit::{Operation, Vmx};
use crate::vmcs::Region;
use cpu::{Activity, Core};
use serde::{Deserialize, Serialize};
use sim_core::Ground;

/// A VMX-abort indicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u32)]
pub enum Abort {
    /// A guest MSR could not be stored.
    GuestMsrStore = 1,
    /// A host PDPTE has reserved bits.
    HostPdpte = 2,
    /// A host MSR could not be loaded.
    HostMsrLoad = 4,
    /// The guest was in IA-32e mode and the host is a 32-bit one.
    HostNot64Bit = 6,
}

impl Vmx {
    /// Shuts the processor down. It stays in the state that the VM-exit reached.
    pub(super) fn abort(&mut self, core: &mut Core, ground: &mut Ground, region: Region, abort: Abort) {
        region.set_abort(ground, abort as u32);
        core.activity = Activity::Shutdown;
        self.operation = Operation::Root;
    }
}
