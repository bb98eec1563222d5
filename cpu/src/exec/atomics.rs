//! Read-modify-write with a second result: XCHG XADD CMPXCHG CMPXCHG8B CMPXCHG16B (SDM 2, each instruction's page).
//!
//! One processor runs at a time, so every instruction is atomic and LOCK has no further effect; the decoder rejects
//! it where it is not legal.

use crate::core::Gpr;
use crate::exec::arith::set_pair;
use crate::exec::context::{Context, mask};
use crate::exec::flags::{self, Width};
use crate::exec::operand::{Place, bytes};
use crate::exec::{Done, Flow};
use iced_x86::{Instruction, Mnemonic};
use sim_core::arch::access::AccessKind;
use sim_core::arch::rflags::Rflags;

pub(crate) fn xchg(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let first = cx.place(insn, 0, AccessKind::Write)?;
    let second = cx.place(insn, 1, AccessKind::Write)?;
    let (a, b) = (cx.get(&first, size), cx.get(&second, size));
    cx.put(&first, b);
    cx.put(&second, a);
    Ok(Flow::Next)
}

pub(crate) fn xadd(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let place = cx.place(insn, 0, AccessKind::Write)?;
    let (old, addend) = (cx.get(&place, size), cx.value(insn, 1)?);
    let sum = flags::add(old, addend, false, Width::of_bytes(size));
    // The source is written first: if both operands are one register, it ends as the sum.
    cx.set_register(insn.op1_register(), old);
    cx.put(&place, sum.value);
    cx.set_flags(Rflags::STATUS, sum.flags);
    Ok(Flow::Next)
}

/// CMPXCHG: a destination in memory gets a write cycle in either case.
pub(crate) fn cmpxchg(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let place = cx.place(insn, 0, AccessKind::Write)?;
    let old = cx.get(&place, size);
    let accumulator = cx.core.gpr(Gpr::Rax) & mask(size);
    let compared = flags::sub(accumulator, old, false, Width::of_bytes(size));
    if accumulator == old {
        let new = cx.value(insn, 1)?;
        cx.put(&place, new);
    } else {
        // Memory gets its old value back; a register is not written at all, nor is its upper half cleared.
        if let Place::Memory(_) = place {
            cx.put(&place, old);
        }
        let part = match size {
            1 => iced_x86::Register::AL,
            2 => iced_x86::Register::AX,
            4 => iced_x86::Register::EAX,
            _ => iced_x86::Register::RAX,
        };
        cx.set_register(part, old);
    }
    cx.set_flags(Rflags::STATUS, compared.flags);
    Ok(Flow::Next)
}

/// CMPXCHG8B and CMPXCHG16B; only the latter must be aligned.
pub(crate) fn cmpxchg_pair(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let half = if insn.mnemonic() == Mnemonic::Cmpxchg16b { 8 } else { 4 };
    let bits = 8 * half as u32;
    let span = if half == 8 {
        cx.aligned_memory(insn, 0, AccessKind::Write)?
    } else {
        cx.memory(insn, 0, 8, AccessKind::Write)?
    };
    let join = |cx: &Context<'_>, high: Gpr, low: Gpr| {
        u128::from(cx.core.gpr(high) & mask(half)) << bits | u128::from(cx.core.gpr(low) & mask(half))
    };
    let old = cx.load(&span);
    if old == join(cx, Gpr::Rdx, Gpr::Rax) {
        let new = join(cx, Gpr::Rcx, Gpr::Rbx);
        cx.store(&span, new);
        cx.set_flags(Rflags::ZF, Rflags::ZF);
    } else {
        cx.store(&span, old);
        set_pair(cx, half, (old >> bits) as u64, old as u64);
        cx.set_flags(Rflags::ZF, Rflags::empty());
    }
    Ok(Flow::Next)
}
