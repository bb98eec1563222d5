//! The model against a real KVM: each run is taken on this machine's own KVM.
//!
//! What every step showed is held against everything that the silicon permits (`bare`), as transparency is. A step that the
//! kernel's emulator carries out says nothing about the processor, so each step has a [`Witness`], and the two are told
//! apart. What the kernel's MMU did, role words included, is held against the model's own events ([`pages`]) at the point of
//! history that the kernel has reached. What this KVM can't do is said by name and counts for nothing.

pub mod campaign;
pub mod counts;
pub mod here;
pub mod pages;
pub mod random;
pub mod recording;
pub mod sequence;
mod witness;

pub use crate::backend::kvm::Engines;
pub use here::{Here, Host};
pub use witness::Witness;

use crate::backend::{Kind, kvm};
use crate::engine::transparency::{self, Difference, Transparency};
use crate::engine::{self, Outcome, Shown};
use crate::file::{Action, RunConfig, Scenario};
use pages::{Agreed, Unlike, Until};
use recording::{Counted, Did, Recording};
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What came of comparing what the steps showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Silicon can show all that was compared.
    Agrees,
    /// Silicon can't show this step.
    Differs(Box<Difference>),
    /// It can't be judged here, or not to its end.
    Unjudged(String),
}

/// Which views of the inside were compared, and why the other was not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// What the kernel's trace tells, and what it counts.
    Both,
    /// What its trace tells.
    Events(String),
    /// What it counts.
    Statistics(String),
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Both => f.write_str("events and statistics"),
            Self::Events(why) => write!(f, "events only: {why}"),
            Self::Statistics(why) => write!(f, "statistics only: {why}"),
        }
    }
}

/// What came of comparing what the MMUs did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inside {
    /// The model did all that the kernel did, as far as this view shows.
    Agrees(Agreed, View),
    /// It did not.
    Differs(Unlike),
    /// Nothing was compared, for this reason.
    NotCompared(String),
}

/// A run with its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The run, without the axes that mean nothing to a real KVM.
    pub run: RunConfig,
    /// What the steps showed.
    pub answer: Answer,
    /// Steps that agree, by who carried them out.
    pub agreed: BTreeMap<Witness, usize>,
    /// What the MMUs did.
    pub inside: Inside,
    /// Known differences from silicon that were met: both show them, or the rest agrees.
    pub known: BTreeSet<&'static str>,
}

/// The runs of a scenario that a real KVM can be asked for, each once: the axes of history mean nothing to it, and those of
/// nested guests nothing to a run that enters none.
#[must_use]
pub fn runs(scenario: &Scenario, here: &Here) -> Vec<RunConfig> {
    let mut runs: Vec<RunConfig> = Vec::new();
    for run in scenario.runs().0.into_iter().filter(|run| here.has(run)) {
        let run = RunConfig { at: None, with: Vec::new(), without: Vec::new(), ..run };
        let nests = kvm::enters(scenario, &run);
        let known = |other: &RunConfig| {
            let same = other.vendor == run.vendor && other.steps == run.steps;
            same && (!nests || (other.nested_tdp, other.vpid) == (run.nested_tdp, run.vpid))
        };
        if !runs.iter().any(known) {
            runs.push(run);
        }
    }
    runs
}

/// Takes a run on this machine's KVM and compares it.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn check(scenario: &Scenario, run: &RunConfig, here: &Here) -> Result<Row, SimError> {
    judge(scenario, run, here, judged(recording::record(scenario, run))?)
}

