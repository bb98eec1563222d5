//! The one error of a simulation: something the model does not cover, or a fault of the simulator itself.
//!
//! What a guest does wrong is never an error here: it is an exception, a VM-exit or a VMfail, as on hardware.

use thiserror::Error;

/// Why a simulation can't go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SimError {
    /// The guest or the hypervisor used something that is not modelled. `what` names it in the field's own words.
    #[error("not modelled: {what}")]
    Unmodelled {
        /// The instruction, control, field or mode.
        what: String,
    },
    /// The run did not reach its next gate within the instruction budget.
    #[error("no gate reached within {budget} instructions (last rip {rip:#x})")]
    Runaway {
        /// Instructions allowed for one step.
        budget: u64,
        /// Where the guest was when the budget ended.
        rip: u64,
    },
    /// The simulator broke one of its own rules.
    #[error("internal error: {0}")]
    Internal(String),
}

impl SimError {
    /// Names something that is not modelled.
    pub fn unmodelled(what: impl Into<String>) -> Self {
        Self::Unmodelled { what: what.into() }
    }

    /// Names a broken rule of the simulator.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::Internal(what.into())
    }
}
