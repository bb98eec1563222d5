//! Building the shadow of one guest translation (`FNAME(fetch)`), and the reverse: write-protecting shadowed tables and
//! letting leaf tables go out of sync (`mmu_try_to_unsync_pages`).

use crate::fault::{Backing, PreparedFault};
use crate::guest_walk::GuestWalk;
use crate::huge;
use crate::leaf::{Install, Installed, Wants};
use crate::load::pae_target;
use crate::memslot::{HostPage, first_of};
use crate::page::{GetPage, Maps};
use crate::plant::Plant;
use crate::spte::{self, ProtectFor, Purpose};
use crate::state::{Ctx, Mmu, Paging, View};
use sim_core::SimError;
use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::arch::exception::PageFaultError;
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

impl Ctx<'_> {
    /// Walks down the shadow of a guest translation, making what is missing, and installs the leaf (`FNAME(fetch)`): tables
    /// that the guest has as far down as its leaf, and below a large guest page tables of L0's own, unless the page can be
    /// large here too.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn fetch(
        &mut self,
        mmu: &Mmu,
        view: &View,
        fault: &PreparedFault,
        walk: &GuestWalk,
    ) -> Result<Installed, SimError> {
        let address = fault.address;
        let Some((mut level, mut table)) = self.shadow_start(mmu, address) else {
            return Ok(Installed::Retry);
        };
        while level > walk.level {
            let below = level.down().ok_or_else(|| SimError::internal("shadow walk below level 1"))?;
            let seen = walk.tables[usize::from(below.number()) - 1];
            let want =
                GetPage { gfn: seen.gfn, gaddr: address, level: below, maps: Maps::GuestTable, access: seen.access };
            table = self.child(mmu, table, table.offset(level.index(address) * 8), &want)?;
            level = below;
        }
        let most = if huge::maps_own_tables(mmu, walk, fault.attempt.error) { Level::L1 } else { walk.level };
        self.map_below(mmu, view, fault, (level, table), most)
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
            let sptep = table.offset(level.index(address) * 8);
            let entry = self.ground.mem.read_u64(sptep);
            goal = huge::keep_table(self.vm, goal, level, entry);
            if level == goal.level {
                break;
            }
            let below = level.down().ok_or_else(|| SimError::internal("shadow walk below level 1"))?;
            let want = GetPage { gfn: first_of(level, gfn), gaddr: address, level: below, maps: Maps::Memory, access };
            table = self.child(mmu, table, sptep, &want)?;
            if goal.forbidden && goal.possible >= level {
                self.account_nx_split(table);
            }
            level = below;
        }
        let sptep = table.offset(level.index(address) * 8);
        let wants = if attempt.error.contains(PageFaultError::W) { Wants::Write } else { Wants::Read };
        let (tables, purpose) = (Tables::MayUnsync, Purpose::Access);
        let installed = self.install(&Install { sptep, level, gfn, page, access, wants, tables, purpose });
        self.prefetch(mmu, view, sptep);
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

    /// The page below an entry: what it points to, or one linked now. A direct child whose permissions no longer fit
    /// is replaced (`validate_direct_spte`).
    fn child(&mut self, mmu: &Mmu, parent: Hpa, sptep: Hpa, want: &GetPage) -> Result<Hpa, SimError> {
        let entry = self.ground.mem.read_u64(sptep);
        let above = self.vm.pages.at(parent).and_then(|page| page.role.page_level());
        if spte::is_present(entry) && above.is_some_and(|level| spte::is_leaf(entry, level)) {
            // A large page where a table is needed now (`drop_large_spte`).
            self.drop_leaf(sptep);
        } else if spte::is_present(entry) {
            let table = spte::frame(entry).base();
            let page = self.vm.pages.at(table);
            let ignores = self.vm.plants.has(Plant::KeepDirectChild);
            let fits =
                page.is_some_and(|page| want.maps == Maps::GuestTable || ignores || page.role.access() == want.access);
            if fits {
                return Ok(table);
            }
            self.unlink(sptep);
            self.flush_remote();
        }
        let table = self.get_synced_page(mmu, want, parent)?;
        self.link_page(sptep, table);
        Ok(table)
    }

    /// A page whose tables below are in sync: linking it makes them reachable without any flush by the guest
    /// (KVM 65855ed8b034).
    fn get_synced_page(&mut self, mmu: &Mmu, want: &GetPage, parent: Hpa) -> Result<Hpa, SimError> {
        let table = self.get_page(mmu, want, Some(parent))?;
        if want.maps == Maps::Memory {
            return Ok(table);
        }
        for unsync in self.unsync_below(table) {
            self.sync_page(mmu, unsync)?;
        }
        // A page of another role is zapped by its sync; then there is a new one to be had.
        if self.vm.pages.at(table).is_some() { Ok(table) } else { self.get_page(mmu, want, Some(parent)) }
    }

    /// Rewrites a 4 KiB leaf whose table is synchronised.
    pub fn set_leaf(&mut self, sptep: Hpa, gfn: Gfn, page: HostPage, access: u32, tables: Tables) {
        let (page, level) = (Some(page), Level::L1);
        let (wants, purpose) = (Wants::Read, Purpose::Prefetch);
        self.install(&Install { sptep, level, gfn, page, access, wants, tables, purpose });
    }

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
        if tables.iter().any(upper) {
            return false;
        }
        for table in tables {
            if let Some(page) = self.vm.pages.at_mut(table)
                && !page.unsync
            {
                let before = page.view();
                page.unsync = true;
                self.ground.record(Event::PageUnsync { page: before });
            }
        }
        true
    }

    /// `rmap_write_protect`: no entry may write a guest frame that now holds a shadowed table.
    pub fn write_protect(&mut self, gfn: Gfn) {
        let format = self.vm.config.tdp.spte_format();
        let mut changed = false;
        for sptep in self.vm.pages.all_mappings(gfn) {
            let old = self.ground.mem.read_u64(sptep);
            let new = format.write_protected(old, ProtectFor::ShadowedTable);
            changed |= format.is_writable(old);
            self.ground.mem.write_u64(sptep, new);
        }
        if changed && !self.vm.plants.has(Plant::NoFlushAfterWriteProtect) {
            self.flush_remote();
        }
    }
}
