//! The SVM unit of one logical processor: its state.

use crate::capability::Capabilities;
use crate::instructions::Decoded;
use crate::intercept::{Controls, WriteTrap};
use crate::interrupts::VirtualInterrupts;
use crate::msr::VmCr;
use crate::smm::Suspended;
use crate::vmcb::{self, CleanBits, Field, Image, VmcbCache};
use cpu::virt::VirtInstruction;
use serde::{Deserialize, Serialize};
use sim_core::Hpa;
use sim_core::clock::Cycles;
use sim_core::memory::PhysMem;

/// The global interrupt flag (APM2 15.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Gif {
    /// Interrupts of every kind are held.
    Clear,
    /// Interrupts are taken.
    Set,
}

/// The host's side of what a guest changes and #VMEXIT brings back without the host save area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct HostSide {
    /// RFLAGS.IF, which masks physical interrupts under V_INTR_MASKING.
    pub(crate) interrupts: bool,
    /// CR8, where the guest's is V_TPR.
    pub(crate) cr8: u8,
    /// The NMI mask, where the guest's is V_NMI_MASK.
    pub(crate) nmi_blocked: bool,
}

/// The PAUSE filter (APM2 15.14.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct PauseFilter {
    /// PAUSEs left before one exits.
    pub(crate) left: u16,
    /// When the last PAUSE was.
    pub(crate) last: Cycles,
}

/// What the unit holds while a guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) vmcb: Hpa,
    pub(crate) controls: Controls,
    pub(crate) virtual_interrupts: VirtualInterrupts,
    pub(crate) host: HostSide,
    pub(crate) pause: PauseFilter,
    /// A write that exits once its instruction has retired.
    pub(crate) write_trap: Option<WriteTrap>,
}

/// MONITOR's hardware, as far as MWAIT's conditional intercept needs it (APM2 15.9). Stores that would disarm it are
/// not watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Monitor {
    /// No MONITOR since the last MWAIT, VMRUN or #VMEXIT.
    Idle,
    /// MONITOR was executed.
    Armed,
}

/// The SVM unit of one logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Svm {
    pub(crate) capabilities: Capabilities,
    pub(crate) hsave: Hpa,
    pub(crate) vm_cr: VmCr,
    pub(crate) key: u64,
    pub(crate) tsc_ratio: u64,
    pub(crate) gif: Gif,
    pub(crate) running: Option<Running>,
    pub(crate) suspended: Option<Suspended>,
    pub(crate) exiting: Option<Decoded>,
    pub(crate) cache: VmcbCache,
    pub(crate) monitor: Monitor,
}

impl Svm {
    /// A unit after reset: GIF set, no host save area, a TSC ratio of 1.
    #[must_use]
    pub fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            hsave: Hpa(0),
            vm_cr: VmCr::empty(),
            key: 0,
            tsc_ratio: crate::msr::TSC_RATIO_ONE,
            gif: Gif::Set,
            running: None,
            suspended: None,
            exiting: None,
            cache: VmcbCache::default(),
            monitor: Monitor::Idle,
        }
    }

    /// What the processor can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The VMCB of the running guest, none in the host.
    #[must_use]
    pub fn guest(&self) -> Option<Hpa> {
        self.running.as_ref().map(|running| running.vmcb)
    }

    /// The global interrupt flag.
    #[must_use]
    pub const fn gif(&self) -> Gif {
        self.gif
    }

    /// Sets VM_HSAVE_PA, which must be page-aligned.
    pub const fn set_hsave(&mut self, area: Hpa) {
        self.hsave = area;
    }

    /// The instruction of the extension that caused the last #VMEXIT, if it was one.
    #[must_use]
    pub fn exiting_instruction(&self) -> Option<VirtInstruction> {
        self.exiting.map(Decoded::instruction)
    }

    /// The clean bits of a VMCB as this processor takes them.
    fn clean_bits(&self, mem: &PhysMem, vmcb: Hpa) -> CleanBits {
        if !self.capabilities.has(crate::capability::Features::VMCB_CLEAN) {
            return CleanBits::empty();
        }
        CleanBits::from_bits_truncate(vmcb::read(mem, vmcb, Field::CleanBits) as u32)
    }

    /// The VMCB as VMRUN would see it now: groups whose clean bit is set come from the processor's copy (APM2 15.15).
    pub(crate) fn view(&self, mem: &PhysMem, vmcb: Hpa) -> Image {
        self.cache.view(mem, vmcb, self.clean_bits(mem, vmcb))
    }

    /// The groups of fields that VMRUN of this VMCB would take from its copy although memory has something else: what
    /// software changed without clearing the clean bit.
    #[must_use]
    pub fn stale_groups(&self, mem: &PhysMem, vmcb: Hpa) -> CleanBits {
        self.view(mem, vmcb).differing(&Image::read(mem, vmcb))
    }
}
