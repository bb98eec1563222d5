//! L0's instruction emulator, as far as memory accesses need it that hardware can't finish: MMIO, and writes to
//! shadowed tables (x86 emulate.c, `x86_emulate_instruction`).
//!
//! Modelled: moves, the integer arithmetic of [`crate::alu`], exchanges, PUSH, and one element at a time of STOS, MOVS
//! and LODS, with operands that may cross pages. Any other instruction is refused by name at MMIO, where no device
//! answers; after a write to a shadowed table the shadow is given up and hardware does the write
//! (`kvm_mmu_unprotect_gfn_and_retry`).
//!
//! Left out: segment limits, and exceptions of the emulated instruction other than page faults.

use crate::alu::Alu;
use crate::run::Run;
use crate::translate::{Miss, Piece};
use crate::vendor::vmx::gpr_numbered;
use cpu::Gpr;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use mmu::plant::Plant;
use sim_core::SimError;
use sim_core::addr::Gpa;
use sim_core::arch::exception::PageFaultError;
use sim_core::arch::rflags::Rflags;
use sim_core::event::Event;

/// Bytes that an instruction can have at most.
const INSTRUCTION_MAX: u64 = 15;

const READ: PageFaultError = PageFaultError::empty();
const WRITE: PageFaultError = PageFaultError::W;

/// Instructions that are taken for writers of page tables (`x86_page_table_writing_insn`): emulated, so that the shadow
/// stays.
const TABLE_WRITERS: [Mnemonic; 10] = [
    Mnemonic::Mov,
    Mnemonic::Or,
    Mnemonic::And,
    Mnemonic::Xchg,
    Mnemonic::Cmpxchg,
    Mnemonic::Cmpxchg8b,
    Mnemonic::Bts,
    Mnemonic::Btc,
    Mnemonic::Movnti,
    Mnemonic::Stosq,
];

/// How far the emulator got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// To the next instruction.
    Next,
    /// Through one element of a repeated string instruction.
    Again,
}

