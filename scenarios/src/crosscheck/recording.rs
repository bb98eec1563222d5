//! A run as it was taken on a real KVM: plain data, so that it can be judged elsewhere, or later.

use crate::backend::Kind;
use crate::engine::{self, Outcome, Shown};
use crate::file::{RunConfig, Scenario};
use mmu::stats::Stat;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::event::{Detail, Event, PageView};
use std::collections::BTreeMap;

/// Something that an MMU did, of the kernel or of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Did {
    /// What follows belongs to this step, from 1; 0 is what comes before.
    BeginStep(u32),
    /// Made a page.
    Make(PageView),
    /// Found a page that was there.
    Find(PageView),
    /// Let a page go out of sync.
    Unsync(PageView),
    /// Synchronised a page.
    Sync(PageView),
    /// Zapped a page.
    Zap(PageView),
    /// Wrote an entry.
    Set {
        /// The guest frame that it maps.
        gfn: Gfn,
        /// Its level.
        level: Level,
        /// Its new value.
        spte: u64,
        /// Where it is, on the machine it was written.
        at: Hpa,
    },
}

impl Did {
    /// What an event tells of an MMU, if it is one of these.
    #[must_use]
    pub const fn of(event: &Event) -> Option<Self> {
        Some(match event {
            Event::StepBegin { step, .. } => Self::BeginStep(*step),
            Event::PageGet { page, created: true } => Self::Make(*page),
            Event::PageGet { page, created: false } => Self::Find(*page),
            Event::PageUnsync { page } => Self::Unsync(*page),
            Event::PageSync { page } => Self::Sync(*page),
            Event::PageZap { page } => Self::Zap(*page),
            Event::SpteSet { gfn, level, spte, sptep } => {
                Self::Set { gfn: *gfn, level: *level, spte: *spte, at: *sptep }
            }
            _ => return None,
        })
    }

    /// What the MMU of a run did.
    #[must_use]
    pub fn all(outcome: &Outcome) -> Vec<Self> {
        outcome.records.iter().filter_map(|record| Self::of(&record.event)).collect()
    }
}

/// What a kernel counted: names once, and the values of each moment, before the first step and after each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    names: Vec<Stat>,
    values: Vec<Vec<u64>>,
}

impl Counted {
    /// What was told, moment by moment.
    #[must_use]
    pub fn of(told: &[BTreeMap<Stat, u64>]) -> Self {
        let names: Vec<Stat> = told.first().into_iter().flat_map(BTreeMap::keys).copied().collect();
        let value = |told: &BTreeMap<Stat, u64>, name| told.get(name).copied().unwrap_or_default();
        let values = told.iter().map(|told| names.iter().map(|name| value(told, name)).collect()).collect();
        Self { names, values }
    }

    /// The values of a name, moment by moment; none if this kernel does not tell it.
    #[must_use]
    pub fn series(&self, stat: Stat) -> Option<Vec<u64>> {
        let at = self.names.iter().position(|name| *name == stat)?;
        Some(self.values.iter().map(|values| values.get(at).copied().unwrap_or_default()).collect())
    }
}

fn older() -> Result<Counted, String> {
    Err("it was recorded before statistics were".to_owned())
}

/// A run on a real KVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    /// What the steps showed, as far as the run came.
    pub shown: Vec<Shown>,
    /// Why it came no further.
    pub stopped: Option<String>,
    /// What the kernel's MMU did, or why that is not known.
    pub inside: Result<Vec<Did>, String>,
    /// What the kernel counted, or why that is not known.
    #[serde(default = "older")]
    pub counted: Result<Counted, String>,
}

/// Takes a run on the KVM of the kernel that this program runs on.
///
/// # Errors
/// If it can't be taken there, by name, or the simulator breaks one of its own rules.
pub fn record(scenario: &Scenario, run: &RunConfig) -> Result<Recording, SimError> {
    let outcome = engine::run_on(Kind::Kvm, scenario, run, Detail::Transitions)?;
    if let Some(SimError::Internal(what)) = outcome.stopped {
        return Err(SimError::Internal(what));
    }
    let inside = match &outcome.closed {
        Some(why) => Err(why.clone()),
        None => Ok(Did::all(&outcome)),
    };
    let counted = outcome.told.as_deref().map(Counted::of).map_err(Clone::clone);
    Ok(Recording { inside, counted, stopped: outcome.stopped.as_ref().map(super::reason), shown: outcome.shown })
}
