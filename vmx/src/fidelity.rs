//! Which clauses of SDM 3C (VMX) are modelled, and how far.

use sim_core::fidelity::Clause;

/// One row a clause, in the order of the manual.
pub const CLAUSES: &[Clause] = &[];