impl Run<'_> {
    /// A write to a table above level 1 that is shadowed. An instruction that is not taken for a writer of page tables
    /// runs again on hardware, without the shadow; unless that was tried for it already, as when the table maps itself
    /// (`retry_instruction`).
    ///
    /// # Errors
    /// If L1's state can't be loaded, when the fault is L1's to handle.
    pub fn emulate_table_write(&mut self, gpa: Gpa) -> Result<(), SimError> {
        let instruction = match self.fetch_instruction() {
            Ok(instruction) => instruction,
            Err(miss) => return self.tell(miss),
        };
        let guarded = !self.vm.plants.has(Plant::RetryWithoutGuard);
        let again = guarded && self.vcpu.last_retry == Some((self.vcpu.rip, gpa));
        if again || TABLE_WRITERS.contains(&instruction.mnemonic()) {
            self.vcpu.last_retry = None;
            self.ground.record(Event::Handled { what: "emulated write", detail: format!("gpa {gpa}") });
            match self.execute(&instruction) {
                Ok(Some(done)) => {
                    self.advance(&instruction, done);
                    return Ok(());
                }
                Ok(None) => {}
                Err(miss) => return self.tell(miss),
            }
        }
        self.vcpu.last_retry = Some((self.vcpu.rip, gpa));
        self.ground.record(Event::Handled { what: "unprotect", detail: format!("gpa {gpa}") });
        self.mmu(|ctx, _, _| ctx.unprotect(gpa.frame()));
        Ok(())
    }

    /// An access to an address without a slot. No device answers: reads give all ones, writes go nowhere.
    ///
    /// # Errors
    /// If the instruction is not modelled.
    pub fn emulate_mmio(&mut self, gpa: Gpa) -> Result<(), SimError> {
        let instruction = match self.fetch_instruction() {
            Ok(instruction) => instruction,
            Err(miss) => return self.tell(miss),
        };
        self.ground.record(Event::Handled { what: "MMIO", detail: format!("gpa {gpa}") });
        match self.execute(&instruction) {
            Ok(Some(done)) => {
                self.advance(&instruction, done);
                Ok(())
            }
            Ok(None) => Err(SimError::unmodelled(format!("MMIO at {gpa} by {:?}", instruction.mnemonic()))),
            Err(miss) => self.tell(miss),
        }
    }

    fn advance(&mut self, instruction: &Instruction, done: Done) {
        if done == Done::Next {
            self.vcpu.rip = self.vcpu.rip.wrapping_add(instruction.len() as u64);
        }
    }

    /// What an access that the emulator could not make means for the guest (`inject_emulated_exception`).
    pub(crate) fn tell(&mut self, miss: Miss) -> Result<(), SimError> {
        match miss {
            Miss::Page(address, error) => self.inject_page_fault(address, error),
            Miss::Stage(gpa, fault) => self.reflect_stage_fault(gpa, fault),
        }
    }

    /// The current instruction. Bytes that are not mapped end it early.
    pub(crate) fn fetch_instruction(&mut self) -> Result<Instruction, Miss> {
        let (start, bitness) = self.code_position();
        let mut bytes = Vec::new();
        for offset in 0..INSTRUCTION_MAX {
            let host = match self.translate(start.wrapping_add(offset), PageFaultError::F) {
                Ok(gpa) => self.vm.slots.host(self.space(), gpa),
                Err(miss) if offset == 0 => return Err(miss),
                Err(_) => break,
            };
            let Some(host) = host else { break };
            bytes.push(self.ground.mem.read(host, 1) as u8);
        }
        Ok(Decoder::with_ip(bitness, &bytes, start, DecoderOptions::NONE).decode())
    }

    /// The linear address of a memory operand.
    pub(crate) fn operand_address(&self, instruction: &Instruction, operand: u32) -> Option<u64> {
        let (segments, _, _) = self.guest_segments();
        let long = self.code_position().1 == 64;
        let value = |register: Register, _, _| match register {
            Register::FS => Some(segments.fs.base),
            Register::GS => Some(segments.gs.base),
            Register::ES | Register::CS | Register::SS | Register::DS if long => Some(0),
            Register::ES => Some(segments.es.base),
            Register::CS => Some(segments.cs.base),
            Register::SS => Some(segments.ss.base),
            Register::DS => Some(segments.ds.base),
            register => self.register(register),
        };
        let address = instruction.virtual_address(operand, 0, value)?;
        Some(if long { address } else { address & 0xffff_ffff })
    }

    /// A general register or a part of one, as it is named.
    fn register(&self, register: Register) -> Option<u64> {
        let value = self.vcpu.gprs[gpr_of(register)? as usize];
        Some(if is_high_byte(register) { value >> 8 & 0xff } else { value & mask(register.size()) })
    }

    /// Writes a general register as hardware does: 32 bits clear the upper half, fewer keep the rest.
    fn set_register(&mut self, register: Register, value: u64) {
        let Some(gpr) = gpr_of(register) else { return };
        let slot = &mut self.vcpu.gprs[gpr as usize];
        *slot = match register.size() {
            8 => value,
            4 => value & mask(4),
            1 if is_high_byte(register) => *slot & !0xff00 | (value & 0xff) << 8,
            bytes => *slot & !mask(bytes) | value & mask(bytes),
        };
    }

    /// LMSW's source.
    pub(crate) fn machine_status_operand(&mut self, instruction: &Instruction) -> Result<u16, Miss> {
        if let Some(value) = self.plain_operand(instruction, 0) {
            return Ok(value as u16);
        }
        let pieces = self.memory(instruction, READ)?.unwrap_or_default();
        Ok(self.load_pieces(&pieces) as u16)
    }

    /// An exit for SMSW, whose destination is a register of any size or a word of memory.
    ///
    /// # Errors
    /// If L1's state can't be loaded, when the fault is L1's to handle.
    pub fn smsw(&mut self) -> Result<(), SimError> {
        let value = self.vcpu.cr0.bits();
        let stored = self.fetch_instruction().and_then(|instruction| {
            if instruction.op0_kind() == OpKind::Register {
                self.set_register(instruction.op0_register(), value);
                return Ok(());
            }
            let pieces = self.memory(&instruction, WRITE)?.unwrap_or_default();
            self.write_pieces(&pieces, value);
            Ok(())
        });
        match stored {
            Ok(()) => self.skip_instruction(),
            Err(miss) => self.tell(miss)?,
        }
        Ok(())
    }

    /// The value of an operand that is a register or an immediate.
    fn plain_operand(&self, instruction: &Instruction, operand: u32) -> Option<u64> {
        match instruction.op_kind(operand) {
            OpKind::Register => self.register(instruction.op_register(operand)),
            _ => instruction.try_immediate(operand).ok(),
        }
    }
}

const fn mask(bytes: usize) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

fn gpr_of(register: Register) -> Option<Gpr> {
    register.is_gpr().then(|| gpr_numbered(register.full_register().number() as u64))
}

