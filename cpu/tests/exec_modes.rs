//! Mode switches, with real tables in memory: 32-bit protected mode to PAE paging to IA-32e mode to 64-bit code and all
//! the way back (SDM 3A 9.8.5), and from real mode to protected mode (SDM 3A 9.9).

mod harness;

use cpu::core::Bitness;
use cpu::{Gpr, Outcome};
use harness::Machine;
use iced_x86::code_asm::*;
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::exception::Vector;
use sim_core::arch::segment::{Rights, Segment, TableRegister};

const LONG_CODE: u64 = 0xa000;
const COMPATIBILITY_CODE: u64 = 0xb000;
const LEGACY_CODE: u64 = 0xc000;

/// 32-bit code that turns paging on, first PAE paging, then IA-32e mode, and jumps into 64-bit code.
fn up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // PAE paging.
    a.mov(eax, Cr4::PAE.bits() as i32)?;
    a.mov(cr4, eax)?;
    a.mov(eax, harness::PAE_PDPT as i32)?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, Cr0::PG.bits() as u32 as i32)?;
    a.mov(cr0, eax)?;
    a.out(0x10, al)?;
    // Paging off, LME on, paging on: IA-32e mode, in compatibility mode.
    a.and(eax, !(Cr0::PG.bits() as u32) as i32)?;
    a.mov(cr0, eax)?;
    a.mov(eax, harness::PML4 as i32)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080_u32 as i32)?;
    a.rdmsr()?;
    a.or(eax, Efer::LME.bits() as i32)?;
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, Cr0::PG.bits() as u32 as i32)?;
    a.mov(cr0, eax)?;
    a.out(0x11, al)?;
    // Into 64-bit code.
    a.db(&[0xea])?;
    a.dd(&[LONG_CODE as u32])?;
    a.dw(&[harness::CODE64])
}

fn long_part(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, 0x1122_3344_5566_7788_u64)?;
    a.out(0x12, al)?;
    // Back to compatibility mode by a far return: 64-bit code has no direct far jump.
    a.push(i32::from(harness::CODE32))?;
    a.push(COMPATIBILITY_CODE as i32)?;
    a.db(&[0x48, 0xcb])
}

fn compatibility_part(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(0x13, al)?;
    a.mov(eax, cr0)?;
    a.and(eax, !(Cr0::PG.bits() as u32) as i32)?;
    a.mov(cr0, eax)?;
    a.mov(ecx, 0xc000_0080_u32 as i32)?;
    a.rdmsr()?;
    a.and(eax, !(Efer::LME.bits() as u32) as i32)?;
    a.wrmsr()?;
    a.db(&[0xea])?;
    a.dd(&[LEGACY_CODE as u32])?;
    a.dw(&[harness::CODE32])
}

#[test]
fn up_to_long_mode_and_back() {
    let mut machine = Machine::flat32();
    machine.paging64();
    machine.code32(up);
    machine.assemble(64, LONG_CODE, long_part);
    machine.assemble(32, COMPATIBILITY_CODE, compatibility_part);
    machine.assemble(32, LEGACY_CODE, |a| a.out(0x14, al));
    let stations = [
        (0x10, PagingMode::Pae, Bitness::Bits32, false),
        (0x11, PagingMode::Long4, Bitness::Bits32, true),
        (0x12, PagingMode::Long4, Bitness::Bits64, true),
        (0x13, PagingMode::Long4, Bitness::Bits32, true),
        (0x14, PagingMode::Off, Bitness::Bits32, false),
    ];
    for (expected, mode, bitness, active) in stations {
        let outcome = machine.run();
        assert!(matches!(outcome, Outcome::Out { port, .. } if port == expected), "{outcome:?}, not {expected:#x}");
        assert_eq!(machine.core.paging_mode(), mode, "at {expected:#x}");
        assert_eq!(machine.core.bitness(), bitness, "at {expected:#x}");
        assert_eq!(machine.core.efer.contains(Efer::LMA), active, "at {expected:#x}");
        assert_eq!(machine.core.cpl(), 0);
    }
    assert_eq!(machine.core.efer, Efer::empty());
    assert_eq!(machine.gpr(Gpr::Rsp), harness::STACK);
}

/// A real-mode processor as after reset, but at 0:0x8000.
fn real() -> Machine {
    let mut machine = Machine::flat32();
    let core = &mut machine.core;
    core.cr0 = Cr0::ET;
    let data = Segment { selector: 0, base: 0, limit: 0xffff, rights: Rights(0x93) };
    core.segments.cs = Segment { rights: Rights(0x9b), ..data };
    core.segments.ss = data;
    core.segments.ds = data;
    core.segments.es = data;
    core.idtr = TableRegister { base: 0, limit: 0x3ff };
    machine
}

/// SDM 3A 9.9.1: set PE, then jump far into a 32-bit segment.
#[test]
fn from_real_to_protected_mode() {
    let mut machine = real();
    machine.assemble(16, harness::CODE, |a| {
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea])?;
        a.dw(&[LEGACY_CODE as u16, harness::CODE32])
    });
    machine.assemble(32, LEGACY_CODE, |a| {
        a.mov(eax, i32::from(harness::DATA0))?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(dword_ptr(harness::DATA as u32), 0x1234_5678)?;
        a.hlt()
    });
    assert_eq!(machine.run(), Outcome::Halted);
    assert_eq!(machine.core.bitness(), Bitness::Bits32);
    assert_eq!(machine.dword(harness::DATA), 0x1234_5678);
}

/// Real mode addresses are 16 * selector + offset, a segment ends at 64 KBytes, and exceptions go through the vector
/// table without error codes (SDM 3A 20.1).
#[test]
fn real_mode_segments_and_vectors() {
    let mut machine = real();
    machine.ground.mem.write(sim_core::Hpa(13 * 4), 0x0050_0100, 4);
    machine.assemble(16, harness::CODE, |a| {
        a.mov(ax, 0x1234)?;
        a.mov(ds, eax)?;
        a.mov(word_ptr(0x10), ax)?;
        a.mov(bx, 0xffff)?;
        a.mov(word_ptr(bx), ax)
    });
    machine.retire(4);
    assert_eq!(machine.dword(0x1_2350) & 0xffff, 0x1234);
    let faulting = machine.core.rip;
    assert_eq!(machine.exception().0, Vector::GeneralProtection);
    assert_eq!((machine.core.segments.cs.base, machine.core.rip), (0x500, 0x100));
    assert_eq!(machine.gpr(Gpr::Rsp), harness::STACK - 6);
    assert_eq!(u64::from(machine.dword(harness::STACK - 6) & 0xffff), faulting);
}
