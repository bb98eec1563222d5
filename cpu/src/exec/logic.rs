//! AND OR XOR TEST NOT (SDM 2, each instruction's page).

use crate::exec::arith::{WriteBack, binary};
use crate::exec::context::Context;
use crate::exec::flags;
use crate::exec::operand::bytes;
use crate::exec::{Done, Flow};
use iced_x86::Instruction;
use sim_core::arch::access::AccessKind;

pub(crate) fn and(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::Result, |a, b, _, width| flags::logic(a & b, width))
}

pub(crate) fn or(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::Result, |a, b, _, width| flags::logic(a | b, width))
}

pub(crate) fn xor(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::Result, |a, b, _, width| flags::logic(a ^ b, width))
}

pub(crate) fn test(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::FlagsOnly, |a, b, _, width| flags::logic(a & b, width))
}

/// NOT changes no flag.
pub(crate) fn not(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let place = cx.place(insn, 0, AccessKind::Write)?;
    let value = cx.get(&place, bytes(insn, 0));
    cx.put(&place, !value);
    Ok(Flow::Next)
}
