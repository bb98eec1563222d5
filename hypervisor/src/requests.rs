//! Servicing pending requests, in KVM's order (v5.17 `vcpu_enter_guest`).

use crate::exits::Handled;
use crate::run::{Run, Stop};
use mmu::Change;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{NestedTdp, Nesting, TdpMode};
use mmu::stats::Stat;
use sim_core::SimError;

impl Run<'_> {
    fn take(&mut self, request: Requests) -> bool {
        self.vcpu.mmu.requests.take(self.ground, request)
    }

    /// `vmx_get_nested_state_pages`, `svm_get_nested_state_pages`: what restored nested state needs of guest memory. CR3
    /// may have been restored before the nested state, so that L2's PDPTEs are loaded only now (since v5.14).
    fn nested_state_pages(&mut self) -> Result<(), SimError> {
        let own_tables = self.vcpu.mmu.nested_tdp == NestedTdp::Inactive;
        if self.vcpu.nesting == Nesting::L2 && own_tables && self.vcpu.is_pae() {
            let loaded = self.load_pdptes(self.vcpu.cr3);
            loaded.map_err(|_| {
                SimError::unmodelled("KVM_EXIT_INTERNAL_ERROR for restored PDPTEs that can't be loaded")
            })?;
        }
        Ok(())
    }

    /// Everything that must be done before the guest runs.
    ///
    /// # Errors
    /// If host memory runs out, or hardware refuses an invalidation.
    pub fn service_requests(&mut self) -> Result<Handled, SimError> {
        if self.take(Requests::GET_NESTED_STATE_PAGES) {
            self.nested_state_pages()?;
        }
        if self.take(Requests::MMU_RELOAD) {
            self.mmu(|ctx, vcpu, _| ctx.unload(vcpu));
        }
        if self.take(Requests::MMU_FREE_OBSOLETE_ROOTS) {
            self.mmu(|ctx, vcpu, _| ctx.free_obsolete_roots(vcpu));
        }
        if self.take(Requests::MMU_SYNC) {
            self.mmu(|ctx, vcpu, view| ctx.sync_roots(vcpu, view))?;
        }
        if self.take(Requests::LOAD_MMU_PGD) {
            self.load_pgd();
        }
        if self.take(Requests::TLB_FLUSH) {
            self.judge_flush("TLB_FLUSH");
            self.vm.stats.count(Stat::TlbFlush);
            self.flush_all()?;
            // A flush of everything covers the current context.
            self.vcpu.mmu.requests.remove(Requests::TLB_FLUSH_CURRENT);
        }
        self.service_local_flushes()?;
        if self.take(Requests::TRIPLE_FAULT) {
            return self.triple_fault();
        }
        if self.take(Requests::UPDATE_CPU_DIRTY_LOGGING) {
            self.update_dirty_logging();
        }
        Ok(Handled::Resume)
    }

    /// `kvm_service_local_tlb_flush_requests`: also called at both edges of a nested transition, so that a request is
    /// serviced in the context it was raised for (KVM 40e5f9080472).
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub fn service_local_flushes(&mut self) -> Result<(), SimError> {
        self.service_flush_current()?;
        if self.take(Requests::TLB_FLUSH_GUEST) {
            if self.vm.config.tdp == TdpMode::Off {
                self.sync_for_guest_flush()?;
            }
            self.judge_flush("TLB_FLUSH_GUEST");
            self.vm.stats.count(Stat::TlbFlush);
            self.flush_guest()?;
        }
        Ok(())
    }

    fn service_flush_current(&mut self) -> Result<(), SimError> {
        if self.take(Requests::TLB_FLUSH_CURRENT) {
            self.judge_flush("TLB_FLUSH_CURRENT");
            self.vm.stats.count(Stat::TlbFlush);
            self.flush_current()?;
        }
        Ok(())
    }

    /// What is done before a vCPU goes to the other context. Up to v5.15 a guest's flush stayed pending (C-35).
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub(crate) fn service_before_switch(&mut self) -> Result<(), SimError> {
        if self.vm.changes.has(Change::ServiceBeforeSwitch) {
            return self.service_local_flushes();
        }
        self.service_flush_current()
    }

    /// Without TDP a guest's flush must also be one of the shadow tables (`kvm_vcpu_flush_tlb_guest`): all roots go, from
    /// b53e84eed08b on, or what is out of sync is synchronised, from 07ffaf343e34 on.
    fn sync_for_guest_flush(&mut self) -> Result<(), SimError> {
        if self.vm.changes.has(Change::SyncAllPgds) {
            return self.mmu(|ctx, vcpu, view| {
                ctx.sync_roots(vcpu, view)?;
                if !ctx.vm.plants.has(Plant::GuestFlushKeepsPrevRoots) {
                    ctx.sync_prev_roots(vcpu);
                }
                Ok(())
            });
        }
        if self.vm.changes.has(Change::GuestFlushUnloads) {
            self.mmu(|ctx, vcpu, _| ctx.unload(vcpu));
        }
        Ok(())
    }

    /// A triple fault: L1 sees an exit if L2 caused it, userspace a shutdown otherwise.
    ///
    /// # Errors
    /// If the nested exit fails.
    pub fn triple_fault(&mut self) -> Result<Handled, SimError> {
        if self.vcpu.nesting == Nesting::L2 {
            self.nested_triple_fault()?;
            return Ok(Handled::Resume);
        }
        Ok(Handled::Stop(Stop::Shutdown))
    }
}
