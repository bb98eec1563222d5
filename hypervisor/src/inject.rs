//! Exceptions that L0 gives the guest.

use crate::run::Run;
use mmu::Change;
use mmu::load::Which;
use mmu::request::Requests;
use mmu::state::{Nesting, TdpMode};
use mmu::stats::Stat;
use sim_core::SimError;
use sim_core::arch::exception::{Exception, PageFaultError, Vector};
use sim_core::event::Event;

/// What an exception does to the delivery of another (SDM 3A table 6-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    const fn of(vector: Vector) -> Self {
        match vector {
            Vector::DoubleFault => Self::DoubleFault,
            Vector::PageFault | Vector::Virtualization => Self::PageFault,
            Vector::Divide
            | Vector::InvalidTss
            | Vector::SegmentNotPresent
            | Vector::StackFault
            | Vector::GeneralProtection
            | Vector::ControlProtection
            | Vector::Security => Self::Contributory,
            Vector::Debug
            | Vector::Breakpoint
            | Vector::Overflow
            | Vector::BoundRange
            | Vector::FloatingPoint
            | Vector::SimdFloatingPoint
            | Vector::InvalidOpcode
            | Vector::DeviceNotAvailable
            | Vector::AlignmentCheck => Self::Benign,
        }
    }
}

/// An address whose translation faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faulted {
    /// A linear address, in the guest's own tables.
    Linear(u64),
    /// A guest-physical address of L2, in L1's nested tables.
    Nested(u64),
}

impl Run<'_> {
    /// Queues an exception for the next entry (`kvm_multiple_exception`). If it came up while another was delivered, the
    /// two make a double fault, or a third makes a triple fault, by the rules of SDM 3A table 6-5.
    pub fn queue(&mut self, exception: Exception) {
        self.ground.record(Event::Inject { vector: exception.vector.number(), error: exception.error });
        let interrupted = self.vcpu.interrupted.take();
        let first = interrupted.as_ref().map_or(Class::Benign, |first| Class::of(first.vector));
        let second = Class::of(exception.vector);
        self.vcpu.pending = match (first, second) {
            (Class::DoubleFault, Class::Contributory | Class::PageFault) => {
                self.request(Requests::TRIPLE_FAULT);
                // Who runs the vCPU again all the same begins with the double fault.
                self.vcpu.interrupted = interrupted;
                None
            }
            (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                Some(Exception::with_error(Vector::DoubleFault, 0))
            }
            _ => Some(exception),
        };
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

    /// A fault that a guest gets has dropped the translation that caused it, in hardware; so must the shadow (KVM ee1fa209f5e5).
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub(crate) fn drop_faulted(&mut self, at: Faulted) -> Result<(), SimError> {
        if !self.vm.changes.has(Change::SyncOnInjectedFault) {
            return Ok(());
        }
        match at {
            // Of the current root alone; another one's translations did not cause it.
            Faulted::Linear(address) => {
                if self.vm.config.tdp == TdpMode::Off {
                    self.mmu(|ctx, vcpu, _| ctx.invlpg_roots(vcpu, address, |which| which == Which::Current));
                }
                self.flush_gva(address)?;
            }
            Faulted::Nested(address) => self.mmu(|ctx, vcpu, _| ctx.invlpg(vcpu, address)),
        }
        Ok(())
    }

    /// A page fault that the guest's own tables caused (`kvm_inject_emulated_page_fault`).
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub fn inject_page_fault(&mut self, address: u64, error: PageFaultError) -> Result<(), SimError> {
        if error.contains(PageFaultError::P) && !error.contains(PageFaultError::RSVD) {
            self.drop_faulted(Faulted::Linear(address))?;
        }
        self.vm.stats.count(Stat::PfGuest);
        self.queue(Exception { vector: Vector::PageFault, ..Exception::page_fault(sim_core::Gva(address), error) });
        Ok(())
    }

    /// `kvm_mmu_invlpg`, for INVLPG and INVLPGA.
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub fn emulate_invlpg(&mut self, address: u64) -> Result<(), SimError> {
        self.vm.stats.count(Stat::Invlpg);
        self.invalidate_gva(address)
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
