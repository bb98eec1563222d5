//! Page faults: what L0 does when hardware could not translate through the tables that L0 wrote
//! (`kvm_mmu_page_fault`, `FNAME(page_fault)`, `direct_page_fault`).

use crate::change::Change;
use crate::guest_walk::{GuestWalk, WalkFault};
use crate::leaf::Installed;
use crate::memslot::{AddressSpace, HostAccess, HostPage, Memslot, Protection, Visibility};
use crate::mmio::MmioVerdict;
use crate::permission::Attempt;
use crate::plant::Plant;
use crate::role::{ACCESS_ALL, ACCESS_EXEC, ACCESS_USER, ACCESS_WRITE, ExtRole};
use crate::state::{Ctx, DirectMmu, Mmu, Nesting, Paging, VcpuMmu, View};
use crate::stats::Stat;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{Gfn, Gpa, PAGE_OFFSET_MASK};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Backing {
    /// Host memory.
    Page(HostPage),
    /// No slot, or none that this vCPU may see (`KVM_PFN_NOSLOT`).
    None,
    /// A slot that may not be written, and a write (`KVM_PFN_ERR_RO_FAULT`): never cached in an entry.
    NotWritable,
}

/// A page fault after the walk of the guest's tables, which holds nothing that keeps others from changing them: plain
/// data, since between here and [`Ctx::prepare_fault`] other vCPUs and the host may do anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalkedFault {
    /// The faulting address: linear for a shadowed guest, guest-physical otherwise.
    pub address: u64,
    /// The access.
    pub attempt: Attempt,
    /// The guest frame.
    pub gfn: Gfn,
    /// What the guest's own tables say, where they are shadowed.
    pub walk: Option<GuestWalk>,
}

/// What a page fault found before it takes the MMU lock: plain data, since between here and [`Ctx::commit_fault`] other
/// vCPUs and the host may do anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PreparedFault {
    /// The faulting address: linear for a shadowed guest, guest-physical otherwise.
    pub address: u64,
    /// The access.
    pub attempt: Attempt,
    /// The guest frame.
    pub gfn: Gfn,
    /// What the guest's own tables say, where they are shadowed.
    pub walk: Option<GuestWalk>,
    /// The permissions that the entry may have.
    pub access: u32,
    /// What backs the frame.
    pub backing: Backing,
    /// The notifier's sequence when that was looked up (`mmu_notifier_seq`).
    pub sequence: u64,
}

/// How far a part of a page fault comes that does not hold the MMU lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// The fault is handled.
    Done(FaultOutcome),
    /// The next part has this to do.
    Next(Box<T>),
}

