//! Which mistakes do some scenarios notice? Each planted mistake is switched on in turn, in every run that holds without
//! it, until one run no longer does.
//!
//! A mistake that nothing notices is a mechanism without a test, or a line that does nothing.

use crate::engine;
use crate::file::{RunConfig, Scenario};
use crate::verdict::{Judgement, Verdict};
use mmu::plant::Plant;
use rayon::prelude::*;
use sim_core::event::Detail;

/// How a mistake was noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The scenario's file.
    pub scenario: String,
    /// The run.
    pub run: RunConfig,
    /// What noticed it.
    pub by: Witness,
    /// The first expectation that no longer holds.
    pub failure: String,
}

/// What noticed a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// An audit.
    Audit(&'static str),
    /// The guest: bare silicon shows something else.
    Transparency,
    /// What a step says that it must show, a budget, or the end of the run.
    Expectation,
}

impl Witness {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Audit(name) => name,
            Self::Transparency => "transparency",
            Self::Expectation => "expectation",
        }
    }
}

/// A mistake, and who noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The mistake.
    pub plant: Plant,
    /// How it was noticed, if it was.
    pub caught: Option<Caught>,
}

/// Plants each of some mistakes in turn.
#[must_use]
pub fn all(files: &[(String, Scenario)], plants: &[Plant]) -> Vec<Row> {
    let sound: Vec<(&str, &Scenario, RunConfig)> = files
        .par_iter()
        .flat_map_iter(|(name, scenario)| {
            // A run that is meant to hang takes long, and tells nothing that a shorter one does not.
            let holds = |run: &RunConfig| {
                let verdict = judge(scenario, run);
                verdict.judgement == Judgement::Holds && verdict.stopped().is_none()
            };
            let runs = scenario.runs().0.into_iter().filter(holds).collect::<Vec<_>>();
            runs.into_iter().map(move |run| (name.as_str(), scenario, run))
        })
        .collect();
    let row = |plant: &Plant| Row {
        plant: *plant,
        caught: strongest(sound.iter().filter_map(|sound| notices(*plant, sound))),
    };
    plants.par_iter().map(row).collect()
}

/// The first who notices by looking at everything: an audit, or the guest on bare silicon. Failing that, the first
/// expectation that was written for it.
fn strongest(mut all: impl Iterator<Item = Caught>) -> Option<Caught> {
    let first = all.next()?;
    if first.by != Witness::Expectation {
        return Some(first);
    }
    Some(all.find(|caught| caught.by != Witness::Expectation).unwrap_or(first))
}

fn judge(scenario: &Scenario, run: &RunConfig) -> Verdict {
    Verdict::new(scenario, run, engine::run(scenario, run, Detail::Nothing))
}

fn notices(plant: Plant, (name, scenario, run): &(&str, &Scenario, RunConfig)) -> Option<Caught> {
    let mut run = run.clone();
    run.plants.push(plant.name().to_owned());
    let verdict = judge(scenario, &run);
    // One that comes to what is not modelled, where the sound run did not, no longer holds either.
    if verdict.judgement == Judgement::Holds {
        return None;
    }
    let by = match verdict.first() {
        Some(finding) => Witness::Audit(finding.audit.name()),
        None if verdict.difference().is_some() => Witness::Transparency,
        None => Witness::Expectation,
    };
    let failure = verdict.failures.first().cloned().unwrap_or_default();
    Some(Caught { scenario: (*name).to_owned(), run, by, failure })
}
