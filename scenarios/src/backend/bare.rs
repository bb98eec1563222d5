//! The `bare` backend: the silicon alone. L1 is the machine's own software, and its VMLAUNCH or VMRUN run on the
//! processor itself: the reference for what a guest must observe.
//!
//! Guest-physical is host-physical; what the scenario has no slot for is a hole ([`Backing::Hole`]). The axes of the
//! hypervisor (`tdp`, `at`, changes) have no effect, but for this: the processor offers L1 what L0 would offer it.
//!
//! **The test port.** An OUT to a gate port reaches the bus at every level, whatever L1's VMCS or VMCB intercepts, as L0
//! does it on the other backends: a real machine would use a port that its debugger owns.
//!
//! A private slot is memory that only L1 has, as KVM gives L1 an APIC-access page: while L2 runs, nothing is there. A slot of
//! SMM is there while a processor is in system-management mode, as a chipset decodes SMRAM.
//!
//! Host steps: zaps, flushes and unloading are L0's own affair and do nothing here. Slots come and go; registers are
//! written; saved nested state is the extension's state with the regions in memory that belong to the processor while
//! a guest runs (the current VMCS, the host save area). Taking L2 away from L1 can't be judged: silicon has no such
//! thing.

use crate::file::{Expected, RunConfig, Scenario, SeenBy, Slot, Vendor};
use crate::image::layout;
use cpu::exec::Fault;
use cpu::paging::pdpte;
use cpu::step::{Outcome, StopOn};
use cpu::tlb::{Tlb, TlbPolicy};
use cpu::virt::{At, ControlRegister, HeldEvents, SecondStage, Trap, Verdict, VirtDone, VirtInstruction};
use cpu::{Activity, Blocking, Core, Gpr, Regime, Virt};
use hypervisor::machine::{Ext, LogicalProcessor};
use hypervisor::run::GATE_PORTS;
use hypervisor::{Sregs, Stop};
use mmu::state::{Nesting, Smm};
use sim_core::addr::{Hfn, PAGE_BYTES};
use sim_core::arch::control::PagingMode;
use sim_core::arch::exception::Exception;
use sim_core::arch::extension::Extension;
use sim_core::choice::{Choice, Choices};
use sim_core::event::{Detail, Event, EventLog, FlushScope, Record};
use sim_core::hash::StateHasher;
use sim_core::memory::{Backing, PhysMem};
use sim_core::{Gpa, Ground, Gva, Hpa, SimError};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use vmx::controls::SecondaryProc;

/// Steps of one run after which something is clearly wrong.
const INSTRUCTIONS_MAX: u64 = 200_000;
/// The end of the address space that slots may lie in, in frames: 256 GiB.
const FRAMES_MAX: u64 = 1 << 26;

/// A slot that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) first: Hfn,
    pub(super) pages: u64,
    pub(super) backing: Backing,
}

impl Present {
    const fn holds(&self, frame: Hfn) -> bool {
        frame.0 >= self.first.0 && frame.0 - self.first.0 < self.pages
    }
}

/// The bare machine of one run.
#[derive(Clone, Debug)]
pub struct Bare {
    pub(super) ground: Ground,
    pub(super) processors: Vec<LogicalProcessor>,
    /// Main memory has the empty name.
    pub(super) slots: BTreeMap<String, Present>,
    pub(super) hidden: Hidden,
    /// What a processor has whose CPUID nobody changed.
    pub(super) maxphyaddr: u32,
}

/// What runs, as far as it matters to which memory is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Running {
    level: Nesting,
    smm: Smm,
}

impl Running {
    /// Whoever writes memory past the processors, and sees all of it.
    const OUTSIDE: Self = Self { level: Nesting::L1, smm: Smm::Inside };

    fn on(core: &Core, ext: &Ext) -> Self {
        let smm = if core.blocking.contains(Blocking::SMI) { Smm::Inside } else { Smm::Outside };
        Self { level: nesting(ext), smm }
    }
}

/// The slots that not everything that runs has.
#[derive(Clone, Debug, Default)]
pub(super) struct Hidden {
    /// From L2.
    pub(super) private: Curtain,
    /// From everything outside SMM.
    pub(super) smm: Curtain,
}

impl Hidden {
    fn follow(&mut self, running: Running, memory: &mut PhysMem) {
        self.private.draw(running.level == Nesting::L2, memory);
        self.smm.draw(running.smm == Smm::Outside, memory);
    }

