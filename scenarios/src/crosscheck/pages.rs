//! What the kernel's MMU did, held against what the model's did in the same run: shadow pages with their role words, out of sync,
//! in sync again, zapped, and the entries that map the scenario's own pages.
//!
//! Frames of the host differ, so an entry counts by its guest frame, level and bits without the frame. The model's guest
//! kernel runs on shadow pages too, which a KVM that emulates it never makes; so everything that the kernel made must be in the
//! model, not the other way round, and of pages that the kernel did not make nothing is compared:
//!
//! | compared | how |
//! |---|---|
//! | pages made | each of the kernel's (frame, role word) is one of the model's |
//! | unsync, sync | the same in the same spans ([`spans`]), for leaf pages that both made |
//! | entries | each of the kernel's (frame, level, bits) is one of the model's |

use super::recording::Did;
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::event::PageView;
use std::collections::BTreeSet;
use std::fmt;

/// A page by what does not depend on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// What it shadows.
    pub gfn: u64,
    /// Its role word.
    pub role: u32,
}

impl Name {
    pub(super) const fn of(page: &PageView) -> Self {
        Self { gfn: page.gfn.0, role: page.role.0 }
    }

    const fn is_leaf(self) -> bool {
        self.role & 0xf == 1
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x} role {:#x}", self.gfn, self.role)
    }
}

/// The first event of the kernel's that the model has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlike {
    /// What the kernel did.
    pub kernel: String,
    /// What the model did there.
    pub model: String,
}

/// Events that agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Pages made.
    pub pages: usize,
    /// Pages that went out of sync or were synchronised.
    pub syncs: usize,
    /// Entries of the scenario's pages.
    pub entries: usize,
    /// Statistics, at every moment at which they are compared.
    pub counts: usize,
    /// Where the comparison ended, if not at the end of the run.
    pub until: Option<Until>,
}

/// The step before which a comparison ended, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The silicon of the two chose otherwise there.
    ChoseOtherwise(u32),
    /// Both enter the guest over and over there, and how often is for the clock to say.
    NeverReturns(u32),
}

impl Until {
    /// The step, from 1.
    #[must_use]
    pub const fn step(self) -> u32 {
        match self {
            Self::ChoseOtherwise(step) | Self::NeverReturns(step) => step,
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChoseOtherwise(step) => write!(f, "before step {step}, where silicon chose otherwise,"),
            Self::NeverReturns(step) => write!(f, "before step {step}, from which neither returns,"),
        }
    }
}

/// What one side did.
#[derive(Debug, Default)]
struct Side {
    made: Vec<Name>,
    /// By span.
    syncs: Vec<Vec<(&'static str, Name)>>,
    entries: Vec<(u64, u8, u64)>,
}

/// Frames below are the engine's own: code, stacks and tables of the guest's kernel.
const ENGINE_FRAMES: u64 = 0x200;

impl Side {
    fn of(spans: &[Vec<&Did>]) -> Self {
        let mut side = Self::default();
        for events in spans {
            let mut syncs = Vec::new();
            for did in events {
                match did {
                    Did::Make(page) => side.made.push(Name::of(page)),
                    Did::Unsync(page) => syncs.push(("unsync", Name::of(page))),
                    Did::Sync(page) => syncs.push(("sync", Name::of(page))),
                    Did::Set { gfn, level, spte, .. } if gfn.0 >= ENGINE_FRAMES => {
                        side.entries.push((gfn.0, level.number(), spte & !ENTRY_FRAME_MASK));
                    }
                    _ => {}
                }
            }
            side.syncs.push(syncs);
        }
        side
    }

    /// What happened to leaf pages of these names, span by span, in the order of the names.
    fn syncs_of(&self, names: &BTreeSet<Name>) -> Vec<(usize, &'static str, Name)> {
        let mut all = Vec::new();
        for (span, syncs) in self.syncs.iter().enumerate() {
            let mut known: Vec<_> = syncs.iter().filter(|(_, name)| name.is_leaf() && names.contains(name)).collect();
            known.sort();
            all.extend(known.into_iter().map(|(what, name)| (span, *what, *name)));
        }
        all
    }
}

/// The events, span by span: a span ends with a step that runs on the processor. What an emulated step asks of the MMU may be
/// done only as user code runs next; behind the last such step it never is, so that nothing is taken from there.
#[must_use]
pub fn spans<'a>(all: &'a [Did], on_processor: &[bool]) -> Vec<Vec<&'a Did>> {
    let (mut spans, mut open) = (Vec::new(), Vec::new());
    let mut ends = false;
    for did in all {
        if let Did::BeginStep(step) = did {
            if ends {
                spans.push(std::mem::take(&mut open));
            }
            ends = (*step as usize).checked_sub(1).and_then(|index| on_processor.get(index)).copied().unwrap_or(false);
        }
        open.push(did);
    }
    if ends {
        spans.push(open);
    }
    spans
}

/// Compares what the kernel did with what the model did.
///
/// # Errors
/// The first thing of the kernel's that the model has not.
pub fn compare(kernel: &[Vec<&Did>], model: &[Vec<&Did>]) -> Result<Agreed, Unlike> {
    let (kernel, model) = (Side::of(kernel), Side::of(model));
    let made: BTreeSet<Name> = model.made.iter().copied().collect();
    if let Some(name) = kernel.made.iter().find(|name| !made.contains(name)) {
        let same_frame: Vec<String> =
            made.iter().filter(|other| other.gfn == name.gfn).map(|other| format!("{:#x}", other.role)).collect();
        let model = format!(
            "made it with the roles {}",
            if same_frame.is_empty() { "-".to_owned() } else { same_frame.join(" ") }
        );
        return Err(Unlike { kernel: format!("made {name}"), model });
    }
    let both: BTreeSet<Name> = kernel.made.iter().copied().collect();
    let (ours, theirs) = (model.syncs_of(&both), kernel.syncs_of(&both));
    if let Some(at) = (0..ours.len().max(theirs.len())).find(|at| ours.get(*at) != theirs.get(*at)) {
        let text = |event: Option<&(usize, &str, Name)>| {
            event
                .map_or_else(|| "nothing more".to_owned(), |(span, what, name)| format!("{what} {name} in span {span}"))
        };
        return Err(Unlike { kernel: text(theirs.get(at)), model: text(ours.get(at)) });
    }
    let entries: BTreeSet<_> = model.entries.iter().copied().collect();
    if let Some((gfn, level, bits)) = kernel.entries.iter().find(|entry| !entries.contains(entry)) {
        let same: Vec<String> =
            entries.iter().filter(|other| other.0 == *gfn).map(|other| format!("{:#x}", other.2)).collect();
        let kernel = format!("an entry of gfn {gfn:#x} at level {level} with bits {bits:#x}");
        return Err(Unlike { kernel, model: format!("entries of it with bits {}", same.join(" ")) });
    }
    Ok(Agreed { pages: kernel.made.len(), syncs: theirs.len(), entries: kernel.entries.len(), ..Agreed::default() })
}
