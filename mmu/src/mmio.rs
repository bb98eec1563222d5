//! Entries for addresses without a slot (KVM v5.17 `mark_mmio_spte`, `handle_mmio_page_fault`, `check_mmio_spte`): hardware
//! faults on them with a reserved bit or an EPT misconfiguration, and L0 knows without a walk that the access is MMIO, as
//! long as the slots are those of the entry's generation. Beside them, a vCPU keeps the last such address
//! (`vcpu_cache_mmio_info`).

use crate::change::Change;
use crate::fault::FaultOutcome;
use crate::guest_walk::WalkFault;
use crate::leaf::{Install, Installed};
use crate::memslot::{AddressSpace, Update};
use crate::permission::{Attempt, faults};
use crate::plant::Plant;
use crate::spte;
use crate::state::{Ctx, Mmu, NestedTdp, VcpuMmu, View};
use crate::stats::Stat;
use serde::{Deserialize, Serialize};
use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::event::Event;

/// The last MMIO address of a vCPU (`arch.mmio_gva`, `mmio_gfn`, `mmio_access`, `mmio_gen`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MmioInfo {
    /// The page of its linear address; 0 where the fault had none.
    pub page: u64,
    /// Its guest frame.
    pub gfn: Gfn,
    /// What the guest's tables allow there.
    pub access: u32,
    /// The generation of the slots then.
    pub generation: u64,
}

/// What an MMIO entry says about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmioVerdict {
    /// The access is MMIO, or faults in the guest.
    Known(FaultOutcome),
    /// The entry is of an older generation: the fault is one like any other.
    Stale,
    /// There is no such entry: what faulted is gone already.
    Gone,
}

