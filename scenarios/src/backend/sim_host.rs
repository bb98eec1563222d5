//! Steps of the host about slots and pages, on the hypervisor model.

use super::Sim;
use crate::file::{HostStep, Observation};
use sim_core::SimError;
use sim_core::addr::Gfn;

impl Sim {
    /// Sets EFER (`KVM_SET_MSRS`).
    ///
    /// # Errors
    /// If there is no such vCPU, or KVM refuses the value.
    pub fn set_efer(&mut self, vcpu: u8, value: u64) -> Result<(), SimError> {
        self.machine.set_efer(vcpu, value)
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
            other => return Err(SimError::unmodelled(format!("the host's step {other}"))),
        }
        Ok(Observation::Ok)
    }
}
