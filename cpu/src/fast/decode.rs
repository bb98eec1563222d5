//! From a decoded instruction to a micro-operation. What is not here runs on the slow path, which knows everything.
//!
//! 64-bit mode only. Left out: locked instructions, AH to DH, 32-bit addresses, string and system instructions, vector
//! registers, divisions, rotates, and whatever else is rare in loops.

use super::uop::{Address, Binary, ENTRY, Extension, FS, GS, RCX, Shift, Unary, Uop, Widening, ZERO};
use crate::exec::context::{mask, sign_extend};
use crate::exec::flags::Width;
use crate::exec::operand::{bytes, is_memory};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// The micro-operation of an instruction that was decoded with the block's first byte at 0.
pub(super) fn decode(insn: &Instruction) -> Option<Uop> {
    if insn.has_lock_prefix() {
        return None;
    }
    match insn.mnemonic() {
        Mnemonic::Nop | Mnemonic::Endbr64 => Some(Uop::Nop),
        Mnemonic::Mov => mov(insn),
        Mnemonic::Movzx => widen(insn, Extension::Zero),
        Mnemonic::Movsx | Mnemonic::Movsxd => widen(insn, Extension::Sign),
        Mnemonic::Lea => lea(insn),
        Mnemonic::Xchg => exchange(insn),
        Mnemonic::Add => binary(insn, Binary::Add),
        Mnemonic::Or => binary(insn, Binary::Or),
        Mnemonic::Adc => binary(insn, Binary::Adc),
        Mnemonic::Sbb => binary(insn, Binary::Sbb),
        Mnemonic::And => binary(insn, Binary::And),
        Mnemonic::Sub => binary(insn, Binary::Sub),
        Mnemonic::Xor => binary(insn, Binary::Xor),
        Mnemonic::Cmp => binary(insn, Binary::Cmp),
        Mnemonic::Test => binary(insn, Binary::Test),
        Mnemonic::Inc => unary(insn, Unary::Inc),
        Mnemonic::Dec => unary(insn, Unary::Dec),
        Mnemonic::Neg => unary(insn, Unary::Neg),
        Mnemonic::Not => unary(insn, Unary::Not),
        Mnemonic::Shl | Mnemonic::Sal => shift(insn, Shift::Left),
        Mnemonic::Shr => shift(insn, Shift::Right),
        Mnemonic::Sar => shift(insn, Shift::Arithmetic),
        Mnemonic::Imul => imul(insn),
        Mnemonic::Cwde => Some(sign_extended(Width::Word, Width::Dword)),
        Mnemonic::Cdqe => Some(sign_extended(Width::Dword, Width::Qword)),
        Mnemonic::Cdq => Some(Uop::SignToRdx { width: Width::Dword }),
        Mnemonic::Cqo => Some(Uop::SignToRdx { width: Width::Qword }),
        Mnemonic::Push => push(insn),
        Mnemonic::Pop => pop(insn),
        Mnemonic::Leave => (insn.code() == Code::Leaveq).then_some(Uop::Leave),
        Mnemonic::Jmp => jump(insn),
        Mnemonic::Call => call(insn),
        Mnemonic::Ret => ret(insn),
        _ => conditional(insn),
    }
}

/// Jcc, SETcc and CMOVcc.
fn conditional(insn: &Instruction) -> Option<Uop> {
    let condition = insn.condition_code();
    if insn.is_jcc_short_or_near() {
        return (insn.op0_kind() == OpKind::NearBranch64)
            .then(|| Some(Uop::JumpIf { condition, target: target(insn)? }))
            .flatten();
    }
    match (is_set(insn.mnemonic()), is_cmov(insn.mnemonic())) {
        (true, _) if is_memory(insn, 0) => Some(Uop::SetMemory { condition, to: address(insn)? }),
        (true, _) => Some(Uop::Set { condition, to: operand_gpr(insn, 0)? }),
        (_, true) if is_memory(insn, 1) => {
            Some(Uop::CmovLoad { condition, width: width(insn, 0), to: operand_gpr(insn, 0)?, from: address(insn)? })
        }
        (_, true) => {
            Some(Uop::Cmov { condition, width: width(insn, 0), to: operand_gpr(insn, 0)?, from: operand_gpr(insn, 1)? })
        }
        _ => None,
    }
}

const fn is_set(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Seta | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
    )
}

const fn is_cmov(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
    )
}

