//! Reports: the verdict table, JSON, and the transition log.

pub mod fidelity;
pub mod json;
pub mod log;
pub mod table;
