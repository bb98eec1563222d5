//! The model against a real KVM: each run is taken on this machine's own KVM, and what every step showed is held against
//! everything that the silicon permits (`bare`), as transparency is.
//!
//! A step that the kernel's emulator carries out says nothing about the processor, so each step has a [`Witness`], and the
//! two are told apart. What this KVM can't do is said by name and counts for nothing.

pub mod random;
mod witness;

pub use witness::{Engines, Witness};

use crate::backend::Kind;
use crate::engine::transparency::{self, Difference, Transparency};
use crate::engine::{self, Outcome};
use crate::file::{self, RunConfig, Scenario};
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::BTreeMap;
use std::ops::Range;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Silicon can show all that was compared.
    Agrees,
    /// Silicon can't show this step.
    Differs(Box<Difference>),
    /// It can't be judged here, or not to its end.
    Unjudged(String),
}

/// A run with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The run, without the axes that mean nothing to a real KVM.
    pub run: RunConfig,
    /// What came of it.
    pub answer: Answer,
    /// Steps that agree, by who carried them out.
    pub agreed: BTreeMap<Witness, usize>,
}

/// What came of many random scenarios.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Campaign {
    /// Scenarios that agree.
    pub agreed: usize,
    /// Steps that agree, by who carried them out.
    pub steps: BTreeMap<Witness, usize>,
    /// Seeds of scenarios that differ, and how.
    pub differ: Vec<(u64, Difference)>,
    /// Seeds of scenarios that can't be judged, and why.
    pub unjudged: Vec<(u64, String)>,
}

/// The scenario of a seed, and its one run.
///
/// # Errors
/// If the generator wrote what the language refuses.
pub fn random_scenario(kind: random::Kind, seed: u64) -> Result<(Scenario, RunConfig), SimError> {
    let text = random::text(kind, seed);
    let scenario = file::parse(&format!("k1-{}-{seed:08x}", kind.name()), &text, &[], &[]);
    let scenario = scenario.map_err(|diagnostics| SimError::internal(format!("seed {seed:#x}: {diagnostics}")))?;
    let run = runs(&scenario).into_iter().next();
    let run = run.ok_or_else(|| SimError::internal(format!("seed {seed:#x}: a scenario without a run")))?;
    Ok((scenario, run))
}

/// Takes random scenarios on this machine's KVM, one after the other.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn campaign(kind: random::Kind, seeds: Range<u64>, engines: Engines) -> Result<Campaign, SimError> {
    let mut campaign = Campaign::default();
    for seed in seeds {
        let (scenario, run) = random_scenario(kind, seed)?;
        let row = check(&scenario, &run, engines)?;
        for (witness, count) in row.agreed {
            *campaign.steps.entry(witness).or_default() += count;
        }
        match row.answer {
            Answer::Agrees => campaign.agreed += 1,
            Answer::Differs(difference) => campaign.differ.push((seed, *difference)),
            Answer::Unjudged(why) => campaign.unjudged.push((seed, why)),
        }
    }
    Ok(campaign)
}

/// The runs of a scenario that differ for a real KVM: by vendor and by the order of the steps.
#[must_use]
pub fn runs(scenario: &Scenario) -> Vec<RunConfig> {
    let mut runs: Vec<RunConfig> = Vec::new();
    for run in scenario.runs().0 {
        let run = RunConfig { at: None, with: Vec::new(), without: Vec::new(), ..run };
        let known = |other: &RunConfig| other.vendor == run.vendor && other.steps == run.steps;
        if !runs.iter().any(known) {
            runs.push(run);
        }
    }
    runs
}

/// Takes a run on this machine's KVM and compares it.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn check(scenario: &Scenario, run: &RunConfig, engines: Engines) -> Result<Row, SimError> {
    let unjudged = |why: String| Row { run: run.clone(), answer: Answer::Unjudged(why), agreed: BTreeMap::new() };
    let outcome = match engine::run_on(Kind::Kvm, scenario, run, Detail::Nothing) {
        Ok(outcome) => outcome,
        Err(SimError::Internal(what)) => return Err(SimError::Internal(what)),
        Err(error) => return Ok(unjudged(reason(&error))),
    };
    if outcome.shown.is_empty() {
        return Ok(unjudged(outcome.stopped.as_ref().map_or_else(|| "no step".to_owned(), reason)));
    }
    judge(scenario, run, engines, &outcome)
}

fn judge(scenario: &Scenario, run: &RunConfig, engines: Engines, outcome: &Outcome) -> Result<Row, SimError> {
    let (answer, compared) = match transparency::compare(scenario, run, outcome)? {
        Transparency::Differs(difference) => {
            let before = outcome.shown.iter().take_while(|shown| shown.number < difference.number).count();
            (Answer::Differs(difference), before)
        }
        Transparency::Unjudged { judged, error } => (Answer::Unjudged(reason(&error)), judged),
        Transparency::Transparent { .. } => match &outcome.stopped {
            None => (Answer::Agrees, outcome.shown.len()),
            Some(error) => (Answer::Unjudged(reason(error)), outcome.shown.len()),
        },
    };
    let mut agreed = BTreeMap::new();
    for shown in outcome.shown.iter().take(compared) {
        *agreed.entry(engines.witness(&scenario.steps[shown.index])).or_default() += 1;
    }
    Ok(Row { run: run.clone(), answer, agreed })
}

fn reason(error: &SimError) -> String {
    match error {
        SimError::Unmodelled { what } => what.clone(),
        other => other.to_string(),
    }
}
