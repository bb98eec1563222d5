//! The processor's view of memory: a linear address and an access give a physical address or a fault.

use crate::core::Core;
use crate::exec::Fault;
use crate::virt::Regime;
use sim_core::arch::access::Access;
use sim_core::{Ground, Gva, Hpa, SimError};

/// Translates one linear address for one access, through the TLB, charging time and setting A/D bits.
///
/// # Errors
/// The page fault or the second-stage fault of the access.
pub fn translate(
    _core: &mut Core,
    _regime: &Regime,
    _ground: &mut Ground,
    _gva: Gva,
    _access: Access,
) -> Result<Hpa, Fault> {
    Err(SimError::unmodelled("translation").into())
}
