//! The TLB: what each invalidation covers (SDM 3A 4.10.4.1; SDM 3C 28.3.3.1), and what a cached mapping may and may not
//! answer (SDM 3A 4.10.2, 4.10.3).

use cpu::paging::entry::Rights;
use cpu::paging::memory_type::{MemoryType, StageType};
use cpu::paging::translate::translate;
use cpu::tlb::{GUEST_PHYSICAL_MAX, GuestPhysical, MAPPINGS_MAX, Mapping, Space, Tlb};
use cpu::{Core, Fault, Regime, SecondStage, Tag};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, PageFaultError};
use sim_core::arch::rflags::Rflags;
use sim_core::choice::{ChoicePoint, Choices};
use sim_core::clock::Cost;
use sim_core::event::{Event, EventLog, FlushScope};
use sim_core::{Gpa, Ground, Gva, Hpa};

const ROOT_A: Hpa = Hpa(0xa000);
const ROOT_B: Hpa = Hpa(0xb000);
const PAGE: Gva = Gva(0x40_0000);
const OTHER: Gva = Gva(0x80_0000);

fn mapping(context: u32, ept_root: Option<Hpa>, pcid: u16, is_global: bool, gva: Gva) -> Mapping {
    Mapping {
        space: Space { context, ept_root, pcid },
        gva,
        hpa: Hpa(0x5000),
        shift: 12,
        page_shift: 12,
        rights: Rights::all(),
        stage_rights: Rights::all(),
        key: 0,
        memory_type: MemoryType::WriteBack,
        is_global,
        is_dirty: true,
    }
}

fn guest_physical(ept_root: Hpa, gpa: Gpa) -> GuestPhysical {
    let stage_type = StageType::Ept(MemoryType::WriteBack);
    GuestPhysical { ept_root, gpa, hpa: Hpa(0x5000), shift: 12, rights: Rights::all(), stage_type, is_dirty: true }
}

/// One entry of every kind: linear and combined, of each context, PCID, EPT root and page, global and not; and the
/// guest-physical ones.
fn every_kind() -> (Vec<Mapping>, Vec<GuestPhysical>) {
    let a = Some(ROOT_A);
    let b = Some(ROOT_B);
    let mappings = vec![
        mapping(1, None, 1, false, PAGE),
        mapping(1, None, 1, false, OTHER),
        mapping(1, None, 2, false, PAGE),
        mapping(1, None, 2, true, PAGE),
        mapping(1, None, 2, true, OTHER),
        mapping(2, None, 1, false, PAGE),
        mapping(1, a, 1, false, PAGE),
        mapping(1, b, 1, false, PAGE),
        mapping(1, a, 2, true, PAGE),
        mapping(2, a, 1, false, PAGE),
        mapping(2, b, 1, true, PAGE),
    ];
    (mappings, vec![guest_physical(ROOT_A, Gpa(0x7000)), guest_physical(ROOT_B, Gpa(0x7000))])
}

/// Every scope against every kind of entry, in the order of [`every_kind`]: `x` is dropped, `.` stays.
#[test]
fn scopes_cover_exactly() {
    let address = FlushScope::Address { context: 1, pcid: 1, gva: Gva(PAGE.0 + 0xabc) };
    for (scope, expected) in [
        (FlushScope::All, "xxxxxxxxxxx xx"),
        (FlushScope::Context(1), "xxxxx.xxx.. .."),
        (FlushScope::Context(2), ".....x...xx .."),
        (FlushScope::Context(3), "........... .."),
        (FlushScope::Pcid(1, 1), "xx....xx... .."),
        (FlushScope::Pcid(1, 2), "..x........ .."),
        (FlushScope::Pcid(2, 1), ".....x...x. .."),
        (FlushScope::ContextNonGlobal(1), "xxx...xx... .."),
        (FlushScope::ContextNonGlobal(2), ".....x...x. .."),
        (address, "x..x..xxx.. .."),
        (FlushScope::EptRoot(ROOT_A), "......x.xx. x."),
        (FlushScope::EptRoot(ROOT_B), ".......x..x .x"),
        (FlushScope::EptRoot(Hpa(0xc000)), "........... .."),
        (FlushScope::AllEpt, "......xxxxx xx"),
    ] {
        let (mappings, physical) = every_kind();
        let mut ground = Ground::new(16);
        let mut tlb = Tlb::default();
        mappings.iter().for_each(|entry| tlb.insert(&mut ground, *entry));
        physical.iter().for_each(|entry| tlb.insert_guest_physical(&mut ground, *entry));
        tlb.flush(&mut ground, scope.clone());
        let mark = |stays: bool| if stays { '.' } else { 'x' };
        let mut found: String = mappings.iter().map(|entry| mark(tlb.mappings().contains(entry))).collect();
        found.push(' ');
        found.extend(physical.iter().map(|entry| mark(tlb.guest_physical_mappings().contains(entry))));
        assert_eq!(found, expected, "{scope:?}");
        assert_eq!(ground.clock.now(), Cost::TlbFlush.cycles());
        assert_eq!(ground.log.records()[0].event, Event::TlbFlush { scope });
    }
}

