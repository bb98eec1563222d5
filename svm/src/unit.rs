//! The SVM unit of one logical processor: its state, and the hooks that the CPU calls.

use crate::capability::Capabilities;
use crate::inject::EventInjection;
use crate::instructions::Decoded;
use crate::intercept::{Controls, decide};
use crate::msr::VmCr;
use cpu::exec::Fault;
use cpu::virt::{At, ControlRegister, Trap, Verdict, VirtDone, VirtInstruction};
use cpu::{Core, Regime, Tag, Virt};
use serde::{Deserialize, Serialize};
use sim_core::arch::exception::Exception;
use sim_core::{Ground, Hpa, SimError};

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

impl Virt for Svm {
    fn regime(&self, _core: &Core) -> Regime {
        self.running.as_ref().map_or_else(Regime::default, |running| Regime {
            tag: Tag { context: running.controls.asid, ept_root: None },
            second: running.controls.second,
        })
    }

    fn trap(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError> {
        let Some(running) = &self.running else {
            return Ok(Verdict::Continue);
        };
        match decide(&running.controls, &self.capabilities, &ground.mem, core, trap, at)? {
            None => Ok(Verdict::Continue),
            Some(exit) => {
                self.exit(core, ground, &exit)?;
                Ok(Verdict::Exited)
            }
        }
    }

    fn instruction(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        self.execute(core, ground, instruction, at)
    }

    fn cr_read(&self, _ground: &Ground, _register: ControlRegister, actual: u64) -> u64 {
        actual
    }

    fn cr_write(&self, _ground: &Ground, _register: ControlRegister, _current: u64, operand: u64) -> u64 {
        operand
    }

    fn cr_fixed(&self, _register: ControlRegister) -> (u64, u64) {
        (0, 0)
    }

    fn rdmsr(&self, _core: &Core, index: u32) -> Option<Result<u64, Exception>> {
        self.read_msr(index).map(Ok)
    }

    fn wrmsr(&mut self, core: &mut Core, index: u32, value: u64) -> Option<Result<(), Exception>> {
        self.write_msr(core, index, value)
    }
}
