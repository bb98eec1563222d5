//! Everything that a step can show: the step is taken again and again from the same state, each time with another choice
//! of the translations that the architecture permits, until every choice has been made.

use super::{Engine, Mark};
use crate::backend::Backend;
use crate::file::{Actor, Expected, Observation, Step};
use sim_core::SimError;
use sim_core::choice::Choice;

/// Choices of one step beyond which something is clearly wrong.
const MOST_CHOICES: usize = 20_000;

impl Engine<'_> {
    /// What the step can show, if it asks and this backend can tell. The state stays as it was.
    pub(super) fn possible(&mut self, step: &Step) -> Result<Option<Vec<Observation>>, SimError> {
        let asks = matches!(step.expect, Some(Expected::May(_) | Expected::Never(_)));
        if !asks || !matches!(self.backend, Backend::Bare(_)) {
            return Ok(None);
        }
        let start = self.mark();
        let mut seen = Vec::new();
        let found = self.every_way(&start, step, MOST_CHOICES, |observed, _| {
            seen.push(observed?);
            Ok(())
        });
        self.back_to(&start);
        found?;
        Ok(Some(in_order(seen)))
    }

    /// Takes the step from a state in every way that the architecture permits, and tells what each shows. The engine is
    /// left behind the last of them. A watched machine knows more than one way.
    pub(super) fn every_way(
        &mut self,
        start: &Mark,
        step: &Step,
        most: usize,
        mut tell: impl FnMut(Result<Observation, SimError>, &mut Self) -> Result<(), SimError>,
    ) -> Result<(), SimError> {
        let mut script = Some(Vec::new());
        let mut tried = 0;
        while let Some(answers) = script {
            tried += 1;
            if tried > most {
                return Err(SimError::unmodelled(format!("a step with more than {most} choices of translations")));
            }
            self.back_to(start);
            self.backend.choose_freely(step.vcpu, answers)?;
            let observed = self.plain_step(step);
            script = next_script(self.backend.choices());
            tell(observed, self)?;
        }
        Ok(())
    }

    /// Takes a step of the scenario by choices of the silicon: the first as the answers say, the others by what walks
    /// find. The modelled caches are empty behind it.
    pub(super) fn step_freely(
        &mut self,
        number: u32,
        index: usize,
        answers: Vec<u32>,
    ) -> Result<(Result<Observation, SimError>, Left), SimError> {
        let vcpu = self.scenario.steps.get(index).map_or(0, |step| step.vcpu);
        self.backend.choose_freely(vcpu, answers)?;
        let shown = self.step(number, index).map(|(observed, _)| observed);
        let choices = self.backend.choices();
        let left = if choices.is_empty() { Left::NoChoice } else { Left::Next(next_script(choices)) };
        self.backend.choose_no_more(vcpu)?;
        Ok((shown, left))
    }

    /// Takes a step, whoever takes it.
    pub(super) fn plain_step(&mut self, step: &Step) -> Result<Observation, SimError> {
        if step.actor == Actor::Host { self.host_step(step) } else { self.guest_step(step) }
    }
}

/// What other ways there are to take a step.
pub enum Left {
    /// There was nothing to choose.
    NoChoice,
    /// The answers that take it in its next way, if there is one.
    Next(Option<Vec<u32>>),
}

/// Observations in a fixed order, each once.
pub(super) fn in_order(mut seen: Vec<Observation>) -> Vec<Observation> {
    seen.sort_by_key(ToString::to_string);
    seen.dedup();
    seen
}

/// The answers that take the last choice that has an alternative left to its next alternative.
fn next_script(taken: &[Choice]) -> Option<Vec<u32>> {
    let last = taken.iter().rposition(|choice| choice.taken + 1 < choice.of)?;
    let kept = taken[..last].iter().map(|choice| choice.taken);
    Some(kept.chain([taken[last].taken + 1]).collect())
}
