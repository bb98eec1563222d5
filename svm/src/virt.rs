//! The CPU's hook, answered by SVM. SVM has no shadow of a control register and fixes no bit of one.

use crate::intercept::decide;
use crate::unit::Svm;
use cpu::exec::Fault;
use cpu::virt::{At, ControlRegister, Trap, Verdict, VirtDone, VirtInstruction};
use cpu::{Core, Regime, Tag, Virt};
use sim_core::arch::exception::Exception;
use sim_core::{Ground, SimError};

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
