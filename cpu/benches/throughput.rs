//! Guest instructions a second, and what translations cost: `cargo bench -p cpu`.
//!
//! Items are guest instructions, or accesses for the translations.

use cpu::paging::translate::translate;
use cpu::virt::{At, ControlRegister, EptControls, HostPaging, NptControls, Trap, Verdict, VirtDone, VirtInstruction};
use cpu::{Core, Fault, Gpr, Pace, Regime, SecondStage, StopOn, Tag, Virt};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use iced_x86::code_asm::*;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::{Rights, Segment};
use sim_core::event::{Detail, EventLog, FlushScope};
use sim_core::{Ground, Gva, Hpa, SimError};

fn main() {
    divan::main();
}

/// A processor without an extension.
struct Plain(Regime);

impl Virt for Plain {
    fn regime(&self, _: &Core) -> Regime {
        self.0
    }

    fn trap(&mut self, _: &mut Core, _: &mut Ground, _: &Trap, _: At) -> Result<Verdict, SimError> {
        Ok(Verdict::Continue)
    }

    fn instruction(&mut self, _: &mut Core, _: &mut Ground, _: &VirtInstruction, _: At) -> Result<VirtDone, Fault> {
        Err(Exception::plain(Vector::InvalidOpcode).into())
    }

    fn cr_read(&self, _: &Ground, _: ControlRegister, actual: u64) -> u64 {
        actual
    }

    fn cr_write(&self, _: &Ground, _: ControlRegister, _: u64, operand: u64) -> u64 {
        operand
    }

    fn cr_fixed(&self, _: ControlRegister) -> (u64, u64) {
        (0, 0)
    }

    fn rdmsr(&self, _: &Core, _: u32) -> Option<Result<u64, Exception>> {
        None
    }

    fn wrmsr(&mut self, _: &mut Core, _: u32, _: u64) -> Option<Result<(), Exception>> {
        None
    }
}

const CODE: u64 = 0x8000;
const DATA: u64 = 0x20_0000;
const PML4: u64 = 0x1_0000;
/// Tables of the second stage: identity, with 2-MByte pages.
const NESTED: u64 = 0x2_0000;

/// 64-bit mode; the first 2 MBytes as one page, the second as 4-KByte pages.
fn machine(second: SecondStage) -> (Core, Plain, Ground) {
    let mut ground = Ground::new(0x1000);
    ground.log = EventLog::new(Detail::Nothing);
    let memory = &mut ground.mem;
    for (root, leaf) in [(PML4, 0x87), (NESTED, 0xb7)] {
        memory.write_u64(Hpa(root), (root + 0x1000) | 7);
        memory.write_u64(Hpa(root + 0x1000), (root + 0x2000) | 7);
        for entry in 0..8 {
            memory.write_u64(Hpa(root + 0x2000 + 8 * entry), (entry << 21) | leaf);
        }
    }
    memory.write_u64(Hpa(PML4 + 0x2008), (PML4 + 0x3000) | 7);
    for entry in 0..512 {
        memory.write_u64(Hpa(PML4 + 0x3000 + 8 * entry), (DATA + (entry << 12)) | 7);
    }
    let mut core = Core::flat32(40);
    core.cr3 = PML4;
    core.cr4 = Cr4::PAE;
    core.efer = Efer::LME.union(Efer::LMA).union(Efer::NXE);
    core.cr0 = core.cr0.union(Cr0::PG).union(Cr0::WP);
    core.segments.cs = Segment::flat(0x28, Rights::CODE64);
    core.rip = CODE;
    core.set_gpr(Gpr::Rsp, 0x7000);
    let tag = match second {
        SecondStage::None => Tag::default(),
        SecondStage::Ept { .. } => Tag { context: 1, ept_root: Some(Hpa(NESTED)) },
        SecondStage::Npt { .. } => Tag { context: 1, ept_root: None },
    };
    (core, Plain(Regime { tag, second }), ground)
}

const EPT: SecondStage =
    SecondStage::Ept { eptp: NESTED | 0x1e, controls: EptControls { flags: cpu::virt::EptFlags::empty(), log: None } };

fn npt() -> SecondStage {
    let host = HostPaging {
        cr0: Cr0::PG.union(Cr0::PE).union(Cr0::WP),
        cr4: Cr4::PAE,
        efer: Efer::LME.union(Efer::LMA).union(Efer::NXE),
        ..HostPaging::default()
    };
    SecondStage::Npt { ncr3: NESTED, host, controls: NptControls::empty() }
}

/// Loads, adds, stores, compares and branches: what a compiler makes of a checksum over an array that is rewritten. Every
/// eighth element is treated another way.
fn mixed(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    array(asm, |asm| asm.test(esi, 0x3f))
}

