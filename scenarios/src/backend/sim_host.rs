//! Steps of the host about slots and pages, on the hypervisor model.

use super::Sim;
use crate::file::{CpuidChange, HostStep, Logging, Observation, PageAccess, PageAge, PagingFeature, PausePoint, Reset};
use crate::image::layout;
use hypervisor::dirty_log::AfterReading;
use hypervisor::pause::Point;
use mmu::cpuid::{GuestCpuid, GuestFeatures};
use mmu::memslot::{DirtyLogging, HostAccess};
use sim_core::SimError;
use sim_core::addr::Gfn;
use sim_core::event::Event;

impl Sim {
    /// Sets EFER (`KVM_SET_MSRS`).
    ///
    /// # Errors
    /// If there is no such vCPU, or KVM refuses the value.
    pub fn set_efer(&mut self, vcpu: u8, value: u64) -> Result<(), SimError> {
        self.machine.set_efer(vcpu, value)
    }

    /// Sets a vCPU's CPUID (`KVM_SET_CPUID2`).
    ///
    /// # Errors
    /// If there is no such vCPU, or it has run.
    pub fn set_cpuid(&mut self, vcpu: u8, change: &CpuidChange) -> Result<(), SimError> {
        let host = GuestCpuid::of_host(&self.machine.vm.config);
        let lacking = change.without.iter().map(|feature| match feature {
            PagingFeature::GiantPages => GuestFeatures::PAGE_1G,
            PagingFeature::Smep => GuestFeatures::SMEP,
            PagingFeature::Smap => GuestFeatures::SMAP,
            PagingFeature::La57 => GuestFeatures::LA57,
        });
        let features = lacking.fold(host.features, |features, one| features - one);
        let maxphyaddr = change.maxphyaddr.unwrap_or(host.maxphyaddr);
        self.machine.set_cpuid(vcpu, GuestCpuid { maxphyaddr, features })
    }

    /// A flush that the guest asked for, as `record_steal_time` finds it.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn guest_flush(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.record(Event::HostCall { what: "flush for the guest".to_owned() });
        self.machine.on_vcpu(vcpu, |run| {
            run.request(mmu::request::Requests::TLB_FLUSH_GUEST);
            Ok(())
        })
    }

    /// Sends a vCPU an SMI (`KVM_SMI`), which it takes when it runs next.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn smi(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.machine.smi(vcpu)
    }

    /// Sends a vCPU an INIT and a start-up IPI, which it takes when it runs next.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn init(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.machine.init_and_start(vcpu, layout::start_up_vector(vcpu))
    }

    /// Makes a vCPU's next page fault on a guest frame pause at a point.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn pause_at(&mut self, vcpu: u8, gfn: u64, point: PausePoint) -> Result<(), SimError> {
        let point = match point {
            PausePoint::AfterWalk => Point::Walk,
            PausePoint::BeforeLock => Point::Faultin,
            PausePoint::BeforeEntry => Point::Entry,
        };
        self.machine.pause_at(vcpu, Gfn(gfn), point)
    }

    /// Has a guest frame mapped for a vCPU without running it (`KVM_PRE_FAULT_MEMORY`).
    ///
    /// # Errors
    /// If there is no such vCPU, or the kernel can't.
    pub fn pre_fault(&mut self, vcpu: u8, gfn: u64) -> Result<(), SimError> {
        self.machine.pre_fault(vcpu, Gfn(gfn))
    }

    /// A step about slots and pages.
    ///
    /// # Errors
    /// If it can't be done, or is not modelled.
    pub fn host(&mut self, step: &HostStep) -> Result<Observation, SimError> {
        let machine = &mut self.machine;
        match step {
            HostStep::MoveSlot { slot, at } => machine.move_slot(slot, sim_core::Gpa(*at).frame())?,
            HostStep::InvalidateBegin(frames) => machine.invalidate_begin(Gfn(frames.first), frames.count)?,
            HostStep::InvalidateEnd(frames) => machine.invalidate_end(Gfn(frames.first), frames.count)?,
            HostStep::MovePage(gfn) => machine.move_page(Gfn(*gfn))?,
            HostStep::ChangePage { gfn, access } => machine.change_page(
                Gfn(*gfn),
                match access {
                    PageAccess::ReadOnly => HostAccess::ReadOnly,
                    PageAccess::Writable => HostAccess::Writable,
                },
            )?,
            HostStep::LogDirty { slot, logging } => machine.set_dirty_logging(
                slot,
                match logging {
                    Logging::Off => DirtyLogging::Off,
                    Logging::On => DirtyLogging::On,
                },
            )?,
            HostStep::DirtyLog { slot, reset } => {
                let after = match reset {
                    Reset::Yes => AfterReading::Cleared,
                    Reset::No => AfterReading::Kept,
                };
                let frames = machine.dirty_log(slot, after)?;
                return Ok(Observation::Dirty(frames.into_iter().map(|gfn| gfn.0).collect()));
            }
            HostStep::ClearDirtyLog { slot, frames } => {
                machine.clear_dirty_log(slot, Gfn(frames.first), frames.count)?;
            }
            HostStep::AgePage(gfn) => return Ok(age(machine.age_page(Gfn(*gfn))?)),
            HostStep::RecoverNx(ratio) => machine.recover_nx_pages(*ratio)?,
            HostStep::TestAge(gfn) => return Ok(age(machine.test_age(Gfn(*gfn))?)),
            HostStep::SetRegisters(_)
            | HostStep::SetEfer(_)
            | HostStep::SetCpuid(_)
            | HostStep::SetSmm(_)
            | HostStep::Smi
            | HostStep::GuestFlush
            | HostStep::InitVcpu
            | HostStep::PreFault(_)
            | HostStep::PauseAt { .. } => {
                return Err(SimError::internal("a step about registers, which the engine takes by itself"));
            }
        }
        Ok(Observation::Ok)
    }
}

const fn age(young: bool) -> Observation {
    Observation::Age(if young { PageAge::Young } else { PageAge::Old })
}
