//! Intel VMX as silicon: the VMCS, VM-entry with its checks, VM-exit, intercepts, and the VMX instructions (SDM 3C
//! chapters 23 to 30). One [`Vmx`] unit belongs to one logical processor.
//!
//! A guest hypervisor that runs on bare silicon reaches the unit through real instructions ([`cpu::virt::Virt`]); L0
//! software reaches the same instructions as methods of [`Vmx`].
//!
//! Left out, and named when a guest is entered with it: APIC virtualization beyond the TPR shadow, posted interrupts,
//! sub-page permissions, SGX and processor trace. [`fidelity`] says clause by clause what is modelled.

pub mod capability;
pub mod checks;
pub mod controls;
pub mod entry;
pub mod error;
pub mod exit;
pub mod fidelity;
mod guest;
mod instructions;
mod intercept;
pub mod invalidate;
pub mod msr;
mod smm;
mod timer;
mod unit;
mod ve;
mod virt;
pub mod vmcs;

pub use capability::Capabilities;
pub use entry::{Entered, Entry};
pub use error::{InstructionError, VmFail};
pub use exit::reason::ExitReason;
pub use invalidate::{InveptScope, InvvpidScope};
pub use unit::{Operation, Vmx};
pub use vmcs::field::Field;
