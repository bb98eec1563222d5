//! Many random scenarios on this machine's KVM, one after the other.

use super::pages::{Agreed, Unlike};
use super::random::{self, Kind};
use super::{Answer, Here, Inside, View, Witness, check, runs};
use crate::engine::transparency::Difference;
use crate::file::{self, RunConfig, Scenario};
use sim_core::SimError;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What came of many random scenarios.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Campaign {
    /// Scenarios whose steps agree.
    pub agreed: usize,
    /// Steps that agree, by who carried them out.
    pub steps: BTreeMap<Witness, usize>,
    /// Seeds of scenarios that differ, and how.
    pub differ: Vec<(u64, Difference)>,
    /// Seeds of scenarios that can't be judged, and why.
    pub unjudged: Vec<(u64, String)>,
    /// Scenarios in which what the MMUs did agrees.
    pub inside: usize,
    /// Of these, those that were compared up to where the silicon of the two chose otherwise.
    pub in_part: usize,
    /// By which views, each once.
    pub views: BTreeSet<View>,
    /// What agrees there.
    pub events: Agreed,
    /// Seeds of scenarios in which it does not.
    pub unlike: Vec<(u64, Unlike)>,
    /// Scenarios with a known difference from silicon, by its name.
    pub known: BTreeMap<&'static str, usize>,
    /// Why nothing was compared inside, each reason once.
    pub not_compared: BTreeSet<String>,
}

/// The scenario of a seed, and its one run.
///
/// # Errors
/// If the generator wrote what the language refuses.
pub fn scenario(kind: Kind, seed: u64, here: &Here) -> Result<(Scenario, RunConfig), SimError> {
    let scenario = file::parse(&kind.token(seed), &random::text(kind, seed), &[], &[]);
    let scenario = scenario.map_err(|diagnostics| SimError::internal(format!("seed {seed:#x}: {diagnostics}")))?;
    let run = runs(&scenario, here).into_iter().next();
    let run = run.ok_or_else(|| SimError::internal(format!("seed {seed:#x}: a scenario without a run")))?;
    Ok((scenario, run))
}

/// Takes the scenarios of some seeds.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn run(kind: Kind, seeds: Range<u64>, here: &Here) -> Result<Campaign, SimError> {
    let mut campaign = Campaign::default();
    for seed in seeds {
        let (scenario, run) = scenario(kind, seed, here)?;
        campaign.note(seed, check(&scenario, &run, here)?);
    }
    Ok(campaign)
}

impl Campaign {
    fn note(&mut self, seed: u64, row: super::Row) {
        for (witness, count) in row.agreed {
            *self.steps.entry(witness).or_default() += count;
        }
        row.known.iter().for_each(|name| *self.known.entry(name).or_default() += 1);
        match row.answer {
            Answer::Agrees => self.agreed += 1,
            Answer::Differs(difference) => self.differ.push((seed, *difference)),
            Answer::Unjudged(why) => self.unjudged.push((seed, why)),
        }
        match row.inside {
            Inside::Agrees(agreed, view) => {
                self.inside += 1;
                self.in_part += usize::from(agreed.until.is_some());
                self.views.insert(view);
                self.events.pages += agreed.pages;
                self.events.syncs += agreed.syncs;
                self.events.entries += agreed.entries;
                self.events.counts += agreed.counts;
            }
            Inside::Differs(unlike) => self.unlike.push((seed, unlike)),
            Inside::NotCompared(why) => {
                self.not_compared.insert(why);
            }
        }
    }
}
