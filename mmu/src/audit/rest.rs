//! What the auditors of a quiet moment share: where findings go, and reading whole tables.

use crate::audit::{Audit, Finding, Moment, Subject};
use crate::role::PageRole;
use crate::state::View;
use crate::{VcpuMmu, Vm};
use sim_core::addr::{Hpa, PAGE_BYTES};
use sim_core::event::EventLog;
use sim_core::memory::PhysMem;

/// Findings of one kind beyond which no more are told.
const MOST: usize = 3;

/// A quiet moment.
pub(super) struct Rest<'a> {
    pub(super) vm: &'a Vm,
    pub(super) mem: &'a PhysMem,
    /// A vCPU to name in findings.
    pub(super) witness: (u8, &'a VcpuMmu, View),
    pub(super) step: u32,
    pub(super) log: &'a EventLog,
    pub(super) findings: Vec<Finding>,
}

impl Rest<'_> {
    pub(super) fn find(&mut self, audit: Audit, what: String) {
        self.push(audit, what, None, None);
    }

    /// A finding that may be an open bug of the kernel.
    pub(super) fn find_known(&mut self, audit: Audit, what: String, known: Option<&'static str>) {
        self.push(audit, what, None, known);
    }

    pub(super) fn find_roles(&mut self, audit: Audit, what: String, roles: (PageRole, PageRole)) {
        self.push(audit, what, Some(roles), None);
    }

    fn push(&mut self, audit: Audit, what: String, roles: Option<(PageRole, PageRole)>, known: Option<&'static str>) {
        if self.findings.iter().filter(|finding| finding.audit == audit).count() >= MOST {
            return;
        }
        let (id, vcpu, view) = self.witness;
        let (vm, mem, step, log) = (self.vm, self.mem, self.step, self.log);
        let subject = Subject { vm, mem, vcpu, id, step, view, nested_regs: None, hardware: 0, log };
        let mut finding = Finding::new(audit, &subject, what);
        (finding.moment, finding.known) = (Moment::Rest, known);
        if let Some((expected, actual)) = roles {
            finding = finding.with_roles(expected, actual);
        }
        self.findings.push(finding);
    }
}

/// The entries of a table that are not 0, with their addresses.
pub(super) struct Entries {
    table: Hpa,
    bytes: Box<[u8; PAGE_BYTES as usize]>,
    next: usize,
}

impl Entries {
    pub(super) fn of(mem: &PhysMem, table: Hpa) -> Self {
        let mut bytes = Box::new([0; PAGE_BYTES as usize]);
        mem.read_bytes(table, &mut bytes[..]);
        Self { table, bytes, next: 0 }
    }
}

impl Iterator for Entries {
    type Item = (Hpa, u64);

    fn next(&mut self) -> Option<(Hpa, u64)> {
        while self.next < self.bytes.len() {
            let at = self.next;
            self.next += 8;
            let entry = self.bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            if entry != 0 {
                return Some((self.table.offset(at as u64), entry));
            }
        }
        None
    }
}
