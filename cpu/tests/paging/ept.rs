//! EPT beyond ordinary permission bits (SDM 3C 28.2, 25.5.7.1, 27.2.1): five levels, missing capabilities, mode-based
//! execute control, supervisor shadow stacks, #VE, advanced information and page-modification logging.

use super::support::{
    BOTH, DIRTY, EPT_ACCESSED, EPT_DIRTY, EPTP_MARKS, EPTP4, EPTP5, End, GUEST, LINEAR, NX, OPEN, PS, STAGE, TARGET,
    WB, access, accesses, combinations, core, ept, guest, identity, set_stage_page, shadow_stack_accesses, stage_page,
};
use cpu::paging::translate::translate_physical;
use cpu::virt::{EptControls, EptFlags, FirstStage, PageModificationLog, StageFault, StageFaultKind, StagePurpose};
use cpu::{Core, Fault, Regime, SecondStage};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::Cr4;
use sim_core::{Gpa, Ground, Hpa};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);

fn violation(allowed: u8) -> StageFaultKind {
    StageFaultKind::EptViolation { allowed }
}

fn physical(ground: &mut Ground, regime: &Regime, gpa: u64, access: Access) -> Result<u64, StageFaultKind> {
    match translate_physical(52, regime, ground, Gpa(gpa), access, StagePurpose::Final) {
        Ok(hpa) => Ok(hpa.0),
        Err(Fault::Stage(fault)) => Err(fault.kind),
        Err(other) => panic!("{other:?}"),
    }
}

/// Five levels reach what four don't, and each level's R, W and X count.
#[test]
fn five_levels() {
    let mut count = 0;
    let gpa = 7 << 48 | 1 << 39 | 2 << 30 | 3 << 21 | 5 << 12 | 0x678;
    for (depth, bits) in (0..5).flat_map(|depth| (0..8).map(move |bits| (depth, bits))) {
        for access in AccessKind::ALL.map(|kind| Access::new(kind, Privilege::Supervisor)) {
            let mut ground = Ground::new(64);
            for level in 0..5 {
                let at = super::support::entry_at(&STAGE, level, gpa);
                let next = STAGE.get(level + 1).copied().unwrap_or(0x8000_0000 | WB);
                ground.mem.write_u64(at, next | if level == depth { bits } else { 7 });
            }
            let needed = match access.kind {
                AccessKind::Read => 1,
                AccessKind::Write => 2,
                AccessKind::Fetch => 4,
            };
            let expected = match bits {
                0 => Err(violation(0)),
                2 | 6 => Err(StageFaultKind::EptMisconfiguration),
                _ if bits & needed != 0 => Ok(0x8000_0678),
                _ => Err(violation(bits as u8)),
            };
            let regime = ept(EPTP5, EptFlags::empty());
            assert_eq!(physical(&mut ground, &regime, gpa, access), expected, "{depth} {bits} {access:?}");
            assert_eq!(physical(&mut ground, &ept(EPTP4, EptFlags::empty()), gpa, access), Err(violation(0)));
            count += 2;
        }
    }
    println!("walker cases: {count} (5-level EPT)");
    assert_eq!(count, 5 * 8 * 3 * 2);
}

/// Without the capability, entries that allow nothing but fetches and entries that map large pages are misconfigured.
#[test]
fn missing_capabilities() {
    let (none, only, large, giant) =
        (EptFlags::empty(), EptFlags::NO_EXECUTE_ONLY, EptFlags::NO_PAGE_2M, EptFlags::NO_PAGE_1G);
    let modes = EptFlags::MODE_BASED_EXECUTE;
    for (depth, entry, flags, misconfigured) in [
        (3, 4 | WB, none, false),
        (3, 4 | WB, only, true),
        (1, STAGE[3] | 4, only, true),
        (3, 5 | WB, only, false),
        (3, 1 << 10 | WB, only, false),
        (3, 1 << 10 | WB, modes, false),
        (3, 1 << 10 | WB, modes | only, true),
        (3, 1 << 10 | 1 | WB, modes | only, false),
        (2, PS | 7 | WB, giant | only, false),
        (2, PS | 7 | WB, large, true),
        (1, PS | 7 | WB, large, false),
        (1, PS | 7 | WB, giant, true),
        (3, PS | 7 | WB, giant | large, false),
    ] {
        let mut ground = Ground::new(64);
        identity(&mut ground, 7, 7 | WB);
        ground.mem.write_u64(super::support::entry_at(&STAGE[1..], depth, 0), entry);
        let done = physical(&mut ground, &ept(EPTP4, flags), 0, READ);
        let found = done == Err(StageFaultKind::EptMisconfiguration);
        assert_eq!(found, misconfigured, "{depth} {entry:#x} {flags:?}");
    }
}

