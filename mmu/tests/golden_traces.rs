//! The golden traces of the root cache, derived by hand from KVM's algorithms (kvm-mmu.md E.4): after every operation
//! the current root, the three previous ones, and what is requested. TDP off, 64-bit, no PCIDs.

#[expect(dead_code, reason = "each test uses its part of the machine")]
mod support;

use mmu::audit::Audit;
use mmu::fault::FaultOutcome;
use mmu::load::Which;
use mmu::request::{Effects, Requests};
use mmu::role::PageRole;
use mmu::state::{FlushOnReuse, Root, TdpMode};
use mmu::{Change, ChangeSet};
use sim_core::event::{Event, MmuId, PgdOutcome};
use support::guest::{ALL, Layout, Space};
use support::{Guest, Machine, R, TransitionFlush, at, mode};

const A: u64 = 0x10_0000;
const B: u64 = 0x11_0000;
const C: u64 = 0x12_0000;
const E: u64 = 0x13_0000;
const L1: u32 = 0x3704;
const L2: u32 = 0x2_3704;
/// bit 11.
const INVALID: u32 = 0x800;

/// The notation of E.4: each root by role and CR3.
const NAMES: &[(u32, u64, &str)] = &[(L1, A, "R1"), (L1, B, "R2"), (L2, A, "R3"), (L1, C, "R4"), (L1, E, "R5")];

fn name(machine: &Machine, root: Root) -> String {
    if !root.is_valid() {
        return "-".to_owned();
    }
    let role = machine.vm.pages.at(root.hpa).expect("a shadow page behind a 64-bit root").role;
    let named = |(word, pgd, _): &&(u32, u64, &str)| *word == role.with_invalid(0).0 && *pgd == root.pgd;
    let name = NAMES.iter().find(named).map_or("?", |(_, _, name)| name);
    format!("{name}{}", if role.invalid() == 1 { "!" } else { "" })
}

/// `cur | [p0,p1,p2]`.
fn cache(machine: &Machine) -> String {
    let mmu = &machine.cpus[0].mmu.root_mmu;
    let [p0, p1, p2] = mmu.prev.map(|root| name(machine, root));
    format!("{} | [{p0},{p1},{p2}]", name(machine, mmu.root))
}

fn root_count(machine: &Machine, named: &str) -> u32 {
    let mmu = &machine.cpus[0].mmu.root_mmu;
    let roots = [mmu.root].into_iter().chain(mmu.prev);
    let root = roots.into_iter().find(|root| name(machine, *root) == named).expect("a root of this name");
    machine.vm.pages.at(root.hpa).expect("its page").root_count
}

/// The last look-up: role, CR3 and how it ended.
fn last_lookup(machine: &Machine) -> (u32, u64, PgdOutcome) {
    let lookup = machine.ground.log.records().iter().rev().find_map(|record| match &record.event {
        Event::PgdLookup { role, pgd, outcome, .. } => Some((role.0, *pgd, *outcome)),
        _ => None,
    });
    lookup.expect("a look-up")
}

fn machine(changes: ChangeSet) -> Machine {
    Machine::new(changes, TdpMode::Off, mode::long(), A, 1)
}

#[derive(Clone, Copy, Debug)]
enum Op {
    MovCr3(u64),
    Enter(u64),
    Exit(u64),
}

fn apply(machine: &mut Machine, op: Op) {
    match op {
        Op::MovCr3(cr3) => machine.mov_cr3(0, cr3),
        Op::Enter(cr3) => machine.enter(0, Guest { regs: mode::long(), cr3, nested: None }),
        Op::Exit(cr3) => machine.exit(0, mode::long(), cr3),
    }
}

const MISS: PgdOutcome = PgdOutcome::Miss;
const fn hit(slot: u8) -> PgdOutcome {
    PgdOutcome::Hit(slot)
}

/// What `new_pgd` itself posts on a hit.
const PGD: Requests = Requests::LOAD_MMU_PGD;
/// `kvm_invalidate_pcid` of the active PCID, TDP off.
const MOV: Requests = Requests::MMU_SYNC.union(Requests::TLB_FLUSH_CURRENT);

/// One row: the operation, the look-up, the cache after `new_pgd` and after the reload, requests without the
/// transition's own.
struct Row {
    number: u8,
    op: Op,
    lookup: (u32, u64, PgdOutcome),
    after_new_pgd: &'static str,
    after_reload: &'static str,
    requests: Requests,
}

