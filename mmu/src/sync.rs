//! Bringing out-of-sync leaf tables up to date (KVM v5.17 `kvm_mmu_sync_roots`, `mmu_sync_children`, `FNAME(sync_page)`).

use crate::change::Change;
use crate::entry_rules::reserved;
use crate::guest_walk::{EntryFormat, entry_access, entry_present, gpte_at, read_entry};
use crate::leaf::{Install, Wants};
use crate::load::{PAE_ROOTS, Which, pae_target};
use crate::memslot::{AddressSpace, HostAccess, HostPage};
use crate::mmio::forget_mmio;
use crate::page::{ENTRIES, Shadowed, Unflushed};
use crate::plant::Plant;
use crate::request::Requests;
use crate::role::{ACCESS_WRITE, PageRole};
use crate::spte::{self, Purpose};
use crate::state::{Contention, Ctx, Mmu, PREV_ROOTS, Paging, VcpuMmu, View};
use crate::unsync::Tables;
use sim_core::SimError;
use sim_core::addr::{ENTRY_FRAME_MASK, Gfn, Gpa, Hpa, Level};
use sim_core::event::Event;

/// What came of reading a guest's table again (`kvm_sync_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synced {
    /// The shadow agrees, and nothing that hardware may still hold was lost.
    Agrees,
    /// Something was lost: processors must flush.
    OwesFlush,
    /// The page does not belong to the MMU: it was zapped.
    Zapped,
}

/// Whether the lock may be given up between batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yield {
    /// It may: what follows goes on where it was.
    Allowed,
    /// It may not, for the caller holds on to what it found: the rest is left to a request.
    Forbidden,
}

/// How far a synchronisation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncProgress {
    /// Everything is in sync.
    Done,
    /// Others wanted the lock: `KVM_REQ_MMU_SYNC` is pending.
    Yielded,
}

