//! The search itself.

use crate::rebuild::Mismatch;
use crate::space::Space;
use crate::tree::{Move, Origin, Tree};
use crate::visited::{PARTS, Visited, part_of};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Parts of a batch that threads take one after the other.
const CHUNKS: usize = 64;

/// How far a search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps of a path.
    pub depth: u32,
    /// States.
    pub states: usize,
    /// Bytes: what is kept of states that were visited, and the states that are still to be expanded, each at the
    /// [weight](Space::weight) that the space gives it. A batch begins only below the limit, and may go beyond it.
    pub memory: u64,
}

impl Limits {
    /// To a depth, whatever it takes.
    #[must_use]
    pub const fn to(depth: u32) -> Self {
        Self { depth, states: u32::MAX as usize, memory: u64::MAX }
    }
}

/// What there was no more room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// More states than the limit.
    States,
    /// More memory than the limit.
    Memory,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every path as long as the depth was looked at, or there are no further states.
    Complete,
    /// It came to a limit: a level was not looked at whole.
    Full(Room),
    /// Whoever watched it stopped it.
    Stopped,
}

/// Whether a search goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    GoOn,
    /// It stops here, and can be resumed.
    Stop,
}

/// How far a search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The depth of the states that are found now.
    pub depth: u32,
    /// States so far.
    pub states: usize,
    /// States that were expanded.
    pub expanded: usize,
    /// States of the level before, which is being expanded: where it begins and ends, by number.
    pub level: (usize, usize),
    /// Steps taken.
    pub taken: u64,
    /// Bytes, as [`Limits::memory`] counts them.
    pub bytes: u64,
}

/// A search under way. It can stop after any batch, and what it found then depends only on how many there were. One that
/// ended for want of room for states goes on, with more room, by expanding the last batch again.
pub struct Search<'s, S: Space> {
    pub(crate) space: &'s S,
    pub(crate) visited: Visited,
    pub(crate) tree: Tree,
    /// States at each depth.
    pub(crate) levels: Vec<u64>,
    pub(crate) taken: u64,
    /// Steps of a batch that had no room for what it found, which are to be taken again.
    pub(crate) cut: u64,
    /// How many states were expanded: those with the lowest numbers.
    pub(crate) expanded: u32,
    /// The states that follow those, as far as they are kept.
    pub(crate) frontier: VecDeque<S::State>,
    pub(crate) players: Players<S::Player>,
}

/// A state that had not been visited before the batch.
struct Fresh<S> {
    digest: u64,
    origin: Origin,
    state: Option<S>,
}

/// What some states of a batch gave.
struct Expanded<S: Space> {
    taken: u64,
    notes: Vec<(Origin, S::Note)>,
    fresh: Vec<Fresh<S::State>>,
}

/// Whether states of the next level are kept to be expanded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    States,
    Digests,
}

impl<'s, S: Space> Search<'s, S> {
    /// A search that has seen the first state.
    ///
    /// # Errors
    /// If there is none.
    pub fn new(space: &'s S) -> Result<Self, S::Error> {
        let players = Players::default();
        let (digest, first) = players.with(space, |player| space.start(player))??;
        Ok(Self {
            space,
            visited: Visited::from_iter([digest]),
            tree: Tree::default(),
            levels: vec![1],
            taken: 0,
            cut: 0,
            expanded: 0,
            frontier: VecDeque::from([first]),
            players,
        })
    }

    /// New states at each depth, the first state alone at depth 0.
    #[must_use]
    pub fn levels(&self) -> &[u64] {
        &self.levels
    }

    /// How states were reached.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What was visited.
    #[must_use]
    pub const fn visited(&self) -> &Visited {
        &self.visited
    }

