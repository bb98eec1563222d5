//! Intel VMX as silicon: the VMCS, VM-entry with its checks, VM-exit, intercepts, and the VMX instructions (SDM 3C
//! chapters 23 to 30). One [`Vmx`] unit belongs to one logical processor.
//!
//! A guest hypervisor that runs on bare silicon reaches the unit through real instructions ([`cpu::virt::Virt`]); L0
//! software reaches the same instructions as methods of [`Vmx`].
//!
//! Left out, and refused by the capability checks: APIC virtualization, posted interrupts, the preemption timer, NMI
//! and interrupt windows, VMCS shadowing, VM functions, PML, dual-monitor treatment of SMM.

pub mod capability;
pub mod checks;
pub mod controls;
pub mod entry;
pub mod error;
pub mod exit;
pub mod fidelity;
mod instructions;
mod intercept;
pub mod invalidate;
mod unit;
mod virt;
pub mod vmcs;

pub use capability::Capabilities;
pub use entry::{Entered, Entry};
pub use error::{InstructionError, VmFail};
pub use exit::reason::ExitReason;
pub use invalidate::{InveptScope, InvvpidScope};
pub use unit::{Operation, Vmx};
pub use vmcs::field::Field;
