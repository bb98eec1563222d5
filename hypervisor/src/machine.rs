//! A machine: memory and time, logical processors, and one VM whose vCPUs run on them. vCPU n begins on processor n, modulo
//! their number; [`Machine::migrate`] moves it.

use crate::migrate::{Host, HostCpu, Others};
use crate::run::{Run, Stop};
use crate::tags::{Asids, Vpids};
use crate::vcpu::Vcpu;
use crate::vendor;
use cpu::exec::Fault;
use cpu::profile::{Features, TlbProfile};
use cpu::virt::{At, ControlRegister, HeldEvents, Trap, Verdict, VirtDone, VirtInstruction};
use cpu::{Core, Regime, Virt};
use mmu::audit::{self, Extent, Finding};
use mmu::entry_rules::{EntryRules, ExecuteOnly, UpperGlobal};
use mmu::frames::Frames;
use mmu::memslot::AddressSpace;
use mmu::plant::Plants;
use mmu::request::Requests;
use mmu::state::{AccessedDirty, Config, Pml, TdpMode};
use mmu::{ChangeSet, Vm};
use serde::{Deserialize, Serialize};
use sim_core::addr::{Gpa, Hfn, Hpa, PAGE_BYTES};
use sim_core::arch::exception::Exception;
use sim_core::arch::extension::Extension;
use sim_core::event::{Detail, Event};
use sim_core::hash::StateHasher;
use sim_core::{Ground, SimError};
use std::hash::{Hash, Hasher};
use svm::Svm;
use vmx::Vmx;
use vmx::controls::SecondaryProc;

/// A processor's virtualization extension.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ext {
    /// Intel.
    Vmx(Box<Vmx>),
    /// AMD.
    Svm(Box<Svm>),
}

macro_rules! delegate {
    ($self:ident, $unit:ident => $call:expr) => {
        match $self {
            Ext::Vmx($unit) => $call,
            Ext::Svm($unit) => $call,
        }
    };
}

impl Virt for Ext {
    fn regime(&self, core: &Core) -> Regime {
        delegate!(self, unit => unit.regime(core))
    }

    fn trap(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError> {
        delegate!(self, unit => unit.trap(core, ground, trap, at))
    }

    fn instruction(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        delegate!(self, unit => unit.instruction(core, ground, instruction, at))
    }

    fn cr_read(&self, ground: &Ground, register: ControlRegister, actual: u64) -> u64 {
        delegate!(self, unit => unit.cr_read(ground, register, actual))
    }

    fn cr_write(&self, ground: &Ground, register: ControlRegister, current: u64, operand: u64) -> u64 {
        delegate!(self, unit => unit.cr_write(ground, register, current, operand))
    }

    fn cr_fixed(&self, register: ControlRegister) -> (u64, u64) {
        delegate!(self, unit => unit.cr_fixed(register))
    }

    fn rdmsr(&self, core: &Core, index: u32) -> Option<Result<u64, Exception>> {
        delegate!(self, unit => unit.rdmsr(core, index))
    }

    fn wrmsr(&mut self, core: &mut Core, index: u32, value: u64) -> Option<Result<(), Exception>> {
        delegate!(self, unit => unit.wrmsr(core, index, value))
    }

    fn attention(&self, core: &Core) -> bool {
        delegate!(self, unit => unit.attention(core))
    }

    fn held(&self, core: &Core) -> HeldEvents {
        delegate!(self, unit => unit.held(core))
    }

    fn tsc(&self, ground: &Ground, now: u64) -> u64 {
        delegate!(self, unit => unit.tsc(ground, now))
    }
}

/// One logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogicalProcessor {
    /// Its registers and translation caches.
    pub core: Core,
    /// Its virtualization extension.
    pub ext: Ext,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which extension the processors have.
    pub extension: Extension,
    /// Whether L0 uses two-dimensional paging.
    pub tdp: Tdp,
    /// Which kernel L0 behaves like.
    pub changes: ChangeSet,
    /// Mistakes that it makes.
    pub plants: Plants,
    /// Guest memory, in 4 KiB frames from guest-physical 0.
    pub guest_frames: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// Logical processors.
    pub processors: u8,
    /// VPIDs that L0 may use (Intel).
    pub vpids: u16,
    /// ASIDs of each processor, the host's included (AMD).
    pub asids: u32,
    /// Module parameters of L0, and MAXPHYADDR; `tdp` follows from what stands above.
    pub module: Config,
    /// Secondary controls that the processors lack although L0 offers them to L1 (Intel).
    pub silicon_without: SecondaryProc,
    /// The geometry and habits of the processors' translation caches.
    pub tlb: TlbProfile,
    /// How much is recorded.
    pub detail: Detail,
    /// How much the audits look at.
    pub audits: Extent,
}

