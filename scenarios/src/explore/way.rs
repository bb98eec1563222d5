//! The ways of a step: by what the modelled caches hold, then by each choice of the silicon, depth first from the one
//! that always takes what a walk finds. A way has a number in a search, and its answers outside.

use super::orderings::Orderings;
use crate::engine::board::{Board, Left, Position, Shown, Silicon};
use mmu::audit::Finding;
use search::Move;
use sim_core::SimError;
use std::collections::BTreeMap;

/// Ways of one step beyond which it is told, and not followed.
const MOST: u16 = 1000;

/// What the silicon chooses in an ordering: answers by place from 1.
pub type Choices = BTreeMap<u32, Vec<u32>>;

/// An ordering as `replay --steps` takes it: steps by number from 1, and behind each the answers of the silicon.
#[must_use]
pub fn token(path: &[usize], choices: &Choices) -> String {
    let steps = (1..).zip(path).map(|(place, index)| match choices.get(&place) {
        None => (index + 1).to_string(),
        Some(answers) if answers.is_empty() => format!("{}/0", index + 1),
        Some(answers) => {
            let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
            format!("{}/{}", index + 1, answers.join(","))
        }
    });
    steps.collect::<Vec<_>>().join(".")
}

/// Where a player is among the ways of a step.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// The answers of the next way.
    next: Option<Vec<u32>>,
    /// What the first way showed.
    first: Option<String>,
}

/// What one way of a step gave.
pub enum Way {
    /// It showed something, and something else than the first way if it says so.
    Shows(Shown, Option<String>),
    /// It can't be taken.
    Refused(SimError),
    /// It is none: there was nothing to choose.
    Nothing,
}

impl Ways {
    /// No ways are left.
    pub fn end(&mut self) {
        *self = Self::default();
    }

    /// Whether there is another way.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.next.is_some()
    }

    /// The answers of the next way.
    #[must_use]
    pub fn answers(&self) -> Option<Vec<u32>> {
        self.next.clone()
    }

    /// Takes a step in its next way; way 0 begins anew.
    ///
    /// # Errors
    /// If the machine has no such processor.
    pub fn take(
        &mut self,
        board: &mut Board<'_>,
        silicon: Silicon,
        (from, number): (&Position, u32),
        by: Move,
    ) -> Result<Way, SimError> {
        let index = usize::from(by.step);
        if by.way == 0 {
            self.end();
            let shown = board.take(from, number, index);
            if silicon == Silicon::Free {
                self.first = shown.as_ref().ok().map(|shown| shown.observed.to_string());
                self.next = Some(Vec::new());
            }
            return Ok(shown.map_or_else(Way::Refused, |shown| Way::Shows(shown, None)));
        }
        let Some(answers) = self.next.take() else { return Ok(Way::Nothing) };
        let (shown, left) = board.take_freely(from, number, index, answers)?;
        match left {
            Left::NoChoice => return Ok(Way::Nothing),
            Left::Next(Some(_)) if by.way == MOST => {
                let what = format!("a step in more than {MOST} ways, of which no more were followed");
                return Ok(Way::Refused(SimError::unmodelled(what)));
            }
            Left::Next(next) => self.next = next,
        }
        Ok(match shown {
            Ok(shown) => {
                let observed =
                    Some(shown.observed.to_string()).filter(|observed| Some(observed) != self.first.as_ref());
                Way::Shows(shown, observed)
            }
            Err(error) => Way::Refused(error),
        })
    }
}

/// An ordering that was taken again from the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Again {
    /// What the last step's audits found.
    pub(super) findings: Vec<Finding>,
    /// What the silicon chose.
    pub(super) choices: Choices,
}

/// Takes an ordering again.
///
/// # Errors
/// If it can't be taken.
pub(super) fn taken_again(space: &Orderings<'_>, path: &[Move]) -> Result<Again, SimError> {
    let mut again = Again::default();
    let mut board = Board::new(space.scenario, space.run, space.silicon)?;
    for (number, by) in (1..).zip(path) {
        let from = board.position();
        let mut ways = Ways::default();
        for way in 0..=by.way {
            if let (true, Some(answers)) = (way > 0, ways.answers()) {
                again.choices.insert(number, answers);
            }
            let taken = ways.take(&mut board, space.silicon, (&from, number), Move { way, ..*by })?;
            again.findings = match taken {
                Way::Shows(shown, _) => shown.findings,
                Way::Refused(_) | Way::Nothing => Vec::new(),
            };
        }
    }
    Ok(again)
}
