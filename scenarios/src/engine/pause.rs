//! Steps that pause in a page fault and go on later. A hypervisor has walked and looked up by then; on bare silicon the
//! access is one instruction, which it takes when the step goes on.

use super::Engine;
use crate::backend::Backend;
use crate::file::{Action, Observation, Step};
use crate::image::layout::Seat;
use sim_core::SimError;

impl Engine<'_> {
    /// What a step shows that pauses before it begins, or goes on with what was paused; none where it is to be taken.
    pub(super) fn hold(&mut self, step: &Step) -> Result<Option<Observation>, SimError> {
        let is_bare = matches!(self.backend, Backend::Bare(_));
        let chair = &mut self.chairs[usize::from(step.vcpu)];
        if step.action == Action::Resume {
            let paused = chair.paused.take();
            return match paused {
                Some(paused) if is_bare => self.guest_step(&paused).map(Some),
                Some(paused) => self.go_on(step, *paused).map(Some),
                // It was taken at once here.
                None if is_bare => Ok(Some(Observation::Hidden)),
                None => Err(SimError::unmodelled("the resumption of a step that does not pause")),
            };
        }
        if chair.paused.is_some() {
            return Err(SimError::unmodelled(format!("the step \"{}\" while another is paused", step.text)));
        }
        if is_bare && std::mem::take(&mut chair.pauses) {
            chair.paused = Some(Box::new(step.clone()));
            return Ok(Some(Observation::Hidden));
        }
        Ok(None)
    }

    fn go_on(&mut self, step: &Step, paused: Step) -> Result<Observation, SimError> {
        let seat = Seat { vcpu: step.vcpu, level: step.actor };
        let observed = self.go(step.vcpu)?;
        let observed = self.with_value(seat, &paused.action, observed);
        if observed == Observation::Paused {
            self.chairs[usize::from(step.vcpu)].paused = Some(Box::new(paused));
        }
        Ok(observed)
    }
}
