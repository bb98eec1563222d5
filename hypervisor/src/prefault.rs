//! Page faults that userspace has made for a vCPU outside of its run (`KVM_PRE_FAULT_MEMORY`, 6e01b7601dfe;
//! `kvm_arch_vcpu_pre_fault_memory`, `kvm_tdp_map_page`): none of the vCPU's requests is serviced first, but for what
//! `kvm_mmu_reload` does by itself since 20a6cff3b283.
//!
//! Left out: the ranges and error codes of the ioctl; one frame is mapped, for a read.

use crate::machine::Machine;
use crate::run::Run;
use mmu::Change;
use mmu::fault::FaultOutcome;
use mmu::permission::Attempt;
use mmu::request::Requests;
use mmu::state::{NestedTdp, TdpMode};
use sim_core::SimError;
use sim_core::addr::Gfn;
use sim_core::arch::exception::PageFaultError;

/// Faults of one call after which nothing will change any more: userspace would wait for ever.
const TRIES: u32 = 16;

impl Machine {
    /// A guest frame is mapped for a vCPU outside of its run.
    ///
    /// # Errors
    /// If there is no such vCPU, the kernel has no such call, or no TDP MMU is active.
    pub fn pre_fault(&mut self, id: u8, gfn: Gfn) -> Result<(), SimError> {
        self.host_call(format!("pre-fault gfn {gfn}"));
        if !self.vm.changes.has(Change::PreFault) {
            return Err(SimError::unmodelled("KVM_PRE_FAULT_MEMORY before v6.11"));
        }
        self.on_vcpu(id, |run| run.pre_fault(gfn))
    }
}

impl Run<'_> {
    fn pre_fault(&mut self, gfn: Gfn) -> Result<(), SimError> {
        if self.vm.config.tdp == TdpMode::Off || self.vcpu.mmu.nested_tdp == NestedTdp::Active {
            return Err(SimError::unmodelled("KVM_PRE_FAULT_MEMORY of a vCPU whose MMU shadows tables"));
        }
        if self.vm.notifier.covers(gfn) {
            return Err(SimError::unmodelled("KVM_PRE_FAULT_MEMORY that waits for the end of an invalidation"));
        }
        let frees = self.vm.changes.has(Change::ReloadFreesObsolete);
        if frees && self.vcpu.mmu.requests.take(self.ground, Requests::MMU_FREE_OBSOLETE_ROOTS) {
            self.mmu(|ctx, vcpu, _| ctx.free_obsolete_roots(vcpu));
        }
        let effects = self.mmu(|ctx, vcpu, view| ctx.reload(vcpu, view))?;
        self.perform(effects)?;
        let attempt = Attempt { error: PageFaultError::U, smap_suppressed: false };
        for _ in 0..TRIES {
            let outcome = self.mmu(|ctx, vcpu, view| ctx.page_fault(vcpu, view, gfn.base().0, attempt))?;
            if outcome != FaultOutcome::Retry {
                return Ok(());
            }
        }
        self.mmu(|ctx, _, _| ctx.warn("a page fault is tried for ever (kvm_tdp_map_page)"));
        Ok(())
    }
}
