//! Zapping shadow pages (`__kvm_mmu_prepare_zap_page`, `kvm_mmu_commit_zap_page`, `kvm_mmu_zap_all_fast`), dropping
//! leaf entries, and noticing writes to shadowed tables (`kvm_mmu_pte_write`).

use crate::change::Change;
use crate::page::{ENTRIES, ShadowPage};
use crate::plant::Plant;
use crate::request::Requests;
use crate::spte;
use crate::state::{Ctx, TdpMode};
use sim_core::addr::{Gfn, Gpa, Hpa, Level};
use sim_core::event::Event;

impl Ctx<'_> {
    /// Takes a page out of use: children and parents are unlinked; a page that is still a root becomes invalid and
    /// every vCPU is told, any other is freed at the next commit.
    pub fn prepare_zap(&mut self, table: Hpa) {
        let Some(page) = self.vm.pages.at(table) else { return };
        let (gfn, role, root_count) = (page.gfn, page.role, page.root_count);
        let obsolete = self.vm.pages.is_obsolete(page);
        self.ground.record(Event::PageZap { page: page.view() });
        self.unlink_children(table, role.level());
        let parents = self.vm.pages.at_mut(table).map(|page| std::mem::take(&mut page.parents)).unwrap_or_default();
        for sptep in parents {
            self.ground.mem.write_u64(sptep, 0);
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
        if !obsolete {
            self.vm.broadcast |= self.reload_request();
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
                self.unlink(sptep);
            }
        }
    }

    /// Clears a non-leaf entry. A nested-TDP child that has no other parent goes with it: nothing would ever find it
    /// again (KVM 2de4085cccea).
    pub fn unlink(&mut self, sptep: Hpa) {
        let child = spte::frame(self.ground.mem.read_u64(sptep)).base();
        self.ground.mem.write_u64(sptep, 0);
        let Some(page) = self.vm.pages.at_mut(child) else { return };
        page.parents.remove(&sptep);
        let orphan = page.parents.is_empty() && page.root_count == 0 && page.role.guest_mode() == 1;
        if orphan && !page.is_tdp() && self.vm.config.tdp != TdpMode::Off {
            self.prepare_zap(child);
        }
    }

    /// Clears a leaf entry and its reverse mapping (`drop_spte`).
    pub fn drop_leaf(&mut self, sptep: Hpa) {
        let table = sptep.page_base();
        let index = sptep.page_offset() / 8;
        let gfn = self.vm.pages.at_mut(table).and_then(|page| {
            if page.is_indirect() { page.gfns.remove(&(index as u16)) } else { page.direct_gfn(index) }
        });
        self.ground.mem.write_u64(sptep, 0);
        if let Some(gfn) = gfn {
            self.vm.pages.unmap(gfn, sptep);
        }
        if !self.vm.plants.has(Plant::NoFlushAfterDrop) {
            self.flush_remote();
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
        self.vm.broadcast |= Requests::TLB_FLUSH;
    }

    /// `kvm_mmu_zap_all_fast`: every page becomes obsolete at once; roots in use die when they are given up.
    pub fn zap_all_fast(&mut self) {
        self.vm.pages.generation ^= 1;
        self.ground.record(Event::ZapAllFast {
            generation: self.vm.pages.generation,
            used_pages: self.vm.pages.all().count() as u64,
        });
        self.tdp_invalidate_roots();
        self.vm.broadcast |= self.reload_request();
        let obsolete: Vec<_> = self
            .vm
            .pages
            .all()
            .filter(|(_, page)| !page.is_tdp() && page.role.invalid() == 0 && self.vm.pages.is_obsolete(page))
            .map(|(hfn, _)| hfn.base())
            .collect();
        for table in obsolete {
            self.prepare_zap(table);
        }
        self.commit_zap();
    }

    /// Drops every mapping of a guest frame (an mmu-notifier invalidation, `kvm_unmap_gfn_range`).
    pub fn zap_gfn(&mut self, gfn: Gfn) {
        for sptep in self.vm.pages.all_mappings(gfn) {
            self.drop_leaf(sptep);
        }
    }

    /// `kvm_mmu_pte_write`: the guest wrote a shadowed table. Pages written in part or for the third time without
    /// being used are zapped whole, else the entries written.
    pub fn pte_write(&mut self, gpa: Gpa, bytes: u64) {
        for table in self.vm.pages.tables_at(gpa.frame()) {
            let Some(page) = self.vm.pages.at_mut(table) else { continue };
            let role = page.role;
            let entry_bytes: u64 = if role.has_4_byte_gpte() == 1 { 4 } else { 8 };
            if is_misaligned(gpa.page_offset(), bytes, entry_bytes) || is_flooded(page) {
                self.prepare_zap(table);
                continue;
            }
            for index in entries_written(role, gpa.page_offset() / entry_bytes) {
                self.zap_entry(table, role.level(), index);
            }
        }
        self.commit_zap();
    }

    fn zap_entry(&mut self, table: Hpa, level: u32, index: u64) {
        let sptep = table.offset(index * 8);
        if self.clear_mmio(sptep) || !spte::is_present(self.ground.mem.read_u64(sptep)) {
            return;
        }
        if self.maps_memory(sptep, level) {
            self.drop_leaf(sptep);
        } else {
            self.unlink(sptep);
            self.flush_remote();
        }
    }

    /// Whether a present entry of a table at this level is a leaf, large or small.
    fn maps_memory(&self, sptep: Hpa, level: u32) -> bool {
        let level = Level::from_number(level as u8);
        level.is_some_and(|level| spte::is_leaf(self.ground.mem.read_u64(sptep), level))
    }

    /// `kvm_mmu_unprotect_page`: gives up every shadow of a guest frame, so that the guest may write it freely.
    pub fn unprotect(&mut self, gfn: Gfn) {
        for table in self.vm.pages.tables_at(gfn) {
            self.prepare_zap(table);
        }
        self.commit_zap();
    }
}

/// `detect_write_misaligned`: a write that covers more than one entry, or less than four bytes of one. A single byte at
/// an entry's start is how bit operations write.
const fn is_misaligned(offset: u64, bytes: u64, entry_bytes: u64) -> bool {
    if offset & (entry_bytes - 1) == 0 && bytes == 1 {
        return false;
    }
    (offset ^ (offset + bytes - 1)) & !(entry_bytes - 1) != 0 || bytes < 4
}

/// `detect_write_flooding`: the third write without a use in between; a leaf table goes out of sync instead.
fn is_flooded(page: &mut ShadowPage) -> bool {
    if page.role.level() == 1 {
        return false;
    }
    page.write_flooding += 1;
    page.write_flooding >= 3
}

/// The entries of a shadow page that one guest entry is shadowed by: a 4-byte entry of a directory needs two, and only
/// in the page of its quadrant (`get_written_sptes`).
fn entries_written(role: crate::role::PageRole, gpte: u64) -> Vec<u64> {
    if role.has_4_byte_gpte() == 0 {
        return vec![gpte];
    }
    let per_page: u64 = if role.level() == 2 { 256 } else { 512 };
    if gpte / per_page != u64::from(role.quadrant()) {
        return Vec::new();
    }
    let within = gpte % per_page;
    if role.level() == 2 { vec![within * 2, within * 2 + 1] } else { vec![within] }
}
