//! The second stage: EPT permissions, misconfigurations and flags (SDM 3C 28.2), nested paging's user rule in every
//! host mode (APM2 15.25), and how both see the first stage's own references.

use cpu::paging::translate::{translate, translate_physical};
use cpu::profile::TlbProfile;
use cpu::tlb::Tlb;
use cpu::virt::{FirstStage, HostPaging, StageFault, StageFaultKind, StagePurpose};
use cpu::{Core, Fault, Regime, SecondStage, Tag};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, PageFaultError};
use sim_core::{Gpa, Ground, Gva, Hpa};

const MAXPHYADDR: u32 = 46;
/// The second stage's tables, root first.
const TABLES: [u64; 4] = [0x10_000, 0x11_000, 0x12_000, 0x13_000];
/// A page that every page size allows, beyond the installed memory.
const PAGE: u64 = 0x8000_0000;
/// Write-back, where EPT keeps the memory type.
const WB: u64 = 6 << 3;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
/// Write-back EPTP with a walk length of 4.
const EPTP: u64 = TABLES[0] | 3 << 3 | 6;
const EPTP_AD: u64 = EPTP | 1 << 6;

fn ept(eptp: u64) -> Regime {
    Regime {
        tag: Tag { context: 1, ept_root: Some(Hpa(TABLES[0])) },
        second: SecondStage::Ept { eptp, controls: cpu::virt::EptControls::default() },
    }
}

/// Where the entry of each depth is for the guest-physical address [`GPA`].
const GPA: u64 = (1 << 39) | (2 << 30) | (3 << 21) | (5 << 12) | 0x678;
const INDICES: [u64; 4] = [1, 2, 3, 5];

fn entry_at(depth: usize) -> Hpa {
    Hpa(TABLES[depth] + 8 * INDICES[depth])
}

/// Puts entries with these flags into the tables; the last maps [`PAGE`].
fn install(ground: &mut Ground, flags: &[u64]) {
    for (depth, flags) in flags.iter().enumerate() {
        let is_last = depth + 1 == TABLES.len() || flags & PS != 0;
        let target = if is_last { PAGE } else { TABLES[depth + 1] };
        ground.mem.write_u64(entry_at(depth), flags ^ target);
    }
}

