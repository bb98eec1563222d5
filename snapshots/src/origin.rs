//! How a checkpoint's state came to be, so that a build that can't decode the state replays it.
//!
//! A run is a pure function of its scenario, its settings and its choices. A state section ages with every change of
//! the simulator's structs; the origin does not.

use crate::container::Checkpoint;
use crate::error::SnapshotError;
use crate::section::{Kind, Section};
use serde::{Deserialize, Serialize};
use sim_core::choice::Choices;
use sim_core::hash::digest;
use std::collections::BTreeMap;
use std::hash::Hash;

/// The recipe of a state: section `ORIG`, in every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The version of rolecall that took the checkpoint.
    pub writer: String,
    /// The scenario's name or path, for people.
    pub name: String,
    /// The scenario's whole text.
    pub scenario: String,
    /// What was set beside the scenario (the kernel version, changes added or left out, the backend), by name.
    pub settings: BTreeMap<String, String>,
    /// The alternative taken at each open point, in order.
    pub choices: Vec<u32>,
    /// Steps done when the checkpoint was taken.
    pub steps: u64,
    /// [`digest`] of the state section's value.
    pub state_digest: u64,
}

impl Section for Origin {
    const KIND: Kind = Kind::new(*b"ORIG");
    const VERSION: u32 = 1;
}

impl Origin {
    /// Notes the alternatives that a run took.
    #[must_use]
    pub fn with_choices(mut self, choices: &Choices) -> Self {
        self.choices = choices.taken().iter().map(|choice| choice.taken).collect();
        self
    }

    /// The oracle that takes the same alternatives again.
    #[must_use]
    pub fn script(&self) -> Choices {
        Choices::scripted(self.choices.clone())
    }
}

/// What a checkpoint gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored<S> {
    /// The state itself, digest checked.
    State {
        /// The state.
        state: S,
        /// Where it came from.
        origin: Origin,
    },
    /// Only the recipe: this build can't read the state and has to replay `origin.steps` steps.
    Replay {
        /// What to replay.
        origin: Origin,
        /// Why the state can't be read.
        why: SnapshotError,
    },
}

impl Checkpoint {
    /// A checkpoint of `state`, with its digest noted in the origin.
    ///
    /// # Errors
    ///
    /// If one of the two cannot be encoded.
    pub fn of<S: Section + Hash>(state: &S, origin: Origin) -> Result<Self, SnapshotError> {
        let mut checkpoint = Self::new();
        checkpoint.put(&Origin { state_digest: digest(state), ..origin })?;
        checkpoint.put(state)?;
        Ok(checkpoint)
    }

    /// The state if this build can read it, the recipe if not.
    ///
    /// # Errors
    ///
    /// If the origin can't be read either.
    pub fn restore<S: Section + Hash>(&self) -> Result<Restored<S>, SnapshotError> {
        let origin: Origin = self.get()?;
        let (kind, stored) = (S::KIND, origin.state_digest);
        let why = match self.get::<S>() {
            Ok(state) => match digest(&state) {
                computed if computed == stored => return Ok(Restored::State { state, origin }),
                computed => SnapshotError::StateDigest { kind, stored, computed },
            },
            Err(why) => why,
        };
        Ok(Restored::Replay { origin, why })
    }
}
