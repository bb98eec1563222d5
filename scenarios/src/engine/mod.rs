//! The engine: takes one run of a scenario through its steps on a backend, and notes what each step showed.

pub mod board;
mod edit;
pub mod guest_state;
mod host;
mod known;
mod pause;
mod possible;
mod shared;
mod step;
pub mod transparency;

use crate::backend::{Backend, Kind, Saved};
use crate::file::{Actor, Mode, Observation, RunConfig, Scenario};
use crate::image::Image;
use crate::image::descriptors;
use crate::image::layout::{self, Seat};
use crate::image::tables::Tables;
use crate::snippet;
use guest_state::{Context, Wanted};
use hypervisor::Sregs;
use mmu::audit::Finding;
use mmu::stats::{Stat, Stats};
use serde::{Deserialize, Serialize};
use shared::Shared;
use sim_core::arch::rflags::Rflags;
use sim_core::event::{Detail, Event, Record};

use sim_core::{Gpa, SimError};
use std::collections::{BTreeMap, BTreeSet};

/// What one step showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The step's number in the run, from 1.
    pub number: u32,
    /// Its index in the scenario.
    pub index: usize,
    /// What it showed.
    pub observed: Observation,
    /// Where the step says `may` or `never`, on the bare machine: what it can show by any translation that the
    /// architecture permits.
    pub possible: Option<Vec<Observation>>,
}

/// What a run gave.
#[derive(Debug)]
pub struct Outcome {
    /// Where it ran.
    pub backend: Kind,
    /// What the steps showed, as far as the run came.
    pub shown: Vec<Shown>,
    /// What the audits found, in order.
    pub findings: Vec<Finding>,
    /// Every event.
    pub records: Vec<Record>,
    /// Why the run ended early, if it did.
    pub stopped: Option<SimError>,
    /// The state hash at the end.
    pub state: u64,
    /// Core cycles at the end.
    pub cycles: u64,
    /// The hypervisor's counters; nothing on bare silicon.
    pub stats: Stats,
    /// What the hypervisor told of itself before the first step and after each, or why that is not known.
    pub told: Result<Vec<BTreeMap<Stat, u64>>, String>,
    /// Why what the MMU did is not among the events, where it could be.
    pub closed: Option<String>,
}

/// Fields as L1 last wrote them, by guest.
type Written<F> = BTreeMap<String, Shared<BTreeMap<F, u64>>>;

/// What the engine knows of a vCPU.
#[derive(Clone)]
struct Chair {
    /// Who runs.
    level: Actor,
    /// Who ran when an SMI came, while its code runs.
    interrupted: Option<Actor>,
    /// The mode of L1's code.
    l1_mode: Mode,
    /// The nested guest that runs or ran last.
    guest: Option<String>,
    /// Nested guests with every change so far.
    wanted: Shared<BTreeMap<String, Wanted>>,
    /// What L1 wrote in its VMCSs.
    vmcs: Shared<Written<vmx::Field>>,
    /// What L1 wrote in its VMCBs.
    vmcb: Shared<Written<svm::vmcb::Field>>,
    /// Guests whose VMCS is launched.
    launched: BTreeSet<String>,
    /// What userspace saved, and the mode that L1 was in.
    saved: Option<(Saved, Mode)>,
    /// Whether its next fault on some frame is to pause.
    pauses: bool,
    /// The step that is paused.
    paused: Option<Box<crate::file::Step>>,
}

/// A state that a run can go back to.
#[derive(Clone)]
struct Mark {
    backend: Backend,
    chairs: Vec<Chair>,
    tables: Tables,
}

/// Whether a machine keeps what its permitted sets are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Only where the scenario asks for such a set.
    AsAsked,
    /// From the start.
    FromTheStart,
}

/// A run under way.
struct Engine<'a> {
    scenario: &'a Scenario,
    run: &'a RunConfig,
    image: Image,
    backend: Backend,
    chairs: Vec<Chair>,
}

