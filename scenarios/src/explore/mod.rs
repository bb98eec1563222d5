//! Every ordering of a scenario's steps to a depth: a breadth-first search whose alphabet is the file's steps, each as often
//! as it comes. States are recognised by their [canonical digest](hypervisor::canonical), so that orderings that lead to the
//! same state are followed once.
//!
//! The result depends on nothing but the scenario and the limits: a level is expanded in parallel, and what it gave is
//! taken in the order of its states and of the file's steps. Each kind of finding is told once for each verb that brings it
//! up, with the first ordering that does, which is one of the shortest; what only lasts from the step before is not told
//! again. Left out: choices of the silicon, interleavings inside a page fault, and
//! comparing with bare silicon.

pub mod saved;

use crate::engine::board::{Board, Move, Position};
use crate::file::{RunConfig, Scenario};
use crate::verdict::Kind;
use mmu::audit::Finding;
use rayon::prelude::*;
use saved::{SaveError, Saved};
use sim_core::SimError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// States that are expanded between two looks at what was seen before.
const BATCH: usize = 256;

/// How far a search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps of an ordering.
    pub depth: u32,
    /// States.
    pub states: usize,
}

/// A finding of a kind that had not been seen before.
#[derive(Clone, Debug)]
pub struct Found {
    /// The finding.
    pub finding: Finding,
    /// The ordering that shows it: indices of the scenario's steps.
    pub path: Vec<usize>,
    /// Which of the last step's findings it is, from 0.
    pub rank: u32,
}

/// What a search gave.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// New states at each depth, the first state alone at depth 0.
    pub levels: Vec<usize>,
    /// Steps taken.
    pub taken: u64,
    /// Each kind of finding that a verb brings up, in the order of discovery.
    pub found: Vec<Found>,
    /// Why steps could not be taken, with the first ordering of each.
    pub refused: BTreeMap<String, Vec<usize>>,
    /// Whether the search ended because it had no room left.
    pub full: bool,
}

impl Explored {
    /// States that were told apart.
    #[must_use]
    pub fn states(&self) -> usize {
        self.levels.iter().sum()
    }

    /// Findings that are not open bugs of the kernel at that point of history.
    pub fn unknown(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| found.finding.known.is_none())
    }
}

/// How a state was reached first.
#[derive(Clone, Copy)]
struct Origin {
    from: u32,
    step: u16,
}

/// A state that is still to be expanded.
struct State {
    number: u32,
    position: Position,
    /// What the step that led to it showed.
    shows: BTreeSet<Kind>,
}

/// A search under way.
struct Search<'a> {
    scenario: &'a Scenario,
    run: &'a RunConfig,
    limits: Limits,
    seen: BTreeSet<u64>,
    /// By state, the first state left out.
    origins: Vec<Origin>,
    kinds: BTreeSet<(Kind, &'a str)>,
    explored: Explored,
}

/// Searches one run of a scenario, whose steps are the alphabet.
///
/// # Errors
/// If the machine can't be built.
pub fn search(scenario: &Scenario, run: &RunConfig, limits: Limits) -> Result<Explored, SimError> {
    let (mut search, mut frontier) = Search::new(scenario, run, limits)?;
    while search.goes_on(&frontier) {
        frontier = search.deeper(&frontier)?;
    }
    Ok(search.explored)
}

/// The same with a file that holds the search after each level: one that is there already is gone on with.
///
/// # Errors
/// If the machine can't be built, or the file is not one of this search; then it is left as it was.
pub fn search_with(file: &Path, scenario: &Scenario, run: &RunConfig, limits: Limits) -> Result<Explored, SaveError> {
    let (mut search, mut frontier) = match Saved::load(file)? {
        Some(saved) => saved.resume(file, scenario, run, limits)?,
        None => Search::new(scenario, run, limits)?,
    };
    while search.goes_on(&frontier) {
        frontier = search.deeper(&frontier)?;
        Saved::of(&search, &frontier).save(file)?;
    }
    Ok(search.explored)
}

