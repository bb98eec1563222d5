//! Indirect-branch tracking: after a tracked branch the next instruction must be an ENDBRANCH of the mode (SDM 1 17.3,
//! table 17-1; SDM 2 CALL, JMP, ENDBR32, ENDBR64).
//!
//! Far direct transfers are tracked, as the pages of CALL and JMP say; SDM 1 17.3 lists indirect ones only. A no-track
//! prefix counts if it is the segment prefix that is in force. Left out, and named when met: the legacy code-page bitmap.

use crate::core::Core;
use crate::exec::cet::{self, Cause, bit};
use crate::exec::context::Context;
use crate::exec::{Done, Fault, Flow};
use iced_x86::{Instruction, Mnemonic, Register};
use sim_core::arch::exception::Vector;

/// A transfer after which the tracker of `cpl` waits whatever suppressed it: far ones, events and system calls.
pub(crate) const fn track(core: &mut Core, cpl: u8) {
    if cet::has_tracking(core, cpl) {
        let control = cet::control_mut(core, cpl);
        *control = (*control | bit::TRACKER) & !bit::SUPPRESS;
    }
}

/// A near indirect CALL or JMP.
pub(crate) fn track_near(core: &mut Core, insn: &Instruction) {
    let cpl = core.cpl();
    let control = cet::control(core, cpl);
    let exempt = insn.segment_prefix() == Register::DS && control & bit::NO_TRACK_EN != 0;
    if cet::has_tracking(core, cpl) && control & bit::SUPPRESS == 0 && !exempt {
        *cet::control_mut(core, cpl) |= bit::TRACKER;
    }
}

const fn waits(core: &Core) -> bool {
    let cpl = core.cpl();
    cet::has_tracking(core, cpl) && cet::control(core, cpl) & bit::TRACKER != 0
}

const fn endbranch_of(cx: &Context<'_>) -> Mnemonic {
    if cx.is_64bit() { Mnemonic::Endbr64 } else { Mnemonic::Endbr32 }
}

/// Lets the instruction that was fetched begin. A missing ENDBRANCH comes behind faults of the fetch and before those of
/// decoding (SDM 1 17.3, figure 17-4); breakpoint instructions may stand in its place.
pub(crate) fn admit(cx: &Context<'_>, fetched: Result<Instruction, Fault>) -> Result<Instruction, Fault> {
    if !waits(cx.core) {
        return fetched;
    }
    match fetched {
        Ok(insn) if matches!(insn.mnemonic(), Mnemonic::Int3 | Mnemonic::Int1) => Ok(insn),
        Ok(insn) if insn.mnemonic() == endbranch_of(cx) => Ok(insn),
        Ok(_) => Err(missing(cx)),
        Err(Fault::Exception(exception)) if exception.vector == Vector::InvalidOpcode => Err(missing(cx)),
        Err(other) => Err(other),
    }
}

fn missing(cx: &Context<'_>) -> Fault {
    if cet::control(cx.core, cx.core.cpl()) & bit::LEG_IW_EN != 0 {
        return Fault::unmodelled("legacy code-page bitmap of indirect-branch tracking");
    }
    cet::control_protection(Cause::EndBranch).into()
}

/// ENDBR32 and ENDBR64: the one of the other mode does nothing.
pub(crate) fn endbranch(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let cpl = cx.core.cpl();
    if cet::has_tracking(cx.core, cpl) && insn.mnemonic() == endbranch_of(cx) {
        *cet::control_mut(cx.core, cpl) &= !(bit::TRACKER | bit::SUPPRESS);
    }
    Ok(Flow::Next)
}
