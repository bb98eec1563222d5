//! Every ordering of a scenario's steps to a depth: a breadth-first search whose alphabet is the file's steps, each as often
//! as it comes. States are recognised by their [canonical digest](hypervisor::canonical), so that orderings that lead to the
//! same state are followed once.
//!
//! The result depends on nothing but the scenario and the limits: a level is expanded in parallel, and what it gave is
//! taken in the order of its states and of the file's steps. Each kind of finding is told once for each verb that brings it
//! up, with the first ordering that does, which is one of the shortest; what only lasts from the step before is not told
//! again. Left out: choices of the silicon, interleavings inside a page fault, and
//! comparing with bare silicon.

use crate::engine::board::{Board, Move, Position};
use crate::file::{RunConfig, Scenario};
use crate::verdict::Kind;
use mmu::audit::Finding;
use rayon::prelude::*;
use sim_core::SimError;
use std::collections::{BTreeMap, BTreeSet};

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
    let board = Board::new(scenario, run)?;
    let mut search = Search {
        scenario,
        run,
        limits,
        seen: BTreeSet::from([board.key()?]),
        origins: Vec::new(),
        kinds: BTreeSet::new(),
        explored: Explored { levels: vec![1], ..Explored::default() },
    };
    let mut frontier = vec![State { number: 0, position: board.position(), shows: BTreeSet::new() }];
    for depth in 1..=limits.depth {
        frontier = search.level(depth, &frontier)?;
        if frontier.is_empty() {
            break;
        }
        search.explored.levels.push(frontier.len());
    }
    Ok(search.explored)
}

/// The steps that were taken from a state, with what came of each.
type Moves = Vec<(usize, Result<Move, SimError>)>;

impl Search<'_> {
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
        let verb = self.scenario.steps[index].text.split(' ').next().unwrap_or_default();
        for finding in moved.findings {
            let kind = finding.kind();
            if !from.shows.contains(&kind) && self.kinds.insert((kind, verb)) {
                let path = self.path(from.number, index);
                self.explored.found.push(Found { finding, path });
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
    fn path(&self, mut state: u32, index: usize) -> Vec<usize> {
        let mut path = vec![index];
        while let Some(origin) = (state as usize).checked_sub(1).and_then(|at| self.origins.get(at)) {
            path.push(usize::from(origin.step));
            state = origin.from;
        }
        path.reverse();
        path
    }
}
