//! String instructions MOVS, STOS, LODS, CMPS, SCAS, INS and OUTS, with REP, REPE and REPNE (SDM 2, each instruction's
//! page, and REP).
//!
//! A repetition is interruptible between elements: a fault leaves the registers after the last whole element, and a long
//! one is left after [`ELEMENTS_MAX`] elements with the instruction pointer still on it, as an interrupt would leave it.
//! INS and OUTS are left after every element, for each is an access of its own to the bus.

use crate::core::Gpr;
use crate::exec::context::{Context, mask};
use crate::exec::flags::{self, Width};
use crate::exec::io::{port_of_dx, require_port};
use crate::exec::operand::bytes;
use crate::exec::{Done, Fault, Flow};
use crate::virt::{StringIo, Trap, Virt};
use iced_x86::{Instruction, OpKind, Register};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::rflags::Rflags;

/// Elements of one repeated string instruction that run in one step.
const ELEMENTS_MAX: u32 = 4096;

/// Adds to the part of a register that an address size uses; 32 bits clear the upper half.
fn advance(cx: &mut Context<'_>, register: Gpr, by: u64, address_bytes: usize) {
    let old = cx.core.gpr(register);
    let sum = old.wrapping_add(by) & mask(address_bytes);
    let kept = if address_bytes == 2 { old & !0xffff } else { 0 };
    cx.core.set_gpr(register, kept | sum);
}

/// The width of the index registers, from the operand that is in memory.
fn address_bytes(insn: &Instruction) -> usize {
    let kinds = [insn.op0_kind(), insn.op1_kind()];
    let is = |wanted: &[OpKind]| kinds.iter().any(|kind| wanted.contains(kind));
    if is(&[OpKind::MemorySegRSI, OpKind::MemoryESRDI]) {
        8
    } else if is(&[OpKind::MemorySegESI, OpKind::MemoryESEDI]) {
        4
    } else {
        2
    }
}

/// Moves the index registers that the operands in memory use by one element.
fn advance_indices(cx: &mut Context<'_>, insn: &Instruction, size: usize, address_bytes: usize) {
    let step = if cx.flag(Rflags::DF) { (size as u64).wrapping_neg() } else { size as u64 };
    for operand in 0..insn.op_count().min(2) {
        match insn.op_kind(operand) {
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => {
                advance(cx, Gpr::Rsi, step, address_bytes);
            }
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => {
                advance(cx, Gpr::Rdi, step, address_bytes);
            }
            _ => {}
        }
    }
}