    fn slots(&mut self) -> impl Iterator<Item = &mut Curtain> {
        [&mut self.private, &mut self.smm].into_iter()
    }

    /// A slot of these is elsewhere from now on.
    pub(super) fn moved(&mut self, from: Hfn, to: Hfn) {
        let ranges = self.slots().flat_map(|curtain| &mut curtain.ranges);
        ranges.filter(|(at, _)| *at == from).for_each(|(at, _)| *at = to);
    }

    fn deleted(&mut self, first: Hfn) {
        self.slots().for_each(|curtain| curtain.ranges.retain(|(at, _)| *at != first));
    }
}

/// Slots that come and go together, and what they hold while nothing is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Curtain {
    ranges: Vec<(Hfn, u64)>,
    hidden: Option<Vec<Vec<u8>>>,
}

impl Curtain {
    /// Hides the memory, or gives it back.
    fn draw(&mut self, hides: bool, memory: &mut PhysMem) {
        match (hides, self.hidden.take()) {
            (true, None) => {
                let hide = |(first, pages): &(Hfn, u64)| {
                    let mut content = vec![0; (pages * PAGE_BYTES) as usize];
                    memory.read_bytes(first.base(), &mut content);
                    memory.set_backing(*first, *pages, Backing::Hole);
                    content
                };
                self.hidden = Some(self.ranges.iter().map(hide).collect());
            }
            (false, Some(contents)) => {
                for ((first, pages), content) in self.ranges.iter().zip(contents) {
                    memory.set_backing(*first, *pages, Backing::Writable);
                    memory.write_bytes(first.base(), &content);
                }
            }
            (_, hidden) => self.hidden = hidden,
        }
    }
}

/// A processor as something outside saved it.
#[derive(Clone, Debug)]
pub struct Saved {
    sregs: Sregs,
    pdptes: [u64; 4],
    ext: Ext,
    /// What the extension keeps in memory while a guest runs.
    regions: Vec<(Hpa, Vec<u8>)>,
}

impl Saved {
    /// Whether L1 or L2 ran.
    #[must_use]
    pub fn nesting(&self) -> Nesting {
        nesting(&self.ext)
    }

    /// The registers.
    #[must_use]
    pub const fn sregs(&self) -> &Sregs {
        &self.sregs
    }
}

fn nesting(ext: &Ext) -> Nesting {
    let is_guest = match ext {
        Ext::Vmx(unit) => unit.operation() == vmx::Operation::NonRoot,
        Ext::Svm(unit) => unit.guest().is_some(),
    };
    if is_guest { Nesting::L2 } else { Nesting::L1 }
}

/// A processor with the extension that the run's vendor has.
fn processor(scenario: &Scenario, run: &RunConfig, id: u8) -> Result<LogicalProcessor, SimError> {
    let ext = match run.vendor {
        Vendor::Intel => {
            let mut offered = vmx::Capabilities::default().without(crate::engine::guest_state::lacking(scenario)?);
            if !run.tdp {
                offered = offered.without(SecondaryProc::ENABLE_EPT);
            }
            Ext::Vmx(Box::new(vmx::Vmx::new(offered)))
        }
        Vendor::Amd => {
            let mut unit = svm::Svm::new(svm::Capabilities::default());
            // L1's kernel does this once, long before the scenario begins.
            unit.set_hsave(Hpa(layout::host_save(id).0));
            Ext::Svm(Box::new(unit))
        }
    };
    let extension = match run.vendor {
        Vendor::Intel => Extension::Vmx,
        Vendor::Amd => Extension::Svm,
    };
    let features = hypervisor::machine::features(extension);
    let tlb = Tlb::new(scenario.machine.tlb);
    let mut core = Core { features, tlb, ..Core::flat32(scenario.machine.module.maxphyaddr) };
    core.msrs.smbase = layout::smbase(id);
    Ok(LogicalProcessor { core, ext })
}

