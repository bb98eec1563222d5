//! Software interrupts: INT n, INT3, INTO (SDM 2 INT; SDM 3A 6.4.4). INT1 is left out.

use crate::exception;
use crate::exec::context::Context;
use crate::exec::{Done, Flow};
use crate::virt::{EventKind, Trap, Virt};
use iced_x86::Instruction;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;

/// INT n: an interrupt, not an exception, so no exception bitmap sees it.
pub(crate) fn int<V: Virt>(cx: &mut Context<'_>, _virt: &mut V, insn: &Instruction) -> Done {
    exception::software_interrupt(cx, insn.immediate8(), EventKind::SoftwareInterrupt)
}

/// INT3: #BP.
pub(crate) fn int3<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    exception(cx, virt, Vector::Breakpoint)
}

/// INTO: #OF if OF is set.
pub(crate) fn into<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    if !cx.flag(Rflags::OF) {
        return Ok(Flow::Next);
    }
    exception(cx, virt, Vector::Overflow)
}

fn exception<V: Virt>(cx: &mut Context<'_>, virt: &mut V, vector: Vector) -> Done {
    cx.ask(virt, &Trap::Exception(Exception::plain(vector)))?;
    exception::software_interrupt(cx, vector.number(), EventKind::SoftwareException)
}
