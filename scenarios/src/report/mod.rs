//! Reports: the verdict table, JSON, and the transition log.

pub mod fidelity;
pub mod json;
pub mod log;
pub mod side_by_side;
pub mod table;
