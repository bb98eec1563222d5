//! Bringing out-of-sync leaf tables up to date (`kvm_mmu_sync_roots`, `FNAME(sync_page)`).
//!
//! KVM keeps bitmaps of unsync children in every ancestor; the model searches the tree below the root instead, which
//! finds the same pages. Batches and yields are not modelled.

use crate::fetch::Tables;
use crate::guest_walk::{EntryFormat, entry_access, entry_present, gpte_at, read_entry, reserved};
use crate::load::{PAE_ROOTS, Which, pae_target};
use crate::memslot::AddressSpace;
use crate::page::ENTRIES;
use crate::role::{ACCESS_WRITE, PageRole};
use crate::spte;
use crate::state::{Ctx, Mmu, PREV_ROOTS, VcpuMmu, View};
use sim_core::SimError;
use sim_core::addr::{ENTRY_FRAME_MASK, Gpa, Hpa, Level};
use sim_core::event::Event;
use std::collections::BTreeSet;

impl Ctx<'_> {
    /// `kvm_mmu_sync_roots`: the current root of the active MMU only.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn sync_roots(&mut self, vcpu: &VcpuMmu, _view: &View) -> Result<(), SimError> {
        let mmu = vcpu.active().clone();
        if mmu.is_direct() || !mmu.root.is_valid() {
            return Ok(());
        }
        for table in self.root_tables(&mmu, mmu.root.hpa) {
            for page in self.unsync_below(table) {
                self.sync_page(&mmu, page)?;
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
            if root.is_valid() && !self.unsync_below(root.hpa).is_empty() {
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
        let Some(pae_root) = mmu.pae_root else { return Vec::new() };
        let entries = (0..PAE_ROOTS).map(|index| self.ground.mem.read_u64(pae_root.base().offset(index * 8)));
        entries.filter(|entry| *entry != 0).map(pae_target).collect()
    }

    /// Out-of-sync pages reachable from a shadow page.
    pub(crate) fn unsync_below(&self, table: Hpa) -> BTreeSet<Hpa> {
        let (mut found, mut seen, mut queue) = (BTreeSet::new(), BTreeSet::new(), vec![table]);
        while let Some(table) = queue.pop() {
            let Some(page) = self.vm.pages.at(table) else { continue };
            if !seen.insert(table) {
                continue;
            }
            if page.unsync {
                found.insert(table);
            }
            if page.role.level() > 1 {
                let entries = (0..ENTRIES).map(|index| self.ground.mem.read_u64(table.offset(index * 8)));
                queue.extend(entries.filter(|entry| spte::is_present(*entry)).map(|entry| spte::frame(entry).base()));
            }
        }
        found
    }

    /// `FNAME(invlpg)` for the current and every previous root: drops the leaf of an address if its table may be out of
    /// sync; tables in sync need nothing.
    pub fn invlpg(&mut self, vcpu: &VcpuMmu, address: u64) {
        self.invlpg_roots(vcpu, address, |_| true);
    }

    /// The same for the current and those previous roots that are chosen, as `kvm_mmu_invpcid_gva` does it.
    pub fn invlpg_roots(&mut self, vcpu: &VcpuMmu, address: u64, chosen: impl Fn(Which) -> bool) {
        let mmu = vcpu.active().clone();
        if mmu.is_direct() {
            return;
        }
        let prev = mmu.prev.iter().enumerate().filter(|(slot, _)| chosen(Which::Prev(*slot)));
        let prev = prev.filter_map(|(_, root)| Some((Level::from_number(mmu.shadow_root_level)?, root.hpa)));
        let current = if chosen(Which::Current) { self.shadow_start(&mmu, address) } else { None };
        let starts: Vec<_> = current.into_iter().chain(prev).collect();
        for (mut level, mut table) in starts {
            while self.vm.pages.at(table).is_some() {
                let sptep = table.offset(level.index(address) * 8);
                let entry = self.ground.mem.read_u64(sptep);
                if !spte::is_present(entry) {
                    if level == Level::L1 && self.vm.pages.at(table).is_some_and(|page| page.unsync) {
                        self.clear_mmio(sptep);
                    }
                    break;
                }
                let Some(below) = level.down() else {
                    if self.vm.pages.at(table).is_some_and(|page| page.unsync) {
                        self.drop_leaf(sptep);
                    }
                    break;
                };
                (level, table) = (below, spte::frame(entry).base());
            }
        }
    }

    /// `kvm_sync_page`: rereads the guest's table and drops or rewrites what no longer agrees. A page whose role does
    /// not belong to the MMU is zapped with a warning (2640b0865395).
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn sync_page(&mut self, mmu: &Mmu, table: Hpa) -> Result<(), SimError> {
        let Some(page) = self.vm.pages.at_mut(table) else { return Ok(()) };
        let (gfn, role, before) = (page.gfn, page.role, page.view());
        page.unsync = false;
        let foreign = PageRole((role.0 ^ mmu.root_role.0) & !SYNC_IGNORES.0);
        if role.direct() == 1 || foreign.0 != 0 {
            self.warn("shadow page of another role synced (kvm_sync_page_check)");
            self.prepare_zap(table);
            return Ok(());
        }
        self.ground.record(Event::PageSync { page: before });
        self.write_protect(gfn);
        for index in 0..ENTRIES {
            let sptep = table.offset(index * 8);
            if self.ground.mem.read_u64(sptep) != 0 {
                self.sync_entry(mmu, table, role, index, sptep);
            }
        }
        self.flush_remote();
        Ok(())
    }

    fn sync_entry(&mut self, mmu: &Mmu, table: Hpa, role: PageRole, index: u64, sptep: Hpa) {
        let Some(page) = self.vm.pages.at(table) else { return };
        let mapped = page.gfns.get(&(index as u16)).copied();
        let (at, bytes) = gpte_at(page.gfn, role, index);
        let entry = read_entry(self, AddressSpace::of_role(role), at, bytes).unwrap_or(0);
        let EntryFormat { accessed, dirty, .. } = EntryFormat::of(mmu);
        let gfn = Gpa(entry & ENTRY_FRAME_MASK).frame();
        let legal = !reserved(self.vm.config.maxphyaddr, mmu, Level::L1, entry);
        let valid = entry_present(mmu, entry) && legal && entry & accessed == accessed;
        if !spte::is_present(self.ground.mem.read_u64(sptep)) {
            self.sync_mmio(sptep, valid.then(|| (gfn, role.access() & entry_access(mmu, entry))));
            return;
        }
        let usable = valid && mapped == Some(gfn);
        let frame = self.vm.slots.find(AddressSpace::of_role(role), gfn).and_then(|slot| slot.page(gfn));
        match frame {
            Some(frame) if usable => {
                let access = role.access() & entry_access(mmu, entry);
                let access = if entry & dirty == dirty { access } else { access & !ACCESS_WRITE };
                self.set_leaf(sptep, gfn, frame, access, Tables::StayInSync);
            }
            _ => self.drop_leaf(sptep),
        }
    }
}

/// Role bits in which a synced page may differ from the MMU's role.
const SYNC_IGNORES: PageRole = PageRole(0).with_level(0xf).with_access(7).with_quadrant(3);
