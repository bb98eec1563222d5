//! The ground that every other floor stands on: addresses, architectural bit definitions, physical memory,
//! simulated time, the one event type, recorded choices, the state hash and the errors that name what is not modelled.
//!
//! Nothing here decides anything about x86 or about a hypervisor; it only gives the words to say it in.

pub mod addr;
pub mod arch;
pub mod choice;
pub mod clock;
pub mod error;
pub mod event;
pub mod fidelity;
pub mod ground;
pub mod hash;
pub mod history;
pub mod memory;

pub use addr::{Gfn, Gpa, Gva, Hfn, Hpa, Level, Ngpa};
pub use error::SimError;
pub use ground::Ground;
