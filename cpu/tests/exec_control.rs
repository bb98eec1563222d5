//! What MOV to CR0, CR3 and CR4 and WRMSR to EFER check (SDM 2 MOV-Control Registers; SDM 3A 2.5, 4.1, 4.10.1), and
//! which TLB entries they drop (SDM 3A 4.10.4.1).

mod harness;

use cpu::profile::TlbProfile;
use cpu::tlb::Tlb;
use cpu::{Gpr, Outcome};
use harness::Machine;
use iced_x86::code_asm::*;
use sim_core::Hpa;
use sim_core::arch::control::{CR3_NO_FLUSH, Cr0, Cr4, Efer};
use sim_core::arch::exception::Vector;
use sim_core::arch::msr;
use sim_core::arch::segment::Rights;
use sim_core::event::{Event, FlushScope};

const GP0: (Vector, Option<u32>) = (Vector::GeneralProtection, Some(0));

/// The registers that MOV and WRMSR are tried on.
#[derive(Clone, Copy, Debug)]
enum Target {
    Cr0,
    Cr3,
    Cr4,
    Efer,
}

/// Writes a register in the machine's own bitness; returns what the step did.
fn write(machine: &mut Machine, target: Target, value: u64) -> Outcome {
    let long = machine.core.efer.contains(Efer::LMA) && machine.core.segments.cs.rights.is_long();
    machine.set(Gpr::Rax, value);
    if let Target::Efer = target {
        machine.set(Gpr::Rdx, value >> 32);
        machine.set(Gpr::Rcx, u64::from(msr::EFER));
    }
    let bitness = if long { 64 } else { 32 };
    machine.assemble(bitness, harness::CODE, |a| match (target, long) {
        (Target::Cr0, true) => a.mov(cr0, rax),
        (Target::Cr3, true) => a.mov(cr3, rax),
        (Target::Cr4, true) => a.mov(cr4, rax),
        (Target::Cr0, false) => a.mov(cr0, eax),
        (Target::Cr3, false) => a.mov(cr3, eax),
        (Target::Cr4, false) => a.mov(cr4, eax),
        (Target::Efer, _) => a.wrmsr(),
    });
    machine.step().expect("a modelled step")
}

fn long() -> Machine {
    Machine::long64()
}

fn flat() -> Machine {
    Machine::flat32()
}

/// 64-bit mode with PCIDs.
fn tagged() -> Machine {
    let mut machine = long();
    machine.core.cr4 |= Cr4::PCIDE;
    machine
}

/// 32-bit code with LME set and paging off.
fn before_long() -> Machine {
    let mut machine = flat();
    machine.core.efer = Efer::LME;
    machine.core.cr3 = harness::PML4;
    machine.paging64();
    machine
}

/// Compatibility mode.
fn compatibility() -> Machine {
    let mut machine = long();
    machine.core.segments.cs.rights = Rights::CODE32;
    machine
}

const CR0: u64 = 0x31;
const PG: u64 = Cr0::PG.bits();
const PAE: u64 = Cr4::PAE.bits();

