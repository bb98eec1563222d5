//! The orderings of a scenario's steps as a space to search: a state is a machine between two steps.

use crate::engine::board::{Board, Position};
use crate::file::{RunConfig, Scenario};
use crate::verdict::Kind;
use mmu::audit::Finding;
use search::Space;
use sim_core::SimError;
use std::collections::BTreeSet;

/// What a machine takes of memory beside what it shares with the one before it: the frames that a step writes, its
/// shadow pages, registers and translations. Measured (`cargo bench -p scenarios --bench mmu machine_state`), rounded up.
const MACHINE_BYTES: u64 = 32 * 1024;

/// The space of one run.
#[derive(Clone, Copy)]
pub struct Orderings<'a> {
    /// Its steps are the alphabet.
    pub scenario: &'a Scenario,
    /// The combination of its matrix.
    pub run: &'a RunConfig,
}

/// A state that is still to be expanded.
pub struct State {
    position: Position,
    /// What the step that led to it showed.
    shows: BTreeSet<Kind>,
}

/// A machine that takes steps, with what the last one showed.
pub struct Player<'a> {
    board: Board<'a>,
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
    /// Why it can't be taken.
    Refused(String),
}

impl Player<'_> {
    fn step(&mut self, from: &State, depth: u32, step: u16, notes: &mut Vec<Note>) -> Result<u64, SimError> {
        let shown = self.board.take(&from.position, depth, usize::from(step))?;
        let digest = self.board.key()?;
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
        Ok(Player { board: Board::new(self.scenario, self.run)?, shows: BTreeSet::new() })
    }

    fn start(&self, player: &mut Player<'a>) -> Result<(u64, State), SimError> {
        player.board = Board::new(self.scenario, self.run)?;
        player.shows.clear();
        Ok((player.board.key()?, self.keep(player)))
    }

    fn take(&self, player: &mut Player<'a>, from: &State, depth: u32, step: u16, notes: &mut Vec<Note>) -> Option<u64> {
        if !player.board.may_take(&from.position, usize::from(step)) {
            return None;
        }
        match player.step(from, depth, step, notes) {
            Ok(digest) => Some(digest),
            Err(error) => {
                notes.push(Note::Refused(error.to_string()));
                None
            }
        }
    }

    fn keep(&self, player: &mut Player<'a>) -> State {
        State { position: player.board.position(), shows: std::mem::take(&mut player.shows) }
    }

    fn weight(&self) -> u64 {
        MACHINE_BYTES
    }
}
