//! The silicon: one logical processor that fetches, decodes and executes instructions from guest memory, with its
//! page walkers and translation caches. It knows no hypervisor; VMX and SVM plug in through [`virt::Virt`].

pub mod access;
pub mod apic;
pub mod boundary;
pub mod core;
pub(crate) mod decode;
pub mod exception;
pub mod exec;
pub(crate) mod fast;
pub mod fidelity;
pub mod paging;
pub mod profile;
pub mod reset;
pub mod smm;
pub mod smp;
pub mod step;
pub mod tlb;
pub mod virt;

pub use crate::core::{Activity, Blocking, Core, Gpr};
pub use exec::Fault;
pub use step::{Outcome, Pace, StopOn, run, run_at, step};
pub use virt::{Regime, SecondStage, Tag, Virt};