/// Applies a row and compares every column but the verdict.
fn check(machine: &mut Machine, row: &Row, what: &str) {
    let edge = match row.op {
        Op::MovCr3(_) => Requests::empty(),
        Op::Enter(_) | Op::Exit(_) => machine.flush.posts(),
    };
    let what = format!("{what}, row {}: {:x?}", row.number, row.op);
    apply(machine, row.op);
    assert_eq!(last_lookup(machine), row.lookup, "{what}");
    assert_eq!(cache(machine), row.after_new_pgd, "{what}, after new_pgd");
    assert_eq!(machine.cpus[0].mmu.requests, row.requests | edge, "{what}");
    let loads = row.after_new_pgd.starts_with('-');
    let effects = machine.run(0);
    assert_eq!(cache(machine), row.after_reload, "{what}, after reload");
    let loaded = if loads { Effects::LOAD_PGD | Effects::FLUSH_CURRENT } else { Effects::empty() };
    assert_eq!(effects, loaded, "{what}: a load flushes, a kept root needs none");
    assert!(machine.at_rest().is_empty(), "{what}: {:?}", machine.at_rest());
}

/// kvm-mmu.md E.4.1 rows 1 to 6.
#[rustfmt::skip]
const ROTATION: &[Row] = &[
    Row { number: 1, op: Op::MovCr3(B), lookup: (L1, B, MISS), after_new_pgd: "- | [R1,-,-]", after_reload: "R2 | [R1,-,-]", requests: MOV },
    Row { number: 2, op: Op::MovCr3(A), lookup: (L1, A, hit(0)), after_new_pgd: "R1 | [R2,-,-]", after_reload: "R1 | [R2,-,-]", requests: MOV.union(PGD) },
    Row { number: 3, op: Op::Enter(A), lookup: (L2, A, MISS), after_new_pgd: "- | [R1,R2,-]", after_reload: "R3 | [R1,R2,-]", requests: Requests::empty() },
    Row { number: 4, op: Op::Exit(A), lookup: (L1, A, hit(0)), after_new_pgd: "R1 | [R3,R2,-]", after_reload: "R1 | [R3,R2,-]", requests: PGD },
    Row { number: 5, op: Op::Enter(A), lookup: (L2, A, hit(0)), after_new_pgd: "R3 | [R1,R2,-]", after_reload: "R3 | [R1,R2,-]", requests: PGD },
    Row { number: 6, op: Op::Exit(B), lookup: (L1, B, hit(1)), after_new_pgd: "R2 | [R3,R1,-]", after_reload: "R2 | [R3,R1,-]", requests: PGD },
];

/// E.4.1 row 0: the first run.
fn first_run(machine: &mut Machine, what: &str) {
    assert_eq!(cache(machine), "- | [-,-,-]", "{what}, row 0");
    assert_eq!(machine.run(0), Effects::LOAD_PGD | Effects::FLUSH_CURRENT, "{what}, row 0: the load flushes");
    assert_eq!(cache(machine), "R1 | [-,-,-]", "{what}, row 0");
}

/// E.4.1 holds at every merged point, and whatever E.5 makes a transition post.
#[test]
fn rotation_hits_and_misses() {
    let mut rows = 0;
    for point in support::merged_points() {
        for flush in TransitionFlush::ALL {
            let what = format!("E.4.1 at {point}, {flush:?}");
            let mut machine = machine(at(point));
            machine.flush = flush;
            first_run(&mut machine, &what);
            for row in ROTATION {
                check(&mut machine, row, &what);
                let found = machine.at_entry(0);
                assert!(found.is_empty(), "{what}, row {}: {found:?}", row.number);
                rows += 1;
            }
        }
    }
    assert_eq!(rows, support::merged_points().len() * 4 * 6);
}

/// A.5.1 step 3: with `flush_on_reuse` every hit of E.4.1 posts a sync and a flush too, and a miss does not.
#[test]
fn flush_on_reuse_adds_to_hits_only() {
    for point in ["v5.17", "v5.18"] {
        let mut machine = machine(at(point));
        machine.vm.config.flush_on_reuse = FlushOnReuse::Yes;
        machine.run(0);
        for row in ROTATION {
            let owed = if row.lookup.2 == MISS { row.requests } else { row.requests | MOV };
            apply(&mut machine, row.op);
            assert_eq!(machine.cpus[0].mmu.requests, owed, "row {} at {point}", row.number);
            machine.run(0);
        }
    }
}