fn ask(ground: &mut Ground, regime: &Regime, kind: AccessKind) -> Result<Hpa, StageFaultKind> {
    let access = Access::new(kind, Privilege::User);
    match translate_physical(MAXPHYADDR, regime, ground, Gpa(GPA), access, StagePurpose::Final) {
        Ok(hpa) => Ok(hpa),
        Err(Fault::Stage(fault)) => {
            assert_eq!(fault, StageFault { gpa: Gpa(GPA), gva: None, access, purpose: StagePurpose::Final, ..fault });
            Err(fault.kind)
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// The offset that a page of the table at this depth keeps.
fn mapped(depth: usize) -> Hpa {
    Hpa(PAGE + GPA % [0, 1 << 30, 1 << 21, 1 << 12][depth])
}

/// SDM 3C 28.2.3.1 and 28.2.3.2 for one walk whose entries have these R/W/X bits and memory type.
fn ept_verdict(rwx: &[u64], memory_type: u64, kind: AccessKind, done: Hpa) -> Result<Hpa, StageFaultKind> {
    for (depth, bits) in rwx.iter().enumerate() {
        if *bits == 0 {
            return Err(StageFaultKind::EptViolation { allowed: 0 });
        }
        let is_last = depth + 1 == rwx.len();
        if *bits == 0b010 || *bits == 0b110 || (is_last && [2, 3, 7].contains(&memory_type)) {
            return Err(StageFaultKind::EptMisconfiguration);
        }
    }
    let allowed = rwx.iter().fold(7, |all, bits| all & bits);
    let needed = match kind {
        AccessKind::Read => 1,
        AccessKind::Write => 2,
        AccessKind::Fetch => 4,
    };
    if allowed & needed == needed { Ok(done) } else { Err(StageFaultKind::EptViolation { allowed: allowed as u8 }) }
}

/// All R/W/X combinations at the leaf and at each upper level, all memory types, page sizes and accesses, flags on
/// and off.
#[test]
fn ept_rights_and_misconfigurations() {
    let mut ground = Ground::new(64);
    let mut count = 0;
    for (depth, upper) in [(3, 0), (3, 1), (3, 2), (2, 0), (2, 1), (1, 0)] {
        for case in 0..8 * 8 * 8 {
            let (at_upper, at_leaf, memory_type) = (case & 7, case >> 3 & 7, case >> 6);
            let mut rwx = vec![7; depth + 1];
            rwx[upper] = at_upper;
            rwx[depth] = at_leaf;
            for (eptp, kind) in [EPTP, EPTP_AD].into_iter().flat_map(|eptp| AccessKind::ALL.map(|kind| (eptp, kind))) {
                let mut flags = rwx.clone();
                flags[depth] |= memory_type << 3 | if depth < 3 { PS } else { 0 };
                install(&mut ground, &flags);
                let expected = ept_verdict(&rwx, memory_type, kind, mapped(depth));
                assert_eq!(ask(&mut ground, &ept(eptp), kind), expected, "{depth} {rwx:?} {memory_type} {kind:?}");
                count += 1;
            }
        }
    }
    println!("walker cases: {count}");
    assert_eq!(count, 6 * 512 * 6);
}

/// SDM 3C tables 28-1 to 28-6 with MAXPHYADDR 46: which bits from 6 up are reserved, by depth and page or table. (Bits
/// 5:3 are reserved in entries that refer to a table, and the memory type elsewhere.)
#[test]
fn ept_reserved_bits() {
    let mut ground = Ground::new(64);
    let mut count = 0;
    for (leaf, depth, reserved) in [
        (3, 0, vec![3..=7, 46..=51]),
        (3, 1, vec![3..=6, 46..=51]),
        (3, 2, vec![3..=6, 46..=51]),
        (3, 3, vec![46..=51]),
        (2, 0, vec![3..=7, 46..=51]),
        (2, 1, vec![3..=6, 46..=51]),
        (2, 2, vec![12..=20, 46..=51]),
        (1, 0, vec![3..=7, 46..=51]),
        (1, 1, vec![12..=29, 46..=51]),
    ] {
        let reserved: Vec<u32> = reserved.into_iter().flatten().collect();
        for bit in (6..64).chain(if leaf == depth { 0..0 } else { 3..6 }) {
            let chooses_page_or_table = bit == 7 && (depth == 1 || depth == 2);
            let moves_a_table = depth < leaf && (12..46).contains(&bit);
            if chooses_page_or_table || moves_a_table {
                continue;
            }
            let mut flags = vec![7; leaf + 1];
            flags[leaf] |= WB | if leaf < 3 { PS } else { 0 };
            install(&mut ground, &flags);
            let value = ground.mem.read_u64(entry_at(depth)) ^ 1 << bit;
            ground.mem.write_u64(entry_at(depth), value);
            let is_misconfigured =
                ask(&mut ground, &ept(EPTP), AccessKind::Read) == Err(StageFaultKind::EptMisconfiguration);
            assert_eq!(is_misconfigured, reserved.contains(&bit), "leaf {leaf} depth {depth} bit {bit}");
            count += 1;
        }
    }
    println!("walker cases: {count}");
    assert_eq!(count, 6 * (3 + 6 + 18) + 3 * 58 - 5);
}

/// SDM 3C 28.2.4: with EPTP bit 6, A in every entry used and D in the leaf for writes; without it, nothing.
#[test]
fn ept_accessed_and_dirty_flags() {
    const A: u64 = 1 << 8;
    const D: u64 = 1 << 9;
    for (eptp, kind, expected) in [
        (EPTP, AccessKind::Read, [0; 4]),
        (EPTP, AccessKind::Write, [0; 4]),
        (EPTP_AD, AccessKind::Read, [A; 4]),
        (EPTP_AD, AccessKind::Fetch, [A; 4]),
        (EPTP_AD, AccessKind::Write, [A, A, A, A | D]),
    ] {
        let mut ground = Ground::new(64);
        install(&mut ground, &[7, 7, 7, 7 | WB]);
        let before = [0, 1, 2, 3].map(|depth| ground.mem.read_u64(entry_at(depth)));
        assert_eq!(ask(&mut ground, &ept(eptp), kind), Ok(mapped(3)));
        let after = [0, 1, 2, 3].map(|depth| ground.mem.read_u64(entry_at(depth)) ^ before[depth]);
        assert_eq!(after, expected, "{eptp:#x} {kind:?}");
    }
}

/// SDM 3C 28.2.2: 4-level EPT can't reach a guest-physical address of more than 48 bits.
#[test]
fn ept_reaches_48_bits() {
    let mut ground = Ground::new(64);
    install(&mut ground, &[7, 7, 7, 7 | WB]);
    let access = Access::new(AccessKind::Read, Privilege::User);
    let gpa = Gpa(GPA | 1 << 48);
    let asked = translate_physical(52, &ept(EPTP), &mut ground, gpa, access, StagePurpose::Final);
    let kind = StageFaultKind::EptViolation { allowed: 0 };
    assert_eq!(
        asked,
        Err(Fault::Stage(StageFault {
            gpa,
            gva: None,
            access,
            purpose: StagePurpose::Final,
            first: None,
            convertible: false,
            kind
        }))
    );
}

/// What a guest with paging runs on: guest tables in frames 1 to 4 that map [`LINEAR`] to [`TARGET`], and a second
/// stage that maps the first 2 MiB one to one in 4 KiB pages, each with the same flags.
const LINEAR: Gva = Gva(0x5678);
const TARGET: u64 = 0x9678;
const GUEST_TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];

fn identity(ground: &mut Ground, table_flags: u64, page_flags: u64) {
    for (table, next) in TABLES.into_iter().zip(TABLES.into_iter().skip(1)) {
        ground.mem.write_u64(Hpa(table), next | table_flags);
    }
    for frame in 0..512 {
        ground.mem.write_u64(Hpa(TABLES[3] + 8 * frame), frame << 12 | page_flags);
    }
}

/// A 4-level guest whose entries have these flags.
fn guest(ground: &mut Ground, flags: u64) -> Core {
    let [pml4, pdpt, pd, pt] = GUEST_TABLES;
    for (at, target) in [(pml4, pdpt), (pdpt, pd), (pd, pt), (pt + 8 * 5, TARGET & !0xfff)] {
        ground.mem.write_u64(Hpa(at), target | flags);
    }
    let mut core = Core::flat32(MAXPHYADDR);
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr4 |= Cr4::PAE;
    core.efer |= Efer::LME | Efer::LMA;
    core.cr3 = pml4;
    core
}

/// The second stage's entry for one guest-physical page.
fn set_page(ground: &mut Ground, gpa: u64, flags: u64) {
    ground.mem.write_u64(Hpa(TABLES[3] + 8 * (gpa >> 12)), gpa & !0xfff | flags);
}

fn table_access(kind: AccessKind, privilege: Privilege) -> Access {
    Access { kind, privilege, implicit: privilege == Privilege::Supervisor, shadow_stack: false }
}

/// How EPT sees references to guest tables: reads without EPT flags, writes with them (SDM 3C 28.2.4), and writes when
/// guest flags are set (table 27-7 bit 1). `page` is what EPT gives the guest's page table.
#[test]
fn guest_table_references_under_ept() {
    let read = AccessKind::Read;
    let write = AccessKind::Write;
    let violation = |allowed| StageFaultKind::EptViolation { allowed };
    const MARKED: u64 = 7 | 0x60;
    for (eptp, guest_flags, page, expected) in [
        (EPTP, MARKED, 0b001, None),
        (EPTP, MARKED, 0b100, Some((read, violation(4)))),
        (EPTP, MARKED, 0b000, Some((read, violation(0)))),
        (EPTP, MARKED, 0b010, Some((read, StageFaultKind::EptMisconfiguration))),
        (EPTP, 7, 0b001, Some((write, violation(1)))),
        (EPTP, 7, 0b011, None),
        (EPTP_AD, MARKED, 0b001, Some((write, violation(1)))),
        (EPTP_AD, MARKED, 0b011, None),
        (EPTP_AD, 7, 0b011, None),
    ] {
        let mut ground = Ground::new(512);
        identity(&mut ground, 7, 7 | WB);
        let mut core = guest(&mut ground, guest_flags);
        set_page(&mut ground, GUEST_TABLES[3], page | WB);
        let access = Access::new(AccessKind::Read, Privilege::User);
        let fault = |(kind, found): (AccessKind, StageFaultKind)| {
            let access = table_access(kind, Privilege::Supervisor);
            let gpa = Gpa(GUEST_TABLES[3] + 8 * 5);
            Fault::Stage(StageFault {
                gpa,
                gva: Some(LINEAR),
                access,
                purpose: StagePurpose::Table,
                first: None,
                convertible: false,
                kind: found,
            })
        };
        let expected = expected.map_or(Ok(Hpa(TARGET)), |expected| Err(fault(expected)));
        let context = format!("{eptp:#x} {guest_flags:#x} {page:#b}");
        assert_eq!(translate(&mut core, &ept(eptp), &mut ground, LINEAR, access), expected, "{context}");
        let is_dirty = ground.mem.read_u64(Hpa(TABLES[3] + 8 * 4)) >> 9 & 1 == 1;
        assert_eq!(is_dirty, eptp == EPTP_AD && expected.is_ok(), "{context}");
    }
}

/// Bochs sets flags of the guest's tables wherever EPT let it read them (`Habits::FLAGS_PASS_EPT`).
#[test]
fn bochs_writes_guest_flags_past_ept() {
    let mut ground = Ground::new(512);
    identity(&mut ground, 7, 7 | WB);
    let mut core = guest(&mut ground, 7);
    core.tlb = Tlb::new(TlbProfile::Bochs);
    set_page(&mut ground, GUEST_TABLES[3], 0b001 | WB);
    let access = Access::new(AccessKind::Read, Privilege::User);
    assert_eq!(translate(&mut core, &ept(EPTP), &mut ground, LINEAR, access), Ok(Hpa(TARGET)));
    assert_eq!(ground.mem.read_u64(Hpa(GUEST_TABLES[3] + 8 * 5)) & 0x60, 0x20);
}

/// The final address is translated with the access itself, and the linear address is told with paging off too.
#[test]
fn final_access_under_ept() {
    for kind in AccessKind::ALL {
        for rwx in 1..8 {
            let mut ground = Ground::new(512);
            identity(&mut ground, 7, 7 | WB);
            set_page(&mut ground, TARGET, rwx | WB);
            let access = Access::new(kind, Privilege::Supervisor);
            let fault = |found| StageFault {
                gpa: Gpa(TARGET),
                gva: Some(LINEAR),
                access,
                purpose: StagePurpose::Final,
                first: Some(FirstStage::USER | FirstStage::WRITABLE),
                convertible: false,
                kind: found,
            };
            let expected = ept_verdict(&[7, 7, 7, rwx], 6, kind, Hpa(TARGET)).map_err(fault);
            let mut core = guest(&mut ground, 7);
            let paged = translate(&mut core, &ept(EPTP), &mut ground, LINEAR, access);
            assert_eq!(paged, expected.map_err(Fault::Stage));
            let mut core = Core::flat32(MAXPHYADDR);
            let unpaged = translate(&mut core, &ept(EPTP), &mut ground, Gva(TARGET), access);
            let here = |fault| Fault::Stage(StageFault { gva: Some(Gva(TARGET)), ..fault });
            assert_eq!(unpaged, expected.map_err(here));
        }
    }
}

/// The host's paging modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Legacy,
    Pae,
    Long4,
}

/// A host mode; `ignored` sets the bits that nested paging must not look at.
fn npt(mode: Host, nxe: bool, ignored: bool) -> Regime {
    let mut host = HostPaging { cr0: Cr0::PE | Cr0::PG, cr4: Cr4::PSE, efer: Efer::SVME, pat: 0x0007_0406_0007_0406 };
    host.cr4.set(Cr4::PAE, mode != Host::Legacy);
    host.efer.set(Efer::LME | Efer::LMA, mode == Host::Long4);
    host.efer.set(Efer::NXE, nxe);
    host.cr0.set(Cr0::WP, ignored);
    host.cr4.set(Cr4::SMEP | Cr4::SMAP, ignored);
    let ncr3 = TABLES[if mode == Host::Long4 { 0 } else { 1 }];
    Regime {
        tag: Tag { context: 1, ept_root: None },
        second: SecondStage::Npt { ncr3, host, controls: cpu::virt::NptControls::default() },
    }
}

/// Nested tables for guest-physical page 5 with these flags at the two lowest levels.
fn install_nested(ground: &mut Ground, mode: Host, upper: u64, leaf: u64) -> (Hpa, Hpa) {
    let [pml4, pdpt, pd, pt] = TABLES;
    if mode == Host::Legacy {
        ground.mem.write_u32(Hpa(pdpt), (pt | upper) as u32);
        ground.mem.write_u32(Hpa(pt + 4 * 5), (PAGE | leaf) as u32);
        return (Hpa(pdpt), Hpa(pt + 4 * 5));
    }
    ground.mem.write_u64(Hpa(pml4), pdpt | 7);
    ground.mem.write_u64(Hpa(pdpt), pd | if mode == Host::Pae { 1 } else { 7 });
    ground.mem.write_u64(Hpa(pd), pt | upper);
    ground.mem.write_u64(Hpa(pt + 8 * 5), PAGE | leaf);
    (Hpa(pd), Hpa(pt + 8 * 5))
}

/// APM2 15.25.5 and 15.25.6, literally.
fn nested_verdict(entries: [u64; 2], nxe: bool, kind: AccessKind) -> Result<Hpa, StageFaultKind> {
    for entry in entries {
        if entry & 1 == 0 {
            return Err(StageFaultKind::NestedPageFault { present: false, reserved: false });
        }
        if entry & NX != 0 && !nxe {
            return Err(StageFaultKind::NestedPageFault { present: true, reserved: true });
        }
    }
    let forbids = |entry: u64| match kind {
        _ if entry & 4 == 0 => true,
        AccessKind::Read => false,
        AccessKind::Write => entry & 2 == 0,
        AccessKind::Fetch => entry & NX != 0,
    };
    if entries.into_iter().any(forbids) {
        return Err(StageFaultKind::NestedPageFault { present: true, reserved: false });
    }
    Ok(Hpa(PAGE + 0x678))
}

/// All P, R/W, U/S and NX bits at the two lowest levels, in every host mode, for every guest access: the guest's
/// privilege and the host's WP, SMEP and SMAP have no say, and U/S must be set at every level.
#[test]
fn nested_accesses_are_user_accesses() {
    let mut count = 0;
    let mut ground = Ground::new(64);
    for mode in [Host::Legacy, Host::Pae, Host::Long4] {
        for case in 0..(16 * 16) {
            let flags = |bits: u64| bits & 7 | if mode == Host::Legacy { 0 } else { (bits & 8) << 60 };
            let entries = [flags(case), flags(case >> 4)];
            for setting in 0..8 {
                let (nxe, ignored) = (setting & 1 == 1, setting & 2 == 2);
                let privilege = if setting & 4 == 4 { Privilege::User } else { Privilege::Supervisor };
                for kind in AccessKind::ALL {
                    let (at_upper, at_leaf) = install_nested(&mut ground, mode, entries[0], entries[1]);
                    let regime = npt(mode, nxe, ignored);
                    let access = Access::new(kind, privilege);
                    let asked =
                        translate_physical(MAXPHYADDR, &regime, &mut ground, Gpa(0x5678), access, StagePurpose::Final);
                    let expected = nested_verdict(entries, nxe, kind).map_err(|found| {
                        let access = Access::new(kind, Privilege::User);
                        let gpa = Gpa(0x5678);
                        let purpose = StagePurpose::Final;
                        Fault::Stage(StageFault {
                            gpa,
                            gva: None,
                            access,
                            purpose,
                            first: None,
                            convertible: false,
                            kind: found,
                        })
                    });
                    assert_eq!(asked, expected, "{mode:?} {entries:x?} {setting} {kind:?}");
                    let marks = match (expected.is_ok(), kind) {
                        (false, _) => (0, 0),
                        (true, AccessKind::Write) => (0x20, 0x60),
                        (true, _) => (0x20, 0x20),
                    };
                    let flags_at = |at| ground.mem.read_u32(at) as u64 & 0x60;
                    assert_eq!((flags_at(at_upper), flags_at(at_leaf)), marks);
                    count += 1;
                }
            }
        }
    }
    println!("walker cases: {count}");
    assert_eq!(count, 3 * 256 * 8 * 3);
}

/// APM2 15.25.6: references to guest tables are data writes by a user, even for a fetch.
#[test]
fn guest_table_references_under_npt() {
    for (flags, expected) in [(7, None), (5, Some(true)), (3, Some(true)), (0, Some(false)), (7 | NX, None)] {
        let mut ground = Ground::new(512);
        identity(&mut ground, 7, 7);
        let mut core = guest(&mut ground, 7 | 0x60);
        set_page(&mut ground, GUEST_TABLES[3], flags);
        let access = Access::new(AccessKind::Fetch, Privilege::Supervisor);
        let fault = |present| {
            let access = table_access(AccessKind::Write, Privilege::User);
            let gpa = Gpa(GUEST_TABLES[3] + 8 * 5);
            let kind = StageFaultKind::NestedPageFault { present, reserved: false };
            Fault::Stage(StageFault {
                gpa,
                gva: Some(LINEAR),
                access,
                purpose: StagePurpose::Table,
                first: None,
                convertible: false,
                kind,
            })
        };
        let expected = expected.map_or(Ok(Hpa(TARGET)), |present| Err(fault(present)));
        let regime = npt(Host::Long4, true, false);
        assert_eq!(translate(&mut core, &regime, &mut ground, LINEAR, access), expected, "{flags:#x}");
        let is_dirty = ground.mem.read_u64(Hpa(TABLES[3] + 8 * 4)) >> 6 & 1 == 1;
        assert_eq!(is_dirty, expected.is_ok());
    }
}

/// APM2 15.25.10: a PAE guest's PDPTEs are read from memory, and an illegal one faults when it is used.
#[test]
fn guest_pdptes_under_npt() {
    for (pdpte, expected) in [
        (GUEST_TABLES[2] | 1, Ok(Hpa(TARGET))),
        (GUEST_TABLES[2], Err(PageFaultError::U)),
        (GUEST_TABLES[2] | 3, Err(PageFaultError::U | PageFaultError::P | PageFaultError::RSVD)),
        (GUEST_TABLES[2] | 0x21, Err(PageFaultError::U | PageFaultError::P | PageFaultError::RSVD)),
    ] {
        let mut ground = Ground::new(512);
        identity(&mut ground, 7, 7);
        let mut core = guest(&mut ground, 7);
        core.efer = Efer::empty();
        core.cr3 = GUEST_TABLES[1] + 0x20;
        core.pdptes = [0xdead_0001; 4];
        ground.mem.write_u64(Hpa(core.cr3), pdpte);
        let access = Access::new(AccessKind::Read, Privilege::User);
        let done = translate(&mut core, &npt(Host::Long4, true, false), &mut ground, LINEAR, access);
        assert_eq!(done, expected.map_err(|error| Exception::page_fault(LINEAR, error).into()), "{pdpte:#x}");
    }
}
