//! Replaying whole files: every run of every file, in parallel, with results in the order of the files and of each
//! matrix, whatever the number of threads.

use crate::backend::Kind;
use crate::engine;
use crate::file::{RunConfig, Scenario, Selector, Skipped};
use crate::verdict::{Judgement, Verdict};
use rayon::prelude::*;
use sim_core::event::Detail;
use std::collections::BTreeMap;

/// What is changed from the command line in every run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// A point of history instead of the matrix's.
    pub at: Option<String>,
    /// Changes switched on beside the matrix's.
    pub with: Vec<String>,
    /// Changes switched off beside the matrix's.
    pub without: Vec<String>,
    /// Mistakes that the hypervisor makes, by name. The file's expectations apply all the same: one that nothing notices
    /// is one that no test would.
    pub plants: Vec<String>,
    /// The backend, if it is asked for; otherwise `sim`.
    pub backend: Option<Kind>,
    /// Steps by index, instead of the matrix's orders.
    pub steps: Option<Vec<usize>>,
    /// What the silicon chooses in some of them ([`RunConfig::choices`]).
    pub choices: BTreeMap<u32, Vec<u32>>,
}

impl Override {
    /// Whether the hypervisor is the one that the file asks for, so that the file's expectations apply.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.at.is_none() && self.with.is_empty() && self.without.is_empty() && self.steps.is_none()
    }

    /// The runs of a scenario's matrix that a selector takes, with the changes, each once.
    #[must_use]
    pub fn runs(&self, scenario: &Scenario, selector: Option<&Selector>) -> Vec<RunConfig> {
        let mut changed: Vec<RunConfig> = Vec::new();
        for run in scenario.runs().0.iter().filter(|run| selector.is_none_or(|selector| selector.matches(run))) {
            let run = self.apply(run);
            if !changed.contains(&run) {
                changed.push(run);
            }
        }
        changed
    }

    fn apply(&self, run: &RunConfig) -> RunConfig {
        let mut run = run.clone();
        if let Some(at) = &self.at {
            run.at = Some(at.clone());
        }
        run.with.extend(self.with.iter().cloned());
        run.without.extend(self.without.iter().cloned());
        run.plants.extend(self.plants.iter().cloned());
        if let Some(steps) = &self.steps {
            run.steps.clone_from(steps);
            run.choices.clone_from(&self.choices);
        }
        run
    }
}

/// A file's runs.
#[derive(Debug)]
pub struct Replayed {
    /// The file.
    pub name: String,
    /// What it says.
    pub scenario: Scenario,
    /// The backend that was asked for.
    pub backend: Option<Kind>,
    /// Each run with its verdict.
    pub verdicts: Vec<Verdict>,
    /// Combinations that can't exist.
    pub skipped: Vec<Skipped>,
}

/// Replays one file.
#[must_use]
pub fn file(name: String, scenario: Scenario, change: &Override, detail: Detail) -> Replayed {
    let (_, skipped) = scenario.runs();
    let changed = change.runs(&scenario, None);
    let kind = change.backend.unwrap_or_default();
    let judge = |run| Verdict::new(&scenario, run, engine::run_on(kind, &scenario, run, detail));
    let verdicts = changed.par_iter().map(judge).collect();
    Replayed { name, scenario, backend: change.backend, verdicts, skipped }
}

/// Replays files, in parallel too.
#[must_use]
pub fn files(files: Vec<(String, Scenario)>, change: &Override, detail: Detail) -> Vec<Replayed> {
    files.into_par_iter().map(|(name, scenario)| file(name, scenario, change, detail)).collect()
}

/// The worst judgement of all runs; a run that can't be judged outweighs one that holds.
#[must_use]
pub fn worst(replayed: &[Replayed]) -> Judgement {
    let all = || replayed.iter().flat_map(|file| &file.verdicts).map(|verdict| verdict.judgement);
    if all().any(|judgement| judgement == Judgement::Fails) {
        Judgement::Fails
    } else if all().any(|judgement| judgement == Judgement::Unjudged) {
        Judgement::Unjudged
    } else {
        Judgement::Holds
    }
}
