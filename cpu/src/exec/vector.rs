//! XMM registers: when they may be used, vector operands, and the SSE and SSE2 instructions that only move data: MOVAPS
//! and its kin, MOVD, MOVQ, MOVSS, MOVSD, the half moves, the masks of signs (SDM 2, each instruction's page; SDM 3A
//! 13.1, availability; SDM 2 tables 2-21 and on, exceptions).
//!
//! There are no caches, so a non-temporal store is a store. Left out, and named when met: MMX registers.

use crate::exec::bitfield::require;
use crate::exec::context::Context;
use crate::exec::operand::is_memory;
use crate::exec::{Done, Fault, Flow, string};
use crate::profile::Features;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::{Exception, Vector};

/// Whether a 16-byte memory operand must be aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alignment {
    /// #GP(0) if it is not.
    Required,
    /// Anywhere.
    Free,
}

/// #UD or #NM unless XMM registers may be used now (SDM 3A table 13-1).
pub(crate) fn require_sse(cx: &Context<'_>) -> Result<(), Fault> {
    require(cx, Features::SSE2)?;
    if cx.core.cr0.contains(Cr0::EM) || !cx.core.cr4.contains(Cr4::OSFXSR) {
        return Err(Exception::ud().into());
    }
    if cx.core.cr0.contains(Cr0::TS) {
        return Err(Exception::plain(Vector::DeviceNotAvailable).into());
    }
    Ok(())
}

/// [`require_sse`], and names an instruction whose operands are MMX registers.
pub(crate) fn require_xmm(cx: &Context<'_>, insn: &Instruction) -> Result<(), Fault> {
    let is_mmx = |operand| insn.op_kind(operand) == OpKind::Register && insn.op_register(operand).is_mm();
    if (0..insn.op_count()).any(is_mmx) {
        return Err(Fault::unmodelled(format!("MMX: {insn}")));
    }
    require_sse(cx)
}

impl Context<'_> {
    /// Reads an XMM register.
    pub(crate) fn xmm(&self, register: Register) -> u128 {
        self.core.vectors.xmm[register.number() & 15]
    }

    /// Writes an XMM register.
    pub(crate) fn set_xmm(&mut self, register: Register, value: u128) {
        self.core.vectors.xmm[register.number() & 15] = value;
    }

    /// Reads an XMM register or 16 bytes of memory.
    pub(crate) fn vector(&mut self, insn: &Instruction, operand: u32, alignment: Alignment) -> Result<u128, Fault> {
        if !is_memory(insn, operand) {
            return Ok(self.xmm(insn.op_register(operand)));
        }
        let span = match alignment {
            Alignment::Required => self.aligned_memory(insn, operand, AccessKind::Read)?,
            Alignment::Free => self.memory(insn, operand, 16, AccessKind::Read)?,
        };
        Ok(self.load(&span))
    }

    /// Reads the low `bytes` bytes of an XMM register, a general-purpose register, or so many bytes of memory.
    fn scalar(&mut self, insn: &Instruction, operand: u32, bytes: usize) -> Result<u128, Fault> {
        let whole = if is_memory(insn, operand) {
            let span = self.memory(insn, operand, bytes, AccessKind::Read)?;
            self.load(&span)
        } else if insn.op_register(operand).is_xmm() {
            self.xmm(insn.op_register(operand))
        } else {
            self.register(insn.op_register(operand)).into()
        };
        Ok(whole & low_mask(bytes))
    }
}

/// The low `bytes` bytes of a vector, fewer than 16.
const fn low_mask(bytes: usize) -> u128 {
    (1 << (8 * bytes)) - 1
}

fn whole(cx: &mut Context<'_>, insn: &Instruction, alignment: Alignment) -> Done {
    require_xmm(cx, insn)?;
    let value = cx.vector(insn, 1, alignment)?;
    if is_memory(insn, 0) {
        let span = match alignment {
            Alignment::Required => cx.aligned_memory(insn, 0, AccessKind::Write)?,
            Alignment::Free => cx.memory(insn, 0, 16, AccessKind::Write)?,
        };
        cx.store(&span, value);
    } else {
        cx.set_xmm(insn.op0_register(), value);
    }
    Ok(Flow::Next)
}

/// MOVAPS, MOVAPD, MOVDQA, MOVNTPS, MOVNTPD and MOVNTDQ.
pub(crate) fn move_aligned(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    whole(cx, insn, Alignment::Required)
}

/// MOVUPS, MOVUPD and MOVDQU.
pub(crate) fn move_unaligned(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    whole(cx, insn, Alignment::Free)
}

/// Moves `size` bytes; `keeps` is whether a move between registers leaves the rest of the destination alone.
fn narrow(cx: &mut Context<'_>, insn: &Instruction, size: usize, keeps: bool) -> Done {
    require_xmm(cx, insn)?;
    let value = cx.scalar(insn, 1, size)?;
    if is_memory(insn, 0) {
        let span = cx.memory(insn, 0, size, AccessKind::Write)?;
        cx.store(&span, value);
    } else if insn.op0_register().is_xmm() {
        let old = if keeps && !is_memory(insn, 1) { cx.xmm(insn.op0_register()) } else { 0 };
        cx.set_xmm(insn.op0_register(), (old & !low_mask(size)) | value);
    } else {
        cx.set_register(insn.op0_register(), value as u64);
    }
    Ok(Flow::Next)
}

