//! What instructions do with paging's registers: pointers with metadata (SDM 3A 4.4 in editions since 2023), and every
//! write that loads the PDPTE registers (SDM 3A 4.4.1).

use super::harness::{CODE, DATA, Machine, PAE_PDPT, PD, PML4};
use cpu::profile::Features;
use cpu::{Gpr, Outcome};
use iced_x86::code_asm::{cr0, cr3, cr4, dword_ptr, eax, qword_ptr, rax, rcx, rsp};
use sim_core::Gva;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::Vector;

const U57: u64 = 1 << 61;
const U48: u64 = 1 << 62;
/// A pointer to [`DATA`] with metadata in all of bits 62:48, and in bits 62:57.
const METADATA_48: u64 = 0x7fff_0000_0000_0000 | DATA;
const METADATA_57: u64 = 0x7e00_0000_0000_0000 | DATA;

fn machine(enables: u64) -> Machine {
    let mut machine = Machine::long64();
    machine.core.features |= Features::LAM;
    machine.core.cr3 |= enables;
    machine
}

/// Loads and stores are masked before the canonical check; each width takes its own bits.
#[test]
fn data_accesses_are_masked() {
    for (enables, pointer, reaches) in [
        (0, DATA, true),
        (0, METADATA_57, false),
        (U48, METADATA_48, true),
        (U48, METADATA_57, true),
        (U57, METADATA_57, true),
        (U57, METADATA_48, false),
        (U57 | U48, METADATA_48, false),
    ] {
        let mut machine = machine(enables);
        machine.set(Gpr::Rcx, pointer);
        machine.set(Gpr::Rax, 0x1234);
        machine.code64(|asm| asm.mov(qword_ptr(rcx), rax));
        if reaches {
            machine.retire(1);
            assert_eq!(machine.quad(DATA), 0x1234, "{enables:#x} {pointer:#x}");
        } else {
            assert_eq!(machine.exception(), (Vector::GeneralProtection, Some(0)), "{enables:#x} {pointer:#x}");
        }
    }
}

/// A page fault tells the address without its metadata.
#[test]
fn faults_tell_masked_addresses() {
    let mut machine = machine(U48);
    machine.set_page(0, 0);
    machine.set(Gpr::Rcx, METADATA_48);
    machine.code64(|asm| asm.mov(eax, dword_ptr(rcx)));
    assert_eq!(machine.exception().0, Vector::PageFault);
    assert_eq!(machine.core.cr2, Gva(DATA));
}

/// The stack is data; branch targets are not, nor is INVLPG's address, which then invalidates nothing.
#[test]
fn what_is_masked_and_what_is_not() {
    let mut stack = machine(U48);
    stack.set(Gpr::Rsp, METADATA_48 + 0x100);
    stack.set(Gpr::Rax, 7);
    stack.code64(|asm| asm.push(rax));
    stack.retire(1);
    assert_eq!((stack.quad(DATA + 0xf8), stack.gpr(Gpr::Rsp)), (7, METADATA_48 + 0xf8));
    let mut branch = machine(U48);
    branch.set(Gpr::Rax, METADATA_48);
    branch.code64(|asm| asm.jmp(rax));
    assert_eq!(branch.exception(), (Vector::GeneralProtection, Some(0)));
    let mut invlpg = machine(U48);
    invlpg.set(Gpr::Rcx, METADATA_48);
    invlpg.set(Gpr::Rsp, DATA);
    invlpg.code64(|asm| {
        asm.mov(rax, qword_ptr(rsp))?;
        asm.invlpg(qword_ptr(rcx))
    });
    invlpg.retire(1);
    let cached = invlpg.core.tlb.mappings().len();
    invlpg.retire(1);
    assert_eq!(invlpg.core.tlb.mappings().len(), cached);
}

/// CR3's enables are reserved bits where there is no masking, and then bits of the register.
#[test]
fn enables_in_cr3() {
    for (features, enables, taken) in [
        (Features::BASE, U57, false),
        (Features::BASE, U48, false),
        (Features::BASE | Features::LAM, U57, true),
        (Features::BASE | Features::LAM, U57 | U48, true),
        (Features::BASE | Features::LAM, 1 << 60, false),
    ] {
        let mut machine = Machine::long64();
        machine.core.features = features;
        machine.set(Gpr::Rax, PML4 | enables);
        machine.code64(|asm| asm.mov(cr3, rax));
        let outcome = machine.step();
        assert_eq!(outcome, Ok(if taken { Outcome::Retired } else { Outcome::Delivered }), "{enables:#x}");
        assert_eq!(machine.core.cr3, if taken { PML4 | enables } else { PML4 });
    }
}

/// Every bit of CR0 and CR4 whose change loads the registers, some that don't, and both ways into PAE paging.
#[test]
fn pdpte_registers_are_loaded() {
    const PDPTE: u64 = PD | 1;
    let stale = [PDPTE, 0, 0, PDPTE];
    let fresh = [PDPTE, 0, 0, 0];
    let (none0, none4) = (Cr0::empty(), Cr4::empty());
    for (before0, before4, change0, change4, expected) in [
        (Cr0::PG, Cr4::PAE, Cr0::CD, none4, fresh),
        (Cr0::PG | Cr0::CD, Cr4::PAE, Cr0::NW, none4, fresh),
        (Cr0::PG, Cr4::PAE, Cr0::WP, none4, stale),
        (Cr0::PG, Cr4::PAE, Cr0::TS, none4, stale),
        (none0, Cr4::PAE, Cr0::PG, none4, fresh),
        (none0, Cr4::PAE, Cr0::CD, none4, stale),
        (Cr0::PG, Cr4::PAE, none0, Cr4::PGE, fresh),
        (Cr0::PG, Cr4::PAE, none0, Cr4::PSE, fresh),
        (Cr0::PG, Cr4::PAE, none0, Cr4::SMEP, fresh),
        (Cr0::PG, Cr4::PAE, none0, Cr4::SMAP, stale),
        (Cr0::PG, Cr4::PAE, none0, Cr4::TSD, stale),
        (Cr0::PG, Cr4::PSE, none0, Cr4::PAE, fresh),
    ] {
        let mut machine = Machine::flat32();
        machine.paging64();
        // For 32-bit paging, a page directory whose first entry maps 4 MiB, with PDPTEs 32 bytes further on.
        let is_legacy = before4 == Cr4::PSE;
        machine.core.cr3 = PAE_PDPT;
        if is_legacy {
            machine.ground.mem.write_u32(sim_core::Hpa(0x1_5000), 0x87);
            machine.ground.mem.write_u64(sim_core::Hpa(0x1_5020), PDPTE);
            machine.core.cr3 = 0x1_5020;
        }
        machine.core.cr0 |= before0;
        machine.core.cr4 = before4;
        machine.core.pdptes = stale;
        if change0 == none0 {
            machine.set(Gpr::Rax, (before4 ^ change4).bits());
            machine.assemble(32, CODE, |asm| asm.mov(cr4, eax));
        } else {
            machine.set(Gpr::Rax, (machine.core.cr0 ^ change0).bits());
            machine.assemble(32, CODE, |asm| asm.mov(cr0, eax));
        }
        assert_eq!(machine.step(), Ok(Outcome::Retired), "{change0:?} {change4:?}");
        assert_eq!(machine.core.pdptes, expected, "{before0:?} {change0:?} {change4:?}");
    }
}
