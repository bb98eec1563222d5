//! Why a search could not take a step, and what that says of the search.

use serde::{Deserialize, Serialize};
use sim_core::SimError;
use std::fmt;

/// Why a step could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refusal {
    /// In words.
    pub why: String,
    /// What it is.
    pub cause: Cause,
}

/// What keeps a step from being taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// Something is not modelled: the search is smaller than it could be.
    NotModelled,
    /// The step does not come to an end: a finding.
    Runaway,
    /// An error of the simulator: the search proves nothing.
    Internal,
}

impl From<SimError> for Refusal {
    fn from(error: SimError) -> Self {
        let cause = match error {
            SimError::Unmodelled { .. } => Cause::NotModelled,
            SimError::Runaway { .. } => Cause::Runaway,
            SimError::Internal(_) => Cause::Internal,
        };
        Self { why: error.to_string(), cause }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
