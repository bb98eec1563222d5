//! A search on disk: what it has seen, and how each state was reached, in a checkpoint container. Machines are not in it: a
//! state that is still to be expanded is reached again by its steps.

use super::{Explored, Found, Limits, Origin, Search, State, verb};
use crate::engine::board::Board;
use crate::file::{RunConfig, Scenario};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sim_core::{SimError, hash};
use snapshots::{Checkpoint, FileError, Kind, Section};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a search could not be saved or gone on with.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The file can't be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// It holds another search.
    #[error("{}: a search of {theirs}, not of {ours}; give another file, or the scenario as it was", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it holds.
        theirs: String,
        /// What was asked for.
        ours: String,
    },
    /// Its parts do not belong together, or its steps lead elsewhere by now.
    #[error("{}: {what}; begin anew with another file", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The search itself failed.
    #[error(transparent)]
    Search(#[from] SimError),
}

/// A search between two levels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The run, for people.
    run: String,
    /// The digest of scenario and run.
    identity: u64,
    levels: Vec<u64>,
    taken: u64,
    full: bool,
    /// By state, the first left out: the state before, and the step.
    origins: Vec<(u32, u16)>,
    /// Canonical digests of all states, ascending.
    seen: Vec<u64>,
    /// Each finding: its ordering, and which of the last step's findings it is.
    found: Vec<(Vec<u16>, u32)>,
    refused: Vec<(String, Vec<u16>)>,
    /// States that are still to be expanded.
    frontier: Vec<u32>,
}

impl Section for Saved {
    const KIND: Kind = Kind::new(*b"SRCH");
    const VERSION: u32 = 1;
}

fn identity(scenario: &Scenario, run: &RunConfig) -> u64 {
    hash::digest(&(env!("CARGO_PKG_VERSION"), format!("{scenario:?} {run:?}")))
}

fn short(path: &[usize]) -> Vec<u16> {
    path.iter().map(|index| *index as u16).collect()
}

fn long(path: &[u16]) -> Vec<usize> {
    path.iter().copied().map(usize::from).collect()
}

impl Saved {
    pub(super) fn of(search: &Search<'_>, frontier: &[State]) -> Self {
        let Explored { levels, taken, found, refused, full } = &search.explored;
        Self {
            run: search.run.to_string(),
            identity: identity(search.scenario, search.run),
            levels: levels.iter().map(|states| *states as u64).collect(),
            taken: *taken,
            full: *full,
            origins: search.origins.iter().map(|origin| (origin.from, origin.step)).collect(),
            seen: search.seen.iter().copied().collect(),
            found: found.iter().map(|found| (short(&found.path), found.rank)).collect(),
            refused: refused.iter().map(|(why, path)| (why.clone(), short(path))).collect(),
            frontier: frontier.iter().map(|state| state.number).collect(),
        }
    }

    /// Replaces the file whole.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn save(&self, file: &Path) -> Result<(), SaveError> {
        let content = |cause| FileError::Content { path: file.to_owned(), cause };
        let mut checkpoint = Checkpoint::new();
        checkpoint.put(self).map_err(content)?;
        Ok(snapshots::save(file, &checkpoint)?)
    }

    /// Reads a file, if there is one.
    ///
    /// # Errors
    /// If it can't be read, or is damaged.
    pub(super) fn load(file: &Path) -> Result<Option<Self>, SaveError> {
        let checkpoint = match snapshots::load(file) {
            Err(FileError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let content = |cause| FileError::Content { path: file.to_owned(), cause };
        Ok(Some(checkpoint.get().map_err(content)?))
    }

    /// The search as it was.
    ///
    /// # Errors
    /// If it is another's, or does not hold together.
    pub(super) fn resume<'a>(
        self,
        file: &Path,
        scenario: &'a Scenario,
        run: &'a RunConfig,
        limits: Limits,
    ) -> Result<(Search<'a>, Vec<State>), SaveError> {
        if self.identity != identity(scenario, run) {
            let (theirs, ours) = (self.run, run.to_string());
            return Err(SaveError::Other { path: file.to_owned(), theirs, ours });
        }
        let content = |what: &str| SaveError::Content { path: file.to_owned(), what: what.to_owned() };
        self.check(scenario).map_err(content)?;
        let mut search = Search {
            scenario,
            run,
            limits,
            seen: self.seen.iter().copied().collect(),
            origins: self.origins.iter().map(|(from, step)| Origin { from: *from, step: *step }).collect(),
            kinds: BTreeSet::new(),
            explored: Explored {
                levels: self.levels.iter().map(|states| *states as usize).collect(),
                taken: self.taken,
                full: self.full,
                ..Explored::default()
            },
        };
        search.explored.refused = self.refused.iter().map(|(why, path)| (why.clone(), long(path))).collect();
        for (path, rank) in &self.found {
            let path = long(path);
            let (_, findings, _) = walk(&mut Board::new(scenario, run)?, &path)?;
            let finding = findings.into_iter().nth(*rank as usize);
            let finding = finding.ok_or_else(|| content("an ordering of it does not show its finding any more"))?;
            if let Some(last) = path.last() {
                search.kinds.insert((finding.kind(), verb(scenario, *last)));
            }
            search.explored.found.push(Found { finding, path, rank: *rank });
        }
        let reach = |number: &u32| -> Result<State, SaveError> {
            let (position, findings, key) = walk(&mut Board::new(scenario, run)?, &search.path_to(*number))?;
            if !search.seen.contains(&key) {
                return Err(content("the steps of a state lead elsewhere by now"));
            }
            let shows = findings.iter().map(mmu::audit::Finding::kind).collect();
            Ok(State { number: *number, position, shows })
        };
        let frontier = self.frontier.par_iter().map(reach).collect::<Result<Vec<_>, _>>()?;
        Ok((search, frontier))
    }

    /// Whether numbers of states and steps are those of this scenario.
    fn check(&self, scenario: &Scenario) -> Result<(), &'static str> {
        let states = self.origins.len() + 1;
        let steps = scenario.steps.len();
        let is_step = |step: &u16| usize::from(*step) < steps;
        let earlier = self.origins.iter().zip(1u32..).all(|((from, step), number)| *from < number && is_step(step));
        let paths = self.found.iter().map(|(path, _)| path).chain(self.refused.iter().map(|(_, path)| path));
        if !earlier || !paths.flatten().all(is_step) {
            return Err("it names steps or states that are not there");
        }
        if self.seen.len() != states || self.levels.iter().sum::<u64>() != states as u64 {
            return Err("its counts of states disagree");
        }
        let known = |number: &u32| (*number as usize) < states;
        if self.frontier.iter().all(known) { Ok(()) } else { Err("it is to expand states that are not there") }
    }
}

/// Takes steps from the start: where they lead, what the last one showed, and the digest there.
fn walk(
    board: &mut Board<'_>,
    path: &[usize],
) -> Result<(crate::engine::board::Position, Vec<mmu::audit::Finding>, u64), SimError> {
    let start = (board.position(), Vec::new(), board.key()?);
    (1..).zip(path).try_fold(start, |(from, _, _), (number, index)| {
        let moved = board.take(&from, number, *index)?;
        Ok((moved.to, moved.findings, moved.key))
    })
}
