//! Cached translations: SDM 3A 4.10, SDM 3C 28.3, APM2 5.5 and 15.16.

use sim_core::fidelity::Clause;

/// One row a clause, in the order of the manual.
pub const CLAUSES: &[Clause] = &[];
