//! Traces of other people's kernels: text of `kvm` and `kvmmmu` trace events becomes an audit of the roles in it, and the
//! skeleton of a scenario.
//!
//! [`trace`] reads lines ([`line`](mod@line)) and events ([`event`]); [`audit`](mod@audit) judges them; [`skeleton`] writes what a
//! scenario can take over. Nothing here runs anything. What a trace does not tell is left open by name.

pub mod audit;
pub mod event;
pub mod line;
pub mod machine;
mod memory;
pub mod page;
pub mod reason;
pub mod skeleton;
mod steps;
pub mod trace;
pub mod word;
mod words;
