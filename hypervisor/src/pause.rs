//! Points at which a vCPU holds no lock of the MMU, so that other vCPUs and the host may come between: what a page fault
//! found is kept as plain data, and the vCPU goes on from there when it runs next.
//!
//! Modelled: between looking the host page up and taking the MMU lock (`kvm_faultin_pfn`, `mmu_notifier_retry`), and the
//! spinning of a fault on a page that the host is invalidating. Points inside a synchronisation or a zap that gives the
//! lock up are the MMU's requests and need none here.

use crate::exits::Handled;
use crate::machine::Machine;
use crate::run::{Run, Stop};
use mmu::fault::{Backing, PreparedFault};
use mmu::memslot::{HostAccess, HostPage};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::Gfn;
use sim_core::arch::exception::PageFaultError;

/// Where a vCPU is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Point {
    /// A page fault has looked the host page up, and does not hold the MMU lock yet.
    Faultin,
    /// A page fault finds its host page taken away, and will try again until the invalidation ends.
    Invalidation,
}

/// What a paused vCPU goes on with, and where it is to pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pause {
    /// The guest frame whose next fault is to pause.
    pub at: Option<Gfn>,
    /// The fault that is paused.
    pub fault: Option<Box<PreparedFault>>,
}

impl Machine {
    /// Makes a vCPU pause at its next fault on a guest frame, at [`Point::Faultin`].
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn pause_at(&mut self, id: u8, gfn: Gfn) -> Result<(), SimError> {
        let vcpu = self.vcpus.get_mut(usize::from(id)).ok_or_else(|| SimError::internal(format!("no vCPU {id}")))?;
        vcpu.pause.at = Some(gfn);
        Ok(())
    }
}

impl Run<'_> {
    /// A fault that is ready for the MMU lock takes it, or pauses.
    ///
    /// # Errors
    /// If host memory runs out.
    pub(crate) fn commit_or_pause(&mut self, prepared: Box<PreparedFault>) -> Result<Handled, SimError> {
        let write = prepared.attempt.error.contains(PageFaultError::W);
        if let Backing::Page(HostPage { access: HostAccess::ReadOnly, .. }) = prepared.backing
            && write
        {
            self.break_sharing(prepared.gfn)?;
            return Ok(Handled::Resume);
        }
        if self.vcpu.pause.at == Some(prepared.gfn) {
            self.vcpu.pause = Pause { at: None, fault: Some(prepared) };
            return Ok(Handled::Stop(Stop::Paused(Point::Faultin)));
        }
        self.commit(&prepared)
    }

    /// Goes on with the fault that is paused, if one is.
    ///
    /// # Errors
    /// If host memory runs out.
    pub(crate) fn resume_fault(&mut self) -> Result<Handled, SimError> {
        match self.vcpu.pause.fault.take() {
            Some(prepared) => self.commit(&prepared),
            None => Ok(Handled::Resume),
        }
    }

    fn commit(&mut self, prepared: &PreparedFault) -> Result<Handled, SimError> {
        let outcome = self.mmu(|ctx, vcpu, view| ctx.commit_fault(vcpu, view, prepared))?;
        self.fault_outcome(prepared.address, outcome)
    }
}