impl Ctx<'_> {
    /// Handles a fault of the active MMU (`kvm_mmu_page_fault`): `address` is linear for a shadowed guest, guest-physical
    /// under TDP, and L2's guest-physical under nested TDP.
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
        let walked = match self.walk_fault(vcpu, view, address, attempt) {
            Progress::Done(outcome) => return Ok(outcome),
            Progress::Next(walked) => walked,
        };
        match self.prepare_fault(vcpu, view, *walked) {
            Progress::Done(outcome) => Ok(outcome),
            Progress::Next(prepared) => self.commit_fault(vcpu, view, &prepared),
        }
    }

    /// The first part of a page fault: what the guest's own tables say, where they are shadowed (`FNAME(page_fault)` up to
    /// `FNAME(walk_addr)`).
    pub fn walk_fault(
        &mut self,
        vcpu: &mut VcpuMmu,
        view: &View,
        address: u64,
        attempt: Attempt,
    ) -> Progress<WalkedFault> {
        let mmu = vcpu.active().clone();
        if !mmu.root.is_valid() {
            self.warn("page fault without a root (kvm_mmu_page_fault)");
            return Progress::Done(FaultOutcome::Retry);
        }
        let attempt = match self.reserved_fault(vcpu, view, address, attempt) {
            Ok(attempt) => attempt,
            Err(outcome) => return Progress::Done(outcome),
        };
        self.vm.stats.count(Stat::PfTaken);
        if mmu.is_direct() {
            let gfn = Gpa(address).frame();
            return Progress::Next(Box::new(WalkedFault { address, attempt, gfn, walk: None }));
        }
        match self.walk_guest(&mmu, view, address, attempt) {
            Ok(walk) => Progress::Next(Box::new(WalkedFault { address, attempt, gfn: walk.gfn, walk: Some(walk) })),
            Err(fault) => Progress::Done(FaultOutcome::Inject(fault)),
        }
    }

    /// A fault for a reserved bit is one on an MMIO entry, or one like any other if that entry is out of date.
    fn reserved_fault(
        &mut self,
        vcpu: &mut VcpuMmu,
        view: &View,
        address: u64,
        attempt: Attempt,
    ) -> Result<Attempt, FaultOutcome> {
        if !attempt.error.contains(PageFaultError::RSVD) {
            return Ok(attempt);
        }
        // Hardware reports the entry as present; nothing is there.
        let plain = Attempt { error: attempt.error - PageFaultError::RSVD - PageFaultError::P, ..attempt };
        match self.mmio_fault(vcpu, view, address, plain) {
            // Nothing counts these as page faults.
            MmioVerdict::Known(outcome) => Err(outcome),
            MmioVerdict::Stale => Ok(plain),
            MmioVerdict::Gone => Err(FaultOutcome::Retry),
        }
    }

    /// The second part, still without the MMU lock: write tracking, and looking up the host page (`FNAME(page_fault)` and
    /// `direct_page_fault` up to `kvm_faultin_pfn`).
    pub fn prepare_fault(&mut self, vcpu: &VcpuMmu, view: &View, walked: WalkedFault) -> Progress<PreparedFault> {
        let mmu = vcpu.active();
        if !mmu.root.is_valid() {
            return Progress::Done(FaultOutcome::Retry);
        }
        let WalkedFault { address, attempt, gfn, walk } = walked;
        let gpa = gfn.base().offset(address & PAGE_OFFSET_MASK);
        if self.is_tracked_write(view, gfn, attempt) {
            if walk.is_some() {
                self.note_use_of_path(mmu, address);
            }
            return self.emulated(FaultOutcome::EmulateWrite(gpa));
        }
        if walk.is_none() && self.fast_page_fault(mmu, address, attempt) {
            return Progress::Done(FaultOutcome::Fixed);
        }
        let sequence = self.vm.notifier.sequence;
        let backing = self.backing(view, gfn, attempt);
        if backing == Backing::NotWritable {
            return self.emulated(FaultOutcome::Mmio(gpa));
        }
        let access = walk.as_ref().map_or(ACCESS_ALL, |walk| self.access_of(mmu, walk, backing, attempt));
        Progress::Next(Box::new(PreparedFault { address, attempt, gfn, walk, access, backing, sequence }))
    }

    /// The permissions that the entry may have by the guest's tables.
    fn access_of(&self, mmu: &Mmu, walk: &GuestWalk, backing: Backing, attempt: Attempt) -> u32 {
        match backing {
            Backing::Page(_) if self.vm.plants.has(Plant::Wp0KeepsUser) => {
                walk.access & ACCESS_USER | without_write_protect(mmu, walk.access, attempt)
            }
            Backing::Page(_) => without_write_protect(mmu, walk.access, attempt),
            Backing::None | Backing::NotWritable => walk.access,
        }
    }

    fn emulated(&mut self, outcome: FaultOutcome) -> Progress<PreparedFault> {
        self.vm.stats.count(Stat::PfEmulate);
        Progress::Done(outcome)
    }

    /// The part of a page fault that holds the MMU lock. What was prepared is dropped if the root or the host page was
    /// taken away meanwhile; the guest then faults anew.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn commit_fault(
        &mut self,
        vcpu: &mut VcpuMmu,
        view: &View,
        prepared: &PreparedFault,
    ) -> Result<FaultOutcome, SimError> {
        let mmu = vcpu.active().clone();
        if self.is_stale(&mmu, vcpu, prepared) == Stale::Yes {
            return Ok(FaultOutcome::Retry);
        }
        if mmu.paging != Paging::Tdp || self.vm.config.direct == DirectMmu::Legacy {
            self.make_pages_available();
        }
        let installed = match &prepared.walk {
            Some(walk) => self.fetch(&mut vcpu.requests, &mmu, view, (prepared, walk))?,
            None if mmu.paging == Paging::Tdp && self.vm.config.direct == DirectMmu::Tdp => {
                self.tdp_map(&mmu, view, prepared)?
            }
            None => self.direct_map(&mmu, view, prepared)?,
        };
        let gpa = prepared.gfn.base().offset(prepared.address & PAGE_OFFSET_MASK);
        Ok(match installed {
            Installed::Fixed => {
                self.vm.stats.count(Stat::PfFixed);
                FaultOutcome::Fixed
            }
            Installed::Spurious => {
                self.vm.stats.count(Stat::PfSpurious);
                FaultOutcome::Fixed
            }
            Installed::Retry => FaultOutcome::Retry,
            Installed::Emulate => {
                self.vm.stats.count(Stat::PfEmulate);
                match prepared.backing {
                    Backing::None => FaultOutcome::Mmio(gpa),
                    Backing::Page(_) | Backing::NotWritable => FaultOutcome::EmulateWrite(gpa),
                }
            }
        })
    }

    /// `page_fault_handle_page_track`: a write to a table above level 1 that is shadowed. Leaf tables may go out of
    /// sync instead.
    fn is_tracked_write(&self, view: &View, gfn: Gfn, attempt: Attempt) -> bool {
        let present_write = attempt.error.contains(PageFaultError::W | PageFaultError::P);
        present_write && self.is_write_tracked(view.space(), gfn)
    }

    /// `kvm_faultin_pfn`: private slots do not exist for L2, and a read-only slot has nothing to write to.
    #[must_use]
    pub fn backing(&self, view: &View, gfn: Gfn, attempt: Attempt) -> Backing {
        let forgets = self.vm.plants.has(Plant::PrivateForL2) || !self.vm.changes.has(Change::PrivateSlots);
        let everyone = view.nesting == Nesting::L1 || forgets;
        let visible = |slot: &&Memslot| slot.visibility == Visibility::Public || everyone;
        let space = if self.vm.plants.has(Plant::SmmSlotsForAll) { AddressSpace::Smm } else { view.space() };
        let Some(slot) = self.vm.slots.find(space, gfn).filter(visible) else { return Backing::None };
        let read_only = slot.protection == Protection::ReadOnly;
        if read_only && self.vm.plants.has(Plant::WriteReadOnlySlot) {
            return slot
                .translate(gfn)
                .map_or(Backing::None, |hfn| Backing::Page(HostPage { hfn, access: HostAccess::Writable }));
        }
        if read_only && attempt.error.contains(PageFaultError::W) {
            return Backing::NotWritable;
        }
        slot.page(gfn).map_or(Backing::None, Backing::Page)
    }

    /// `is_page_fault_stale`: the root became obsolete while the fault was handled (KVM a955cad84cda), or a root that can't
    /// tell has a reload pending (KVM 18c841e1f411), or the host took pages away (`mmu_notifier_retry`).
    fn is_stale(&self, mmu: &Mmu, vcpu: &VcpuMmu, prepared: &PreparedFault) -> Stale {
        let has = |change| self.vm.changes.has(change);
        let obsolete = match self.vm.pages.at(mmu.root.hpa) {
            Some(page) => has(Change::RetryInvalidRoot) && self.vm.pages.is_obsolete(page),
            None => has(Change::RetryReload) && vcpu.requests.contains(self.reload_request()),
        };
        let seen = if self.vm.changes.keeps_sequence_in_an_int() {
            i64::from(prepared.sequence as i32).cast_unsigned()
        } else {
            prepared.sequence
        };
        let invalidated = self.vm.notifier.must_retry(prepared.gfn, seen);
        let forgets = self.vm.plants.has(Plant::NoNotifierRetry);
        if !mmu.root.is_valid() || obsolete || (invalidated && !forgets) { Stale::Yes } else { Stale::No }
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
