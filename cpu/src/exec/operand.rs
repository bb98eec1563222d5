//! Operands: where an instruction reads and writes.
//!
//! A [`Place`] is an operand whose faults are over: a register, an immediate, or memory already translated for its
//! access. SDM 1 3.7.5 (effective addresses), 3.3.7 (RIP-relative addressing, address-size truncation).

use crate::access::Span;
use crate::core::Bitness;
use crate::exec::Fault;
use crate::exec::context::{Context, gpr_of, mask, sign_extend};
use crate::virt::{MemoryOperand, Operands};
use iced_x86::{Code, CodeSize, Instruction, Mnemonic, OpKind, Register};
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

/// The operand size that the instruction-information field of a descriptor-table instruction tells, else the register
/// operand's.
fn told_bytes(insn: &Instruction) -> u8 {
    match insn.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 | Code::Sgdt_m1632_16 | Code::Sidt_m1632_16 => 2,
        Code::Lgdt_m1632 | Code::Lidt_m1632 | Code::Sgdt_m1632 | Code::Sidt_m1632 => 4,
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => (0..insn.op_count())
            .find(|operand| insn.op_kind(*operand) == OpKind::Register)
            .map_or(0, |operand| insn.op_register(operand).size() as u8),
    }
}

/// Whether the first operand is ModRM.reg, in instructions whose exits tell operands.
const fn names_reg_first(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Vmwrite | Mnemonic::Invept | Mnemonic::Invvpid | Mnemonic::Invpcid)
}

impl Context<'_> {
    /// An instruction's operands as encoded (SDM 3C 27.2.5).
    pub(crate) fn describe(&self, insn: &Instruction) -> Operands {
        let register = |operand: u32| {
            let named = operand < insn.op_count() && insn.op_kind(operand) == OpKind::Register;
            named.then(|| insn.op_register(operand)).filter(|register| register.is_gpr()).map(gpr_of)
        };
        let (rm, reg) = if names_reg_first(insn.mnemonic()) { (1, 0) } else { (0, 1) };
        let memory = (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory);
        let memory = memory.then(|| self.describe_memory(insn));
        Operands { memory, rm: register(rm), reg: register(reg), bytes: told_bytes(insn) }
    }

    fn describe_memory(&self, insn: &Instruction) -> MemoryOperand {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let named = [base, index].into_iter().find(|register| *register != Register::None);
        let address_bytes = named.map_or(insn.memory_displ_size(), |register| register.size() as u32);
        let address_bytes = if address_bytes < 2 { self.default_address_bytes() } else { address_bytes };
        let raw = insn.memory_displacement64();
        let displacement = match base {
            Register::RIP | Register::EIP => raw.wrapping_add(self.core.rip),
            _ => sign_extend(raw, address_bytes as usize),
        };
        let gpr = |register: Register| register.is_gpr().then(|| gpr_of(register));
        MemoryOperand {
            base: gpr(base),
            index: gpr(index),
            scale: insn.memory_index_scale().trailing_zeros() as u8,
            segment: insn.memory_segment().number() as u8,
            address_bytes: address_bytes as u8,
            displacement,
        }
    }

    const fn default_address_bytes(&self) -> u32 {
        match self.core.bitness() {
            Bitness::Bits16 => 2,
            Bitness::Bits32 => 4,
            Bitness::Bits64 => 8,
        }
    }

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