fn width(insn: &Instruction, operand: u32) -> Width {
    Width::of_bytes(bytes(insn, operand))
}

/// A general-purpose register whose value begins at bit 0.
fn gpr(register: Register) -> Option<u8> {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (register.is_gpr() && !high).then(|| register.full_register().number() as u8)
}

fn operand_gpr(insn: &Instruction, operand: u32) -> Option<u8> {
    (insn.op_kind(operand) == OpKind::Register).then(|| gpr(insn.op_register(operand))).flatten()
}

fn is_immediate(insn: &Instruction, operand: u32) -> bool {
    !is_memory(insn, operand) && insn.op_kind(operand) != OpKind::Register
}

/// An immediate as wide as an operand of `size` bytes, as a number that gives it when sign-extended and truncated.
fn immediate<T: TryFrom<i64>>(insn: &Instruction, operand: u32, size: usize) -> Option<T> {
    let value = sign_extend(insn.immediate(operand) & mask(size), size);
    T::try_from(value as i64).ok()
}

/// The memory operand, if its addresses are 64 bits wide and made of three parts at most.
fn address(insn: &Instruction) -> Option<Address> {
    let part = |register: Register| match register {
        Register::None => Some(ZERO),
        _ if register.size() == 8 => gpr(register),
        _ => None,
    };
    let displacement = i32::try_from(insn.memory_displacement64() as i64).ok()?;
    let relative = insn.memory_base() == Register::RIP;
    let plain = Address {
        base: if relative { ENTRY } else { part(insn.memory_base())? },
        index: part(insn.memory_index())?,
        scale: insn.memory_index_scale().trailing_zeros() as u8,
        displacement,
    };
    let segment = match insn.memory_segment() {
        Register::FS => FS,
        Register::GS => GS,
        _ => return Some(plain),
    };
    match plain {
        Address { base: ZERO, .. } => Some(Address { base: segment, ..plain }),
        Address { index: ZERO, .. } => Some(Address { index: segment, scale: 0, ..plain }),
        _ => None,
    }
}

fn mov(insn: &Instruction) -> Option<Uop> {
    let width = width(insn, 0);
    if is_memory(insn, 0) {
        let to = address(insn)?;
        return Some(match is_immediate(insn, 1) {
            true => Uop::StoreImmediate { width, to, value: immediate(insn, 1, bytes(insn, 0))? },
            false => Uop::Store { width, to, from: operand_gpr(insn, 1)? },
        });
    }
    let to = operand_gpr(insn, 0)?;
    if is_memory(insn, 1) {
        return Some(Uop::Load { width, to, from: address(insn)? });
    }
    if is_immediate(insn, 1) {
        return Some(match width {
            Width::Dword | Width::Qword => Uop::MoveImmediate { to, value: insn.immediate(1) & width.mask() },
            Width::Byte | Width::Word => Uop::MovePart { width, to, value: immediate(insn, 1, bytes(insn, 0))? },
        });
    }
    Some(Uop::Move { width, to, from: operand_gpr(insn, 1)? })
}

fn widen(insn: &Instruction, extension: Extension) -> Option<Uop> {
    let how = Widening { extension, from: width(insn, 1), to: width(insn, 0) };
    let to = operand_gpr(insn, 0)?;
    if is_memory(insn, 1) {
        return Some(Uop::LoadWiden { how, to, from: address(insn)? });
    }
    Some(Uop::Widen { how, to, from: operand_gpr(insn, 1)? })
}

/// CWDE and CDQE.
const fn sign_extended(from: Width, to: Width) -> Uop {
    Uop::Widen { how: Widening { extension: Extension::Sign, from, to }, to: 0, from: 0 }
}

/// LEA knows no segments.
fn lea(insn: &Instruction) -> Option<Uop> {
    let mut flat = *insn;
    flat.set_segment_prefix(Register::None);
    Some(Uop::Lea { width: width(insn, 0), to: operand_gpr(insn, 0)?, from: address(&flat)? })
}

/// XCHG with memory is locked.
fn exchange(insn: &Instruction) -> Option<Uop> {
    Some(Uop::Exchange { width: width(insn, 0), a: operand_gpr(insn, 0)?, b: operand_gpr(insn, 1)? })
}

