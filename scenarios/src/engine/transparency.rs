//! Transparency: whether bare silicon can show what a run showed. No guest can tell then that a hypervisor is there.
//!
//! The bare machine takes the same steps. While it shows the same by what its own caches hold, there is nothing to
//! prove. Where it does not, the run is searched for another execution of the silicon: at each step any translation that
//! the architecture permits may be used, and from each state that shows the same the search goes on, deepest first, so
//! that a store through a stale translation that nobody could see is followed too. Only what no execution shows is a
//! [`Difference`], told with both permitted sets. Left out: the order in which vCPUs see each other's stores within a step
//! (a step is atomic on every backend).

use super::known::{self, CAUSES, Cause, Situation, Then};
use super::possible::in_order;
use super::{Engine, Mark, Outcome, Shown, Watch, run_on};
use crate::backend::{Backend, Kind, sim};
use crate::file::{Actor, Observation, RunConfig, Scenario, Step, Vendor};
use crate::image::layout::Seat;
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::{BTreeMap, BTreeSet};

/// Steps of one search.
const MOST_TRIALS: usize = 5_000;

/// What the comparison with bare silicon gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transparency {
    /// Bare silicon can show all of it, but for the known differences.
    Transparent {
        /// The known differences that it met.
        known: BTreeSet<&'static str>,
    },
    /// Bare silicon can't show this step.
    Differs(Box<Difference>),
    /// Bare silicon can show the first steps, as many as the number says; then there is nothing to compare with.
    Unjudged {
        /// Steps that were compared.
        judged: usize,
        /// Why not more.
        error: SimError,
    },
}

/// The first step that bare silicon can't show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step's number in the run, from 1.
    pub number: u32,
    /// Its index in the scenario.
    pub index: usize,
    /// What it showed.
    pub seen: Observation,
    /// What bare silicon can show, by any translation that the architecture permits, after any execution that shows the
    /// same up to here.
    pub bare: Vec<Observation>,
    /// What the model can show from the state that it was in, by any translation that its processors may hold.
    pub model: Vec<Observation>,
}

/// Compares a run on the `sim` backend with bare silicon.
///
/// # Errors
/// If a machine can't be built or breaks one of the simulator's own rules.
pub fn judge(scenario: &Scenario, run: &RunConfig, outcome: &Outcome) -> Result<Transparency, SimError> {
    let judged = compare(scenario, run, &outcome.shown)?;
    if let Transparency::Differs(_) = &judged {
        let changes = sim::changes(run)?;
        let causes: Vec<_> = CAUSES.iter().filter(|cause| (cause.may_be)(run) && changes.has(cause.change)).collect();
        // One cause goes before two together.
        let mut sets: Vec<u32> = (1..1 << causes.len()).collect();
        sets.sort_by_key(|set| set.count_ones());
        for set in sets {
            let chosen: Vec<_> =
                (0..).zip(&causes).filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, cause)| *cause).collect();
            if let Some(known) = known_without(scenario, run, &chosen)? {
                return Ok(Transparency::Transparent { known });
            }
        }
    }
    Ok(judged)
}

/// The known differences of a run that differs from bare silicon, if without some causes it does not.
fn known_without(
    scenario: &Scenario,
    run: &RunConfig,
    causes: &[&Cause],
) -> Result<Option<BTreeSet<&'static str>>, SimError> {
    let mut without = run.clone();
    without.without.extend(causes.iter().map(|cause| cause.change.info().id.to_owned()));
    let outcome = run_on(Kind::Sim, scenario, &without, Detail::Nothing)?;
    Ok(match compare(scenario, &without, &outcome.shown)? {
        Transparency::Transparent { mut known } if outcome.stopped.is_none() => {
            known.extend(causes.iter().map(|cause| cause.name));
            Some(known)
        }
        _ => None,
    })
}

