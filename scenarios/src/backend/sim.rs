//! The `sim` backend: the simulated silicon with the hypervisor model as L0. Auditors look inside after every step.

use crate::file::{BackedBy, InSmm, RunConfig, Scenario, SeenBy, Vendor};
use crate::image::layout;
use cpu::Gpr;
use cpu::tlb::TlbPolicy;
use hypervisor::host::SavedVcpu;
use hypervisor::machine::{Machine, Setup, Tdp};
use hypervisor::slots::NewSlot;
use hypervisor::{Sregs, Stop};
use mmu::audit::Finding;
use mmu::memslot::{AddressSpace, HostMemory, Protection, Visibility};
use mmu::plant::{Plant, Plants};
use mmu::state::{Nesting, Smm};
use mmu::{Change, ChangeSet, change};
use sim_core::addr::{Gfn, PAGE_BYTES};
use sim_core::arch::extension::Extension;
use sim_core::choice::{Choice, Choices};
use sim_core::event::{Detail, Event, Record};
use sim_core::{Gpa, SimError};

/// The simulated machine of one run.
#[derive(Clone, Debug)]
pub struct Sim {
    pub(super) machine: Machine,
}

/// The changes in force in a run.
///
/// # Errors
/// If a name is none that the history has; the scenario's check should have told before.
pub fn changes(run: &RunConfig) -> Result<ChangeSet, SimError> {
    let newest = change::POINTS.last().map_or("", |point| point.name);
    let name = run.at.as_deref().unwrap_or(newest);
    let point =
        change::Point::by_name(name).ok_or_else(|| SimError::unmodelled(format!("the point of history {name:?}")))?;
    let find = |id: &String| Change::by_id(id).ok_or_else(|| SimError::unmodelled(format!("the change {id:?}")));
    let mut set = ChangeSet::at(point);
    for id in &run.with {
        set = set.with(find(id)?);
    }
    for id in &run.without {
        set = set.without(find(id)?);
    }
    Ok(set)
}

/// The mistakes that the hypervisor makes in a run.
///
/// # Errors
/// If a name is none.
pub fn plants(run: &RunConfig) -> Result<Plants, SimError> {
    run.plants.iter().try_fold(Plants::NONE, |all, name| {
        let plant = Plant::by_name(name).ok_or_else(|| SimError::unmodelled(format!("the mistake {name:?}")))?;
        Ok(all.with(plant))
    })
}

impl Sim {
    /// Builds the machine of a run, without any guest content.
    ///
    /// # Errors
    /// If the run asks for something that is not modelled.
    pub fn new(scenario: &Scenario, run: &RunConfig, detail: Detail) -> Result<Self, SimError> {
        let setup = Setup {
            extension: match run.vendor {
                Vendor::Intel => Extension::Vmx,
                Vendor::Amd => Extension::Svm,
            },
            tdp: if run.tdp { Tdp::On } else { Tdp::Off },
            changes: changes(run)?,
            plants: plants(run)?,
            guest_frames: scenario.machine.memory / PAGE_BYTES,
            vcpus: scenario.machine.vcpus,
            processors: scenario.machine.processors,
            vpids: scenario.machine.vpids,
            asids: scenario.machine.asids,
            module: scenario.machine.module,
            tlb: scenario.machine.tlb,
            silicon_without: crate::engine::guest_state::lacking(scenario)?,
            detail,
            audits: run.audits,
        };
        let mut sim = Self { machine: Machine::new(&setup)? };
        for slot in scenario.slots.iter().filter(|slot| slot.present) {
            sim.add_slot(slot)?;
        }
        for vcpu in 0..scenario.machine.vcpus {
            sim.machine.set_smbase(vcpu, layout::smbase(vcpu))?;
            if run.vendor == Vendor::Amd {
                // L1's kernel does this once, long before the scenario begins.
                sim.machine.set_hsave(vcpu, layout::host_save(vcpu))?;
            }
        }
        Ok(sim)
    }

    /// The machine itself, for auditors, benchmarks and checkpoints.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Forgets what the audits found so far.
    pub(crate) fn forget_findings(&mut self) {
        self.machine.findings.clear();
    }

    /// Marks the beginning of a step.
    pub fn begin_step(&mut self, step: u32, text: String) {
        self.machine.step = step;
        self.record(Event::StepBegin { step, text });
    }

    /// Records an event of the engine's own.
    pub fn record(&mut self, event: Event) {
        self.machine.ground.record(event);
    }