fn binary(insn: &Instruction, op: Binary) -> Option<Uop> {
    let width = width(insn, 0);
    if is_memory(insn, 0) {
        let to = address(insn)?;
        return Some(match is_immediate(insn, 1) {
            true => Uop::BinaryStoreImmediate { op, width, to, value: immediate(insn, 1, bytes(insn, 0))? },
            false => Uop::BinaryStore { op, width, to, from: operand_gpr(insn, 1)? },
        });
    }
    let to = operand_gpr(insn, 0)?;
    if is_memory(insn, 1) {
        return Some(Uop::BinaryLoad { op, width, to, from: address(insn)? });
    }
    if is_immediate(insn, 1) {
        return Some(Uop::BinaryImmediate { op, width, to, value: immediate(insn, 1, bytes(insn, 0))? });
    }
    Some(Uop::Binary { op, width, to, from: operand_gpr(insn, 1)? })
}

fn unary(insn: &Instruction, op: Unary) -> Option<Uop> {
    let width = width(insn, 0);
    if is_memory(insn, 0) {
        return Some(Uop::UnaryMemory { op, width, to: address(insn)? });
    }
    Some(Uop::Unary { op, width, to: operand_gpr(insn, 0)? })
}

/// Shifts of registers, by a constant that is not 0 or by CL.
fn shift(insn: &Instruction, op: Shift) -> Option<Uop> {
    let width = width(insn, 0);
    let to = operand_gpr(insn, 0)?;
    if !is_immediate(insn, 1) {
        return (operand_gpr(insn, 1)? == RCX).then_some(Uop::ShiftByCl { op, width, to });
    }
    match width.count(insn.immediate(1)) as u8 {
        0 => None,
        count => Some(Uop::Shift { op, width, to, count }),
    }
}

/// IMUL with two or three operands.
fn imul(insn: &Instruction) -> Option<Uop> {
    let width = width(insn, 0);
    let to = operand_gpr(insn, 0)?;
    match insn.op_count() {
        2 if is_memory(insn, 1) => Some(Uop::ImulLoad { width, to, from: address(insn)? }),
        2 => Some(Uop::Imul { width, to, a: to, b: operand_gpr(insn, 1)? }),
        3 => {
            let value = immediate(insn, 2, bytes(insn, 0))?;
            Some(Uop::ImulImmediate { width, to, a: operand_gpr(insn, 1)?, value })
        }
        _ => None,
    }
}

/// Whether the instruction moves RSP by a quadword per push or pop.
fn is_quad(insn: &Instruction) -> bool {
    insn.stack_pointer_increment().unsigned_abs() == 8
}

fn push(insn: &Instruction) -> Option<Uop> {
    if !is_quad(insn) {
        return None;
    }
    if is_memory(insn, 0) {
        return Some(Uop::PushLoad { from: address(insn)? });
    }
    if is_immediate(insn, 0) {
        return Some(Uop::PushImmediate { value: i32::try_from(insn.immediate(0) as i64).ok()? });
    }
    Some(Uop::Push { from: operand_gpr(insn, 0)? })
}

fn pop(insn: &Instruction) -> Option<Uop> {
    (is_quad(insn)).then(|| Some(Uop::Pop { to: operand_gpr(insn, 0)? })).flatten()
}

/// A relative target, from the block's first byte.
fn target(insn: &Instruction) -> Option<i32> {
    i32::try_from(insn.near_branch_target() as i64).ok()
}

fn jump(insn: &Instruction) -> Option<Uop> {
    match insn.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Some(Uop::Jump { target: target(insn)? }),
        Code::Jmp_rm64 if is_memory(insn, 0) => Some(Uop::JumpLoad { from: address(insn)? }),
        Code::Jmp_rm64 => Some(Uop::JumpTo { from: operand_gpr(insn, 0)? }),
        _ => None,
    }
}

fn call(insn: &Instruction) -> Option<Uop> {
    let next = insn.next_ip();
    match insn.code() {
        Code::Call_rel32_64 => Some(Uop::Call { target: target(insn)?, next: next as i32 }),
        Code::Call_rm64 if is_memory(insn, 0) => Some(Uop::CallLoad { from: address(insn)?, next: next as u16 }),
        Code::Call_rm64 => Some(Uop::CallTo { from: operand_gpr(insn, 0)?, next: next as i32 }),
        _ => None,
    }
}

fn ret(insn: &Instruction) -> Option<Uop> {
    match insn.code() {
        Code::Retnq => Some(Uop::Return { release: 0 }),
        Code::Retnq_imm16 => Some(Uop::Return { release: insn.immediate16() }),
        _ => None,
    }
}
