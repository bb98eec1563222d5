//! Roots of every kind, made and given up (kvm-mmu.md A.5.3, A.5.4), and what goes wrong when levels that no longer
//! describe a root decide how it is freed (B.3.6, E.1.1).

#[expect(dead_code, reason = "each test uses its part of the machine")]
mod support;

use mmu::change::Change;
use mmu::fault::FaultOutcome;
use mmu::guest_walk::WalkFault;
use mmu::load::pae_target;
use mmu::request::Requests;
use mmu::role::PageRole;
use mmu::state::{Mmu, RoleRegs, TdpMode};
use sim_core::addr::{Hfn, Hpa};
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::PageFaultError;
use sim_core::event::{Event, MmuId, PgdOutcome};
use support::guest::{EPT_ALL, Layout, Space};
use support::{F, Guest, Machine, R, RAM_AT, TransitionFlush, UNBACKED, W, at, host, merged_points, mode};

const A: u64 = 0x10_0000;
const B: u64 = 0x11_0000;
const NESTED: u64 = 0x20_0000;
const NESTED_2: u64 = 0x21_0000;

/// The four entries of `pae_root`, as they are.
fn pae_entries(machine: &Machine, mmu: &Mmu) -> [u64; 4] {
    let table = mmu.pae_root.expect("a pae_root");
    [0, 1, 2, 3].map(|index| machine.ground.mem.read_u64(table.base().offset(index * 8)))
}

fn root_count(machine: &Machine, table: Hpa) -> u32 {
    machine.vm.pages.at(table).expect("a shadow page").root_count
}

/// Makes four PDPTEs at `cr3`: entry i leads to `tables[i]`, 0 is not present.
fn write_pdptes(machine: &mut Machine, cr3: u64, tables: [u64; 4]) {
    for (index, table) in tables.into_iter().enumerate() {
        machine.write(cr3 + index as u64 * 8, if table == 0 { 0 } else { table | 1 }, 8);
    }
}

/// Nothing is left once every root is given up and every page is made obsolete.
fn assert_nothing_left(machine: &mut Machine, what: &str) {
    for cpu in 0..machine.cpus.len() {
        machine.unload(cpu);
    }
    machine.zap_all_fast();
    assert_eq!(machine.vm.pages.all().count(), 0, "{what}");
    assert_eq!(machine.vm.pages.reverse_map().count(), 0, "{what}");
    assert!(machine.vm.warned.is_empty(), "{what}: {:?}", machine.vm.warned);
}

/// A.5.4: `pae_root[i]` is the shadow of what PDPTE i leads to; all 16 combinations of present PDPTEs.
#[test]
fn pae_roots_follow_the_pdptes() {
    let mut cases = 0;
    for point in merged_points() {
        for present in 0..16u64 {
            let what = format!("PDPTEs {present:#06b} at {point}");
            let mut machine = Machine::new(at(point), TdpMode::Off, mode::pae(), A, 1);
            let tables = [0, 1, 2, 3].map(|index| (present >> index & 1) * (0x30_0000 + index * 0x1000));
            write_pdptes(&mut machine, A, tables);
            machine.load_pdptes(0, A);
            machine.run(0);
            let mmu = machine.cpus[0].mmu.root_mmu.clone();
            assert_eq!((mmu.root.hpa, mmu.root.pgd), (mmu.pae_root.expect("pae_root").base(), A), "{what}");
            for (entry, table) in pae_entries(&machine, &mmu).into_iter().zip(tables) {
                assert_eq!(entry != 0, table != 0, "{what}");
                if entry != 0 {
                    let page = machine.vm.pages.at(pae_target(entry)).expect("a shadow page");
                    assert_eq!((page.role.0, page.root_count), (0x3702, 1), "{what}");
                    assert_eq!(page.gfn.base().0, table, "{what}");
                }
            }
            assert!(machine.at_entry(0).is_empty(), "{what}: {:?}", machine.at_entry(0));
            machine.unload(0);
            assert_eq!(pae_entries(&machine, &mmu), [0; 4], "{what}: given up");
            assert!(machine.at_rest().is_empty(), "{what}");
            assert_nothing_left(&mut machine, &what);
            cases += 1;
        }
    }
    assert_eq!(cases, merged_points().len() * 16);
}

