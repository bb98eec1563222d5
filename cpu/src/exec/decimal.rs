//! Decimal adjustment: AAA AAS AAM AAD DAA DAS (SDM 2, each instruction's page). They do not exist in 64-bit mode.
//!
//! Flags that the manual leaves undefined: AAA and AAS keep OF and take SF, ZF and PF of AL; AAM and AAD clear CF, OF
//! and AF; DAA and DAS clear OF.

use crate::exec::context::Context;
use crate::exec::flags::{self, Width};
use crate::exec::{Done, Flow};
use iced_x86::{Instruction, Mnemonic, Register};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;

/// The flags among CF and AF that hold.
const fn carries(carry: bool, adjust: bool) -> Rflags {
    let carry = if carry { Rflags::CF } else { Rflags::empty() };
    carry.union(if adjust { Rflags::AF } else { Rflags::empty() })
}

/// AAA and AAS.
pub(crate) fn ascii_adjust(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let ax = cx.register(Register::AX);
    let adjust = ax & 0xf > 9 || cx.flag(Rflags::AF);
    let adjusted = match (adjust, insn.mnemonic()) {
        (false, _) => ax,
        (true, Mnemonic::Aaa) => ax.wrapping_add(0x106),
        (true, _) => ax.wrapping_sub(0x106),
    };
    cx.set_register(Register::AX, adjusted & 0xff0f);
    let flags = flags::of_result(adjusted & 0xf, Width::Byte).union(carries(adjust, adjust));
    cx.set_flags(Rflags::STATUS.difference(Rflags::OF), flags);
    Ok(Flow::Next)
}

/// AAM: #DE with a base of 0.
pub(crate) fn aam(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let base = u64::from(insn.immediate8());
    let al = cx.register(Register::AL);
    let quotient = al.checked_div(base).ok_or(Exception::plain(Vector::Divide))?;
    let remainder = al % base;
    cx.set_register(Register::AX, quotient << 8 | remainder);
    cx.set_flags(Rflags::STATUS, flags::of_result(remainder, Width::Byte));
    Ok(Flow::Next)
}

/// AAD.
pub(crate) fn aad(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let base = u64::from(insn.immediate8());
    let ax = cx.register(Register::AX);
    let al = (ax & 0xff).wrapping_add((ax >> 8).wrapping_mul(base)) & 0xff;
    cx.set_register(Register::AX, al);
    cx.set_flags(Rflags::STATUS, flags::of_result(al, Width::Byte));
    Ok(Flow::Next)
}

/// DAA and DAS.
pub(crate) fn decimal_adjust(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let old = cx.register(Register::AL);
    let low = old & 0xf > 9 || cx.flag(Rflags::AF);
    let high = old > 0x99 || cx.flag(Rflags::CF);
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    // DAS borrows also where the low digit alone does.
    let (al, carry) = match insn.mnemonic() {
        Mnemonic::Daa => (old.wrapping_add(by), high),
        _ => (old.wrapping_sub(by), high || (low && old < 6)),
    };
    cx.set_register(Register::AL, al);
    cx.set_flags(Rflags::STATUS, flags::of_result(al & 0xff, Width::Byte).union(carries(carry, low)));
    Ok(Flow::Next)
}
