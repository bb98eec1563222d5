//! Exceptions and task switches (SDM 3C 24.6.3, 25.2, 25.4.2; tables 27-1 and 27-2).

use super::{Controls, Decision};
use crate::exit::reason::ExitReason;
use crate::exit::{Exit, Interruption, ResumeFlag};
use crate::guest::NmiMode;
use crate::unit::Vmx;
use crate::vmcs::Field;
use cpu::Core;
use cpu::virt::{At, EventKind, TaskSwitchSource};
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, Vector};

/// NMI unblocking due to IRET, in the interruption information and in the qualification of an EPT violation.
pub(super) const UNBLOCKING: u32 = 1 << 12;
/// What the qualification of a debug exception has of the pending debug exceptions: B3 to B0, BLD, BD, BS, RTM.
const DEBUG_BITS: u64 = 0xf | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 16;

impl Vmx {
    /// The exception bitmap, with the page-fault error-code mask and match.
    pub(super) fn exception(&self, controls: &Controls<'_>, core: &Core, exception: &Exception, at: At) -> Decision {
        let bit = controls.get(Field::ExceptionBitmap) >> exception.vector.number() & 1 != 0;
        let exits = if exception.vector == Vector::PageFault {
            let error = u64::from(exception.error.unwrap_or(0));
            let matches = error & controls.get(Field::PageFaultErrorMask) == controls.get(Field::PageFaultErrorMatch);
            matches == bit
        } else {
            bit
        };
        Decision::exits(exits, || self.exception_exit(core, exception, at))
    }

    fn exception_exit(&self, core: &Core, exception: &Exception, at: At) -> Exit {
        let kind = kind_of(exception, at);
        let (length, resume_flag) = match (kind, exception.vector) {
            (EventKind::SoftwareException | EventKind::PrivilegedSoftwareException, _) => (at.length, ResumeFlag::Kept),
            (_, Vector::DoubleFault | Vector::Debug) => (0, ResumeFlag::Kept),
            _ => (0, ResumeFlag::Set),
        };
        let qualification = match exception.vector {
            Vector::Debug => core.pending_debug & DEBUG_BITS,
            _ => exception.cr2.map_or(0, |address| address.0),
        };
        // In real-address mode there are no error codes.
        let error = exception.error.filter(|_| core.cr0.contains(Cr0::PE));
        let mut interruption = Interruption::new(exception.vector.number(), kind, error);
        if exception.vector != Vector::DoubleFault {
            interruption.information |= self.unblocking(core);
        }
        Exit {
            qualification,
            interruption: Some(interruption),
            length,
            resume_flag,
            ..Exit::plain(ExitReason::ExceptionOrNmi)
        }
    }

    /// Bit 12, if the current instruction is an IRET that has removed blocking by NMI (SDM 3C 27.2.3).
    pub(super) fn unblocking(&self, core: &Core) -> u32 {
        let is_told = self.guest.nmi_mode() != NmiMode::Kept && core.delivering.is_none();
        if is_told && self.guest.nmi.iret == Some(core.rip) { UNBLOCKING } else { 0 }
    }
}

/// The interruption type: INT1, INT3 and INTO say so themselves, and #BP and #OF come from nothing else.
fn kind_of(exception: &Exception, at: At) -> EventKind {
    match (at.software, exception.vector) {
        (Some(kind), _) => kind,
        (None, Vector::Breakpoint | Vector::Overflow) => EventKind::SoftwareException,
        (None, _) => EventKind::HardwareException,
    }
}

/// A task switch always exits (SDM 3C table 27-2). The length is an instruction's, also of one whose event met the gate.
pub(super) fn task_switch(core: &Core, selector: u16, source: TaskSwitchSource, at: At) -> Decision {
    let is_instruction = source != TaskSwitchSource::TaskGate || core.delivering.is_some_and(|event| event.length != 0);
    let length = if is_instruction { at.length } else { 0 };
    let qualification = u64::from(selector) | (source as u64) << 30;
    Decision::Exit(Exit { length, ..Exit::plain(ExitReason::TaskSwitch).qualified(qualification) })
}