/// PDPTEs that lead to one table share one shadow page, counted once an entry (E.6).
#[test]
fn pae_roots_may_share_a_page() {
    let mut machine = Machine::new(at("v5.18"), TdpMode::Off, mode::pae(), A, 1);
    write_pdptes(&mut machine, A, [0x30_0000, 0x31_0000, 0x30_0000, 0x30_0000]);
    machine.load_pdptes(0, A);
    machine.run(0);
    let entries = pae_entries(&machine, &machine.cpus[0].mmu.root_mmu);
    assert_eq!(entries.map(|entry| root_count(&machine, pae_target(entry))), [3, 1, 3, 3]);
    assert!(machine.at_rest().is_empty() && machine.at_entry(0).is_empty());
    assert_nothing_left(&mut machine, "shared PDPTEs");
}

/// A.5.4 and A.9.5: changed PDPTEs give the current root up, the same ones do not.
#[test]
fn changed_pdptes_free_the_root() {
    for point in merged_points() {
        let mut machine = Machine::new(at(point), TdpMode::Off, mode::pae(), A, 1);
        write_pdptes(&mut machine, A, [0x30_0000, 0, 0, 0]);
        machine.load_pdptes(0, A);
        machine.run(0);
        machine.load_pdptes(0, A);
        assert!(machine.cpus[0].mmu.root_mmu.root.is_valid(), "{point}: unchanged");
        write_pdptes(&mut machine, A, [0x30_0000, 0x31_0000, 0, 0]);
        machine.load_pdptes(0, A);
        assert!(!machine.cpus[0].mmu.root_mmu.root.is_valid(), "{point}: changed");
        assert!(machine.at_rest().is_empty(), "{point}");
    }
}

/// A.1.1 quadrant, A.5.4: a 32-bit guest's one directory has four shadows; CR0.PG = 0 has four direct pages.
#[test]
fn legacy_and_unpaged_roots() {
    for point in merged_points() {
        let nx = if mmu::change::Point::by_name(point).expect("point").changes().contains(&Change::ShadowRoleNx) {
            0x1000
        } else {
            0
        };
        for (regs, word, pgd) in [(mode::legacy(), 0x2712, A), (mode::unpaged(), 0x782, 0)] {
            let what = format!("{regs:?} at {point}");
            let mut machine = Machine::new(at(point), TdpMode::Off, regs, A, 1);
            machine.run(0);
            let mmu = machine.cpus[0].mmu.root_mmu.clone();
            assert_eq!(mmu.root.pgd, pgd, "{what}");
            for (index, entry) in pae_entries(&machine, &mmu).into_iter().enumerate() {
                let page = machine.vm.pages.at(pae_target(entry)).expect("a shadow page");
                let (quadrant, gfn) = if pgd == A { (index as u32, A >> 12) } else { (0, (index as u64) << 18) };
                assert_eq!(page.role, PageRole(word | nx).with_quadrant(quadrant), "{what}, entry {index}");
                assert_eq!((page.gfn.0, page.root_count), (gfn, 1), "{what}, entry {index}");
            }
            assert!(machine.at_entry(0).is_empty(), "{what}: {:?}", machine.at_entry(0));
            // A root without a shadow page is never cached: A.5.4, last line.
            machine.mov_cr3(0, B);
            assert_eq!(pae_entries(&machine, &mmu), [0; 4], "{what}: freed by MOV CR3");
            machine.run(0);
            assert!(machine.cpus[0].mmu.root_mmu.prev.iter().all(|root| !root.is_valid()), "{what}");
            assert!(machine.at_rest().is_empty(), "{what}");
            assert_nothing_left(&mut machine, &what);
        }
    }
}

/// A direct root of CR0.PG = 0 maps memory one to one, whatever the access; 32 bits of it.
#[test]
fn unpaged_root_maps_one_to_one() {
    let mut machine = Machine::new(at("v5.17"), TdpMode::Off, mode::unpaged(), A, 1);
    machine.run(0);
    for (gpa, error) in [(0, R), (0x12_3000, W), (0x40_1000, F), (0xff_f000, W)] {
        assert_eq!(machine.fault(0, gpa, error), FaultOutcome::Fixed);
        let mapped = host::walk(&machine, 0, gpa).expect("mapped");
        assert_eq!(mapped.frame, Hfn(RAM_AT.0 + (gpa >> 12)));
        assert!(mapped.write && mapped.user && mapped.execute, "{gpa:#x}");
    }
    assert_nothing_left(&mut machine, "unpaged");
}

