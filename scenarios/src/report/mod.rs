//! Reports: the verdict table, JSON, the transition log, the trace in KVM's words, and the audit of an imported one.

pub mod bisect;
pub mod divergence;
pub mod fidelity;
pub mod import;
pub mod json;
pub mod log;
pub mod over_flush;
pub mod side_by_side;
pub mod table;
pub mod trace;
