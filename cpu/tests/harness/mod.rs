//! A small machine for instruction tests: a processor, memory, and an extension that does nothing but watch.
#![expect(dead_code, reason = "each test file uses its part of the harness")]

pub(crate) mod cet;
pub(crate) mod tasks;

use cpu::virt::{At, ControlRegister, Movement, Trap, Verdict, VirtDone, VirtInstruction};
use cpu::{Core, Fault, Gpr, Outcome, Regime, StopOn, Virt};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::event::Event;
use sim_core::{Ground, Hpa, SimError};

/// An extension that intercepts what `intercepts` says, and remembers everything that it was asked.
pub(crate) struct Watcher {
    pub(crate) intercepts: fn(&Trap) -> bool,
    pub(crate) asked: Vec<(Trap, At)>,
    pub(crate) instructions: Vec<VirtInstruction>,
}

impl Default for Watcher {
    fn default() -> Self {
        Self { intercepts: |_| false, asked: Vec::new(), instructions: Vec::new() }
    }
}

impl Virt for Watcher {
    fn regime(&self, _core: &Core) -> Regime {
        Regime::default()
    }

    fn trap(&mut self, _core: &mut Core, _ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError> {
        self.asked.push((*trap, at));
        Ok(if (self.intercepts)(trap) { Verdict::Exited } else { Verdict::Continue })
    }

    fn instruction(
        &mut self,
        _core: &mut Core,
        _ground: &mut Ground,
        instruction: &VirtInstruction,
        _at: At,
    ) -> Result<VirtDone, Fault> {
        self.instructions.push(*instruction);
        match instruction {
            VirtInstruction::Vmxoff => Ok(VirtDone::Next),
            VirtInstruction::Vmlaunch => Ok(VirtDone::Moved(Movement::Entered)),
            VirtInstruction::Vmcall => Ok(VirtDone::Moved(Movement::Exited)),
            _ => Err(Exception::ud().into()),
        }
    }

    fn cr_read(&self, _ground: &Ground, _register: ControlRegister, actual: u64) -> u64 {
        actual
    }

    fn cr_write(&self, _ground: &Ground, _register: ControlRegister, _current: u64, operand: u64) -> u64 {
        operand
    }

    fn cr_fixed(&self, register: ControlRegister) -> (u64, u64) {
        if register == ControlRegister::Cr4 { (0, Cr4::VMXE.bits()) } else { (0, 0) }
    }

    fn rdmsr(&self, _core: &Core, _index: u32) -> Option<Result<u64, Exception>> {
        None
    }

    fn wrmsr(&mut self, _core: &mut Core, _index: u32, _value: u64) -> Option<Result<(), Exception>> {
        None
    }
}

pub(crate) const CODE: u64 = 0x8000;
pub(crate) const STACK: u64 = 0x7000;
pub(crate) const DATA: u64 = 0x20_0000;
pub(crate) const GDT: u64 = 0x2000;
pub(crate) const IDT: u64 = 0x3000;
pub(crate) const TSS: u64 = 0x4000;
/// Where RSP0 and ESP0 point.
pub(crate) const RING0_STACK: u64 = 0x6000;
/// Handlers of exceptions: vector n's is a HLT at `HANDLERS + 16 * n`.
pub(crate) const HANDLERS: u64 = 0x9000;
pub(crate) const PML4: u64 = 0x1_0000;
pub(crate) const PDPT: u64 = 0x1_1000;
pub(crate) const PD: u64 = 0x1_2000;
pub(crate) const PT: u64 = 0x1_3000;
/// PAE's four PDPTEs.
pub(crate) const PAE_PDPT: u64 = 0x1_4000;

pub(crate) const CODE32: u16 = 0x08;
pub(crate) const DATA0: u16 = 0x10;
pub(crate) const CODE64: u16 = 0x28;
pub(crate) const USER_DATA: u16 = 0x30 | 3;
pub(crate) const USER_CODE64: u16 = 0x38 | 3;
pub(crate) const USER_CODE32: u16 = 0x40 | 3;
/// A code segment that is not present.
pub(crate) const ABSENT_CODE: u16 = 0x48;
/// Data that is not present.
pub(crate) const ABSENT_DATA: u16 = 0x50;
pub(crate) const READ_ONLY: u16 = 0x58;

/// A processor with memory.
pub(crate) struct Machine {
    pub(crate) core: Core,
    pub(crate) virt: Watcher,
    pub(crate) ground: Ground,
}

/// A flat code or data descriptor from its access rights.
pub(crate) const fn flat_descriptor(rights: u64) -> u64 {
    0x000f_0000_0000_ffff | (rights << 40)
}

impl Machine {
    /// Flat 32-bit protected mode, without paging.
    pub(crate) fn flat32() -> Self {
        let mut machine = Self { core: Core::flat32(40), virt: Watcher::default(), ground: Ground::new(0x1000) };
        machine.core.rip = CODE;
        machine.core.set_gpr(Gpr::Rsp, STACK);
        machine.tables();
        machine.idt32();
        machine
    }

