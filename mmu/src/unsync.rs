//! Leaf tables out of sync, and what every ancestor knows of them (KVM v5.17 `mmu_try_to_unsync_pages`,
//! `kvm_mmu_mark_parents_unsync`, `mmu_unsync_walk`).
//!
//! An ancestor has one bit for each entry below which something may be out of sync, and counts its bits. A bit may outlive
//! its reason; then the walk that follows it clears it. It may never be missing.

use crate::plant::Plant;
use crate::spte;
use crate::state::Ctx;
use crate::stats::Stat;
use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::event::Event;

/// What may become of shadowed tables that a new writable leaf would let the guest write (`can_unsync`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Leaf tables may go out of sync.
    MayUnsync,
    /// Those that are out of sync already do no harm, others stay in sync and the leaf is not writable: nobody has
    /// asked for the write yet (`prefetch`).
    StayAsTheyAre,
    /// They stay in sync, and the leaf is not writable.
    StayInSync,
}

/// Pages of one batch, those on the way counted too (`KVM_PAGE_ARRAY_NR`).
const BATCH: usize = 16;

/// A page that is out of sync, and the entries that lead to it from where the walk began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsync {
    pub(crate) table: Hpa,
    /// Entries on the way, the topmost first.
    pub(crate) path: Vec<Hpa>,
}

/// What a walk has found so far.
#[derive(Debug, Default)]
struct Batch {
    found: Vec<Unsync>,
    used: usize,
}

impl Ctx<'_> {
    /// `mmu_try_to_unsync_pages`: whether a guest frame may be written. Leaf tables there go out of sync; a table above
    /// level 1 forbids it.
    pub(crate) fn try_to_unsync(&mut self, gfn: Gfn, may: Tables) -> bool {
        let tables = self.vm.pages.tables_at(gfn);
        if may == Tables::StayInSync {
            return tables.is_empty();
        }
        let in_sync = |table: &Hpa| self.vm.pages.at(*table).is_some_and(|page| !page.unsync);
        if may == Tables::StayAsTheyAre && tables.iter().any(in_sync) {
            return false;
        }
        let upper = |table: &Hpa| self.vm.pages.at(*table).is_some_and(|page| page.role.level() > 1);
        if tables.iter().any(upper) && !self.vm.plants.has(Plant::UnsyncUpperTables) {
            return false;
        }
        for table in tables {
            self.unsync(table);
        }
        true
    }

    /// `kvm_unsync_page`.
    fn unsync(&mut self, table: Hpa) {
        let Some(page) = self.vm.pages.at_mut(table) else { return };
        if page.unsync {
            return;
        }
        let before = page.view();
        page.unsync = true;
        if page.role.level() != 1 && !self.vm.plants.has(Plant::UnsyncUpperTables) {
            self.warn("a table above level 1 goes out of sync (kvm_unsync_page)");
        }
        self.vm.stats.count(Stat::Unsync);
        self.ground.record(Event::PageUnsync { page: before });
        self.mark_parents(table);
    }

    /// `kvm_mmu_mark_parents_unsync`.
    fn mark_parents(&mut self, table: Hpa) {
        if self.vm.plants.has(Plant::NoUnsyncMarkInParents) {
            return;
        }
        let parents = self.vm.pages.at(table).map(|page| page.parents.clone()).unwrap_or_default();
        for sptep in parents {
            self.mark_entry(sptep);
        }
    }

    /// `mark_unsync`: the table that holds the entry knows, and if it did not know of anything before, so do those above.
    pub(crate) fn mark_entry(&mut self, sptep: Hpa) {
        let index = (sptep.page_offset() / 8) as u16;
        let Some(page) = self.vm.pages.at_mut(sptep.page_base()) else { return };
        if !page.unsync_bitmap.insert(index) {
            return;
        }
        page.unsync_children += 1;
        if page.unsync_children == 1 {
            self.mark_parents(sptep.page_base());
        }
    }

    /// Whether a page or anything below it is out of sync.
    #[must_use]
    pub fn is_unsync(&self, table: Hpa) -> bool {
        self.vm.pages.at(table).is_some_and(|page| page.unsync || page.unsync_children > 0)
    }

    /// `clear_unsync_child_bit`.
    fn clear_bit(&mut self, sptep: Hpa) {
        let index = (sptep.page_offset() / 8) as u16;
        if let Some(page) = self.vm.pages.at_mut(sptep.page_base())
            && page.unsync_bitmap.remove(&index)
        {
            page.unsync_children = page.unsync_children.saturating_sub(1);
        }
    }

    /// `mmu_pages_clear_parents`: the page is in sync again; so is every table on the way that knows of nothing else.
    pub(crate) fn clear_path(&mut self, path: &[Hpa]) {
        for sptep in path.iter().rev() {
            self.clear_bit(*sptep);
            if self.vm.pages.at(sptep.page_base()).is_some_and(|page| page.unsync_children > 0) {
                break;
            }
        }
    }

    /// `mmu_unsync_walk`: the next pages out of sync below a table, and bits that have lost their reason cleared.
    pub(crate) fn next_unsync(&mut self, table: Hpa) -> Vec<Unsync> {
        let mut batch = Batch { used: 1, ..Batch::default() };
        let mut path = Vec::new();
        self.walk_unsync(table, &mut path, &mut batch);
        batch.found
    }

    /// Below one table. False if the batch is full.
    fn walk_unsync(&mut self, table: Hpa, path: &mut Vec<Hpa>, batch: &mut Batch) -> bool {
        let Some(page) = self.vm.pages.at(table) else { return true };
        let level = page.role.page_level().unwrap_or(Level::L1);
        for index in page.unsync_bitmap.clone() {
            let sptep = table.offset(u64::from(index) * 8);
            let entry = self.ground.mem.read_u64(sptep);
            let child = spte::frame(entry).base();
            if !spte::is_present(entry) || spte::is_leaf(entry, level) || !self.is_unsync(child) {
                self.clear_bit(sptep);
                continue;
            }
            path.push(sptep);
            let room = self.take_unsync(child, path, batch);
            path.pop();
            if !room {
                return false;
            }
        }
        true
    }

    fn take_unsync(&mut self, child: Hpa, path: &mut Vec<Hpa>, batch: &mut Batch) -> bool {
        batch.used += 1;
        let (unsync, below) = self.vm.pages.at(child).map_or((false, 0), |page| (page.unsync, page.unsync_children));
        if below > 0 {
            if batch.used >= BATCH || !self.walk_unsync(child, path, batch) {
                return false;
            }
        } else if unsync {
            batch.found.push(Unsync { table: child, path: path.clone() });
        }
        batch.used < BATCH
    }
}
