//! The hypervisor's MMU, as KVM's x86 MMU behaves: roles, the root cache, shadow pages, direct roots, faults, sync,
//! zapping, and the auditors that look at all of it from outside.
//!
//! This is software. It reaches the silicon only through memory (the tables it writes are the tables the page walker
//! reads) and returns what a vendor must do ([`request::Effects`], request bits) for the vCPU loop to perform. Which
//! kernel it behaves like is data: see [`change`]. Functions of the kernel are named as in v5.17, unless another version is.

pub mod age;
pub mod audit;
pub mod change;
pub mod compute;
pub mod cpuid;
pub mod dirty;
pub mod entry_rules;
mod fast;
pub mod fault;
pub mod fetch;
pub mod frames;
pub mod guest_walk;
pub mod huge;
pub mod init;
pub mod invlpg;
pub mod leaf;
pub mod limits;
pub mod load;
pub mod memslot;
pub mod mmio;
pub mod page;
pub mod permission;
pub mod plant;
mod prefetch;
pub mod request;
pub mod role;
pub mod root;
pub mod split;
pub mod spte;
pub mod state;
pub mod stats;
pub mod sync;
pub mod tdp;
pub mod unsync;
mod write_track;
pub mod zap;

pub use change::{Change, ChangeSet};
pub use role::{CpuRole, ExtRole, PageRole};
pub use state::{Ctx, Mmu, VcpuMmu, View, Vm};
