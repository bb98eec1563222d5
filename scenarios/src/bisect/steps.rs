//! Which steps of a failing run it can't do without, and which must keep their order: each step is left out, and each is
//! swapped with the next, one at a time.
//!
//! Without a step, or before another, a later one may be out of turn: its level does not run. It is then skipped, whatever
//! the file says of such steps, so that what is left can be judged.

use super::failure::Judge;
use super::variant::{Effect, Failing, effect};
use crate::file::{OutOfTurn, RunConfig, Scenario};
use sim_core::SimError;

/// What comes of changing one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// Its number in the run.
    pub number: usize,
    /// Its text.
    pub text: String,
    /// Without it.
    pub removed: Effect,
    /// Swapped with the next; none for the last.
    pub swapped: Option<Effect>,
}

impl StepRow {
    /// Whether a change of it flips the verdict.
    #[must_use]
    pub fn is_critical(&self) -> bool {
        self.removed.flips() || self.swapped.as_ref().is_some_and(Effect::flips)
    }
}

/// Every step of a failing run, in its order.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn steps(scenario: &Scenario, failing: &Failing, words: Option<&str>) -> Result<Vec<StepRow>, SimError> {
    let scenario = &Scenario { out_of_turn: OutOfTurn::Skip, ..scenario.clone() };
    let judge = Judge::new(scenario, &failing.run, words);
    let order = &failing.run.steps;
    let taken = |steps: Vec<usize>| effect(&judge, failing, &RunConfig { steps, ..failing.run.clone() });
    let row = |position: usize| {
        let mut without = order.clone();
        let index = without.remove(position);
        let swapped = (position + 1 < order.len()).then(|| {
            let mut swapped = order.clone();
            swapped.swap(position, position + 1);
            taken(swapped)
        });
        let text = scenario.steps.get(index).map(ToString::to_string).unwrap_or_default();
        Ok(StepRow { number: position + 1, text, removed: taken(without)?, swapped: swapped.transpose()? })
    };
    (0..order.len()).map(row).collect()
}