    /// Steps taken.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken + self.cut
    }

    /// States that were expanded: those with the lowest numbers.
    #[must_use]
    pub const fn expanded(&self) -> u32 {
        self.expanded
    }

    /// Bytes of what is kept of visited states.
    #[must_use]
    pub fn visited_bytes(&self) -> u64 {
        self.visited.bytes() + self.tree.bytes()
    }

    /// Where the level that is to be expanded now begins and ends, by number, and its depth.
    fn level(&self) -> (usize, usize, u32) {
        let mut begin = 0;
        for (states, depth) in self.levels.iter().zip(0..) {
            let end = begin + *states as usize;
            if (self.expanded as usize) < end {
                return (begin, end, depth);
            }
            begin = end;
        }
        (begin, begin, self.levels.len() as u32)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (begin, end, depth) = self.level();
        Progress {
            depth: depth + 1,
            states: self.tree.len(),
            expanded: self.expanded as usize,
            level: (begin, end),
            taken: self.taken(),
            bytes: self.bytes(self.frontier.len()),
        }
    }

    /// Where the level ends that is to be expanded next, and its depth. None if a search to a depth is complete.
    fn next(&self, limit: u32) -> Option<(usize, u32)> {
        let (_, end, depth) = self.level();
        (end > self.expanded as usize && depth < limit).then_some((end, depth))
    }

    /// Bytes of what is kept, with so many states that are still to be expanded.
    fn bytes(&self, states: usize) -> u64 {
        self.visited_bytes() + states as u64 * self.space.weight()
    }

    /// Has the states that are to be expanded, up to a number.
    fn have_frontier(&mut self, wanted: usize) -> Result<(), Mismatch<S::Error>> {
        if self.expanded as usize + self.frontier.len() < wanted {
            self.frontier = self.rebuild(wanted as u32)?;
        }
        Ok(())
    }

    /// Goes on to a limit. `note` is told what each step showed, in the order of states and steps; `watch` is asked after
    /// each batch.
    ///
    /// # Errors
    /// If there is no player, or states can't be reached again.
    pub fn run(
        &mut self,
        limits: Limits,
        note: &mut dyn FnMut(&Tree, Origin, S::Note),
        watch: &mut dyn FnMut(&Self) -> Flow,
    ) -> Result<Ended, Mismatch<S::Error>> {
        loop {
            let Some((end, depth)) = self.next(limits.depth) else { return Ok(Ended::Complete) };
            let keep = if depth + 1 < limits.depth { Keep::States } else { Keep::Digests };
            let wanted = if keep == Keep::States { self.tree.len() } else { end };
            // States that are still to be reached again count as well: a search in pieces ends where one in one piece does.
            if self.bytes(wanted - self.expanded as usize) > limits.memory {
                return Ok(Ended::Full(Room::Memory));
            }
            self.have_frontier(wanted)?;
            let full = self.batch(end, depth, keep, limits.states, note).map_err(Mismatch::Player)?;
            if full {
                self.frontier.clear();
                return Ok(Ended::Full(Room::States));
            }
            if watch(self) == Flow::Stop && self.next(limits.depth).is_some() {
                return Ok(Ended::Stopped);
            }
        }
    }

    /// Expands some states of a level, whose end is given. Whether there were more new states than there may be.
    fn batch(
        &mut self,
        end: usize,
        depth: u32,
        keep: Keep,
        most: usize,
        note: &mut dyn FnMut(&Tree, Origin, S::Note),
    ) -> Result<bool, S::Error> {
        let count = (end - self.expanded as usize).min(S::BATCH).min(self.frontier.len());
        let mut numbered = (self.expanded..).zip(self.frontier.drain(..count));
        let size = count.div_ceil(CHUNKS).max(1);
        let chunks: Vec<Vec<(u32, S::State)>> =
            (0..count.div_ceil(size)).map(|_| numbered.by_ref().take(size).collect()).collect();
        drop(numbered);
        let expanded = chunks
            .into_par_iter()
            .map(|chunk| self.players.with(self.space, |player| self.expand(player, depth + 1, keep, chunk)))
            .collect::<Result<Vec<_>, _>>()?;
        if self.levels.len() as u32 == depth + 1 {
            self.levels.push(0);
        }
        let taken = expanded.iter().map(|chunk| chunk.taken).sum::<u64>();
        let full = self.settle(expanded, most, note);
        if full {
            self.cut = taken;
        } else {
            self.cut = 0;
            self.taken += taken;
            self.expanded += count as u32;
        }
        if self.levels.last() == Some(&0) {
            self.levels.pop();
        }
        Ok(full)
    }

    /// Every step from some states.
    fn expand(&self, player: &mut S::Player, depth: u32, keep: Keep, states: Vec<(u32, S::State)>) -> Expanded<S> {
        let mut expanded = Expanded { taken: 0, notes: Vec::new(), fresh: Vec::new() };
        let mut notes = Vec::new();
        for (from, state) in states {
            let mut next = Some(Move::of(0)).filter(|_| self.space.steps() > 0);
            while let Some(by) = next {
                let digest = self.space.take(player, &state, depth, by, &mut notes);
                let origin = Origin { from, by };
                expanded.notes.extend(notes.drain(..).map(|note| (origin, note)));
                next = self.space.after(player, by);
                let Some(digest) = digest else { continue };
                expanded.taken += 1;
                if !self.visited.contains(digest) {
                    let state = (keep == Keep::States).then(|| self.space.keep(player));
                    expanded.fresh.push(Fresh { digest, origin, state });
                }
            }
        }
        expanded
    }

    /// Takes what a batch gave, in order.
    fn settle(
        &mut self,
        expanded: Vec<Expanded<S>>,
        most: usize,
        note: &mut dyn FnMut(&Tree, Origin, S::Note),
    ) -> bool {
        // A state has a number of 32 bits.
        let room = most.min(u32::MAX as usize).saturating_sub(self.tree.len());
        let fresh: usize = expanded.iter().map(|chunk| chunk.fresh.len()).sum();
        let new = if fresh <= room { self.insert(&expanded) } else { self.insert_some(&expanded, room) };
        let mut left_out = false;
        for (chunk, new) in expanded.into_iter().zip(new) {
            for (origin, shown) in chunk.notes {
                note(&self.tree, origin, shown);
            }
            for (Fresh { origin, state, .. }, new) in chunk.fresh.into_iter().zip(new) {
                match new {
                    New::Yes => {
                        self.tree.push(origin);
                        self.frontier.extend(state);
                        if let Some(last) = self.levels.last_mut() {
                            *last += 1;
                        }
                    }
                    New::No => {}
                    New::NoRoom => left_out = true,
                }
            }
        }
        left_out
    }

    /// Which states of a batch are new, in its order. Each part of the table is filled by one thread.
    fn insert(&mut self, expanded: &[Expanded<S>]) -> Vec<Vec<New>> {
        let mut wanted: Vec<Vec<(usize, usize, u64)>> = vec![Vec::new(); PARTS];
        for (chunk, expanded) in expanded.iter().enumerate() {
            for (at, fresh) in expanded.fresh.iter().enumerate() {
                wanted[part_of(fresh.digest)].push((chunk, at, fresh.digest));
            }
        }
        let parts = self.visited.parts_mut().par_iter_mut().zip(wanted);
        let new: Vec<Vec<(usize, usize)>> = parts
            .map(|(part, wanted)| {
                let new = wanted.into_iter().filter(|(_, _, digest)| part.insert(*digest));
                new.map(|(chunk, at, _)| (chunk, at)).collect()
            })
            .collect();
        let mut all: Vec<Vec<New>> = expanded.iter().map(|chunk| vec![New::No; chunk.fresh.len()]).collect();
        for (chunk, at) in new.into_iter().flatten() {
            all[chunk][at] = New::Yes;
        }
        all
    }

    /// The same, one after the other, where not all of them have room.
    fn insert_some(&mut self, expanded: &[Expanded<S>], mut room: usize) -> Vec<Vec<New>> {
        let mut one = |fresh: &Fresh<S::State>| {
            if self.visited.contains(fresh.digest) {
                New::No
            } else if room == 0 {
                New::NoRoom
            } else {
                room -= 1;
                self.visited.insert(fresh.digest);
                New::Yes
            }
        };
        expanded.iter().map(|chunk| chunk.fresh.iter().map(&mut one).collect()).collect()
    }
}

/// What became of a state that had not been visited before its batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum New {
    Yes,
    /// An earlier one of the batch is the same.
    No,
    NoRoom,
}

/// Players that are not in use.
pub(crate) struct Players<P> {
    idle: Mutex<Vec<P>>,
}

impl<P> Default for Players<P> {
    fn default() -> Self {
        Self { idle: Mutex::new(Vec::new()) }
    }
}

impl<P: Send> Players<P> {
    /// Lends a player, and makes one if all are in use.
    pub(crate) fn with<S: Space<Player = P>, T>(
        &self,
        space: &S,
        play: impl FnOnce(&mut P) -> T,
    ) -> Result<T, S::Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut player = match idle {
            Some(player) => player,
            None => space.player()?,
        };
        let played = play(&mut player);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(player);
        Ok(played)
    }
}
