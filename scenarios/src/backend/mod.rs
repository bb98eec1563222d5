//! Where a scenario runs. Every backend speaks the same terms: guest memory, registers, running to the next gate, and
//! calls on the host side. A closed enum, dispatched here and nowhere else.
//!
//! | backend | what it is |
//! |---|---|
//! | `bare` | the silicon alone: L1 runs its own VMX or SVM directly on it |
//! | `sim` | the same silicon with the hypervisor model as L0 |
//! | `kvm` | a VM of the kernel that this program runs on (cargo feature `kvm`) |

pub mod bare;
mod bare_host;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod sim;
mod sim_host;

pub use bare::Bare;
#[cfg(feature = "kvm")]
pub use kvm::Kvm;
pub use sim::Sim;

use crate::file::{CpuidChange, HostStep, InSmm, Observation, PausePoint, RunConfig, Scenario, Slot};
use cpu::Gpr;
use hypervisor::{Sregs, Stop};
use mmu::audit::Finding;
use mmu::state::Nesting;
use mmu::stats::{Stat, Stats};
use sim_core::arch::control::{Cr4, Efer};
use sim_core::choice::Choice;
use sim_core::event::{Detail, Event, Record};
use sim_core::{Gpa, SimError};
use std::collections::BTreeMap;

/// Which backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The silicon alone.
    Bare,
    /// The silicon with the hypervisor model as L0.
    #[default]
    Sim,
    /// A VM of this machine's own kernel.
    #[cfg(feature = "kvm")]
    Kvm,
}

impl Kind {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Sim => "sim",
            #[cfg(feature = "kvm")]
            Self::Kvm => "kvm",
        }
    }
}

/// The machine of one run.
#[derive(Debug)]
pub enum Backend {
    /// The silicon alone.
    Bare(Box<Bare>),
    /// The silicon with the hypervisor model as L0.
    Sim(Box<Sim>),
    /// A VM of this machine's own kernel.
    #[cfg(feature = "kvm")]
    Kvm(Box<Kvm>),
}

/// Searches copy their machines and go back to the copies, on `sim` and `bare`; a real machine is never asked for one.
impl Clone for Backend {
    fn clone(&self) -> Self {
        match self {
            Self::Bare(bare) => Self::Bare(bare.clone()),
            Self::Sim(sim) => Self::Sim(sim.clone()),
            #[cfg(feature = "kvm")]
            Self::Kvm(_) => unreachable!("a copy of a real machine"),
        }
    }

    fn clone_from(&mut self, source: &Self) {
        match (&mut *self, source) {
            (Self::Bare(bare), Self::Bare(source)) => bare.clone_from(source),
            (Self::Sim(sim), Self::Sim(source)) => sim.clone_from(source),
            _ => *self = source.clone(),
        }
    }
}

/// A vCPU as userspace saved it.
#[derive(Clone, Debug)]
pub enum Saved {
    /// From the bare machine.
    Bare(Box<bare::Saved>),
    /// From the hypervisor model.
    Sim(Box<hypervisor::host::SavedVcpu>),
    /// From a real KVM.
    #[cfg(feature = "kvm")]
    Kvm(Box<kvm::Saved>),
}

impl Saved {
    /// What the hypervisor model saved.
    #[must_use]
    pub fn sim(&self) -> Option<&hypervisor::host::SavedVcpu> {
        match self {
            Self::Sim(saved) => Some(saved),
            _ => None,
        }
    }

    /// Whether L1 or L2 ran when it was saved.
    #[must_use]
    pub fn nesting(&self) -> Nesting {
        match self {
            Self::Bare(saved) => saved.nesting(),
            Self::Sim(saved) => saved.nesting(),
            #[cfg(feature = "kvm")]
            Self::Kvm(saved) => saved.nesting(),
        }
    }
}

fn foreign() -> SimError {
    SimError::internal("a state that another backend saved")
}

macro_rules! each {
    ($self:ident, $backend:ident => $call:expr) => {
        match $self {
            Self::Bare($backend) => $call,
            Self::Sim($backend) => $call,
            #[cfg(feature = "kvm")]
            Self::Kvm($backend) => $call,
        }
    };
}