/// Bits 0, 2 and 10 at the page and above it, for fetches from user-mode and supervisor-mode addresses, with and without
/// mode-based execute control: without it bit 10 is ignored and bit 2 serves both.
#[test]
fn mode_based_execute_control() {
    let mut count = 0;
    for (modes, user) in BOTH.into_iter().flat_map(|modes| BOTH.map(|user| (modes, user))) {
        for (upper, leaf) in (0..8_u64).flat_map(|upper| (0..8_u64).map(move |leaf| (upper, leaf))) {
            let bits = |case: u64| case & 1 | (case & 2) << 1 | (case & 4) << 8;
            let mut ground = guest([OPEN; 4]);
            identity(&mut ground, 7 | 1 << 10, 7 | 1 << 10 | WB);
            set_target_apart(&mut ground, 3 | if user { 4 } else { 0 }, bits(upper), bits(leaf));
            let flags = if modes { EptFlags::MODE_BASED_EXECUTE } else { EptFlags::empty() };
            let is_present = |case: u64| case & 3 != 0 || (modes && case & 4 != 0);
            let all = upper & leaf;
            let execute = if modes && user { all & 4 != 0 } else { all & 2 != 0 };
            let allowed = (bits(all) & 5) as u8 | if modes && all & 4 != 0 { 8 } else { 0 };
            let expected = match (is_present(upper) && is_present(leaf), execute) {
                (false, _) => Some(violation(0)),
                (true, false) => Some(violation(allowed)),
                (true, true) => None,
            };
            let who = if user { Privilege::User } else { Privilege::Supervisor };
            let done = access(&mut core(), &ept(EPTP4, flags), &mut ground, Access::new(AccessKind::Fetch, who));
            let found = if let End::Stage(fault) = done { Some(fault.kind) } else { None };
            assert_eq!(found, expected, "{modes} {user} {upper:#b} {leaf:#b}");
            count += 1;
        }
    }
    println!("walker cases: {count} (mode-based execute control)");
    assert_eq!(count, 4 * 64);
}

/// Gives the guest's page an EPT page table of its own, by moving it up 2 MiB.
fn set_target_apart(ground: &mut Ground, guest_flags: u64, upper: u64, leaf: u64) {
    let moved = 0x20_0000 | TARGET & !0xfff;
    ground.mem.write_u64(super::support::entry_at(&GUEST, 3, LINEAR.0), moved | guest_flags);
    ground.mem.write_u64(Hpa(STAGE[3] + 8), 0x1_5000 | upper);
    ground.mem.write_u64(Hpa(0x1_5000 + 8 * (TARGET >> 12)), TARGET & !0xfff | leaf | WB);
}

/// Table 27-7 bits 11:9: U/S, R/W and XD of the linear address, told for its final address only; without paging it is a
/// user-mode address, writable and executable.
#[test]
fn advanced_information() {
    for bits in combinations(&[2, 4, NX]) {
        let mut ground = guest([OPEN, OPEN, OPEN, bits | 1]);
        identity(&mut ground, 7, 7 | WB);
        set_stage_page(&mut ground, TARGET, 0);
        let mut first = FirstStage::empty();
        first.set(FirstStage::WRITABLE, bits & 2 != 0);
        first.set(FirstStage::USER, bits & 4 != 0);
        first.set(FirstStage::EXECUTE_DISABLED, bits & NX != 0);
        let read = Access::new(AccessKind::Read, Privilege::Supervisor);
        let End::Stage(fault) = access(&mut core(), &ept(EPTP4, EptFlags::empty()), &mut ground, read) else {
            panic!("no fault");
        };
        assert_eq!((fault.first, fault.purpose, fault.gva), (Some(first), StagePurpose::Final, Some(LINEAR)));
        set_stage_page(&mut ground, GUEST[1], 0);
        let End::Stage(fault) = access(&mut core(), &ept(EPTP4, EptFlags::empty()), &mut ground, read) else {
            panic!("no fault");
        };
        assert_eq!((fault.first, fault.purpose), (None, StagePurpose::Table));
    }
}

