//! A search on disk: what it has seen, and how each state was reached, in a checkpoint container. Machines are not in it: a
//! state that is still to be expanded is reached again by its steps.

use super::orderings::Orderings;
use super::refusal::Refusal;
use super::way::taken_again;
use super::{Noted, Notes, verb};
use search::{Mismatch, Move, Origin, Parts, Search};
use serde::{Deserialize, Serialize};
use sim_core::{SimError, hash};
use snapshots::{Checkpoint, FileError, Kind, Section};
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

impl SaveError {
    /// Why a search of a file can't go on.
    pub(super) fn of(mismatch: Mismatch<SimError>, file: &Path) -> Self {
        match mismatch {
            Mismatch::Player(error) => Self::Search(error),
            other => Self::Content { path: file.to_owned(), what: other.to_string() },
        }
    }
}

/// A search between two batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The run, for people.
    run: String,
    /// The digest of scenario, run and orders.
    identity: u64,
    levels: Vec<u64>,
    taken: u64,
    /// How many states were expanded: those with the lowest numbers.
    expanded: u32,
    /// By state, the first left out: the state before, and the move.
    origins: Vec<(u32, Step)>,
    /// Canonical digests of all states, ascending.
    seen: Vec<u64>,
    /// Each finding: its ordering, and which of the last step's findings it is.
    found: Vec<(Vec<Step>, u32)>,
    /// What steps show by choices, with the ordering.
    shown: Vec<(String, Vec<Step>)>,
    refused: Vec<(Refusal, Vec<Step>)>,
}

/// A move: the step and its way.
type Step = (u16, u16);

impl Section for Saved {
    const KIND: Kind = Kind::new(*b"SRCH");
    const VERSION: u32 = 4;
}

/// The digest of what a search depends on beside its limits.
pub(super) fn identity(Orderings { scenario, run, orders, silicon }: &Orderings<'_>) -> u64 {
    hash::digest(&(env!("CARGO_PKG_VERSION"), format!("{scenario:?} {run:?} {orders:?} {silicon:?}")))
}

fn plain(path: &[Move]) -> Vec<Step> {
    path.iter().map(|by| (by.step, by.way)).collect()
}

fn moves(path: &[Step]) -> Vec<Move> {
    path.iter().map(|(step, way)| Move { step: *step, way: *way }).collect()
}

impl Saved {
    pub(super) fn of(search: &Search<'_, Orderings<'_>>, notes: &Notes<'_>, space: &Orderings<'_>) -> Self {
        let Parts { levels, taken, expanded, origins, visited } = search.parts();
        Self {
            run: space.run.to_string(),
            identity: identity(space),
            levels,
            taken,
            expanded,
            origins: origins.iter().map(|origin| (origin.from, (origin.by.step, origin.by.way))).collect(),
            seen: visited,
            found: notes.found.iter().map(|found| (plain(&found.path), found.rank)).collect(),
            shown: notes.shown.iter().map(|(observed, path)| (observed.clone(), plain(path))).collect(),
            refused: notes.refused.iter().map(|(why, path)| (why.clone(), plain(path))).collect(),
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
    pub(super) fn resume<'s, 'a>(
        self,
        file: &Path,
        space: &'s Orderings<'a>,
    ) -> Result<(Search<'s, Orderings<'a>>, Notes<'a>), SaveError> {
        if self.identity != identity(space) {
            let (theirs, ours) = (self.run, space.run.to_string());
            return Err(SaveError::Other { path: file.to_owned(), theirs, ours });
        }
        let content = |what: &str| SaveError::Content { path: file.to_owned(), what: what.to_owned() };
        let steps = space.scenario.steps.len();
        let found = self.found.iter().map(|(path, _)| path);
        let shown = self.shown.iter().map(|(_, path)| path);
        let mut paths = found.chain(shown).chain(self.refused.iter().map(|(_, path)| path));
        if !paths.all(|path| path.iter().all(|(step, _)| usize::from(*step) < steps)) {
            return Err(content("it names steps that are not there"));
        }
        let mut notes = Notes::new(space.scenario);
        notes.refused = self.refused.iter().map(|(why, path)| (why.clone(), moves(path))).collect();
        for (observed, path) in &self.shown {
            let path = moves(path);
            let last = path.last().map_or(0, |by| usize::from(by.step));
            notes.show(observed.clone(), last, || path.clone());
        }
        for (path, rank) in &self.found {
            let path = moves(path);
            let finding = taken_again(space, &path)?.findings.into_iter().nth(*rank as usize);
            let finding = finding.ok_or_else(|| content("an ordering of it does not show its finding any more"))?;
            if let Some(last) = path.last() {
                notes.kinds.insert((finding.kind(), verb(space.scenario, usize::from(last.step))));
            }
            notes.found.push(Noted { finding, path, rank: *rank });
        }
        let origins =
            self.origins.iter().map(|(from, (step, way))| Origin { from: *from, by: Move { step: *step, way: *way } });
        let parts = Parts {
            levels: self.levels,
            taken: self.taken,
            expanded: self.expanded,
            origins: origins.collect(),
            visited: self.seen,
        };
        let search = Search::resume(space, parts).map_err(|mismatch| SaveError::of(mismatch, file))?;
        Ok((search, notes))
    }
}
