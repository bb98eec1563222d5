//! The first event at which two runs of a scenario differ, with what was the same just before, and the state of the MMU
//! before and after the step that it is in.
//!
//! Runs are compared event by event in the order in which they are told, as [`events`] spells them. State is looked at
//! between steps ([`state`]): what a step does to it on the way is in the events.

pub mod events;
pub mod state;

pub use events::{Scope, Told};
pub use state::Row;

use crate::backend::Kind;
use crate::engine::{self, Outcome};
use crate::file::{RunConfig, Scenario};
use crate::report::log;
use sim_core::SimError;
use sim_core::event::Detail;

/// One of two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// The run.
    pub run: RunConfig,
    /// Where it runs.
    pub backend: Kind,
}

/// Where two runs part ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// What was compared.
    pub scope: Scope,
    /// The step, 0 for the start.
    pub step: u32,
    /// Its text on the side that came to it.
    pub text: String,
    /// How many events were the same.
    pub same: usize,
    /// The last events that were the same, in order.
    pub common: Vec<String>,
    /// The first that differs on either side; none where a run has no more.
    pub events: [Option<String>; 2],
    /// The state of either side before the step; none at the start.
    pub before: Option<[Vec<Row>; 2]>,
    /// The state of either side after the step.
    pub after: [Vec<Row>; 2],
}

/// The scope that two sides are compared by, if the caller does not say.
#[must_use]
pub fn scope_of(sides: &[Side; 2]) -> Scope {
    if sides[0].backend == Kind::Sim && sides[1].backend == Kind::Sim {
        Scope::Transitions
    } else {
        Scope::Architecture
    }
}

fn run(scenario: &Scenario, side: &Side, scope: Scope) -> Result<(Vec<Told>, log::Names), SimError> {
    let Outcome { records, stopped, shown, .. } =
        engine::run_on(side.backend, scenario, &side.run, Detail::Transitions)?;
    let (mut told, names) = events::told(&records, side.backend, scope);
    match stopped {
        Some(error @ SimError::Internal(_)) => return Err(error),
        // That a run ends early is an event too.
        Some(error) => told.push(Told { step: shown.len() as u32 + 1, text: format!("{:<10} {error}", "stopped") }),
        None => {}
    }
    Ok((told, names))
}

/// Where two runs first differ in what a scope compares; none if they do not. Up to `context` of the events before are
/// told.
///
/// # Errors
/// If a machine can't be built, or breaks one of the simulator's own rules.
pub fn first(
    scenario: &Scenario,
    sides: &[Side; 2],
    scope: Scope,
    context: usize,
) -> Result<Option<Divergence>, SimError> {
    let (left, left_names) = run(scenario, &sides[0], scope)?;
    let (right, right_names) = run(scenario, &sides[1], scope)?;
    let same = left.iter().zip(&right).take_while(|(left, right)| left.same(right)).count();
    let events = [left.get(same), right.get(same)];
    let Some(step) = events.iter().flatten().map(|told| told.step).min() else { return Ok(None) };
    let mut names = [left_names, right_names];
    let mut states = |steps: u32| -> Result<[Vec<Row>; 2], SimError> {
        let mut rows = |index: usize| {
            let Side { run, backend } = &sides[index];
            let mut machine = engine::backend_after(*backend, scenario, run, steps as usize)?;
            state::rows(&mut machine, scenario.machine.vcpus, &mut names[index])
        };
        Ok([rows(0)?, rows(1)?])
    };
    let before = step.checked_sub(1).map(&mut states).transpose()?;
    let after = states(step)?;
    let index = (step as usize).checked_sub(1).and_then(|step| sides[0].run.steps.get(step));
    let text = index.and_then(|index| scenario.steps.get(*index)).map_or("the start".to_owned(), ToString::to_string);
    let common = left[same.saturating_sub(context)..same].iter().map(|told| told.text.clone()).collect();
    let events = events.map(|told| told.map(|told| told.text.clone()));
    Ok(Some(Divergence { scope, step, text, same, common, events, before, after }))
}
