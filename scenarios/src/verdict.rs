//! A run's verdict: what it showed and what the audits found, held against what the scenario expects.

use crate::backend::Kind as BackendKind;
use crate::engine::transparency::{self, Difference, Transparency};
use crate::engine::{Outcome, Shown};
use crate::file::budget;
use crate::file::{Expectation, Expected, Observation, RunConfig, Scenario};
use mmu::audit::{Audit, Finding};
use sim_core::SimError;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One kind of finding, at its first appearance.
pub type Kind = (Audit, sim_core::event::MmuId, Vec<&'static str>);

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judgement {
    /// Every expectation holds.
    Holds,
    /// Some does not.
    Fails,
    /// The run can't be judged: it needs something that is not modelled, or asks for what can't be.
    Unjudged,
}

/// A run with its verdict.
#[derive(Debug)]
pub struct Verdict {
    /// The run.
    pub run: RunConfig,
    /// What it gave; an error if the machine could not be built.
    pub outcome: Result<Outcome, SimError>,
    /// How it compares with bare silicon; none if it ran there, or if that was not asked for.
    pub transparency: Option<Transparency>,
    /// What came of it.
    pub judgement: Judgement,
    /// Each expectation that does not hold, in words.
    pub failures: Vec<String>,
}

impl Verdict {
    /// Judges a run.
    #[must_use]
    pub fn new(scenario: &Scenario, run: &RunConfig, outcome: Result<Outcome, SimError>) -> Self {
        let expectation = scenario.expectation(run);
        let compared = outcome.as_ref().ok().filter(|outcome| outcome.backend == BackendKind::Sim);
        let transparency = compared.map(|outcome| transparency::judge(scenario, run, outcome));
        let (transparency, broken) = match transparency.transpose() {
            Ok(transparency) => (transparency, None),
            Err(error) => (None, Some(error)),
        };
        let stopped = broken.as_ref().or(match &outcome {
            Ok(outcome) => outcome.stopped.as_ref(),
            Err(error) => Some(error),
        });
        let (judgement, failures) = match (&outcome, stopped) {
            (Ok(outcome), None) => judge(scenario, run, &expectation, (outcome, transparency.as_ref())),
            (Ok(outcome), Some(SimError::Runaway { .. }))
                if expectation.hangs == Some(true) && outcome.backend == BackendKind::Sim =>
            {
                hung(scenario, run, &expectation, outcome)
            }
            (_, Some(error)) | (Err(error), None) => unjudged(&expectation, error),
        };
        Self { run: run.clone(), outcome, transparency, judgement, failures }
    }

    /// A run with what the audits found, compared with nothing.
    #[must_use]
    pub fn of_audits(run: &RunConfig, outcome: Result<Outcome, SimError>) -> Self {
        let judgement = match outcome.as_ref().map(|outcome| &outcome.stopped) {
            Ok(None) => Judgement::Holds,
            Ok(Some(_)) | Err(_) => Judgement::Unjudged,
        };
        Self { run: run.clone(), outcome, transparency: None, judgement, failures: Vec::new() }
    }

    /// The first step that bare silicon can't show.
    #[must_use]
    pub fn difference(&self) -> Option<&Difference> {
        match &self.transparency {
            Some(Transparency::Differs(difference)) => Some(difference),
            _ => None,
        }
    }

    /// Why the run ended early, if it did.
    #[must_use]
    pub fn stopped(&self) -> Option<&SimError> {
        match &self.outcome {
            Ok(outcome) => outcome.stopped.as_ref(),
            Err(error) => Some(error),
        }
    }

    /// Findings that are not open bugs of the kernel at that point of history.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.all_findings().filter(|finding| finding.known.is_none())
    }

    /// Every finding.
    pub fn all_findings(&self) -> impl Iterator<Item = &Finding> {
        self.outcome.iter().flat_map(|outcome| &outcome.findings)
    }

    /// The first finding.
    #[must_use]
    pub fn first(&self) -> Option<&Finding> {
        self.findings().next()
    }

    /// Each kind of finding once, known ones too, with its first appearance.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<Kind, &Finding> {
        let mut kinds = BTreeMap::new();
        for finding in self.all_findings() {
            kinds.entry(finding.kind()).or_insert(finding);
        }
        kinds
    }

    /// The open bugs of the kernel that the run met.
    #[must_use]
    pub fn known(&self) -> BTreeSet<&'static str> {
        let shown = match &self.transparency {
            Some(Transparency::Transparent { known }) => known.clone(),
            _ => BTreeSet::new(),
        };
        self.all_findings().filter_map(|finding| finding.known).chain(shown).collect()
    }

    /// The step of a finding as the scenario spells it; step 0 is the start.
    #[must_use]
    pub fn step_text<'a>(&self, scenario: &'a Scenario, finding: &Finding) -> &'a str {
        let index = (finding.step as usize).checked_sub(1).and_then(|step| self.run.steps.get(step));
        index.and_then(|index| scenario.steps.get(*index)).map_or("the start", |step| step.text.as_str())
    }

    /// Whether the run is coherent, but for what is known.
    #[must_use]
    pub fn is_coherent(&self) -> bool {
        self.first().is_none()
    }
}