/// Which entry a full TLB gives up is a recorded choice; alternative 0 is the oldest.
#[test]
fn the_victim_is_a_choice() {
    for (script, victim) in [(vec![], 0), (vec![0], 0), (vec![5], 5), (vec![63], 63)] {
        let mut ground = Ground::new(16);
        ground.choices = Choices::scripted(script);
        let mut tlb = Tlb::default();
        let at = |page: usize| mapping(1, None, 0, false, Gva(0x1000 * page as u64));
        (0..=MAPPINGS_MAX).for_each(|page| tlb.insert(&mut ground, at(page)));
        let expected: Vec<_> = (0..=MAPPINGS_MAX).filter(|page| *page != victim).map(at).collect();
        assert_eq!(tlb.mappings(), expected);
        let [choice] = ground.choices.taken() else { panic!("one choice") };
        assert_eq!((choice.point, choice.of, choice.taken), (ChoicePoint::TlbVictim, 64, victim as u32));
    }
    let mut ground = Ground::new(16);
    let mut tlb = Tlb::default();
    let at = |page: usize| guest_physical(ROOT_A, Gpa(0x1000 * page as u64));
    (0..=GUEST_PHYSICAL_MAX).for_each(|page| tlb.insert_guest_physical(&mut ground, at(page)));
    assert_eq!(tlb.guest_physical_mappings()[0], at(1));
    assert_eq!(ground.choices.taken().len(), 1);
}

/// Guest tables in frames 1 to 4, whose page-table entry for [`LINEAR`] each test sets.
const LINEAR: Gva = Gva(0x5678);
const PTE: Hpa = Hpa(0x4000 + 8 * 5);
const PDE: Hpa = Hpa(0x3000);
const FIRST: u64 = 0x9000;
const SECOND: u64 = 0xa000;
const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
/// P, R/W, U/S, A and D.
const OPEN: u64 = 0x67;

fn paged(pte: u64) -> (Core, Ground) {
    let mut ground = Ground::new(512);
    ground.log = EventLog::new(sim_core::event::Detail::Everything);
    for table in 1..4 {
        ground.mem.write_u64(Hpa(table << 12), (table + 1) << 12 | OPEN);
    }
    ground.mem.write_u64(PTE, pte);
    let mut core = Core::flat32(46);
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr4 |= Cr4::PAE | Cr4::PGE;
    core.efer |= Efer::LME | Efer::LMA;
    core.cr3 = 0x1000;
    (core, ground)
}

fn host() -> Regime {
    Regime::default()
}

/// A changed entry shows only after an invalidation: that is what the TLB is modelled for.
#[test]
fn stale_until_flushed() {
    let (mut core, mut ground) = paged(FIRST | OPEN);
    let see = |core: &mut Core, ground: &mut Ground| translate(core, &host(), ground, LINEAR, READ);
    assert_eq!(see(&mut core, &mut ground), Ok(Hpa(FIRST + 0x678)));
    ground.mem.write_u64(PTE, SECOND | OPEN);
    assert_eq!(see(&mut core, &mut ground), Ok(Hpa(FIRST + 0x678)));
    core.tlb.flush(&mut ground, FlushScope::Address { context: 0, pcid: 0, gva: LINEAR });
    assert_eq!(see(&mut core, &mut ground), Ok(Hpa(SECOND + 0x678)));
}