impl Ctx<'_> {
    /// The generation that an MMIO entry carries now; none while the slots are being changed.
    fn mmio_generation(&self, space: AddressSpace) -> Option<u64> {
        (self.vm.slots.update == Update::Idle).then(|| self.marked_generation(space))
    }

    /// As much of the generation as an entry holds.
    fn marked_generation(&self, space: AddressSpace) -> u64 {
        self.vm.slots.generation(space) & self.vm.config.mmio_generation_mask()
    }

    /// An entry that a page fault makes (`mmu_set_spte`), and the fault's result.
    pub(crate) fn install_mmio(&mut self, install: &Install) -> Installed {
        if self.mark_mmio(install) {
            self.vm.stats.count(Stat::PfMmioSpteCreated);
        }
        Installed::Emulate
    }

    /// `mark_mmio_spte`. Whether there is such an entry now.
    fn mark_mmio(&mut self, install: &Install) -> bool {
        let Install { sptep, level, gfn, access, .. } = *install;
        let format = self.vm.config.tdp.spte_format();
        let old = self.ground.mem.read_u64(sptep);
        if spte::is_present(old) && spte::is_leaf(old, level) {
            self.drop_leaf(sptep);
        }
        let role = self.vm.pages.at(sptep.page_base()).map(|page| page.role).unwrap_or_default();
        let generation = self.marked_generation(AddressSpace::of_role(role));
        let value = format.mmio(gfn, access, generation, self.vm.config.maxphyaddr);
        if let Some(value) = value {
            self.ground.mem.write_u64(sptep, value);
            self.ground.record(Event::MarkMmio { sptep, gfn, access, generation });
        }
        value.is_some()
    }

    /// `handle_mmio_page_fault`: hardware found a reserved bit or a misconfiguration.
    pub(crate) fn mmio_fault(
        &mut self,
        vcpu: &mut VcpuMmu,
        view: &View,
        address: u64,
        attempt: Attempt,
    ) -> MmioVerdict {
        let mmu = vcpu.active().clone();
        if let Some(known) = self.cached_mmio(vcpu, &mmu, view.space(), (address, attempt)) {
            return MmioVerdict::Known(known);
        }
        let Some(entry) = self.mmio_entry(&mmu, address) else { return MmioVerdict::Gone };
        let format = self.vm.config.tdp.spte_format();
        let (gfn, made) = (format.mmio_gfn(entry), spte::mmio_generation(entry));
        let now = self.mmio_generation(view.space());
        let kvm_generation = self.marked_generation(view.space());
        self.ground.record(Event::CheckMmio { spte: entry, kvm_generation, spte_generation: made });
        let ignores = self.vm.plants.has(Plant::MmioAnyGeneration);
        if now != Some(made) && !ignores {
            return MmioVerdict::Stale;
        }
        let access = format.mmio_access(entry);
        self.ground.record(Event::HandleMmio { address, gfn, access });
        MmioVerdict::Known(self.known_mmio(vcpu, &mmu, view, address, (gfn, attempt)))
    }

    /// The access is to an address without a slot. Emulating it walks the guest's tables, which may say otherwise by now.
    fn known_mmio(
        &mut self,
        vcpu: &mut VcpuMmu,
        mmu: &Mmu,
        view: &View,
        address: u64,
        (gfn, attempt): (Gfn, Attempt),
    ) -> FaultOutcome {
        let gpa = |gfn: Gfn| gfn.base().offset(address & 0xfff);
        if mmu.is_direct() {
            self.cache_mmio(
                vcpu,
                view.space(),
                MmioInfo { page: 0, gfn, access: crate::role::ACCESS_ALL, generation: 0 },
            );
            return FaultOutcome::Mmio(gpa(gfn));
        }
        match self.walk_guest(mmu, view, address, attempt) {
            Ok(walk) if walk.gfn == gfn => {
                let info = MmioInfo { page: address & !0xfff, gfn, access: walk.access, generation: 0 };
                self.cache_mmio(vcpu, view.space(), info);
                FaultOutcome::Mmio(gpa(gfn))
            }
            Ok(_) => FaultOutcome::Retry,
            Err(fault @ (WalkFault::Page(_) | WalkFault::EptViolation(_) | WalkFault::EptMisconfiguration)) => {
                FaultOutcome::Inject(fault)
            }
        }
    }

    /// `vcpu_cache_mmio_info`: nothing is kept while the slots are being changed.
    fn cache_mmio(&self, vcpu: &mut VcpuMmu, space: AddressSpace, info: MmioInfo) {
        if let Some(generation) = self.mmio_generation(space) {
            vcpu.mmio = Some(MmioInfo { generation, ..info });
        }
    }

    /// `mmio_info_in_cache`: never under nested paging, where the fault's address is L2's guest-physical one.
    fn cached_mmio(
        &self,
        vcpu: &VcpuMmu,
        mmu: &Mmu,
        space: AddressSpace,
        (address, attempt): (u64, Attempt),
    ) -> Option<FaultOutcome> {
        let info = vcpu.mmio.filter(|info| Some(info.generation) == self.mmio_generation(space))?;
        if vcpu.nested_tdp == NestedTdp::Active {
            return None;
        }
        let same = if mmu.is_direct() {
            info.gfn == sim_core::Gpa(address).frame()
        } else {
            info.page != 0 && info.page == address & !0xfff && !faults(mmu.paging, mmu.cpu_role, info.access, attempt)
        };
        same.then(|| FaultOutcome::Mmio(info.gfn.base().offset(address & 0xfff)))
    }

    /// The MMIO entry that hardware ran into, if it is still there (`get_mmio_spte`).
    fn mmio_entry(&mut self, mmu: &Mmu, address: u64) -> Option<u64> {
        let format = self.vm.config.tdp.spte_format();
        let (mut level, mut table) = self.shadow_start(mmu, address)?;
        loop {
            let entry = self.ground.mem.read_u64(table.offset(level.index(address) * 8));
            if format.is_mmio(entry) {
                return Some(entry);
            }
            if !spte::is_present(entry) || spte::is_leaf(entry, level) {
                return None;
            }
            (level, table) = (level.down()?, spte::frame(entry).base());
        }
    }

    /// Clears an MMIO entry, if it is one: no processor can have cached it, so nothing is flushed.
    pub(crate) fn clear_mmio(&mut self, sptep: Hpa) -> bool {
        let is_mmio = self.vm.config.tdp.spte_format().is_mmio(self.ground.mem.read_u64(sptep));
        if is_mmio {
            self.ground.mem.write_u64(sptep, 0);
        }
        is_mmio
    }

    /// `sync_mmio_spte`: an MMIO entry of a table that is synchronised. It stays, with the generation of now, if the guest
    /// still maps the same frame and no slot has come to back it.
    pub(crate) fn sync_mmio(&mut self, sptep: Hpa, mapped: Option<(Gfn, u32)>) {
        let entry = self.ground.mem.read_u64(sptep);
        let format = self.vm.config.tdp.spte_format();
        match mapped {
            Some((gfn, access)) if gfn == format.mmio_gfn(entry) => {
                let tables = crate::unsync::Tables::StayInSync;
                let (wants, purpose) = (crate::leaf::Wants::Read, spte::Purpose::Prefetch);
                let level = Level::L1;
                self.mark_mmio(&Install { sptep, level, gfn, page: None, access, wants, tables, purpose });
            }
            _ => {
                self.clear_mmio(sptep);
            }
        }
    }

    /// `kvm_mmu_invalidate_mmio_sptes`: when the generation's bits in the entries run out, entries of the first generation
    /// would look valid again, so all are zapped. Until e1359e2beb8b only the generation 0 was looked for, which SMM's slots,
    /// whose generations are odd, never have.
    pub fn invalidate_mmio(&mut self, spaces: &[AddressSpace]) {
        let count = AddressSpace::ALL.len() as u64;
        let number = if self.vm.changes.has(Change::MmioWrapAnySpace) { count - 1 } else { 0 };
        let over = |space: &AddressSpace| self.marked_generation(*space) & !number == 0;
        let begun = |space: &AddressSpace| self.vm.slots.generation(*space) >= count;
        if spaces.iter().any(|space| begun(space) && over(space)) {
            self.zap_all_fast();
        }
    }
}

/// `vcpu_clear_mmio_info`: one page, or all.
pub fn forget_mmio(vcpu: &mut VcpuMmu, page: Option<u64>) {
    if page.is_none_or(|address| vcpu.mmio.is_some_and(|info| info.page == address & !0xfff)) {
        vcpu.mmio = None;
    }
}