/// A run that ends in the step which never does, as it was expected to: what came before must hold as well.
fn hung(
    scenario: &Scenario,
    run: &RunConfig,
    expectation: &Expectation,
    outcome: &Outcome,
) -> (Judgement, Vec<String>) {
    let mut failures: Vec<String> = unmet_steps(scenario, outcome).collect();
    failures.extend(incoherences(scenario, run, expectation, outcome));
    (if failures.is_empty() { Judgement::Holds } else { Judgement::Fails }, failures)
}

/// Each step that does not show what it must, in words.
fn unmet_steps<'a>(scenario: &'a Scenario, outcome: &'a Outcome) -> impl Iterator<Item = String> + 'a {
    disagreements(scenario, outcome)
        .map(|(shown, what)| format!("step {} {}: expected {what}", shown.number, scenario.steps[shown.index].text))
}

fn unjudged(expectation: &Expectation, error: &SimError) -> (Judgement, Vec<String>) {
    match (&expectation.unjudged, error) {
        (Some(_), SimError::Unmodelled { .. }) => (Judgement::Holds, Vec::new()),
        (_, SimError::Unmodelled { .. }) => (Judgement::Unjudged, vec![error.to_string()]),
        (_, SimError::Runaway { .. } | SimError::Internal(_)) => (Judgement::Fails, vec![error.to_string()]),
    }
}

fn judge(
    scenario: &Scenario,
    run: &RunConfig,
    expectation: &Expectation,
    (outcome, transparency): (&Outcome, Option<&Transparency>),
) -> (Judgement, Vec<String>) {
    let mut failures = Vec::new();
    if expectation.hangs == Some(true) && outcome.backend == BackendKind::Sim {
        failures.push("expected a step that never ends, but the run came to its own".to_owned());
    }
    if let Some(why) = &expectation.unjudged
        && outcome.backend == BackendKind::Sim
    {
        failures.push(format!("expected not to be judged ({why}), but it ran to its end"));
    }
    failures.extend(unmet_steps(scenario, outcome));
    if outcome.backend != BackendKind::Sim {
        // There is no hypervisor whose coherency could be judged.
        return (if failures.is_empty() { Judgement::Holds } else { Judgement::Fails }, failures);
    }
    failures.extend(incoherences(scenario, run, expectation, outcome));
    for (name, bound) in &expectation.budget {
        let count = budget::counter(name).map_or(0, |stat| outcome.stats.get(stat));
        if !bound.allows(count) {
            failures.push(format!("expected {name} {bound}, counted {count}"));
        }
    }
    match (transparency, expectation.transparent) {
        (None, _) | (Some(Transparency::Transparent { .. }), None | Some(true)) => {}
        (Some(Transparency::Transparent { .. }), Some(false)) => {
            failures.push("expected not transparent, but bare silicon can show the same".to_owned());
        }
        (Some(Transparency::Differs(_)), Some(false)) | (Some(Transparency::Unjudged { .. }), None) => {}
        (Some(Transparency::Differs(difference)), _) => {
            failures.push(format!("expected transparent: {}", difference_text(scenario, difference)));
        }
        (Some(Transparency::Unjudged { error, .. }), Some(_)) => {
            return (Judgement::Unjudged, vec![format!("transparency can't be judged: {error}")]);
        }
    }
    let judgement = if failures.is_empty() { Judgement::Holds } else { Judgement::Fails };
    (judgement, failures)
}

/// A difference from bare silicon in words, with both permitted sets.
#[must_use]
pub fn difference_text(scenario: &Scenario, difference: &Difference) -> String {
    let Difference { number, index, seen, bare, model } = difference;
    let text = scenario.steps.get(*index).map_or("", |step| step.text.as_str());
    let (bare, model) = (listed(bare), listed(model));
    format!("step {number} {text}: saw {seen}, bare silicon can show {bare}, this hypervisor {model}")
}

