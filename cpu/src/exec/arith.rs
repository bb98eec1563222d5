//! Integer arithmetic: ADD ADC SUB SBB CMP INC DEC NEG MUL IMUL DIV IDIV (SDM 2, each instruction's page).

use crate::core::Gpr;
use crate::exec::context::{Context, sign_extend};
use crate::exec::flags::{self, Computed, Width};
use crate::exec::operand::bytes;
use crate::exec::{Done, Fault, Flow};
use iced_x86::{Instruction, Register};
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;

/// What becomes of a result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteBack {
    /// It goes to the first operand.
    Result,
    /// Only the flags stay.
    FlagsOnly,
}

/// Runs a two-operand operation that defines all status flags; `compute` gets both operands and the old carry.
pub(crate) fn binary(
    cx: &mut Context<'_>,
    insn: &Instruction,
    write_back: WriteBack,
    compute: fn(u64, u64, bool, Width) -> Computed,
) -> Done {
    let size = bytes(insn, 0);
    let access = if write_back == WriteBack::Result { AccessKind::Write } else { AccessKind::Read };
    let (source, place) = operands(cx, insn, access)?;
    let a = cx.get(&place, size);
    let b = cx.get(&source, size);
    let computed = compute(a, b, cx.flag(Rflags::CF), Width::of_bytes(size));
    if write_back == WriteBack::Result {
        cx.put(&place, computed.value);
    }
    cx.set_flags(Rflags::STATUS, computed.flags);
    Ok(Flow::Next)
}

/// Resolves the source (read) and the destination (for `access`); at most one is in memory.
fn operands(
    cx: &mut Context<'_>,
    insn: &Instruction,
    access: AccessKind,
) -> Result<(super::operand::Place, super::operand::Place), Fault> {
    Ok((cx.place(insn, 1, AccessKind::Read)?, cx.place(insn, 0, access)?))
}

/// Runs a one-operand operation that reads and writes its operand and defines `defined`.
fn unary(cx: &mut Context<'_>, insn: &Instruction, defined: Rflags, compute: fn(u64, Width) -> Computed) -> Done {
    let size = bytes(insn, 0);
    let place = cx.place(insn, 0, AccessKind::Write)?;
    let old = cx.get(&place, size);
    let computed = compute(old, Width::of_bytes(size));
    cx.put(&place, computed.value);
    cx.set_flags(defined, computed.flags);
    Ok(Flow::Next)
}

pub(crate) fn add(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::Result, |a, b, _, width| flags::add(a, b, false, width))
}

pub(crate) fn adc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::Result, flags::add)
}

pub(crate) fn sub(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::Result, |a, b, _, width| flags::sub(a, b, false, width))
}

pub(crate) fn sbb(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::Result, flags::sub)
}

pub(crate) fn cmp(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, WriteBack::FlagsOnly, |a, b, _, width| flags::sub(a, b, false, width))
}

/// INC leaves CF alone.
pub(crate) fn inc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    unary(cx, insn, Rflags::STATUS.difference(Rflags::CF), |a, width| flags::add(a, 1, false, width))
}

/// DEC leaves CF alone.
pub(crate) fn dec(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    unary(cx, insn, Rflags::STATUS.difference(Rflags::CF), |a, width| flags::sub(a, 1, false, width))
}

pub(crate) fn neg(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    unary(cx, insn, Rflags::STATUS, |a, width| flags::sub(0, a, false, width))
}

/// A double-width register pair: AX for bytes, rDX:rAX for the rest.
fn pair(cx: &Context<'_>, size: usize) -> (u64, u64) {
    if size == 1 {
        let ax = cx.register(Register::AX);
        return (ax >> 8, ax & 0xff);
    }
    (cx.core.gpr(Gpr::Rdx), cx.core.gpr(Gpr::Rax))
}

/// Writes the register pair of [`pair`].
pub(crate) fn set_pair(cx: &mut Context<'_>, size: usize, high: u64, low: u64) {
    let (high_name, low_name) = match size {
        1 => (Register::AH, Register::AL),
        2 => (Register::DX, Register::AX),
        4 => (Register::EDX, Register::EAX),
        _ => (Register::RDX, Register::RAX),
    };
    cx.set_register(low_name, low);
    cx.set_register(high_name, high);
}

/// CF and OF together; MUL and IMUL leave the other status flags undefined, here unchanged.
fn set_overflow(cx: &mut Context<'_>, overflow: bool) {
    let both = Rflags::CF.union(Rflags::OF);
    cx.set_flags(both, if overflow { both } else { Rflags::empty() });
}

pub(crate) fn mul(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let factor = cx.value(insn, 0)?;
    let (low, high, overflow) = flags::mul(cx.core.gpr(Gpr::Rax), factor, Width::of_bytes(size));
    set_pair(cx, size, high, low);
    set_overflow(cx, overflow);
    Ok(Flow::Next)
}

/// IMUL with one, two or three operands.
pub(crate) fn imul(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let width = Width::of_bytes(size);
    if insn.op_count() == 1 {
        let factor = cx.value(insn, 0)?;
        let (low, high, overflow) = flags::imul(cx.core.gpr(Gpr::Rax), factor, width);
        set_pair(cx, size, high, low);
        set_overflow(cx, overflow);
        return Ok(Flow::Next);
    }
    let first = cx.value(insn, insn.op_count() - 2)?;
    let second = cx.value(insn, insn.op_count() - 1)?;
    let (low, _, overflow) = flags::imul(first, second, width);
    cx.set_register(insn.op0_register(), low);
    set_overflow(cx, overflow);
    Ok(Flow::Next)
}

/// Quotient and remainder of high half, low half and divisor; none is #DE.
type Divide = fn(u64, u64, u64, Width) -> Option<(u64, u64)>;

fn divide(cx: &mut Context<'_>, insn: &Instruction, compute: Divide) -> Done {
    let size = bytes(insn, 0);
    let divisor = cx.value(insn, 0)?;
    let (high, low) = pair(cx, size);
    let (quotient, remainder) =
        compute(high, low, divisor, Width::of_bytes(size)).ok_or(Exception::plain(Vector::Divide))?;
    set_pair(cx, size, remainder, quotient);
    Ok(Flow::Next)
}

pub(crate) fn div(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    divide(cx, insn, flags::div)
}

pub(crate) fn idiv(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    divide(cx, insn, flags::idiv)
}

/// CBW, CWDE and CDQE: rAX from its lower half, sign-extended.
pub(crate) fn widen_accumulator(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    use iced_x86::Mnemonic;
    let (to, half) = match insn.mnemonic() {
        Mnemonic::Cbw => (Register::AX, 1),
        Mnemonic::Cwde => (Register::EAX, 2),
        _ => (Register::RAX, 4),
    };
    let value = sign_extend(cx.core.gpr(Gpr::Rax), half);
    cx.set_register(to, value);
    Ok(Flow::Next)
}

/// CWD, CDQ and CQO: rDX from the sign of rAX.
pub(crate) fn widen_to_pair(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    use iced_x86::Mnemonic;
    let (to, size) = match insn.mnemonic() {
        Mnemonic::Cwd => (Register::DX, 2),
        Mnemonic::Cdq => (Register::EDX, 4),
        _ => (Register::RDX, 8),
    };
    let negative = (sign_extend(cx.core.gpr(Gpr::Rax), size) as i64) < 0;
    cx.set_register(to, if negative { u64::MAX } else { 0 });
    Ok(Flow::Next)
}
