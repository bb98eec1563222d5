//! What leaves a guest (SDM 3C chapter 25): for each trap of the CPU, whether it passes, exits, or becomes an exception;
//! the exit reason, the qualification and the instruction information. [`Vmx::decide`] is pure; [`effects`] holds the few
//! things that a trap changes by itself.
//!
//! One file a family: [`registers`] control and debug registers, [`instruction`] the instructions that one control
//! intercepts, [`bitmaps`] I/O and MSRs, [`exception`] exceptions and task switches, [`events`] what comes between
//! instructions, [`stage`] EPT.
//!
//! Left out: the operand form of an I/O instruction (the qualification always says DX).

mod bitmaps;
mod effects;
mod events;
mod exception;
mod instruction;
mod registers;
mod stage;

pub(crate) use effects::VIRTUAL_TPR;

use crate::controls::{PrimaryProc, SecondaryProc};
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::unit::{Operation, Vmx};
use crate::vmcs::{Field, Region};
use cpu::Core;
use cpu::virt::{At, Trap};
use sim_core::arch::exception::Exception;
use sim_core::{Ground, SimError};

/// The controls of the running guest, and the rest of its VMCS.
pub(crate) struct Controls<'a> {
    ground: &'a Ground,
    pub(crate) region: Region,
    primary: PrimaryProc,
    /// All 0 unless the primary controls activate them (SDM 3C 24.6.2).
    secondary: SecondaryProc,
    /// MONITOR has run since VM-entry.
    is_armed: bool,
}

impl Controls<'_> {
    fn get(&self, field: Field) -> u64 {
        self.region.get(self.ground, field)
    }
}

/// What becomes of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The guest goes on.
    Pass,
    /// It leaves.
    Exit(Exit),
    /// It gets an exception instead.
    Raise(Exception),
    /// An EPT violation becomes #VE; the exit tells what the guest will read.
    Convert(Exit),
}

impl Decision {
    /// The exit, if a control asks for it.
    fn exits(asked: bool, exit: impl FnOnce() -> Exit) -> Self {
        if asked { Self::Exit(exit()) } else { Self::Pass }
    }
}

impl Vmx {
    /// What becomes of a trap of the running guest.
    pub(crate) fn decide(&self, core: &Core, ground: &Ground, trap: &Trap, at: At) -> Result<Decision, SimError> {
        let Some(region) = self.guest_region() else { return Ok(Decision::Pass) };
        let (primary, secondary) = (self.guest.primary, self.guest.secondary);
        let controls = Controls { ground, region, primary, secondary, is_armed: self.guest.is_armed };
        Ok(match *trap {
            Trap::Exception(exception) => self.exception(&controls, core, &exception, at),
            Trap::TripleFault => Decision::Exit(Exit::plain(ExitReason::TripleFault)),
            Trap::TaskSwitch { selector, source, .. } => exception::task_switch(core, selector, source, at),
            Trap::CrWrite { register, gpr, value } => registers::cr_write(&controls, register, gpr, value, at),
            Trap::CrRead { register, gpr } => registers::cr_read(&controls, register, gpr, at),
            Trap::Clts => registers::clts(&controls, at),
            Trap::Lmsw { value, address } => registers::lmsw(&controls, value, address, at),
            Trap::DrAccess { number, gpr, kind } => registers::debug(&controls, number, gpr, kind, at),
            Trap::Io { port, bytes, input, string } => bitmaps::io(&controls, port, bytes, input, string, at),
            Trap::Rdmsr(index) => bitmaps::rdmsr(&controls, index, at),
            Trap::Wrmsr(index, _) => bitmaps::wrmsr(&controls, index, at),
            Trap::Stage(fault) => self.stage(&controls, core, &fault)?,
            Trap::Interrupt(vector) => self.interrupt(&controls, core, vector),
            Trap::Nmi => self.nmi(&controls, core),
            Trap::Init => Decision::Exit(Exit::before_debug(ExitReason::Init)),
            Trap::Sipi(vector) => events::start_up(core, vector),
            Trap::Retired => self.retired(),
            Trap::Window => self.window(&controls, core),
            Trap::Pause => self.pause_exit(&controls, core, at),
            _ => instruction::decide(&controls, core, trap, at),
        })
    }

    /// Asks the extension about a trap, and carries out what it decides.
    pub(crate) fn take(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        trap: &Trap,
        at: At,
    ) -> Result<cpu::virt::Verdict, SimError> {
        use cpu::virt::Verdict;
        if let Trap::Extension(opcode) = trap {
            return Ok(self.refusal(core, *opcode).map_or(Verdict::Continue, Verdict::Raise));
        }
        match (self.operation, trap) {
            (_, Trap::Smi) => self.enter_smm(),
            (Operation::Off, Trap::Rsm) => self.leave_smm(),
            _ => {}
        }
        if self.operation != Operation::NonRoot {
            return Ok(Verdict::Continue);
        }
        let decision = self.decide(core, ground, trap, at)?;
        self.note(core, ground, trap, &decision);
        match decision {
            Decision::Pass => Ok(Verdict::Continue),
            Decision::Raise(exception) => Ok(Verdict::Raise(exception)),
            Decision::Exit(exit) => {
                self.leave(core, ground, exit)?;
                Ok(Verdict::Exited)
            }
            Decision::Convert(exit) => match self.guest_region() {
                Some(region) => Ok(Verdict::Raise(self.convert(ground, region, &exit))),
                None => Err(SimError::internal("#VE outside VMX non-root operation")),
            },
        }
    }
}
