//! A scenario as a game: positions that a machine can be in, and the steps that can be taken from each. A search plays it.

use super::{Chair, Engine, Mark, Watch};
use crate::backend::{Backend, Kind};
use crate::file::{Actor, Observation, RunConfig, Scenario};
use crate::image::layout;
use mmu::audit::Finding;
use sim_core::event::Detail;
use sim_core::{SimError, hash};

/// A state from which a run can go on.
#[derive(Clone)]
pub struct Position(Box<Mark>);

/// What a step showed.
pub struct Shown {
    /// What the actor observed.
    pub observed: Observation,
    /// What the audits found during it.
    pub findings: Vec<Finding>,
}

/// A machine that goes from position to position.
pub struct Board<'a>(Engine<'a>);

impl<'a> Board<'a> {
    /// The machine before the first step, on the `sim` backend.
    ///
    /// # Errors
    /// If it can't be built.
    pub fn new(scenario: &'a Scenario, run: &'a RunConfig) -> Result<Self, SimError> {
        Ok(Self(Engine::new(Kind::Sim, scenario, run, Detail::Nothing, Watch::AsAsked)?))
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position(Box::new(self.0.mark()))
    }

    /// The canonical digest of where it is.
    ///
    /// # Errors
    /// If the machine has none.
    pub fn key(&self) -> Result<u64, SimError> {
        let Backend::Sim(sim) = &self.0.backend else {
            return Err(SimError::internal("a search on the bare machine"));
        };
        let machine = sim.machine().canonical(layout::page_kind)?;
        let chairs: Vec<_> = self.0.chairs.iter().map(Chair::digest).collect();
        Ok(hash::digest(&(machine, chairs)))
    }

    /// Whether a step can be taken at a position: those of whoever runs can, and the host's.
    #[must_use]
    pub fn may_take(&self, position: &Position, index: usize) -> bool {
        let Some(step) = self.0.scenario.steps.get(index) else { return false };
        let level = position.0.chairs.get(usize::from(step.vcpu)).map(|chair| chair.level);
        step.actor == Actor::Host || Some(step.actor) == level
    }

    /// Takes a step from a position. The machine is behind it then.
    ///
    /// # Errors
    /// If it can't be taken there, or needs something that is not modelled.
    pub fn take(&mut self, from: &Position, number: u32, index: usize) -> Result<Shown, SimError> {
        self.0.back_to(&from.0);
        if let Backend::Sim(sim) = &mut self.0.backend {
            sim.forget_findings();
        }
        let (observed, _) = self.0.step(number, index)?;
        Ok(Shown { observed, findings: self.0.backend.findings().to_vec() })
    }
}

impl Chair {
    /// What later steps depend on.
    fn digest(&self) -> u64 {
        let Self { level, interrupted, l1_mode, guest, wanted, vmcs, vmcb, launched, saved, pauses, paused } = self;
        let who = (level, interrupted, l1_mode, guest, launched, pauses);
        let saved = saved.as_ref().and_then(|(saved, mode)| Some((saved.sim()?, mode)));
        let paused = paused.as_ref().map(|step| &step.text);
        hash::digest(&(who, wanted, vmcs, vmcb, saved, paused))
    }
}
