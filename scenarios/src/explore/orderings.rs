//! The orderings of a scenario's steps as a space to search: a state is a machine between two steps, and where not every step
//! can come again, the steps that were taken.

use super::refusal::Refusal;
use super::way::{Way, Ways};
use crate::engine::board::{Board, Position, Shown, Silicon};
use crate::file::{Actor, RunConfig, Scenario, Step};
use crate::verdict::Kind;
use mmu::audit::Finding;
use search::{Move, Space};
use sim_core::{SimError, hash};
use std::collections::BTreeSet;

/// What a machine takes of memory beside what it shares with the one before it: the frames that a step writes, its
/// shadow pages, registers and translations. Measured (`cargo bench -p scenarios --bench mmu machine_state`), rounded up.
const MACHINE_BYTES: u64 = 32 * 1024;

/// Which orderings there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Orders {
    /// Every step as often as it comes.
    #[default]
    Any,
    /// Every step at most once.
    Permuted,
    /// Every step at most once, and those of a vCPU, or of the host, in the order of the file.
    Interleaved,
}

/// Steps that a scenario may have where they are taken at most once: they are kept as bits.
pub const MOST_STEPS_ONCE: usize = 128;

/// The steps that were taken, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Done(u128);

impl Done {
    const fn has(self, step: usize) -> bool {
        self.0 >> step & 1 == 1
    }
}

/// The space of one run.
#[derive(Clone, Copy)]
pub struct Orderings<'a> {
    /// Its steps are the alphabet.
    pub scenario: &'a Scenario,
    /// The combination of its matrix.
    pub run: &'a RunConfig,
    /// How they may come.
    pub orders: Orders,
    /// Whether the silicon may choose.
    pub silicon: Silicon,
}

impl<'a> Orderings<'a> {
    /// The space of a run's orderings.
    ///
    /// # Errors
    /// If the scenario has more steps than can be told apart.
    pub fn new(scenario: &'a Scenario, run: &'a RunConfig, orders: Orders) -> Result<Self, SimError> {
        let most = if orders == Orders::Any { usize::from(u16::MAX) } else { MOST_STEPS_ONCE };
        if scenario.steps.len() > most {
            let count = scenario.steps.len();
            return Err(SimError::unmodelled(format!("a search of {count} steps, of which there may be {most}")));
        }
        Ok(Self { scenario, run, orders, silicon: Silicon::default() })
    }

    /// The same with silicon that may choose, or may not.
    #[must_use]
    pub const fn on(self, silicon: Silicon) -> Self {
        Self { silicon, ..self }
    }

    /// Whether a step is still to come, and none before it.
    fn is_next(&self, done: Done, index: usize) -> bool {
        let thread = |step: &Step| (step.actor == Actor::Host, step.vcpu);
        let steps = &self.scenario.steps;
        match self.orders {
            Orders::Any => true,
            Orders::Permuted => !done.has(index),
            Orders::Interleaved => {
                let mut before = (0..index).filter(|at| thread(&steps[*at]) == thread(&steps[index]));
                !done.has(index) && before.all(|at| done.has(at))
            }
        }
    }
}

/// A state that is still to be expanded.
pub struct State {
    position: Position,
    done: Done,
    /// What the step that led to it showed.
    shows: BTreeSet<Kind>,
}

/// A machine that takes steps, with what the last one showed.
pub struct Player<'a> {
    board: Board<'a>,
    /// The board as it was built.
    first: Position,
    ways: Ways,
    done: Done,
    shows: BTreeSet<Kind>,
}

/// What a step showed.
pub enum Note {
    /// A finding that the step before it did not show.
    Finding {
        /// The finding.
        finding: Finding,
        /// Which of the step's findings it is, from 0.
        rank: u32,
    },
    /// What a step shows by a choice of the silicon, and not by what the modelled caches hold.
    Shows(String),
    /// Why it can't be taken.
    Refused(Refusal),
}

impl Player<'_> {
    /// Takes note of what a step showed: the digest of where it led.
    fn settle(
        &mut self,
        orders: Orders,
        from: &State,
        step: u16,
        shown: Shown,
        notes: &mut Vec<Note>,
    ) -> Result<u64, SimError> {
        let mut digest = self.board.key()?;
        if orders != Orders::Any {
            self.done = Done(from.done.0 | 1 << step);
            digest = hash::digest(&(digest, self.done));
        }
        self.shows = shown.findings.iter().map(Finding::kind).collect();
        let ranked = shown.findings.into_iter().zip(0..);
        let new = ranked.filter(|(finding, _)| !from.shows.contains(&finding.kind()));
        notes.extend(new.map(|(finding, rank)| Note::Finding { finding, rank }));
        Ok(digest)
    }
}

impl<'a> Space for Orderings<'a> {
    type State = State;
    type Player = Player<'a>;
    type Note = Note;
    type Error = SimError;
    const BATCH: usize = 512;

    fn steps(&self) -> u16 {
        u16::try_from(self.scenario.steps.len()).unwrap_or(u16::MAX)
    }

    fn player(&self) -> Result<Player<'a>, SimError> {
        let board = Board::new(self.scenario, self.run, self.silicon)?;
        let first = board.position();
        Ok(Player { board, first, ways: Ways::default(), done: Done::default(), shows: BTreeSet::new() })
    }

    fn start(&self, player: &mut Player<'a>) -> Result<(u64, State), SimError> {
        player.board.go_to(&player.first);
        (player.done, player.shows) = (Done::default(), BTreeSet::new());
        Ok((player.board.key()?, self.keep(player)))
    }

    fn take(&self, player: &mut Player<'a>, from: &State, depth: u32, by: Move, notes: &mut Vec<Note>) -> Option<u64> {
        let index = usize::from(by.step);
        if !self.is_next(from.done, index) || !player.board.may_take(&from.position, index) {
            player.ways.end();
            return None;
        }
        let taken = player.ways.take(&mut player.board, self.silicon, (&from.position, depth), by);
        let settled = match taken {
            Ok(Way::Shows(shown, otherwise)) => {
                notes.extend(otherwise.map(Note::Shows));
                player.settle(self.orders, from, by.step, shown, notes)
            }
            Ok(Way::Refused(why)) => Err(why),
            Ok(Way::Nothing) => return None,
            Err(error) => Err(error),
        };
        settled.map_err(|error| notes.push(Note::Refused(error.into()))).ok()
    }

    fn has_more(&self, player: &Player<'a>) -> bool {
        player.ways.has_more()
    }

    fn keep(&self, player: &mut Player<'a>) -> State {
        State { position: player.board.position(), done: player.done, shows: std::mem::take(&mut player.shows) }
    }

    fn weight(&self) -> u64 {
        MACHINE_BYTES
    }
}
