//! The processor beside paging: execution, exceptions and interrupts, debug, system management, MSRs and CPUID.

use sim_core::fidelity::Clause;

/// One row a clause, in the order of the manual.
pub const CLAUSES: &[Clause] = &[];
