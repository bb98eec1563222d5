//! Exceptions that L0 gives the guest.

use crate::run::Run;
use mmu::state::{Nesting, TdpMode};
use sim_core::SimError;
use sim_core::arch::exception::{Exception, PageFaultError, Vector};
use sim_core::event::Event;

impl Run<'_> {
    /// Queues an exception for the next entry.
    pub fn queue(&mut self, exception: Exception) {
        self.ground.record(Event::Inject { vector: exception.vector.number(), error: exception.error });
        self.vcpu.pending = Some(exception);
    }

    /// Injects what is queued: into L1 as a nested exit if L2 caused it and L1 intercepts it, else through hardware.
    ///
    /// # Errors
    /// If the nested exit fails.
    pub fn inject_pending(&mut self) -> Result<(), SimError> {
        if let Some(exception) = self.vcpu.interrupted.take() {
            // Whoever had to decide about it has decided; CR2 is as it was.
            self.hardware_inject(&exception);
            return Ok(());
        }
        let Some(exception) = self.vcpu.pending.take() else { return Ok(()) };
        if self.vcpu.nesting == Nesting::L2 && self.l1_intercepts_exception(&exception) {
            return self.nested_exception_exit(&exception);
        }
        if let Some(address) = exception.cr2 {
            self.vcpu.cr2 = address.0;
        }
        self.hardware_inject(&exception);
        Ok(())
    }

    /// A page fault that the guest's own tables caused (`kvm_inject_emulated_page_fault`): the shadow of the address
    /// is dropped first, since the fault would have dropped the TLB entry (KVM ee1fa209f5e5).
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub fn inject_page_fault(&mut self, address: u64, error: PageFaultError) -> Result<(), SimError> {
        if error.contains(PageFaultError::P) && !error.contains(PageFaultError::RSVD) {
            self.invalidate_gva(address)?;
        }
        self.queue(Exception { vector: Vector::PageFault, ..Exception::page_fault(sim_core::Gva(address), error) });
        Ok(())
    }

    /// `kvm_mmu_invalidate_gva`: the shadow leaf of an address if its table is out of sync, and the TLB entry.
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub fn invalidate_gva(&mut self, address: u64) -> Result<(), SimError> {
        if self.vm.config.tdp == TdpMode::Off {
            self.mmu(|ctx, vcpu, _| ctx.invlpg(vcpu, address));
        }
        self.flush_gva(address)
    }
}
