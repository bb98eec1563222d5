//! Building the shadow of one guest translation (KVM v5.17 `FNAME(fetch)`, `__direct_map`).

use crate::change::Change;
use crate::fault::{Backing, PreparedFault};
use crate::guest_walk::{EntryFormat, GuestWalk, Table, read_entry};
use crate::huge;
use crate::leaf::{Install, Installed, Wants};
use crate::load::pae_target;
use crate::memslot::first_of;
use crate::page::{GetPage, Maps};
use crate::plant::Plant;
use crate::request::Requests;
use crate::role::ACCESS_ALL;
use crate::spte::{self, Purpose};
use crate::state::{Ctx, Mmu, Paging, View};
use crate::sync::{SyncProgress, Yield};
use crate::unsync::Tables;
use sim_core::SimError;
use sim_core::addr::{Hpa, Level};
use sim_core::arch::exception::PageFaultError;

impl Ctx<'_> {
    /// Walks down the shadow of a guest translation, making what is missing, and installs the leaf (`FNAME(fetch)`): tables
    /// that the guest has as far down as its leaf, and below a large guest page tables of L0's own, unless the page can be
    /// large here too.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn fetch(
        &mut self,
        requests: &mut Requests,
        mmu: &Mmu,
        view: &View,
        (fault, walk): (&PreparedFault, &GuestWalk),
    ) -> Result<Installed, SimError> {
        let address = fault.address;
        if self.vm.is_dummy_root(mmu.root.hpa) {
            // The guest's root has become visible since the root was made.
            requests.post(self.ground, Requests::MMU_FREE_OBSOLETE_ROOTS);
            return Ok(Installed::Retry);
        }
        let Some((mut level, mut table)) = self.shadow_start(mmu, address) else {
            return Ok(Installed::Retry);
        };
        if mmu.shadow_root_level == 5 && mmu.root_level < 4 && !self.vm.changes.has(Change::Pml5ForLegacyNpt) {
            // The walk of the shadow starts above pae_root for four levels alone (12ec33a70574).
            self.warn(
                "walk from pml5_root, which has no shadow page (clear_sp_write_flooding_count: NULL dereference)",
            );
        }
        // PAE tables begin at the directory: their PDPTEs are registers.
        let top = Level::from_number(if mmu.root_level == 3 { 2 } else { mmu.root_level });
        if top.is_some_and(|top| self.guest_changed(mmu, view, walk, top)) {
            return Ok(Installed::Retry);
        }
        while level > walk.level {
            self.note_use(table);
            let below = level.down().ok_or_else(|| SimError::internal("shadow walk below level 1"))?;
            let seen = walk.tables[usize::from(below.number()) - 1];
            let access = self.inherited(walk, below);
            let want = GetPage { gfn: seen.gfn, gaddr: address, level: below, maps: Maps::GuestTable, access };
            let sptep = table.offset(level.index(address) * 8);
            let next = self.child(mmu, table, sptep, &want)?;
            if let Next::Made(made) = next
                && self.sync_before_link(requests, mmu, made) == SyncProgress::Yielded
            {
                return Ok(Installed::Retry);
            }
            // The table is write-protected now: what was read of it before must still be there.
            if self.guest_changed(mmu, view, walk, below) {
                return Ok(Installed::Retry);
            }
            table = match next {
                Next::There(table) => table,
                Next::Made(table) => {
                    self.link_page(sptep, table);
                    table
                }
            };
            level = below;
        }
        let most = if huge::maps_own_tables(mmu, walk, fault.attempt.error) { Level::L1 } else { walk.level };
        self.map_below(mmu, view, fault, (level, table), most)
    }

    /// The permissions of the table that an entry points to: what the entries above it permit. Before b1bd5cba3306 every table
    /// of a walk had what all of them permit down to the last table.
    fn inherited(&self, walk: &GuestWalk, below: Level) -> u32 {
        let above = |level: Level| walk.tables[usize::from(level.number()) - 1].access;
        if self.vm.plants.has(Plant::AccessNotInherited) {
            return ACCESS_ALL;
        }
        above(if self.vm.changes.has(Change::InheritedAccess) { below } else { walk.level })
    }

    /// What is below a table must be in sync before it can be reached without a flush by the guest (65855ed8b034). Before that
    /// commit it was left to a request, which other vCPUs did not wait for.
    fn sync_before_link(&mut self, requests: &mut Requests, mmu: &Mmu, table: Hpa) -> SyncProgress {
        let stale = self.vm.pages.at(table).is_some_and(|page| page.unsync_children > 0);
        if !stale || self.vm.plants.has(Plant::LinkWithoutSync) {
            return SyncProgress::Done;
        }
        if self.vm.changes.has(Change::SyncBeforeLink) {
            return self.sync_children(requests, mmu, table, Yield::Forbidden);
        }
        let later = if self.vm.changes.unsync_link_syncs() { Requests::MMU_SYNC } else { Requests::TLB_FLUSH_CURRENT };
        requests.post(self.ground, later);
        SyncProgress::Done
    }

    /// Guest memory mapped directly: for an unpaged guest, and under two-dimensional paging without the TDP MMU
    /// (`__direct_map`). Without paging a page is 2 MiB at most (`nonpaging_page_fault`).
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn direct_map(&mut self, mmu: &Mmu, view: &View, fault: &PreparedFault) -> Result<Installed, SimError> {
        let Some(start) = self.shadow_start(mmu, fault.address) else {
            return Ok(Installed::Retry);
        };
        let most = if mmu.paging == Paging::Tdp { Level::L3 } else { Level::L2 };
        self.map_below(mmu, view, fault, start, most)
    }

    /// The direct tables and the leaf below a table.
    fn map_below(
        &mut self,
        mmu: &Mmu,
        view: &View,
        fault: &PreparedFault,
        (mut level, mut table): (Level, Hpa),
        most: Level,
    ) -> Result<Installed, SimError> {
        let PreparedFault { address, gfn, access, attempt, .. } = *fault;
        let page = match fault.backing {
            Backing::Page(page) => Some(page),
            Backing::None | Backing::NotWritable => None,
        };
        let most = if page.is_some() { most } else { Level::L1 };
        let mut goal = huge::goal(self.vm, view.space(), gfn, most, attempt.error);
        loop {
            if fault.walk.is_some() {
                self.note_use(table);
            }
            let sptep = table.offset(level.index(address) * 8);
            let entry = self.ground.mem.read_u64(sptep);
            goal = huge::keep_table(self.vm, goal, level, entry);
            if level == goal.level {
                break;
            }
            let below = level.down().ok_or_else(|| SimError::internal("shadow walk below level 1"))?;
            let unaligned = self.vm.plants.has(Plant::DirectTableUnaligned);
            let first = if unaligned { gfn } else { first_of(level, gfn) };
            let want = GetPage { gfn: first, gaddr: address, level: below, maps: Maps::Memory, access };
            table = match self.child(mmu, table, sptep, &want)? {
                Next::There(table) => table,
                Next::Made(table) => {
                    self.link_page(sptep, table);
                    table
                }
            };
            let counts = mmu.paging != Paging::NonPaging || self.vm.changes.has(Change::NonpagingNxSplits);
            if goal.forbidden && goal.possible >= level && counts {
                self.account_nx_split(table);
            }
            level = below;
        }
        let sptep = table.offset(level.index(address) * 8);
        let wants = if attempt.error.contains(PageFaultError::W) { Wants::Write } else { Wants::Read };
        let (tables, purpose) = (Tables::MayUnsync, Purpose::Access);
        let installed = self.install(&Install { sptep, level, gfn, page, access, wants, tables, purpose });
        // What was there already has its neighbours.
        if installed != Installed::Spurious {
            self.prefetch(mmu, view, sptep);
        }
        Ok(installed)
    }

    /// `shadow_walk_init`: the table and level at which the shadow of an address begins, none if a PAE slot is empty.
    #[must_use]
    pub fn shadow_start(&self, mmu: &Mmu, address: u64) -> Option<(Level, Hpa)> {
        if mmu.walks_pae_root() {
            let slot = mmu.pae_root?.base().offset((address >> 30 & 3) * 8);
            let entry = self.ground.mem.read_u64(slot);
            return (entry != 0).then(|| (Level::L2, pae_target(entry)));
        }
        Some((Level::from_number(mmu.shadow_root_level)?, mmu.root.hpa))
    }

    /// Whether the guest's entry of a level is no longer what the walk read (`FNAME(gpte_changed)`).
    fn guest_changed(&self, mmu: &Mmu, view: &View, walk: &GuestWalk, level: Level) -> bool {
        let seen = walk.tables[usize::from(level.number()) - 1];
        let bytes = EntryFormat::of(mmu).bytes;
        let now = read_entry(self, view.space(), seen.entry_at, bytes);
        let forgets = level > walk.level && self.vm.plants.has(Plant::RecheckLeafOnly);
        let walked = level >= walk.level && seen != Table::default() && !forgets;
        walked && now != Some(seen.entry) && !self.vm.plants.has(Plant::NoGpteRecheck)
    }

    /// The page below an entry: what it points to, or one to be linked. A direct child whose permissions no longer fit is
    /// replaced (`validate_direct_spte`), as is a large page (`drop_large_spte`).
    fn child(&mut self, mmu: &Mmu, parent: Hpa, sptep: Hpa, want: &GetPage) -> Result<Next, SimError> {
        let entry = self.ground.mem.read_u64(sptep);
        let above = self.vm.pages.at(parent).and_then(|page| page.role.page_level());
        if spte::is_present(entry) && above.is_some_and(|level| spte::is_leaf(entry, level)) {
            self.drop_leaf(sptep);
        } else if spte::is_present(entry) {
            let table = spte::frame(entry).base();
            if self.vm.pages.at(table).is_none() {
                self.warn("an entry leads to a page that was freed (sptep_to_sp of its child)");
            }
            let page = self.vm.pages.at(table);
            let ignores = self.vm.plants.has(Plant::KeepDirectChild);
            let fits =
                page.is_some_and(|page| want.maps == Maps::GuestTable || ignores || page.role.access() == want.access);
            if fits {
                return Ok(Next::There(table));
            }
            self.unlink(sptep);
            self.flush_remote();
        }
        Ok(Next::Made(self.get_page(mmu, want, Some(parent))?))
    }
}

/// The table below an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The entry points to it.
    There(Hpa),
    /// It is to be linked.
    Made(Hpa),
}