impl Ctx<'_> {
    /// `kvm_mmu_sync_roots`: the current root of the active MMU only.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn sync_roots(&mut self, vcpu: &mut VcpuMmu, _view: &View) -> Result<(), SimError> {
        let mmu = vcpu.active().clone();
        if mmu.is_direct() || !mmu.root.is_valid() {
            return Ok(());
        }
        forget_mmio(vcpu, None);
        for table in self.root_tables(&mmu, mmu.root.hpa) {
            if self.is_unsync(table) {
                self.sync_children(&mut vcpu.requests, &mmu, table, Yield::Allowed);
            }
        }
        self.commit_zap();
        Ok(())
    }

    /// `kvm_mmu_sync_prev_roots`: previous roots with unsync pages are given up, not synchronised.
    pub fn sync_prev_roots(&mut self, vcpu: &mut VcpuMmu) {
        let id = vcpu.active().id;
        for index in 0..PREV_ROOTS {
            let root = vcpu.active().prev[index];
            if root.is_valid() && self.is_unsync(root.hpa) {
                self.free_roots(vcpu, id, Which::Prev(index));
            }
        }
    }

    /// The shadow pages directly below a root pointer: the root itself, or what `pae_root` holds.
    #[must_use]
    pub fn root_tables(&self, mmu: &Mmu, root: Hpa) -> Vec<Hpa> {
        if self.vm.pages.at(root).is_some() {
            return vec![root];
        }
        let Some(pae_root) = mmu.pae_root.filter(|_| !self.vm.is_dummy_root(root)) else { return Vec::new() };
        let entries = (0..PAE_ROOTS).map(|index| self.ground.mem.read_u64(pae_root.base().offset(index * 8)));
        entries.filter(|entry| *entry != 0).map(pae_target).collect()
    }

    /// `mmu_sync_children`: batch by batch, write-protected first so that a table that is read again stays as it is.
    pub(crate) fn sync_children(&mut self, requests: &mut Requests, mmu: &Mmu, table: Hpa, may: Yield) -> SyncProgress {
        loop {
            let batch = self.next_unsync(table);
            if batch.is_empty() {
                return SyncProgress::Done;
            }
            for unsync in &batch {
                if let Some(gfn) = self.vm.pages.at(unsync.table).map(|page| page.gfn)
                    && !self.vm.plants.has(Plant::NoProtectBeforeSync)
                {
                    self.write_protect(gfn);
                }
            }
            for unsync in batch {
                if self.sync_unsync(mmu, unsync.table) {
                    self.clear_path(&unsync.path);
                }
            }
            if self.vm.config.contention == Contention::Always && may == Yield::Forbidden {
                requests.post(self.ground, Requests::MMU_SYNC);
                return SyncProgress::Yielded;
            }
        }
    }

    /// A page is brought up to date for good (`kvm_unlink_unsync_page` and `kvm_sync_page`). Whether there was one.
    pub(crate) fn sync_unsync(&mut self, mmu: &Mmu, table: Hpa) -> bool {
        let Some(page) = self.vm.pages.at_mut(table) else { return false };
        let before = page.view();
        page.unsync = false;
        self.ground.record(Event::PageSync { page: before });
        if self.sync_page(mmu, table) == Synced::OwesFlush {
            self.flush_after_sync();
        }
        true
    }

    /// The flush that a synchronisation owes. Before f81602958c11 it was left to whoever takes a page away, for a guest that did
    /// not flush can expect nothing; the vCPU at work flushed alone, which is left out here.
    pub(crate) fn flush_after_sync(&mut self) {
        if self.vm.changes.has(Change::RmapProtectFlushes) {
            self.flush_remote();
        } else {
            self.vm.pages.unflushed = Unflushed::Some;
        }
    }

    /// `kvm_sync_page`: rereads the guest's table and drops or rewrites what no longer agrees. A page whose role does
    /// not belong to the MMU is zapped with a warning (2640b0865395). The page stays marked as it was.
    pub fn sync_page(&mut self, mmu: &Mmu, table: Hpa) -> Synced {
        let Some(page) = self.vm.pages.at(table) else { return Synced::Agrees };
        let role = page.role;
        let foreign = PageRole((role.0 ^ mmu.root_role.0) & !SYNC_IGNORES.0);
        if role.direct() == 1 || foreign.0 != 0 {
            self.warn("shadow page of another role synced (kvm_sync_page_check)");
            self.prepare_zap(table);
            return Synced::Zapped;
        }
        let mut synced = Synced::Agrees;
        for index in 0..ENTRIES {
            let sptep = table.offset(index * 8);
            if self.ground.mem.read_u64(sptep) != 0 && self.sync_entry(mmu, table, role, index) {
                synced = Synced::OwesFlush;
            }
        }
        synced
    }

    /// One entry that the guest invalidates, with the flush that it owes (`kvm_mmu_sync_spte`).
    pub(crate) fn sync_leaf(&mut self, mmu: &Mmu, table: Hpa, role: PageRole, sptep: Hpa) {
        let used = self.ground.mem.read_u64(sptep) != 0;
        let owes = used && self.sync_entry(mmu, table, role, sptep.page_offset() / 8);
        if owes && !self.vm.plants.has(Plant::NoFlushAfterSync) {
            self.flush_remote();
        }
    }

    /// One entry; whether it lost something.
    fn sync_entry(&mut self, mmu: &Mmu, table: Hpa, role: PageRole, index: u64) -> bool {
        let sptep = table.offset(index * 8);
        let Some(page) = self.vm.pages.at(table) else { return false };
        let mapped = page.shadowed.get(&(index as u16)).copied();
        let guest = self.guest_entry(mmu, page.gfn, role, index);
        let old = self.ground.mem.read_u64(sptep);
        if !spte::is_present(old) {
            self.sync_mmio(sptep, guest);
            return false;
        }
        // An entry that permits nothing is none (9fb3565743d5).
        let kept = |access: u32| access != 0 || mmu.paging != Paging::Ept || !self.vm.changes.has(Change::DropRwx0);
        match guest.map(|(gfn, access)| Shadowed { gfn, access }) {
            // The guest's entry has its accessed bit, and a dirty one if it may be written, so that nothing can be missed.
            same @ Some(_) if mapped == same && self.vm.changes.has(Change::SyncKeepsUnchanged) => false,
            Some(Shadowed { gfn, access }) if mapped.is_some_and(|mapped| mapped.gfn == gfn) && kept(access) => {
                self.resync_leaf(sptep, gfn, access, old)
            }
            _ if self.vm.plants.has(Plant::SyncKeepsDropped) => false,
            _ => {
                self.clear_leaf(sptep);
                true
            }
        }
    }

    /// What the guest's entry maps now and allows, none if it maps nothing, or nothing that was used.
    fn guest_entry(&self, mmu: &Mmu, table: Gfn, role: PageRole, index: u64) -> Option<(Gfn, u32)> {
        let (at, bytes) = gpte_at(table, role, index);
        let entry = read_entry(self, AddressSpace::of_role(role), at, bytes)?;
        let EntryFormat { accessed, dirty, .. } = EntryFormat::of(mmu);
        let legal = !reserved(self.vm.config.rules, mmu, Level::L1, entry);
        if !entry_present(mmu, entry) || !legal || entry & accessed != accessed {
            return None;
        }
        let access = role.access() & entry_access(mmu, entry);
        let clean = entry & dirty != dirty && !self.vm.plants.has(Plant::SyncWritesClean);
        let access = if clean { access & !ACCESS_WRITE } else { access };
        Some((Gpa(entry & ENTRY_FRAME_MASK).frame(), access))
    }

    /// The same page with the permissions of now. The host frame is the entry's own: had the host taken it away, the
    /// notifier would have dropped the entry.
    fn resync_leaf(&mut self, sptep: Hpa, gfn: Gfn, access: u32, old: u64) -> bool {
        let format = self.vm.config.tdp.spte_format();
        let host = if old & format.bits().host_writable == 0 { HostAccess::ReadOnly } else { HostAccess::Writable };
        let page = Some(HostPage { hfn: spte::frame(old), access: host });
        let (level, tables) = (Level::L1, Tables::StayInSync);
        let (wants, purpose) = (Wants::Read, Purpose::Prefetch);
        self.install(&Install { sptep, level, gfn, page, access, wants, tables, purpose });
        format.update_owes_flush(old, self.ground.mem.read_u64(sptep))
    }
}

/// Role bits in which a synced page may differ from the MMU's role.
const SYNC_IGNORES: PageRole = PageRole(0).with_level(0xf).with_access(7).with_quadrant(3).with_passthrough(1);