    /// 64-bit mode: 2-MByte pages over the first 16 MBytes, for users too, and 4-KByte pages for the second 2 MBytes.
    pub(crate) fn long64() -> Self {
        let mut machine = Self::flat32();
        machine.paging64();
        machine.idt64();
        let core = &mut machine.core;
        core.cr3 = PML4;
        core.cr4 = Cr4::PAE;
        core.efer = Efer::LME.union(Efer::LMA).union(Efer::NXE);
        core.cr0 = core.cr0.union(Cr0::PG).union(Cr0::WP);
        core.segments.cs = Segment::flat(CODE64, Rights::CODE64);
        machine
    }

    fn tables(&mut self) {
        let entries = [
            (CODE32, flat_descriptor(0xc09b)),
            (DATA0, flat_descriptor(0xc093)),
            (0x18, 0x0000_8b00_4000_0067),
            (CODE64, flat_descriptor(0xa09b)),
            (USER_DATA, flat_descriptor(0xc0f3)),
            (USER_CODE64, flat_descriptor(0xa0fb)),
            (USER_CODE32, flat_descriptor(0xc0fb)),
            (ABSENT_CODE, flat_descriptor(0xa01b)),
            (ABSENT_DATA, flat_descriptor(0xc013)),
            (READ_ONLY, flat_descriptor(0xc091)),
        ];
        for (selector, raw) in entries {
            self.ground.mem.write_u64(Hpa(GDT + u64::from(selector & 0xfff8)), raw);
        }
        self.core.gdtr = TableRegister { base: GDT, limit: 0x5f };
        self.core.segments.tr.base = TSS;
        self.core.segments.tr.limit = 0x67;
        self.ground.mem.write(Hpa(TSS + 0x66), 0x68, 2);
        for vector in 0..32 {
            self.ground.mem.write(Hpa(HANDLERS + 16 * vector), 0xf4, 1);
        }
    }

    /// 32-bit interrupt gates, the ones of #BP and #OF open to users; ESP0 and SS0.
    pub(crate) fn idt32(&mut self) {
        for vector in 0..32 {
            let offset = HANDLERS + 16 * vector;
            let dpl = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
            let gate = (offset & 0xffff) | (u64::from(CODE32) << 16) | (dpl << 40) | ((offset >> 16) << 48);
            self.ground.mem.write_u64(Hpa(IDT + 8 * vector), gate);
        }
        self.core.idtr = TableRegister { base: IDT, limit: 32 * 8 - 1 };
        self.ground.mem.write_u32(Hpa(TSS + 4), RING0_STACK as u32);
        self.ground.mem.write_u32(Hpa(TSS + 8), u32::from(DATA0));
    }

    /// 64-bit interrupt gates, the ones of #BP and #OF open to users; RSP0.
    pub(crate) fn idt64(&mut self) {
        for vector in 0..32 {
            let offset = HANDLERS + 16 * vector;
            let dpl = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
            let gate = (offset & 0xffff) | (u64::from(CODE64) << 16) | (dpl << 40) | ((offset >> 16) << 48);
            self.ground.mem.write_u64(Hpa(IDT + 16 * vector), gate);
            self.ground.mem.write_u64(Hpa(IDT + 16 * vector + 8), 0);
        }
        self.core.idtr = TableRegister { base: IDT, limit: 32 * 16 - 1 };
        self.ground.mem.write_u64(Hpa(TSS + 4), RING0_STACK);
    }

