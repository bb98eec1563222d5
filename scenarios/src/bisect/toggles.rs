//! Which changes it takes to flip a verdict. The change that a walk over history names is the last one of those that
//! were needed there; it may need others that came before, and others may do without it.
//!
//! Asked twice: which changes, added to the older point, give it the newer one's verdict, and which, taken out of the
//! newer, give that the older one's. Both answers are 1-minimal (see [`crate::minimize::ddmin`]), with the named change
//! in it where it is needed at all. A set of changes that can't be judged does not flip anything.

use super::failure::Judge;
use super::{Flip, Newer, State};
use crate::file::{RunConfig, Scenario};
use crate::minimize::ddmin;
use mmu::change::{Change, Point};
use sim_core::SimError;
use std::fmt;

/// The smallest sets of changes that flip a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toggles {
    /// The older point's name.
    pub older: &'static str,
    /// The newer point's.
    pub newer: &'static str,
    /// The change that the walk named.
    pub named: Change,
    /// What the older point must have to give the newer one's verdict.
    pub added: Vec<Change>,
    /// What the newer point must lack to give the older one's.
    pub removed: Vec<Change>,
    /// How many runs it took.
    pub tried: usize,
}

/// Which way a set of changes is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the older point.
    Add,
    /// To the newer point.
    Remove,
}

struct Search<'a> {
    judge: Judge<'a>,
    flip: &'a Flip,
    tried: usize,
}

impl Search<'_> {
    fn run(&self, way: Way, changes: &[Change]) -> RunConfig {
        match way {
            Way::Add => State { at: self.flip.ends[0], with: changes.to_vec() }.of(&self.flip.run),
            Way::Remove => {
                let mut run = State { at: self.flip.ends[1], with: Vec::new() }.of(&self.flip.run);
                run.without.extend(changes.iter().map(|change| change.info().id.to_owned()));
                run
            }
        }
    }

    fn flips(&mut self, way: Way, changes: &[Change]) -> Result<bool, SimError> {
        self.tried += 1;
        let run = self.run(way, changes);
        let shown = self
            .judge
            .take(&run)
            .and_then(|outcome| self.judge.sought(&run, &outcome, self.flip.tier, &self.flip.failures));
        match shown {
            // What is added must bring the newer point's verdict, what is taken out must bring the older one's.
            Ok(shown) => Ok(shown.is_empty() == ((self.flip.newer == Newer::Good) == (way == Way::Add))),
            Err(SimError::Internal(what)) => Err(SimError::Internal(what)),
            Err(SimError::Unmodelled { .. } | SimError::Runaway { .. }) => Ok(false),
        }
    }

    fn smallest(&mut self, way: Way, all: &[Change]) -> Result<Vec<Change>, SimError> {
        let named = self.flip.change;
        let others: Vec<Change> = all.iter().copied().filter(|change| *change != named).collect();
        let in_order = |some: &[Change]| -> Vec<Change> {
            all.iter().copied().filter(|change| *change == named || some.contains(change)).collect()
        };
        let others = ddmin(others, |some| self.flips(way, &in_order(some)))?;
        let needless = !others.is_empty() && self.flips(way, &others)?;
        Ok(if needless { others } else { in_order(&others) })
    }
}

/// The smallest sets of the changes between the two ends of a bisection that flip its verdict.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn toggles(scenario: &Scenario, flip: &Flip) -> Result<Toggles, SimError> {
    let judge = Judge::new(scenario, &flip.run, None);
    let changes = |name| Point::by_name(name).map(Point::changes).unwrap_or_default();
    let before = changes(flip.ends[0]);
    let all: Vec<Change> = changes(flip.ends[1]).into_iter().filter(|change| !before.contains(change)).collect();
    let mut search = Search { judge, flip, tried: 0 };
    let added = search.smallest(Way::Add, &all)?;
    let removed = search.smallest(Way::Remove, &all)?;
    let (older, newer) = (flip.ends[0], flip.ends[1]);
    Ok(Toggles { older, newer, named: flip.change, added, removed, tried: search.tried })
}

fn listed(changes: &[Change]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

impl fmt::Display for Toggles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { older, newer, named, added, removed, .. } = self;
        let alone = |changes: &[Change]| changes == [*named];
        match (alone(added), alone(removed)) {
            (true, true) => {
                return write!(f, "it takes this change alone: {older} with it and {newer} without it flip");
            }
            (true, false) => write!(f, "{older} flips with this change alone")?,
            (false, _) => write!(f, "{older} flips only with {} together", listed(added))?,
        }
        if alone(removed) {
            write!(f, "; {newer} flips without this change alone")
        } else {
            write!(f, "; {newer} flips only without {} together", listed(removed))
        }
    }
}
