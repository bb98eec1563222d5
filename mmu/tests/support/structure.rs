//! What must be true of all shadow pages together (kvm-mmu.md A.12, I11 to I15), looked at from memory, and what must
//! be true of the frames that they are made of.

use super::{Machine, RAM_FRAMES, TABLE_FRAMES};
use mmu::role::PageRole;
use mmu::state::TdpMode;
use sim_core::Ground;
use sim_core::addr::{Gfn, Hfn, Hpa};
use std::collections::{BTreeMap, BTreeSet};

const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// KVM's own mark of a present entry.
const MMU_PRESENT: u64 = 1 << 11;

/// Every broken rule.
pub(crate) fn broken(machine: &Machine) -> Vec<String> {
    let mut broken = entries(machine);
    broken.extend(frames(machine));
    broken.extend(sync_state(machine));
    broken.extend(hash(machine));
    broken
}

/// Every page of the shadow MMU that is not zapped is found by its guest frame, once, and no other page is.
fn hash(machine: &Machine) -> Vec<String> {
    let pages = &machine.vm.pages;
    let hashed = (0..RAM_FRAMES).map(Gfn).flat_map(|gfn| pages.shadowing(gfn).iter().map(move |hfn| (gfn, *hfn)));
    let mut hashed: Vec<_> = hashed.collect();
    let live = pages.all().filter(|(_, page)| !page.is_tdp() && page.role.invalid() == 0 && page.gfn.0 < RAM_FRAMES);
    let mut live: Vec<_> = live.map(|(hfn, page)| (page.gfn, hfn)).collect();
    hashed.sort_unstable();
    live.sort_unstable();
    if hashed == live { Vec::new() } else { vec![format!("hashed are {hashed:?}, alive are {live:?}")] }
}

fn present(machine: &Machine, table: Hpa) -> Vec<(Hpa, u64)> {
    let entries = (0..512).map(|index| table.offset(index * 8)).map(|at| (at, machine.ground.mem.read_u64(at)));
    entries.filter(|(_, entry)| entry & MMU_PRESENT != 0).collect()
}

/// I11, I12: entries that lead to tables are their parents, and only they; leaves are in the reverse map, and only
/// they; a child has its parent's role but for what belongs to each page.
fn entries(machine: &Machine) -> Vec<String> {
    let pages = &machine.vm.pages;
    let mut broken = Vec::new();
    let mut parents: BTreeMap<Hpa, BTreeSet<Hpa>> = BTreeMap::new();
    let mut leaves = BTreeSet::new();
    for (hfn, page) in pages.all() {
        for (at, entry) in present(machine, hfn.base()) {
            if page.role.level() == 1 {
                leaves.insert(at);
                continue;
            }
            let child = Hpa(entry & FRAME);
            parents.entry(child).or_default().insert(at);
            match pages.at(child) {
                None => broken.push(format!("I12: entry {entry:#x} at {at} leads to no page")),
                Some(child) => {
                    let foreign = (page.role.0 ^ child.role.0) & !PageRole::PER_PAGE.0;
                    let one_down = child.role.level() + 1 == page.role.level();
                    if foreign != 0 || !one_down {
                        broken.push(format!("I11: role {} below role {}", child.role, page.role));
                    }
                }
            }
        }
    }
    for (hfn, page) in pages.all() {
        let actual = parents.remove(&hfn.base()).unwrap_or_default();
        // The TDP MMU's children have one parent each and are found by it alone.
        if page.parents != actual {
            broken.push(format!("I12: role {} has parents {:?}, noted are {:?}", page.role, actual, page.parents));
        }
    }
    let mapped: BTreeSet<Hpa> = pages.reverse_map().flat_map(|(_, _, _, entries)| entries.iter().copied()).collect();
    if mapped != leaves {
        broken.push(format!("I12: leaves {leaves:?}, reverse map {mapped:?}"));
    }
    for (gfn, at) in pages.reverse_map().flat_map(|(_, _, gfn, entries)| entries.iter().map(move |at| (gfn, *at))) {
        let frame = Hfn((machine.ground.mem.read_u64(at) & FRAME) >> 12);
        let backing =
            machine.vm.slots.find(mmu::memslot::AddressSpace::Normal, gfn).and_then(|slot| slot.translate(gfn));
        if backing != Some(frame) {
            broken.push(format!("I12: the leaf at {at} maps {frame}, gfn {gfn} has {backing:?}"));
        }
    }
    broken
}

/// Each frame for tables is in use once or free once.
fn frames(machine: &Machine) -> Vec<String> {
    let (mut allocator, mut scratch) = (machine.vm.frames.clone(), Ground::new(0));
    let mut owners: BTreeMap<Hfn, Vec<&str>> = BTreeMap::new();
    while let Ok(frame) = allocator.take(&mut scratch) {
        owners.entry(frame).or_default().push("free");
    }
    for (hfn, _) in machine.vm.pages.all() {
        owners.entry(hfn).or_default().push("page");
    }
    for hfn in &machine.vm.pages.zapped {
        owners.entry(*hfn).or_default().push("zapped");
    }
    for cpu in &machine.cpus {
        for mmu in [&cpu.mmu.root_mmu, &cpu.mmu.guest_mmu] {
            for hfn in [mmu.pae_root, mmu.pml4_root].into_iter().flatten() {
                owners.entry(hfn).or_default().push("root table");
            }
        }
    }
    let once = |hfn: u64| owners.get(&Hfn(hfn)).is_some_and(|owners| owners.len() == 1);
    let wrong = TABLE_FRAMES.filter(|hfn| !once(*hfn));
    wrong.map(|hfn| format!("frame {hfn:#x} belongs to {:?}", owners.get(&Hfn(hfn)))).collect()
}

/// I13: only leaf tables of a guest go out of sync. I14: no entry may write a guest table that is in sync.
fn sync_state(machine: &Machine) -> Vec<String> {
    let pages = &machine.vm.pages;
    let mut broken = Vec::new();
    for (_, page) in pages.all() {
        if page.unsync && (page.role.level() != 1 || page.role.direct() == 1) {
            broken.push(format!("I13: role {} is unsync", page.role));
        }
        let watched = page.role.direct() == 0 && !page.unsync && page.role.invalid() == 0;
        if watched && has_writer(machine, page.gfn) {
            broken.push(format!("I14: gfn {} role {} is in sync and may be written", page.gfn, page.role));
        }
    }
    broken
}

/// I14, I15: whether an entry has W, or KVM's promise of it.
fn has_writer(machine: &Machine, gfn: Gfn) -> bool {
    let promise = if machine.vm.config.tdp == TdpMode::Ept { 1 << 58 } else { 1 << 10 };
    machine
        .vm
        .pages
        .mappings(mmu::memslot::AddressSpace::Normal, gfn)
        .iter()
        .any(|at| machine.ground.mem.read_u64(*at) & (2 | promise) != 0)
}
