//! What a vCPU's CPUID says of paging, and the limits of guest entries that follow from it
//! (`vcpu->arch.reserved_gpa_bits`, `guest_can_use(GBPAGES)`, `kvm_mmu->guest_rsvd_check`).
//!
//! KVM computes the reserved bits of an MMU when it initialises it and then keeps them, so that a new CPUID counts only
//! after the stored roles have been declared invalid (`kvm_mmu_after_set_cpuid`). Which bits are reserved without NXE,
//! SMEP and the like follows from the role and is not here. With two-dimensional paging hardware walks the guest's
//! tables by its own limits, whatever the guest's CPUID says: KVM knows of that gap and leaves it.

use crate::change::Change;
use crate::plant::Plant;
use crate::role::ExtRole;
use crate::state::{Config, Ctx, VcpuMmu, View};
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use sim_core::event::MmuId;

bitflags! {
    /// Features of paging that a guest's CPUID shows (SDM 2 CPUID; APM3 appendix E).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct GuestFeatures: u8 {
        /// 1 GiB pages: without them the page-size bit of a PDPTE is reserved.
        const PAGE_1G = 1 << 0;
        /// CR4.SMEP.
        const SMEP = 1 << 1;
        /// CR4.SMAP.
        const SMAP = 1 << 2;
        /// CR4.LA57.
        const LA57 = 1 << 3;
    }
}

/// A vCPU's CPUID, as far as paging goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestCpuid {
    /// Physical-address bits that its entries may use (8000_0008h).
    pub maxphyaddr: u32,
    /// Its features.
    pub features: GuestFeatures,
}

impl GuestCpuid {
    /// Everything that the host has (`KVM_GET_SUPPORTED_CPUID`).
    #[must_use]
    pub const fn of_host(config: &Config) -> Self {
        Self { maxphyaddr: config.maxphyaddr, features: GuestFeatures::all() }
    }

    /// What follows for an MMU that is initialised now.
    #[must_use]
    pub const fn limits(self) -> EntryLimits {
        let giant =
            if self.features.contains(GuestFeatures::PAGE_1G) { GiantPages::Exist } else { GiantPages::Reserved };
        EntryLimits { maxphyaddr: self.maxphyaddr, giant }
    }
}

/// Whether the guest's PDPTEs may map 1 GiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GiantPages {
    /// They may.
    Exist,
    /// The page-size bit is reserved.
    Reserved,
}

/// The limits of guest entries as an MMU knows them since its last initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EntryLimits {
    /// Address bits from this one up are reserved.
    pub maxphyaddr: u32,
    /// See [`GiantPages`].
    pub giant: GiantPages,
}

impl Ctx<'_> {
    /// `kvm_mmu_after_set_cpuid`: no stored role counts, so that every MMU is initialised anew when it is next asked for.
    pub fn after_set_cpuid(&mut self, vcpu: &mut VcpuMmu, view: &View) {
        // Up to v5.13 only what the roles tell by themselves is seen.
        if self.vm.changes.has(Change::CpuidResetsAll) && !self.vm.plants.has(Plant::CpuidKeepsRoles) {
            for id in [MmuId::Root, MmuId::Guest, MmuId::Nested] {
                vcpu.get_mut(id).cpu_role.ext.remove(ExtRole::VALID);
            }
        }
        self.reset_context(vcpu, view);
    }
}