/// The same with a branch that depends on the data, as good as a thrown coin.
fn coin(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    array(asm, |asm| asm.test(edx, 1))
}

fn array(asm: &mut CodeAssembler, choose: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<(), IcedError> {
    let mut outer = asm.create_label();
    let mut inner = asm.create_label();
    let mut other = asm.create_label();
    asm.set_label(&mut outer)?;
    asm.mov(rsi, DATA)?;
    asm.mov(ecx, 512)?;
    asm.set_label(&mut inner)?;
    asm.mov(rax, qword_ptr(rsi))?;
    asm.add(rbx, rax)?;
    asm.lea(rdx, qword_ptr(rbx + rax * 2 + 7))?;
    choose(asm)?;
    asm.je(other)?;
    asm.xor(rdx, rbx)?;
    asm.set_label(&mut other)?;
    asm.mov(qword_ptr(rsi), rdx)?;
    asm.add(rsi, 8)?;
    asm.dec(ecx)?;
    asm.jne(inner)?;
    asm.jmp(outer)?;
    Ok(())
}

/// Calls of a small function with a frame.
fn calls(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut start = asm.create_label();
    let mut function = asm.create_label();
    asm.set_label(&mut start)?;
    asm.mov(edi, 5)?;
    asm.call(function)?;
    asm.add(rbx, rax)?;
    asm.jmp(start)?;
    asm.set_label(&mut function)?;
    asm.push(rbp)?;
    asm.mov(rbp, rsp)?;
    asm.mov(dword_ptr(rbp - 4), edi)?;
    asm.mov(eax, dword_ptr(rbp - 4))?;
    asm.imul_3(eax, eax, 3)?;
    asm.pop(rbp)?;
    asm.ret()?;
    Ok(())
}

const INSTRUCTIONS: u64 = 1_000_000;

fn throughput(
    bencher: Bencher<'_, '_>,
    pace: Pace,
    second: SecondStage,
    write: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let (mut core, mut virt, mut ground) = machine(second);
    let mut assembler = CodeAssembler::new(64).expect("64-bit code");
    write(&mut assembler).expect("valid operands");
    let bytes = assembler.assemble(CODE).expect("encodable instructions");
    ground.mem.write_bytes(Hpa(CODE), &bytes);
    let count = if pace == Pace::Steps { INSTRUCTIONS / 10 } else { INSTRUCTIONS };
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let result = cpu::run_at(pace, &mut core, &mut virt, &mut ground, StopOn::Bus, count);
        assert!(matches!(black_box(result), Err(SimError::Runaway { .. })));
    });
}

#[divan::bench]
fn loop_of_loads_and_stores(bencher: Bencher<'_, '_>) {
    throughput(bencher, Pace::Adaptive, SecondStage::None, mixed);
}

#[divan::bench]
fn loop_of_loads_and_stores_under_ept(bencher: Bencher<'_, '_>) {
    throughput(bencher, Pace::Adaptive, EPT, mixed);
}

#[divan::bench]
fn loop_of_calls(bencher: Bencher<'_, '_>) {
    throughput(bencher, Pace::Adaptive, SecondStage::None, calls);
}

#[divan::bench]
fn loop_with_a_thrown_coin(bencher: Bencher<'_, '_>) {
    throughput(bencher, Pace::Adaptive, SecondStage::None, coin);
}

/// The same without blocks.
#[divan::bench]
fn loop_of_loads_and_stores_in_steps(bencher: Bencher<'_, '_>) {
    throughput(bencher, Pace::Steps, SecondStage::None, mixed);
}

/// One translation; `flush` empties the TLB before each.
fn translation(bencher: Bencher<'_, '_>, second: SecondStage, flush: bool) {
    let (mut core, virt, mut ground) = machine(second);
    let regime = virt.0;
    let access = Access::new(AccessKind::Read, Privilege::Supervisor);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        if flush {
            core.tlb.invalidate(&mut ground, &FlushScope::All);
        }
        black_box(translate(&mut core, &regime, &mut ground, black_box(Gva(DATA)), access)).expect("mapped")
    });
}

#[divan::bench]
fn tlb_hit(bencher: Bencher<'_, '_>) {
    translation(bencher, SecondStage::None, false);
}

#[divan::bench]
fn walk_of_one_dimension(bencher: Bencher<'_, '_>) {
    translation(bencher, SecondStage::None, true);
}

#[divan::bench]
fn walk_of_two_dimensions_ept(bencher: Bencher<'_, '_>) {
    translation(bencher, EPT, true);
}

#[divan::bench]
fn walk_of_two_dimensions_npt(bencher: Bencher<'_, '_>) {
    translation(bencher, npt(), true);
}
