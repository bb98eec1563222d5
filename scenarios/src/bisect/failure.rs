//! What is wrong with a run, as a bisection compares it: not whether the file's expectations for that point of history
//! hold, which were written to hold on both sides, but what the run itself shows.
//!
//! | tier | what | why in this place |
//! |---|---|---|
//! | findings | what the audits found | names the broken rule |
//! | stop | the machine does not come to rest | what comes later was not seen |
//! | expectations | what a step must show, and bounds of counters that the file sets at any point of history | the file's own words |
//! | transparency | what bare silicon can't show | takes a search over executions of the silicon |
//!
//! A tier is looked at only where all before it are the same on both sides.

use super::timeless;
use crate::engine::transparency::{self, Transparency};
use crate::engine::{self, Outcome};
use crate::file::{Bound, RunConfig, Scenario, budget};
use crate::minimize::Symptom;
use crate::verdict;
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::BTreeSet;
use std::fmt;

/// One thing that is wrong with a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// An audit's finding, or a machine that does not come to rest.
    Symptom(Symptom),
    /// A step does not show what it must.
    Step {
        /// Its number.
        number: u32,
        /// The step, with what it must show.
        text: String,
    },
    /// A counter is out of its bound.
    Counter {
        /// The counter.
        name: String,
        /// The bound.
        bound: Bound,
    },
    /// A step shows what bare silicon can't.
    Transparency {
        /// Its number.
        number: u32,
        /// What it shows.
        symptom: Symptom,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symptom(symptom) => symptom.fmt(f),
            Self::Step { number, text } => write!(f, "step {number} does not show what it must: {text}"),
            Self::Counter { name, bound } => write!(f, "{name} is not {bound}"),
            Self::Transparency { number, symptom } => write!(f, "step {number} {symptom}"),
        }
    }
}

/// What sort of failure is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// What the audits found.
    Findings,
    /// The machine did not come to rest.
    Stop,
    /// What steps must show, and bounds of counters.
    Expectations,
    /// What bare silicon can't show.
    Transparency,
}

impl Tier {
    /// All, the one that is looked at first in front.
    pub const ALL: [Self; 4] = [Self::Findings, Self::Stop, Self::Expectations, Self::Transparency];
}

/// What runs are judged by.
#[derive(Clone, Debug)]
pub struct Judge<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// Bounds of counters that hold for all runs compared, whatever the file says of each.
    bounds: BTreeSet<(String, Bound)>,
    /// Words of the failures that count, if not all do.
    words: Option<&'a str>,
}

/// The failures that one side has and the other has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where they were found.
    pub tier: Tier,
    /// On the first side only.
    pub first: BTreeSet<Failure>,
    /// On the second side only.
    pub second: BTreeSet<Failure>,
}

impl<'a> Judge<'a> {
    /// A judge of runs that are compared with one run. The bounds are those that the file sets for it at any point of
    /// history.
    #[must_use]
    pub fn new(scenario: &'a Scenario, run: &RunConfig, words: Option<&'a str>) -> Self {
        let at_no_point = |run: &RunConfig| RunConfig { steps: Vec::new(), plants: Vec::new(), ..timeless(run) };
        let all = scenario.runs().0.into_iter().filter(|other| at_no_point(other) == at_no_point(run));
        let bounds = all.chain([run.clone()]).flat_map(|run| scenario.expectation(&run).budget).collect();
        Self { scenario, bounds, words }
    }

