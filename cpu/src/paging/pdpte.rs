//! The PDPTE registers of PAE paging (SDM 3A 4.4.1).

use crate::exec::Fault;
use crate::virt::Regime;
use sim_core::{Ground, SimError};

/// Reads and checks the four PDPTEs that `cr3` points to, without changing any register.
///
/// # Errors
/// #GP(0) if a present entry has a reserved bit set, or the second-stage fault of reading them.
pub fn load(_maxphyaddr: u32, _regime: &Regime, _ground: &mut Ground, _cr3: u64) -> Result<[u64; 4], Fault> {
    Err(SimError::unmodelled("PDPTE load").into())
}
