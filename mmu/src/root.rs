//! The root cache: which root a new CR3, EPTP or nested CR3 gets (`__kvm_mmu_new_pgd` and below).
//!
//! An MMU has a current root and three previous ones, most recently used first. v5.17 swaps the current root through
//! all of them and lets the caller free what ends up current on a miss; v5.18 does the same while the current root is
//! valid and searches without disturbing the order when it is not.

use crate::change::Change;
use crate::compute;
use crate::plant::Plant;
use crate::request::Requests;
use crate::role::{ExtRole, PageRole};
use crate::state::{Ctx, FlushOnReuse, Mmu, PREV_ROOTS, Root, VcpuMmu, View, Vm};
use sim_core::event::{Event, MmuId, PgdOutcome};

/// `is_root_usable`: the whole role word must match, `invalid` included; a direct root serves every CR3.
fn is_usable(vm: &Vm, root: Root, pgd: u64, role: PageRole) -> bool {
    let any_pgd = role.direct() == 1 && vm.changes.has(Change::DirectIgnoresCr3);
    let same_pgd = any_pgd || root.pgd == pgd || vm.plants.has(Plant::LookupIgnoresPgd);
    let any_role = vm.plants.has(Plant::LookupIgnoresRole);
    same_pgd && vm.pages.at(root.hpa).is_some_and(|page| any_role || page.role == role)
}

/// `cached_root_available` (v5.17), `cached_root_find_and_keep_current` (v5.18): on a miss the least recently used
/// root is current and the caller must free it.
fn rotate(vm: &Vm, mmu: &mut Mmu, pgd: u64, role: PageRole) -> PgdOutcome {
    if vm.changes.switch_retags_root() && mmu.id == MmuId::Guest {
        // What the old root was built for is asked of the vCPU, which has the new EPTP already; and no look at the root itself.
        mmu.root.pgd = pgd;
    } else if is_usable(vm, mmu.root, pgd, role) {
        return PgdOutcome::Kept;
    }
    for slot in 0..PREV_ROOTS {
        std::mem::swap(&mut mmu.root, &mut mmu.prev[slot]);
        if is_usable(vm, mmu.root, pgd, role) {
            return PgdOutcome::Hit(slot as u8);
        }
    }
    PgdOutcome::Miss
}

/// `cached_root_find_without_current` (v5.18): the current slot is empty; a hit closes the gap that it leaves.
fn search(vm: &Vm, mmu: &mut Mmu, pgd: u64, role: PageRole) -> PgdOutcome {
    let Some(slot) = (0..PREV_ROOTS).find(|slot| is_usable(vm, mmu.prev[*slot], pgd, role)) else {
        return PgdOutcome::Miss;
    };
    mmu.root = mmu.prev[slot];
    mmu.prev.copy_within(slot + 1.., slot);
    mmu.prev[PREV_ROOTS - 1] = Root::NONE;
    PgdOutcome::Hit(slot as u8)
}

impl Ctx<'_> {
    /// `kvm_mmu_new_pgd`: gives `arch.mmu` a root for a CR3. Up to v5.17 the role looked up is computed from the
    /// registers as they are now; from d2e5f3334169 on it is the one that the last initialisation stored.
    pub fn new_pgd(&mut self, vcpu: &mut VcpuMmu, view: &View, pgd: u64) {
        let role = if self.vm.changes.looks_up_stored_role() {
            vcpu.active().root_role
        } else {
            compute::lookup(&self.vm.config, self.vm.changes, view)
        };
        self.new_pgd_for_role(vcpu, pgd, role);
    }

    /// `__kvm_mmu_new_pgd`.
    pub fn new_pgd_for_role(&mut self, vcpu: &mut VcpuMmu, pgd: u64, role: PageRole) {
        let outcome = self.switch_root(vcpu, pgd, role);
        let mmu = vcpu.active();
        self.ground.record(Event::PgdLookup {
            mmu: mmu.id,
            pgd,
            role: role.word(),
            outcome,
            current: self.vm.root_view(mmu.root),
            prev: mmu.prev.map(|root| self.vm.root_view(root)),
        });
        if matches!(outcome, PgdOutcome::Miss | PgdOutcome::NotCacheable) {
            return;
        }
        vcpu.requests.post(self.ground, Requests::LOAD_MMU_PGD);
        if self.vm.config.flush_on_reuse == FlushOnReuse::Yes {
            vcpu.requests.post(self.ground, Requests::MMU_SYNC | Requests::TLB_FLUSH_CURRENT);
        }
        let hpa = vcpu.active().root.hpa;
        if role.direct() == 0 {
            self.note_use(hpa);
        }
    }

    /// Up to v5.0 the role that is looked up for a direct root tells PAE, and the root's own never does: all roots go by.
    fn never_finds(&self, mmu: &Mmu, role: PageRole) -> bool {
        let pae = mmu.cpu_role.ext.contains(ExtRole::CR4_PAE);
        role.direct() == 1 && pae && !self.vm.changes.has(Change::NptPrevRoots)
    }

    /// `fast_pgd_switch` and what its callers do on a miss: afterwards the current root is usable or empty.
    fn switch_root(&mut self, vcpu: &mut VcpuMmu, pgd: u64, role: PageRole) -> PgdOutcome {
        let id = vcpu.active().id;
        if self.vm.changes.has(Change::CacheKeepsCurrent) {
            let root = vcpu.active().root;
            if root.is_valid() && self.vm.pages.at(root.hpa).is_none() {
                self.free_current(vcpu, id);
            }
            if !vcpu.active().root.is_valid() {
                return search(self.vm, vcpu.active_mut(), pgd, role);
            }
        } else if vcpu.active().shadow_root_level < 4 || vcpu.active().root_level < 4 {
            // The levels are those stored now: after an early re-initialisation they no longer describe this root.
            self.free_current(vcpu, id);
            return PgdOutcome::NotCacheable;
        }
        if self.never_finds(vcpu.active(), role) {
            self.free_current(vcpu, id);
            return PgdOutcome::Miss;
        }
        let outcome = rotate(self.vm, vcpu.active_mut(), pgd, role);
        if outcome == PgdOutcome::Miss {
            self.free_current(vcpu, id);
        }
        outcome
    }
}