    /// The same judge of another scenario's runs.
    #[must_use]
    pub fn on<'b>(&self, scenario: &'b Scenario) -> Judge<'b>
    where
        'a: 'b,
    {
        Judge { scenario, bounds: self.bounds.clone(), words: self.words }
    }

    /// Takes a run to its end, or to where it does not come to rest.
    ///
    /// # Errors
    /// Why it can't be judged.
    pub fn take(&self, run: &RunConfig) -> Result<Outcome, SimError> {
        let outcome = engine::run(self.scenario, run, Detail::Nothing)?;
        match &outcome.stopped {
            None | Some(SimError::Runaway { .. }) => Ok(outcome),
            Some(error) => Err(error.clone()),
        }
    }

    /// The failures of one tier in a run that was taken.
    ///
    /// # Errors
    /// If it can't be compared with bare silicon.
    pub fn failures(&self, run: &RunConfig, outcome: &Outcome, tier: Tier) -> Result<BTreeSet<Failure>, SimError> {
        let mut all = match tier {
            Tier::Findings => outcome.findings.iter().map(Symptom::kind_of).map(Failure::Symptom).collect(),
            Tier::Stop => outcome.stopped.iter().map(|_| Failure::Symptom(Symptom::Runaway)).collect(),
            Tier::Expectations => self.expectations(outcome),
            Tier::Transparency => self.transparency(run, outcome)?,
        };
        all.retain(|failure| self.words.is_none_or(|words| failure.to_string().contains(words)));
        Ok(all)
    }

    /// Those of some failures of one tier that a run shows; bare silicon is asked only where it may matter.
    ///
    /// # Errors
    /// If it takes a comparison with bare silicon, and that can't be made.
    pub fn sought(
        &self,
        run: &RunConfig,
        outcome: &Outcome,
        tier: Tier,
        sought: &BTreeSet<Failure>,
    ) -> Result<BTreeSet<Failure>, SimError> {
        let may_be = |failure: &Failure| match failure {
            Failure::Transparency { symptom, .. } => symptom.may_be_in(self.scenario, outcome),
            Failure::Symptom(_) | Failure::Step { .. } | Failure::Counter { .. } => true,
        };
        if !sought.iter().any(may_be) {
            return Ok(BTreeSet::new());
        }
        Ok(self.failures(run, outcome, tier)?.intersection(sought).cloned().collect())
    }

    fn expectations(&self, outcome: &Outcome) -> BTreeSet<Failure> {
        let steps = verdict::disagreements(self.scenario, outcome).map(|(shown, _)| Failure::Step {
            number: shown.number,
            text: self.scenario.steps[shown.index].to_string(),
        });
        let counters = self
            .bounds
            .iter()
            .filter(|(name, bound)| budget::counter(name).is_some_and(|stat| !bound.allows(outcome.stats.get(stat))));
        let counters = counters.map(|(name, bound)| Failure::Counter { name: name.clone(), bound: *bound });
        // What a machine counts that does not come to rest says nothing.
        steps.chain(counters.filter(|_| outcome.stopped.is_none())).collect()
    }

    fn transparency(&self, run: &RunConfig, outcome: &Outcome) -> Result<BTreeSet<Failure>, SimError> {
        if outcome.stopped.is_some() {
            return Ok(BTreeSet::new());
        }
        match transparency::judge(self.scenario, run, outcome)? {
            Transparency::Transparent { .. } => Ok(BTreeSet::new()),
            Transparency::Unjudged { error, .. } => Err(error),
            Transparency::Differs(difference) => {
                let symptom = Symptom::of_difference(self.scenario, &difference);
                let number = difference.number;
                Ok(symptom.map(|symptom| Failure::Transparency { number, symptom }).into_iter().collect())
            }
        }
    }

    /// The first tier in which two runs differ.
    ///
    /// # Errors
    /// If one of them can't be compared with bare silicon.
    pub fn difference(
        &self,
        first: (&RunConfig, &Outcome),
        second: (&RunConfig, &Outcome),
    ) -> Result<Option<Difference>, SimError> {
        for tier in Tier::ALL {
            let failures = |(run, outcome)| self.failures(run, outcome, tier);
            let (first, second) = match (failures(first), failures(second)) {
                (Ok(first), Ok(second)) => (first, second),
                // Of a side that can't be compared nothing is known, not even that it is the same.
                (Err(error), _) | (_, Err(error)) => return Err(error),
            };
            if first != second {
                let only = |here: &BTreeSet<Failure>, there| here.difference(there).cloned().collect();
                let (first, second) = (only(&first, &second), only(&second, &first));
                return Ok(Some(Difference { tier, first, second }));
            }
        }
        Ok(None)
    }
}