    /// Writes guest memory as userspace does.
    ///
    /// # Errors
    /// If no slot is there.
    pub fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), SimError> {
        if self.machine.guest_write(at, bytes) {
            Ok(())
        } else {
            Err(SimError::unmodelled(format!("memory contents at {at}, where no slot is")))
        }
    }

    /// One general-purpose register of a vCPU.
    #[must_use]
    pub fn gpr(&self, vcpu: u8, register: Gpr) -> u64 {
        self.machine.vcpus.get(usize::from(vcpu)).map_or(0, |vcpu| vcpu.gprs[register as usize])
    }

    /// A vCPU's registers (`KVM_GET_SREGS`, `KVM_GET_REGS`).
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn sregs(&mut self, vcpu: u8) -> Result<Sregs, SimError> {
        self.machine.on_vcpu(vcpu, |run| Ok(run.sregs()))
    }

    /// Sets a vCPU's registers (`KVM_SET_SREGS`, `KVM_SET_REGS`).
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_sregs(&mut self, vcpu: u8, sregs: &Sregs) -> Result<(), SimError> {
        self.machine.set_sregs(vcpu, sregs)
    }

    /// Runs a vCPU to its next gate.
    ///
    /// # Errors
    /// If the guest or L0 needs something that is not modelled.
    pub fn run(&mut self, vcpu: u8) -> Result<Stop, SimError> {
        self.machine.run(vcpu)
    }

    /// Drops every shadow page.
    ///
    /// # Errors
    /// See [`Machine::zap_all`].
    pub fn zap_all(&mut self) -> Result<(), SimError> {
        self.machine.zap_all()
    }

    /// Drops what maps one guest frame.
    ///
    /// # Errors
    /// See [`Machine::zap_gfn`].
    pub fn zap_gfn(&mut self, gfn: u64) -> Result<(), SimError> {
        self.machine.zap_gfn(Gfn(gfn))
    }

    /// Adds a slot of the scenario.
    ///
    /// # Errors
    /// If it overlaps another.
    pub fn add_slot(&mut self, slot: &crate::file::Slot) -> Result<(), SimError> {
        let visibility = if slot.private { Visibility::Private } else { Visibility::Public };
        let protection = if slot.read_only { Protection::ReadOnly } else { Protection::ReadWrite };
        self.machine.add_slot(&NewSlot {
            name: &slot.name,
            gfn: slot.at.frame(),
            frames: slot.pages,
            visibility,
            protection,
            memory: match slot.backed_by {
                BackedBy::Pages => HostMemory::Pages,
                BackedBy::Device => HostMemory::Device,
            },
            spaces: match slot.seen_by {
                SeenBy::Everyone => &AddressSpace::ALL,
                SeenBy::Smm => &[AddressSpace::Smm],
            },
        })
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn delete_slot(&mut self, name: &str) -> Result<(), SimError> {
        self.machine.delete_slot(name)
    }

    /// Gives up every root of a vCPU.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn unload_mmu(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.machine.unload_mmu(vcpu)
    }

    /// Makes a vCPU flush its TLB before it runs again.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn flush_tlb(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.record(Event::HostCall { what: "flush TLB".to_owned() });
        self.machine.on_vcpu(vcpu, |run| {
            run.request(mmu::request::Requests::TLB_FLUSH);
            Ok(())
        })
    }

    /// Moves a vCPU's thread to another logical processor.
    ///
    /// # Errors
    /// If there is no such vCPU or processor.
    pub fn migrate(&mut self, vcpu: u8, cpu: u8) -> Result<(), SimError> {
        self.machine.migrate(vcpu, cpu)
    }

    /// Saves registers and nested state.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn save(&mut self, vcpu: u8) -> Result<SavedVcpu, SimError> {
        self.machine.save(vcpu)
    }

    /// Sets saved registers.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_saved_sregs(&mut self, vcpu: u8, saved: &SavedVcpu) -> Result<(), SimError> {
        self.machine.set_saved_sregs(vcpu, saved)
    }

    /// Sets saved nested state.
    ///
    /// # Errors
    /// If it can't be entered.
    pub fn set_nested_state(&mut self, vcpu: u8, saved: &SavedVcpu) -> Result<(), SimError> {
        self.machine.set_nested_state(vcpu, saved)
    }

    /// Says that a vCPU is in SMM, or is not. Which level runs afterwards.
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn set_smm(&mut self, vcpu: u8, smm: InSmm) -> Result<Nesting, SimError> {
        let smm = match smm {
            InSmm::Outside => Smm::Outside,
            InSmm::Inside => Smm::Inside,
        };
        self.machine.set_smm(vcpu, smm)
    }

    /// Forces a vCPU out of L2.
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn leave_nested(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.machine.leave_nested(vcpu)
    }

    /// Keeps from now on what [`Self::choose_freely`] needs.
    pub fn watch(&mut self) {
        for processor in &mut self.machine.processors {
            processor.core.tlb.watch(&mut self.machine.ground);
        }
    }

    /// Makes whichever processor runs a vCPU use any translation that the architecture permits, as the script says.
    ///
    /// # Errors
    /// Never: the choice is every processor's.
    pub fn choose_freely(&mut self, _vcpu: u8, script: Vec<u32>) -> Result<(), SimError> {
        self.set_policy(TlbPolicy::Adversarial);
        self.machine.ground.choices = Choices::scripted(script);
        Ok(())
    }

    /// Makes every processor use what its caches hold again, which is nothing at first.
    ///
    /// # Errors
    /// Never.
    pub fn choose_no_more(&mut self, _vcpu: u8) -> Result<(), SimError> {
        self.set_policy(TlbPolicy::Concrete);
        self.machine.ground.choices = Choices::default();
        Ok(())
    }

    fn set_policy(&mut self, policy: TlbPolicy) {
        for processor in &mut self.machine.processors {
            processor.core.tlb.set_policy(&mut self.machine.ground, policy);
        }
    }

    /// The choices made since the script began.
    #[must_use]
    pub fn choices(&self) -> &[Choice] {
        self.machine.ground.choices.taken()
    }

    /// Everything that the audits found, in order.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.machine.findings
    }

    /// Every event so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.machine.ground.log.records()
    }

    /// The state hash.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        self.machine.state_hash()
    }

    /// Core cycles so far.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        self.machine.ground.clock.now().0
    }
}