/// A write that must be #GP(0) and change nothing, and the manual's words for it.
type Refused = (&'static str, fn() -> Machine, Target, u64);

const REFUSED: &[Refused] = &[
    ("CR0: PG = 1 with PE = 0 (SDM 2 MOV)", flat, Target::Cr0, PG | 0x30),
    ("CR0: NW = 1 with CD = 0", flat, Target::Cr0, CR0 | Cr0::NW.bits()),
    ("CR0: bits 63:32 are reserved", long, Target::Cr0, CR0 | PG | 1 << 32),
    ("CR0: clearing PG in 64-bit mode", long, Target::Cr0, CR0),
    ("CR0: PG with LME needs PAE (SDM 3A 4.1.2)", before_long, Target::Cr0, CR0 | PG),
    ("CR0: PG with LME from CS.L = 1", from_long_code, Target::Cr0, CR0 | PG),
    ("CR0: PG with LME and a 16-bit TSS", with_16bit_tss, Target::Cr0, CR0 | PG),
    ("CR0: clearing PG with PCIDE (SDM 3A 4.10.1)", tagged_compatibility, Target::Cr0, CR0),
    ("CR3: bits beyond MAXPHYADDR, 40 here", long, Target::Cr3, 1 << 40),
    ("CR3: bit 63 without PCIDE", long, Target::Cr3, CR3_NO_FLUSH | harness::PML4),
    ("CR3: bits beyond MAXPHYADDR with PCIDE", tagged, Target::Cr3, CR3_NO_FLUSH | 1 << 62),
    ("CR4: reserved bits", long, Target::Cr4, PAE | 1 << 15),
    ("CR4: reserved upper bits", long, Target::Cr4, PAE | 1 << 40),
    ("CR4: CET is not there", long, Target::Cr4, PAE | Cr4::CET.bits()),
    ("CR4: clearing PAE in IA-32e mode", long, Target::Cr4, 0),
    ("CR4: changing LA57 in IA-32e mode (SDM 3A 2.5)", long, Target::Cr4, PAE | Cr4::LA57.bits()),
    ("CR4: PCIDE outside IA-32e mode (SDM 3A 4.10.1)", flat, Target::Cr4, PAE | Cr4::PCIDE.bits()),
    ("CR4: PCIDE with CR3[11:0] not 0", with_cr3_bits, Target::Cr4, PAE | Cr4::PCIDE.bits()),
    ("CR4: VMXE fixed by the extension", long, Target::Cr4, PAE | Cr4::VMXE.bits()),
    ("EFER: LME changes with PG = 1 (SDM 3A 4.1.1)", long, Target::Efer, Efer::NXE.bits()),
    ("EFER: reserved bits", flat, Target::Efer, 1 << 1),
    ("EFER: SVME without SVM", flat, Target::Efer, Efer::SVME.bits()),
];

fn from_long_code() -> Machine {
    let mut machine = before_long();
    machine.core.cr4 = Cr4::PAE;
    // L = 1 means nothing while LMA = 0, and D = 1 keeps the code 32-bit.
    machine.core.segments.cs.rights = Rights(Rights::CODE32.0 | 1 << 13);
    machine
}

fn with_16bit_tss() -> Machine {
    let mut machine = before_long();
    machine.core.cr4 = Cr4::PAE;
    machine.core.segments.tr.rights = Rights(0x83);
    machine
}

fn tagged_compatibility() -> Machine {
    let mut machine = compatibility();
    machine.core.cr4 |= Cr4::PCIDE;
    machine
}

fn with_cr3_bits() -> Machine {
    let mut machine = long();
    machine.core.cr3 |= 0x18;
    machine
}

#[test]
fn refused_writes_are_gp0_and_change_nothing() {
    for (name, make, target, value) in REFUSED {
        let mut machine = make();
        let before = machine.core.clone();
        assert_eq!(write(&mut machine, *target, *value), Outcome::Delivered, "{name}");
        assert_eq!(machine.last_exception(), Some(GP0), "{name}");
        let core = &machine.core;
        assert_eq!(
            (core.cr0, core.cr3, core.cr4, core.efer, core.pdptes),
            (before.cr0, before.cr3, before.cr4, before.efer, before.pdptes),
            "{name}"
        );
    }
}

/// A write that must succeed, and what the register holds then.
type Accepted = (&'static str, fn() -> Machine, Target, u64, u64);

const ACCEPTED: &[Accepted] = &[
    ("CR0: ET is always 1", flat, Target::Cr0, 1, 0x11),
    ("CR0: reserved low bits read as 0", flat, Target::Cr0, CR0 | 1 << 10, CR0),
    ("CR0: CD and NW together", flat, Target::Cr0, CR0 | 3 << 29, CR0 | 3 << 29),
    ("CR3: PCD and PWT", long, Target::Cr3, harness::PML4 | 0x18, harness::PML4 | 0x18),
    ("CR3: bit 63 is not kept", tagged, Target::Cr3, CR3_NO_FLUSH | harness::PML4 | 5, harness::PML4 | 5),
    ("CR4: PCIDE with CR3[11:0] = 0", long, Target::Cr4, PAE | Cr4::PCIDE.bits(), PAE | Cr4::PCIDE.bits()),
    ("CR4: SMEP, SMAP, PGE", long, Target::Cr4, PAE | 3 << 20 | 1 << 7, PAE | 3 << 20 | 1 << 7),
    ("CR4: LA57 outside IA-32e mode", flat, Target::Cr4, PAE | Cr4::LA57.bits(), PAE | Cr4::LA57.bits()),
    ("EFER: LMA can't be written", flat, Target::Efer, Efer::LMA.bits() | Efer::NXE.bits(), Efer::NXE.bits()),
    ("EFER: LMA is kept", long, Target::Efer, Efer::LME.bits(), Efer::LME.union(Efer::LMA).bits()),
];

#[test]
fn accepted_writes() {
    for (name, make, target, value, expected) in ACCEPTED {
        let mut machine = make();
        assert_eq!(write(&mut machine, *target, *value), Outcome::Retired, "{name}");
        let core = &machine.core;
        let actual = match target {
            Target::Cr0 => core.cr0.bits(),
            Target::Cr3 => core.cr3,
            Target::Cr4 => core.cr4.bits(),
            Target::Efer => core.efer.bits(),
        };
        assert_eq!(actual, *expected, "{name}");
    }
}

/// LMA follows PG while LME is set (SDM 3A 4.1.1).
#[test]
fn lma_follows_pg() {
    let mut machine = before_long();
    machine.core.cr4 = Cr4::PAE;
    assert_eq!(write(&mut machine, Target::Cr0, CR0 | PG), Outcome::Retired);
    assert!(machine.core.efer.contains(Efer::LMA));
    machine.core.rip = harness::CODE;
    assert_eq!(write(&mut machine, Target::Cr0, CR0), Outcome::Retired);
    assert_eq!(machine.core.efer, Efer::LME);
}

/// SDM 3A 4.10.4.1, one row a write: which flush it makes, if any, and which Bochs makes (`Habits`).
#[test]
fn invalidations() {
    let all = Some(FlushScope::Context(0));
    let current = Some(FlushScope::PcidWithGlobals(0, 0));
    let pae = PAE;
    let pcide = PAE | Cr4::PCIDE.bits();
    let every = Some(FlushScope::All);
    type Row = (&'static str, fn() -> Machine, Target, u64, Option<FlushScope>, Option<FlushScope>);
    let rows: [Row; 12] = [
        ("CR0.PG 1 to 0", compatibility, Target::Cr0, CR0, all.clone(), all.clone()),
        ("CR0.WP changes", long, Target::Cr0, CR0 | PG, None, every.clone()),
        (
            "CR3 without PCIDs",
            long,
            Target::Cr3,
            harness::PML4,
            Some(FlushScope::Pcid(0, 0)),
            Some(FlushScope::Pcid(0, 0)),
        ),
        (
            "CR3 to PCID 7",
            tagged,
            Target::Cr3,
            harness::PML4 | 7,
            Some(FlushScope::Pcid(0, 7)),
            Some(FlushScope::Pcid(0, 7)),
        ),
        (
            "CR3 to PCID 7, bit 63",
            tagged,
            Target::Cr3,
            CR3_NO_FLUSH | harness::PML4 | 7,
            None,
            Some(FlushScope::Pcid(0, 7)),
        ),
        ("CR4.PGE", long, Target::Cr4, pae | Cr4::PGE.bits(), all.clone(), all.clone()),
        ("CR4.PCIDE 1 to 0", tagged, Target::Cr4, pae, all, every.clone()),
        ("CR4.PCIDE 0 to 1", long, Target::Cr4, pcide, None, every.clone()),
        ("CR4.SMEP 0 to 1", long, Target::Cr4, pae | Cr4::SMEP.bits(), current.clone(), every.clone()),
        ("CR4.SMEP 1 to 0", with_smep, Target::Cr4, pae, None, every.clone()),
        ("CR4.SMAP", long, Target::Cr4, pae | Cr4::SMAP.bits(), None, every),
        ("CR4.PAE", flat, Target::Cr4, pae, current.clone(), current),
    ];
    for (name, make, target, value, base, bochs) in rows {
        for (profile, expected) in [(TlbProfile::Base, base), (TlbProfile::Bochs, bochs)] {
            let mut machine = make();
            machine.core.tlb = Tlb::new(profile);
            assert_eq!(write(&mut machine, target, value), Outcome::Retired, "{name}");
            assert_eq!(flushes(&machine), Vec::from_iter(expected), "{name} {profile:?}");
        }
    }
}

fn with_smep() -> Machine {
    let mut machine = long();
    machine.core.cr4 |= Cr4::SMEP;
    // The code page is a user page, which SMEP would not let run.
    machine.ground.mem.write_u64(Hpa(harness::PD), 0x83);
    machine
}

fn flushes(machine: &Machine) -> Vec<FlushScope> {
    let scopes = machine.ground.log.records().iter().filter_map(|record| match &record.event {
        Event::TlbFlush { scope } => Some(scope.clone()),
        _ => None,
    });
    scopes.collect()
}

/// SDM 3A 4.4.1: which writes load the PDPTE registers under PAE paging, and which in Bochs (`Habits`).
#[test]
fn pdpte_loads() {
    let pdpte = harness::PD | 1;
    let pae = || {
        let mut machine = flat();
        machine.paging64();
        machine.core.cr3 = harness::PAE_PDPT;
        machine.core.cr4 = Cr4::PAE;
        machine.core.cr0 |= Cr0::PG;
        // Stale registers that still map the code.
        machine.core.pdptes = [pdpte, 0, 0, pdpte];
        machine
    };
    let fresh = [pdpte, 0, 0, 0];
    let stale = [pdpte, 0, 0, pdpte];
    let paged = CR0 | PG;
    for (name, target, value, base, bochs) in [
        ("MOV to CR3", Target::Cr3, harness::PAE_PDPT, fresh, fresh),
        ("CR0.CD", Target::Cr0, paged | Cr0::CD.bits(), fresh, fresh),
        ("CR0.WP", Target::Cr0, paged | Cr0::WP.bits(), stale, fresh),
        ("CR4.PGE", Target::Cr4, PAE | Cr4::PGE.bits(), fresh, fresh),
        ("CR4.PSE", Target::Cr4, PAE | Cr4::PSE.bits(), fresh, fresh),
        ("CR4.SMAP", Target::Cr4, PAE | Cr4::SMAP.bits(), stale, fresh),
        ("CR4.FSGSBASE", Target::Cr4, PAE | Cr4::FSGSBASE.bits(), stale, stale),
    ] {
        for (profile, expected) in [(TlbProfile::Base, base), (TlbProfile::Bochs, bochs)] {
            let mut machine = pae();
            machine.core.tlb = Tlb::new(profile);
            assert_eq!(write(&mut machine, target, value), Outcome::Retired, "{name}");
            assert_eq!(machine.core.pdptes, expected, "{name} {profile:?}");
        }
    }
    // A reserved bit in a present PDPTE: #GP(0), and CR3 keeps its value.
    let mut machine = pae();
    machine.ground.mem.write_u64(Hpa(0x1_5000), pdpte | 2);
    assert_eq!(write(&mut machine, Target::Cr3, 0x1_5000), Outcome::Delivered);
    assert_eq!((machine.last_exception(), machine.core.cr3), (Some(GP0), harness::PAE_PDPT));
}

/// Control registers, MSRs and their kin need CPL 0 (SDM 2, each instruction's page).
#[test]
fn privileged_instructions() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let rows: [(&str, Emit); 19] = [
        ("mov cr0", |a| a.mov(cr0, rax)),
        ("mov cr2", |a| a.mov(cr2, rax)),
        ("mov cr3", |a| a.mov(cr3, rax)),
        ("mov cr4", |a| a.mov(cr4, rax)),
        ("mov from cr0", |a| a.mov(rax, cr0)),
        ("mov dr7", |a| a.mov(dr7, rax)),
        ("clts", CodeAssembler::clts),
        ("hlt", CodeAssembler::hlt),
        ("rdmsr", CodeAssembler::rdmsr),
        ("wrmsr", CodeAssembler::wrmsr),
        ("wbinvd", CodeAssembler::wbinvd),
        ("invlpg", |a| a.invlpg(ptr(rax))),
        ("invpcid", |a| a.invpcid(rax, xmmword_ptr(rbx))),
        ("lgdt", |a| a.lgdt(ptr(rbx))),
        ("lidt", |a| a.lidt(ptr(rbx))),
        ("lldt", |a| a.lldt(eax)),
        ("ltr", |a| a.ltr(eax)),
        ("swapgs", CodeAssembler::swapgs),
        ("cli", CodeAssembler::cli),
    ];
    for (name, emit) in rows {
        let mut machine = long();
        machine.drop_to_user();
        machine.set(Gpr::Rbx, harness::DATA);
        machine.code64(emit);
        assert_eq!(machine.exception(), GP0, "{name}");
    }
}

/// SDM 2 INVPCID: types, reserved bits, and what each type drops.
#[test]
fn invpcid() {
    let page = harness::DATA;
    let rows = [
        (0, [7, page], Ok(FlushScope::AddressNonGlobal { context: 0, pcid: 7, gva: sim_core::Gva(page) })),
        (1, [7, 0], Ok(FlushScope::Pcid(0, 7))),
        (2, [u64::MAX, u64::MAX], Ok(FlushScope::Context(0))),
        (3, [0, 0], Ok(FlushScope::ContextNonGlobal(0))),
        (4, [0, 0], Err("type above 3")),
        (0, [0, 1 << 50], Err("not canonical")),
        (0, [1 << 12, page], Err("reserved bits of the PCID")),
        (1, [1 << 63, page], Err("reserved bits of the PCID")),
    ];
    for (kind, descriptor, expected) in rows {
        let mut machine = tagged();
        machine.set(Gpr::Rax, kind);
        machine.set(Gpr::Rbx, page);
        machine.ground.mem.write_u64(Hpa(page), descriptor[0]);
        machine.ground.mem.write_u64(Hpa(page + 8), descriptor[1]);
        machine.code64(|a| a.invpcid(rax, xmmword_ptr(rbx)));
        match expected {
            Ok(scope) => {
                machine.retire(1);
                assert_eq!(flushes(&machine), [scope]);
            }
            Err(why) => assert_eq!(machine.exception(), GP0, "{why}"),
        }
    }
    // Bochs knows no PCIDs, and no single address here (`Habits::INVPCID_IS_COARSE`).
    for kind in [0, 1] {
        let mut machine = tagged();
        machine.core.tlb = Tlb::new(TlbProfile::Bochs);
        machine.set(Gpr::Rax, kind);
        machine.set(Gpr::Rbx, page);
        machine.ground.mem.write_u64(Hpa(page), 7);
        machine.ground.mem.write_u64(Hpa(page + 8), page);
        machine.code64(|a| a.invpcid(rax, xmmword_ptr(rbx)));
        machine.retire(1);
        assert_eq!(flushes(&machine), [FlushScope::ContextNonGlobal(0)]);
    }
    // Without PCIDE only PCID 0 exists.
    let mut machine = long();
    machine.set(Gpr::Rax, 1);
    machine.set(Gpr::Rbx, page);
    machine.ground.mem.write_u64(Hpa(page), 7);
    machine.code64(|a| a.invpcid(rax, xmmword_ptr(rbx)));
    assert_eq!(machine.exception(), GP0);
}

/// MSRs: canonical bases, memory types, and #GP(0) for what is not there (SDM 2 WRMSR; SDM 3A 11.12.2).
#[test]
fn msr_writes() {
    for (index, value, accepted) in [
        (msr::FS_BASE, 0xffff_8000_0000_0000, true),
        (msr::FS_BASE, 0x8000_0000_0000, false),
        (msr::GS_BASE, 0x7fff_ffff_ffff, true),
        (msr::KERNEL_GS_BASE, 1 << 63, false),
        (msr::LSTAR, 1 << 47, false),
        (msr::SYSENTER_EIP, 1 << 47, false),
        (msr::STAR, u64::MAX, true),
        (msr::PAT, 0x0007_0406_0007_0401, true),
        (msr::PAT, 0x0000_0000_0000_0002, false),
        (msr::PAT, 0x0300_0000_0000_0000, false),
        (0xdead, 0, false),
        (msr::FEATURE_CONTROL, 0, false),
    ] {
        let mut machine = long();
        machine.set(Gpr::Rcx, u64::from(index));
        machine.set(Gpr::Rax, value);
        machine.set(Gpr::Rdx, value >> 32);
        machine.code64(|a| {
            a.wrmsr()?;
            a.rdmsr()
        });
        if accepted {
            machine.set(Gpr::Rax, value | 0xffff_ffff_0000_0000);
            machine.retire(2);
            assert_eq!(machine.gpr(Gpr::Rax) | machine.gpr(Gpr::Rdx) << 32, value, "{index:#x}");
        } else {
            assert_eq!(machine.exception(), GP0, "{index:#x} = {value:#x}");
        }
    }
}
