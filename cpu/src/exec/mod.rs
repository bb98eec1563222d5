//! Instruction semantics.

use crate::virt::StageFault;
use sim_core::SimError;
use sim_core::arch::exception::Exception;

/// Why an instruction did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An exception is to be delivered.
    Exception(Exception),
    /// A second-stage translation failed: a VM-exit is due.
    Stage(StageFault),
    /// A VM-exit has already happened; the core holds host state.
    Exited,
    /// Something is not modelled.
    Sim(SimError),
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl From<StageFault> for Fault {
    fn from(fault: StageFault) -> Self {
        Self::Stage(fault)
    }
}

impl From<SimError> for Fault {
    fn from(error: SimError) -> Self {
        Self::Sim(error)
    }
}
