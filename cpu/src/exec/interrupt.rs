//! Software interrupts: INT n, INT1, INT3, INTO (SDM 2 INT; SDM 3A 6.4.4).

use crate::exec::context::Context;
use crate::exec::{Done, Flow, virtual8086};
use crate::virt::{Delivery, EventKind, Trap, Virt};
use iced_x86::Instruction;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;

/// INT n: an interrupt, not an exception, so no exception bitmap sees it.
pub(crate) fn int<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let vector = insn.immediate8();
    virtual8086::require_iopl(cx)?;
    cx.ask(virt, &Trap::Int(vector))?;
    Ok(Flow::Software(Delivery::software(vector, EventKind::SoftwareInterrupt, cx.at.length)))
}

/// INT1: #DB that says nothing in DR6.
pub(crate) fn int1<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.ask(virt, &Trap::Icebp)?;
    exception(cx, virt, Vector::Debug, EventKind::PrivilegedSoftwareException)
}

/// INT3: #BP.
pub(crate) fn int3<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    exception(cx, virt, Vector::Breakpoint, EventKind::SoftwareException)
}

/// INTO: #OF if OF is set.
pub(crate) fn into<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    if !cx.flag(Rflags::OF) {
        return Ok(Flow::Next);
    }
    exception(cx, virt, Vector::Overflow, EventKind::SoftwareException)
}

fn exception<V: Virt>(cx: &mut Context<'_>, virt: &mut V, vector: Vector, kind: EventKind) -> Done {
    cx.at.software = Some(kind);
    cx.ask(virt, &Trap::Exception(Exception::plain(vector)))?;
    cx.at.software = None;
    Ok(Flow::Software(Delivery::software(vector.number(), kind, cx.at.length)))
}
