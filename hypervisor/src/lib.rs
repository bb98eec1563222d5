//! The rest of L0: a KVM-style hypervisor that runs L1 on simulated silicon, and gives it VMX or SVM of its own.
//!
//! It is software. It reaches the silicon through VMCS and VMCB fields, VMX and SVM instructions and memory, so that a
//! bug in it surfaces as it would on hardware. The vCPU loop is [`run`]; what a vendor must do is in [`vendor`]; nested
//! virtualization is in [`nested`]. Functions of the kernel are named as in v5.17, unless another version is.

pub mod alu;
pub mod canonical;
pub mod control_regs;
pub mod dirty_log;
pub mod emulate;
pub mod exits;
pub mod host;
pub mod inject;
pub mod invpcid;
pub mod machine;
pub mod migrate;
pub mod nested;
pub mod notifier;
pub mod pause;
pub mod prefault;
pub mod requests;
pub mod run;
pub mod signals;
pub mod slots;
pub mod smm;
pub mod tags;
pub mod translate;
mod translations;
pub mod vcpu;
pub mod vendor;

pub use machine::{Machine, Setup};
pub use run::Stop;
pub use vcpu::{Sregs, Vcpu};
