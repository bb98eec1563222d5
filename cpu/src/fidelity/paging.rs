//! Paging: SDM 3A chapter 4 without 4.10, APM2 chapter 5 without 5.5, and the second stage (SDM 3C 28.2, APM2 15.25).

use sim_core::fidelity::Clause;

/// One row a clause, in the order of the manual.
pub const CLAUSES: &[Clause] = &[];
