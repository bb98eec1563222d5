//! What a second stage may still translate a guest-physical address to: guest-physical mappings and the
//! paging-structure caches behind them (SDM 3C 28.3.1).

use super::Past;
use super::explore::{Node, Phase, explore};
use super::times::Times;
use crate::paging::entry::Rights;
use crate::paging::second;
use crate::tlb::entry::{StageTag, Tables};
use crate::tlb::invalidate::covers_stage;
use crate::tlb::journal::{Period, Setting};
use crate::virt::SecondStage;
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::{Gpa, Hpa, SimError};

/// A guest-physical translation and when it may be used.
#[derive(Clone)]
pub(super) struct StagePage {
    /// Where the page, or this part of it, begins.
    pub(super) hpa: Hpa,
    pub(super) shift: u32,
    pub(super) rights: Rights,
    pub(super) is_dirty: bool,
    pub(super) when: Times,
}

/// What was found for one guest-physical address.
#[derive(Default)]
pub(super) struct StageFound {
    pub(super) nodes: Vec<Node>,
    pub(super) pages: Vec<StagePage>,
}

/// The tag of what a second stage gives to a setting, none without one.
pub(super) const fn tag_of(second: &SecondStage, context: u32) -> Option<StageTag> {
    match *second {
        SecondStage::None => None,
        SecondStage::Ept { eptp, .. } => Some(StageTag::Ept(Hpa(eptp & ENTRY_FRAME_MASK))),
        SecondStage::Npt { .. } => Some(StageTag::Nested(context)),
    }
}

impl Past<'_> {
    /// Everything that a guest-physical address may translate to under a tag.
    pub(super) fn stage(&self, tag: StageTag, gpa: Gpa) -> Result<StageFound, SimError> {
        let phases = self.stage_phases(tag)?;
        let in_reach = |phase: &Phase| gpa.0 >> phase.structure.format.address_bits() == 0;
        let phases: Vec<_> = phases.into_iter().filter(in_reach).collect();
        let found =
            explore(self.view, &phases, &Tables::Stage(tag), gpa.0, &|_, at, when| vec![(Hpa(at), when.clone())]);
        let pages = found.leaves.into_iter().map(|leaf| {
            let shift = leaf.level.shift;
            StagePage {
                hpa: Hpa(leaf.address >> shift << shift),
                shift,
                rights: leaf.rights,
                is_dirty: leaf.level.layout.dirty & !leaf.raw == 0,
                when: self.view.remembered(&leaf.when, |scope| covers_stage(scope, tag, gpa, shift)),
            }
        });
        Ok(StageFound { pages: pages.collect(), nodes: found.nodes })
    }

    /// The tables in force under a tag, whatever VPID and PCID were current.
    fn stage_phases(&self, tag: StageTag) -> Result<Vec<Phase>, SimError> {
        let mut phases: Vec<Phase> = Vec::new();
        for period in &self.periods {
            let Setting { space, second, paging } = &period.setting;
            if tag_of(second, space.context) != Some(tag) {
                continue;
            }
            let Some(structure) = second::structure(paging.maxphyaddr, paging.offers, second)? else { continue };
            let (when, is_current) = (self.when(period), period.until.is_none());
            match phases.iter_mut().find(|phase| (phase.structure, phase.is_current) == (structure, is_current)) {
                Some(phase) => phase.when = phase.when.or(&when),
                None => {
                    let second = SecondStage::None;
                    phases.push(Phase { structure, second, has_globals: false, is_current, when });
                }
            }
        }
        Ok(phases)
    }

    /// The moments of a period.
    pub(super) fn when(&self, period: &Period) -> Times {
        Times::range(period.from, period.until.unwrap_or(self.view.now.next()))
    }
}
