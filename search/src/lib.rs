//! Breadth-first search of any space of states, at any number of threads with the same result.
//!
//! A [`Space`] says what a state is, which steps there are and where they lead; states are told apart by a digest of 64
//! bits. What is kept of a state that was visited is its digest in an open-addressing table ([`visited`]) and how it was
//! reached first ([`tree`]); states themselves are kept only until they are expanded, and not at all where the search ends.
//!
//! A level is expanded in parallel, batch by batch, and what a batch gave is taken in the order of its states and of their
//! steps. So states have the same numbers, and paths are the same, whatever the threads do. Two states with the same
//! digest are taken for one: with n states, by accident about once in 2^65 / n^2 searches.

pub mod engine;
#[cfg(feature = "timely")]
pub mod hosts;
#[cfg(feature = "timely")]
mod link;
pub mod rebuild;
#[cfg(feature = "timely")]
pub mod sharded;
pub mod space;
pub mod tree;
pub mod visited;

pub use engine::{Ended, Flow, Limits, Progress, Room, Search};
pub use rebuild::{Mismatch, Parts};
pub use space::Space;
pub use tree::{Move, Origin, Tree};
pub use visited::Visited;
