//! Near control transfers: JMP Jcc CALL RET LOOP JCXZ (SDM 2, each instruction's page). Far forms go to
//! [`crate::exec::far`].

use crate::core::Gpr;
use crate::exec::condition::holds;
use crate::exec::context::{Context, mask};
use crate::exec::far;
use crate::exec::ibt;
use crate::exec::moves::stack_bytes;
use crate::exec::operand::bytes;
use crate::exec::shadow_stack;
use crate::exec::stack::Stack;
use crate::exec::{Done, Fault, Flow};
use crate::virt::Virt;
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use sim_core::addr::Gva;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;

/// #GP(0) unless code may run at this offset of the current CS.
fn check_target(cx: &Context<'_>, target: u64) -> Result<(), Fault> {
    let fits = if cx.is_64bit() {
        Gva(target).is_canonical(cx.core.linear_width())
    } else {
        target <= u64::from(cx.core.segments.cs.limit)
    };
    if fits { Ok(()) } else { Err(Exception::gp0().into()) }
}

fn jump_to(cx: &mut Context<'_>, target: u64) -> Done {
    check_target(cx, target)?;
    cx.core.rip = target;
    Ok(Flow::Jumped)
}

/// A relative target: the decoder placed the instruction at 0, and the operand size truncates the sum.
fn relative(cx: &Context<'_>, insn: &Instruction) -> u64 {
    let size = match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    };
    cx.core.rip.wrapping_add(insn.near_branch_target()) & mask(size)
}

fn is_relative(insn: &Instruction) -> bool {
    matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

fn near_target(cx: &mut Context<'_>, insn: &Instruction) -> Result<u64, Fault> {
    if is_relative(insn) { Ok(relative(cx, insn)) } else { cx.value(insn, 0) }
}

/// JMP, near and far.
pub(crate) fn jmp<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    if far::is_far(insn) {
        return far::jmp(cx, virt, insn);
    }
    let target = near_target(cx, insn)?;
    let flow = jump_to(cx, target)?;
    if !is_relative(insn) {
        ibt::track_near(cx.core, insn);
    }
    Ok(flow)
}

/// Jcc: a jump not taken checks nothing.
pub(crate) fn jcc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let taken = holds(insn.condition_code(), cx.core.rflags);
    branch_if(cx, insn, taken)
}

fn branch_if(cx: &mut Context<'_>, insn: &Instruction, taken: bool) -> Done {
    if !taken {
        return Ok(Flow::Next);
    }
    let target = relative(cx, insn);
    jump_to(cx, target)
}

/// CALL, near and far: the target is checked before the return address is pushed.
pub(crate) fn call<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    if far::is_far(insn) {
        return far::call(cx, virt, insn);
    }
    let size = if is_relative(insn) { stack_bytes(insn) } else { bytes(insn, 0) };
    let target = near_target(cx, insn)?;
    check_target(cx, target)?;
    let next = cx.next_rip();
    let mut stack = Stack::current(cx);
    stack.push(cx, next, size)?;
    // A call of the next instruction reads the instruction pointer, and never returns.
    if !is_relative(insn) || insn.near_branch_target() != insn.len() as u64 {
        shadow_stack::call(cx, next, size)?;
    }
    if !is_relative(insn) {
        ibt::track_near(cx.core, insn);
    }
    cx.commit_stack(&stack);
    cx.core.rip = target;
    Ok(Flow::Jumped)
}

/// Near RET, with bytes of arguments to release.
pub(crate) fn ret(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let release = if insn.op_count() == 1 { insn.immediate(0) & 0xffff } else { 0 };
    let size = match insn.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let mut stack = Stack::current(cx);
    let target = stack.pop(cx, size)?;
    check_target(cx, target)?;
    shadow_stack::ret(cx, target, size)?;
    cx.commit_stack(&stack.released(release));
    cx.core.rip = target;
    Ok(Flow::Jumped)
}

/// The bytes of the count register of LOOP and JCXZ, which is the address size.
const fn count_bytes(code: Code) -> usize {
    match code {
        Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64
        | Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}

/// JCXZ, JECXZ, JRCXZ.
pub(crate) fn jcxz(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let taken = cx.core.gpr(Gpr::Rcx) & mask(count_bytes(insn.code())) == 0;
    branch_if(cx, insn, taken)
}

/// LOOP, LOOPE, LOOPNE: the count changes only if the jump does not fault.
pub(crate) fn count_down(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = count_bytes(insn.code());
    let old = cx.core.gpr(Gpr::Rcx);
    let count = old.wrapping_sub(1) & mask(size);
    let wanted = match insn.mnemonic() {
        Mnemonic::Loope => cx.flag(Rflags::ZF),
        Mnemonic::Loopne => !cx.flag(Rflags::ZF),
        _ => true,
    };
    let flow = branch_if(cx, insn, count != 0 && wanted)?;
    let kept = if size == 2 { old & !0xffff } else { 0 };
    cx.core.set_gpr(Gpr::Rcx, kept | count);
    Ok(flow)
}