/// Compares what a run showed on any machine with bare silicon.
///
/// # Errors
/// If a machine can't be built or breaks one of the simulator's own rules.
pub fn compare(scenario: &Scenario, run: &RunConfig, shown: &[Shown]) -> Result<Transparency, SimError> {
    // What the silicon chose below a hypervisor, bare silicon need not choose.
    let own = RunConfig { choices: BTreeMap::new(), ..run.clone() };
    let bare = run_on(Kind::Bare, scenario, &own, Detail::Nothing)?;
    let agreeing =
        shown.iter().zip(&bare.shown).take_while(|(here, there)| here.observed.same(&there.observed)).count();
    match (bare.stopped, shutdown(run, &shown[..agreeing])) {
        _ if agreeing == shown.len() => Ok(Transparency::Transparent { known: BTreeSet::new() }),
        (Some(error), _) if agreeing == bare.shown.len() => ended(agreeing, error),
        (_, Some(at)) => ended(at + 1, SimError::unmodelled("a processor that goes on after a shutdown")),
        _ => Search::new(scenario, run, shown)?.run(),
    }
}

/// The first shutdown after which nothing is comparable: what AMD's processors save then is undefined (APM2 15.14.3).
fn shutdown(run: &RunConfig, shown: &[Shown]) -> Option<usize> {
    let shut_down = |shown: &Shown| shown.observed == Observation::Exit("shutdown".to_owned());
    (run.vendor == Vendor::Amd).then(|| shown.iter().position(shut_down))?
}

fn ended(judged: usize, error: SimError) -> Result<Transparency, SimError> {
    match error {
        SimError::Unmodelled { .. } | SimError::Runaway { .. } => Ok(Transparency::Unjudged { judged, error }),
        SimError::Internal(_) => Err(error),
    }
}

/// The search for an execution of bare silicon that shows what a run showed.
struct Search<'a> {
    engine: Engine<'a>,
    notes: Notes<'a>,
}

/// What is sought, and what was found on the way.
struct Notes<'a> {
    scenario: &'a Scenario,
    run: &'a RunConfig,
    shown: &'a [Shown],
    /// States from which the search went on already, as (step, hash).
    met: BTreeSet<(usize, u64)>,
    /// The deepest step that was taken, and what it showed.
    deepest: (usize, Vec<Observation>),
    trials: usize,
    /// The known differences that were met on the way.
    known: BTreeSet<&'static str>,
}

/// A state on the path of the search.
struct Node {
    /// Steps taken so far.
    depth: usize,
    state: Mark,
    /// States behind the next step that show the same and were not gone on from yet.
    ways: Vec<Mark>,
    /// How the next step was taken already.
    taken: Taken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Not,
    ByItsCaches,
    InEveryWay,
}

impl Node {
    const fn new(depth: usize, state: Mark) -> Self {
        Self { depth, state, ways: Vec::new(), taken: Taken::Not }
    }
}

impl<'a> Search<'a> {
    fn new(scenario: &'a Scenario, run: &'a RunConfig, shown: &'a [Shown]) -> Result<Self, SimError> {
        let engine = watched(Kind::Bare, scenario, run)?;
        let (met, known, deepest) = (BTreeSet::new(), BTreeSet::new(), (0, Vec::new()));
        Ok(Self { engine, notes: Notes { scenario, run, shown, met, deepest, trials: 0, known } })
    }

    fn run(mut self) -> Result<Transparency, SimError> {
        let mut path = vec![Node::new(0, self.engine.mark())];
        while let Some(node) = path.last_mut() {
            if self.notes.trials > MOST_TRIALS {
                let error = SimError::unmodelled(format!("more than {MOST_TRIALS} ways of translating in one run"));
                return Ok(Transparency::Unjudged { judged: self.notes.deepest.0, error });
            }
            match self.next(node) {
                Ok(Some(node)) if node.depth == self.notes.shown.len() => {
                    return Ok(Transparency::Transparent { known: self.notes.known });
                }
                Ok(Some(node)) => path.push(node),
                Ok(None) => {
                    path.pop();
                }
                Err(error) => return ended(path.len() - 1, error),
            }
        }
        self.notes.difference(&self.engine)
    }

    /// The next node behind one whose step shows the same, if any is left.
    fn next(&mut self, node: &mut Node) -> Result<Option<Node>, SimError> {
        let step = self.notes.step(node.depth);
        loop {
            if let Some(state) = node.ways.pop() {
                return Ok(Some(Node::new(node.depth + 1, state)));
            }
            match node.taken {
                Taken::Not => {
                    node.taken = Taken::ByItsCaches;
                    self.engine.back_to(&node.state);
                    let observed = self.engine.plain_step(step)?;
                    node.ways.extend(self.notes.weigh(&self.engine, node.depth, observed));
                }
                Taken::ByItsCaches => {
                    node.taken = Taken::InEveryWay;
                    if step.actor != Actor::Host {
                        self.every_way(node, step)?;
                    }
                }
                Taken::InEveryWay => return Ok(None),
            }
        }
    }