/// 25.5.7.1: bit 63 of the entry that maps the page or is not present decides; that of an entry that refers to a table
/// does not, and without the control nothing is convertible.
#[test]
fn convertible_violations() {
    const SUPPRESS: u64 = 1 << 63;
    for (table, page, control, expected) in [
        (7, 1, true, true),
        (7, SUPPRESS | 1, true, false),
        (7, 0, true, true),
        (7, SUPPRESS, true, false),
        (SUPPRESS | 7, 1, true, true),
        (0, 1, true, true),
        (SUPPRESS, 1, true, false),
        (7, 1, false, false),
        (7, 0, false, false),
    ] {
        let mut ground = Ground::new(64);
        identity(&mut ground, 7, 7 | WB);
        set_stage_page(&mut ground, TARGET, page | if page & 7 == 0 { 0 } else { WB });
        ground.mem.write_u64(Hpa(STAGE[3]), STAGE[4] | table);
        let flags = if control { EptFlags::VIOLATION_VE } else { EptFlags::empty() };
        let write = Access::new(AccessKind::Write, Privilege::User);
        let regime = ept(EPTP4, flags);
        let done = translate_physical(52, &regime, &mut ground, Gpa(TARGET), write, StagePurpose::Final);
        let Err(Fault::Stage(StageFault { convertible, .. })) = done else { panic!("{done:?}") };
        assert_eq!(convertible, expected, "{table:#x} {page:#x} {control}");
    }
}

/// EPTP bit 7: supervisor shadow-stack accesses need bit 60 and R at the page and W in every table above; users' go by
/// R and W, as all do without the control. Bit 60 is told with the control.
#[test]
fn supervisor_shadow_stacks() {
    let mut count = 0;
    let cases = (0..8).flat_map(|page: u64| [7, 5].map(|table: u64| (page, table)));
    for (control, (page, table)) in BOTH.into_iter().flat_map(|control| cases.clone().map(move |case| (control, case)))
    {
        let (write, marked, read) = (page & 1 != 0, page & 2 != 0, page & 4 != 0);
        let rwx = u64::from(read) | u64::from(read && write) << 1 | 4;
        for asked in shadow_stack_accesses() {
            let user = if asked.privilege == Privilege::User { 4 } else { 0 };
            let mut ground = guest([OPEN; 4]);
            identity(&mut ground, 7, 7 | WB);
            let page = rwx | u64::from(marked) << 60;
            set_target_apart(&mut ground, 1 | DIRTY | user, table, page);
            let mut core = core();
            core.cr4 |= Cr4::CET;
            let eptp = EPTP4 | if control { 1 << 7 } else { 0 };
            let can_write = rwx & table & 2 != 0;
            let allowed = if control && user == 0 {
                read && marked && table & 2 != 0
            } else {
                read && (asked.kind == AccessKind::Read || can_write)
            };
            let told = (rwx & table) as u8 | if control && marked { 1 << 4 } else { 0 };
            let expected = if allowed { None } else { Some(violation(told)) };
            let done = access(&mut core, &ept(eptp, EptFlags::empty()), &mut ground, asked);
            let found = if let End::Stage(fault) = done { Some(fault.kind) } else { None };
            assert_eq!(found, expected, "{control} {page:#b} {table} {asked:?}");
            count += 1;
        }
    }
    println!("walker cases: {count} (EPT shadow stacks)");
    assert_eq!(count, 2 * 8 * 2 * 4);
}

