//! Steps of the host about slots and pages, on bare silicon. What the host does with the pages behind a slot no guest may
//! notice, so it does nothing here; what it learns about the guest is its own, and shows as `-`.

use super::Bare;
use crate::file::{CpuidChange, HostStep, Observation, PagingFeature};
use crate::image::layout;
use cpu::Activity;
use cpu::core::PinEvents;
use cpu::profile::Features;
use hypervisor::Sregs;
use sim_core::SimError;
use sim_core::addr::{Hfn, PAGE_BYTES};
use sim_core::arch::control::Efer;
use sim_core::event::FlushScope;
use sim_core::memory::Backing;

impl Bare {
    /// Sets EFER from outside.
    ///
    /// # Errors
    /// If there is no such processor, or it can't have the value.
    pub fn set_efer(&mut self, vcpu: u8, value: u64) -> Result<(), SimError> {
        let sregs = self.sregs(vcpu)?;
        let efer = Efer::from_bits_retain(value);
        let new = Sregs { efer, ..sregs };
        if !new.are_legal() {
            return Err(SimError::unmodelled("long mode switched from outside while paging is on"));
        }
        // Unlike the registers whole, EFER alone loads no PDPTEs.
        let pdptes = self.parts(vcpu)?.0.core.pdptes;
        self.set_sregs(vcpu, &new)?;
        self.parts(vcpu)?.0.core.pdptes = pdptes;
        Ok(())
    }

    /// Makes a processor one that shows this in CPUID.
    ///
    /// # Errors
    /// If there is no such processor. Whether it has run the hypervisor model tells.
    pub fn set_cpuid(&mut self, vcpu: u8, change: &CpuidChange) -> Result<(), SimError> {
        self.host_call(format!("set-cpuid{change}"));
        let whole = cpu::Core::flat32(self.maxphyaddr);
        let core = &mut self.parts(vcpu)?.0.core;
        core.maxphyaddr = change.maxphyaddr.unwrap_or(whole.maxphyaddr);
        core.features = whole.features;
        for feature in &change.without {
            core.features.remove(match feature {
                PagingFeature::GiantPages => Features::PAGE_1G,
                PagingFeature::Smep => Features::SMEP,
                PagingFeature::Smap => Features::SMAP,
                PagingFeature::La57 => Features::LA57,
            });
        }
        Ok(())
    }

    /// Raises a processor's SMI pin.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn smi(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.host_call("SMI".to_owned());
        self.parts(vcpu)?.0.core.pins.events.insert(PinEvents::SMI);
        Ok(())
    }

    /// Sends a processor an INIT, and a start-up IPI that is lost unless it waits for one.
    ///
    /// # Errors
    /// If something is not modelled.
    pub fn init(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.host_call("INIT, SIPI".to_owned());
        self.parts(vcpu)?.0.core.pins.events.insert(PinEvents::INIT);
        self.step_one(vcpu)?;
        let core = &mut self.parts(vcpu)?.0.core;
        if core.activity == Activity::WaitForSipi {
            core.pins.sipi = Some(layout::start_up_vector(vcpu));
        }
        Ok(())
    }

    /// What the guest asks a hypervisor for, its own INVPCID of everything does.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn guest_flush(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.host_call("flush for the guest".to_owned());
        let (processor, ground) = self.parts(vcpu)?;
        processor.core.tlb.flush(ground, FlushScope::Context(0));
        Ok(())
    }

    /// A step about slots and pages.
    ///
    /// # Errors
    /// If a slot does not exist, or would overlap another.
    pub fn host(&mut self, step: &HostStep) -> Result<Observation, SimError> {
        self.host_call(step.to_string());
        match step {
            HostStep::MoveSlot { slot, at } => self.move_slot(slot, sim_core::Gpa(*at).frame().0)?,
            HostStep::DirtyLog { .. } | HostStep::AgePage(_) | HostStep::TestAge(_) => return Ok(Observation::Hidden),
            HostStep::SetRegisters(_)
            | HostStep::SetEfer(_)
            | HostStep::SetCpuid(_)
            | HostStep::SetSmm(_)
            | HostStep::Smi
            | HostStep::GuestFlush
            | HostStep::InitVcpu
            | HostStep::PauseAt { .. }
            | HostStep::PreFault(_)
            | HostStep::LogDirty { .. }
            | HostStep::ClearDirtyLog { .. }
            | HostStep::InvalidateBegin(_)
            | HostStep::InvalidateEnd(_)
            | HostStep::MovePage(_)
            | HostStep::RecoverNx(_)
            | HostStep::ChangePage { .. } => {}
        }
        Ok(Observation::Ok)
    }

    fn move_slot(&mut self, name: &str, first: u64) -> Result<(), SimError> {
        let Some(slot) = self.slots.remove(name) else {
            return Err(SimError::unmodelled(format!("a move of slot {name}, which does not exist")));
        };
        let new = super::bare::Present { first: Hfn(first), ..slot };
        let overlaps =
            |old: &super::bare::Present| old.first.0 < new.first.0 + new.pages && new.first.0 < old.first.0 + old.pages;
        if self.slots.values().any(overlaps) || first + new.pages > self.ground.mem.frames() {
            return Err(SimError::unmodelled(format!("memslot {name} moved where it can't be")));
        }
        let mut content = vec![0; (slot.pages * PAGE_BYTES) as usize];
        self.ground.mem.read_bytes(slot.first.base(), &mut content);
        self.ground.mem.set_backing(slot.first, slot.pages, Backing::Hole);
        self.ground.mem.set_backing(new.first, new.pages, Backing::Writable);
        self.ground.mem.write_bytes(new.first.base(), &content);
        self.ground.mem.set_backing(new.first, new.pages, new.backing);
        self.hidden.moved(slot.first, new.first);
        self.slots.insert(name.to_owned(), new);
        Ok(())
    }
}
