//! Everything that a step can show: the step is taken again and again from the same state, each time with another choice
//! of the translations that the architecture permits, until every choice has been made.

use super::Engine;
use crate::backend::Backend;
use crate::file::{Expected, Observation, Step};
use sim_core::SimError;

/// Choices of one step beyond which something is clearly wrong.
const MOST_CHOICES: usize = 20_000;

impl Engine<'_> {
    /// What the step can show, if it asks and this backend can tell. The state stays as it was.
    pub(super) fn possible(&mut self, step: &Step) -> Result<Option<Vec<Observation>>, SimError> {
        let Backend::Bare(bare) = &self.backend else { return Ok(None) };
        if !matches!(step.expect, Some(Expected::May(_) | Expected::Never(_))) {
            return Ok(None);
        }
        let (start, chairs, tables) = (bare.clone(), self.chairs.clone(), self.image.tables.clone());
        let mut seen = Vec::new();
        let mut script = Some(Vec::new());
        let mut tried = 0;
        while let Some(answers) = script {
            tried += 1;
            if tried > MOST_CHOICES {
                return Err(SimError::unmodelled(format!(
                    "a step with more than {MOST_CHOICES} choices of translations"
                )));
            }
            let mut trial = start.clone();
            trial.choose_freely(step.vcpu, answers)?;
            self.backend = Backend::Bare(trial);
            let observed = self.guest_step(step);
            let taken = match &self.backend {
                Backend::Bare(bare) => bare.choices().to_vec(),
                Backend::Sim(_) => Vec::new(),
            };
            self.backend = Backend::Bare(start.clone());
            self.chairs.clone_from(&chairs);
            self.image.tables.clone_from(&tables);
            let observed = observed?;
            if !seen.contains(&observed) {
                seen.push(observed);
            }
            let open = taken.iter().rposition(|choice| choice.taken + 1 < choice.of);
            script = open.map(|last| {
                let kept = taken[..last].iter().map(|choice| choice.taken);
                kept.chain([taken[last].taken + 1]).collect()
            });
        }
        seen.sort_by_key(ToString::to_string);
        Ok(Some(seen))
    }
}
