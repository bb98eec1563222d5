//! What machine a trace is of, and which event tells so: vendor, two-dimensional paging in L0, and whether L1 gives it to L2.
//!
//! What follows from an event and what does not: an EPT violation needs EPT; INVLPG is intercepted only without
//! two-dimensional paging; a direct page above level 2 exists only with it, since no guest page is so large; a shadowed table
//! that is not L2's exists only without it.

use super::event::{Fate, Told};
use super::page::Page;
use super::reason::{Meaning, Reason};
use super::trace::{Entry, Trace};
use crate::file::Vendor;
use mmu::PageRole;
use std::collections::BTreeMap;

/// Something that a trace tells: the value, and the first line that tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence<T> {
    /// What it tells.
    pub value: T,
    /// Where.
    pub line: usize,
    /// By what.
    pub by: &'static str,
}

/// A machine, as far as a trace tells it. Each list has one entry a value: several are a contradiction, or several VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Whose silicon.
    pub vendor: Vec<Evidence<Vendor>>,
    /// Two-dimensional paging in L0.
    pub tdp: Vec<Evidence<bool>>,
    /// And given by L1 to L2.
    pub nested_tdp: Vec<Evidence<bool>>,
}

fn tell<T: PartialEq>(list: &mut Vec<Evidence<T>>, line: usize, value: T, by: &'static str) {
    if !list.iter().any(|evidence| evidence.value == value) {
        list.push(Evidence { value, line, by });
    }
}

/// The only value that is told.
pub(super) fn only<T: Copy>(list: &[Evidence<T>]) -> Option<T> {
    match list {
        [one] => Some(one.value),
        _ => None,
    }
}

impl Machine {
    /// The machine of a trace.
    #[must_use]
    pub fn of(trace: &Trace) -> Self {
        let mut machine = Self::default();
        if let Some(header) = &trace.header {
            let by = "the run's own header";
            tell(&mut machine.vendor, header.line, header.vendor, by);
            tell(&mut machine.tdp, header.line, header.tdp, by);
            tell(&mut machine.nested_tdp, header.line, header.nested_tdp, by);
            return machine;
        }
        let mut levels = Levels::of(trace);
        for entry in &trace.entries {
            machine.entry(entry, levels.at(entry));
        }
        machine
    }

    fn entry(&mut self, entry: &Entry, level: Level) {
        let line = entry.line;
        match &entry.told {
            Told::Page(fate, page) => self.page(line, *fate, page, level),
            Told::TdpEntry => tell(&mut self.tdp, line, true, "kvm_tdp_mmu_spte_changed"),
            Told::Exit(reason) => {
                self.reason(line, reason, "kvm_exit");
                match (reason.meaning, level) {
                    (Meaning::SecondStage, _) => tell(&mut self.tdp, line, true, "an exit of the second stage"),
                    (Meaning::Invlpg, Level::L1) => tell(&mut self.tdp, line, false, "INVLPG is intercepted"),
                    (Meaning::PageFault, Level::L1) => tell(&mut self.tdp, line, false, "page faults are intercepted"),
                    _ => {}
                }
            }
            Told::Leave(reason) => self.reason(line, reason, "kvm_nested_vmexit_inject"),
            Told::Enter { vendor, nested_tdp, .. } => {
                if let Some(vendor) = vendor {
                    tell(&mut self.vendor, line, *vendor, "kvm_nested_vmenter");
                }
                if let Some(on) = nested_tdp {
                    tell(&mut self.nested_tdp, line, *on, "kvm_nested_vmenter");
                    if *on {
                        tell(&mut self.tdp, line, true, "L2 has two-dimensional paging");
                    }
                }
            }
            Told::Invlpga { .. } => tell(&mut self.vendor, line, Vendor::Amd, "kvm_invlpga"),
            _ => {}
        }
    }

    fn reason(&mut self, line: usize, reason: &Reason, by: &'static str) {
        if let Some(vendor) = reason.vendor {
            tell(&mut self.vendor, line, vendor, by);
        }
    }

    fn page(&mut self, line: usize, fate: Fate, page: &Page, level: Level) {
        let role = page.role;
        if role.word.direct() == 1 && role.word.level() > 2 {
            tell(&mut self.tdp, line, true, "a direct page above level 2");
        }
        // What L1 has shadowed for L2 may have been made before the trace tells that L2 runs.
        let of_l2 = PageRole(0).with_guest_mode(1);
        let is_l1s = level == Level::L1 && !(role.knows(of_l2) && role.word.guest_mode() == 1);
        if role.word.direct() == 0 && is_l1s && fate == Fate::Made {
            tell(&mut self.tdp, line, false, "a table of L1's is shadowed");
        }
    }
}

/// Who runs on a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// L1.
    L1,
    /// L2.
    L2,
}

/// Who runs on each thread, as far as entries and exits are told. L2 runs where the first that is told is an exit.
#[derive(Clone, Debug)]
pub(super) struct Levels(BTreeMap<u32, Level>);

impl Levels {
    /// At the beginning of a trace.
    pub(super) fn of(trace: &Trace) -> Self {
        let mut first = BTreeMap::new();
        for entry in &trace.entries {
            match entry.told {
                Told::Enter { .. } => first.entry(entry.pid).or_insert(Level::L1),
                Told::Leave(_) => first.entry(entry.pid).or_insert(Level::L2),
                _ => continue,
            };
        }
        Self(first)
    }

    /// Who runs before an event, which is taken into account.
    pub(super) fn at(&mut self, entry: &Entry) -> Level {
        let before = self.0.get(&entry.pid).copied().unwrap_or(Level::L1);
        let after = match entry.told {
            Told::Enter { .. } => Level::L2,
            Told::Leave(_) | Told::EnterFailed(_) => Level::L1,
            _ => before,
        };
        self.0.insert(entry.pid, after);
        before
    }
}