/// A row of E.4.2: also the role after init, whether E finds a violation, and the root counts that the row names.
struct Stored {
    row: Row,
    role: u32,
    violated: bool,
    counts: &'static [(&'static str, u32)],
}

/// kvm-mmu.md E.4.2 rows 3 to 6.
#[rustfmt::skip]
const STORED_ROLE: &[Stored] = &[
    Stored { row: Row { number: 3, op: Op::Enter(A), lookup: (L1, A, PgdOutcome::Kept), after_new_pgd: "R1 | [R2,-,-]", after_reload: "R1 | [R2,-,-]", requests: PGD }, role: L2, violated: true, counts: &[("R1", 1)] },
    Stored { row: Row { number: 4, op: Op::Exit(A), lookup: (L2, A, MISS), after_new_pgd: "- | [R1,R2,-]", after_reload: "R1 | [R1,R2,-]", requests: Requests::empty() }, role: L1, violated: false, counts: &[("R1", 2), ("R2", 1)] },
    Stored { row: Row { number: 5, op: Op::Enter(A), lookup: (L1, A, PgdOutcome::Kept), after_new_pgd: "R1 | [R1,R2,-]", after_reload: "R1 | [R1,R2,-]", requests: PGD }, role: L2, violated: true, counts: &[("R1", 2), ("R2", 1)] },
    Stored { row: Row { number: 6, op: Op::Exit(B), lookup: (L2, B, MISS), after_new_pgd: "- | [R1,R1,R2]", after_reload: "R2 | [R1,R1,R2]", requests: Requests::empty() }, role: L1, violated: false, counts: &[("R1", 2), ("R2", 2)] },
];

/// E.4.2: patches 06 and 07 as posted.
#[test]
fn stored_role_in_the_old_order() {
    for flush in TransitionFlush::ALL {
        let what = format!("E.4.2, {flush:?}");
        let mut machine = machine(at("seed/07"));
        machine.flush = flush;
        first_run(&mut machine, &what);
        for row in &ROTATION[..2] {
            check(&mut machine, row, &what);
        }
        for Stored { row, role, violated, counts } in STORED_ROLE {
            check(&mut machine, row, &what);
            assert_eq!(machine.cpus[0].mmu.root_mmu.root_role, PageRole(*role), "{what}, row {}", row.number);
            let found: Vec<_> = machine.at_entry(0).iter().map(mmu::audit::Finding::kind).collect();
            let want = violated.then(|| (Audit::RootRole, MmuId::Root, vec!["guest_mode"]));
            assert_eq!(found, Vec::from_iter(want), "{what}, row {}", row.number);
            for (root, count) in *counts {
                assert_eq!(root_count(&machine, root), *count, "{what}, row {}, {root}", row.number);
            }
        }
    }
}

/// Leaves `- | [R1,R2,R4]`, as after a flush that freed the current root.
fn empty_current(point: &str) -> Machine {
    let mut machine = machine(at(point));
    for cr3 in [A, C, B, A, E] {
        machine.mov_cr3(0, cr3);
        machine.run(0);
    }
    assert_eq!(cache(&machine), "R5 | [R1,R2,R4]");
    machine.mmu(0, |ctx, vcpu, _| ctx.free_roots(vcpu, MmuId::Root, Which::Current));
    assert_eq!(cache(&machine), "- | [R1,R2,R4]");
    machine
}

/// E.4.3: the look-up with an empty current slot, point by point.
#[test]
fn empty_current_slot() {
    for point in support::merged_points() {
        let is_old = !at(point).has(Change::CacheKeepsCurrent);
        for (op, found, want_old, want_new) in [
            (Op::MovCr3(B), hit(1), "R2 | [-,R1,R4]", "R2 | [R1,R4,-]"),
            (Op::Enter(A), MISS, "- | [-,R1,R2]", "- | [R1,R2,R4]"),
        ] {
            let mut machine = empty_current(point);
            apply(&mut machine, op);
            assert_eq!(last_lookup(&machine).2, found, "{op:x?} at {point}");
            assert_eq!(cache(&machine), if is_old { want_old } else { want_new }, "{op:x?} at {point}");
            assert!(machine.at_rest().is_empty(), "{op:x?} at {point}");
        }
    }
}

