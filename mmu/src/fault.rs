//! Page faults: what L0 does when hardware could not translate through the tables that L0 wrote
//! (`kvm_mmu_page_fault`, `FNAME(page_fault)`, `direct_page_fault`).

use crate::guest_walk::WalkFault;
use crate::memslot::{Memslot, Protection, Visibility};
use crate::permission::Attempt;
use crate::role::{ACCESS_ALL, ACCESS_EXEC, ACCESS_USER, ACCESS_WRITE, ExtRole};
use crate::state::{Ctx, Mmu, Nesting, Paging, VcpuMmu, View};
use sim_core::SimError;
use sim_core::addr::{Gfn, Gpa, Hfn};
use sim_core::arch::exception::PageFaultError;

/// What the caller must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The tables now allow the access: run the instruction again.
    Fixed,
    /// Nothing was done; run the instruction again and let it fault anew.
    Retry,
    /// The guest's own tables forbid the access.
    Inject(WalkFault),
    /// The access is a write to a shadowed table: emulate the instruction.
    EmulateWrite(Gpa),
    /// No memslot backs the address: the access is MMIO.
    Mmio(Gpa),
}

/// What backs a guest frame for this vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Host memory.
    Frame(Hfn),
    /// No slot, or none that this vCPU may see.
    None,
}

impl Ctx<'_> {
    /// Handles a fault of the active MMU: `address` is linear for a shadowed guest, guest-physical under TDP, and L2's
    /// guest-physical under nested TDP.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn page_fault(
        &mut self,
        vcpu: &mut VcpuMmu,
        view: &View,
        address: u64,
        attempt: Attempt,
    ) -> Result<FaultOutcome, SimError> {
        let mmu = vcpu.active().clone();
        if !mmu.root.is_valid() {
            self.warn("page fault without a root (kvm_mmu_page_fault)");
            return Ok(FaultOutcome::Retry);
        }
        let stale = self.is_stale(&mmu, vcpu);
        if mmu.is_direct() {
            self.direct_fault(&mmu, view, address, attempt, stale)
        } else {
            self.shadow_fault(&mmu, view, address, attempt, stale)
        }
    }

    fn direct_fault(
        &mut self,
        mmu: &Mmu,
        view: &View,
        address: u64,
        attempt: Attempt,
        stale: Stale,
    ) -> Result<FaultOutcome, SimError> {
        let gpa = Gpa(address);
        let gfn = gpa.frame();
        if self.is_tracked_write(gfn, attempt) {
            return Ok(FaultOutcome::EmulateWrite(gpa));
        }
        match self.backing(view, gfn, attempt) {
            Backing::None => Ok(FaultOutcome::Mmio(gpa)),
            Backing::Frame(frame) => {
                if stale == Stale::Yes {
                    return Ok(FaultOutcome::Retry);
                }
                match mmu.paging {
                    Paging::Tdp => self.tdp_map(mmu, gfn, frame)?,
                    _ => self.direct_map(mmu, address, gfn, frame)?,
                }
                Ok(FaultOutcome::Fixed)
            }
        }
    }

    fn shadow_fault(
        &mut self,
        mmu: &Mmu,
        view: &View,
        address: u64,
        attempt: Attempt,
        stale: Stale,
    ) -> Result<FaultOutcome, SimError> {
        let walk = match self.walk_guest(mmu, view, address, attempt) {
            Ok(walk) => walk,
            Err(fault) => return Ok(FaultOutcome::Inject(fault)),
        };
        let gpa = walk.gfn.base().offset(address & 0xfff);
        if self.is_tracked_write(walk.gfn, attempt) {
            return Ok(FaultOutcome::EmulateWrite(gpa));
        }
        let Backing::Frame(frame) = self.backing(view, walk.gfn, attempt) else {
            return Ok(FaultOutcome::Mmio(gpa));
        };
        if stale == Stale::Yes {
            return Ok(FaultOutcome::Retry);
        }
        let access = without_write_protect(mmu, walk.access, attempt);
        self.fetch(mmu, address, &walk, access, frame)
    }

    /// `page_fault_handle_page_track`: a write to a table above level 1 that is shadowed. Leaf tables may go out of
    /// sync instead.
    fn is_tracked_write(&self, gfn: Gfn, attempt: Attempt) -> bool {
        let upper = |table: &sim_core::Hpa| self.vm.pages.at(*table).is_some_and(|page| page.role.level() > 1);
        attempt.error.contains(PageFaultError::W) && self.vm.pages.tables_at(gfn).iter().any(upper)
    }

    /// `kvm_faultin_pfn`: private slots do not exist for L2, and a read-only slot has nothing to write to.
    #[must_use]
    pub fn backing(&self, view: &View, gfn: Gfn, attempt: Attempt) -> Backing {
        let write = attempt.error.contains(PageFaultError::W);
        let usable = |slot: &&Memslot| {
            (slot.visibility == Visibility::Public || view.nesting == Nesting::L1)
                && (slot.protection == Protection::ReadWrite || !write)
        };
        match self.vm.slots.find(view.space(), gfn).filter(usable).and_then(|slot| slot.translate(gfn)) {
            Some(frame) => Backing::Frame(frame),
            None => Backing::None,
        }
    }

    /// `is_page_fault_stale`: the root became obsolete while the fault was handled, or a root that can't tell has a
    /// reload pending (KVM 18c841e1f411).
    fn is_stale(&self, mmu: &Mmu, vcpu: &VcpuMmu) -> Stale {
        let stale = match self.vm.pages.at(mmu.root.hpa) {
            Some(page) => self.vm.pages.is_obsolete(page),
            None => vcpu.requests.contains(self.reload_request()),
        };
        if stale { Stale::Yes } else { Stale::No }
    }
}

/// Whether a fault was overtaken by the zapping of its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stale {
    Yes,
    No,
}

/// With CR0.WP = 0 a supervisor write to a read-only user page succeeds: the entry gets W and loses U, and loses X too
/// if SMEP would otherwise be lost with U (kvm-mmu.md A.7.10). Nested EPT is wrongly included until v6.17 (C-47).
fn without_write_protect(mmu: &Mmu, access: u32, attempt: Attempt) -> u32 {
    let write = attempt.error.contains(PageFaultError::W) && !attempt.error.contains(PageFaultError::U);
    if !write || access & ACCESS_WRITE != 0 || mmu.cpu_role.base.cr0_wp() == 1 {
        return access;
    }
    let access = (access | ACCESS_WRITE) & !ACCESS_USER & ACCESS_ALL;
    if mmu.cpu_role.ext.contains(ExtRole::CR4_SMEP) { access & !ACCESS_EXEC } else { access }
}
