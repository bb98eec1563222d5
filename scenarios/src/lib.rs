//! Scenarios: the language, the engine that replays them, and the `rolecall` command.
//!
//! A scenario file is a short script of guest and host steps with the machines it runs on and what must hold
//! ([`file`](mod@file)). The command line is [`cli`].

pub mod backend;
pub mod bisect;
pub mod cli;
#[cfg(feature = "kvm")]
pub mod crosscheck;
pub mod divergence;
pub mod engine;
pub mod explore;
pub mod file;
pub mod history;
pub mod image;
pub mod import;
pub mod minimize;
pub mod orders;
pub mod plants;
pub mod random;
pub mod replay;
pub mod report;
#[cfg(feature = "kvm")]
pub mod rig;
pub mod snippet;
pub mod verdict;
