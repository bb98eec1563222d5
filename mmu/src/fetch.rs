//! Building the shadow of one guest translation (`FNAME(fetch)`), and the reverse: write-protecting shadowed tables and
//! letting leaf tables go out of sync (`mmu_try_to_unsync_pages`).

use crate::fault::FaultOutcome;
use crate::guest_walk::GuestWalk;
use crate::load::pae_target;
use crate::memslot::{AddressSpace, HostAccess};
use crate::page::{GetPage, Maps};
use crate::plant::Plant;
use crate::spte::{self, AdType, Leaf, ProtectFor, Purpose, Writable};
use crate::state::{Ctx, Mmu};
use sim_core::SimError;
use sim_core::addr::{Gfn, Hfn, Hpa, Level};
use sim_core::event::Event;

/// What may become of shadowed tables that a new writable leaf would let the guest write (`can_unsync`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Leaf tables may go out of sync.
    MayUnsync,
    /// They stay in sync, and the leaf is not writable.
    StayInSync,
}

impl Ctx<'_> {
    /// Walks down the shadow of `address`, making what is missing, and installs the leaf.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn fetch(
        &mut self,
        mmu: &Mmu,
        address: u64,
        walk: &GuestWalk,
        access: u32,
        frame: Hfn,
    ) -> Result<FaultOutcome, SimError> {
        let Some((mut level, mut table)) = self.shadow_start(mmu, address) else {
            return Ok(FaultOutcome::Retry);
        };
        while level > Level::L1 {
            let sptep = table.offset(level.index(address) * 8);
            let below = level.down().ok_or_else(|| SimError::internal("shadow walk below level 1"))?;
            let want = if level > walk.level {
                let seen = walk.tables[usize::from(below.number()) - 1];
                GetPage { gfn: seen.gfn, gaddr: address, level: below, maps: Maps::GuestTable, access: seen.access }
            } else {
                let gfn = Gfn(walk.gfn.0 & !(level.frames() - 1));
                GetPage { gfn, gaddr: address, level: below, maps: Maps::Memory, access }
            };
            table = self.child(mmu, table, sptep, &want)?;
            level = below;
        }
        let sptep = table.offset(Level::L1.index(address) * 8);
        self.set_leaf(sptep, walk.gfn, frame, access, Tables::MayUnsync);
        Ok(FaultOutcome::Fixed)
    }

    /// The direct shadow of an unpaged guest (`__direct_map`).
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn direct_map(&mut self, mmu: &Mmu, address: u64, gfn: Gfn, frame: Hfn) -> Result<(), SimError> {
        let Some((mut level, mut table)) = self.shadow_start(mmu, address) else {
            return Ok(());
        };
        while let Some(below) = level.down() {
            let sptep = table.offset(level.index(address) * 8);
            let base = Gfn(gfn.0 & !(level.frames() - 1));
            let access = crate::role::ACCESS_ALL;
            let want = GetPage { gfn: base, gaddr: address, level: below, maps: Maps::Memory, access };
            table = self.child(mmu, table, sptep, &want)?;
            level = below;
        }
        self.set_leaf(
            table.offset(Level::L1.index(address) * 8),
            gfn,
            frame,
            crate::role::ACCESS_ALL,
            Tables::MayUnsync,
        );
        Ok(())
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
        if spte::is_present(entry) {
            let table = spte::frame(entry).base();
            let page = self.vm.pages.at(table);
            let fits = page.is_some_and(|page| want.maps == Maps::GuestTable || page.role.access() == want.access);
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

    /// `mmu_set_spte` for a 4 KiB leaf of any MMU. A read-only slot never gives write access.
    pub fn set_leaf(&mut self, sptep: Hpa, gfn: Gfn, frame: Hfn, access: u32, tables: Tables) {
        let role = self.vm.pages.at(sptep.page_base()).map(|page| page.role).unwrap_or_default();
        let slot = self.vm.slots.find(AddressSpace::of_role(role), gfn);
        let host = slot.and_then(|slot| slot.page(gfn)).map_or(HostAccess::ReadOnly, |page| page.access);
        let access = if host == HostAccess::ReadOnly { access & !crate::role::ACCESS_WRITE } else { access };
        let old = self.ground.mem.read_u64(sptep);
        if spte::is_present(old) && spte::frame(old) != frame {
            self.drop_leaf(sptep);
        }
        let write = if access & crate::role::ACCESS_WRITE != 0 && !self.try_to_unsync(gfn, tables) {
            Writable::No
        } else {
            Writable::Yes
        };
        let new = self.vm.config.tdp.spte_format().leaf(&Leaf {
            frame,
            level: Level::L1,
            access,
            host,
            write,
            ad: AdType::of(role, self.vm.config.pml),
            nx_huge: self.vm.config.nx_huge,
            purpose: Purpose::Access,
        });
        if new == old {
            return;
        }
        self.ground.mem.write_u64(sptep, new);
        self.vm.pages.map(gfn, sptep);
        if let Some(page) = self.vm.pages.at_mut(sptep.page_base())
            && page.is_indirect()
        {
            page.gfns.insert((sptep.page_offset() / 8) as u16, gfn);
        }
        self.ground.record(Event::SpteSet { gfn, level: Level::L1, spte: new, sptep });
    }

    /// `mmu_try_to_unsync_pages`: whether a guest frame may be written. Leaf tables there go out of sync; a table above
    /// level 1 forbids it.
    fn try_to_unsync(&mut self, gfn: Gfn, may: Tables) -> bool {
        let tables = self.vm.pages.tables_at(gfn);
        if may == Tables::StayInSync {
            return tables.is_empty();
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
