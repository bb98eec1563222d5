//! String instructions MOVS, STOS and LODS, with REP (SDM 2 MOVS, STOS, LODS, REP). CMPS, SCAS, INS and OUTS are left
//! out.
//!
//! REP is interruptible between elements: a fault leaves the registers after the last whole element, and a long one is
//! left after [`ELEMENTS_MAX`] elements with the instruction pointer still on it, as an interrupt would leave it.

use crate::core::Gpr;
use crate::exec::context::{Context, mask};
use crate::exec::operand::bytes;
use crate::exec::{Done, Fault, Flow};
use iced_x86::{Instruction, Mnemonic, OpKind};
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

/// One element.
fn element(cx: &mut Context<'_>, insn: &Instruction, size: usize, address_bytes: usize) -> Result<(), Fault> {
    let value = cx.place(insn, 1, AccessKind::Read)?;
    let target = cx.place(insn, 0, AccessKind::Write)?;
    let value = cx.get(&value, size);
    cx.put(&target, value);
    let step = if cx.flag(Rflags::DF) { (size as u64).wrapping_neg() } else { size as u64 };
    let (source, destination) = moved(insn.mnemonic());
    if source {
        advance(cx, Gpr::Rsi, step, address_bytes);
    }
    if destination {
        advance(cx, Gpr::Rdi, step, address_bytes);
    }
    Ok(())
}

/// Whether rSI and rDI move.
const fn moved(mnemonic: Mnemonic) -> (bool, bool) {
    match mnemonic {
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => (false, true),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => (true, false),
        _ => (true, true),
    }
}

/// MOVS, STOS and LODS of any width.
pub(crate) fn string(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if !insn.is_string_instruction() {
        return Err(Fault::unmodelled("MOVSD between XMM registers and memory"));
    }
    let size = bytes(insn, 0);
    let address_bytes = address_bytes(insn);
    if !insn.has_rep_prefix() && !insn.has_repne_prefix() {
        element(cx, insn, size, address_bytes)?;
        return Ok(Flow::Next);
    }
    for _ in 0..ELEMENTS_MAX {
        if cx.core.gpr(Gpr::Rcx) & mask(address_bytes) == 0 {
            return Ok(Flow::Next);
        }
        element(cx, insn, size, address_bytes)?;
        advance(cx, Gpr::Rcx, u64::MAX, address_bytes);
    }
    let left = cx.core.gpr(Gpr::Rcx) & mask(address_bytes);
    Ok(if left == 0 { Flow::Next } else { Flow::Jumped })
}
