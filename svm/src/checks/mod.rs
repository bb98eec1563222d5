//! VMRUN's consistency checks (APM2 15.5.1, 15.16, 15.20, 15.21.10, 15.25), one table row a rule.
//!
//! A VMCB that breaks a rule gives #VMEXIT(VMEXIT_INVALID). The order of the rows is not architectural: the exit does
//! not tell which rule was broken. [`refusal`] tells, for diagnostics. Each row also carries a function that breaks a
//! valid VMCB in exactly its way, for tests of silicon and of hypervisors alike.
//!
//! Left out: rules about features that the model's processor lacks (SEV, VMSA, AVIC).

mod rows;
mod view;

pub use rows::TABLE;
pub use view::{NestedPaging, View};

use crate::capability::Capabilities;
use crate::vmcb::Image;
use cpu::Core;
use sim_core::Hpa;
use sim_core::memory::PhysMem;

/// Makes the VMCB at an address break one rule and no other, if it is one that nested paging and 64-bit mode are on in.
/// The rules about the host change the core.
pub type Spoiler = fn(&mut PhysMem, Hpa, &mut Core);

/// One rule.
pub struct Check {
    /// A stable name.
    pub name: &'static str,
    /// Where the manual says it.
    pub clause: &'static str,
    /// Whether a VMCB keeps the rule.
    pub holds: fn(&View) -> bool,
    /// Breaks it.
    pub spoil: Spoiler,
}

/// The first rule that a VMCB breaks, if VMRUN were executed in the host state that `core` is in.
#[must_use]
pub fn refusal(image: &Image, mem: &PhysMem, core: &Core, capabilities: &Capabilities) -> Option<&'static Check> {
    let view = View::of(image, mem, core, capabilities);
    TABLE.iter().find(|check| !(check.holds)(&view))
}