impl Bare {
    /// Builds the machine of a run, without any content.
    ///
    /// # Errors
    /// If the run asks for something that is not modelled.
    pub fn new(scenario: &Scenario, run: &RunConfig, detail: Detail) -> Result<Self, SimError> {
        let main = scenario.machine.memory / PAGE_BYTES;
        let places = scenario.slots.iter().map(|slot| (slot.at, slot.pages)).chain(scenario.moves());
        let end = places.map(|(at, pages)| at.frame().0 + pages).fold(main, u64::max);
        if end > FRAMES_MAX {
            return Err(SimError::unmodelled("memory slots above 256 GiB on the bare machine"));
        }
        let mut ground = Ground::new(end);
        ground.log = EventLog::new(detail);
        ground.mem.set_backing(Hfn(main), end - main, Backing::Hole);
        let processors =
            (0..scenario.machine.vcpus).map(|id| processor(scenario, run, id)).collect::<Result<_, _>>()?;
        let memory = Present { first: Hfn(0), pages: main, backing: Backing::Writable };
        let (slots, maxphyaddr) = (BTreeMap::from([(String::new(), memory)]), scenario.machine.module.maxphyaddr);
        let mut bare = Self { ground, processors, slots, hidden: Hidden::default(), maxphyaddr };
        for slot in scenario.slots.iter().filter(|slot| slot.present) {
            bare.add_slot(slot)?;
        }
        let asks = |step: &crate::file::Step| matches!(step.expect, Some(Expected::May(_) | Expected::Never(_)));
        if scenario.steps.iter().any(asks) {
            bare.watch();
        }
        Ok(bare)
    }

    /// A processor and the ground, to change.
    pub(super) fn parts(&mut self, vcpu: u8) -> Result<(&mut LogicalProcessor, &mut Ground), SimError> {
        let processor = self.processors.get_mut(usize::from(vcpu));
        let processor = processor.ok_or_else(|| SimError::internal(format!("no vCPU {vcpu}")))?;
        self.ground.log.set_processor(vcpu);
        Ok((processor, &mut self.ground))
    }

    pub(super) fn host_call(&mut self, what: String) {
        self.record(Event::HostCall { what });
    }

    /// Marks the beginning of a step.
    pub fn begin_step(&mut self, step: u32, text: String) {
        self.record(Event::StepBegin { step, text });
    }

    /// Records an event of the engine's own.
    pub fn record(&mut self, event: Event) {
        self.ground.record(event);
    }

