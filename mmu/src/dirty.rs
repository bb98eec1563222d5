//! Dirty logging in the MMU's entries (KVM v5.17 `kvm_mmu_slot_apply_flags`, `kvm_arch_mmu_enable_log_dirty_pt_masked` and
//! what they call): every frame that is not in the log can't be written without L0 noticing, by write protection or, with
//! the page-modification log, by a cleared dirty bit.
//!
//! Entries of L2 have no page-modification log (role.guest_mode, [`AdType::WriteProtectOnly`]), and entries without
//! accessed and dirty bits have none either: these are always write-protected. Shadow and TDP MMU differ in how entries are
//! found, not in what becomes of them. A large page of a slot that starts to log is write-protected
//! whole if it was not split (v5.18), and the fault that follows maps small pages.

use crate::change::Change;
use crate::memslot::{AddressSpace, Memslot};
use crate::plant::Plant;
use crate::request::Requests;
use crate::spte::{AdType, ProtectFor};
use crate::state::{Ctx, Pml};
use sim_core::addr::{Gfn, Hpa, Level};
use std::ops::Range;

/// How writes through an entry are made noticeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Write permission is taken; the fast path may give it back.
    Protect,
    /// The dirty bit is cleared, where the entry has one that hardware logs.
    ClearDirty,
}

impl Ctx<'_> {
    /// The first slot logs, or the last one no longer does: every vCPU's page-modification log follows
    /// (`kvm_mmu_update_cpu_dirty_logging`).
    pub fn update_cpu_dirty_logging(&mut self) {
        if self.vm.config.pml == Pml::On {
            self.vm.broadcast |= Requests::UPDATE_CPU_DIRTY_LOGGING;
        }
    }

    /// A slot begins to log (`kvm_mmu_slot_remove_write_access`, or `kvm_mmu_slot_leaf_clear_dirty` with the
    /// page-modification log, which leaves only large pages to write protection).
    pub fn start_dirty_log(&mut self, space: AddressSpace, slot: &str) {
        let Some(range) = self.frames_of_slot(space, slot) else { return };
        let (small, large) = match self.vm.config.pml {
            Pml::Off => (Method::Protect, Method::Protect),
            Pml::On => (Method::ClearDirty, Method::Protect),
        };
        if self.vm.changes.has(Change::EagerSplit) {
            self.split_large_pages(space, &range);
        }
        let mut changed = false;
        for sptep in self.leaves_in(space, &range) {
            let method = if self.level_of(sptep) == Some(Level::L1) { small } else { large };
            changed |= self.make_noticeable(sptep, method);
        }
        self.flush_slot_log(changed);
    }

    /// A slot logs no longer: small pages that could be large again are dropped (`kvm_mmu_zap_collapsible_sptes`).
    pub fn stop_dirty_log(&mut self, space: AddressSpace, slot: &str) {
        let Some(range) = self.frames_of_slot(space, slot) else { return };
        for sptep in self.leaves_in(space, &range) {
            let level = self.level_of(sptep);
            let direct = self.vm.pages.at(sptep.page_base()).filter(|page| !page.is_indirect());
            let gfn = direct.and_then(|page| page.direct_gfn(sptep.page_offset() / 8));
            let (Some(level), Some(gfn)) = (level, gfn) else { continue };
            if crate::huge::max_mapping_level(self.vm, space, gfn, Level::L3) > level {
                self.drop_leaf(sptep);
            }
        }
    }

    /// Frames of a slot leave the log and are watched again (`kvm_arch_mmu_enable_log_dirty_pt_masked`).
    pub fn watch_dirty(&mut self, space: AddressSpace, gfns: &[Gfn]) {
        let method = match self.vm.config.pml {
            Pml::Off => Method::Protect,
            Pml::On => Method::ClearDirty,
        };
        let mut changed = false;
        for gfn in gfns {
            for sptep in self.vm.pages.mappings(space, *gfn) {
                // A large page that covers the frame stays protected from when the slot began to log.
                if self.level_of(sptep) == Some(Level::L1) && !self.vm.plants.has(Plant::NoProtectAfterDirtyLog) {
                    changed |= self.make_noticeable(sptep, method);
                }
            }
        }
        // KVM flushes whenever it gave userspace a bit, whether or not an entry changed: one that lost its write
        // permission before may still be cached.
        self.flush_slot_log(changed || !gfns.is_empty());
    }

    /// One entry; whether it changed.
    fn make_noticeable(&mut self, sptep: Hpa, method: Method) -> bool {
        let format = self.vm.config.tdp.spte_format();
        let old = self.ground.mem.read_u64(sptep);
        let page = self.vm.pages.at(sptep.page_base());
        let (role, tdp) = page.map(|page| (page.role, page.is_tdp())).unwrap_or_default();
        let logged_by_hardware = match AdType::of(role, self.vm.config.pml) {
            AdType::Enabled => true,
            AdType::WriteProtectOnly => {
                (tdp && self.vm.changes.clears_dirty_of_l2()) || self.vm.plants.has(Plant::ClearDirtyOfL2)
            }
            AdType::Disabled => false,
        };
        let new = match method {
            Method::ClearDirty if logged_by_hardware => old & !format.bits().dirty,
            Method::ClearDirty | Method::Protect => format.write_protected(old, ProtectFor::DirtyLog),
        };
        if new != old {
            self.ground.mem.write_u64(sptep, new);
        }
        new != old
    }

    fn flush_slot_log(&mut self, changed: bool) {
        if changed && !self.vm.plants.has(Plant::NoFlushForDirtyLog) {
            self.flush_remote();
        }
    }

    /// Leaf entries that map frames of a range, of the shadow and the TDP MMU.
    pub(crate) fn leaves_in(&self, space: AddressSpace, range: &Range<u64>) -> Vec<Hpa> {
        self.vm.pages.mappings_between(space, range.clone())
    }

    pub(crate) fn level_of(&self, sptep: Hpa) -> Option<Level> {
        self.vm.pages.at(sptep.page_base())?.role.page_level()
    }

    fn frames_of_slot(&self, space: AddressSpace, slot: &str) -> Option<Range<u64>> {
        let Memslot { gfn, frames, .. } = self.vm.slots.named(space, slot)?;
        Some(gfn.0..gfn.0 + frames)
    }

    /// The page-modification log named these frames (`kvm_vcpu_mark_page_dirty`).
    pub fn mark_dirty(&mut self, space: AddressSpace, gfn: Gfn) {
        if let Some(slot) = self.vm.slots.find_mut(space, gfn) {
            slot.mark_dirty(gfn);
        }
    }
}