/// Runs one combination of a scenario's matrix on the `sim` backend.
///
/// # Errors
/// If the machine or its image can't be built; what happens later is part of the outcome.
pub fn run(scenario: &Scenario, run: &RunConfig, detail: Detail) -> Result<Outcome, SimError> {
    run_on(Kind::Sim, scenario, run, detail)
}

/// Runs one combination of a scenario's matrix.
///
/// # Errors
/// If the machine or its image can't be built; what happens later is part of the outcome.
pub fn run_on(kind: Kind, scenario: &Scenario, run: &RunConfig, detail: Detail) -> Result<Outcome, SimError> {
    let watch = if run.choices.is_empty() { Watch::AsAsked } else { Watch::FromTheStart };
    let mut engine = Engine::new(kind, scenario, run, detail, watch)?;
    let mut shown = Vec::new();
    let mut stopped = None;
    let mut told = vec![engine.told(detail)];
    for (number, index) in (1..).zip(&run.steps) {
        let taken = match run.choices.get(&number) {
            None => engine.step(number, *index),
            Some(answers) => {
                let (observed, _) = engine.step_freely(number, *index, answers.clone())?;
                observed.map(|observed| (observed, None))
            }
        };
        match taken {
            Ok((observed, possible)) => {
                shown.push(Shown { number, index: *index, observed, possible });
                told.push(engine.told(detail));
            }
            Err(error) => {
                stopped = Some(error);
                break;
            }
        }
    }
    engine.backend.end();
    Ok(Outcome {
        backend: kind,
        shown,
        findings: engine.backend.findings().to_vec(),
        records: engine.backend.records().to_vec(),
        stopped,
        state: engine.backend.state_hash(),
        cycles: engine.backend.cycles(),
        stats: engine.backend.stats(),
        told: told.into_iter().collect(),
        closed: engine.backend.closed(),
    })
}

/// The machine after some steps of a run, or where it stopped before.
///
/// # Errors
/// If it can't be built.
pub fn backend_after(kind: Kind, scenario: &Scenario, run: &RunConfig, steps: usize) -> Result<Backend, SimError> {
    let mut engine = Engine::new(kind, scenario, run, Detail::Nothing, Watch::AsAsked)?;
    for (number, index) in (1..).zip(&run.steps).take(steps) {
        if engine.step(number, *index).is_err() {
            break;
        }
    }
    Ok(engine.backend)
}

/// The machine at the end of a run on the `sim` backend.
///
/// # Errors
/// If the run does not come to its end.
pub fn machine_after(scenario: &Scenario, run: &RunConfig) -> Result<hypervisor::Machine, SimError> {
    let mut engine = Engine::new(Kind::Sim, scenario, run, Detail::Nothing, Watch::AsAsked)?;
    for (number, index) in (1..).zip(&run.steps) {
        engine.step(number, *index)?;
    }
    match engine.backend {
        Backend::Sim(sim) => Ok(sim.machine().clone()),
        _ => Err(SimError::internal("a machine without the hypervisor model")),
    }
}

impl<'a> Engine<'a> {
    fn new(
        kind: Kind,
        scenario: &'a Scenario,
        run: &'a RunConfig,
        detail: Detail,
        watch: Watch,
    ) -> Result<Self, SimError> {
        let image = Image::build(scenario, run)?;
        let mut backend = Backend::new(kind, scenario, run, detail)?;
        if watch == Watch::FromTheStart {
            backend.watch();
        }
        let mode = scenario.spaces.get(&scenario.first_level.space).map_or(Mode::Flat32, |space| space.mode);
        let chairs = (0..scenario.machine.vcpus).map(|_| Chair::new(scenario, mode)).collect();
        let mut engine = Self { scenario, run, image, backend, chairs };
        for (at, bytes) in &engine.image.contents {
            engine.backend.write(*at, bytes)?;
        }
        for vcpu in 0..scenario.machine.vcpus {
            engine.seat_vcpu(vcpu)?;
        }
        Ok(engine)
    }