    /// Writes memory past the processors; read-only memory too.
    ///
    /// # Errors
    /// If no memory is there.
    pub fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), SimError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = at.offset(done as u64);
            let frame = Hfn(at.frame().0);
            let room = (PAGE_BYTES - at.page_offset()) as usize;
            let piece = &bytes[done..bytes.len().min(done + room)];
            done += piece.len();
            let Some(slot) = self.slots.values().find(|slot| slot.holds(frame)) else {
                return Err(SimError::unmodelled(format!("memory contents at {at}, where no slot is")));
            };
            let memory = &mut self.ground.mem;
            if slot.backing == Backing::ReadOnly {
                memory.set_backing(frame, 1, Backing::Writable);
                memory.write_bytes(Hpa(at.0), piece);
                memory.set_backing(slot.first, slot.pages, Backing::ReadOnly);
            } else {
                memory.write_bytes(Hpa(at.0), piece);
            }
        }
        Ok(())
    }

    /// One general-purpose register of a processor.
    #[must_use]
    pub fn gpr(&self, vcpu: u8, register: Gpr) -> u64 {
        self.processors.get(usize::from(vcpu)).map_or(0, |processor| processor.core.gpr(register))
    }

    /// A processor's registers.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn sregs(&mut self, vcpu: u8) -> Result<Sregs, SimError> {
        let core = &self.parts(vcpu)?.0.core;
        Ok(Sregs {
            segments: core.segments,
            gdtr: core.gdtr,
            idtr: core.idtr,
            cr0: core.cr0,
            cr2: core.cr2.0,
            cr3: core.cr3,
            cr4: core.cr4,
            cr8: core.cr8,
            efer: core.efer,
            gprs: core.gprs,
            rip: core.rip,
            rflags: core.rflags,
        })
    }

    /// Writes a processor's registers from outside, and loads PDPTEs anew, as `KVM_SET_SREGS` does. No instruction did it,
    /// so the caches are emptied, but for what the processor has already, where nothing happens that its guest may notice.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn set_sregs(&mut self, vcpu: u8, sregs: &Sregs) -> Result<(), SimError> {
        self.host_call("set sregs".to_owned());
        let (LogicalProcessor { core, ext }, ground) = self.parts(vcpu)?;
        let before = (core.cr0, core.cr3, core.cr4, core.efer, core.pdptes);
        core.segments = sregs.segments;
        core.gdtr = sregs.gdtr;
        core.idtr = sregs.idtr;
        core.cr0 = sregs.cr0;
        core.cr2 = Gva(sregs.cr2);
        core.cr3 = sregs.cr3;
        core.cr4 = sregs.cr4;
        core.cr8 = sregs.cr8;
        core.efer = sregs.efer;
        core.gprs = sregs.gprs;
        core.rip = sregs.rip;
        core.rflags = sregs.rflags;
        if core.paging_mode() == PagingMode::Pae {
            // PDPTEs that can't be loaded are not present, as `KVM_SET_SREGS` has it.
            core.pdptes = pdpte::load(core.maxphyaddr, &ext.regime(core), ground, core.cr3).unwrap_or([0; 4]);
        }
        if before != (core.cr0, core.cr3, core.cr4, core.efer, core.pdptes) {
            core.tlb.flush(ground, FlushScope::All);
        }
        Ok(())
    }

    /// Runs a processor to its next gate. A halted one goes on, as after an interrupt.
    ///
    /// # Errors
    /// If something is not modelled, or no gate is reached.
    pub fn run(&mut self, vcpu: u8) -> Result<Stop, SimError> {
        let mut hidden = std::mem::take(&mut self.hidden);
        let stop = self.run_with(vcpu, &mut hidden);
        hidden.follow(Running::OUTSIDE, &mut self.ground.mem);
        self.hidden = hidden;
        stop
    }

    /// Takes what is next on a processor: an event, or one instruction.
    pub(super) fn step_one(&mut self, vcpu: u8) -> Result<(), SimError> {
        let mut hidden = std::mem::take(&mut self.hidden);
        let (LogicalProcessor { core, ext }, ground) = self.parts(vcpu)?;
        hidden.follow(Running::on(core, ext), &mut ground.mem);
        let taken = cpu::step::step(core, &mut TestPort { ext, hidden: &mut hidden }, ground);
        hidden.follow(Running::OUTSIDE, &mut self.ground.mem);
        self.hidden = hidden;
        taken.map(|_| ())
    }

    fn run_with(&mut self, vcpu: u8, hidden: &mut Hidden) -> Result<Stop, SimError> {
        let (LogicalProcessor { core, ext }, ground) = self.parts(vcpu)?;
        hidden.follow(Running::on(core, ext), &mut ground.mem);
        if core.activity == Activity::Halted {
            core.activity = Activity::Active;
        }
        let mut port = TestPort { ext, hidden };
        // An OUT to a port of no device goes nowhere; the processor runs on.
        for _ in 0..INSTRUCTIONS_MAX {
            match cpu::step::run(core, &mut port, ground, StopOn::Bus, INSTRUCTIONS_MAX)? {
                Outcome::Out { port, value, .. } if GATE_PORTS.contains(&port) => {
                    return Ok(Stop::Gate { port, value });
                }
                Outcome::Out { .. } => {}
                Outcome::Halted => return Ok(Stop::Halted),
                Outcome::Shutdown => return Ok(Stop::Shutdown),
                other => return Err(SimError::internal(format!("a bare processor stopped with {other:?}"))),
            }
        }
        Err(SimError::Runaway { budget: INSTRUCTIONS_MAX, rip: core.rip })
    }

    /// Nothing: there are no shadow pages.
    ///
    /// # Errors
    /// Never.
    pub fn zap_all(&mut self) -> Result<(), SimError> {
        self.host_call("zap all".to_owned());
        Ok(())
    }

    /// Nothing: there are no shadow pages.
    ///
    /// # Errors
    /// Never.
    pub fn zap_gfn(&mut self, gfn: u64) -> Result<(), SimError> {
        self.host_call(format!("invalidate gfn {gfn:#x}"));
        Ok(())
    }

    /// Adds memory where there was none.
    ///
    /// # Errors
    /// If it overlaps another slot.
    pub fn add_slot(&mut self, slot: &Slot) -> Result<(), SimError> {
        self.host_call(format!("add slot {}", slot.name));
        let backing = if slot.read_only { Backing::ReadOnly } else { Backing::Writable };
        let new = Present { first: Hfn(slot.at.frame().0), pages: slot.pages, backing };
        let overlaps = |old: &Present| old.first.0 < new.first.0 + new.pages && new.first.0 < old.first.0 + old.pages;
        if self.slots.values().any(overlaps) {
            return Err(SimError::unmodelled(format!("memslot {} overlapping another", slot.name)));
        }
        self.ground.mem.set_backing(new.first, new.pages, backing);
        if slot.private {
            self.hidden.private.ranges.push((new.first, new.pages));
        }
        if slot.seen_by == SeenBy::Smm {
            self.hidden.smm.ranges.push((new.first, new.pages));
        }
        self.slots.insert(slot.name.clone(), new);
        Ok(())
    }

    /// Removes memory.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn delete_slot(&mut self, name: &str) -> Result<(), SimError> {
        self.host_call(format!("delete slot {name}"));
        let slot = self.slots.remove(name);
        let slot =
            slot.ok_or_else(|| SimError::unmodelled(format!("deletion of slot {name}, which does not exist")))?;
        self.ground.mem.set_backing(slot.first, slot.pages, Backing::Hole);
        self.hidden.deleted(slot.first);
        Ok(())
    }

    /// Nothing: there are no roots.
    ///
    /// # Errors
    /// Never.
    pub fn unload_mmu(&mut self, _vcpu: u8) -> Result<(), SimError> {
        self.host_call("unload MMU".to_owned());
        Ok(())
    }

    /// Nothing: no guest may notice that its hypervisor flushes.
    ///
    /// # Errors
    /// Never.
    pub fn flush_tlb(&mut self, _vcpu: u8) -> Result<(), SimError> {
        self.host_call("flush TLB".to_owned());
        Ok(())
    }

    /// Nothing: what is a vCPU elsewhere is a processor here, and processors stay where they are.
    ///
    /// # Errors
    /// Never.
    pub fn migrate(&mut self, _vcpu: u8, cpu: u8) -> Result<(), SimError> {
        self.host_call(format!("migrate to processor {cpu}"));
        Ok(())
    }

    /// Saves registers and the extension's state.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn save(&mut self, vcpu: u8) -> Result<Saved, SimError> {
        self.host_call("get sregs and nested state".to_owned());
        let sregs = self.sregs(vcpu)?;
        let (LogicalProcessor { core, ext }, ground) = self.parts(vcpu)?;
        let pdptes = core.pdptes;
        let region = match ext {
            Ext::Vmx(unit) => unit.current(),
            Ext::Svm(_) => Some(Hpa(layout::host_save(vcpu).0)),
        };
        let regions = region.map(|region| {
            let mut page = vec![0; PAGE_BYTES as usize];
            ground.mem.read_bytes(region, &mut page);
            (region, page)
        });
        Ok(Saved { sregs, pdptes, ext: ext.clone(), regions: regions.into_iter().collect() })
    }

    /// Restores the extension's state. VMX keeps a guest's registers in the VMCS, so that they come along; SVM's guest
    /// keeps those that the processor has.
    ///
    /// # Errors
    /// If it would take L2 away.
    pub fn set_nested_state(&mut self, vcpu: u8, saved: &Saved) -> Result<(), SimError> {
        self.host_call("set nested state".to_owned());
        let (processor, ground) = self.parts(vcpu)?;
        if nesting(&processor.ext) == Nesting::L2 && saved.nesting() == Nesting::L1 {
            return Err(taken_away());
        }
        for (region, page) in &saved.regions {
            ground.mem.write_bytes(*region, page);
        }
        processor.ext = saved.ext.clone();
        if matches!(saved.ext, Ext::Vmx(_)) && saved.nesting() == Nesting::L2 {
            let gprs = processor.core.gprs;
            self.set_sregs(vcpu, &Sregs { gprs, ..saved.sregs.clone() })?;
            let (LogicalProcessor { core, ext }, ground) = self.parts(vcpu)?;
            // Under EPT the PDPTEs are fields of the VMCS too (SDM 3C 24.4.2).
            if ext.regime(core).second != SecondStage::None && core.pdptes != saved.pdptes {
                core.pdptes = saved.pdptes;
                core.tlb.flush(ground, FlushScope::All);
            }
        }
        Ok(())
    }

    /// Silicon can't do it.
    ///
    /// # Errors
    /// Always.
    pub fn set_smm(&mut self, _vcpu: u8, _smm: crate::file::InSmm) -> Result<Nesting, SimError> {
        Err(SimError::unmodelled("SMM entered or left without an SMI or RSM, which bare silicon never does"))
    }

    /// Silicon can't do it.
    ///
    /// # Errors
    /// Always.
    pub fn leave_nested(&mut self, _vcpu: u8) -> Result<(), SimError> {
        Err(taken_away())
    }

    /// Makes a processor use any translation that the architecture permits, as the script says.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn choose_freely(&mut self, vcpu: u8, script: Vec<u32>) -> Result<(), SimError> {
        let (LogicalProcessor { core, .. }, ground) = self.parts(vcpu)?;
        core.tlb.set_policy(ground, TlbPolicy::Adversarial);
        ground.choices = Choices::scripted(script);
        Ok(())
    }

    /// Makes a processor use what its caches hold again, which is nothing at first.
    ///
    /// # Errors
    /// If there is no such processor.
    pub fn choose_no_more(&mut self, vcpu: u8) -> Result<(), SimError> {
        let (LogicalProcessor { core, .. }, ground) = self.parts(vcpu)?;
        core.tlb.set_policy(ground, TlbPolicy::Concrete);
        ground.choices = Choices::default();
        Ok(())
    }

    /// Keeps from now on what [`Self::choose_freely`] needs.
    pub fn watch(&mut self) {
        for processor in &mut self.processors {
            processor.core.tlb.watch(&mut self.ground);
        }
    }

    /// The choices made since the script began.
    #[must_use]
    pub fn choices(&self) -> &[Choice] {
        self.ground.choices.taken()
    }

    /// Every event so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.ground.log.records()
    }

    /// The state hash: memory and processors.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let mut hasher = StateHasher::default();
        self.ground.mem.hash(&mut hasher);
        self.processors.hash(&mut hasher);
        hasher.finish()
    }

    /// The hash of memory and registers, without what the processors' caches hold.
    #[must_use]
    pub fn architectural_hash(&self) -> u64 {
        let mut hasher = StateHasher::default();
        self.ground.mem.hash(&mut hasher);
        for LogicalProcessor { core, ext } in &self.processors {
            Core { tlb: Tlb::default(), ..core.clone() }.hash(&mut hasher);
            ext.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Core cycles so far.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        self.ground.clock.now().0
    }
}