/// Two-dimensional paging in L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tdp {
    /// Shadow paging (`ept=0`, `npt=0`).
    Off,
    /// EPT or nested paging.
    On,
}

/// A machine with one VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Memory, time, events, choices.
    pub ground: Ground,
    /// Logical processors.
    pub processors: Vec<LogicalProcessor>,
    /// What L0 keeps of them.
    pub host: Host,
    /// The VM's part of the MMU.
    pub vm: Vm,
    /// The VM's vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// What the audits found so far.
    #[serde(skip)]
    pub findings: Vec<Finding>,
    /// The scenario step under way, for findings.
    pub step: u32,
    /// How much the audits look at.
    #[serde(skip)]
    pub audits: Extent,
}

/// What a vendor's processors offer, as far as the entries of page tables depend on it.
#[must_use]
pub fn features(extension: Extension) -> Features {
    let mut features = Features::BASE;
    features.set(Features::UPPER_GLOBAL_RESERVED, extension == Extension::Svm);
    features
}

impl Setup {
    /// The rules for a guest's entries: the guest sees its processor's own vendor in CPUID, and L1 the EPT capabilities
    /// that L0 offers.
    fn rules(&self) -> EntryRules {
        let upper_global = match self.extension {
            Extension::Vmx => UpperGlobal::Ignored,
            Extension::Svm => UpperGlobal::Reserved,
        };
        let execute_only = match vmx::Capabilities::default().ept_vpid & vmx::capability::ept_vpid::EXECUTE_ONLY {
            0 => ExecuteOnly::Reserved,
            _ => ExecuteOnly::Offered,
        };
        EntryRules { upper_global, execute_only }
    }
}

/// What hardware's page-modification log would need and the setup does not have. KVM turns the parameter off by itself.
fn log_lacks(setup: &Setup) -> Option<&'static str> {
    [
        (setup.extension != Extension::Vmx, "on AMD"),
        (setup.tdp == Tdp::Off, "without EPT"),
        (setup.module.accessed_dirty == AccessedDirty::Tracked, "without EPT's accessed and dirty flags"),
        (setup.silicon_without.contains(SecondaryProc::ENABLE_PML), "on silicon without it"),
    ]
    .into_iter()
    .find_map(|(lacks, what)| (setup.module.pml == Pml::On && lacks).then_some(what))
}

/// Host frames beside guest memory: page tables, VMCSs, bitmaps.
const HOST_FRAMES: u64 = 4096;

impl Machine {
    /// Builds a machine, gives the VM its memory, and puts every vCPU in flat 32-bit mode at address 0.
    ///
    /// # Errors
    /// If the setup asks for something that is not modelled.
    pub fn new(setup: &Setup) -> Result<Self, SimError> {
        let total = setup.guest_frames + crate::slots::alignment(setup.guest_frames) + HOST_FRAMES;
        let mut ground = Ground::new(total);
        ground.log = sim_core::event::EventLog::new(setup.detail);
        let tdp = match (setup.tdp, setup.extension) {
            (Tdp::Off, _) => TdpMode::Off,
            (Tdp::On, Extension::Vmx) => TdpMode::Ept,
            (Tdp::On, Extension::Svm) => TdpMode::Npt,
        };
        if let Some(lacks) = log_lacks(setup) {
            return Err(SimError::unmodelled(format!("the page-modification log (pml = true) {lacks}")));
        }
        let config = Config { tdp, rules: setup.rules(), ..setup.module };
        // Frame 0 stays unused: a table at physical 0 would look like a cleared pointer.
        let mut vm = Vm::new(setup.changes, config, Frames::new(Hfn(1), Hfn(total)));
        vm.plants = setup.plants;
        crate::slots::add_memory(&mut vm, setup.guest_frames)?;
        if setup.processors == 0 || setup.asids < 2 {
            return Err(SimError::unmodelled("a machine without a processor or without ASIDs for guests"));
        }
        let cpu = HostCpu { occupant: None, asids: Asids::new(setup.asids) };
        let host = Host { vpids: Vpids::new(setup.vpids), cpus: vec![cpu; usize::from(setup.processors)] };
        let mut machine = Self {
            ground,
            processors: Vec::new(),
            host,
            vm,
            vcpus: Vec::new(),
            findings: Vec::new(),
            step: 0,
            audits: setup.audits,
        };
        for _ in 0..setup.processors {
            let processor = vendor::create_processor(&mut machine.ground, &mut machine.vm, setup)?;
            machine.processors.push(processor);
        }
        for id in 0..setup.vcpus {
            vendor::create_vcpu(&mut machine, setup, id)?;
        }
        Ok(machine)
    }

