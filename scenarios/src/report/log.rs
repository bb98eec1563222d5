//! The transition log: what a person who knows KVM wants to read of a run. One line an event, the step's text as a
//! heading; host addresses of roots are named R1, R2, ... in the order they appear, so that two logs can be compared.
//!
//! Left out: entries and exits of hardware, exits that L0 handles without a change of MMU state, and checkpoints that
//! look like the one before. A finding that repeats at every later checkpoint is told once.

use mmu::PageRole;
use sim_core::addr::Hpa;
use sim_core::event::{Event, FastOutcome, PageView, PgdOutcome, Record, RequestPhase, RoleWord, RootView};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The log of a run.
#[must_use]
pub fn render(records: &[Record]) -> String {
    let mut writer = Writer::default();
    for record in records {
        writer.event(&record.event);
    }
    writer.text
}

/// Some events, one line each; those that the log leaves out give none.
#[must_use]
pub fn lines(events: &[Event]) -> Vec<String> {
    let mut writer = Writer::default();
    for event in events {
        writer.event(event);
    }
    writer.text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Names of roots, in the order in which they appear.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Vec<Hpa>);

impl Names {
    /// A root with its name.
    pub(crate) fn root(&mut self, root: RootView) -> String {
        if !root.hpa.is_valid() {
            return "-".to_owned();
        }
        let index = self.0.iter().position(|known| *known == root.hpa).unwrap_or_else(|| {
            self.0.push(root.hpa);
            self.0.len() - 1
        });
        let role = root.role.map_or_else(|| "special".to_owned(), |role| role.to_string());
        format!("R{}({role},{:#x})", index + 1, root.pgd)
    }
}

#[derive(Default)]
pub(crate) struct Writer {
    text: String,
    names: Names,
    checkpoint: Option<String>,
    findings: BTreeSet<String>,
}

impl Writer {
    fn line(&mut self, unit: &str, what: &str) {
        let _ = writeln!(self.text, "  {unit:<10} {what}");
    }

    /// The line of the next event, if it has one.
    pub(crate) fn line_of(&mut self, event: &Event) -> Option<String> {
        self.text.clear();
        self.event(event);
        Some(self.text.trim().to_owned()).filter(|line| !line.is_empty())
    }

    /// The names that roots have so far.
    pub(crate) fn names(self) -> Names {
        self.names
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::StepBegin { step, text } => {
                let _ = writeln!(self.text, "{}[{step}] {text}", if self.text.is_empty() { "" } else { "\n" });
            }
            Event::Observed { text, .. } => self.line("saw", text),
            Event::HostCall { what } => self.line("host", what),
            Event::Nested { edge, detail } => {
                let edge = format!("{edge:?}").to_lowercase();
                self.line("nested", format!("{edge} {detail}").trim_end());
            }
            Event::Inject { vector, error } => {
                let error = error.map_or_else(String::new, |error| format!(" error {error:#x}"));
                self.line("inject", &format!("vector {vector}{error}"));
            }
            Event::Exception { vector, error, cr2 } => {
                let error = error.map_or_else(String::new, |error| format!(" error {error:#x}"));
                let cr2 = cr2.map_or_else(String::new, |cr2| format!(" cr2 {cr2}"));
                self.line("exception", &format!("vector {vector}{error}{cr2}"));
            }
            Event::Handled { what, detail } => self.line("l0", &format!("{what} {detail}")),
            Event::Request { name, phase } => {
                let phase = if *phase == RequestPhase::Posted { "posted" } else { "serviced" };
                self.line("request", &format!("{name} {phase}"));
            }
            Event::Warning { what } => self.line("WARN", what),
            Event::Finding { text, .. } => {
                if self.findings.insert(text.clone()) {
                    self.line("FINDING", text);
                }
            }
            other => self.mmu_event(other),
        }
    }

    fn mmu_event(&mut self, event: &Event) {
        match event {
            Event::MmuInit { mmu, old, new } if old == new => self.line("init", &format!("{mmu} {new} unchanged")),
            Event::MmuInit { mmu, old, new } => {
                self.line("init", &format!("{mmu} {old} -> {new}  {}", describe(*new)));
            }
            Event::PgdLookup { mmu, pgd, role, outcome, current, prev } => {
                let outcome = match outcome {
                    PgdOutcome::Kept => "kept".to_owned(),
                    PgdOutcome::Hit(slot) => format!("hit p{slot}"),
                    PgdOutcome::Miss => "miss".to_owned(),
                    PgdOutcome::NotCacheable => "not cacheable".to_owned(),
                };
                let slots = self.slots(*current, prev);
                self.line("lookup", &format!("{mmu} ({role},{pgd:#x}) {outcome}: {slots}"));
            }
            Event::RootLoad { mmu, root, role } => {
                let root = self.names.root(*root);
                self.line("load", &format!("{mmu} role {role}: {root}"));
            }
            Event::RootFree { mmu, root } => {
                let root = self.names.root(*root);
                self.line("free", &format!("{mmu} {root}"));
            }
            Event::PageGet { page: PageView { gfn, role, root_count, .. }, created: true } => {
                self.line("page", &format!("gfn {gfn} {} root {root_count} new", PageRole(role.0).kvm_text()));
            }
            Event::PageUnsync { page: PageView { gfn, role, .. } } => self.line("unsync", &format!("gfn {gfn} {role}")),
            Event::PageSync { page: PageView { gfn, role, .. } } => self.line("sync", &format!("gfn {gfn} {role}")),
            Event::PageZap { page: PageView { gfn, role, root_count, .. } } => {
                self.line("zap", &format!("gfn {gfn} {role} root {root_count}"));
            }
            Event::MarkMmio { gfn, access, generation, .. } => {
                self.line("mmio", &format!("gfn {gfn} access {access:#x} generation {generation}"));
            }
            Event::CheckMmio { kvm_generation, spte_generation, .. } if kvm_generation != spte_generation => {
                self.line("mmio", &format!("generation {spte_generation}, the slots have {kvm_generation}"));
            }
            Event::FastPageFault { address, outcome, .. } if *outcome != FastOutcome::Slow => {
                self.line("fast", &format!("{address:#x} {}", format!("{outcome:?}").to_lowercase()));
            }
            Event::SplitHugePage { gfn, level, .. } => {
                self.line("split", &format!("gfn {gfn} level {}", level.number()));
            }
            Event::ZapAllFast { generation, .. } => self.line("zap-all", &format!("generation {generation}")),
            Event::Checkpoint { mmu, role, root } => {
                let root = self.names.root(*root);
                let now = format!("{mmu} role {role} on {root}");
                if self.checkpoint.as_ref() != Some(&now) {
                    self.line("enter", &now);
                    self.checkpoint = Some(now);
                }
            }
            _ => {}
        }
    }

    fn slots(&mut self, current: RootView, prev: &[RootView; 3]) -> String {
        let current = self.names.root(current);
        let prev = prev.map(|root| self.names.root(root)).join(", ");
        format!("{current} | [{prev}]")
    }
}

fn describe(role: RoleWord) -> String {
    PageRole(role.0).describe()
}