/// MOVD and MOVQ: an XMM destination is zero-extended.
pub(crate) fn move_integer(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = if insn.mnemonic() == Mnemonic::Movd { 4 } else { 8 };
    narrow(cx, insn, size, false)
}

/// MOVSS and MOVSD: a load clears the rest of the register, a move between registers keeps it.
pub(crate) fn move_scalar(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = if insn.mnemonic() == Mnemonic::Movss { 4 } else { 8 };
    narrow(cx, insn, size, true)
}

/// MOVSD, which is also the mnemonic of MOVS with doublewords.
pub(crate) fn movsd(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if insn.is_string_instruction() { string::transfer(cx, insn) } else { move_scalar(cx, insn) }
}

/// MOVLPS MOVLPD MOVHPS MOVHPD MOVLHPS MOVHLPS: one half of a register.
pub(crate) fn move_half(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_xmm(cx, insn)?;
    let high = matches!(insn.mnemonic(), Mnemonic::Movhps | Mnemonic::Movhpd | Mnemonic::Movlhps);
    let shift = if high { 64 } else { 0 };
    if is_memory(insn, 0) {
        let value = cx.xmm(insn.op1_register()) >> shift;
        let span = cx.memory(insn, 0, 8, AccessKind::Write)?;
        cx.store(&span, value & low_mask(8));
        return Ok(Flow::Next);
    }
    let half = match insn.mnemonic() {
        Mnemonic::Movhlps => cx.xmm(insn.op1_register()) >> 64,
        _ => cx.scalar(insn, 1, 8)?,
    };
    let kept = cx.xmm(insn.op0_register()) & !(low_mask(8) << shift);
    cx.set_xmm(insn.op0_register(), kept | half << shift);
    Ok(Flow::Next)
}

/// MASKMOVDQU: bytes whose mask byte is negative, at rDI.
pub(crate) fn move_masked(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_xmm(cx, insn)?;
    let (value, mask) = (cx.xmm(insn.op1_register()), cx.xmm(insn.op2_register()));
    let span = cx.memory(insn, 0, 16, AccessKind::Write)?;
    let (mut bytes, mask) = (cx.load(&span).to_le_bytes(), mask.to_le_bytes());
    for (index, byte) in value.to_le_bytes().into_iter().enumerate() {
        if mask[index] & 0x80 != 0 {
            bytes[index] = byte;
        }
    }
    cx.store(&span, u128::from_le_bytes(bytes));
    Ok(Flow::Next)
}

/// MOVNTI: a store.
pub(crate) fn move_non_temporal(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cx, Features::SSE2)?;
    let value = cx.value(insn, 1)?;
    let place = cx.place(insn, 0, AccessKind::Write)?;
    cx.put(&place, value);
    Ok(Flow::Next)
}

/// PMOVMSKB, MOVMSKPS and MOVMSKPD: the sign of every lane.
pub(crate) fn sign_mask(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_xmm(cx, insn)?;
    let lane_bits = match insn.mnemonic() {
        Mnemonic::Pmovmskb => 8,
        Mnemonic::Movmskps => 32,
        _ => 64,
    };
    let source = cx.xmm(insn.op1_register());
    let sign = |lane: u32| ((source >> (lane_bits * (lane + 1) - 1)) as u64 & 1) << lane;
    let value = (0..128 / lane_bits).map(sign).sum();
    cx.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

/// PINSRW: a word from a register or memory.
pub(crate) fn insert_word(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_xmm(cx, insn)?;
    let word = cx.scalar(insn, 1, 2)?;
    let shift = 16 * u32::from(insn.immediate8() & 7);
    let kept = cx.xmm(insn.op0_register()) & !(0xffff << shift);
    cx.set_xmm(insn.op0_register(), kept | word << shift);
    Ok(Flow::Next)
}

/// PEXTRW: a word to a register; the form that stores is SSE4.1's.
pub(crate) fn extract_word(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    use iced_x86::Code;
    if matches!(insn.code(), Code::Pextrw_r32m16_xmm_imm8 | Code::Pextrw_r64m16_xmm_imm8) {
        return Err(Fault::unmodelled(format!("SSE4.1: {insn}")));
    }
    require_xmm(cx, insn)?;
    let word = cx.xmm(insn.op1_register()) >> (16 * u32::from(insn.immediate8() & 7));
    cx.set_register(insn.op0_register(), word as u64 & 0xffff);
    Ok(Flow::Next)
}

/// CLFLUSH, CLFLUSHOPT and CLWB: checked as a load of one byte, and then nothing, for there are no caches.
pub(crate) fn cache_line(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let feature = if insn.mnemonic() == Mnemonic::Clflush { Features::SSE2 } else { Features::CLFLUSHOPT };
    require(cx, feature)?;
    cx.memory(insn, 0, 1, AccessKind::Read)?;
    Ok(Flow::Next)
}