/// Compares a run that a real KVM took, or says why it took none.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn judge(
    scenario: &Scenario,
    run: &RunConfig,
    here: &Here,
    recording: Result<Recording, String>,
) -> Result<Row, SimError> {
    let unjudged = |why: String| Row {
        run: run.clone(),
        agreed: BTreeMap::new(),
        known: BTreeSet::new(),
        inside: Inside::NotCompared(why.clone()),
        answer: Answer::Unjudged(why),
    };
    let recording = match recording {
        Ok(recording) => recording,
        Err(why) => return Ok(unjudged(why)),
    };
    if recording.shown.is_empty() && recording.stopped.as_deref() != Some(kvm::NO_GATE) {
        return Ok(unjudged(recording.stopped.unwrap_or_else(|| "no step".to_owned())));
    }
    let endless = never_returns(scenario, run, here, &recording)?;
    let inside = inside(scenario, run, here, &recording, endless.as_ref())?;
    let Outside { answer, agreed, known } = outside(scenario, run, here, &recording, endless.as_ref())?;
    Ok(Row { run: run.clone(), answer, agreed, inside, known })
}

/// A run as the model takes it: at the kernel's point of history, on a processor with the caches of the one there.
#[must_use]
pub fn model(scenario: &Scenario, run: &RunConfig, here: &Here) -> (Scenario, RunConfig) {
    let nested_tdp = run.nested_tdp && here.tdp;
    let mut model = RunConfig { at: Some(here.point.clone()), tdp: here.tdp, nested_tdp, ..run.clone() };
    model.plants.extend(here.plants.iter().cloned());
    let mut scenario = scenario.clone();
    scenario.machine.tlb = here.tlb;
    (scenario, model)
}

/// Where the model shows the same as the kernel from step to step, what is known to differ from silicon there.
fn known_of_both(
    scenario: &Scenario,
    run: &RunConfig,
    here: &Here,
    recording: &Recording,
) -> Result<Option<Transparency>, SimError> {
    let (ours, run) = model(scenario, run, here);
    let Ok(model) = judged(engine::run_on(Kind::Sim, &ours, &run, Detail::Nothing))? else { return Ok(None) };
    let same = |(ours, theirs): (&Shown, &Shown)| ours.number == theirs.number && ours.observed.same(&theirs.observed);
    if model.shown.len() != recording.shown.len() || !model.shown.iter().zip(&recording.shown).all(same) {
        return Ok(None);
    }
    let both = judged(transparency::judge(scenario, &run, &model))?;
    Ok(both.ok().filter(|both| matches!(both, Transparency::Transparent { .. })))
}

/// What came of comparing what the steps showed: the fields of a [`Row`].
struct Outside {
    answer: Answer,
    agreed: BTreeMap<Witness, usize>,
    known: BTreeSet<&'static str>,
}

/// Compares what the steps showed.
fn outside(
    scenario: &Scenario,
    run: &RunConfig,
    here: &Here,
    recording: &Recording,
    endless: Option<&Endless>,
) -> Result<Outside, SimError> {
    let transparency = match judged(transparency::compare(scenario, run, &recording.shown))? {
        Ok(Transparency::Differs(difference)) => {
            known_of_both(scenario, run, here, recording)?.unwrap_or(Transparency::Differs(difference))
        }
        Ok(transparency) => transparency,
        Err(why) => {
            return Ok(Outside { answer: Answer::Unjudged(why), agreed: BTreeMap::new(), known: BTreeSet::new() });
        }
    };
    let mut known = match &transparency {
        Transparency::Transparent { known } => known.clone(),
        Transparency::Differs(_) | Transparency::Unjudged { .. } => BTreeSet::new(),
    };
    let (answer, compared) = match transparency {
        Transparency::Differs(difference) => {
            let before = recording.shown.iter().take_while(|shown| shown.number < difference.number).count();
            (Answer::Differs(difference), before)
        }
        Transparency::Unjudged { judged, error } => (Answer::Unjudged(reason(&error)), judged),
        Transparency::Transparent { .. } => match &recording.stopped {
            None => (Answer::Agrees, recording.shown.len()),
            Some(why) => match endless {
                Some(endless) => {
                    known.extend(&endless.known);
                    (Answer::Agrees, recording.shown.len())
                }
                None => (Answer::Unjudged(why.clone()), recording.shown.len()),
            },
        },
    };
    let mut agreed = BTreeMap::new();
    for shown in recording.shown.iter().take(compared) {
        *agreed.entry(here.engines.witness(&scenario.steps[shown.index])).or_default() += 1;
    }
    Ok(Outside { answer, agreed, known })
}