/// A.5.4: a root outside every slot is a triple fault and no root.
#[test]
fn a_root_outside_the_slots_is_a_triple_fault() {
    for regs in [mode::long(), mode::legacy()] {
        let mut machine = Machine::new(at("v5.17"), TdpMode::Off, regs, UNBACKED.base().0, 1);
        assert!(machine.run(0).is_empty());
        assert!(machine.cpus[0].mmu.requests.contains(Requests::TRIPLE_FAULT));
        assert!(!machine.cpus[0].mmu.root_mmu.root.is_valid());
        assert!(machine.at_rest().is_empty());
    }
}

/// A.8.6, A.3.3: TDP roots are shared by role alone, WP and NX belong to it until v5.19, and the last slot's release
/// takes the whole tree, until v6.4 keeps it.
#[test]
fn tdp_roots_are_shared_by_role() {
    let no_wp = RoleRegs { cr0: Cr0::PG, ..mode::long() };
    for (point, roots) in [("v5.17", 2), ("v5.18", 2), ("v5.19", 1), ("v6.14", 1)] {
        for tdp in [TdpMode::Ept, TdpMode::Npt] {
            let mut machine = Machine::new(at(point), tdp, mode::long(), A, 3);
            machine.set_regs(2, no_wp, B);
            for cpu in 0..3 {
                machine.run(cpu);
            }
            let root = |machine: &Machine, cpu: usize| machine.cpus[cpu].mmu.root_mmu.root.hpa;
            let all: std::collections::BTreeSet<_> = (0..3).map(|cpu| root(&machine, cpu)).collect();
            assert_eq!(all.len(), roots, "{point} {tdp:?}");
            assert_eq!(root_count(&machine, root(&machine, 0)), 4 - roots as u32, "{point} {tdp:?}");
            // MOV CR3 keeps a direct root whatever the CR3 (3651c7fc2bf6).
            machine.mov_cr3(0, B);
            assert_eq!(root(&machine, 0), root(&machine, 1), "{point} {tdp:?}");
            assert_eq!(machine.fault(0, 0x40_0000, W), FaultOutcome::Fixed);
            let pages = machine.vm.pages.all().count();
            machine.unload(0);
            assert_eq!(machine.vm.pages.all().count(), pages, "{point} {tdp:?}: another slot holds the tree");
            for cpu in 1..3 {
                machine.unload(cpu);
            }
            if machine.vm.changes.has(Change::TdpRootsPersist) {
                // edbdb43fc96b: kept until all roots are invalidated.
                assert_eq!(machine.vm.pages.all().count(), pages, "{point} {tdp:?}: kept without a slot");
                machine.mmu(0, |ctx, _, _| ctx.zap_all_fast());
            }
            assert_eq!(machine.vm.pages.all().count(), 0, "{point} {tdp:?}: freed with the last slot");
            assert_nothing_left(&mut machine, point);
        }
    }
}

fn npt_machine(point: &str, regs: RoleRegs) -> Machine {
    let mut machine = Machine::new(at(point), TdpMode::Npt, regs, A, 1);
    for at in [NESTED, NESTED_2] {
        write_pdptes(&mut machine, at, [0, 1, 2, 3].map(|index| 0x30_0000 + index * 0x1000));
    }
    machine
}

fn nested(regs: RoleRegs, root: u64) -> Guest {
    Guest { regs, cr3: A, nested: Some(root) }
}

