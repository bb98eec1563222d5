//! Points at which a vCPU holds no lock of the MMU, so that other vCPUs and the host may come between: what a page fault
//! found is kept as plain data, and the vCPU goes on from there when it runs next.
//!
//! Modelled: between the walk of the guest's tables and all that follows from it (`FNAME(page_fault)`), between looking the
//! host page up and taking the MMU lock (`kvm_faultin_pfn`, `mmu_notifier_retry`), between the end of a fault and the next
//! entry, and the spinning of a fault on a page that the host is invalidating. Left out: the batches of a synchronisation
//! and of a zap of everything, between which the lock may be given up; a request tells of the one that a fault must give
//! up (`KVM_REQ_MMU_SYNC`).

use crate::exits::Handled;
use crate::machine::Machine;
use crate::run::{Run, Stop};
use mmu::fault::{Backing, PreparedFault, Progress, WalkedFault};
use mmu::memslot::{HostAccess, HostPage};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::Gfn;
use sim_core::arch::exception::PageFaultError;

/// Where a vCPU is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Point {
    /// A page fault has walked the guest's tables, and done nothing else.
    Walk,
    /// A page fault has looked the host page up, and does not hold the MMU lock yet.
    Faultin,
    /// A page fault is handled, and the guest is not entered again yet: requests that it posted are pending.
    Entry,
    /// A page fault finds its host page taken away, and will try again until the invalidation ends.
    Invalidation,
}

/// A page fault that is paused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PausedFault {
    /// At [`Point::Walk`].
    Walked(Box<WalkedFault>),
    /// At [`Point::Faultin`].
    Prepared(Box<PreparedFault>),
    /// At [`Point::Entry`]: nothing is left to do.
    Handled,
}

/// What a paused vCPU goes on with, and where it is to pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pause {
    /// The guest frame whose next fault is to pause, and where.
    pub at: Option<(Gfn, Point)>,
    /// The fault that is paused.
    pub fault: Option<PausedFault>,
}

impl Machine {
    /// Makes a vCPU pause at a point of its next fault on a guest frame.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn pause_at(&mut self, id: u8, gfn: Gfn, point: Point) -> Result<(), SimError> {
        let vcpu = self.vcpus.get_mut(usize::from(id)).ok_or_else(|| SimError::internal(format!("no vCPU {id}")))?;
        vcpu.pause.at = Some((gfn, point));
        Ok(())
    }
}

impl Run<'_> {
    /// A fault that has walked the guest's tables goes on, or pauses.
    ///
    /// # Errors
    /// If host memory runs out, or if it needs something that is not modelled.
    pub(crate) fn prepare_or_pause(&mut self, walked: Box<WalkedFault>) -> Result<Handled, SimError> {
        if self.vcpu.pause.at == Some((walked.gfn, Point::Walk)) {
            return Ok(self.pause(Point::Walk, PausedFault::Walked(walked)));
        }
        self.prepare(*walked)
    }

    fn prepare(&mut self, walked: WalkedFault) -> Result<Handled, SimError> {
        let address = walked.address;
        match self.mmu(|ctx, vcpu, view| ctx.prepare_fault(vcpu, view, walked)) {
            Progress::Done(outcome) => self.fault_outcome(address, outcome),
            Progress::Next(prepared) => self.commit_or_pause(prepared),
        }
    }

    /// A fault that is ready for the MMU lock takes it, or pauses.
    fn commit_or_pause(&mut self, prepared: Box<PreparedFault>) -> Result<Handled, SimError> {
        let write = prepared.attempt.error.contains(PageFaultError::W);
        if let Backing::Page(HostPage { access: HostAccess::ReadOnly, .. }) = prepared.backing
            && write
        {
            self.break_sharing(prepared.gfn)?;
            return Ok(Handled::Resume);
        }
        if self.vcpu.pause.at == Some((prepared.gfn, Point::Faultin)) {
            return Ok(self.pause(Point::Faultin, PausedFault::Prepared(prepared)));
        }
        self.commit(&prepared)
    }

    fn pause(&mut self, point: Point, fault: PausedFault) -> Handled {
        self.vcpu.pause = Pause { at: None, fault: Some(fault) };
        Handled::Stop(Stop::Paused(point))
    }

    /// Goes on with the fault that is paused, if one is.
    ///
    /// # Errors
    /// If host memory runs out, or if it needs something that is not modelled.
    pub(crate) fn resume_fault(&mut self) -> Result<Handled, SimError> {
        match self.vcpu.pause.fault.take() {
            Some(PausedFault::Walked(walked)) => self.prepare(*walked),
            Some(PausedFault::Prepared(prepared)) => self.commit(&prepared),
            Some(PausedFault::Handled) | None => Ok(Handled::Resume),
        }
    }

    fn commit(&mut self, prepared: &PreparedFault) -> Result<Handled, SimError> {
        let outcome = self.mmu(|ctx, vcpu, view| ctx.commit_fault(vcpu, view, prepared))?;
        let handled = self.fault_outcome(prepared.address, outcome)?;
        if self.vcpu.pause.at == Some((prepared.gfn, Point::Entry)) && handled == Handled::Resume {
            return Ok(self.pause(Point::Entry, PausedFault::Handled));
        }
        Ok(handled)
    }
}
