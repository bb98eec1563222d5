//! The same search shared by workers of several processes ([`search::sharded`]). What a worker tells of a finding is its
//! ordering and its rank; the process of the first worker takes the ordering again to have the finding itself.

use super::orderings::{Note, Orderings};
use super::refusal::Refusal;
use super::saved::identity;
use super::way::taken_again;
use super::{Explored, Notes, verb};
use search::Ended;
use search::hosts::Hosts;
use search::sharded::{self, Tell};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use std::collections::BTreeSet;

/// What a worker tells of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Told {
    /// One of its findings, by number.
    Finding { rank: u32 },
    /// What it shows by a choice of the silicon alone.
    Shows(String),
    /// Why it can't be taken.
    Refused(Refusal),
}

/// Searches a space to a depth. Nothing in a process that has not the first worker.
///
/// # Errors
/// If the machine can't be built, or the workers can't work together.
pub fn search(space: Orderings<'static>, depth: u32, hosts: &Hosts) -> Result<Option<Explored>, SimError> {
    // What can't be built here can't be built by any worker.
    drop(search::Search::new(&space)?);
    let gathered = sharded::run(hosts, identity(&space), depth, move || (space, tell(space)));
    let gathered = gathered.map_err(|failure| SimError::internal(failure.to_string()))?;
    let Some(gathered) = gathered else { return Ok(None) };
    let mut notes = Notes::new(space.scenario);
    for (path, told) in gathered.reports {
        let last = path.last().map_or(0, |by| usize::from(by.step));
        match told {
            Told::Shows(observed) => notes.show(observed, last, || path),
            Told::Refused(why) => {
                notes.refused.entry(why).or_insert(path);
            }
            Told::Finding { rank } => {
                let finding = taken_again(&space, &path)?.findings.into_iter().nth(rank as usize);
                let finding =
                    finding.ok_or_else(|| SimError::internal("a finding that another process did not have"))?;
                notes.find(finding, rank, last, || path);
            }
        }
    }
    Ok(Some(notes.explored(&space, (gathered.levels, gathered.taken), Ended::Complete)?))
}

/// A worker tells of each kind once for each verb, since it sees the steps of a depth in their order.
fn tell(space: Orderings<'static>) -> Tell<Note, Told> {
    let mut kinds = BTreeSet::new();
    let (mut shows, mut refused) = (BTreeSet::new(), BTreeSet::new());
    Box::new(move |path, note| {
        let last = path.last().map_or(0, |by| usize::from(by.step));
        let verb = verb(space.scenario, last);
        match note {
            Note::Shows(observed) => shows.insert((last, observed.clone())).then_some(Told::Shows(observed)),
            Note::Finding { finding, rank } => kinds.insert((finding.kind(), verb)).then_some(Told::Finding { rank }),
            Note::Refused(why) => refused.insert(why.clone()).then_some(Told::Refused(why)),
        }
    })
}
