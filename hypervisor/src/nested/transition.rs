//! Loading a CR3 at a nested transition (`nested_vmx_load_cr3`, `nested_svm_load_cr3`): the half page of code that
//! rolecall was written for. Which of its two halves comes first is history. With it, the moment at which a vCPU is in
//! the other context (`enter_guest_mode`, `leave_guest_mode`), and I20.

use crate::run::Run;
use crate::vcpu::VendorState;
use mmu::audit::{Audit, Extent, Finding, Moment};
use mmu::request::Requests;
use mmu::state::{NestedTdp, Nesting};
use sim_core::event::Event;

/// The name of the bug by which a failed entry leaves its flush to L1.
const FAILED_ENTRY: &str = "failed-entry-takes-flush";

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
    /// From here on the vCPU is in this context.
    pub(crate) fn switch_context(&mut self, nesting: Nesting) {
        self.audit_local_requests(nesting, None);
        self.vcpu.nesting = nesting;
    }

    /// Back to L1 from an entry that failed. What the entry asked for stays pending, and is done for L1: an open bug of
    /// KVM (`docs/history.md`).
    pub(crate) fn take_back_entry(&mut self) {
        self.audit_local_requests(Nesting::L1, Some(FAILED_ENTRY));
        self.vcpu.nesting = Nesting::L1;
    }

    /// I20: on VMX L1 and L2 have tags of their own, so that a flush asked for in one context and done in the other misses
    /// (KVM 40e5f9080472). SVM runs both on one ASID, and a flush reaches it from either.
    fn audit_local_requests(&mut self, nesting: Nesting, known: Option<&'static str>) {
        let local = self.vcpu.mmu.requests & (Requests::TLB_FLUSH_CURRENT | Requests::TLB_FLUSH_GUEST);
        let shared = matches!(self.vcpu.vendor, VendorState::Svm(_));
        if shared || local.is_empty() || nesting == self.vcpu.nesting || self.audits != Extent::Everything {
            return;
        }
        let (names, from) = (local.names().join(" and "), self.vcpu.nesting);
        let what = format!("{names} is pending from {from:?} as the vCPU goes to {nesting:?}");
        let mut finding = Finding::new(Audit::RequestContext, &self.subject(), what);
        (finding.moment, finding.known) = (Moment::Rest, known);
        self.ground.record(Event::Finding { audit: finding.audit.name(), text: finding.to_string() });
        self.findings.push(finding);
    }

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