const INDEX: Hpa = Hpa(0x3_0010);
const LOG: Hpa = Hpa(0x3_1000);

fn logging(eptp: u64) -> Regime {
    let log = Some(PageModificationLog { index: INDEX, log: LOG });
    let controls = EptControls { flags: EptFlags::empty(), log };
    let regime = ept(eptp, EptFlags::empty());
    Regime { second: SecondStage::Ept { eptp, controls }, ..regime }
}

fn run(ground: &mut Ground, core: &mut Core, index: u64, asked: Access) -> (End, u64) {
    ground.mem.write(INDEX, index, 2);
    let end = access(core, &logging(EPTP4 | EPTP_MARKS), ground, asked);
    (end, ground.mem.read(INDEX, 2))
}

/// 28.2.5: every page that becomes dirty is logged, guest tables in the order of their use, then the target; entries
/// fill downwards, and a page that is dirty already is not logged again.
#[test]
fn pages_that_become_dirty_are_logged() {
    let mut ground = guest([OPEN; 4]);
    identity(&mut ground, 7, 7 | WB);
    let mut core = core();
    let write = Access::new(AccessKind::Write, Privilege::User);
    assert_eq!(run(&mut ground, &mut core, 511, write), (End::At(TARGET), 511 - 5));
    let logged = [0, 1, 2, 3, 4, 5].map(|back| ground.mem.read_u64(LOG.offset(8 * (511 - back))));
    assert_eq!(logged, [GUEST[0], GUEST[1], GUEST[2], GUEST[3], TARGET & !0xfff, 0]);
    assert_eq!(ground.mem.read_u64(stage_page(TARGET)) & 0x300, EPT_ACCESSED | EPT_DIRTY);
    assert_eq!(run(&mut ground, &mut core, 511, write), (End::At(TARGET), 511));
}

/// An index of 0 serves once more and wraps; beyond 511 there is no room, and any flag still to be set, an accessed flag
/// too, is a log-full event that sets nothing.
#[test]
fn a_full_log_stops_whatever_sets_flags() {
    let marked = EPT_ACCESSED | EPT_DIRTY;
    let write = Access::new(AccessKind::Write, Privilege::User);
    for (page, index, asked, full, after) in [
        (0, 0, write, false, 0xffff),
        (0, 0xffff, write, true, 0xffff),
        (0, 512, write, true, 512),
        (EPT_ACCESSED, 0xffff, write, true, 0xffff),
        (marked, 0xffff, write, false, 0xffff),
        (0, 0xffff, READ, true, 0xffff),
        (EPT_ACCESSED, 0xffff, READ, false, 0xffff),
        (0, 0, READ, false, 0),
    ] {
        let mut ground = guest([OPEN | 0x60; 4]);
        identity(&mut ground, 7 | marked, 7 | WB | marked);
        set_stage_page(&mut ground, TARGET, 7 | WB | page);
        let (end, index_after) = run(&mut ground, &mut core(), index, asked);
        match end {
            End::Stage(fault) => assert_eq!((fault.kind, fault.gpa), (StageFaultKind::LogFull, Gpa(TARGET))),
            other => assert_eq!(other, End::At(TARGET)),
        }
        assert_eq!((matches!(end, End::Stage(_)), index_after), (full, after), "{page:#x} {index:#x} {asked:?}");
        let set = ground.mem.read_u64(stage_page(TARGET)) & marked & !page;
        assert_eq!(set != 0, !full && page != marked && !(page == EPT_ACCESSED && asked == READ));
    }
}

/// Without EPT's accessed and dirty flags nothing becomes dirty, so nothing is logged.
#[test]
fn no_log_without_flags() {
    let mut ground = guest([OPEN; 4]);
    identity(&mut ground, 7, 7 | WB);
    ground.mem.write(INDEX, 0xffff, 2);
    for asked in accesses(AccessKind::Write) {
        assert_eq!(access(&mut core(), &logging(EPTP4), &mut ground, asked), End::At(TARGET));
    }
}
