//! A search from its parts: states that are still to be expanded are reached again by their steps.

use crate::engine::{Players, Search};
use crate::space::Space;
use crate::tree::{Origin, Tree};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use thiserror::Error;

/// What a search that stopped consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// States at each depth.
    pub levels: Vec<u64>,
    /// Steps taken.
    pub taken: u64,
    /// States that were expanded.
    pub expanded: u32,
    /// How each state was reached, the first left out.
    pub origins: Vec<Origin>,
    /// Digests of all states.
    pub visited: Vec<u64>,
}

/// Why a search can't go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Mismatch<E> {
    /// Its parts do not belong together.
    #[error("{0}")]
    Parts(&'static str),
    /// A path leads elsewhere than it did.
    #[error("the steps of a state lead elsewhere by now")]
    Elsewhere,
    /// There is no player.
    #[error("{0}")]
    Player(E),
}

impl<'s, S: Space> Search<'s, S> {
    /// What the search consists of.
    #[must_use]
    pub fn parts(&self) -> Parts {
        Parts {
            levels: self.levels.clone(),
            taken: self.taken,
            expanded: self.expanded,
            origins: self.tree.origins().to_vec(),
            visited: self.visited.sorted(),
        }
    }

    /// A search that goes on where another stopped. Its states are reached again only when they are needed.
    ///
    /// # Errors
    /// If the parts are not those of a search of this space.
    pub fn resume(space: &'s S, parts: Parts) -> Result<Self, Mismatch<S::Error>> {
        check(&parts, space.steps())?;
        let tree = Tree::new(parts.origins).ok_or(Mismatch::Parts("it names states that are not there"))?;
        let search = Self {
            space,
            visited: parts.visited.into_iter().collect(),
            tree,
            levels: parts.levels,
            taken: parts.taken,
            cut: 0,
            expanded: parts.expanded,
            frontier: VecDeque::new(),
            players: Players::default(),
        };
        if search.visited.len() != search.tree.len() {
            return Err(Mismatch::Parts("it has a digest twice"));
        }
        Ok(search)
    }

    /// The states from the first that was not expanded to the one before `end`, by way of the states that lead to them.
    pub(crate) fn rebuild(&self, end: u32) -> Result<VecDeque<S::State>, Mismatch<S::Error>> {
        let (digest, first) = self.play(|player| self.space.start(player))?.map_err(Mismatch::Player)?;
        if !self.visited.contains(digest) {
            return Err(Mismatch::Elsewhere);
        }
        let needed = self.needed(end);
        let mut at = BTreeMap::from([(0, first)]);
        let mut states = VecDeque::new();
        let (mut begin, mut depth) = (1, 1);
        for level in self.levels.iter().skip(1) {
            let next = begin + *level as u32;
            let wanted: Vec<u32> = needed.range(begin..next).copied().collect();
            let reached: Vec<_> =
                wanted.par_iter().map(|state| self.reach(&at, *state, depth)).collect::<Result<_, _>>()?;
            let before = std::mem::replace(&mut at, wanted.into_iter().zip(reached).collect());
            states.extend(before.into_iter().filter(|(state, _)| *state >= self.expanded).map(|(_, state)| state));
            (begin, depth) = (next, depth + 1);
        }
        states.extend(at.into_iter().filter(|(state, _)| *state >= self.expanded).map(|(_, state)| state));
        Ok(states)
    }

    /// The states that are to be expanded, and those on the way to them.
    fn needed(&self, end: u32) -> BTreeSet<u32> {
        let mut needed: BTreeSet<u32> = (self.expanded..end).collect();
        for state in (1..end).rev() {
            if needed.contains(&state) {
                needed.extend(self.tree.origin(state).map(|origin| origin.from));
            }
        }
        needed
    }

    fn reach(&self, before: &BTreeMap<u32, S::State>, state: u32, depth: u32) -> Result<S::State, Mismatch<S::Error>> {
        let origin = self.tree.origin(state).ok_or(Mismatch::Parts("it names states that are not there"))?;
        let from = before.get(&origin.from).ok_or(Mismatch::Parts("a state is at another depth than its path"))?;
        self.play(|player| {
            let digest = self.space.take_alone(player, from, depth, origin.by);
            match digest {
                Some(digest) if self.visited.contains(digest) => Ok(self.space.keep(player)),
                _ => Err(Mismatch::Elsewhere),
            }
        })?
    }

    fn play<T>(&self, play: impl FnOnce(&mut S::Player) -> T) -> Result<T, Mismatch<S::Error>> {
        self.players.with(self.space, play).map_err(Mismatch::Player)
    }
}

/// Whether the counts agree.
fn check<E>(parts: &Parts, steps: u16) -> Result<(), Mismatch<E>> {
    let states = parts.origins.len() as u64 + 1;
    if parts.origins.iter().any(|origin| origin.by.step >= steps) {
        return Err(Mismatch::Parts("it names steps that are not there"));
    }
    let levels = parts.levels.iter().try_fold(0u64, |sum, level| sum.checked_add(*level));
    if levels != Some(states) || parts.levels.first() != Some(&1) || parts.visited.len() as u64 != states {
        return Err(Mismatch::Parts("its counts of states disagree"));
    }
    if u64::from(parts.expanded) > states {
        return Err(Mismatch::Parts("it has expanded states that are not there"));
    }
    Ok(())
}