/// The cost and the event of a miss and of a hit.
#[test]
fn a_hit_costs_a_look_up_and_a_miss_its_references() {
    let (mut core, mut ground) = paged(FIRST | OPEN);
    translate(&mut core, &host(), &mut ground, LINEAR, READ).unwrap();
    assert_eq!(ground.clock.now().0, 4 * Cost::WalkReference.cycles().0);
    let [record] = ground.log.records() else { panic!("one walk") };
    assert_eq!(record.event, Event::Walk { gva: LINEAR, references: 4, result: Some(Hpa(FIRST + 0x678)) });
    assert_eq!((record.stamp.start.0, record.stamp.end), (0, ground.clock.now()));
    translate(&mut core, &host(), &mut ground, LINEAR, READ).unwrap();
    assert_eq!(ground.clock.now().0, 4 * Cost::WalkReference.cycles().0 + Cost::TlbHit.cycles().0);
    assert_eq!(ground.log.records().len(), 1);
}

/// A mapping cached clean does not let a write through before the dirty flag is set (SDM 3A 4.8).
#[test]
fn a_clean_mapping_walks_for_a_write() {
    let (mut core, mut ground) = paged(FIRST | 0x27);
    for (access, expected) in [(READ, 0x27), (WRITE, 0x67)] {
        translate(&mut core, &host(), &mut ground, LINEAR, access).unwrap();
        assert_eq!(ground.mem.read_u64(PTE), FIRST | expected);
    }
    assert_eq!(core.tlb.mappings().len(), 1);
    // From now on the flag's loss goes unseen.
    ground.mem.write_u64(PTE, FIRST | 0x27);
    translate(&mut core, &host(), &mut ground, LINEAR, WRITE).unwrap();
    assert_eq!(ground.mem.read_u64(PTE), FIRST | 0x27);
}

/// A mapping that forbids the access is walked again before it may fault, and a fault leaves no mapping (SDM 3A
/// 4.10.4.1, 4.10.4.3).
#[test]
fn no_fault_from_the_tlb_alone() {
    let (mut core, mut ground) = paged(FIRST | 0x65);
    translate(&mut core, &host(), &mut ground, LINEAR, READ).unwrap();
    ground.mem.write_u64(PTE, SECOND | OPEN);
    assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, WRITE), Ok(Hpa(SECOND + 0x678)));
    ground.mem.write_u64(PTE, 0);
    assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, WRITE), Ok(Hpa(SECOND + 0x678)));
    let fetch = Access::new(AccessKind::Fetch, Privilege::Supervisor);
    core.cr4 |= Cr4::SMEP;
    let error = PageFaultError::F;
    let fault: Fault = Exception::page_fault(LINEAR, error).into();
    assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, fetch), Err(fault));
    assert_eq!(core.tlb.mappings(), []);
}

/// WP, SMAP, AC and the privilege are those of the access, not of the walk that filled the TLB.
#[test]
fn a_hit_is_judged_by_the_access() {
    let supervisor = |kind| Access::new(kind, Privilege::Supervisor);
    let (write, read) = (supervisor(AccessKind::Write), supervisor(AccessKind::Read));
    let (p, w, u) = (PageFaultError::P, PageFaultError::W, PageFaultError::U);
    for (pte, change, access, error) in [
        (0x65, Cr4::empty(), write, Some(p | w)),
        (0x67, Cr4::SMAP, read, Some(p)),
        (0x67, Cr4::SMAP, write, Some(p | w)),
        (0x63, Cr4::empty(), READ, Some(p | u)),
        (0x63, Cr4::SMAP, read, None),
    ] {
        let (mut core, mut ground) = paged(FIRST | pte);
        core.cr0.remove(Cr0::WP);
        assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, write), Ok(Hpa(FIRST + 0x678)));
        core.cr0.insert(Cr0::WP);
        core.cr4 |= change;
        let expected = error.map_or(Ok(Hpa(FIRST + 0x678)), |error| Err(Exception::page_fault(LINEAR, error).into()));
        assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, access), expected, "{pte:#x} {access:?}");
        core.rflags.insert(Rflags::AC);
        if change == Cr4::SMAP {
            assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, access), Ok(Hpa(FIRST + 0x678)));
        }
    }
}