/// A.5.4 `mmu_alloc_special_roots`: 32-bit nested paging under 64-bit nested paging is `pml4_root`, `pae_root`, four
/// directories.
#[test]
fn special_roots() {
    for point in merged_points() {
        for (l1, word) in [(mode::pae(), 0x1702), (mode::legacy(), 0x712)] {
            let what = format!("{l1:?} at {point}");
            let mut machine = npt_machine(point, l1);
            machine.run(0);
            machine.enter(0, nested(mode::long(), NESTED));
            machine.run(0);
            let mmu = machine.cpus[0].mmu.guest_mmu.clone();
            let (pml4, pae) = (mmu.pml4_root.expect("pml4_root"), mmu.pae_root.expect("pae_root"));
            assert_eq!((mmu.root.hpa, mmu.root.pgd), (pml4.base(), NESTED), "{what}");
            // Present, writable, user, accessed: APM2 5.4.
            assert_eq!(machine.ground.mem.read_u64(pml4.base()), pae.base().0 | 0x27, "{what}");
            let guest_mode = mmu.root_role.guest_mode();
            assert_eq!(guest_mode, u32::from(at(point).has(Change::NnptGuestModeFirst)), "{what}: C-2");
            for (index, entry) in pae_entries(&machine, &mmu).into_iter().enumerate() {
                let quadrant = if l1 == mode::legacy() { index as u32 } else { 0 };
                let role = PageRole(word).with_quadrant(quadrant).with_guest_mode(guest_mode);
                assert_eq!(machine.vm.pages.at(pae_target(entry)).expect("page").role, role, "{what}, entry {index}");
                assert_eq!(entry & 0xfff, 0x27, "{what}, entry {index}");
            }
            let open: Vec<_> = machine.at_entry(0).into_iter().filter(|found| found.known.is_none()).collect();
            assert!(open.is_empty(), "{what}: {open:?}");
            machine.exit(0, l1, A);
            machine.run(0);
            assert!(machine.at_rest().is_empty(), "{what}: {:?}", machine.at_rest());
            assert_nothing_left(&mut machine, &what);
        }
    }
}

/// L1 changes from one kind of nested paging to the other and back, with guest_mmu's root still there. A mode switch
/// by L1 itself unloads both MMUs (A.4.9), so this takes a vmcb01 that userspace wrote (`KVM_SET_NESTED_STATE`).
fn switch_nested_kind(machine: &mut Machine, to: RoleRegs, root: u64) {
    machine.exit(0, to, A);
    machine.run(0);
    machine.enter(0, nested(mode::long(), root));
    machine.run(0);
}

/// A nested CR3 for each kind of table.
fn root_of(l1: RoleRegs) -> u64 {
    if l1 == mode::long() { NESTED_2 } else { NESTED }
}

fn nested_machine(point: &str, l1: RoleRegs) -> Machine {
    let mut machine = npt_machine(point, l1);
    machine.run(0);
    machine.enter(0, nested(mode::long(), root_of(l1)));
    machine.run(0);
    assert!(machine.at_rest().is_empty(), "{point}");
    machine
}

/// B.3.6 (a) at patch 06: the special root is cached, its four references leak, giving it up has no shadow page.
#[test]
fn patch_06_caches_a_special_root() {
    let mut machine = nested_machine("seed/06", mode::pae());
    let special = machine.cpus[0].mmu.guest_mmu.clone();
    let leaked = pae_entries(&machine, &special).map(pae_target);
    switch_nested_kind(&mut machine, mode::long(), NESTED_2);
    let mmu = &machine.cpus[0].mmu.guest_mmu;
    assert_eq!(mmu.prev[0], special.root, "pml4_root is a previous root");
    assert_eq!(leaked.map(|table| root_count(&machine, table)), [1; 4]);
    let found = machine.at_rest();
    assert_eq!(found.len(), 5, "one cached root without a page, four counts without a slot: {found:?}");
    assert!(machine.vm.warned.is_empty());
    machine.unload(0);
    assert_eq!(machine.vm.warned.len(), 1, "{:?}", machine.vm.warned);
    // The current root is gone now, so nothing frees the old entries before the next 32-bit VMRUN makes new ones.
    machine.vm.warned.clear();
    switch_nested_kind(&mut machine, mode::pae(), NESTED);
    let valid = "pae_root entry still valid when a new one is made (IS_VALID_PAE_ROOT)";
    assert_eq!(machine.vm.warned.iter().map(|warned| warned.what).collect::<Vec<_>>(), [valid; 4]);
    assert_eq!(leaked.map(|table| root_count(&machine, table)), [2; 4], "one of each for ever");
}

