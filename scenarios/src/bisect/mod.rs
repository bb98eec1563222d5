//! Which change flips a scenario's verdict: a walk over the points between a good and a bad one, and then over the
//! single changes of the step where it flips.
//!
//! What a verdict is made of is in [`failure`]: findings of audits first, then what else fails. [`steps`](mod@steps) and
//! [`switches`](mod@switches) ask the same of a run's steps and of its configuration.

pub mod failure;
pub mod steps;
pub mod switches;
pub mod toggles;
pub mod variant;

pub use failure::{Failure, Judge, Tier};
pub use steps::{StepRow, steps};
pub use switches::{SwitchRow, switches};
pub use toggles::{Toggles, toggles};
pub use variant::{Effect, Failing};

use crate::file::{RunConfig, Scenario, Selector};
use mmu::change::{Change, Info, Point};
use sim_core::SimError;
use std::collections::{BTreeMap, BTreeSet};
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
    #[error("{good} and {bad} give the same verdict in every run: there is nothing to bisect")]
    Same {
        /// The good point.
        good: String,
        /// The bad point.
        bad: String,
    },
    /// No run fails.
    #[error("no run fails by anything: there is nothing to bisect")]
    NoFailure,
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
    /// The last state of history without the change, and the first with it.
    pub states: [State; 2],
    /// The older and the newer point that were compared.
    pub ends: [&'static str; 2],
    /// What sort of failure tells them apart.
    pub tier: Tier,
    /// What was looked for: everything that one end fails by and the other does not.
    pub sought: BTreeSet<Failure>,
    /// What comes or goes with the change.
    pub failures: BTreeSet<Failure>,
    /// How many runs it took.
    pub tried: usize,
    /// Whether the newer side is the bad one.
    pub newer: Newer,
}

/// Which side of a flip is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newer {
    /// The change brought the failures.
    Bad,
    /// The change removed them.
    Good,
}

impl Flip {
    /// The change's row of history.
    #[must_use]
    pub const fn info(&self) -> Info {
        self.change.info()
    }
}

/// A state of history: a point and changes on top of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The point.
    pub at: &'static str,
    /// The changes.
    pub with: Vec<Change>,
}

impl State {
    /// A run at this state.
    #[must_use]
    pub fn of(&self, run: &RunConfig) -> RunConfig {
        let mut run = run.clone();
        run.at = Some(self.at.to_owned());
        run.with.extend(self.with.iter().map(|change| change.info().id.to_owned()));
        run
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

/// Every state between two points: the point before and a prefix of what the next one adds. Beside each is the name of
/// the first point that has it all.
fn states(points: &[&'static Point]) -> Vec<(State, &'static str)> {
    let oldest = points.iter().take(1).map(|point| (State { at: point.name, with: Vec::new() }, point.name));
    let between = points.windows(2).flat_map(|pair| {
        let (before, next) = (pair[0].name, pair[1]);
        let adds = next.adds();
        (1..=adds.len()).map(move |count| (State { at: before, with: adds[..count].to_vec() }, next.name))
    });
    oldest.chain(between).collect()
}

/// A run without its point of history.
fn timeless(run: &RunConfig) -> RunConfig {
    RunConfig { at: None, with: Vec::new(), without: Vec::new(), ..run.clone() }
}

/// The runs of a scenario's matrix without their point of history. Changes that the matrix toggles beside it stay: some fixes
/// mend what only the next change would break.
#[must_use]
pub fn runs_at_no_point(scenario: &Scenario, selector: Option<&Selector>) -> Vec<RunConfig> {
    let mut runs: Vec<RunConfig> = Vec::new();
    for run in scenario.runs().0.into_iter().filter(|run| selector.is_none_or(|selector| selector.matches(run))) {
        let run = RunConfig { at: None, ..run };
        if !runs.contains(&run) {
            runs.push(run);
        }
    }
    runs
}

/// Finds, for one run, the change between two points that flips its verdict.
///
/// # Errors
/// If the points are unrelated, the run can't be judged, or nothing differs.
pub fn run(scenario: &Scenario, run: &RunConfig, good: &str, bad: &str) -> Result<Flip, BisectError> {
    run_for(scenario, run, (good, bad), None)
}

/// The same, looking only at failures whose description holds some words, if any are given.
///
/// # Errors
/// See [`run`].
pub fn run_for(
    scenario: &Scenario,
    run: &RunConfig,
    (good, bad): (&str, &str),
    words: Option<&str>,
) -> Result<Flip, BisectError> {
    let states = states(&path(good, bad)?);
    let last = states.len() - 1;
    let runs = [&states[0], &states[last]].map(|(state, _)| state.of(run));
    let judge = Judge::new(scenario, run, words);
    let outcomes = [judge.take(&runs[0])?, judge.take(&runs[1])?];
    let same = || BisectError::Same { good: good.to_owned(), bad: bad.to_owned() };
    let difference = judge.difference((&runs[0], &outcomes[0]), (&runs[1], &outcomes[1]))?.ok_or_else(same)?;
    // What the caller calls bad is; but if it only lacks what the other side fails by, the names were swapped.
    let bad_is_newer = states[0].0.at != bad;
    let (old, new) = (difference.first, difference.second);
    let newer = match (bad_is_newer, old.is_empty(), new.is_empty()) {
        (true, _, false) | (false, true, _) => Newer::Bad,
        (true, _, true) | (false, false, _) => Newer::Good,
    };
    let sought = if newer == Newer::Bad { new } else { old };
    let shown = if newer == Newer::Bad { [BTreeSet::new(), sought.clone()] } else { [sought.clone(), BTreeSet::new()] };
    let known = [0, last].into_iter().zip(shown).collect();
    let mut search = Search { judge: &judge, run, tier: difference.tier, sought: &sought, known };
    let (mut low, mut high) = (0, last);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let fails = !search.shown(middle, &states[middle].0)?.is_empty();
        if fails == (newer == Newer::Good) { low = middle } else { high = middle }
    }
    let tried = search.known.len();
    let neighbours = [search.shown(low, &states[low].0)?, search.shown(high, &states[high].0)?];
    let failures = neighbours[0].symmetric_difference(&neighbours[1]).cloned().collect();
    let (state, point) = &states[high];
    let change = state.with.last().copied();
    let change = change.ok_or_else(|| SimError::internal("a bisection ended before the first change"))?;
    Ok(Flip {
        run: run.clone(),
        change,
        point,
        states: [states[low].0.clone(), state.clone()],
        ends: [states[0].1, states[last].1],
        tier: difference.tier,
        sought,
        failures,
        tried,
        newer,
    })
}

/// A walk over states of history.
struct Search<'a> {
    judge: &'a Judge<'a>,
    run: &'a RunConfig,
    tier: Tier,
    sought: &'a BTreeSet<Failure>,
    /// What each state that was tried shows of what is sought.
    known: BTreeMap<usize, BTreeSet<Failure>>,
}

impl Search<'_> {
    /// What a state shows of what is sought.
    fn shown(&mut self, index: usize, state: &State) -> Result<BTreeSet<Failure>, SimError> {
        if let Some(known) = self.known.get(&index) {
            return Ok(known.clone());
        }
        let run = state.of(self.run);
        let outcome = self.judge.take(&run)?;
        let shown = self.judge.sought(&run, &outcome, self.tier, self.sought)?;
        self.known.insert(index, shown.clone());
        Ok(shown)
    }
}