/// Global mappings serve every PCID of their context, others only their own (SDM 3A 4.10.2.4).
#[test]
fn pcids_and_global_pages() {
    for (global, pge, expected) in [(0, true, SECOND), (0x100, true, FIRST), (0x100, false, SECOND)] {
        let (mut core, mut ground) = paged(FIRST | OPEN | global);
        core.cr4.set(Cr4::PGE, pge);
        core.cr4 |= Cr4::PCIDE;
        core.cr3 |= 1;
        translate(&mut core, &host(), &mut ground, LINEAR, READ).unwrap();
        ground.mem.write_u64(PTE, SECOND | OPEN);
        core.cr3 += 1;
        assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, READ), Ok(Hpa(expected + 0x678)));
        let other = Regime { tag: Tag { context: 7, ept_root: None }, ..host() };
        assert_eq!(translate(&mut core, &other, &mut ground, LINEAR, READ), Ok(Hpa(SECOND + 0x678)));
    }
}

/// An EPT that maps the first 2 MiB one to one in 4 KiB pages, tables in frames 0x10 to 0x13.
fn ept(ground: &mut Ground) -> Regime {
    for table in 0x10..0x13 {
        ground.mem.write_u64(Hpa(table << 12), (table + 1) << 12 | 7);
    }
    for frame in 0..512 {
        ground.mem.write_u64(Hpa(0x13_000 + 8 * frame), frame << 12 | 6 << 3 | 7);
    }
    let second = SecondStage::Ept { eptp: 0x10_000 | 3 << 3 | 6, controls: cpu::virt::EptControls::default() };
    Regime { tag: Tag { context: 1, ept_root: Some(Hpa(0x10_000)) }, second }
}

/// A large guest page over small EPT pages is cached in parts, and INVLPG drops all of them (SDM 3A 4.10.4.1).
#[test]
fn parts_of_a_large_page() {
    let (mut core, mut ground) = paged(0);
    let regime = ept(&mut ground);
    ground.mem.write_u64(PDE, OPEN | 1 << 7);
    for linear in [0x5000, 0x6000, 0x7000] {
        assert_eq!(translate(&mut core, &regime, &mut ground, Gva(linear), READ), Ok(Hpa(linear)));
    }
    let shifts: Vec<_> = core.tlb.mappings().iter().map(|mapping| (mapping.shift, mapping.page_shift)).collect();
    assert_eq!(shifts, [(12, 21); 3]);
    core.tlb.invalidate(&mut ground, &FlushScope::Address { context: 1, pcid: 0, gva: Gva(0x1f_f000) });
    assert_eq!(core.tlb.mappings(), []);
    assert_ne!(core.tlb.guest_physical_mappings(), []);
}

/// Combined mappings survive a change of EPT until INVEPT, and die with INVVPID; guest-physical ones the other way
/// round for INVVPID (SDM 3C 28.3.3.1).
#[test]
fn combined_and_guest_physical_mappings() {
    let moved = Hpa(0x13_000 + 8 * (FIRST >> 12));
    for (scope, expected) in [
        (None, FIRST),
        (Some(FlushScope::Context(1)), FIRST),
        (Some(FlushScope::Context(2)), FIRST),
        (Some(FlushScope::EptRoot(Hpa(0x10_000))), SECOND),
        (Some(FlushScope::EptRoot(Hpa(0x20_000))), FIRST),
        (Some(FlushScope::AllEpt), SECOND),
        (Some(FlushScope::All), SECOND),
    ] {
        let (mut core, mut ground) = paged(FIRST | OPEN);
        let regime = ept(&mut ground);
        translate(&mut core, &regime, &mut ground, LINEAR, READ).unwrap();
        ground.mem.write_u64(moved, SECOND | 6 << 3 | 7);
        if let Some(scope) = &scope {
            core.tlb.invalidate(&mut ground, scope);
        }
        let seen = translate(&mut core, &regime, &mut ground, LINEAR, READ);
        assert_eq!(seen, Ok(Hpa(expected + 0x678)), "{scope:?}");
    }
}