/// B.3.6 (a) says that the next 32-bit VMRUN warns of IS_VALID_PAE_ROOT. If the 64-bit root is still current then, it
/// does not: `free_roots` under the new levels takes the 64-bit root for a PAE one and frees the old four entries in
/// its stead. The 64-bit root leaks instead, silently.
#[test]
fn patch_06_without_an_unload_leaks_silently() {
    let mut machine = nested_machine("seed/06", mode::pae());
    switch_nested_kind(&mut machine, mode::long(), NESTED_2);
    let root = machine.cpus[0].mmu.guest_mmu.root.hpa;
    switch_nested_kind(&mut machine, mode::pae(), NESTED);
    assert!(machine.vm.warned.is_empty());
    assert_eq!(root_count(&machine, root), 1, "held by nobody");
    let entries = pae_entries(&machine, &machine.cpus[0].mmu.guest_mmu);
    assert_eq!(entries.map(|entry| root_count(&machine, pae_target(entry))), [1; 4]);
}

/// B.3.6 (b) at patch 06: a 64-bit root freed as a PAE one is never counted down and outlives even a zap.
#[test]
fn patch_06_leaks_a_long_root() {
    let mut machine = nested_machine("seed/06", mode::long());
    let root = machine.cpus[0].mmu.guest_mmu.root.hpa;
    switch_nested_kind(&mut machine, mode::pae(), NESTED);
    assert_eq!(root_count(&machine, root), 1);
    assert_eq!(machine.at_rest().len(), 1, "{:?}", machine.at_rest());
    machine.unload(0);
    machine.zap_all_fast();
    machine.service(0);
    let page = machine.vm.pages.at(root).expect("zapped but in use for ever");
    assert_eq!((page.role.invalid(), page.root_count), (1, 1));
}

/// B.3.6, last sentence: no merged commit has either, in both directions and through a mode switch of L1's own; and
/// 594bef793108 under patch 06 mends (b).
#[test]
fn merged_commits_free_what_is_there() {
    for point in merged_points() {
        for (first, second) in [(mode::pae(), mode::long()), (mode::legacy(), mode::long())] {
            for (from, to) in [(first, second), (second, first)] {
                let mut machine = nested_machine(point, from);
                for regs in [to, from, to] {
                    switch_nested_kind(&mut machine, regs, root_of(regs));
                    assert!(machine.at_rest().is_empty(), "{from:?} to {to:?} at {point}: {:?}", machine.at_rest());
                }
                assert_nothing_left(&mut machine, point);
            }
        }
    }
    let mut machine = nested_machine("seed/06", mode::long());
    machine.vm.changes = machine.vm.changes.with(Change::FreeBySp);
    switch_nested_kind(&mut machine, mode::pae(), NESTED);
    assert!(machine.at_rest().is_empty());
    // L1's own mode switch unloads guest_mmu while its levels still describe its root: clean even at patch 06.
    let mut machine = nested_machine("seed/06", mode::pae());
    machine.exit(0, mode::pae(), A);
    machine.set_regs(0, mode::long(), A);
    machine.enter(0, nested(mode::long(), NESTED_2));
    machine.run(0);
    assert!(machine.at_rest().is_empty());
    assert_nothing_left(&mut machine, "mode switch at patch 06");
}

/// A.3.6 gives nested NPT the host's level whatever L1's own, so PAE and 64-bit nested tables have one base role, and
/// with one nested CR3 a look-up takes the root of one for the other (derived; the extended role that tells them apart
/// is not looked up). 32-bit tables have `has_4_byte_gpte` and are told apart.
#[test]
fn pae_and_long_nested_tables_have_one_role() {
    for point in merged_points() {
        for (to, kept) in [(mode::pae(), true), (mode::legacy(), false)] {
            let mut machine = nested_machine(point, mode::long());
            let long = machine.cpus[0].mmu.guest_mmu.clone();
            machine.exit(0, to, A);
            machine.run(0);
            machine.enter(0, nested(mode::long(), NESTED_2));
            let mmu = &machine.cpus[0].mmu.guest_mmu;
            assert_eq!(mmu.root == long.root, kept, "{to:?} at {point}");
            assert_eq!(mmu.root_role == long.root_role, kept, "{to:?} at {point}");
            assert_ne!(mmu.root_level, long.root_level, "{to:?} at {point}");
        }
    }
}

