//! Several registers to and from the stack, and frames: PUSHA POPA ENTER LEAVE (SDM 2, each instruction's page).
//!
//! Each takes effect only if the whole of it can; what a fault in the middle leaves in memory is open, here nothing of
//! PUSHA and what was pushed of ENTER.

use crate::core::Gpr;
use crate::exec::context::{Context, mask};
use crate::exec::moves::stack_bytes;
use crate::exec::stack::Stack;
use crate::exec::{Done, Flow};
use iced_x86::{Code, Instruction, Register};

/// The registers of PUSHA in the order in which they are pushed.
const ALL: [[Register; 8]; 2] = [
    [Register::AX, Register::CX, Register::DX, Register::BX, Register::SP, Register::BP, Register::SI, Register::DI],
    [
        Register::EAX,
        Register::ECX,
        Register::EDX,
        Register::EBX,
        Register::ESP,
        Register::EBP,
        Register::ESI,
        Register::EDI,
    ],
];

/// The registers of PUSHA and POPA, and the bytes of each.
fn all(insn: &Instruction) -> ([Register; 8], usize) {
    let size = stack_bytes(insn) / 8;
    (ALL[usize::from(size == 4)], size)
}

/// PUSHA and PUSHAD: the stack pointer is pushed as it was.
pub(crate) fn pusha(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let (registers, size) = all(insn);
    let mut stack = Stack::current(cx);
    for register in registers {
        let value = cx.register(register);
        stack.push(cx, value, size)?;
    }
    cx.commit_stack(&stack);
    Ok(Flow::Next)
}

/// POPA and POPAD: the image of the stack pointer is read and dropped.
pub(crate) fn popa(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let (registers, size) = all(insn);
    let mut stack = Stack::current(cx);
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = stack.pop(cx, size)?;
    }
    for (register, value) in registers.into_iter().zip(values) {
        if !matches!(register, Register::SP | Register::ESP) {
            cx.set_register(register, value);
        }
    }
    cx.commit_stack(&stack);
    Ok(Flow::Next)
}

/// ENTER: pushes the frame pointer, then as many outer frame pointers as the level asks for, then makes room. The last
/// place that the new stack pointer reaches must be writable.
pub(crate) fn enter(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let (size, frame) = match insn.code() {
        Code::Enterw_imm16_imm8 => (2, Register::BP),
        Code::Enterd_imm16_imm8 => (4, Register::EBP),
        _ => (8, Register::RBP),
    };
    let level = insn.immediate8_2nd() & 0x1f;
    let mut stack = Stack::current(cx);
    stack.push(cx, cx.core.gpr(Gpr::Rbp), size)?;
    let frame_pointer = stack.rsp(cx.core.gpr(Gpr::Rsp));
    let mut outer = Stack::current(cx).at(cx.core.gpr(Gpr::Rbp));
    for _ in 1..level {
        outer = outer.at(outer.pointer().wrapping_sub(size as u64));
        let value = outer.peek(cx, size)?;
        stack.push(cx, value, size)?;
    }
    if level > 0 {
        stack.push(cx, frame_pointer & mask(size), size)?;
    }
    let stack = stack.released(u64::from(insn.immediate16()).wrapping_neg());
    stack.probe(cx, size)?;
    cx.commit_stack(&stack);
    cx.set_register(frame, frame_pointer);
    Ok(Flow::Next)
}

/// LEAVE: RSP from RBP, then RBP from the stack.
pub(crate) fn leave(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let (size, frame) = match insn.code() {
        Code::Leavew => (2, Register::BP),
        Code::Leaved => (4, Register::EBP),
        _ => (8, Register::RBP),
    };
    let frame_pointer = cx.core.gpr(Gpr::Rbp);
    let mut stack = Stack::current(cx).at(frame_pointer);
    let value = stack.pop(cx, size)?;
    cx.commit_stack(&stack);
    cx.set_register(frame, value);
    Ok(Flow::Next)
}
