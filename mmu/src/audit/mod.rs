//! The auditors: invariants of role and root coherency, checked from outside. They share no code with the MMU beyond
//! the shape of its state: expected roles come from [`role_spec`], a second statement of the rules.
//!
//! Two moments are legal to look at (kvm-mmu.md A.12). *Checkpoint E*, after the reload and immediately before the
//! entry: [`at_entry`]. *Function exit*, when no MMU function is under way: [`at_rest`]. Between the two halves of a
//! nested CR3 load the invariants fail legitimately in either order, and nothing looks then.

pub mod finding;
mod metadata;
pub mod references;
mod rest;
mod rights;
pub mod role_spec;
mod roots;
mod structure;

pub use finding::{Audit, Finding, Moment, Roles};

use crate::state::{RoleRegs, View};
use crate::{VcpuMmu, Vm};
use sim_core::event::EventLog;
use sim_core::memory::PhysMem;

/// What an auditor may look at.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The VM's part of the MMU.
    pub vm: &'a Vm,
    /// Memory, for tables without a shadow page.
    pub mem: &'a PhysMem,
    /// The vCPU's MMUs.
    pub vcpu: &'a VcpuMmu,
    /// The vCPU's number.
    pub id: u8,
    /// The scenario step under way.
    pub step: u32,
    /// The vCPU's registers as they are now.
    pub view: View,
    /// L1's registers as vmcb01 has them, while nested NPT is shadowed.
    pub nested_regs: Option<RoleRegs>,
    /// What hardware will walk from, raw.
    pub hardware: u64,
    /// What happened so far.
    pub log: &'a EventLog,
}

type Checker = fn(&Subject<'_>) -> Option<Finding>;

/// The checkers of checkpoint E, in the order of their invariants.
const AT_ENTRY: &[Checker] = &[
    roots::root_valid,
    roots::root_role,
    roots::pae_root,
    roots::root_pgd,
    role_spec::stored_role,
    roots::guest_mode,
    roots::smm,
    roots::obsolete,
    roots::hardware_root,
    metadata::metadata,
];

/// Every invariant that fails at checkpoint E.
#[must_use]
pub fn at_entry(subject: &Subject<'_>) -> Vec<Finding> {
    AT_ENTRY.iter().filter_map(|checker| checker(subject)).collect()
}

pub use references::Holder;

/// Every invariant that fails while no MMU function is under way. `whole` looks at every page and entry, which is needed
/// only after MMU code ran.
#[must_use]
pub fn at_rest(
    vm: &Vm,
    mem: &PhysMem,
    holders: &[Holder<'_>],
    step: u32,
    log: &EventLog,
    extent: Extent,
) -> Vec<Finding> {
    let mut findings = references::at_rest(vm, mem, holders, step, log);
    if let (Some(witness), Extent::Everything) = (holders.first(), extent) {
        let mut rest = rest::Rest { vm, mem, witness: *witness, step, log, findings: Vec::new() };
        structure::check(&mut rest);
        rights::check(&mut rest);
        findings.extend(rest.findings);
    }
    findings
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Extent {
    /// Nothing.
    Nothing,
    /// Roots and references.
    Roots,
    /// Every page and entry too.
    #[default]
    Everything,
}
