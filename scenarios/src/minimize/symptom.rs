//! What is wrong with a run, without what may change when the scenario shrinks: addresses, step numbers, values.

use crate::engine::Outcome;
use crate::engine::transparency::Difference;
use crate::file::{Actor, Observation, Scenario};
use crate::verdict::{Kind, Verdict};
use mmu::audit::{Audit, Finding};
use sim_core::SimError;
use std::collections::BTreeSet;
use std::fmt;
use toml::{Table, Value};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Symptom {
    /// An audit's finding.
    Audit {
        /// The invariant, the MMU and the differing bits of the role.
        kind: Kind,
        /// The open bug of the kernel that it is a case of.
        known: Option<&'static str>,
        /// The kernel's own warning, which is all that tells one from another.
        warning: Option<String>,
    },
    /// Bare silicon can't show what a step showed.
    Transparency {
        /// Who took the step.
        actor: Actor,
        /// The step's verb.
        verb: String,
        /// What was seen.
        seen: String,
        /// What bare silicon can show.
        bare: BTreeSet<String>,
    },
    /// The machine did not come to rest.
    Runaway,
}

fn verb_of(step: &str) -> &str {
    step.split_whitespace().next().unwrap_or_default()
}

/// An observation without values and addresses.
fn shape(observation: &Observation) -> String {
    match observation {
        Observation::Value(_) => "a value".to_owned(),
        Observation::Exception(exception) => {
            let exception = sim_core::arch::exception::Exception { cr2: None, ..*exception };
            Observation::Exception(exception).to_string()
        }
        Observation::Dirty(frames) if frames.is_empty() => "dirty none".to_owned(),
        Observation::Dirty(_) => "dirty frames".to_owned(),
        other => other.to_string(),
    }
}

impl Symptom {
    fn of_finding(finding: &Finding) -> Self {
        let warning = (finding.audit == Audit::KernelWarning).then(|| finding.what.clone());
        Self::Audit { kind: finding.kind(), known: finding.known, warning }
    }

    /// A finding, whether it is an open bug of the kernel or not: at different points of history the same may be either.
    #[must_use]
    pub fn kind_of(finding: &Finding) -> Self {
        match Self::of_finding(finding) {
            Self::Audit { kind, warning, .. } => Self::Audit { kind, known: None, warning },
            other => other,
        }
    }

    /// A difference from bare silicon.
    #[must_use]
    pub fn of_difference(scenario: &Scenario, difference: &Difference) -> Option<Self> {
        let step = scenario.steps.get(difference.index)?;
        let verb = verb_of(&step.text).to_owned();
        let bare = difference.bare.iter().map(shape).collect();
        Some(Self::Transparency { actor: step.actor, verb, seen: shape(&difference.seen), bare })
    }

    /// Everything that is wrong with a run, each once: what nobody knows yet first, in the order it was met, then the
    /// kernel's open bugs. Nothing of a run that can't be judged.
    #[must_use]
    pub fn all(scenario: &Scenario, verdict: &Verdict) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        match verdict.stopped() {
            Some(SimError::Runaway { .. }) => all.push(Self::Runaway),
            Some(_) => return all,
            None => {}
        }
        let known = verdict.all_findings().filter(|finding| finding.known.is_some()).map(Self::of_finding);
        let new = verdict.findings().map(Self::of_finding);
        let differs = verdict.difference().and_then(|difference| Self::of_difference(scenario, difference));
        for symptom in new.chain(differs).chain(known) {
            if !all.contains(&symptom) {
                all.push(symptom);
            }
        }
        all
    }

    /// Whether it takes the comparison with bare silicon to see it.
    #[must_use]
    pub const fn is_of_transparency(&self) -> bool {
        matches!(self, Self::Transparency { .. })
    }

    /// Whether a run may have the symptom, as far as is seen without a comparison with bare silicon, which can take long.
    #[must_use]
    pub fn may_be_in(&self, scenario: &Scenario, outcome: &Outcome) -> bool {
        let Self::Transparency { actor, verb, seen, .. } = self else { return true };
        outcome.stopped.is_none()
            && outcome.shown.iter().any(|shown| {
                let step = scenario.steps.get(shown.index);
                step.is_some_and(|step| step.actor == *actor && verb_of(&step.text) == verb)
                    && shape(&shown.observed) == *seen
            })
    }

    /// The expectation that a scenario with the symptom breaks, in the language's words.
    #[must_use]
    pub fn broken_expectation(&self) -> Table {
        let row = |key: &str, value: Value| (key.to_owned(), value);
        Table::from_iter(match self {
            Self::Audit { known: Some(_), .. } => vec![row("known", Value::Array(Vec::new()))],
            Self::Audit { .. } | Self::Runaway => vec![row("coherent", Value::Boolean(true))],
            Self::Transparency { .. } => vec![row("transparent", Value::Boolean(true))],
        })
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Audit { kind: (audit, mmu, bits), known, warning } => {
                write!(f, "{} {} in {mmu}", audit.id(), audit.name())?;
                if !bits.is_empty() {
                    write!(f, ", differs in {}", bits.join(" "))?;
                }
                if let Some(warning) = warning {
                    write!(f, ": {warning}")?;
                }
                known.map_or(Ok(()), |known| write!(f, " (known: {known})"))
            }
            Self::Transparency { actor, verb, seen, bare } => {
                let bare = bare.iter().map(String::as_str).collect::<Vec<_>>().join(" | ");
                write!(f, "transparency: {} {verb} shows {seen}, bare silicon {bare}", actor.name())
            }
            Self::Runaway => f.write_str("the machine does not come to rest"),
        }
    }
}
