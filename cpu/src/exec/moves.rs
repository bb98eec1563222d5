//! Data moves: MOV MOVZX MOVSX MOVSXD LEA PUSH POP XLAT BOUND and far pointers (SDM 2, each instruction's page).

use crate::core::{Blocking, Gpr};
use crate::exec::bits::address_width;
use crate::exec::context::{Context, mask, sign_extend};
use crate::exec::operand::bytes;
use crate::exec::stack::Stack;
use crate::exec::{Done, Fault, Flow};
use crate::exec::{control, debug};
use crate::virt::Virt;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;

/// MOV in all its forms.
pub(crate) fn mov<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let (to, from) = (register_operand(insn, 0), register_operand(insn, 1));
    if to.is_cr() || from.is_cr() {
        control::mov_cr(cx, virt, to, from)
    } else if to.is_dr() || from.is_dr() {
        debug::mov_dr(cx, virt, to, from)
    } else if to.is_tr() || from.is_tr() {
        // Test registers went away with the i486 (SDM 3A 23.18).
        Err(Exception::ud().into())
    } else if to.is_segment_register() {
        mov_to_segment(cx, insn, to)
    } else {
        mov_data(cx, insn)
    }
}

fn register_operand(insn: &Instruction, operand: u32) -> Register {
    if insn.op_kind(operand) == OpKind::Register { insn.op_register(operand) } else { Register::None }
}

fn mov_data(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let value = cx.value(insn, 1)?;
    let place = cx.place(insn, 0, AccessKind::Write)?;
    cx.put(&place, value);
    Ok(Flow::Next)
}

fn mov_to_segment(cx: &mut Context<'_>, insn: &Instruction, to: Register) -> Done {
    if to == Register::CS {
        return Err(Exception::ud().into());
    }
    let selector = match insn.op_kind(1) {
        OpKind::Register => cx.register(insn.op1_register()) as u16,
        _ => {
            let span = cx.memory(insn, 1, 2, AccessKind::Read)?;
            cx.load(&span) as u16
        }
    };
    cx.load_segment(to, selector)?;
    if to == Register::SS {
        hold_events(cx);
    }
    Ok(Flow::Next)
}

/// MOV to SS and POP SS hold events back until the stack pointer can be loaded too; of two in a row only the first does
/// (SDM 3A 6.8.3).
fn hold_events(cx: &mut Context<'_>) {
    if !cx.core.blocking.contains(Blocking::MOV_SS) {
        cx.effects.shadow = Blocking::MOV_SS;
    }
}

pub(crate) fn movzx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let value = cx.value(insn, 1)?;
    cx.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

pub(crate) fn movsx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let value = cx.value(insn, 1)?;
    cx.set_register(insn.op0_register(), sign_extend(value, bytes(insn, 1)));
    Ok(Flow::Next)
}

pub(crate) fn lea(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let offset = cx.effective_address(insn, 1);
    cx.set_register(insn.op0_register(), offset);
    Ok(Flow::Next)
}

/// The bytes that an instruction's pushes and pops move the stack pointer by.
pub(crate) fn stack_bytes(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

/// PUSH; of a segment register, zero-extended to the operand size.
pub(crate) fn push(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = stack_bytes(insn);
    let value = cx.value(insn, 0)?;
    cx.push(value, size)?;
    Ok(Flow::Next)
}

/// POP: an operand addressed through RSP sees RSP as it is after the pop; a pop into RSP keeps the popped value.
pub(crate) fn pop(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = stack_bytes(insn);
    let mut stack = Stack::current(cx);
    let value = stack.pop(cx, size)?;
    if let Some(name) = segment_operand(insn) {
        cx.load_segment(name, value as u16)?;
        cx.commit_stack(&stack);
        if name == Register::SS {
            hold_events(cx);
        }
        return Ok(Flow::Next);
    }
    let before = cx.core.gpr(Gpr::Rsp);
    cx.commit_stack(&stack);
    match cx.place(insn, 0, AccessKind::Write) {
        Ok(place) => {
            cx.put(&place, value & mask(size));
            Ok(Flow::Next)
        }
        Err(fault) => {
            cx.core.set_gpr(Gpr::Rsp, before);
            Err(fault)
        }
    }
}

fn segment_operand(insn: &Instruction) -> Option<Register> {
    let register = register_operand(insn, 0);
    register.is_segment_register().then_some(register)
}

/// XLAT: AL from the table at rBX.
pub(crate) fn xlat(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let value = cx.value(insn, 0)?;
    cx.set_register(Register::AL, value);
    Ok(Flow::Next)
}

/// SALC, which Intel lists as reserved and every processor has: AL from CF.
pub(crate) fn salc(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    let carry = cx.flag(Rflags::CF);
    cx.set_register(Register::AL, if carry { 0xff } else { 0 });
    Ok(Flow::Next)
}

/// LDS LES LFS LGS LSS: a segment register and a general-purpose one from a far pointer; neither if the segment faults.
pub(crate) fn load_pointer(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let span = cx.memory(insn, 1, size + 2, AccessKind::Read)?;
    let raw = cx.load(&span);
    let segment = match insn.mnemonic() {
        Mnemonic::Lds => Register::DS,
        Mnemonic::Les => Register::ES,
        Mnemonic::Lfs => Register::FS,
        Mnemonic::Lgs => Register::GS,
        _ => Register::SS,
    };
    cx.load_segment(segment, (raw >> (8 * size)) as u16)?;
    cx.set_register(insn.op0_register(), raw as u64);
    Ok(Flow::Next)
}

/// BOUND: #BR unless a signed index is within the two bounds in memory.
pub(crate) fn bound(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let number = |value: u64| sign_extend(value, size) as i64;
    let index = number(cx.register(insn.op0_register()));
    let low = cx.memory(insn, 1, size, AccessKind::Read)?;
    let low = number(cx.load(&low) as u64);
    // Two operands of their own: the second wraps around, and is checked, by itself.
    let offset = cx.effective_address(insn, 1).wrapping_add(size as u64);
    let offset = offset & mask(address_width(insn));
    let high = cx.linear(Context::operand_segment(insn, 1), offset, size, AccessKind::Read)?;
    let access = cx.explicit(AccessKind::Read);
    let high = cx.span(high, size, access)?;
    let high = number(cx.load(&high) as u64);
    if index < low || index > high { Err(Exception::plain(Vector::BoundRange).into()) } else { Ok(Flow::Next) }
}

/// NOP, PREFETCH and the fences: nothing to see on a machine that runs in order.
pub(crate) fn nop(_cx: &mut Context<'_>, _insn: &Instruction) -> Result<Flow, Fault> {
    Ok(Flow::Next)
}