    /// Runs L0 code on one vCPU, and hands requests for the others out afterwards.
    ///
    /// # Errors
    /// What the code gives.
    pub fn on_vcpu<R>(
        &mut self,
        id: u8,
        work: impl FnOnce(&mut Run<'_>) -> Result<R, SimError>,
    ) -> Result<R, SimError> {
        let index = usize::from(id);
        let Some(cpu) = self.vcpus.get(index).map(|vcpu| vcpu.thread_on) else {
            return Err(SimError::internal(format!("no vCPU {id}")));
        };
        self.vacate(id, cpu);
        let (Some(vcpu), Some((processor, others))) =
            (self.vcpus.get_mut(index), Others::split(&mut self.processors, cpu))
        else {
            return Err(SimError::internal(format!("no processor {cpu} for vCPU {id}")));
        };
        self.ground.log.set_processor(id);
        let mut run = Run {
            ground: &mut self.ground,
            processor,
            others,
            cpu,
            host: &mut self.host,
            vm: &mut self.vm,
            vcpu,
            owed: Requests::empty(),
            findings: &mut self.findings,
            step: self.step,
            audits: self.audits,
            touched: false,
        };
        let result = run.vcpu_load().and_then(|()| work(&mut run));
        let (owed, touched) = (run.owed, run.touched);
        for vcpu in self.vcpus.iter_mut().filter(|vcpu| vcpu.id != id) {
            self.ground.log.set_processor(vcpu.id);
            vcpu.mmu.requests.post(&mut self.ground, owed);
        }
        if result.is_ok() {
            self.audit_at_rest(touched);
        }
        result
    }

    /// The audits of function exit.
    fn audit_at_rest(&mut self, touched: bool) {
        let extent = match self.audits {
            Extent::Nothing => return,
            Extent::Everything if touched => Extent::Everything,
            Extent::Roots | Extent::Everything => Extent::Roots,
        };
        let holders: Vec<_> = self.vcpus.iter().map(|vcpu| (vcpu.id, &vcpu.mmu, vcpu.view())).collect();
        let found = audit::at_rest(&self.vm, &self.ground.mem, &holders, self.step, &self.ground.log, extent);
        for finding in found {
            let event = Event::Finding { audit: finding.audit.name(), text: finding.to_string() };
            self.ground.record(event);
            self.findings.push(finding);
        }
    }

    /// `KVM_RUN`: runs a vCPU until it reaches a gate or stops.
    ///
    /// # Errors
    /// If the guest or L0 needs something that is not modelled.
    pub fn run(&mut self, id: u8) -> Result<Stop, SimError> {
        self.on_vcpu(id, |run| run.run())
    }

    /// Where userspace finds guest memory: it has mapped SMM's own slots too.
    fn userspace(&self, gpa: Gpa) -> Option<Hpa> {
        AddressSpace::ALL.into_iter().find_map(|space| self.vm.slots.host(space, gpa))
    }

    /// Reads guest memory as userspace sees it; none where no slot is.
    #[must_use]
    pub fn guest_read(&self, gpa: Gpa, bytes: usize) -> Option<u64> {
        self.userspace(gpa).map(|hpa| self.ground.mem.read(hpa, bytes))
    }

    /// Writes guest memory as userspace does; false where no slot is.
    pub fn guest_write(&mut self, gpa: Gpa, data: &[u8]) -> bool {
        let mut done = 0;
        while done < data.len() {
            let at = gpa.offset(done as u64);
            let Some(hpa) = self.userspace(at) else { return false };
            let room = (PAGE_BYTES - at.page_offset()) as usize;
            let piece = &data[done..data.len().min(done + room)];
            self.ground.mem.write_bytes(hpa, piece);
            done += piece.len();
        }
        true
    }

    /// The state hash: memory, processors, VM and vCPUs, without time, events and findings.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let mut hasher = StateHasher::default();
        self.ground.mem.hash(&mut hasher);
        self.processors.hash(&mut hasher);
        self.host.hash(&mut hasher);
        self.vm.hash(&mut hasher);
        self.vcpus.hash(&mut hasher);
        hasher.finish()
    }
}