/// What one element does, beside moving the index registers.
type Element = fn(&mut Context<'_>, &Instruction, usize) -> Result<(), Fault>;

fn move_element(cx: &mut Context<'_>, insn: &Instruction, size: usize) -> Result<(), Fault> {
    let value = cx.place(insn, 1, AccessKind::Read)?;
    let target = cx.place(insn, 0, AccessKind::Write)?;
    let value = cx.get(&value, size);
    cx.put(&target, value);
    Ok(())
}

/// CMPS subtracts the element at rDI from that at rSI, SCAS that at rDI from the accumulator. Which of CMPS's two operands
/// faults first the manual leaves open; processors begin with rDI.
fn compare_element(cx: &mut Context<'_>, insn: &Instruction, size: usize) -> Result<(), Fault> {
    let (second, first) = (cx.place(insn, 1, AccessKind::Read)?, cx.place(insn, 0, AccessKind::Read)?);
    let (a, b) = (cx.get(&first, size), cx.get(&second, size));
    let compared = flags::sub(a, b, false, Width::of_bytes(size));
    cx.set_flags(Rflags::STATUS, compared.flags);
    Ok(())
}

/// Whether a repetition goes on after an element.
type GoesOn = fn(&Context<'_>, &Instruction) -> bool;

/// Runs one element, or as many as the repeat prefix asks for.
fn repeat(cx: &mut Context<'_>, insn: &Instruction, element: Element, goes_on: GoesOn) -> Done {
    let size = bytes(insn, 0);
    let address_bytes = address_bytes(insn);
    if !is_repeated(insn) {
        element(cx, insn, size)?;
        advance_indices(cx, insn, size, address_bytes);
        return Ok(Flow::Next);
    }
    for _ in 0..ELEMENTS_MAX {
        if count(cx, address_bytes) == 0 {
            return Ok(Flow::Next);
        }
        element(cx, insn, size)?;
        advance_indices(cx, insn, size, address_bytes);
        advance(cx, Gpr::Rcx, u64::MAX, address_bytes);
        if !goes_on(cx, insn) {
            return Ok(Flow::Next);
        }
    }
    Ok(if count(cx, address_bytes) == 0 { Flow::Next } else { Flow::Jumped })
}

fn is_repeated(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

fn count(cx: &Context<'_>, address_bytes: usize) -> u64 {
    cx.core.gpr(Gpr::Rcx) & mask(address_bytes)
}

/// MOVS, STOS and LODS of any width.
pub(crate) fn transfer(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    repeat(cx, insn, move_element, |_, _| true)
}

/// CMPS and SCAS of any width: REPE goes on while ZF, REPNE while not.
pub(crate) fn compare(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if !insn.is_string_instruction() {
        return Err(Fault::unmodelled(format!("SSE floating point: {insn}")));
    }
    repeat(cx, insn, compare_element, |cx, insn| cx.flag(Rflags::ZF) != insn.has_repne_prefix())
}

/// What an exit for INS or OUTS tells of its operand, which need not be checked yet.
fn string_io(cx: &Context<'_>, insn: &Instruction, operand: u32, address_bytes: usize) -> StringIo {
    let name = Context::operand_segment(insn, operand);
    let offset = cx.effective_address(insn, operand);
    let base = match name {
        Register::FS | Register::GS => cx.segment(name).base,
        _ if cx.is_64bit() => 0,
        _ => cx.segment(name).base,
    };
    let sum = base.wrapping_add(offset);
    let address = Gva(if cx.is_64bit() { sum } else { sum & 0xffff_ffff });
    let segment = name.number() as u8;
    StringIo { address, repeated: is_repeated(insn), address_bytes: address_bytes as u8, segment }
}

/// After one element of INS or OUTS: whether the instruction is to be met again.
fn count_element(cx: &mut Context<'_>, insn: &Instruction, address_bytes: usize) -> bool {
    if !is_repeated(insn) {
        return false;
    }
    advance(cx, Gpr::Rcx, u64::MAX, address_bytes);
    count(cx, address_bytes) != 0
}

/// INS: the permission is checked even for no element, and the interception comes before the operand's own faults (SDM 3C 25.1.1). An unclaimed bus cycle reads ones.
pub(crate) fn input<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let (size, address_bytes) = (bytes(insn, 0), address_bytes(insn));
    let port = port_of_dx(cx);
    require_port(cx, port, size)?;
    if is_repeated(insn) && count(cx, address_bytes) == 0 {
        return Ok(Flow::Next);
    }
    let string = Some(string_io(cx, insn, 0, address_bytes));
    cx.ask(virt, &Trap::Io { port, bytes: size as u8, input: true, string })?;
    let place = cx.place(insn, 0, AccessKind::Write)?;
    cx.put(&place, mask(size));
    advance_indices(cx, insn, size, address_bytes);
    let again = count_element(cx, insn, address_bytes);
    Ok(if again { Flow::Jumped } else { Flow::Next })
}

/// OUTS: every element reaches whoever runs the processor.
pub(crate) fn output<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let (size, address_bytes) = (bytes(insn, 1), address_bytes(insn));
    let port = port_of_dx(cx);
    require_port(cx, port, size)?;
    if is_repeated(insn) && count(cx, address_bytes) == 0 {
        return Ok(Flow::Next);
    }
    let string = Some(string_io(cx, insn, 1, address_bytes));
    cx.ask(virt, &Trap::Io { port, bytes: size as u8, input: false, string })?;
    let value = cx.value(insn, 1)?;
    advance_indices(cx, insn, size, address_bytes);
    if count_element(cx, insn, address_bytes) {
        // An OUT that reaches the bus retires and moves on: stay on the instruction for the next element.
        cx.core.rip = cx.wrap_rip(cx.core.rip.wrapping_sub(u64::from(cx.at.length)));
    }
    Ok(Flow::Out { port, bytes: size as u8, value: value as u32 })
}