/// Without paging nothing is kept but guest-physical mappings, and without a second stage nothing at all.
#[test]
fn without_paging() {
    let mut ground = Ground::new(512);
    let regime = ept(&mut ground);
    let mut core = Core::flat32(46);
    assert_eq!(translate(&mut core, &host(), &mut ground, LINEAR, READ), Ok(Hpa(LINEAR.0)));
    assert_eq!((ground.clock.now().0, &core.tlb), (0, &Tlb::default()));
    assert_eq!(translate(&mut core, &regime, &mut ground, LINEAR, READ), Ok(Hpa(LINEAR.0)));
    assert_eq!((core.tlb.mappings().len(), core.tlb.guest_physical_mappings().len()), (0, 1));
}

/// A combined mapping serves under its own EPT root only (SDM 3C 28.3.1).
#[test]
fn combined_mappings_belong_to_an_ept_root() {
    let (mut core, mut ground) = paged(FIRST | OPEN);
    let first = ept(&mut ground);
    translate(&mut core, &first, &mut ground, LINEAR, READ).unwrap();
    // A second EPT in frames 0x20 to 0x23, which maps the page elsewhere.
    for table in 0x10..0x14 {
        for entry in 0..512 {
            let value = ground.mem.read_u64(Hpa(table << 12 | entry << 3));
            let moved = if table < 0x13 && value != 0 { value + 0x10_000 } else { value };
            ground.mem.write_u64(Hpa((table + 0x10) << 12 | entry << 3), moved);
        }
    }
    ground.mem.write_u64(Hpa(0x23_000 + 8 * (FIRST >> 12)), SECOND | 6 << 3 | 7);
    let second = Regime {
        tag: Tag { ept_root: Some(Hpa(0x20_000)), ..first.tag },
        second: SecondStage::Ept { eptp: 0x20_000 | 3 << 3 | 6, controls: cpu::virt::EptControls::default() },
    };
    assert_eq!(translate(&mut core, &second, &mut ground, LINEAR, READ), Ok(Hpa(SECOND + 0x678)));
    assert_eq!(translate(&mut core, &first, &mut ground, LINEAR, READ), Ok(Hpa(FIRST + 0x678)));
}

/// A guest-physical mapping that doesn't serve an access is replaced, and an EPT violation leaves none (SDM 3C
/// 28.3.3.1).
#[test]
fn guest_physical_mappings_that_do_not_serve() {
    let mut ground = Ground::new(512);
    let mut regime = ept(&mut ground);
    regime.second =
        SecondStage::Ept { eptp: 0x10_000 | 1 << 6 | 3 << 3 | 6, controls: cpu::virt::EptControls::default() };
    let mut core = Core::flat32(46);
    let dirty = |core: &Core| core.tlb.guest_physical_mappings().iter().map(|entry| entry.is_dirty).collect::<Vec<_>>();
    for (access, expected) in [(READ, [false]), (WRITE, [true]), (READ, [true])] {
        translate(&mut core, &regime, &mut ground, LINEAR, access).unwrap();
        assert_eq!(dirty(&core), expected);
    }
    let mut fetch_only = ground.clone();
    fetch_only.mem.write_u64(Hpa(0x13_000 + 8 * 5), 0x5000 | 6 << 3 | 4);
    core.tlb = Tlb::default();
    let fetch = Access::new(AccessKind::Fetch, Privilege::User);
    translate(&mut core, &regime, &mut fetch_only, LINEAR, fetch).unwrap();
    assert_eq!(core.tlb.guest_physical_mappings().len(), 1);
    assert!(matches!(translate(&mut core, &regime, &mut fetch_only, LINEAR, READ), Err(Fault::Stage(_))));
    assert_eq!(core.tlb.guest_physical_mappings(), []);
}
