//! VMRUN's consistency checks (APM2 15.5.1, 15.20, 15.25.3, 15.25.4), one table row a rule.
//!
//! A VMCB that breaks a rule gives #VMEXIT(VMEXIT_INVALID). The order of the rows is not architectural: the exit does
//! not tell which rule was broken. [`refusal`] tells, for diagnostics.
//!
//! Left out: rules about features that the model's processor lacks (CET state, SEV, VMSA).

mod rows;
mod view;

pub use rows::TABLE;
pub use view::{NestedPaging, View};

use crate::capability::Capabilities;
use cpu::Core;
use sim_core::Hpa;
use sim_core::memory::PhysMem;

/// One rule.
pub struct Check {
    /// A stable name.
    pub name: &'static str,
    /// Where the manual says it.
    pub clause: &'static str,
    /// Whether a VMCB keeps the rule.
    pub holds: fn(&View) -> bool,
}

/// The first rule that a VMCB breaks, if VMRUN were executed in the host state that `core` is in.
#[must_use]
pub fn refusal(mem: &PhysMem, vmcb: Hpa, core: &Core, capabilities: &Capabilities) -> Option<&'static Check> {
    let view = View::read(mem, vmcb, core, capabilities);
    TABLE.iter().find(|check| !(check.holds)(&view))
}
