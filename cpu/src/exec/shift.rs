//! Shifts and rotates: SHL SHR SAR ROL ROR RCL RCR SHLD SHRD (SDM 2, each instruction's page).

use crate::exec::context::Context;
use crate::exec::flags::{self, Computed, Width};
use crate::exec::operand::bytes;
use crate::exec::{Done, Flow};
use iced_x86::{Instruction, Mnemonic};
use sim_core::arch::access::AccessKind;
use sim_core::arch::rflags::Rflags;

const ROTATE_FLAGS: Rflags = Rflags::CF.union(Rflags::OF);

/// Runs a shift or rotate; `compute` gets the operand, the reduced count and the old carry. A count of 0 changes no
/// flag, but the destination is still written, and so still faults.
fn run(
    cx: &mut Context<'_>,
    insn: &Instruction,
    defined: Rflags,
    compute: fn(u64, u32, bool, Width) -> Computed,
) -> Done {
    let size = bytes(insn, 0);
    let width = Width::of_bytes(size);
    let count = cx.place(insn, 1, AccessKind::Read)?;
    let count = width.count(cx.get(&count, 1));
    let place = cx.place(insn, 0, AccessKind::Write)?;
    let old = cx.get(&place, size);
    if count == 0 {
        cx.put(&place, old);
        return Ok(Flow::Next);
    }
    let computed = compute(old, count, cx.flag(Rflags::CF), width);
    cx.put(&place, computed.value);
    cx.set_flags(defined, computed.flags);
    Ok(Flow::Next)
}

pub(crate) fn shl(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    run(cx, insn, Rflags::STATUS, |a, count, _, width| flags::shl(a, count, width))
}

pub(crate) fn shr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    run(cx, insn, Rflags::STATUS, |a, count, _, width| flags::shr(a, count, width))
}

pub(crate) fn sar(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    run(cx, insn, Rflags::STATUS, |a, count, _, width| flags::sar(a, count, width))
}

pub(crate) fn rol(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    run(cx, insn, ROTATE_FLAGS, |a, count, _, width| flags::rol(a, count, width))
}

pub(crate) fn ror(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    run(cx, insn, ROTATE_FLAGS, |a, count, _, width| flags::ror(a, count, width))
}

pub(crate) fn rcl(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    run(cx, insn, ROTATE_FLAGS, flags::rcl)
}

pub(crate) fn rcr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    run(cx, insn, ROTATE_FLAGS, flags::rcr)
}

/// SHLD and SHRD. Of 16-bit operands, counts above 16 leave everything undefined: here zeroes follow the source.
pub(crate) fn double(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let width = Width::of_bytes(size);
    let count = cx.place(insn, 2, AccessKind::Read)?;
    let count = width.count(cx.get(&count, 1));
    let source = cx.register(insn.op1_register());
    let place = cx.place(insn, 0, AccessKind::Write)?;
    let old = cx.get(&place, size);
    if count == 0 {
        cx.put(&place, old);
        return Ok(Flow::Next);
    }
    let compute = if insn.mnemonic() == Mnemonic::Shld { flags::shld } else { flags::shrd };
    let computed = compute(old, source, count, width);
    cx.put(&place, computed.value);
    cx.set_flags(Rflags::STATUS, computed.flags);
    Ok(Flow::Next)
}