/// What becomes of v5.17's hole at the most recent slot. E.4.3 says that a later miss evicts R4 one step late. By A.5.1
/// it is one step early: the miss after `R2 | [-,R1,R4]` rotates R4, the last slot, into the current one, from where it
/// is freed, although a slot is free; without the hole, as at v5.18, R4 goes only at the second miss. The hole itself
/// moves one slot a miss and costs R1 too.
#[test]
fn a_hole_evicts_one_step_early() {
    for (point, states) in [
        ("v5.17", ["R2 | [-,R1,R4]", "R5 | [R2,-,R1]", "R3 | [R5,R2,-]"]),
        ("v5.18", ["R2 | [R1,R4,-]", "R5 | [R2,R1,R4]", "R3 | [R5,R2,R1]"]),
    ] {
        let mut machine = empty_current(point);
        for (op, state) in [Op::MovCr3(B), Op::MovCr3(E), Op::Enter(A)].into_iter().zip(states) {
            apply(&mut machine, op);
            machine.run(0);
            assert_eq!(cache(&machine), state, "{op:x?} at {point}");
        }
    }
}

/// E.4.4, line by line: zapped roots are invalid, a look-up passes them by, a fault retries, the request frees all.
#[test]
fn obsolete_roots() {
    for (point, request) in [("v5.17", Requests::MMU_RELOAD), ("v5.18", Requests::MMU_FREE_OBSOLETE_ROOTS)] {
        let mut machine = machine(at(point));
        Space::new(Layout::Four, A >> 12).map(&mut machine, 0x40_0000, 0x30_0000 | ALL);
        for cr3 in [B, C, A] {
            machine.mov_cr3(0, cr3);
            machine.run(0);
        }
        assert_eq!(cache(&machine), "R1 | [R4,R2,-]");
        machine.zap_all_fast();
        assert_eq!(cache(&machine), "R1! | [R4!,R2!,-]", "{point}: every root in use is invalid");
        assert!(machine.cpus[0].mmu.requests.contains(request), "{point}");
        assert_eq!(machine.fault(0, 0x40_0000, R), FaultOutcome::Retry, "{point}: is_page_fault_stale");
        apply(&mut machine, Op::MovCr3(B));
        assert_eq!(last_lookup(&machine), (L1, B, MISS), "{point}: bit 11 differs");
        assert_eq!(cache(&machine), "- | [R1!,R4!,R2!]", "{point}: rotated, not matched");
        let words: Vec<_> = machine.vm.pages.all().map(|(_, page)| page.role.0).collect();
        assert_eq!(words, [L1 | INVALID; 3], "{point}");
        machine.service(0);
        assert_eq!(cache(&machine), "- | [-,-,-]", "{point}: the request frees all");
        assert_eq!(machine.vm.pages.all().count(), 0, "{point}: and an invalid page without a root is gone");
        machine.reload(0);
        assert_eq!(cache(&machine), "R2 | [-,-,-]", "{point}");
        assert!(machine.at_entry(0).is_empty() && machine.at_rest().is_empty(), "{point}");
    }
}

/// E.4.4 and A.5.5: a root made after the zap, with the request still pending, survives only the newer request.
#[test]
fn a_root_newer_than_the_zap() {
    for (point, kept) in [("v5.17", "- | [-,-,-]"), ("v5.18", "R2 | [-,-,-]")] {
        let mut machine = machine(at(point));
        machine.run(0);
        machine.zap_all_fast();
        machine.mov_cr3(0, B);
        machine.reload(0);
        assert_eq!(cache(&machine), "R2 | [R1!,-,-]", "{point}");
        machine.service(0);
        assert_eq!(cache(&machine), kept, "{point}");
    }
}

/// E.4.4: "posted to all vCPUs".
#[test]
fn every_vcpu_is_told() {
    for (point, request) in [("v5.17", Requests::MMU_RELOAD), ("v5.18", Requests::MMU_FREE_OBSOLETE_ROOTS)] {
        let mut machine = Machine::new(at(point), TdpMode::Off, mode::long(), A, 3);
        for cpu in 0..3 {
            machine.run(cpu);
        }
        machine.zap_all_fast();
        for cpu in &machine.cpus {
            assert!(cpu.mmu.requests.contains(request), "{point}");
        }
        // All three share one shadow page, which lives until the last lets go.
        for cpu in 0..3 {
            assert_eq!(machine.vm.pages.all().count(), 1, "{point}");
            machine.service(cpu);
        }
        assert_eq!(machine.vm.pages.all().count(), 0, "{point}");
    }
}