    /// What the hypervisor tells of itself, in a run that is recorded.
    fn told(&self, detail: Detail) -> Result<BTreeMap<Stat, u64>, String> {
        match detail {
            Detail::Nothing => Err("nothing is recorded".to_owned()),
            _ => self.backend.told(),
        }
    }

    fn mark(&self) -> Mark {
        Mark { backend: self.backend.clone(), chairs: self.chairs.clone(), tables: self.image.tables.clone() }
    }

    fn back_to(&mut self, mark: &Mark) {
        self.backend.clone_from(&mark.backend);
        self.chairs.clone_from(&mark.chairs);
        self.image.tables.clone_from(&mark.tables);
    }

    /// Gives a vCPU its resident code and L1's registers, and lets L1 prepare its nested guests.
    fn seat_vcpu(&mut self, vcpu: u8) -> Result<(), SimError> {
        for level in [Actor::L1, Actor::L2, Actor::Smm] {
            let seat = Seat { vcpu, level };
            for (at, bytes) in snippet::resident(seat)? {
                self.backend.write(at, &bytes)?;
            }
            self.write_idle(seat)?;
        }
        let smm = Seat { vcpu, level: Actor::Smm };
        let handler = snippet::RealModeEntry {
            at: Gpa(layout::smbase(vcpu)).offset(cpu::smm::ENTRY),
            offset: cpu::smm::ENTRY as u16,
        };
        let start_up = snippet::RealModeEntry { at: layout::start_up(vcpu), offset: 0 };
        let mut code = snippet::from_real_mode(smm, handler, snippet::gate::SMM)?;
        code.extend(snippet::from_real_mode(Seat { vcpu, level: Actor::L1 }, start_up, snippet::gate::STARTED)?);
        for (at, bytes) in code {
            self.backend.write(at, &bytes)?;
        }
        let sregs = self.first_registers(vcpu);
        self.backend.begin_step(0, format!("vCPU {vcpu} starts"));
        self.backend.set_sregs(vcpu, &sregs)?;
        self.prepare_guests(vcpu)
    }

    fn write_idle(&mut self, seat: Seat) -> Result<(), SimError> {
        let mode = self.mode_of(seat);
        let (at, bytes) = snippet::Snippet::new(seat, mode)?.finish(snippet::gate::DONE)?;
        self.backend.write(at, &bytes)
    }

    /// The mode of the code that a seat runs.
    fn mode_of(&self, seat: Seat) -> Mode {
        let chair = &self.chairs[usize::from(seat.vcpu)];
        let guest = chair.guest.as_ref().and_then(|name| self.scenario.guests.get(name));
        match (seat.level, guest) {
            (Actor::Smm, _) => Mode::Flat32,
            (Actor::L2, Some(guest)) => self.scenario.spaces.get(&guest.space).map_or(Mode::Flat32, |space| space.mode),
            _ => chair.l1_mode,
        }
    }

    fn first_registers(&self, vcpu: u8) -> Sregs {
        let first = &self.scenario.first_level;
        let mode = self.chairs[usize::from(vcpu)].l1_mode;
        let seat = Seat { vcpu, level: Actor::L1 };
        let (cr0, cr4, efer) = guest_state::registers(mode, self.run.vendor);
        use sim_core::arch::control::{Cr0, Cr4, Efer};
        Sregs {
            segments: descriptors::segments(seat, mode),
            gdtr: descriptors::gdtr(),
            idtr: descriptors::idtr(seat, mode),
            cr0: Cr0::from_bits_retain(first.cr0.apply(cr0.bits())),
            cr2: 0,
            cr3: self.image.roots.get(&first.space).copied().unwrap_or(0),
            cr4: Cr4::from_bits_retain(first.cr4.apply(cr4.bits())),
            cr8: 0,
            efer: Efer::from_bits_retain(first.efer.apply(efer.bits())),
            gprs: [0; 16],
            rip: seat.slot().0,
            rflags: Rflags::FIXED,
        }
    }

    fn context<'b>(&'b self, vcpu: u8, l1: &'b Sregs) -> Context<'b> {
        let l1_mode = self.chairs[usize::from(vcpu)].l1_mode;
        Context { scenario: self.scenario, run: self.run, image: &self.image, vcpu, l1, l1_mode }
    }