/// A run of the model that comes to no gate.
struct Endless {
    model: Outcome,
    /// The step that does not end, from 1.
    step: u32,
    /// The kernel's bugs that the model met in that step.
    known: BTreeSet<&'static str>,
}

/// The model's run, where neither the kernel nor the model comes to a gate in the same step, and the model has a name for why. Without
/// one it may as well be this machine's load that the kernel took too long.
fn never_returns(
    scenario: &Scenario,
    run: &RunConfig,
    here: &Here,
    recording: &Recording,
) -> Result<Option<Endless>, SimError> {
    if recording.stopped.as_deref() != Some(kvm::NO_GATE) {
        return Ok(None);
    }
    let (ours, run) = model(scenario, run, here);
    let Ok(model) = judged(engine::run_on(Kind::Sim, &ours, &run, Detail::Transitions))? else { return Ok(None) };
    if !matches!(model.stopped, Some(SimError::Runaway { .. })) || model.shown.len() != recording.shown.len() {
        return Ok(None);
    }
    let step = model.shown.len() as u32 + 1;
    let named = model.findings.iter().filter(|finding| finding.step == step).filter_map(|finding| finding.known);
    let known: BTreeSet<_> = named.collect();
    Ok((!known.is_empty()).then_some(Endless { model, step, known }))
}

/// Compares what the MMUs did, where the guest's kernel leaves tables and the scenario's pages alone: one that is emulated
/// reaches them without any shadow page.
fn inside(
    scenario: &Scenario,
    run: &RunConfig,
    here: &Here,
    recording: &Recording,
    endless: Option<&Endless>,
) -> Result<Inside, SimError> {
    let not = |why: &str| Ok(Inside::NotCompared(why.to_owned()));
    let by_kernel = |index: &usize| {
        let step = &scenario.steps[*index];
        here.engines.witness(step) == Witness::Emulator && touches_memory(&step.action)
    };
    if recording.stopped.is_some() && endless.is_none() {
        return not("the run does not come to its end here");
    }
    if run.steps.iter().any(by_kernel) {
        return not("the guest's kernel touches tables or pages, by emulation");
    }
    let (ours, by) = model(scenario, run, here);
    let finished = match endless {
        Some(_) => None,
        None => match judged(engine::run_on(Kind::Sim, &ours, &by, Detail::Transitions))? {
            Ok(model) if model.stopped.is_none() => Some(model),
            Ok(_) => return not("the model does not come to the end of the run"),
            Err(why) => return not(&why),
        },
    };
    let Some(model) = finished.as_ref().or(endless.map(|endless| &endless.model)) else {
        return Err(SimError::internal("a run of the model that neither ends nor does not"));
    };
    let on_processor = |index: &usize| here.engines.witness(&scenario.steps[*index]) == Witness::Processor;
    let runs: Vec<bool> = run.steps.iter().map(on_processor).collect();
    if !runs.contains(&true) {
        return not("no step runs on the processor");
    }
    let parted = match parting(scenario, &by, model, recording)? {
        Ok(parted) => parted,
        Err(unlike) => return Ok(Inside::Differs(unlike)),
    };
    let never = || endless.map(|endless| Until::NeverReturns(endless.step));
    let until = parted.map(Until::ChoseOtherwise).or_else(never);
    let parted = until.map(Until::step);
    if parted == Some(1) {
        return not("it would end before the first step");
    }
    let before = |all: &[Did]| -> Vec<Did> {
        all.iter().take_while(|did| parted.is_none_or(|number| **did != Did::BeginStep(number))).copied().collect()
    };
    let events = match &recording.inside {
        // A new VM that runs anything makes a root; where none is told, nothing is.
        Ok(kernel) if !kernel.iter().any(|did| matches!(did, Did::Make(_))) => {
            Err("the kernel's trace tells of no page".to_owned())
        }
        Ok(kernel) => Ok(compare_events(&before(kernel), &before(&Did::all(model)), here, &runs)),
        Err(why) => Err(why.clone()),
    };
    let counts = match (&recording.counted, &model.told) {
        (Ok(kernel), Ok(told)) => Ok(counts::compare(kernel, &Counted::of(told), &settled(here, &runs, parted), here)),
        (Err(why), _) | (_, Err(why)) => Err(why.clone()),
    };
    Ok(match both(events, counts) {
        Inside::Agrees(agreed, view) => Inside::Agrees(Agreed { until, ..agreed }, view),
        other => other,
    })
}