/// Observations as `may` spells them.
fn listed(all: &[Observation]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// What the audits found, held against what is expected.
fn incoherences(scenario: &Scenario, run: &RunConfig, expectation: &Expectation, outcome: &Outcome) -> Vec<String> {
    let mut failures = Vec::new();
    let first = outcome.findings.iter().find(|finding| finding.known.is_none());
    let describes = expectation.audit.is_some() || expectation.role.is_some() || expectation.root_role.is_some();
    let describes = describes || expectation.first.is_some() || expectation.differ.is_some();
    match (expectation.coherent.unwrap_or(!describes), first) {
        (true, Some(finding)) => failures.push(format!("expected coherent, found {finding}")),
        (false, None) => failures.push("expected incoherent, found nothing".to_owned()),
        (false, Some(finding)) => failures.extend(differences(scenario, run, expectation, finding, outcome)),
        (true, None) => {}
    }
    failures.extend(known_differences(expectation, outcome));
    failures
}

/// The steps that do not show what they must, each with what was expected and seen instead, in words.
pub fn disagreements<'a>(
    scenario: &'a Scenario,
    outcome: &'a Outcome,
) -> impl Iterator<Item = (&'a Shown, String)> + use<'a> {
    outcome.shown.iter().filter_map(|shown| {
        let expected = scenario.steps.get(shown.index)?.expect.as_ref()?;
        Some((shown, disagreement(expected, shown)?))
    })
}

/// What was expected and seen instead, in words; none if all is well.
fn disagreement(expected: &Expected, shown: &Shown) -> Option<String> {
    let is_in = |all: &[Observation], seen: &Observation| all.iter().any(|one| agrees(one, seen));
    match (expected, &shown.possible) {
        (Expected::Shows(one), _) if agrees(one, &shown.observed) => None,
        (Expected::Shows(_), _) => Some(format!("{expected}, saw {}", shown.observed)),
        (_, Some(possible)) if !possible.contains(&shown.observed) => {
            Some(format!("one of what is permitted, {}, saw {}", listed(possible), shown.observed))
        }
        (Expected::May(all), Some(possible)) => {
            let exact = possible.iter().all(|seen| is_in(all, seen))
                && all.iter().all(|one| possible.iter().any(|seen| agrees(one, seen)));
            (!exact).then(|| format!("{expected}, permitted is {}", listed(possible)))
        }
        (Expected::Never(all), Some(possible)) => possible
            .iter()
            .any(|seen| is_in(all, seen))
            .then(|| format!("{expected}, permitted is {}", listed(possible))),
        // Where the permitted set is not known, what was seen must fit it.
        (Expected::May(all), None) => {
            (!is_in(all, &shown.observed)).then(|| format!("{expected}, saw {}", shown.observed))
        }
        (Expected::Never(all), None) => {
            is_in(all, &shown.observed).then(|| format!("{expected}, saw {}", shown.observed))
        }
    }
}

/// Parts that an expected observation leaves out are not compared.
fn agrees(expected: &Observation, seen: &Observation) -> bool {
    match (expected, seen) {
        (_, Observation::Hidden) => true,
        (Observation::Exception(expected), Observation::Exception(seen)) => {
            expected.vector == seen.vector
                && (expected.error.is_none() || expected.error == seen.error)
                && (expected.cr2.is_none() || expected.cr2 == seen.cr2)
        }
        (Observation::EntryFailed(None), Observation::EntryFailed(_)) => true,
        // A value read is also a step that went well.
        (Observation::Ok, Observation::Value(_)) => true,
        (expected, seen) => expected == seen,
    }
}

/// What an incoherent run's first finding must look like.
fn differences(
    scenario: &Scenario,
    run: &RunConfig,
    expectation: &Expectation,
    finding: &Finding,
    outcome: &Outcome,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut compare = |what: &str, expected: Option<String>, seen: String| {
        if let Some(expected) = expected
            && expected != seen
        {
            failures.push(format!("expected {what} {expected}, found {seen}"));
        }
    };
    let index = (finding.step as usize).checked_sub(1).and_then(|step| run.steps.get(step));
    let text = index.and_then(|index| scenario.steps.get(*index)).map_or("", |step| step.text.as_str());
    if !expectation.first.as_ref().is_none_or(|first| text.starts_with(first.as_str())) {
        compare("first bad step", expectation.first.clone(), text.to_owned());
    }
    compare("bad step number", expectation.step.map(|step| step.to_string()), finding.step.to_string());
    let roles = finding.roles.unwrap_or_default();
    compare("role", expectation.role.map(|role| format!("{role:#x}")), roles.expected.to_string());
    compare("root role", expectation.root_role.map(|role| format!("{role:#x}")), roles.actual.to_string());
    compare("differing bits", expectation.differ.as_ref().map(|bits| bits.join(" ")), finding.difference().join(" "));
    let audits: BTreeSet<_> =
        outcome.findings.iter().filter(|finding| finding.known.is_none()).map(|finding| finding.audit.name()).collect();
    if let Some(expected) = &expectation.audit {
        let expected: BTreeSet<_> = expected.iter().map(String::as_str).collect();
        if expected != audits {
            failures.push(format!("expected audits {expected:?}, found {audits:?}"));
        }
    }
    failures
}

fn known_differences(expectation: &Expectation, outcome: &Outcome) -> Option<String> {
    let expected: BTreeSet<&str> = expectation.known.as_ref()?.iter().map(String::as_str).collect();
    let seen: BTreeSet<&str> = outcome.findings.iter().filter_map(|finding| finding.known).collect();
    (expected != seen).then(|| format!("expected known bugs {expected:?}, met {seen:?}"))
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds",
            Self::Fails => "FAILS",
            Self::Unjudged => "unjudged",
        })
    }
}