    fn guest_number(&self, name: &str) -> usize {
        self.scenario.guests.keys().position(|guest| guest == name).unwrap_or(0)
    }

    /// VMXON and the VMCSs on Intel, the VMCBs in memory on AMD.
    fn prepare_guests(&mut self, vcpu: u8) -> Result<(), SimError> {
        if self.scenario.guests.is_empty() || self.has_no_use_for_guests() {
            return Ok(());
        }
        let l1 = self.backend.sregs(vcpu)?;
        let names: Vec<String> = self.scenario.guests.keys().cloned().collect();
        match self.run.vendor {
            crate::file::Vendor::Intel => self.prepare_vmcss(vcpu, &l1, &names),
            crate::file::Vendor::Amd => {
                for name in names {
                    let wanted = self.chairs[usize::from(vcpu)].wanted[&name].clone();
                    let page = self.context(vcpu, &l1).vmcb_page(&wanted)?;
                    let fields = self.context(vcpu, &l1).vmcb(&wanted)?;
                    self.backend.write(layout::region(vcpu, self.guest_number(&name)), &page)?;
                    self.chairs[usize::from(vcpu)].vmcb.change().insert(name, Shared::new(fields));
                }
                Ok(())
            }
        }
    }

    /// A real KVM that can't nest can still judge a run that has nested guests and never enters one.
    fn has_no_use_for_guests(&self) -> bool {
        #[cfg(feature = "kvm")]
        if let Backend::Kvm(kvm) = &self.backend {
            let nests = kvm.abilities().has(crate::backend::kvm::Ability::Nested);
            return !nests && !crate::backend::kvm::enters(self.scenario, self.run);
        }
        false
    }

    fn prepare_vmcss(&mut self, vcpu: u8, l1: &Sregs, names: &[String]) -> Result<(), SimError> {
        let seat = Seat { vcpu, level: Actor::L1 };
        let revision = self.backend.vmcs_revision()?;
        self.backend.write(layout::vmxon(vcpu), &revision.to_le_bytes())?;
        let mut regions = Vec::new();
        for name in names {
            let wanted = self.chairs[usize::from(vcpu)].wanted[name].clone();
            let fields = self.context(vcpu, l1).vmcs(&wanted)?;
            let region = layout::region(vcpu, self.guest_number(name));
            self.backend.write(region, &revision.to_le_bytes())?;
            regions.push((
                region,
                fields.iter().filter(|(_, value)| **value != 0).map(|(field, value)| (*field, *value)).collect(),
            ));
            self.chairs[usize::from(vcpu)].vmcs.change().insert(name.clone(), Shared::new(fields));
        }
        let mode = self.chairs[usize::from(vcpu)].l1_mode;
        // One guest a snippet: a slot page has no room for more.
        let vmxon = layout::vmxon(vcpu);
        for (index, region) in regions.into_iter().enumerate() {
            let code = snippet::Snippet::new(seat, mode)?.vmx_setup((index == 0).then_some(vmxon), &[region])?;
            match self.take(seat, &[code])? {
                Observation::Ok => {}
                other => {
                    let what = format!("nested guests of an L1 whose VMXON, VMCLEAR or VMPTRLD ends with {other}");
                    return Err(SimError::unmodelled(what));
                }
            }
        }
        self.backend.record(Event::HostCall { what: "L1 has prepared its guests".to_owned() });
        Ok(())
    }
}

impl Chair {
    fn new(scenario: &Scenario, l1_mode: Mode) -> Self {
        let wanted = scenario.guests.iter().map(|(name, guest)| (name.clone(), Wanted::new(guest))).collect();
        Self {
            level: Actor::L1,
            interrupted: None,
            l1_mode,
            guest: None,
            wanted: Shared::new(wanted),
            vmcs: Shared::default(),
            vmcb: Shared::default(),
            launched: BTreeSet::new(),
            saved: None,
            pauses: false,
            paused: None,
        }
    }
}