impl Run<'_> {
    /// Executes an instruction with a memory operand, if it is modelled.
    fn execute(&mut self, instruction: &Instruction) -> Result<Option<Done>, Miss> {
        let first = instruction.op_kind(0) == OpKind::Memory;
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti if first => self.move_out(instruction),
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => self.move_in(instruction),
            Mnemonic::Xchg | Mnemonic::Cmpxchg | Mnemonic::Xadd
                if instruction.has_lock_prefix() || is_mixed(instruction) =>
            {
                self.exchange(instruction)
            }
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => self.string(instruction),
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
                if instruction.is_string_instruction() =>
            {
                self.string(instruction)
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => self.string(instruction),
            Mnemonic::Push => self.push(instruction),
            mnemonic => match Alu::of(mnemonic) {
                Some(alu) if is_mixed(instruction) => self.arithmetic(instruction, alu),
                _ => Ok(None),
            },
        }
    }

    /// The pieces of the memory operand, wherever it stands.
    fn memory(&mut self, instruction: &Instruction, access: PageFaultError) -> Result<Option<Vec<Piece>>, Miss> {
        let operand = (0..instruction.op_count()).find(|index| instruction.op_kind(*index) == OpKind::Memory);
        let Some(address) = operand.and_then(|operand| self.operand_address(instruction, operand)) else {
            return Ok(None);
        };
        self.pieces(address, instruction.memory_size().size(), access).map(Some)
    }

    fn move_out(&mut self, instruction: &Instruction) -> Result<Option<Done>, Miss> {
        let Some(value) = self.plain_operand(instruction, 1) else { return Ok(None) };
        let Some(pieces) = self.memory(instruction, WRITE)? else { return Ok(None) };
        self.write_pieces(&pieces, value);
        Ok(Some(Done::Next))
    }

    fn move_in(&mut self, instruction: &Instruction) -> Result<Option<Done>, Miss> {
        let register = instruction.op0_register();
        if gpr_of(register).is_none() {
            return Ok(None);
        }
        let Some(pieces) = self.memory(instruction, READ)? else { return Ok(None) };
        let (value, bytes) = (self.load_pieces(&pieces), instruction.memory_size().size());
        let value = match instruction.mnemonic() {
            Mnemonic::Movsx | Mnemonic::Movsxd => extended(value, bytes),
            _ => value & mask(bytes),
        };
        self.set_register(register, value);
        Ok(Some(Done::Next))
    }

    /// XCHG, CMPXCHG and XADD of memory and a register. CMPXCHG writes memory back even when it is not equal.
    fn exchange(&mut self, instruction: &Instruction) -> Result<Option<Done>, Miss> {
        let operand = if instruction.op_kind(0) == OpKind::Memory { 1 } else { 0 };
        let register = instruction.op_register(operand);
        let Some(given) = self.register(register) else { return Ok(None) };
        let Some(pieces) = self.memory(instruction, WRITE)? else { return Ok(None) };
        let bytes = instruction.memory_size().size();
        let found = self.load_pieces(&pieces) & mask(bytes);
        match instruction.mnemonic() {
            Mnemonic::Cmpxchg => {
                let accumulator = self.vcpu.gprs[Gpr::Rax as usize] & mask(bytes);
                let (_, flags) = Alu::Cmp.apply(accumulator, found, bytes, self.vcpu.rflags);
                self.vcpu.rflags = flags;
                let equal = flags.contains(Rflags::ZF);
                self.write_pieces(&pieces, if equal { given } else { found });
                if !equal {
                    self.set_register(accumulator_of(bytes), found);
                }
            }
            Mnemonic::Xadd => {
                let (value, flags) = Alu::Add.apply(found, given, bytes, self.vcpu.rflags);
                self.vcpu.rflags = flags;
                self.write_pieces(&pieces, value);
                self.set_register(register, found);
            }
            _ => {
                self.write_pieces(&pieces, given);
                self.set_register(register, found);
            }
        }
        Ok(Some(Done::Next))
    }

    fn arithmetic(&mut self, instruction: &Instruction, alu: Alu) -> Result<Option<Done>, Miss> {
        let bytes = instruction.memory_size().size();
        let to_memory = instruction.op_kind(0) == OpKind::Memory;
        let other =
            if instruction.op_count() == 1 { Some(0) } else { self.plain_operand(instruction, u32::from(to_memory)) };
        let Some(other) = other else { return Ok(None) };
        let operand = u32::from(!to_memory);
        let Some(address) = self.operand_address(instruction, operand) else { return Ok(None) };
        let far = alu.is_bit() && instruction.op1_kind() == OpKind::Register;
        let address = if far { address.wrapping_add(bit_displacement(other, bytes)) } else { address };
        let access = if to_memory && alu.writes() { WRITE } else { READ };
        let pieces = self.pieces(address, bytes, access)?;
        let found = self.load_pieces(&pieces);
        let (first, second) = if to_memory { (found, other) } else { (other, found) };
        let (value, flags) = alu.apply(first, second, bytes, self.vcpu.rflags);
        self.vcpu.rflags = flags;
        if to_memory && alu.writes() {
            self.write_pieces(&pieces, value);
        } else if alu.writes() {
            self.set_register(instruction.op0_register(), value);
        }
        Ok(Some(Done::Next))
    }

    /// One element of STOS, MOVS or LODS.
    fn string(&mut self, instruction: &Instruction) -> Result<Option<Done>, Miss> {
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let bytes = instruction.memory_size().size();
        let index = |kind: OpKind| match kind {
            OpKind::MemoryESDI => Some(Register::DI),
            OpKind::MemoryESEDI => Some(Register::EDI),
            OpKind::MemoryESRDI => Some(Register::RDI),
            OpKind::MemorySegSI => Some(Register::SI),
            OpKind::MemorySegESI => Some(Register::ESI),
            OpKind::MemorySegRSI => Some(Register::RSI),
            _ => None,
        };
        let kinds = [instruction.op_kind(0), instruction.op_kind(1)].map(index);
        let Some(width) = kinds.into_iter().flatten().next().map(Register::size) else { return Ok(None) };
        let counter = [Register::CX, Register::ECX, Register::RCX][width.ilog2() as usize - 1];
        let count = self.register(counter).unwrap_or(0);
        if repeated && count == 0 {
            return Ok(Some(Done::Next));
        }
        let source = match kinds[1] {
            Some(_) => {
                let Some(address) = self.operand_address(instruction, 1) else { return Ok(None) };
                let pieces = self.pieces(address, bytes, READ)?;
                self.load_pieces(&pieces)
            }
            None => self.vcpu.gprs[Gpr::Rax as usize],
        };
        if kinds[0].is_some() {
            let Some(address) = self.operand_address(instruction, 0) else { return Ok(None) };
            let pieces = self.pieces(address, bytes, WRITE)?;
            self.write_pieces(&pieces, source);
        } else {
            self.set_register(accumulator_of(bytes), source);
        }
        let step = if self.vcpu.rflags.contains(Rflags::DF) { (bytes as u64).wrapping_neg() } else { bytes as u64 };
        for register in kinds.into_iter().flatten() {
            let moved = self.register(register).unwrap_or(0).wrapping_add(step);
            self.set_register(register, moved);
        }
        if !repeated {
            return Ok(Some(Done::Next));
        }
        self.set_register(counter, count.wrapping_sub(1));
        Ok(Some(if count == 1 { Done::Next } else { Done::Again }))
    }

    /// PUSH of a register or an immediate onto a stack that is no ordinary memory.
    fn push(&mut self, instruction: &Instruction) -> Result<Option<Done>, Miss> {
        let Some(value) = self.plain_operand(instruction, 0) else { return Ok(None) };
        let bytes = instruction.stack_pointer_increment().unsigned_abs() as usize;
        let (segments, _, _) = self.guest_segments();
        let (pointer, base) = match self.code_position().1 {
            64 => (Register::RSP, 0),
            _ if segments.ss.rights.is_big() => (Register::ESP, segments.ss.base),
            _ => (Register::SP, segments.ss.base),
        };
        let top = self.register(pointer).unwrap_or(0).wrapping_sub(bytes as u64) & mask(pointer.size());
        let address = if pointer == Register::RSP { top } else { base.wrapping_add(top) & mask(4) };
        let pieces = self.pieces(address, bytes, WRITE)?;
        self.write_pieces(&pieces, value);
        self.set_register(pointer, top);
        Ok(Some(Done::Next))
    }
}

/// Whether one operand is memory.
fn is_mixed(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory)
}

const fn accumulator_of(bytes: usize) -> Register {
    match bytes {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

/// A value of `bytes` with its sign in every bit above.
const fn extended(value: u64, bytes: usize) -> u64 {
    let shift = 64 - 8 * bytes as u32;
    ((value << shift) as i64 >> shift) as u64
}

/// How far from its operand a bit lies that a register numbers (SDM 2A BT): a signed number of operands.
const fn bit_displacement(number: u64, bytes: usize) -> u64 {
    let bits = 8 * bytes as i64;
    let number = extended(number, bytes) as i64;
    (number.div_euclid(bits) * bytes as i64) as u64
}
