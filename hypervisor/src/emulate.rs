//! L0's instruction emulator, as far as memory accesses need it that hardware can't finish: MMIO, and writes to
//! shadowed tables (x86 emulate.c).
//!
//! Modelled: MOV between a register or an immediate and memory. Anything else that touches MMIO is refused by name; a
//! write to a shadowed table by another instruction gives the shadow up and lets hardware do the write
//! (`kvm_mmu_unprotect_page`).

use crate::run::Run;
use crate::vendor::vmx::gpr_numbered;
use cpu::Gpr;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use mmu::permission::Attempt;
use mmu::state::{NestedTdp, TdpMode};
use sim_core::SimError;
use sim_core::addr::Gpa;
use sim_core::arch::exception::PageFaultError;
use sim_core::event::Event;

/// Bytes that an instruction can have at most.
const INSTRUCTION_MAX: u64 = 15;

impl Run<'_> {
    /// A write to a table above level 1 that is shadowed.
    ///
    /// # Errors
    /// If the instruction can't be fetched.
    pub fn emulate_table_write(&mut self, gpa: Gpa) -> Result<(), SimError> {
        let instruction = self.fetch_instruction()?;
        self.refuse_page_crossing(&instruction)?;
        let Some((value, bytes)) = self.store_operand(&instruction) else {
            self.ground.record(Event::Handled { what: "unprotect", detail: format!("gpa {gpa}") });
            self.mmu(|ctx, _, _| ctx.unprotect(gpa.frame()));
            return Ok(());
        };
        self.ground.record(Event::Handled { what: "emulated write", detail: format!("gpa {gpa} value {value:#x}") });
        if let Some(host) = self.vm.slots.host(self.space(), gpa) {
            self.ground.mem.write(host, value, bytes);
        }
        self.mmu(|ctx, _, _| ctx.pte_write(gpa, bytes as u64));
        self.vcpu.rip = self.vcpu.rip.wrapping_add(instruction.len() as u64);
        Ok(())
    }

    /// An access to an address without a slot. No device answers: reads give all ones, writes go nowhere.
    ///
    /// # Errors
    /// If the instruction is not a plain MOV.
    pub fn emulate_mmio(&mut self, gpa: Gpa) -> Result<(), SimError> {
        let instruction = self.fetch_instruction()?;
        self.refuse_page_crossing(&instruction)?;
        let what = if self.store_operand(&instruction).is_some() {
            "MMIO write"
        } else if let Some((gpr, bytes)) = load_target(&instruction) {
            let register = &mut self.vcpu.gprs[gpr as usize];
            *register = match bytes {
                8 | 4 => u64::MAX >> (64 - 8 * bytes),
                _ => *register | ((1u64 << (8 * bytes)) - 1),
            };
            "MMIO read"
        } else {
            return Err(SimError::unmodelled(format!("MMIO at {gpa} by {:?}", instruction.mnemonic())));
        };
        self.ground.record(Event::Handled { what, detail: format!("gpa {gpa}") });
        self.vcpu.rip = self.vcpu.rip.wrapping_add(instruction.len() as u64);
        Ok(())
    }

    /// An access that crosses pages would need two translations.
    fn refuse_page_crossing(&self, instruction: &Instruction) -> Result<(), SimError> {
        let register = |register: Register, _, _| {
            if register.is_segment_register() { Some(0) } else { Some(self.vcpu.gprs[gpr_of(register)? as usize]) }
        };
        let operand = (0..instruction.op_count()).find(|index| instruction.op_kind(*index) == OpKind::Memory);
        let address = operand.and_then(|index| instruction.virtual_address(index, 0, register));
        let bytes = instruction.memory_size().size() as u64;
        match address {
            Some(address) if (address & 0xfff) + bytes > 0x1000 => {
                Err(SimError::unmodelled(format!("emulation of an access to {address:#x} that crosses pages")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn fetch_instruction(&mut self) -> Result<Instruction, SimError> {
        let (start, bitness) = self.code_position();
        let mut bytes = Vec::new();
        for offset in 0..INSTRUCTION_MAX {
            let Some(host) = self.guest_linear(start.wrapping_add(offset))? else { break };
            bytes.push(self.ground.mem.read(host, 1) as u8);
        }
        let instruction = Decoder::with_ip(bitness, &bytes, start, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return Err(SimError::unmodelled(format!("emulation of the bytes at {start:#x}")));
        }
        Ok(instruction)
    }

    /// Where a linear address of the guest is in host memory, none if its tables do not map it.
    pub(crate) fn guest_linear(&mut self, address: u64) -> Result<Option<sim_core::Hpa>, SimError> {
        if self.vcpu.mmu.nested_tdp == NestedTdp::Active {
            return Err(SimError::unmodelled("emulation for an L2 with nested paging"));
        }
        let gpa = if self.vm.config.tdp == TdpMode::Off && !self.vcpu.mmu.active().is_direct() {
            let (segments, _, _) = self.guest_segments();
            let user = if segments.ss.rights.dpl() == 3 { PageFaultError::U } else { PageFaultError::empty() };
            let attempt = Attempt { error: PageFaultError::F | user, smap_suppressed: true };
            let walk = self.mmu(|ctx, vcpu, view| {
                let mmu = vcpu.active().clone();
                ctx.walk_guest(&mmu, view, address, attempt)
            });
            match walk {
                Ok(walk) => walk.gfn.base().offset(address & 0xfff),
                Err(_) => return Ok(None),
            }
        } else if self.vcpu.view().regs.root_level() == 0 {
            Gpa(address)
        } else {
            let walk = self.mmu(|ctx, vcpu, view| ctx.walk_cpu_tables(vcpu, view, address));
            match walk {
                Some(gpa) => gpa,
                None => return Ok(None),
            }
        };
        Ok(self.vm.slots.host(self.space(), gpa))
    }

    /// The value and size that a MOV stores, if the instruction is one.
    fn store_operand(&self, instruction: &Instruction) -> Option<(u64, usize)> {
        if instruction.mnemonic() != Mnemonic::Mov || instruction.op0_kind() != OpKind::Memory {
            return None;
        }
        let bytes = instruction.memory_size().size();
        let value = match instruction.op1_kind() {
            OpKind::Register => self.vcpu.gprs[gpr_of(instruction.op1_register())? as usize],
            _ => instruction.try_immediate(1).ok()?,
        };
        Some((value, bytes))
    }
}

/// The register and size that a MOV loads, if the instruction is one.
fn load_target(instruction: &Instruction) -> Option<(Gpr, usize)> {
    let load = instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Memory;
    load.then(|| Some((gpr_of(instruction.op0_register())?, instruction.memory_size().size())))?
}

fn gpr_of(register: Register) -> Option<Gpr> {
    register.is_gpr().then(|| gpr_numbered(register.full_register().number() as u64))
}
