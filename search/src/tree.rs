//! How each state was reached first.

/// A step in one of its ways. Most steps have one, number 0; where something is left open, each answer is a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "timely", derive(serde::Serialize, serde::Deserialize))]
pub struct Move {
    /// The step.
    pub step: u16,
    /// Its way.
    pub way: u16,
}

impl Move {
    /// A step in its first way.
    #[must_use]
    pub const fn of(step: u16) -> Self {
        Self { step, way: 0 }
    }
}

/// How a state was reached first: from which, and by which move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The state before, by number.
    pub from: u32,
    /// The move.
    pub by: Move,
}

/// States by number, in the order of discovery. The first has number 0 and no origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    origins: Vec<Origin>,
}

impl Tree {
    /// The tree of these origins, by state, the first state left out. None if one is not earlier than its state.
    #[must_use]
    pub fn new(mut origins: Vec<Origin>) -> Option<Self> {
        origins.reserve_exact(origins.len().next_power_of_two() - origins.len());
        let earlier = origins.iter().zip(1u32..).all(|(origin, number)| origin.from < number);
        earlier.then_some(Self { origins })
    }

    /// How many states there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.origins.len() + 1
    }

    /// Never: there is the first state.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The origins by state, the first state left out.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// How a state was reached; the first was not.
    #[must_use]
    pub fn origin(&self, state: u32) -> Option<Origin> {
        (state as usize).checked_sub(1).and_then(|at| self.origins.get(at)).copied()
    }

    pub(crate) fn push(&mut self, origin: Origin) {
        self.origins.push(origin);
    }

    /// The moves that led to a state first.
    #[must_use]
    pub fn path_to(&self, mut state: u32) -> Vec<Move> {
        let mut path = Vec::new();
        while let Some(origin) = self.origin(state) {
            path.push(origin.by);
            state = origin.from;
        }
        path.reverse();
        path
    }

    /// The moves that led to a state first, and one more.
    #[must_use]
    pub fn path(&self, last: Origin) -> Vec<Move> {
        let mut path = self.path_to(last.from);
        path.push(last.by);
        path
    }

    /// What it takes of memory, in bytes: it doubles when it is full. Counted by its length, so that a tree that was read
    /// from a file is as large as the one that was written.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (self.origins.len().next_power_of_two() * size_of::<Origin>()) as u64
    }
}
