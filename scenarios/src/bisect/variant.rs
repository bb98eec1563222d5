//! A failing run and variants of it: what becomes of its failures when one thing about it is another.

use super::failure::{Failure, Judge, Tier};
use crate::file::{RunConfig, Scenario};
use sim_core::SimError;
use std::collections::BTreeSet;
use std::fmt;

/// A run that fails by something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// The run.
    pub run: RunConfig,
    /// What sort of failure it shows first.
    pub tier: Tier,
    /// All of that sort.
    pub failures: BTreeSet<Failure>,
}

/// What a variant shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Some of the same failures.
    Stays,
    /// No failure of the sort.
    Gone,
    /// Others of the sort.
    Other(Failure),
    /// It can't be judged, or can't exist.
    Unjudged(String),
}

impl Effect {
    /// Whether the verdict is another.
    #[must_use]
    pub const fn flips(&self) -> bool {
        matches!(self, Self::Gone | Self::Other(_))
    }

    /// What it is that the short form does not say.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        match self {
            Self::Stays | Self::Gone => None,
            Self::Other(failure) => Some(failure.to_string()),
            Self::Unjudged(why) => Some(why.clone()),
        }
    }
}

/// In one word.
impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stays => "stays",
            Self::Gone => "GONE",
            Self::Other(_) => "OTHER",
            Self::Unjudged(_) => "unjudged",
        })
    }
}

/// A failure without the number of its step, which may be another in a variant.
fn shape(failure: &Failure) -> Failure {
    match failure.clone() {
        Failure::Step { text, .. } => Failure::Step { number: 0, text },
        Failure::Transparency { symptom, .. } => Failure::Transparency { number: 0, symptom },
        other => other,
    }
}

/// The first of some runs that fails, and what it fails by.
///
/// # Errors
/// If none fails and one can't be judged, or the simulator breaks one of its own rules.
pub fn first_failing(
    scenario: &Scenario,
    runs: &[RunConfig],
    words: Option<&str>,
) -> Result<Option<Failing>, SimError> {
    let mut unjudged = None;
    for run in runs {
        match failing(scenario, run, words) {
            Ok(None) => {}
            Ok(some) => return Ok(some),
            Err(error @ SimError::Internal(_)) => return Err(error),
            Err(error) => unjudged = unjudged.or(Some(error)),
        }
    }
    unjudged.map_or(Ok(None), Err)
}

fn failing(scenario: &Scenario, run: &RunConfig, words: Option<&str>) -> Result<Option<Failing>, SimError> {
    let judge = Judge::new(scenario, run, words);
    let outcome = judge.take(run)?;
    for tier in Tier::ALL {
        let failures = match judge.failures(run, &outcome, tier) {
            // What can't be compared with bare silicon is not known to fail.
            Err(SimError::Unmodelled { .. } | SimError::Runaway { .. }) => BTreeSet::new(),
            other => other?,
        };
        if !failures.is_empty() {
            return Ok(Some(Failing { run: run.clone(), tier, failures }));
        }
    }
    Ok(None)
}

/// What a variant of a failing run shows.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub(super) fn effect(judge: &Judge<'_>, failing: &Failing, variant: &RunConfig) -> Result<Effect, SimError> {
    if let Some(why) = variant.impossible() {
        return Ok(Effect::Unjudged(why.to_owned()));
    }
    let shown = judge.take(variant).and_then(|outcome| {
        if let (Some(error), true) = (&outcome.stopped, failing.tier != Tier::Stop) {
            return Err(error.clone());
        }
        judge.failures(variant, &outcome, failing.tier)
    });
    let shown = match shown {
        Ok(shown) => shown,
        Err(error @ SimError::Internal(_)) => return Err(error),
        Err(error) => return Ok(Effect::Unjudged(error.to_string())),
    };
    let wanted: BTreeSet<Failure> = failing.failures.iter().map(shape).collect();
    Ok(match shown.first() {
        None => Effect::Gone,
        Some(_) if shown.iter().any(|failure| wanted.contains(&shape(failure))) => Effect::Stays,
        Some(other) => Effect::Other(other.clone()),
    })
}
