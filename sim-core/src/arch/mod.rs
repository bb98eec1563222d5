//! Architectural definitions without behaviour: the bits that every floor must spell alike.

pub mod access;
pub mod control;
pub mod exception;
pub mod extension;
pub mod msr;
pub mod rflags;
pub mod segment;