    /// Tables of 4-level and of PAE paging over the same directories.
    pub(crate) fn paging64(&mut self) {
        let memory = &mut self.ground.mem;
        memory.write_u64(Hpa(PML4), PDPT | 7);
        memory.write_u64(Hpa(PDPT), PD | 7);
        memory.write_u64(Hpa(PAE_PDPT), PD | 1);
        for entry in 0..8 {
            memory.write_u64(Hpa(PD + 8 * entry), (entry << 21) | 0x87);
        }
        memory.write_u64(Hpa(PD + 8), PT | 7);
        for entry in 0..512 {
            memory.write_u64(Hpa(PT + 8 * entry), (0x20_0000 + (entry << 12)) | 7);
        }
    }

    /// The page-table entry of a 4-KByte page from [`DATA`] on.
    pub(crate) fn set_page(&mut self, page: u64, entry: u64) {
        self.ground.mem.write_u64(Hpa(PT + 8 * page), entry);
    }

    /// Drops to ring 3 in 64-bit mode.
    pub(crate) fn drop_to_user(&mut self) {
        let user = Rights(Rights::CODE64.0 | 0x60);
        self.core.segments.cs = Segment::flat(USER_CODE64, user);
        self.core.segments.ss = Segment::flat(USER_DATA, Rights(Rights::DATA.0 | 0x60));
    }

    /// Drops to ring 3 in 32-bit protected mode.
    pub(crate) fn drop_to_user32(&mut self) {
        self.core.segments.cs = Segment::flat(USER_CODE32, Rights(Rights::CODE32.0 | 0x60));
        let data = Segment::flat(USER_DATA, Rights(Rights::DATA.0 | 0x60));
        self.core.segments.ss = data;
        self.core.segments.ds = data;
        self.core.segments.es = data;
    }

    /// Assembles code for a bitness at an address.
    pub(crate) fn assemble(
        &mut self,
        bitness: u32,
        at: u64,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> usize {
        let mut assembler = CodeAssembler::new(bitness).expect("a bitness");
        write(&mut assembler).expect("valid operands");
        let bytes = assembler.assemble(at).expect("encodable instructions");
        self.ground.mem.write_bytes(Hpa(at), &bytes);
        bytes.len()
    }

    /// Assembles 32-bit code at [`CODE`].
    pub(crate) fn code32(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> usize {
        self.assemble(32, CODE, write)
    }

    /// Assembles 64-bit code at [`CODE`].
    pub(crate) fn code64(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> usize {
        self.assemble(64, CODE, write)
    }

    pub(crate) fn step(&mut self) -> Result<Outcome, SimError> {
        cpu::step(&mut self.core, &mut self.virt, &mut self.ground)
    }

    /// Runs `count` instructions that must all retire.
    pub(crate) fn retire(&mut self, count: usize) {
        for index in 0..count {
            let rip = self.core.rip;
            assert_eq!(self.step(), Ok(Outcome::Retired), "instruction {index} at {rip:#x}");
        }
    }

    /// Runs until HLT, the bus or shutdown.
    pub(crate) fn run(&mut self) -> Outcome {
        cpu::run(&mut self.core, &mut self.virt, &mut self.ground, StopOn::Bus, 10_000).expect("a modelled run")
    }

    pub(crate) fn gpr(&self, register: Gpr) -> u64 {
        self.core.gpr(register)
    }

    pub(crate) fn set(&mut self, register: Gpr, value: u64) {
        self.core.set_gpr(register, value);
    }

    pub(crate) fn status(&self) -> Rflags {
        self.core.rflags.intersection(Rflags::STATUS)
    }

    /// Steps once; the instruction must raise an exception, which is returned as it was delivered.
    pub(crate) fn exception(&mut self) -> (Vector, Option<u32>) {
        let outcome = self.step();
        assert_eq!(outcome, Ok(Outcome::Delivered));
        self.last_exception().expect("an exception in the log")
    }

    pub(crate) fn last_exception(&self) -> Option<(Vector, Option<u32>)> {
        self.ground.log.records().iter().rev().find_map(|record| match record.event {
            Event::Exception { vector, error, .. } => Some((Vector::from_number(vector)?, error)),
            _ => None,
        })
    }

    pub(crate) fn quad(&self, at: u64) -> u64 {
        self.ground.mem.read_u64(Hpa(at))
    }

    pub(crate) fn dword(&self, at: u64) -> u32 {
        self.ground.mem.read_u32(Hpa(at))
    }
}