    fn every_way(&mut self, node: &mut Node, step: &Step) -> Result<(), SimError> {
        let Self { engine, notes } = self;
        let Node { depth, state, ways, .. } = node;
        let left = MOST_TRIALS.saturating_sub(notes.trials);
        engine.every_way(state, step, left, |observed, engine| match observed {
            Ok(observed) => {
                engine.backend.choose_no_more(step.vcpu)?;
                ways.extend(notes.weigh(engine, *depth, observed));
                Ok(())
            }
            // A stale translation may lead where nothing can be told; that is no execution to compare with.
            Err(SimError::Internal(what)) => Err(SimError::Internal(what)),
            Err(_) => Ok(()),
        })?;
        ways.reverse();
        Ok(())
    }
}

impl<'a> Notes<'a> {
    fn step(&self, depth: usize) -> &'a Step {
        &self.scenario.steps[self.shown[depth].index]
    }

    /// Notes what a step showed; the state behind it, which the engine is in, if the search is to go on from there.
    fn weigh(&mut self, engine: &Engine<'_>, depth: usize, observed: Observation) -> Option<Mark> {
        self.trials += 1;
        let same = observed.same(&self.shown[depth].observed);
        let agrees = same || self.is_known(engine, depth, &observed, Then::GoesOn);
        if depth > self.deepest.0 {
            self.deepest = (depth, Vec::new());
        }
        if depth == self.deepest.0 && !self.deepest.1.contains(&observed) {
            self.deepest.1.push(observed);
        }
        let Backend::Bare(bare) = &engine.backend else { return None };
        (agrees && self.met.insert((depth, bare.architectural_hash()))).then(|| engine.mark())
    }

    /// Whether what a step showed differs from what bare silicon shows in a known way.
    fn is_known(&mut self, engine: &Engine<'_>, depth: usize, bare: &Observation, then: Then) -> bool {
        let (shown, before, step) = (&self.shown[depth], &self.shown[..depth], self.step(depth));
        let mode = engine.mode_of(Seat { vcpu: step.vcpu, level: step.actor });
        let (scenario, run) = (self.scenario, self.run);
        let name = known::name(&Situation { scenario, run, before, step, mode, seen: &shown.observed, bare }, then);
        self.known.extend(name);
        name.is_some()
    }

    /// No execution shows the deepest step: a known difference, behind which nothing can be compared, or a new one.
    fn difference(mut self, engine: &Engine<'_>) -> Result<Transparency, SimError> {
        let (depth, bare) = std::mem::take(&mut self.deepest);
        if bare.iter().any(|bare| self.is_known(engine, depth, bare, Then::Ends)) {
            return Ok(Transparency::Transparent { known: self.known });
        }
        let Shown { number, index, observed: seen, .. } = self.shown[depth].clone();
        let model = model_can_show(self.scenario, self.run, &self.shown[..=depth])?;
        Ok(Transparency::Differs(Box::new(Difference { number, index, seen, bare: in_order(bare), model })))
    }
}

/// A machine whose permitted sets are kept from the start.
fn watched<'a>(kind: Kind, scenario: &'a Scenario, run: &'a RunConfig) -> Result<Engine<'a>, SimError> {
    Engine::new(kind, scenario, run, Detail::Nothing, Watch::FromTheStart)
}

/// What the model can show in the last of some steps.
fn model_can_show(scenario: &Scenario, run: &RunConfig, shown: &[Shown]) -> Result<Vec<Observation>, SimError> {
    let Some((last, before)) = shown.split_last() else { return Ok(Vec::new()) };
    let mut engine = watched(Kind::Sim, scenario, run)?;
    for step in before {
        engine.plain_step(&scenario.steps[step.index])?;
    }
    let mut seen = vec![last.observed.clone()];
    let start = engine.mark();
    engine.every_way(&start, &scenario.steps[last.index], MOST_TRIALS, |observed, _| {
        seen.extend(observed.ok());
        Ok(())
    })?;
    Ok(in_order(seen))
}
