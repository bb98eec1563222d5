//! A scenario as a game: positions that a machine can be in, and the steps that can be taken from each. A search plays it.
//!
//! Where the silicon may choose, a step has more ways than the one by what the modelled caches hold: each access may use
//! any translation that the architecture permits, also one that a speculative walk cached. After such a step the
//! modelled caches are empty, which is permitted too.

pub use super::possible::Left;
use super::step::is_of_user;
use super::{Chair, Engine, Mark, Watch};
use crate::backend::{Backend, Kind};
use crate::file::{Action, Actor, HostStep, Observation, RunConfig, Scenario, Vendor};
use crate::image::layout::{self, Seat};
use mmu::audit::Finding;
use sim_core::addr::PAGE_BYTES;
use sim_core::event::Detail;
use sim_core::{Gpa, Gva, SimError, hash};
use std::collections::BTreeSet;

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

/// Whether the silicon may use any translation that the architecture permits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Silicon {
    /// It uses what its modelled caches hold.
    #[default]
    Modelled,
    /// It may use any.
    Free,
}

/// A machine that goes from position to position.
pub struct Board<'a> {
    engine: Engine<'a>,
    /// Pages whose translations tell states apart, where the silicon may choose.
    pages: Option<BTreeSet<Gva>>,
}

impl<'a> Board<'a> {
    /// The machine before the first step, on the `sim` backend.
    ///
    /// # Errors
    /// If it can't be built.
    pub fn new(scenario: &'a Scenario, run: &'a RunConfig, silicon: Silicon) -> Result<Self, SimError> {
        let watch = match silicon {
            Silicon::Modelled => Watch::AsAsked,
            Silicon::Free => Watch::FromTheStart,
        };
        let engine = Engine::new(Kind::Sim, scenario, run, Detail::Nothing, watch)?;
        let pages = (silicon == Silicon::Free).then(|| pages(&engine));
        Ok(Self { engine, pages })
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position(Box::new(self.engine.mark()))
    }

    /// The canonical digest of where it is.
    ///
    /// # Errors
    /// If the machine has none.
    pub fn key(&self) -> Result<u64, SimError> {
        let Backend::Sim(sim) = &self.engine.backend else {
            return Err(SimError::internal("a search on the bare machine"));
        };
        let machine = match &self.pages {
            None => sim.machine().canonical(layout::page_kind)?,
            Some(pages) => sim.machine().canonical_remembering(layout::page_kind, pages)?,
        };
        let chairs: Vec<_> = self.engine.chairs.iter().map(Chair::digest).collect();
        // A store that faults leaves in the image what it did not leave in memory.
        let edits: Vec<_> = self.engine.image.tables.edits().collect();
        Ok(hash::digest(&(machine, chairs, edits)))
    }

    /// Whether a step can be taken at a position: those of whoever runs can, and the host's.
    #[must_use]
    pub fn may_take(&self, position: &Position, index: usize) -> bool {
        let Some(step) = self.engine.scenario.steps.get(index) else { return false };
        let level = position.0.chairs.get(usize::from(step.vcpu)).map(|chair| chair.level);
        step.actor == Actor::Host || Some(step.actor) == level
    }

    /// Takes a step from a position. The machine is behind it then.
    ///
    /// # Errors
    /// If it can't be taken there, or needs something that is not modelled.
    pub fn take(&mut self, from: &Position, number: u32, index: usize) -> Result<Shown, SimError> {
        self.go_to(from);
        let (observed, _) = self.engine.step(number, index)?;
        Ok(self.shown(observed))
    }

    /// The same by choices of the silicon: the first of them as the answers say, the others by what walks find.
    ///
    /// # Errors
    /// If the machine has no such processor.
    pub fn take_freely(
        &mut self,
        from: &Position,
        number: u32,
        index: usize,
        answers: Vec<u32>,
    ) -> Result<(Result<Shown, SimError>, Left), SimError> {
        self.go_to(from);
        let (observed, left) = self.engine.step_freely(number, index, answers)?;
        Ok((observed.map(|observed| self.shown(observed)), left))
    }

    /// Goes back to a position.
    pub fn go_to(&mut self, position: &Position) {
        self.engine.back_to(&position.0);
        if let Backend::Sim(sim) = &mut self.engine.backend {
            sim.forget_findings();
        }
    }

    fn shown(&self, observed: Observation) -> Shown {
        Shown { observed, findings: self.engine.backend.findings().to_vec() }
    }
}

/// The pages that steps translate: what spaces map and steps name, the tables that they edit, and what every seat runs on.
fn pages(engine: &Engine<'_>) -> BTreeSet<Gva> {
    let Engine { scenario, run, .. } = engine;
    let mapped = scenario.spaces.values().flat_map(|space| &space.map).map(|mapping| mapping.from.0);
    let named = scenario.steps.iter().flat_map(|step| named(&step.action)).flatten();
    let tables = scenario.steps.iter().flat_map(|step| engine.entries_on_the_way(&step.action));
    let resident = (0..scenario.machine.vcpus).flat_map(|vcpu| resident(scenario, run, vcpu));
    let all = mapped.chain(named).chain(tables.chain(resident).map(|page| page.0));
    all.map(|address| Gva(address & !(PAGE_BYTES - 1))).collect()
}

/// The first and the last byte of what a step uses at an address that it names.
const fn named(action: &Action) -> Option<[u64; 2]> {
    match action {
        Action::Read { at, .. } | Action::Write { at, .. } => Some([*at, at.saturating_add(7)]),
        Action::Exec { at, .. } => Some([*at, *at]),
        Action::Map { mapping, .. } | Action::NestedMap { mapping, .. } => Some([mapping.from.0, mapping.from.0]),
        _ => None,
    }
}

/// The pages of one vCPU that its steps use, whatever they name.
fn resident(scenario: &Scenario, run: &RunConfig, vcpu: u8) -> Vec<Gpa> {
    let takes = |what: &dyn Fn(&Action) -> bool| scenario.steps.iter().any(|step| what(&step.action));
    let has_smm = takes(&|action| *action == Action::Host(HostStep::Smi));
    let levels = [(Actor::L1, true), (Actor::L2, !scenario.guests.is_empty()), (Actor::Smm, has_smm)];
    let seats = levels.into_iter().filter(|(_, runs)| *runs).map(|(level, _)| Seat { vcpu, level });
    let mut pages = vec![layout::GDT];
    for seat in seats {
        pages.extend([seat.slot(), seat.stack(), seat.idt(), seat.data()]);
        if takes(&is_of_user) {
            pages.extend([seat.user_slot(), seat.user_stack()]);
        }
    }
    if has_smm {
        pages.push(Gpa(layout::smbase(vcpu)).offset(cpu::smm::ENTRY));
    }
    if takes(&|action| *action == Action::Host(HostStep::InitVcpu)) {
        pages.push(layout::start_up(vcpu));
    }
    // L1 writes VMCBs by stores, and VMCSs by VMWRITE.
    if run.vendor == Vendor::Amd {
        pages.extend((0..scenario.guests.len()).map(|guest| layout::region(vcpu, guest)));
    }
    pages
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