fn taken_away() -> SimError {
    SimError::unmodelled("leaving L2 without a VM-exit, which bare silicon never does")
}

/// The extension, but for the gate ports, which it never intercepts, and the memory that L2 does not have.
struct TestPort<'a> {
    ext: &'a mut Ext,
    hidden: &'a mut Hidden,
}

impl Virt for TestPort<'_> {
    fn regime(&self, core: &Core) -> Regime {
        self.ext.regime(core)
    }

    fn trap(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError> {
        match trap {
            Trap::Io { port, input: false, .. } if GATE_PORTS.contains(port) => Ok(Verdict::Continue),
            _ => {
                let verdict = self.ext.trap(core, ground, trap, at);
                let running = Running::on(core, self.ext);
                let smm = match (trap, &verdict) {
                    (Trap::Smi, Ok(Verdict::Continue)) => Smm::Inside,
                    (Trap::Rsm, Ok(Verdict::Continue)) => Smm::Outside,
                    _ => running.smm,
                };
                self.hidden.follow(Running { smm, ..running }, &mut ground.mem);
                verdict
            }
        }
    }

    fn instruction(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        let done = self.ext.instruction(core, ground, instruction, at);
        self.hidden.follow(Running::on(core, self.ext), &mut ground.mem);
        done
    }

    fn cr_read(&self, ground: &Ground, register: ControlRegister, actual: u64) -> u64 {
        self.ext.cr_read(ground, register, actual)
    }

    fn cr_write(&self, ground: &Ground, register: ControlRegister, current: u64, operand: u64) -> u64 {
        self.ext.cr_write(ground, register, current, operand)
    }

    fn cr_fixed(&self, register: ControlRegister) -> (u64, u64) {
        self.ext.cr_fixed(register)
    }

    fn rdmsr(&self, core: &Core, index: u32) -> Option<Result<u64, Exception>> {
        self.ext.rdmsr(core, index)
    }

    fn attention(&self, core: &Core) -> bool {
        self.ext.attention(core)
    }

    fn held(&self, core: &Core) -> HeldEvents {
        self.ext.held(core)
    }

    fn tsc(&self, ground: &Ground, now: u64) -> u64 {
        self.ext.tsc(ground, now)
    }

    fn wrmsr(&mut self, core: &mut Core, index: u32, value: u64) -> Option<Result<(), Exception>> {
        self.ext.wrmsr(core, index, value)
    }
}
