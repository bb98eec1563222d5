//! Which change flips a verdict: a walk over the points between a good and a bad one, and then over the single changes
//! of the step where it flips.

use crate::engine;
use crate::file::{RunConfig, Scenario, Selector};
use crate::verdict::{Kind, Verdict};
use mmu::change::{Change, Info, Point};
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::BTreeSet;
use thiserror::Error;

/// Why a bisection has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BisectError {
    /// A name is no point of history.
    #[error("{0:?} is no point of history (see: rolecall show points)")]
    NoPoint(String),
    /// Neither point builds on the other.
    #[error("{good} and {bad} are on different forks of history; give two points of which one builds on the other")]
    Unrelated {
        /// The good point.
        good: String,
        /// The bad point.
        bad: String,
    },
    /// The verdicts do not differ.
    #[error("{good} and {bad} give the same findings in every run: there is nothing to bisect")]
    Same {
        /// The good point.
        good: String,
        /// The bad point.
        bad: String,
    },
    /// A run can't be judged.
    #[error(transparent)]
    Simulation(#[from] SimError),
}

/// The answer of a bisection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// The run, without its point of history.
    pub run: RunConfig,
    /// The change that flips the verdict.
    pub change: Change,
    /// Where the change was made: the name of the first point that has it.
    pub point: &'static str,
    /// The findings that come or go.
    pub kinds: Vec<Kind>,
    /// How many runs it took.
    pub tried: usize,
    /// Whether the newer side is the bad one.
    pub newer: Newer,
}

/// Which side of a flip is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newer {
    /// The change brought the finding.
    Bad,
    /// The change removed it.
    Good,
}

impl Flip {
    /// The change's row of history.
    #[must_use]
    pub const fn info(&self) -> Info {
        self.change.info()
    }
}

fn point(name: &str) -> Result<&'static Point, BisectError> {
    Point::by_name(name).ok_or_else(|| BisectError::NoPoint(name.to_owned()))
}

/// The points from the older of two to the newer, if one builds on the other.
fn path(good: &str, bad: &str) -> Result<Vec<&'static Point>, BisectError> {
    let (good, bad) = (point(good)?, point(bad)?);
    for (older, newer) in [(good, bad), (bad, good)] {
        let lineage = newer.lineage();
        if let Some(start) = lineage.iter().position(|point| point.name == older.name) {
            return Ok(lineage[start..].to_vec());
        }
    }
    Err(BisectError::Unrelated { good: good.name.to_owned(), bad: bad.name.to_owned() })
}

/// The kinds of finding of one run at a set of changes given as a point and changes beyond it.
fn kinds(scenario: &Scenario, run: &RunConfig, at: &str, with: &[Change]) -> Result<BTreeSet<Kind>, SimError> {
    let mut run = run.clone();
    run.at = Some(at.to_owned());
    run.with.extend(with.iter().map(|change| change.info().id.to_owned()));
    let verdict = Verdict::of_audits(&run, engine::run(scenario, &run, Detail::Nothing));
    match verdict.stopped() {
        Some(error) => Err(error.clone()),
        None => Ok(verdict.kinds().into_keys().collect()),
    }
}

/// The runs of a scenario's matrix without its axes of history.
#[must_use]
pub fn timeless_runs(scenario: &Scenario, selector: Option<&Selector>) -> Vec<RunConfig> {
    let mut runs: Vec<RunConfig> = Vec::new();
    for run in scenario.runs().0.into_iter().filter(|run| selector.is_none_or(|selector| selector.matches(run))) {
        let run = RunConfig { at: None, with: Vec::new(), without: Vec::new(), ..run };
        if !runs.contains(&run) {
            runs.push(run);
        }
    }
    runs
}

/// Finds, for one run, the change between two points that flips its findings.
///
/// # Errors
/// If the points are unrelated, the run can't be judged, or nothing differs.
pub fn run(scenario: &Scenario, run: &RunConfig, good: &str, bad: &str) -> Result<Flip, BisectError> {
    let points = path(good, bad)?;
    let (oldest, newest) = match (points.first(), points.last()) {
        (Some(oldest), Some(newest)) => (oldest.name, newest.name),
        _ => return Err(BisectError::NoPoint(good.to_owned())),
    };
    let mut tried = 2;
    let at_oldest = kinds(scenario, run, oldest, &[])?;
    let at_newest = kinds(scenario, run, newest, &[])?;
    // Which of the two is the bad one, the findings say; the caller may have named them the wrong way round.
    let (only_old, only_new): (Vec<Kind>, Vec<Kind>) =
        (at_oldest.difference(&at_newest).cloned().collect(), at_newest.difference(&at_oldest).cloned().collect());
    let (sought, newer) = match (only_old.is_empty(), only_new.is_empty()) {
        (true, true) => return Err(BisectError::Same { good: good.to_owned(), bad: bad.to_owned() }),
        (false, _) => (only_old, Newer::Good),
        (true, false) => (only_new, Newer::Bad),
    };
    // Every state between two points is the point before and a prefix of what the next one adds.
    let mut states = vec![(oldest, Vec::new(), None, oldest)];
    for pair in points.windows(2) {
        for count in 1..=pair[1].adds.len() {
            let adds = &pair[1].adds[..count];
            states.push((pair[0].name, adds.to_vec(), adds.last().copied(), pair[1].name));
        }
    }
    let old_side = newer == Newer::Good;
    let mut shows = |index: usize| -> Result<bool, SimError> {
        let (at, with, _, _) = &states[index];
        tried += 1;
        let found = kinds(scenario, run, at, with)?;
        Ok(sought.iter().any(|kind| found.contains(kind)))
    };
    let (mut low, mut high) = (0, states.len() - 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if shows(middle)? == old_side { low = middle } else { high = middle }
    }
    let (_, _, change, name) = &states[high];
    let change = change.ok_or_else(|| SimError::internal("a bisection ended before the first change"))?;
    Ok(Flip { run: run.clone(), change, point: name, kinds: sought, tried, newer })
}
