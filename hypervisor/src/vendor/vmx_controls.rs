//! CR0, CR4 and EFER of a VMX guest as hardware must have them, and which of their bits the guest changes without an exit (KVM v5.17
//! `vmx_set_cr0`, `vmx_set_cr4`, `vmx_set_efer`, `set_cr4_guest_host_mask`). Left out: CR0.TS, which KVM leaves to the guest as well.

use crate::run::Run;
use ::mmu::Change;
use ::mmu::state::Nesting;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use vmx::Field;
use vmx::controls::EntryControls;

/// Bits of CR4 that no role depends on (`KVM_POSSIBLE_CR4_GUEST_BITS`).
const POSSIBLE_GUEST_CR4: Cr4 = Cr4::PVI
    .union(Cr4::DE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT)
    .union(Cr4::PGE)
    .union(Cr4::TSD)
    .union(Cr4::FSGSBASE);

const SMEP_KEPT: &str = "SMEP and SMAP stay what they were as paging is switched (vmx_set_cr0 without EPT)";

impl Run<'_> {
    /// `vmx_set_cr0`, `vmx_set_cr4`, `vmx_set_efer`.
    pub(crate) fn vmx_write_controls(&mut self) {
        let (cr0, cr4, efer) = (self.vcpu.cr0, self.vcpu.cr4, self.vcpu.efer);
        let long = efer.contains(Efer::LMA);
        let (hardware_cr0, hardware_cr4, hardware_efer) = if self.tdp() {
            ((cr0 - (Cr0::NW | Cr0::CD)) | Cr0::NE, cr4 | Cr4::VMXE, efer)
        } else {
            // Shadow tables are PAE or 64-bit tables whatever the guest uses, and need WP and NX to do their work.
            let unpaged = if cr0.contains(Cr0::PG) { Cr4::empty() } else { Cr4::SMEP | Cr4::SMAP };
            let efer = if long { efer } else { efer - Efer::LME };
            (
                (cr0 - (Cr0::NW | Cr0::CD)) | Cr0::NE | Cr0::WP | Cr0::PG | Cr0::PE,
                (cr4 - unpaged) | Cr4::VMXE | Cr4::PAE,
                efer | Efer::NXE,
            )
        };
        let entry = EntryControls::from_bits_retain(self.vmread(Field::EntryControls) as u32);
        let entry =
            if long { entry | EntryControls::IA32E_MODE_GUEST } else { entry - EntryControls::IA32E_MODE_GUEST };
        let (shadow0, shadow4) = self.cr_read_shadows();
        for (field, value) in [
            (Field::Cr0GuestHostMask, !self.guest_owned_cr0().bits()),
            (Field::Cr4GuestHostMask, !self.guest_owned_cr4().bits()),
            (Field::GuestCr0, hardware_cr0.bits()),
            (Field::GuestCr4, hardware_cr4.bits()),
            (Field::GuestEfer, (hardware_efer - Efer::SVME).bits()),
            (Field::EntryControls, u64::from(entry.bits())),
            (Field::Cr0ReadShadow, shadow0),
            (Field::Cr4ReadShadow, shadow4),
        ] {
            self.vmwrite(field, value);
        }
    }

    /// Without EPT hardware always has paging, so SMEP and SMAP must be off in its CR4 while the guest has none. `vmx_set_cr4` sees to
    /// that, `vmx_set_cr0` does not: they stay what they are where paging is switched, and a guest that has switched it off under
    /// SMEP can fetch nothing more, since pages without paging are the user's.
    pub(crate) fn vmx_write_cr0_and_efer(&mut self) {
        let before = self.vmread(Field::GuestCr4);
        self.vmx_write_controls();
        if self.tdp() || !self.vm.changes.has(Change::VmxUnpagedKeepsSmep) {
            return;
        }
        let bits = (Cr4::SMEP | Cr4::SMAP).bits();
        let right = self.vmread(Field::GuestCr4);
        let kept = (right & !bits) | (before & bits);
        if kept != right {
            self.vmwrite(Field::GuestCr4, kept);
            self.mmu(|ctx, _, _| ctx.warn_of(SMEP_KEPT, Some("vmx-unpaged-smep")));
        }
    }

    /// Bits of CR0 that the guest changes without an exit (`cr0_guest_owned_bits`): none that L1 wants to see L2 change.
    pub(super) fn guest_owned_cr0(&self) -> Cr0 {
        if !self.tdp() || !self.vm.changes.has(Change::WpGuestOwned) {
            return Cr0::empty();
        }
        match self.vcpu.nesting {
            Nesting::L1 => Cr0::WP,
            Nesting::L2 => Cr0::WP - Cr0::from_bits_retain(self.vmcs12().get(Field::Cr0GuestHostMask)),
        }
    }

    /// Bits of CR4 that the guest changes without an exit (`set_cr4_guest_host_mask`): none that L1 wants to see L2 change, and PGE,
    /// which flushes and loads PDPTEs, with EPT alone.
    pub(super) fn guest_owned_cr4(&self) -> Cr4 {
        let possible = if self.tdp() { POSSIBLE_GUEST_CR4 } else { POSSIBLE_GUEST_CR4 - Cr4::PGE };
        let owned = possible & self.cr4_offered();
        match self.vcpu.nesting {
            Nesting::L1 => owned,
            Nesting::L2 => owned - Cr4::from_bits_retain(self.vmcs12().get(Field::Cr4GuestHostMask)),
        }
    }
}