/// The steps that were taken from a state, with what came of each.
type Moves = Vec<(usize, Result<Move, SimError>)>;

impl<'a> Search<'a> {
    fn new(scenario: &'a Scenario, run: &'a RunConfig, limits: Limits) -> Result<(Self, Vec<State>), SimError> {
        let board = Board::new(scenario, run)?;
        let search = Self {
            scenario,
            run,
            limits,
            seen: BTreeSet::from([board.key()?]),
            origins: Vec::new(),
            kinds: BTreeSet::new(),
            explored: Explored { levels: vec![1], ..Explored::default() },
        };
        Ok((search, vec![State { number: 0, position: board.position(), shows: BTreeSet::new() }]))
    }

    fn goes_on(&self, frontier: &[State]) -> bool {
        !frontier.is_empty() && !self.explored.full && (self.explored.levels.len() as u32) <= self.limits.depth
    }

    /// The next level.
    fn deeper(&mut self, frontier: &[State]) -> Result<Vec<State>, SimError> {
        let next = self.level(self.explored.levels.len() as u32, frontier)?;
        if !next.is_empty() {
            self.explored.levels.push(next.len());
        }
        Ok(next)
    }

    /// Takes every step from every state of a level; the states that were not seen before.
    fn level(&mut self, depth: u32, frontier: &[State]) -> Result<Vec<State>, SimError> {
        let mut next = Vec::new();
        for batch in frontier.chunks(BATCH) {
            let moves: Vec<Moves> = batch
                .par_iter()
                .map_init(
                    || Board::new(self.scenario, self.run),
                    |board, state| match board {
                        Ok(board) => {
                            let steps = board.steps_at(&state.position);
                            let take = |index| (index, board.take(&state.position, depth, index));
                            Ok(steps.into_iter().map(take).collect())
                        }
                        Err(error) => Err(error.clone()),
                    },
                )
                .collect::<Result<_, _>>()?;
            for (from, moves) in batch.iter().zip(moves) {
                for (index, moved) in moves {
                    next.extend(self.note(from, index, moved));
                }
            }
            if self.explored.full {
                break;
            }
        }
        Ok(next)
    }

    /// Takes note of one step; the state that it led to, if that is new.
    fn note(&mut self, from: &State, index: usize, moved: Result<Move, SimError>) -> Option<State> {
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                let path = self.path(from.number, index);
                self.explored.refused.entry(error.to_string()).or_insert(path);
                return None;
            }
        };
        self.explored.taken += 1;
        let shows: BTreeSet<Kind> = moved.findings.iter().map(Finding::kind).collect();
        let verb = verb(self.scenario, index);
        for (rank, finding) in (0..).zip(moved.findings) {
            let kind = finding.kind();
            if !from.shows.contains(&kind) && self.kinds.insert((kind, verb)) {
                let path = self.path(from.number, index);
                self.explored.found.push(Found { finding, path, rank });
            }
        }
        if self.seen.contains(&moved.key) {
            return None;
        }
        if self.seen.len() >= self.limits.states {
            self.explored.full = true;
            return None;
        }
        self.seen.insert(moved.key);
        self.origins.push(Origin { from: from.number, step: index as u16 });
        Some(State { number: self.origins.len() as u32, position: moved.to, shows })
    }

    /// The ordering that led to a state first, and one step more.
    fn path(&self, state: u32, index: usize) -> Vec<usize> {
        let mut path = self.path_to(state);
        path.push(index);
        path
    }

    fn path_to(&self, mut state: u32) -> Vec<usize> {
        let mut path = Vec::new();
        while let Some(origin) = (state as usize).checked_sub(1).and_then(|at| self.origins.get(at)) {
            path.push(usize::from(origin.step));
            state = origin.from;
        }
        path.reverse();
        path
    }
}

fn verb(scenario: &Scenario, index: usize) -> &str {
    scenario.steps.get(index).and_then(|step| step.text.split(' ').next()).unwrap_or_default()
}
