//! Loading a CR3 at a nested transition (`nested_vmx_load_cr3`, `nested_svm_load_cr3`): the half page of code that
//! rolecall was written for. Which of its two halves comes first is history.

use crate::run::Run;
use mmu::state::NestedTdp;

/// Whether the PDPTEs of a PAE guest are read from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdptes {
    /// They are, as at an entry or exit.
    Reload,
    /// They are not: userspace restored them with the other registers.
    Keep,
}

/// Why a CR3 can't be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadCr3Error {
    /// It names an address beyond MAXPHYADDR.
    Address,
    /// A PDPTE has reserved bits set or can't be read.
    Pdptes,
}

impl Run<'_> {
    /// Loads the CR3 of the side being entered. The vCPU's CR0, CR4, EFER and guest mode are that side's already; the
    /// MMU's stored role is still the side's being left.
    ///
    /// # Errors
    /// If the CR3 or its PDPTEs are not legal; nothing has changed then.
    pub fn nested_load_cr3(&mut self, cr3: u64, nested_tdp: NestedTdp, pdptes: Pdptes) -> Result<(), LoadCr3Error> {
        let flags = if self.vcpu.cr4.contains(sim_core::arch::control::Cr4::PCIDE) { 0xfff } else { 0 };
        if cr3 & !(self.legal_gpa_mask() | flags) != 0 {
            return Err(LoadCr3Error::Address);
        }
        let own_tables = nested_tdp == NestedTdp::Inactive;
        if pdptes == Pdptes::Reload && own_tables && self.vcpu.is_pae() {
            self.load_pdptes(cr3).map_err(|_| LoadCr3Error::Pdptes)?;
        }
        if self.vm.changes.load_cr3_inits_first() {
            self.vcpu.cr3 = cr3;
            self.mmu(|ctx, vcpu, view| ctx.init_mmu(vcpu, view));
            if own_tables {
                self.mmu(|ctx, vcpu, view| ctx.new_pgd(vcpu, view, cr3));
            }
        } else {
            if own_tables {
                self.mmu(|ctx, vcpu, view| ctx.new_pgd(vcpu, view, cr3));
            }
            self.vcpu.cr3 = cr3;
            self.mmu(|ctx, vcpu, view| ctx.init_mmu(vcpu, view));
        }
        self.write_guest_cr3();
        Ok(())
    }
}
