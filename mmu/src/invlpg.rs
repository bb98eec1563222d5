//! INVLPG and INVPCID of one address in the shadow (KVM v5.17 `FNAME(invlpg)`, `kvm_mmu_invlpg`, `kvm_mmu_invpcid_gva`; v6.4
//! `__kvm_mmu_invalidate_addr`): the leaf of the address goes, if its table is out of sync, and from v6.4 on only if it no longer
//! agrees with the guest's entry. Up to v6.3 the guest's entry is read again at once, as for a prefetch. Tables in sync need
//! nothing, for the write that changed them was seen.

use crate::change::Change;
use crate::load::Which;
use crate::mmio::forget_mmio;
use crate::plant::Plant;
use crate::spte;
use crate::state::{Ctx, Mmu, TdpMode, VcpuMmu};
use sim_core::addr::{Hpa, Level};

/// What a kernel dies of where an address is invalidated in a cached 64-bit root while the current root is a PAE one: the BUG_ON in
/// `shadow_walk_init_using_root`, met on v6.1 and v6.12.
pub const PREVIOUS_UNDER_PAE: &str = "a previous root is walked with the levels of a PAE root (BUG_ON)";

impl Ctx<'_> {
    /// `kvm_mmu_invalidate_gva`: in the current and every previous root, since a global mapping may be in all of them.
    pub fn invlpg(&mut self, vcpu: &mut VcpuMmu, address: u64) {
        self.invlpg_roots(vcpu, address, |_| true);
    }

    /// The same for the current and those previous roots that are chosen, as `kvm_mmu_invpcid_gva` does it.
    pub fn invlpg_roots(&mut self, vcpu: &mut VcpuMmu, address: u64, chosen: impl Fn(Which) -> bool) {
        let mmu = vcpu.active().clone();
        forget_mmio(vcpu, Some(address));
        if mmu.is_direct() {
            return;
        }
        let only_current = self.vm.plants.has(Plant::InvlpgCurrentOnly);
        let prev = mmu.prev.iter().enumerate().filter(|(slot, _)| chosen(Which::Prev(*slot)) && !only_current);
        let prev = prev.filter_map(|(_, root)| Some((Level::from_number(mmu.shadow_root_level)?, root.hpa)));
        let current = if chosen(Which::Current) { self.shadow_start(&mmu, address) } else { None };
        let pae = self.vm.config.tdp == TdpMode::Off && mmu.root_level < 4;
        if pae && mmu.prev.iter().enumerate().any(|(slot, root)| root.is_valid() && chosen(Which::Prev(slot))) {
            // The kernel ends here; the model goes on, as if the root were walked by its own levels.
            self.warn_of(PREVIOUS_UNDER_PAE, Some("invlpg-under-pae"));
        }
        for start in current.into_iter().chain(prev).collect::<Vec<_>>() {
            self.invlpg_below(&mmu, start, address);
        }
    }

    fn invlpg_below(&mut self, mmu: &Mmu, (mut level, mut table): (Level, Hpa), address: u64) {
        while let Some(page) = self.vm.pages.at(table) {
            let (unsync, role) = (page.unsync, page.role);
            let sptep = table.offset(level.index(address) * 8);
            let entry = self.ground.mem.read_u64(sptep);
            if !spte::is_present(entry) || spte::is_leaf(entry, level) {
                if unsync && self.vm.changes.has(Change::InvlpgSyncs) {
                    self.sync_leaf(mmu, table, role, sptep);
                } else if unsync {
                    if !self.clear_mmio(sptep) && spte::is_present(entry) {
                        self.drop_leaf(sptep);
                    }
                    self.prefetch_again(mmu, sptep);
                }
                return;
            }
            let Some(below) = level.down() else { return };
            (level, table) = (below, spte::frame(entry).base());
        }
    }
}