/// TDP off, a 64-bit L1 at A, a PAE L2 whose PDPTEs are at B.
fn pae_l2(point: &str) -> Machine {
    let mut machine = Machine::new(at(point), TdpMode::Off, mode::long(), A, 1);
    machine.flush = TransitionFlush::VmxUntagged;
    write_pdptes(&mut machine, B, [0, 1, 2, 3].map(|index| 0x30_0000 + index * 0x1000));
    machine.run(0);
    machine
}

const L2_PAE: fn() -> Guest = || Guest { regs: mode::pae(), cr3: B, nested: None };

/// E.1.1 steps 1 to 3, up to the state that steps 4 and 5 start from; gives the four directories' shadows back.
fn swap_only_up_to_step_3() -> (Machine, Mmu, [Hpa; 4]) {
    let mut machine = pae_l2("swap-only");
    machine.enter(0, L2_PAE());
    machine.run(0);
    // Step 1.
    let pae = machine.cpus[0].mmu.root_mmu.clone();
    assert_eq!((pae.shadow_root_level, pae.root_level), (3, 3));
    assert_eq!(pae.root.hpa, pae.pae_root.expect("pae_root").base());
    let tables = pae_entries(&machine, &pae).map(pae_target);
    assert_eq!(tables.map(|table| root_count(&machine, table)), [1; 4]);
    assert!(machine.at_rest().is_empty() && machine.at_entry(0).is_empty());
    // Steps 2 and 3.
    machine.exit(0, mode::long(), A);
    let mmu = &machine.cpus[0].mmu.root_mmu;
    assert_eq!((mmu.shadow_root_level, mmu.root_level), (4, 4), "step 2: initialised first");
    let lookup = machine.ground.log.records().iter().rev().find_map(|record| match &record.event {
        Event::PgdLookup { outcome, prev, .. } => Some((*outcome, prev[0].hpa, prev[0].role)),
        _ => None,
    });
    assert_eq!(lookup, Some((PgdOutcome::Miss, pae.root.hpa, None)), "step 3: pae_root rotated into p0");
    assert_eq!(pae_entries(&machine, &pae).map(pae_target), tables, "step 3: its entries are still there");
    machine.run(0);
    assert_eq!(machine.at_rest().len(), 5, "{:?}", machine.at_rest());
    assert!(machine.vm.warned.is_empty(), "step 3 is silent");
    (machine, pae, tables)
}

/// E.1.1 step 4: a VM-Enter to L2 with other PDPTEs. Reading them frees L1's root while the levels still fit, so the
/// old entries are found when new ones are made.
#[test]
fn swap_only_step_4_warns_if_the_pdptes_changed() {
    let (mut machine, _, tables) = swap_only_up_to_step_3();
    write_pdptes(&mut machine, B, [0, 1, 2, 3].map(|index| 0x38_0000 + index * 0x1000));
    machine.enter(0, L2_PAE());
    machine.run(0);
    let valid = "pae_root entry still valid when a new one is made (IS_VALID_PAE_ROOT)";
    assert_eq!(machine.vm.warned.iter().map(|warned| warned.what).collect::<Vec<_>>(), [valid; 4]);
    assert_eq!(tables.map(|table| root_count(&machine, table)), [1; 4], "held by nobody");
}

/// E.1.1 step 4 with the same PDPTEs: no warning, against the reference. `free_roots` under levels 3/3 takes L1's root
/// for a PAE one, frees the old four entries in its stead, and L1's root leaks.
#[test]
fn swap_only_step_4_is_silent_if_the_pdptes_did_not_change() {
    let (mut machine, _, tables) = swap_only_up_to_step_3();
    let l1 = machine.cpus[0].mmu.root_mmu.root.hpa;
    machine.enter(0, L2_PAE());
    machine.run(0);
    assert!(machine.vm.warned.is_empty());
    assert_eq!(tables.map(|table| root_count(&machine, table)), [1; 4], "the entries in use now");
    assert_eq!(root_count(&machine, l1), 1, "held by nobody");
}

/// E.1.1 step 5: giving `pae_root` up as a previous root finds no shadow page.
#[test]
fn swap_only_step_5_unloads_a_root_without_a_page() {
    let (mut machine, pae, _) = swap_only_up_to_step_3();
    machine.unload(0);
    assert_eq!(machine.vm.warned.len(), 1, "{:?}", machine.vm.warned);
    let mmu = &machine.cpus[0].mmu.root_mmu;
    assert!(!mmu.root.is_valid() && mmu.prev.iter().all(|root| !root.is_valid()));
    assert!(pae_entries(&machine, &pae).iter().all(|entry| *entry != 0), "the four references stay");
}

