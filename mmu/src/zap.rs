//! Zapping shadow pages (KVM v5.17 `__kvm_mmu_prepare_zap_page`, `kvm_mmu_commit_zap_page`, `kvm_mmu_zap_all_fast`), and
//! dropping leaf entries.

use crate::change::Change;
use crate::page::{ENTRIES, Unflushed};
use crate::plant::Plant;
use crate::request::Requests;
use crate::spte;
use crate::state::{Ctx, TdpMode};
use crate::stats::Stat;
use sim_core::addr::{Gfn, Hpa};
use sim_core::event::Event;

impl Ctx<'_> {
    /// Takes a page out of use: children and parents are unlinked; a page that is still a root becomes invalid and
    /// every vCPU is told, any other is freed at the next commit.
    pub fn prepare_zap(&mut self, table: Hpa) {
        let Some(page) = self.vm.pages.at(table) else { return };
        let (gfn, role, root_count) = (page.gfn, page.role, page.root_count);
        let obsolete = self.vm.pages.is_obsolete(page);
        self.ground.record(Event::PageZap { page: page.view() });
        self.vm.stats.count(Stat::ShadowZapped);
        self.zap_unsync_children(table);
        self.unlink_children(table, role.level());
        let parents = self.vm.pages.at_mut(table).map(|page| std::mem::take(&mut page.parents)).unwrap_or_default();
        if !self.vm.plants.has(Plant::ZapKeepsParents) {
            for sptep in parents {
                self.ground.mem.write_u64(sptep, 0);
            }
        }
        if role.invalid() == 0 && role.has_gptes() {
            self.unaccount_shadowed(gfn, role);
        }
        if let Some(page) = self.vm.pages.at(table).filter(|page| page.unsync) {
            // kvm_unlink_unsync_page leaves the same trace event as a synchronisation, as a 6.18 kernel's trace shows.
            self.ground.record(Event::PageSync { page: page.view() });
        }
        self.vm.pages.unhash(table.frame(), gfn);
        if root_count == 0 {
            self.vm.pages.remove(table.frame());
            self.vm.pages.zapped.push(table.frame());
            return;
        }
        if let Some(page) = self.vm.pages.at_mut(table) {
            page.role = page.role.with_invalid(1);
            page.unsync = false;
        }
        if !obsolete && !self.vm.plants.has(Plant::NoReloadAfterRootZap) {
            self.vm.broadcast |= self.reload_request();
        }
    }

    /// `mmu_zap_unsync_children`: what is out of sync below a page that goes could be linked again elsewhere without
    /// anyone knowing.
    fn zap_unsync_children(&mut self, table: Hpa) {
        loop {
            let batch = self.next_unsync(table);
            if batch.is_empty() {
                return;
            }
            for unsync in batch {
                self.prepare_zap(unsync.table);
                self.clear_path(&unsync.path);
            }
        }
    }

    /// The request that makes a vCPU give up roots that are no longer good.
    #[must_use]
    pub fn reload_request(&self) -> Requests {
        if self.vm.changes.has(Change::FreeObsoleteRoots) {
            Requests::MMU_FREE_OBSOLETE_ROOTS
        } else {
            Requests::MMU_RELOAD
        }
    }

    fn unlink_children(&mut self, table: Hpa, level: u32) {
        for index in 0..ENTRIES {
            let sptep = table.offset(index * 8);
            if !spte::is_present(self.ground.mem.read_u64(sptep)) {
                continue;
            }
            if self.maps_memory(sptep, level) {
                self.drop_leaf(sptep);
            } else {
                let child = spte::frame(self.ground.mem.read_u64(sptep)).base();
                self.unlink(sptep);
                self.zap_nested_orphan(child);
            }
        }
    }

    /// Clears a non-leaf entry (`drop_parent_pte`). The table below stays, to be found again or to grow old.
    pub fn unlink(&mut self, sptep: Hpa) {
        let child = spte::frame(self.ground.mem.read_u64(sptep)).base();
        self.ground.mem.write_u64(sptep, 0);
        if !self.vm.plants.has(Plant::UnlinkKeepsParent)
            && let Some(page) = self.vm.pages.at_mut(child)
        {
            page.parents.remove(&sptep);
        }
    }

    /// A nested-TDP table whose last parent was zapped goes with it: nothing would ever find it again (2de4085cccea).
    fn zap_nested_orphan(&mut self, table: Hpa) {
        let orphan = self.vm.pages.at(table).is_some_and(|page| {
            page.parents.is_empty() && page.root_count == 0 && page.role.guest_mode() == 1 && !page.is_tdp()
        });
        if orphan && self.vm.config.tdp != TdpMode::Off && !self.vm.plants.has(Plant::KeepNestedOrphans) {
            self.prepare_zap(table);
        }
    }

    /// Clears a leaf entry and has every vCPU flush.
    pub fn drop_leaf(&mut self, sptep: Hpa) {
        self.clear_leaf(sptep);
        if !self.vm.plants.has(Plant::NoFlushAfterDrop) {
            self.flush_remote();
        }
    }

    /// Clears a leaf entry and its reverse mapping (`drop_spte`).
    pub(crate) fn clear_leaf(&mut self, sptep: Hpa) {
        let table = sptep.page_base();
        let index = sptep.page_offset() / 8;
        let gfn = self.vm.pages.at_mut(table).and_then(|page| {
            if page.is_indirect() {
                page.shadowed.remove(&(index as u16)).map(|shadowed| shadowed.gfn)
            } else {
                page.direct_gfn(index)
            }
        });
        self.ground.mem.write_u64(sptep, 0);
        if let Some(gfn) = gfn
            && !self.vm.plants.has(Plant::DropKeepsRmap)
        {
            self.vm.pages.unmap(gfn, sptep);
        }
    }

    /// `kvm_mmu_commit_zap_page`: after the remote flush, zapped frames may be used again.
    pub fn commit_zap(&mut self) {
        let zapped = std::mem::take(&mut self.vm.pages.zapped);
        if zapped.is_empty() {
            return;
        }
        self.flush_remote();
        for frame in zapped {
            self.vm.frames.give(frame);
        }
    }

    /// `kvm_flush_remote_tlbs`: every vCPU flushes before it runs again.
    pub fn flush_remote(&mut self) {
        self.vm.stats.count(Stat::RemoteTlbFlushRequests);
        if !self.vm.broadcast.contains(Requests::TLB_FLUSH) {
            self.vm.stats.count(Stat::RemoteTlbFlush);
        }
        self.vm.broadcast |= Requests::TLB_FLUSH;
        self.vm.pages.unflushed = Unflushed::None;
    }

    /// `kvm_mmu_zap_all_fast`: every page becomes obsolete at once; roots in use die when they are given up. The oldest
    /// pages go first; newer ones than the first that is not obsolete are not obsolete either.
    pub fn zap_all_fast(&mut self) {
        self.vm.pages.generation ^= 1;
        self.ground.record(Event::ZapAllFast { generation: self.vm.pages.generation, used_pages: self.used_pages() });
        let roots = self.tdp_invalidate_roots();
        if !self.vm.plants.has(Plant::NoReloadAfterZapAll) {
            self.vm.broadcast |= self.reload_request();
        }
        let mut obsolete: Vec<_> = self
            .vm
            .pages
            .all()
            .filter(|(_, page)| !page.is_tdp() && page.role.invalid() == 0 && self.vm.pages.is_obsolete(page))
            .map(|(hfn, page)| (page.made, hfn.base()))
            .collect();
        obsolete.sort_unstable();
        for (_, table) in obsolete {
            self.prepare_zap(table);
        }
        self.tdp_zap_invalidated(&roots);
        self.commit_zap();
    }

    /// Drops every mapping of a guest frame (an mmu-notifier invalidation, `kvm_unmap_gfn_range`).
    pub fn zap_gfn(&mut self, gfn: Gfn) {
        for sptep in self.vm.pages.all_mappings(gfn) {
            self.drop_leaf(sptep);
        }
        // What a synchronisation dropped without a flush may be this page.
        if self.vm.pages.unflushed == Unflushed::Some {
            self.flush_remote();
        }
    }
}
