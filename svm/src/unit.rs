//! The SVM unit of one logical processor: its state.

use crate::capability::Capabilities;
use crate::inject::EventInjection;
use crate::instructions::Decoded;
use crate::intercept::Controls;
use crate::msr::VmCr;
use cpu::virt::VirtInstruction;
use serde::{Deserialize, Serialize};
use sim_core::Hpa;

/// The global interrupt flag (APM2 15.17). The model has no interrupts for it to hold back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Gif {
    /// Interrupts of every kind are held.
    Clear,
    /// Interrupts are taken.
    Set,
}

/// What the unit holds while a guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) vmcb: Hpa,
    pub(crate) controls: Controls,
    /// The injected event being delivered; invalid at all other times.
    pub(crate) injecting: EventInjection,
}

/// The SVM unit of one logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Svm {
    pub(crate) capabilities: Capabilities,
    pub(crate) hsave: Hpa,
    pub(crate) vm_cr: VmCr,
    pub(crate) gif: Gif,
    pub(crate) running: Option<Running>,
    pub(crate) exiting: Option<Decoded>,
    /// ASID and PCID of the guest that was left last; INVLPGA of that ASID is about this PCID.
    pub(crate) last: Option<(u32, u16)>,
}

impl Svm {
    /// A unit after reset: GIF set, no host save area.
    #[must_use]
    pub fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            hsave: Hpa(0),
            vm_cr: VmCr::empty(),
            gif: Gif::Set,
            running: None,
            exiting: None,
            last: None,
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
}
