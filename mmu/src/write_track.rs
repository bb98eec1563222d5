//! Guest frames that hold shadowed tables (KVM v5.17 `account_shadowed`, `kvm_mmu_slot_gfn_write_protect`,
//! `kvm_mmu_pte_write`): nothing may write them unnoticed, no large page may cover them, and a write that is noticed
//! changes the shadow.
//!
//! Write protection reaches the mappings of both address spaces, since SMM shares its memory with the rest of the guest here;
//! KVM asks the reverse map of the shadow's own slot alone.

use crate::change::Change;
use crate::memslot::AddressSpace;
use crate::page::ShadowPage;
use crate::plant::Plant;
use crate::role::PageRole;
use crate::spte::{self, ProtectFor};
use crate::state::{Ctx, Mmu, View};
use crate::stats::Stat;
use sim_core::addr::{Gfn, Gpa, Hpa, Level};
use sim_core::arch::control::Cr4;

impl Ctx<'_> {
    /// `account_shadowed`: a table of this role is shadowed from now on.
    pub(crate) fn account_shadowed(&mut self, gfn: Gfn, role: PageRole) {
        self.vm.pages.indirect += 1;
        if let Some(slot) = self.vm.slots.find_mut(AddressSpace::of_role(role), gfn) {
            slot.disallow_large(gfn);
            if role.level() > 1 {
                *slot.tracked.entry(gfn).or_default() += 1;
            }
        }
        if !self.vm.plants.has(Plant::NoWriteProtect) {
            self.write_protect(gfn);
        }
    }

    /// `unaccount_shadowed`. A slot that is gone has taken its counts along.
    pub(crate) fn unaccount_shadowed(&mut self, gfn: Gfn, role: PageRole) {
        self.vm.pages.indirect = self.vm.pages.indirect.saturating_sub(1);
        if self.vm.plants.has(Plant::NoUnaccount) {
            return;
        }
        let Some(slot) = self.vm.slots.find_mut(AddressSpace::of_role(role), gfn) else { return };
        let balanced = slot.allow_large(gfn);
        if role.level() > 1 {
            match slot.tracked.get_mut(&gfn) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    slot.tracked.remove(&gfn);
                }
            }
        }
        if !balanced {
            self.warn("a large page is allowed more often than it was forbidden (update_gfn_disallow_lpage_count)");
        }
    }

    /// `kvm_slot_page_track_is_active`: a table above level 1 is there.
    #[must_use]
    pub fn is_write_tracked(&self, space: AddressSpace, gfn: Gfn) -> bool {
        self.vm.slots.find(space, gfn).is_some_and(|slot| slot.tracked.contains_key(&gfn))
    }

    /// `rmap_write_protect`: no entry may write a guest frame that holds a shadowed table. Whether any could.
    pub fn write_protect(&mut self, gfn: Gfn) -> bool {
        let format = self.vm.config.tdp.spte_format();
        let mut changed = false;
        for sptep in self.vm.pages.all_mappings(gfn) {
            let old = self.ground.mem.read_u64(sptep);
            if !self.loses_promise(sptep, old) {
                continue;
            }
            let new = format.write_protected(old, ProtectFor::ShadowedTable);
            // An entry that was not writable, but could have become so without the lock, may be writable in a TLB still.
            changed |= format.is_writable(old) || format.is_mmu_writable(old);
            self.ground.mem.write_u64(sptep, new);
        }
        if changed && !self.vm.plants.has(Plant::NoFlushAfterWriteProtect) {
            self.flush_remote();
        }
        changed
    }

    /// Whether write protection looks at an entry that is not writable now. The TDP MMU passed it by until 7c8a4742c4ab,
    /// though the fast path may make it writable.
    fn loses_promise(&self, sptep: Hpa, spte: u64) -> bool {
        let tdp = self.vm.pages.at(sptep.page_base()).is_some_and(ShadowPage::is_tdp);
        let passed_by = tdp && !self.vm.changes.has(Change::ProtectTakesPromise);
        !passed_by || self.vm.config.tdp.spte_format().is_writable(spte)
    }

    /// `kvm_mmu_pte_write`: the guest wrote a shadowed table. Pages written in part or for the third time without
    /// being used are zapped whole, else the entries written. Whoever runs with CR4.PAE is thought to write one half of an entry
    /// of eight bytes where it writes four, also in a table whose entries have four (`mmu_pte_write_fetch_gpte`).
    pub fn pte_write(&mut self, view: &View, gpa: Gpa, bytes: u64) {
        let (gpa, bytes) =
            if view.regs.cr4.contains(Cr4::PAE) && bytes == 4 { (Gpa(gpa.0 & !7), 8) } else { (gpa, bytes) };
        if self.vm.pages.indirect == 0 || self.vm.plants.has(Plant::TableWriteUnseen) {
            return;
        }
        self.vm.stats.count(Stat::PteWrite);
        for table in self.vm.pages.tables_at(gpa.frame()) {
            let Some(page) = self.vm.pages.at_mut(table) else { continue };
            let role = page.role;
            let entry_bytes: u64 = if role.has_4_byte_gpte() == 1 { 4 } else { 8 };
            if is_misaligned(gpa.page_offset(), bytes, entry_bytes) || is_flooded(page) {
                self.vm.stats.count(Stat::Flooded);
                self.prepare_zap(table);
                continue;
            }
            let half = self.vm.plants.has(Plant::OneSpteOfTwo);
            let indices = entries_written(role, gpa.page_offset() / entry_bytes);
            let directory = role.level() > 1 && self.holds_something(role, gpa, bytes);
            for index in indices.into_iter().take(if half { 1 } else { 2 }) {
                self.zap_entry(table, role.level(), index);
                if directory {
                    self.vm.stats.count(Stat::PdeZapped);
                }
            }
        }
        self.commit_zap();
    }

    /// Whether there is something where a table was just written (`mmu_pte_write_fetch_gpte`, which looks only at what four or
    /// eight bytes wrote).
    fn holds_something(&self, role: PageRole, gpa: Gpa, bytes: u64) -> bool {
        let host = self.vm.slots.host(AddressSpace::of_role(role), gpa).filter(|_| matches!(bytes, 4 | 8));
        host.is_some_and(|host| self.ground.mem.read(host, bytes as usize) != 0)
    }

    /// `clear_sp_write_flooding_count`: a shadow page is in use.
    pub(crate) fn note_use(&mut self, table: Hpa) {
        if let Some(page) = self.vm.pages.at_mut(table) {
            page.write_flooding = 0;
        }
    }

    /// `shadow_page_table_clear_flood`: a write to a shadowed table came through these tables, which are in use then.
    pub(crate) fn note_use_of_path(&mut self, mmu: &Mmu, address: u64) {
        let mut next = self.shadow_start(mmu, address);
        while let Some((level, table)) = next {
            self.note_use(table);
            let entry = self.ground.mem.read_u64(table.offset(level.index(address) * 8));
            let ends = !spte::is_present(entry) || spte::is_leaf(entry, level);
            next = if ends { None } else { level.down().map(|below| (below, spte::frame(entry).base())) };
        }
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
    pub(crate) fn maps_memory(&self, sptep: Hpa, level: u32) -> bool {
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
fn entries_written(role: PageRole, gpte: u64) -> Vec<u64> {
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
