//! A run's events as two runs are compared by them: one line of text each, without what differs for reasons of its own:
//! cycles, and host addresses, for which roots have the names of the transition log.
//!
//! Where both runs have a hypervisor, everything is compared that is told at [`Detail::Transitions`]: the lines of the
//! transition log, and what it leaves out. Where one has none, only what both kinds of machine tell: what steps show,
//! exceptions, and the edges between L1 and L2, which are events of silicon there and of L0 here.

use crate::backend::Kind;
use crate::report::log;
use sim_core::event::{Event, FlushScope, NestedEdge, PageView, Record};

#[cfg(doc)]
use sim_core::event::Detail;

/// Which events are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that the hypervisor and the silicon under it tell.
    Transitions,
    /// What both backends tell: what steps show, exceptions, edges between L1 and L2.
    Architecture,
    /// What steps show.
    Observations,
}

impl Scope {
    /// What is compared, in words.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Transitions => "every transition of the hypervisor and the silicon",
            Self::Architecture => "what both backends tell: what steps show, exceptions, edges between L1 and L2",
            Self::Observations => "what steps show",
        }
    }
}

/// One event of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The step under way, 0 before the first.
    pub step: u32,
    /// The event.
    pub text: String,
}

/// What a step shows that only one backend has: nothing where the bare machine can't tell what the host sees, and a
/// fault that waits inside of L0.
const HIDDEN: [&str; 2] = ["saw        -", "saw        paused"];

impl Told {
    /// Whether two events are the same, as far as either backend tells.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        let hidden = [self, other].iter().any(|told| HIDDEN.contains(&told.text.as_str()));
        let both_saw = [self, other].iter().all(|told| told.text.starts_with("saw "));
        self.step == other.step && (self.text == other.text || (hidden && both_saw))
    }
}

/// The events of a run that a scope compares, and the names of its roots.
pub(super) fn told(records: &[Record], backend: Kind, scope: Scope) -> (Vec<Told>, log::Names) {
    let mut writer = log::Writer::default();
    let mut step = 0;
    let mut all = Vec::new();
    for record in records {
        if let Event::StepBegin { step: number, .. } = &record.event {
            step = *number;
        }
        let logged = writer.line_of(&record.event);
        let text = match scope {
            Scope::Transitions => logged.or_else(|| unlogged(&record.event)),
            Scope::Architecture => architectural(&record.event, backend).or(logged.filter(|_| shared(&record.event))),
            Scope::Observations => logged.filter(|_| observed(&record.event)),
        };
        if scope == Scope::Architecture && matches!(record.event, Event::Nested { edge: NestedEdge::LateFail, .. }) {
            // L0 was half-way in; silicon would not have begun.
            all.pop_if(|told: &mut Told| told.text == ENTERED);
        }
        all.extend(text.map(|text| Told { step, text }));
    }
    (all, writer.names())
}

const fn observed(event: &Event) -> bool {
    matches!(event, Event::StepBegin { .. } | Event::Observed { .. })
}

const fn shared(event: &Event) -> bool {
    observed(event) || matches!(event, Event::Exception { .. })
}

/// How an entry of L2 is told.
const ENTERED: &str = "nested     enter";
/// How the names of exits begin with which silicon answers an entry that it can't make.
const FAILED_ENTRIES: [&str; 2] = ["VM-entry failure", "VMEXIT_INVALID"];

/// Exits of L2 that L0 makes by itself to bring a vCPU into SMM.
const L0S_OWN: [&str; 2] = ["SMI", "SVM_EXIT_SW"];

/// An edge between L1 and L2, as either backend tells it.
fn architectural(event: &Event, backend: Kind) -> Option<String> {
    let line = |edge: &str, detail: &str| Some(format!("{:<10} {}", "nested", format!("{edge} {detail}").trim_end()));
    match (backend, event) {
        (Kind::Sim, Event::Nested { edge: NestedEdge::Enter, .. }) | (Kind::Bare, Event::VmEntry { .. }) => {
            line("enter", "")
        }
        (Kind::Sim, Event::Nested { edge: NestedEdge::Exit, detail }) if L0S_OWN.contains(&detail.as_str()) => None,
        (Kind::Sim, Event::Nested { edge: NestedEdge::Exit, detail }) => line("exit", detail),
        // A failed entry is what its step shows.
        (Kind::Bare, Event::VmExit { name, .. }) if FAILED_ENTRIES.iter().any(|failed| name.starts_with(failed)) => {
            None
        }
        (Kind::Bare, Event::VmExit { name, .. }) => line("exit", name),
        _ => None,
    }
}

/// What the transition log leaves out.
fn unlogged(event: &Event) -> Option<String> {
    /// Where an entry of either format has an address.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let (unit, text) = match event {
        Event::VmEntry { .. } => ("hardware", "enter".to_owned()),
        Event::VmExit { name, qualification, .. } => {
            ("hardware", format!("exit {name} qualification {qualification:#x}"))
        }
        Event::TlbFlush { scope: FlushScope::EptRoot(_) } => ("tlb", "flush one EPT root".to_owned()),
        Event::TlbFlush { scope: FlushScope::EptViolation { gpa, .. } } => {
            ("tlb", format!("flush EPT violation {gpa}"))
        }
        Event::TlbFlush { scope } => ("tlb", format!("flush {scope:?}")),
        Event::PageGet { page: PageView { gfn, role, .. }, created: false } => {
            ("page", format!("gfn {gfn} {role} found"))
        }
        Event::SpteSet { gfn, level, spte, .. } => {
            ("spte", format!("gfn {gfn} level {} {:#x} without its address", level.number(), spte & !ADDRESS))
        }
        _ => return None,
    };
    Some(format!("{unit:<10} {text}"))
}
