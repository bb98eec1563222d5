//! Checks on the guest-state area (SDM 3C 26.3.1), one file a group of sections.
//!
//! PDPTEs that come from memory (no EPT) are checked where they are loaded, in [`crate::entry`].

pub mod registers;
pub mod segments;
pub mod state;
pub mod system;

/// The exit qualification of a PDPTE that can't be loaded (SDM 3C 26.8).
pub const QUALIFICATION_PDPTE: u64 = 2;
/// The exit qualification of a bad VMCS link pointer (SDM 3C 26.8).
pub const QUALIFICATION_LINK: u64 = 4;
