//! What the kernel's MMU did, held against what the model's did, one by one and in order: where all of the guest runs on the
//! processor, the two must do the same.
//!
//! Pages count by frame and role word, entries by guest frame, level and bits without the host's frame.

use super::pages::{Agreed, Name, Unlike};
use super::recording::Did;
use sim_core::addr::ENTRY_FRAME_MASK;
use std::fmt;

/// What an MMU did, without what depends on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Page(&'static str, Name),
    Entry { gfn: u64, level: u8, bits: u64 },
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(what, name) => write!(f, "{what} {name}"),
            Self::Entry { gfn, level, bits } => write!(f, "entry of gfn {gfn:#x} at level {level}: {bits:#x}"),
        }
    }
}

impl Told {
    fn of(did: &Did, rules: Rules) -> Option<Self> {
        let page = |what, page| Some(Self::Page(what, Name::of(page)));
        match did {
            Did::BeginStep(_) => None,
            Did::Make(view) => page("make", view),
            Did::Find(view) => page("find", view),
            Did::Unsync(view) => page("unsync", view),
            Did::Sync(view) => page("sync", view),
            Did::Zap(view) => page("zap", view),
            Did::Set { gfn, level, spte, .. } => {
                Some(Self::Entry { gfn: gfn.0, level: level.number(), bits: spte & !ENTRY_FRAME_MASK & !rules.ignored })
            }
        }
    }
}

/// When tables of the TDP MMU are zapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdpZaps {
    /// When they are given up.
    AtOnce,
    /// Any time after: they are compared without their order, and what the kernel has not yet zapped at the end is not missed.
    Later,
}

/// What is compared how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// When tables of the TDP MMU are zapped.
    pub zaps: TdpZaps,
    /// Bits of entries that the model does not have.
    pub ignored: u64,
}

impl Rules {
    fn is_later(self, did: &Did) -> bool {
        const DIRECT: u32 = 1 << 7;
        self.zaps == TdpZaps::Later && matches!(did, Did::Zap(page) if page.role.0 & DIRECT != 0)
    }
}

/// What was done in each step, in order.
fn steps(all: &[Did], rules: Rules) -> Vec<(u32, Vec<Told>)> {
    let mut steps: Vec<(u32, Vec<Told>)> = vec![(0, Vec::new())];
    for did in all.iter().filter(|did| !rules.is_later(did)) {
        match (did, steps.last_mut()) {
            (Did::BeginStep(step), Some((last, _))) if *step != *last => steps.push((*step, Vec::new())),
            (_, Some((_, told))) => told.extend(Told::of(did, rules)),
            (_, None) => {}
        }
    }
    steps
}

/// The first table that the kernel zapped more often than the model.
fn zapped_more(kernel: &[Did], model: &[Did], rules: Rules) -> Option<Told> {
    let told = |all: &[Did]| {
        all.iter().filter(|did| rules.is_later(did)).filter_map(|did| Told::of(did, rules)).collect::<Vec<_>>()
    };
    let mut ours = told(model);
    told(kernel).into_iter().find(|zap| match ours.iter().position(|other| other == zap) {
        Some(at) => {
            ours.swap_remove(at);
            false
        }
        None => true,
    })
}

/// Compares what the kernel did with what the model did.
///
/// # Errors
/// The first thing that only one of them did, with what follows in that step.
pub fn compare(kernel: &[Did], model: &[Did], rules: Rules) -> Result<Agreed, Unlike> {
    if let Some(zap) = zapped_more(kernel, model, rules) {
        return Err(Unlike { kernel: zap.to_string(), model: "not as often".to_owned() });
    }
    let (kernel, model) = (steps(kernel, rules), steps(model, rules));
    let nothing = Vec::new();
    for (step, theirs) in &kernel {
        let ours = model.iter().find(|(other, _)| other == step).map_or(&nothing, |(_, told)| told);
        if let Some(at) = (0..ours.len().max(theirs.len())).find(|at| ours.get(*at) != theirs.get(*at)) {
            let rest = |told: &[Told]| text(*step, told.get(at..).unwrap_or_default());
            return Err(Unlike { kernel: rest(theirs), model: rest(ours) });
        }
    }
    let count = |is: fn(&Told) -> bool| kernel.iter().flat_map(|(_, told)| told).filter(|told| is(told)).count();
    Ok(Agreed {
        pages: count(|told| matches!(told, Told::Page("make" | "find", _))),
        syncs: count(|told| matches!(told, Told::Page("unsync" | "sync" | "zap", _))),
        entries: count(|told| matches!(told, Told::Entry { .. })),
        ..Agreed::default()
    })
}

fn text(step: u32, told: &[Told]) -> String {
    const SHOWN: usize = 6;
    let more = if told.len() > SHOWN { ", ..." } else { "" };
    let shown: Vec<String> = told.iter().take(SHOWN).map(ToString::to_string).collect();
    let shown = if shown.is_empty() { "nothing more".to_owned() } else { shown.join(", ") };
    format!("step {step}: {shown}{more}")
}
