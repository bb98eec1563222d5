//! The checks that VM-entry makes before it loads guest state (SDM 3C 26.2 and 26.3.1), each a row of a table: what
//! must hold, the clause of the manual, the predicate, and how to break this rule and none before it.
//!
//! Tables are in the manual's order. [`VALID`](draft::Draft::write_valid) is the VMCS that every row holds on.
//!
//! Left out: the checks of controls that no profile offers (tertiary controls, secondary VM-exit controls, FRED, user
//! interrupts, SGX, processor trace and last-branch state), which fail as settings that are not allowed.

pub mod controls;
pub mod draft;
pub mod event;
pub mod guest;
pub mod host;
pub mod view;

pub use draft::Draft;
pub use view::{View, is_efer, is_eptp, is_pat};

use sim_core::Hpa;

/// One rule that a VMCS must keep.
pub struct Check {
    /// What must hold.
    pub name: &'static str,
    /// Where the manual says so (SDM 3C).
    pub clause: &'static str,
    /// The exit qualification if the check fails on guest state (SDM 3C 26.8).
    pub qualification: u64,
    /// Whether the rule is kept.
    pub holds: fn(&View<'_>) -> bool,
    /// Breaks the rule in a valid VMCS, and none that is checked before.
    pub breaks: fn(&mut Draft<'_>),
}

const fn check(
    name: &'static str,
    clause: &'static str,
    holds: fn(&View<'_>) -> bool,
    breaks: fn(&mut Draft<'_>),
) -> Check {
    Check { name, clause, qualification: 0, holds, breaks }
}

/// Rows for one clause, in order.
macro_rules! table {
    ($clause:literal: $($name:literal, $holds:expr, $breaks:expr;)*) => {
        &[$($crate::checks::check($name, $clause, $holds, $breaks),)*]
    };
}
use table;

/// A list of tables, checked one after the other.
pub type Tables = &'static [&'static [Check]];

/// Checks on the VM-execution, VM-exit and VM-entry control fields (SDM 3C 26.2.1). A broken one is VMfailValid(7).
pub static CONTROLS: Tables = &[controls::EXECUTION, controls::EXIT, event::ENTRY];
/// Checks on host state (SDM 3C 26.2.2 to 26.2.4). A broken one is VMfailValid(8).
pub static HOST: Tables = &[host::REGISTERS, host::SEGMENTS, host::ADDRESS_SPACE];
/// Checks on guest state (SDM 3C 26.3.1). A broken one is a VM-entry failure with exit reason 33.
pub static GUEST: Tables = &[
    guest::registers::TABLE,
    guest::segments::TABLE,
    guest::system::TABLE,
    guest::system::TABLE_REGISTERS,
    guest::system::RIP_AND_FLAGS,
    guest::state::TABLE,
    guest::state::LINK,
    guest::state::PDPTES,
];

/// The first rule of some tables that is broken.
#[must_use]
pub fn first_broken(tables: Tables, view: &View<'_>) -> Option<&'static Check> {
    tables.iter().copied().flatten().find(|check| !(check.holds)(view))
}

/// The link pointer of a VMCS that links nothing.
pub(crate) const NO_LINK: Hpa = Hpa(u64::MAX);
