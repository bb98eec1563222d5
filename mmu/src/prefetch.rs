//! Filling the neighbours of an entry that a fault has just installed (`FNAME(pte_prefetch)`, `direct_pte_prefetch`; KVM
//! v5.17): eight aligned entries of one leaf table, as far as the guest's own tables allow it without asking anything.
//!
//! A prefetched entry must not claim that its page was accessed, takes no table out of sync, and is never made for what
//! the guest has not accessed itself. The TDP MMU prefetches nothing.

use crate::entry_rules::reserved;
use crate::guest_walk::{EntryFormat, entry_access, entry_present, gpte_at, read_entry};
use crate::leaf::{Install, Wants};
use crate::memslot::{AddressSpace, DirtyLogging, HostPage, Visibility};
use crate::page::ShadowPage;
use crate::plant::Plant;
use crate::role::ACCESS_WRITE;
use crate::spte::Purpose;
use crate::state::{Ctx, Mmu, Nesting, View};
use crate::unsync::Tables;
use sim_core::addr::{ENTRY_FRAME_MASK, Gfn, Gpa, Hpa, Level};

/// `PTE_PREFETCH_NUM`.
const NEIGHBOURS: u64 = 8;

impl Ctx<'_> {
    /// Fills what can be filled around an entry.
    pub(crate) fn prefetch(&mut self, mmu: &Mmu, view: &View, sptep: Hpa) {
        let table = sptep.page_base();
        let Some(page) = self.vm.pages.at(table).cloned() else { return };
        // Only `direct_pte_prefetch` asks, not the walk of a guest's tables that ends in a direct page.
        let without_accessed_bits = mmu.is_direct() && page.role.ad_disabled() == 1;
        if page.role.level() != 1 || without_accessed_bits || self.vm.notifier.under_way > 0 {
            return;
        }
        let own = sptep.page_offset() / 8;
        let first = own & !(NEIGHBOURS - 1);
        for index in (first..first + NEIGHBOURS).filter(|index| *index != own) {
            let sptep = table.offset(index * 8);
            if self.ground.mem.read_u64(sptep) != 0 {
                continue;
            }
            let found = if page.is_indirect() {
                self.guest_leaf(mmu, &page, index)
            } else {
                Some((page.gfn.offset(index), page.role.access()))
            };
            let Some((gfn, access)) = found else { break };
            let Some(host) = self.prefetchable(view, AddressSpace::of_role(page.role), gfn, access) else { break };
            let (level, tables, wants) = (Level::L1, Tables::StayAsTheyAre, Wants::Read);
            let purpose = Purpose::Prefetch;
            self.install(&Install { sptep, level, gfn, page: Some(host), access, wants, tables, purpose });
        }
    }

    /// Fills an entry of a leaf table that INVLPG has emptied. Nobody asked for it, but logging does not keep it from being
    /// writable, as it does with a neighbour (`FNAME(prefetch_gpte)` of `FNAME(invlpg)`, up to v6.3).
    pub(crate) fn prefetch_again(&mut self, mmu: &Mmu, sptep: Hpa) {
        let Some(page) = self.vm.pages.at(sptep.page_base()).cloned() else { return };
        let Some((gfn, access)) = self.guest_leaf(mmu, &page, sptep.page_offset() / 8) else { return };
        let slot = self.vm.slots.find(AddressSpace::of_role(page.role), gfn);
        let Some(host) = slot.and_then(|slot| slot.page(gfn)) else { return };
        let (level, tables, wants) = (Level::L1, Tables::StayAsTheyAre, Wants::Read);
        let purpose = Purpose::Prefetch;
        self.install(&Install { sptep, level, gfn, page: Some(host), access, wants, tables, purpose });
    }

    /// What a guest's leaf entry maps and allows, if the guest has used it and nothing is wrong with it
    /// (`FNAME(prefetch_gpte)`).
    fn guest_leaf(&self, mmu: &Mmu, page: &ShadowPage, index: u64) -> Option<(Gfn, u32)> {
        let (at, bytes) = gpte_at(page.gfn, page.role, index);
        let entry = read_entry(self, AddressSpace::of_role(page.role), at, bytes)?;
        let EntryFormat { accessed, dirty, .. } = EntryFormat::of(mmu);
        let ignores = self.vm.plants.has(Plant::PrefetchNotAccessed);
        let used = ignores || entry & accessed == accessed;
        if !entry_present(mmu, entry) || !used || reserved(self.vm.config.rules, mmu, Level::L1, entry) {
            return None;
        }
        let access = page.role.access() & entry_access(mmu, entry);
        let access = if entry & dirty == dirty { access } else { access & !ACCESS_WRITE };
        Some((Gpa(entry & ENTRY_FRAME_MASK).frame(), access))
    }

    /// The host page of a frame, if it may be mapped before anyone asks: a writable entry in a slot that logs would hide
    /// the first write (`gfn_to_memslot_dirty_bitmap`).
    fn prefetchable(&self, view: &View, space: AddressSpace, gfn: Gfn, access: u32) -> Option<HostPage> {
        let slot = self.vm.slots.find(space, gfn)?;
        let hidden = slot.visibility == Visibility::Private && view.nesting == Nesting::L2;
        let logs = slot.logging == DirtyLogging::On && access & ACCESS_WRITE != 0;
        let ignores = self.vm.plants.has(Plant::PrefetchWhileLogged);
        if hidden || (logs && !ignores) { None } else { slot.page(gfn) }
    }
}
