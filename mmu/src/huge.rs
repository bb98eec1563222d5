//! How large the page of a fault may be (`kvm_mmu_max_mapping_level`, `kvm_mmu_hugepage_adjust`,
//! `disallowed_hugepage_adjust`, `is_self_change_mapping`; KVM v5.17), and the recovery of pages that were split because
//! they are executable (`kvm_recover_nx_lpages`).
//!
//! The host's own page size is one for all of guest memory (`Config::host_page`). Left out: MTRR consistency, which
//! limits TDP pages where guest memory types vary.

use crate::change::Change;
use crate::guest_walk::GuestWalk;
use crate::memslot::{AddressSpace, DirtyLogging, first_of};
use crate::page::NxSplit;
use crate::plant::Plant;
use crate::role::ACCESS_WRITE;
use crate::spte;
use crate::state::{Ctx, Mmu, NxHugePages, Vm};
use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::arch::exception::PageFaultError;

/// The level that a fault aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The level that would be possible (`req_level`).
    pub possible: Level,
    /// The level at which the leaf goes (`goal_level`).
    pub level: Level,
    /// Whether a large page was possible, and is forbidden because the guest executes from it.
    pub forbidden: bool,
}

impl Goal {
    /// A 4 KiB page, whatever would be possible.
    pub const SMALL: Self = Self { possible: Level::L1, level: Level::L1, forbidden: false };
}

/// `kvm_mmu_max_mapping_level`: the largest page that slot, host and what is known against large pages allow.
#[must_use]
pub fn max_mapping_level(vm: &Vm, space: AddressSpace, gfn: Gfn, most: Level) -> Level {
    let most = most.min(vm.config.host_page);
    let Some(slot) = vm.slots.find(space, gfn) else { return Level::L1 };
    let whole = |level: Level| {
        let first = first_of(level, gfn);
        // A host page that was moved or protected by itself is no longer part of a large one.
        let moved = slot.moved.range(first..Gfn(first.0 + level.frames())).next().is_some();
        let ignores = vm.plants.has(Plant::LargeOverShadowedTable);
        level <= most && (ignores || slot.allows_large(level, gfn)) && !moved
    };
    [Level::L3, Level::L2].into_iter().find(|level| whole(*level)).unwrap_or(Level::L1)
}

/// `kvm_mmu_hugepage_adjust`: none for a slot whose writes are logged, which has small pages only.
#[must_use]
pub fn goal(vm: &Vm, space: AddressSpace, gfn: Gfn, most: Level, error: PageFaultError) -> Goal {
    let logged = vm.slots.find(space, gfn).is_some_and(|slot| slot.logging == DirtyLogging::On);
    if most == Level::L1 || (logged && !vm.plants.has(Plant::LargeWhileLogged)) {
        return Goal::SMALL;
    }
    let possible = max_mapping_level(vm, space, gfn, most);
    let executes = error.contains(PageFaultError::F) && vm.config.nx_huge == NxHugePages::On;
    let forbidden = executes && possible > Level::L1;
    Goal { possible, level: if forbidden { Level::L1 } else { possible }, forbidden }
}

/// `disallowed_hugepage_adjust`: where a table of small pages stands already, a large page that may not be executable
/// would only be split again at the next fetch.
#[must_use]
pub fn keep_table(vm: &Vm, goal: Goal, level: Level, entry: u64) -> Goal {
    let table_there = spte::is_present(entry) && !spte::is_leaf(entry, level);
    if vm.config.nx_huge == NxHugePages::Off || level != goal.level || level == Level::L1 || !table_there {
        return goal;
    }
    Goal { level: level.down().unwrap_or(Level::L1), ..goal }
}

/// `is_self_change_mapping`: a writable large page that holds one of the tables of its own translation would be split at
/// once, so it is mapped small from the start.
#[must_use]
pub fn maps_own_tables(mmu: &Mmu, walk: &GuestWalk, error: PageFaultError) -> bool {
    let writable =
        walk.access & ACCESS_WRITE != 0 || (mmu.cpu_role.base.cr0_wp() == 0 && !error.contains(PageFaultError::U));
    let in_page = |gfn: Gfn| first_of(walk.level, gfn) == first_of(walk.level, walk.gfn);
    let used = &walk.tables[usize::from(walk.level.number()) - 1..usize::from(mmu.root_level.max(1)).min(5)];
    writable && used.iter().any(|table| in_page(table.gfn))
}

impl Ctx<'_> {
    /// `account_huge_nx_page`.
    pub(crate) fn account_nx_split(&mut self, table: Hpa) {
        if let Some(page) = self.vm.pages.at_mut(table)
            && page.nx_split == NxSplit::No
        {
            page.nx_split = NxSplit::Yes;
            self.vm.stats.count(crate::stats::Stat::NxSplits);
        }
    }

    /// `kvm_recover_nx_lpages`: zaps one in `ratio` of the pages that stand in for a large page, oldest first, so that the
    /// large page may come back. The flush that a zap owes is one (048f49808c52).
    pub fn recover_nx_pages(&mut self, ratio: u64) {
        if self.vm.plants.has(Plant::NxRecoverySkips) {
            return;
        }
        let mut split: Vec<(u64, Hpa)> = self
            .vm
            .pages
            .all()
            .filter(|(_, page)| page.nx_split == NxSplit::Yes && page.role.invalid() == 0)
            .map(|(hfn, page)| (page.made, hfn.base()))
            .collect();
        split.sort_unstable();
        let count = if ratio == 0 { 0 } else { (split.len() as u64).div_ceil(ratio) as usize };
        for (_, table) in split.into_iter().take(count) {
            if self.may_recover(table) {
                self.zap_nx_page(table);
            } else if let Some(page) = self.vm.pages.at_mut(table) {
                page.nx_split = NxSplit::No;
            }
        }
        self.commit_zap();
    }

    /// Whether a large page could come back in place of a table: not in a slot that logs (eb298605705a). The slot was one of
    /// normal mode, whatever the table's mode, until 817fa998362d.
    fn may_recover(&mut self, table: Hpa) -> bool {
        let Some(page) = self.vm.pages.at(table) else { return false };
        if !self.vm.changes.has(Change::RecoverySkipsLogged) || self.vm.slots.logging() == DirtyLogging::Off {
            return true;
        }
        let own = self.vm.changes.has(Change::RecoverySlotSpace);
        let space = if own { AddressSpace::of_role(page.role) } else { AddressSpace::Normal };
        let Some(slot) = self.vm.slots.find(space, page.gfn) else {
            self.warn("no slot behind a table that stands in for a large page (kvm_recover_nx_huge_pages)");
            return true;
        };
        slot.logging == DirtyLogging::Off
    }

    fn zap_nx_page(&mut self, table: Hpa) {
        let Some(page) = self.vm.pages.at(table) else { return };
        if !page.is_tdp() {
            self.prepare_zap(table);
            return;
        }
        for sptep in page.parents.clone() {
            self.ground.mem.write_u64(sptep, 0);
        }
        let others = self.vm.pages.zapped.len();
        self.tdp_free_tree(table);
        if !self.vm.changes.has(Change::RecoveryFlushes) {
            // The TDP MMU said that a flush was owed, and nobody listened.
            for frame in self.vm.pages.zapped.split_off(others) {
                self.vm.frames.give(frame);
            }
        }
    }
}