/// The same steps at every merged point: nothing.
#[test]
fn merged_commits_survive_the_swap() {
    for point in merged_points() {
        for pdptes in [0x30_0000, 0x38_0000] {
            let mut machine = pae_l2(point);
            for _ in 0..3 {
                machine.enter(0, L2_PAE());
                machine.run(0);
                assert!(machine.at_rest().is_empty() && machine.at_entry(0).is_empty(), "{point}");
                machine.exit(0, mode::long(), A);
                machine.run(0);
                assert!(machine.at_rest().is_empty() && machine.at_entry(0).is_empty(), "{point}");
                write_pdptes(&mut machine, B, [0, 1, 2, 3].map(|index| pdptes + index * 0x1000));
            }
            assert_nothing_left(&mut machine, point);
        }
    }
}

/// A.8.6 against A.5.3: nested EPT roots are shadow pages, cached by EPTP, and outlive their last slot until zapped.
#[test]
fn nested_ept_roots_are_cached_by_eptp() {
    for point in merged_points() {
        let mut machine = Machine::new(at(point), TdpMode::Ept, mode::long(), A, 1);
        let mut space = Space::new(Layout::Ept, NESTED >> 12);
        space.map(&mut machine, 0x40_0000, 0x50_0000 | EPT_ALL);
        let (first, second) = (NESTED | 0x5e, NESTED_2 | 0x5e);
        machine.run(0);
        let mut roots = Vec::new();
        for eptp in [first, second, first] {
            machine.enter(0, nested(mode::long(), eptp));
            machine.run(0);
            assert!(machine.at_entry(0).is_empty(), "{point}: {:?}", machine.at_entry(0));
            let root = machine.cpus[0].mmu.guest_mmu.root;
            assert_eq!(machine.vm.pages.at(root.hpa).expect("page").role.0, 0x2_0704, "{point}");
            assert_eq!(root.pgd, eptp, "{point}");
            roots.push(root.hpa);
            machine.exit(0, mode::long(), A);
            machine.run(0);
        }
        assert_eq!(roots[0], roots[2], "{point}");
        let id = MmuId::Guest;
        assert_eq!(machine.cpus[0].mmu.get(id).prev[0].hpa, roots[1], "{point}");
        machine.unload(0);
        assert_eq!(root_count(&machine, roots[0]), 0, "{point}: kept, unused");
        assert_nothing_left(&mut machine, point);
    }
}

/// KVM 0e3223d8d00a: a root in no slot is a triple fault up to v6.5; then a root of zeroes, which a slot that appears makes
/// obsolete at the next fault, and which is never cached.
#[test]
fn a_root_in_no_slot() {
    for (point, dummy) in [("v5.17", false), ("v6.4", false), ("v6.6", true), ("v6.14", true)] {
        let mut machine = Machine::new(at(point), TdpMode::Off, mode::long(), UNBACKED.base().0, 1);
        machine.mmu(0, |ctx, vcpu, view| ctx.reload(vcpu, view)).expect("host memory");
        let vcpu = &machine.cpus[0].mmu;
        assert_eq!(vcpu.requests.contains(Requests::TRIPLE_FAULT), !dummy, "{point}");
        assert_eq!(vcpu.root_mmu.root.is_valid(), dummy, "{point}");
        assert_eq!(machine.vm.is_dummy_root(vcpu.root_mmu.root.hpa), dummy, "{point}");
        if !dummy {
            continue;
        }
        assert_eq!(
            machine.fault(0, 0x1000, R),
            FaultOutcome::Inject(WalkFault::Page(PageFaultError::empty())),
            "{point}"
        );
        machine.mmu(0, |ctx, vcpu, view| ctx.new_pgd(vcpu, view, A));
        let mmu = &machine.cpus[0].mmu.root_mmu;
        assert!(mmu.prev.iter().all(|root| !root.is_valid()), "{point}: {mmu:?}");
        assert_nothing_left(&mut machine, point);
    }
}
