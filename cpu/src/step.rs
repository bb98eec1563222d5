//! One instruction, from fetch to retirement.

use crate::core::Core;
use crate::virt::{Movement, Virt};
use sim_core::{Ground, SimError};

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An instruction retired.
    Retired,
    /// An exception was delivered through the IDT.
    Delivered,
    /// Control moved into or out of a guest.
    Moved(Movement),
    /// An OUT that nothing intercepted reached the bus and retired.
    Out {
        /// The port.
        port: u16,
        /// Operand bytes.
        bytes: u8,
        /// The value written.
        value: u32,
    },
    /// The processor sits in HLT.
    Halted,
    /// A triple fault that nothing intercepted.
    Shutdown,
}

/// Runs one instruction.
///
/// # Errors
/// If the instruction, or a mode that it needs, is not modelled.
pub fn step<V: Virt>(_core: &mut Core, _virt: &mut V, _ground: &mut Ground) -> Result<Outcome, SimError> {
    Err(SimError::unmodelled("instruction execution"))
}
