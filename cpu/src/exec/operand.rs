//! Operands: where an instruction reads and writes.
//!
//! A [`Place`] is an operand whose faults are over: a register, an immediate, or memory already translated for its
//! access. SDM 1 3.7.5 (effective addresses), 3.3.7 (RIP-relative addressing, address-size truncation).

use crate::access::Span;
use crate::exec::Fault;
use crate::exec::context::{Context, mask};
use iced_x86::{CodeSize, Instruction, OpKind, Register};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::Exception;

/// An operand that can no longer fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// A general-purpose or segment register.
    Register(Register),
    /// A constant, sign-extended to 64 bits.
    Immediate(u64),
    /// Translated memory.
    Memory(Span),
}

/// Whether an operand is in memory.
pub(crate) fn is_memory(insn: &Instruction, operand: u32) -> bool {
    matches!(
        insn.op_kind(operand),
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// The bytes of an operand; an immediate is as wide as the first operand.
pub(crate) fn bytes(insn: &Instruction, operand: u32) -> usize {
    match insn.op_kind(operand) {
        OpKind::Register => insn.op_register(operand).size(),
        _ if is_memory(insn, operand) => insn.memory_size().size(),
        _ if operand > 0 => bytes(insn, 0),
        _ => insn.stack_pointer_increment().unsigned_abs() as usize,
    }
}

/// The bytes of an instruction's addresses: 2, 4 or 8.
pub(crate) fn address_bytes(insn: &Instruction) -> usize {
    match insn.code_size() {
        CodeSize::Code64 => 8,
        CodeSize::Code32 => 4,
        CodeSize::Code16 | CodeSize::Unknown => 2,
    }
}

/// The segment of a memory operand. 64-bit code ignores every override but FS and GS (SDM 1 3.3.4; APM3 1.2.4), which
/// tells in what a non-canonical address raises.
fn named_segment(insn: &Instruction) -> Register {
    let overridden = matches!(insn.segment_prefix(), Register::CS | Register::DS | Register::ES | Register::SS);
    if insn.code_size() != CodeSize::Code64 || !overridden {
        return insn.memory_segment();
    }
    match insn.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => Register::SS,
        _ => Register::DS,
    }
}

impl Context<'_> {
    /// The segment through which a memory operand is reached.
    pub(crate) fn operand_segment(insn: &Instruction, operand: u32) -> Register {
        match insn.op_kind(operand) {
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => Register::ES,
            _ => named_segment(insn),
        }
    }

    /// A memory operand's offset in its segment.
    pub(crate) fn effective_address(&self, insn: &Instruction, operand: u32) -> u64 {
        let offset = insn.virtual_address(operand, 0, |register, _, _| {
            let part = if register.is_segment_register() { 0 } else { self.register(register) };
            Some(part)
        });
        let offset = offset.unwrap_or(0);
        // The decoder placed the instruction at 0; RIP-relative operands move with it.
        match insn.memory_base() {
            Register::RIP => offset.wrapping_add(self.core.rip),
            Register::EIP => offset.wrapping_add(self.core.rip) & 0xffff_ffff,
            _ => offset,
        }
    }

    /// A memory operand's linear address, with its segment checks.
    pub(crate) fn operand_address(
        &self,
        insn: &Instruction,
        operand: u32,
        bytes: usize,
        access: AccessKind,
    ) -> Result<Gva, Fault> {
        let offset = self.effective_address(insn, operand);
        Ok(self.linear(Self::operand_segment(insn, operand), offset, bytes, access)?)
    }

    /// Resolves `bytes` bytes of a memory operand for an access.
    pub(crate) fn memory(
        &mut self,
        insn: &Instruction,
        operand: u32,
        bytes: usize,
        access: AccessKind,
    ) -> Result<Span, Fault> {
        let address = self.operand_address(insn, operand, bytes, access)?;
        let access = self.explicit(access);
        self.span(address, bytes, access)
    }

    /// Resolves a 16-byte memory operand that must be aligned: #GP(0) if it is not (SDM 2 CMPXCHG16B, MOVAPS).
    pub(crate) fn aligned_memory(
        &mut self,
        insn: &Instruction,
        operand: u32,
        access: AccessKind,
    ) -> Result<Span, Fault> {
        self.require_alignment(insn, operand, 16)?;
        self.memory(insn, operand, 16, access)
    }

    /// #GP(0) unless a memory operand is aligned, which is judged before everything else about its address.
    pub(crate) fn require_alignment(&self, insn: &Instruction, operand: u32, to: u64) -> Result<(), Fault> {
        let name = Self::operand_segment(insn, operand);
        let flat = self.is_64bit() && !matches!(name, Register::FS | Register::GS);
        let base = if flat { 0 } else { self.segment(name).base };
        let address = base.wrapping_add(self.effective_address(insn, operand));
        if address.is_multiple_of(to) { Ok(()) } else { Err(Exception::gp0().into()) }
    }

    /// Resolves an operand; one that is read and then written is resolved for writing.
    pub(crate) fn place(&mut self, insn: &Instruction, operand: u32, access: AccessKind) -> Result<Place, Fault> {
        Ok(match insn.op_kind(operand) {
            OpKind::Register => Place::Register(insn.op_register(operand)),
            _ if is_memory(insn, operand) => Place::Memory(self.memory(insn, operand, bytes(insn, operand), access)?),
            _ => Place::Immediate(insn.immediate(operand)),
        })
    }

    /// Reads a place, truncated to `bytes`.
    pub(crate) fn get(&mut self, place: &Place, bytes: usize) -> u64 {
        let value = match place {
            Place::Register(register) => self.register(*register),
            Place::Immediate(value) => *value,
            Place::Memory(span) => self.load(span) as u64,
        };
        value & mask(bytes)
    }

    /// Writes a place. Immediates take no writes: no encoding has one as a destination.
    pub(crate) fn put(&mut self, place: &Place, value: u64) {
        match place {
            Place::Register(register) => self.set_register(*register, value),
            Place::Immediate(_) => {}
            Place::Memory(span) => self.store(span, u128::from(value)),
        }
    }

    /// Reads an operand, truncated to its own width (an immediate's to the first operand's).
    pub(crate) fn value(&mut self, insn: &Instruction, operand: u32) -> Result<u64, Fault> {
        let place = self.place(insn, operand, AccessKind::Read)?;
        Ok(self.get(&place, bytes(insn, operand)))
    }
}
