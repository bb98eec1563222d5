//! In which orders a set of commits can be applied so that every kernel on the way is sound: each subset of the commits
//! is replayed against every scenario, and an order is clean if no prefix of it finds what the base does not.

use crate::bisect::runs_at_no_point;
use crate::engine;
use crate::file::{RunConfig, Scenario};
use crate::verdict::{Kind, Verdict};
use mmu::change::Change;
use rayon::prelude::*;
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::BTreeSet;

/// Commits that one question may have: 2^6 subsets, 720 orders.
pub const MOST_CHANGES: usize = 6;

/// Where an order first breaks something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Breakage {
    /// The scenario's file.
    pub scenario: String,
    /// The run, without its point of history.
    pub run: String,
    /// What is found.
    pub kind: Kind,
}

/// One order of the commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The commits, first applied first.
    pub changes: Vec<Change>,
    /// How many commits were applied when it first broke, and what; none if it never does.
    pub breaks: Option<(usize, Breakage)>,
}

/// Tries every order of the commits on top of a point of history.
///
/// # Errors
/// If a run can't be judged, or there are too many commits.
pub fn all(files: &[(String, Scenario)], base: &str, changes: &[Change]) -> Result<Vec<Order>, SimError> {
    if changes.len() > MOST_CHANGES {
        return Err(SimError::unmodelled(format!("orders of more than {MOST_CHANGES} commits")));
    }
    let subsets: Vec<u32> = (0..1 << changes.len()).collect();
    let found: Vec<BTreeSet<Breakage>> =
        subsets.par_iter().map(|subset| findings(files, base, changes, *subset)).collect::<Result<_, _>>()?;
    let dirty: Vec<Option<Breakage>> =
        found.iter().map(|breakages| breakages.difference(&found[0]).next().cloned()).collect();
    Ok(permutations(changes.len()).into_iter().map(|order| judge(&order, changes, &dirty)).collect())
}

fn judge(order: &[usize], changes: &[Change], dirty: &[Option<Breakage>]) -> Order {
    let mut subset = 0usize;
    let mut breaks = None;
    for (applied, index) in (1..).zip(order) {
        subset |= 1 << index;
        if breaks.is_none() {
            breaks = dirty[subset].clone().map(|breakage| (applied, breakage));
        }
    }
    Order { changes: order.iter().map(|index| changes[*index]).collect(), breaks }
}

/// What every scenario finds with a subset of the commits on top of the base.
fn findings(
    files: &[(String, Scenario)],
    base: &str,
    changes: &[Change],
    subset: u32,
) -> Result<BTreeSet<Breakage>, SimError> {
    let chosen = changes.iter().enumerate().filter(|(index, _)| subset >> index & 1 == 1);
    let with: Vec<String> = chosen.map(|(_, change)| change.info().id.to_owned()).collect();
    let mut all = BTreeSet::new();
    for (name, scenario) in files {
        for run in runs_at_no_point(scenario, None) {
            let label = run.to_string();
            let run = RunConfig { at: Some(base.to_owned()), with: with.clone(), without: Vec::new(), ..run };
            let verdict = Verdict::of_audits(&run, engine::run(scenario, &run, Detail::Nothing));
            if let Some(error) = verdict.stopped() {
                return Err(error.clone());
            }
            let kinds = verdict.kinds().into_keys();
            all.extend(kinds.map(|kind| Breakage { scenario: name.clone(), run: label.clone(), kind }));
        }
    }
    Ok(all)
}

/// Every order of `count` things, lexicographically.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        all = all
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                let left: Vec<usize> = (0..count).filter(|index| !order.contains(index)).collect();
                left.into_iter().map(move |index| [order.as_slice(), &[index]].concat())
            })
            .collect();
    }
    all
}