impl Backend {
    /// Builds the machine of a run, without any guest content.
    ///
    /// # Errors
    /// If the run asks for something that is not modelled.
    pub fn new(kind: Kind, scenario: &Scenario, run: &RunConfig, detail: Detail) -> Result<Self, SimError> {
        Ok(match kind {
            Kind::Bare => Self::Bare(Box::new(Bare::new(scenario, run, detail)?)),
            Kind::Sim => Self::Sim(Box::new(Sim::new(scenario, run, detail)?)),
            #[cfg(feature = "kvm")]
            Kind::Kvm => Self::Kvm(Box::new(Kvm::new(scenario, run, detail)?)),
        })
    }

    /// Marks the beginning of a step.
    pub fn begin_step(&mut self, step: u32, text: String) {
        each!(self, backend => backend.begin_step(step, text));
    }

    /// Records an event of the engine's own.
    pub fn record(&mut self, event: Event) {
        each!(self, backend => backend.record(event));
    }

    /// Writes guest memory as userspace does.
    ///
    /// # Errors
    /// If no memory is there.
    pub fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), SimError> {
        each!(self, backend => backend.write(at, bytes))
    }

    /// One general-purpose register of a vCPU.
    #[must_use]
    pub fn gpr(&self, vcpu: u8, register: Gpr) -> u64 {
        each!(self, backend => backend.gpr(vcpu, register))
    }

    /// A vCPU's registers.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn sregs(&mut self, vcpu: u8) -> Result<Sregs, SimError> {
        each!(self, backend => backend.sregs(vcpu))
    }

    /// Sets a vCPU's registers.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_sregs(&mut self, vcpu: u8, sregs: &Sregs) -> Result<(), SimError> {
        each!(self, backend => backend.set_sregs(vcpu, sregs))
    }

    /// Runs a vCPU to its next gate.
    ///
    /// # Errors
    /// If the guest or L0 needs something that is not modelled.
    pub fn run(&mut self, vcpu: u8) -> Result<Stop, SimError> {
        each!(self, backend => backend.run(vcpu))
    }

    /// Drops every shadow page; the bare machine has none.
    ///
    /// # Errors
    /// See [`Sim::zap_all`].
    pub fn zap_all(&mut self) -> Result<(), SimError> {
        each!(self, backend => backend.zap_all())
    }

    /// Drops what maps one guest frame; on the bare machine nothing does.
    ///
    /// # Errors
    /// See [`Sim::zap_gfn`].
    pub fn zap_gfn(&mut self, gfn: u64) -> Result<(), SimError> {
        each!(self, backend => backend.zap_gfn(gfn))
    }

    /// Adds a slot of the scenario.
    ///
    /// # Errors
    /// If it overlaps another.
    pub fn add_slot(&mut self, slot: &Slot) -> Result<(), SimError> {
        each!(self, backend => backend.add_slot(slot))
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn delete_slot(&mut self, name: &str) -> Result<(), SimError> {
        each!(self, backend => backend.delete_slot(name))
    }

    /// Gives up every root of a vCPU; the bare machine has none.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn unload_mmu(&mut self, vcpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.unload_mmu(vcpu))
    }

    /// Makes a vCPU flush its TLB before it runs again, which no guest may notice.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn flush_tlb(&mut self, vcpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.flush_tlb(vcpu))
    }

    /// Sets EFER as userspace can.
    ///
    /// # Errors
    /// If there is no such vCPU, or no processor has the value.
    pub fn set_efer(&mut self, vcpu: u8, value: u64) -> Result<(), SimError> {
        each!(self, backend => backend.set_efer(vcpu, value))
    }

    /// Sets what a vCPU's CPUID says of paging.
    ///
    /// # Errors
    /// If there is no such vCPU, or it has run.
    pub fn set_cpuid(&mut self, vcpu: u8, change: &CpuidChange) -> Result<(), SimError> {
        each!(self, backend => backend.set_cpuid(vcpu, change))
    }

    /// Flushes what the guest cached on a vCPU, as L1 has the hypervisor do.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn guest_flush(&mut self, vcpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.guest_flush(vcpu))
    }

    /// Sends a vCPU an SMI, which it takes when it runs next.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn smi(&mut self, vcpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.smi(vcpu))
    }

    /// Sends a vCPU an INIT and a start-up IPI.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn init(&mut self, vcpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.init(vcpu))
    }

    /// Makes a vCPU's next page fault on a guest frame pause at a point; bare silicon has no such faults.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn pause_at(&mut self, vcpu: u8, gfn: u64, point: PausePoint) -> Result<(), SimError> {
        match self {
            Self::Bare(_) => Ok(()),
            Self::Sim(sim) => sim.pause_at(vcpu, gfn, point),
            #[cfg(feature = "kvm")]
            Self::Kvm(_) => Err(SimError::unmodelled("a pause inside a page fault of a real KVM")),
        }
    }

    /// Has a guest frame mapped for a vCPU without running it; bare silicon maps nothing.
    ///
    /// # Errors
    /// If there is no such vCPU, or the hypervisor can't.
    pub fn pre_fault(&mut self, vcpu: u8, gfn: u64) -> Result<(), SimError> {
        match self {
            Self::Bare(_) => Ok(()),
            Self::Sim(sim) => sim.pre_fault(vcpu, gfn),
            #[cfg(feature = "kvm")]
            Self::Kvm(_) => Err(SimError::unmodelled("KVM_PRE_FAULT_MEMORY on a real KVM")),
        }
    }

    /// A step of the host about slots and pages.
    ///
    /// # Errors
    /// If it can't be done, or is not modelled.
    pub fn host(&mut self, step: &HostStep) -> Result<Observation, SimError> {
        each!(self, backend => backend.host(step))
    }

    /// Moves a vCPU's thread to another logical processor, which no guest may notice.
    ///
    /// # Errors
    /// If there is no such vCPU or processor.
    pub fn migrate(&mut self, vcpu: u8, cpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.migrate(vcpu, cpu))
    }

    /// Saves registers and nested state.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn save(&mut self, vcpu: u8) -> Result<Saved, SimError> {
        Ok(match self {
            Self::Bare(bare) => Saved::Bare(Box::new(bare.save(vcpu)?)),
            Self::Sim(sim) => Saved::Sim(Box::new(sim.save(vcpu)?)),
            #[cfg(feature = "kvm")]
            Self::Kvm(kvm) => Saved::Kvm(Box::new(kvm.save(vcpu)?)),
        })
    }

    /// Sets saved registers.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_saved_sregs(&mut self, vcpu: u8, saved: &Saved) -> Result<(), SimError> {
        match (self, saved) {
            (Self::Bare(bare), Saved::Bare(saved)) => bare.set_sregs(vcpu, saved.sregs()),
            (Self::Sim(sim), Saved::Sim(saved)) => sim.set_saved_sregs(vcpu, saved),
            #[cfg(feature = "kvm")]
            (Self::Kvm(kvm), Saved::Kvm(saved)) => kvm.set_sregs(vcpu, saved.sregs()),
            _ => Err(foreign()),
        }
    }

    /// Sets saved nested state.
    ///
    /// # Errors
    /// If it can't be entered.
    pub fn set_nested_state(&mut self, vcpu: u8, saved: &Saved) -> Result<(), SimError> {
        match (self, saved) {
            (Self::Bare(bare), Saved::Bare(saved)) => bare.set_nested_state(vcpu, saved),
            (Self::Sim(sim), Saved::Sim(saved)) => sim.set_nested_state(vcpu, saved),
            #[cfg(feature = "kvm")]
            (Self::Kvm(kvm), Saved::Kvm(saved)) => kvm.set_nested_state(vcpu, saved),
            _ => Err(foreign()),
        }
    }

    /// The revision identifier that L1 gives its VMCSs.
    ///
    /// # Errors
    /// If a real KVM has no VMX for guests.
    pub fn vmcs_revision(&self) -> Result<u32, SimError> {
        match self {
            Self::Bare(_) | Self::Sim(_) => Ok(vmx::Capabilities::default().revision),
            #[cfg(feature = "kvm")]
            Self::Kvm(kvm) => kvm.vmcs_revision(),
        }
    }

    /// Says that a vCPU is in SMM, or is not. Which level runs afterwards.
    ///
    /// # Errors
    /// If L1's state can't be loaded; always on the bare machine.
    pub fn set_smm(&mut self, vcpu: u8, smm: InSmm) -> Result<Nesting, SimError> {
        each!(self, backend => backend.set_smm(vcpu, smm))
    }

    /// Forces a vCPU out of L2.
    ///
    /// # Errors
    /// If L1's state can't be loaded; always on the bare machine.
    pub fn leave_nested(&mut self, vcpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.leave_nested(vcpu))
    }

    /// Keeps from now on what [`Self::choose_freely`] needs.
    pub fn watch(&mut self) {
        each!(self, backend => backend.watch());
    }

    /// Makes a processor use any translation that the architecture permits, as the script says.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn choose_freely(&mut self, vcpu: u8, script: Vec<u32>) -> Result<(), SimError> {
        each!(self, backend => backend.choose_freely(vcpu, script))
    }

    /// Makes a processor use what its caches hold again, which is nothing at first.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn choose_no_more(&mut self, vcpu: u8) -> Result<(), SimError> {
        each!(self, backend => backend.choose_no_more(vcpu))
    }

    /// The choices made since the script began.
    #[must_use]
    pub fn choices(&self) -> &[Choice] {
        each!(self, backend => backend.choices())
    }

    /// Everything that the audits found, in order: nothing on the bare machine, where there is no MMU to audit.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::Bare(_) => &[],
            Self::Sim(sim) => sim.findings(),
            #[cfg(feature = "kvm")]
            Self::Kvm(_) => &[],
        }
    }

    /// Ends a run: what a machine has still to tell is told.
    pub fn end(&mut self) {
        match self {
            Self::Bare(_) | Self::Sim(_) => {}
            #[cfg(feature = "kvm")]
            Self::Kvm(kvm) => kvm.end(),
        }
    }

    /// Every event so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        each!(self, backend => backend.records())
    }

    /// Why what the MMU did is not among the events, on a machine that could tell.
    #[must_use]
    pub fn closed(&self) -> Option<String> {
        match self {
            Self::Bare(_) | Self::Sim(_) => None,
            #[cfg(feature = "kvm")]
            Self::Kvm(kvm) => kvm.closed().map(str::to_owned),
        }
    }

    /// The state hash.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        each!(self, backend => backend.state_hash())
    }

    /// Core cycles so far.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        each!(self, backend => backend.cycles())
    }

    /// What of CR4 and EFER the engine's L1, a hypervisor's kernel, may have here: not the extension where guests can't nest.
    #[must_use]
    pub fn permitted(&self, cr4: Cr4, efer: Efer) -> (Cr4, Efer) {
        match self {
            Self::Bare(_) | Self::Sim(_) => (cr4, efer),
            #[cfg(feature = "kvm")]
            Self::Kvm(kvm) => kvm.permitted(cr4, efer),
        }
    }

    /// What the hypervisor would tell of itself by KVM_GET_STATS_FD, or why that is not known.
    ///
    /// # Errors
    /// Where there is no hypervisor, or it does not tell.
    pub fn told(&self) -> Result<BTreeMap<Stat, u64>, String> {
        match self {
            Self::Bare(_) => Err("no hypervisor".to_owned()),
            Self::Sim(sim) => Ok(sim.machine().vm.told()),
            #[cfg(feature = "kvm")]
            Self::Kvm(kvm) => kvm.told(),
        }
    }

    /// The hypervisor's counters; none on bare silicon.
    #[must_use]
    pub fn stats(&self) -> Stats {
        match self {
            Self::Bare(_) => Stats::default(),
            Self::Sim(sim) => sim.machine().vm.stats.clone(),
            #[cfg(feature = "kvm")]
            Self::Kvm(_) => Stats::default(),
        }
    }
}