fn compare_events(kernel: &[Did], model: &[Did], here: &Here, runs: &[bool]) -> Result<Agreed, Unlike> {
    match here.engines {
        Engines::Hardware(_) => sequence::compare(kernel, model, here.rules()),
        Engines::Split => pages::compare(&pages::spans(kernel, runs), &pages::spans(model, runs)),
    }
}

/// The moments, before the first step and after each, at which counts are compared: behind a step that is emulated something may
/// still be to do.
fn settled(here: &Here, runs: &[bool], parted: Option<u32>) -> Vec<bool> {
    let before = here.engines != Engines::Split;
    let all = (0..).zip(std::iter::once(before).chain(runs.iter().copied()));
    all.map(|(step, settled)| settled && parted.is_none_or(|number| step < number)).collect()
}

/// The first step in which the kernel's silicon chose otherwise than the model's: a translation that was stale for one was not for
/// the other, and from there on their MMUs have other things to do.
///
/// # Errors
/// If silicon can't show what the model showed.
fn parting(
    scenario: &Scenario,
    run: &RunConfig,
    model: &Outcome,
    recording: &Recording,
) -> Result<Result<Option<u32>, Unlike>, SimError> {
    let both = recording.shown.iter().zip(&model.shown);
    let Some((theirs, ours)) = both.into_iter().find(|(theirs, ours)| !theirs.observed.same(&ours.observed)) else {
        return Ok(Ok(None));
    };
    if let Ok(Transparency::Differs(_)) = judged(transparency::judge(scenario, run, model))? {
        let kernel = format!("step {}: saw {}", theirs.number, theirs.observed);
        return Ok(Err(Unlike { kernel, model: format!("saw {}, which silicon can't show", ours.observed) }));
    }
    Ok(Ok(Some(theirs.number)))
}

/// What two views say together: one that differs is a finding, one that is not there is told.
fn both(events: Result<Result<Agreed, Unlike>, String>, counts: Result<Result<usize, Unlike>, String>) -> Inside {
    match (events, counts) {
        (Ok(Err(unlike)), _) | (_, Ok(Err(unlike))) => Inside::Differs(unlike),
        (Ok(Ok(agreed)), Ok(Ok(counts))) => Inside::Agrees(Agreed { counts, ..agreed }, View::Both),
        (Ok(Ok(agreed)), Err(why)) => Inside::Agrees(agreed, View::Events(why)),
        (Err(why), Ok(Ok(counts))) => Inside::Agrees(Agreed { counts, ..Agreed::default() }, View::Statistics(why)),
        (Err(why), Err(also)) => Inside::NotCompared(format!("{why}; {also}")),
    }
}

const fn touches_memory(action: &Action) -> bool {
    matches!(
        action,
        Action::Read { .. }
            | Action::Write { .. }
            | Action::Exec { .. }
            | Action::Map { .. }
            | Action::Unmap { .. }
            | Action::SetEntry { .. }
            | Action::Link { .. }
            | Action::ReadEntry(_)
    )
}

/// A result, or why there is none here; only a broken rule of the simulator is an error.
fn judged<T>(result: Result<T, SimError>) -> Result<Result<T, String>, SimError> {
    match result {
        Err(SimError::Internal(what)) => Err(SimError::Internal(what)),
        other => Ok(other.map_err(|error| reason(&error))),
    }
}

fn reason(error: &SimError) -> String {
    match error {
        SimError::Unmodelled { what } => what.clone(),
        other => other.to_string(),
    }
}
