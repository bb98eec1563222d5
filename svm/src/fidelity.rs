//! Which clauses of APM2 chapter 15 (SVM) are modelled, and how far.

use sim_core::fidelity::Clause;

/// One row a clause, in the order of the manual.
pub const CLAUSES: &[Clause] = &[];
