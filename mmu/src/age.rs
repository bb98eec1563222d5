//! What the host asks and tells about single pages (KVM v5.17 `kvm_age_gfn`, `kvm_test_age_gfn`, `kvm_set_spte_gfn`,
//! `kvm_unmap_gfn_range`): whether a page was used, that it is used no longer as it was.
//!
//! Where hardware keeps accessed bits, ageing clears them without a flush: a translation that is still cached keeps the
//! bit clear a little longer, and the page only looks older than it is. Where it does not, permissions are taken away and
//! saved, and the fault that follows gives them back.

use crate::change::Change;
use crate::memslot::{HostAccess, HostPage};
use crate::page::Unflushed;
use crate::plant::Plant;
use crate::spte::{self, AdType, Promise};
use crate::state::Ctx;
use sim_core::addr::{Gfn, Hpa};
use sim_core::event::Event;

impl Ctx<'_> {
    /// `kvm_test_age_gfn`: whether any mapping of the frame was used since it was last aged.
    #[must_use]
    pub fn was_accessed(&self, gfn: Gfn) -> bool {
        let format = self.vm.config.tdp.spte_format();
        self.vm.pages.all_mappings(gfn).iter().any(|sptep| format.is_accessed(self.ground.mem.read_u64(*sptep)))
    }

    /// `kvm_age_gfn`: the same, and forgets it.
    pub fn age(&mut self, gfn: Gfn) -> bool {
        let format = self.vm.config.tdp.spte_format();
        let mut young = false;
        for sptep in self.vm.pages.all_mappings(gfn) {
            let old = self.ground.mem.read_u64(sptep);
            if !format.is_accessed(old) {
                continue;
            }
            young = true;
            if !AdType::of_entry(old).has_bits() && format.is_writable(old) {
                // Write permission is not saved, so what it said must be kept (`kvm_set_pfn_dirty`).
                self.mark_written(sptep);
            }
            self.ground.mem.write_u64(sptep, format.tracked(old));
            if !AdType::of_entry(old).has_bits() && !self.vm.plants.has(Plant::NoFlushAfterTracking) {
                // The entry allows nothing any more; a processor that still cached it would go on unnoticed.
                self.flush_remote();
            }
        }
        young
    }

    fn mark_written(&mut self, sptep: Hpa) {
        if let Some((space, gfn)) = self.gfn_of(sptep) {
            self.mark_dirty(space, gfn);
        }
    }

    /// `kvm_set_spte_gfn` (`change_pte`): the host put another page behind the frame. If it may be written, entries go and
    /// the next fault finds the new one; if it is read-only (KSM merged it), entries are changed in place and lose every
    /// promise of write access (f082d86ea685). Callers hold the notifier's invalidation.
    pub fn change_page(&mut self, gfn: Gfn, page: HostPage) {
        let format = self.vm.config.tdp.spte_format();
        let taken = self.vm.changes.has(Change::ChangePteTakesPromise);
        let promise = if taken { Promise::Taken } else { Promise::Kept };
        let mut changed = self.vm.pages.unflushed == Unflushed::Some;
        for sptep in self.vm.pages.all_mappings(gfn) {
            let old = self.ground.mem.read_u64(sptep);
            let small = self.level_of(sptep) == Some(sim_core::addr::Level::L1);
            if page.access == HostAccess::Writable || !small {
                self.drop_leaf(sptep);
                continue;
            }
            let kept = if self.vm.plants.has(Plant::ChangePteKeepsWrite) { old & 0x2 } else { 0 };
            let new = format.with_read_only_page(old, page.hfn, promise) | kept;
            self.ground.mem.write_u64(sptep, new);
            if let Some(level) = self.level_of(sptep) {
                self.ground.record(Event::SpteSet { gfn, level, spte: new, sptep });
            }
            changed |= spte::is_present(old);
        }
        if changed && !self.vm.plants.has(Plant::NoFlushAfterChangePte) {
            self.flush_remote();
        }
    }
}
