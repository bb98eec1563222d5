//! The silicon of AMD SVM (APM2 chapter 15): VMRUN and #VMEXIT, the VMCB in memory, intercepts, ASIDs. It plugs into
//! the processor through [`cpu::Virt`]; the nested page walk itself is the CPU's.
//!
//! Software that runs on the simulated processor reaches SVM by its instructions. Software outside it (an L0
//! hypervisor written in Rust) calls the same operations as methods of [`Svm`].
//!
//! Mirrors crate vmx file by file and never imports it.

pub mod asid;
pub mod capability;
pub mod checks;
mod decode_assist;
pub mod entry;
pub mod exit;
pub mod fidelity;
pub mod inject;
mod instructions;
pub mod intercept;
pub mod interrupts;
mod msr;
mod smm;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unit;
mod virt;
pub mod vmcb;

pub use capability::{Capabilities, Features};
pub use entry::Entered;
pub use exit::ExitCode;
pub use inject::EventInjection;
pub use intercept::Intercepts;
pub use unit::{Gif, Svm};
