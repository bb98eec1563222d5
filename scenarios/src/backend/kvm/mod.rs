//! The `kvm` backend: the same guest in a VM of the kernel that this program runs on (cargo feature `kvm`).
//!
//! The guest's image, code slots and gates are those of the other backends; a gate's OUT comes back as `KVM_EXIT_IO`.
//! The axes of the hypervisor (`tdp`, `vpid`, `at`, changes) have no effect: this KVM is what it is. What it can't do is said by name
//! ([`SimError::Unmodelled`], exit code 125), never passed over: [`Abilities`] are probed, not assumed.
//!
//! Each KVM_RUN is bounded by a timer. Pages are touched and small, so that no host page is shared or large. Left out:
//! Migration between processors, ageing, and pauses inside a page fault.

mod abilities;
mod engines;
mod format;
mod host;
mod init;
mod nested;
mod raw;
mod registers;
mod ring;
mod statistics;
mod tracefs;

pub use abilities::{Abilities, Ability, enters};
pub use engines::Engines;
pub use nested::Saved;
pub(crate) use raw::{PORT, Port};

use crate::file::{RunConfig, Scenario, Slot, Vendor};
use cpu::Gpr;
use hypervisor::run::GATE_PORTS;
use hypervisor::{Sregs, Stop};
use init::Apics;
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use mmu::stats::Stat;
use raw::{Alarm, Backing, SlotFlags, failed, set_slot};
use sim_core::addr::PAGE_BYTES;
use sim_core::arch::control::{Cr4, Efer};
use sim_core::clock::Cycles;
use sim_core::event::{Detail, Event, EventLog, Record};
use sim_core::{Gpa, SimError};
use statistics::Statistics;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracefs::Trace;

/// What is said of a guest that does not come back.
pub const NO_GATE: &str = "no gate within two seconds, or too many exits, on this KVM";

/// How long a vCPU may run to its next gate. A gate is reached in microseconds; what is not reached by then never is.
const MOST_TIME: Duration = Duration::from_secs(2);
/// Exits of one run after which something is clearly wrong.
const EXITS_MAX: u64 = 100_000;

/// Why there is no view of the inside where nobody asks for it.
const NOTHING: &str = "nothing is recorded";

/// A slot as the VM has it.
#[derive(Debug)]
struct Present {
    number: u32,
    at: Gpa,
    pages: u64,
    backing: Backing,
    flags: SlotFlags,
}

impl Present {
    const fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES
    }

    const fn holds(&self, at: Gpa) -> bool {
        at.0 >= self.at.0 && at.0 - self.at.0 < self.bytes()
    }

    fn tell(&self, vm: &VmFd) -> Result<(), SimError> {
        set_slot(vm, self.number, self.at.0, Some((&self.backing, self.flags)))
    }
}

/// A vCPU and its registers as they were at its last exit.
#[derive(Debug)]
struct Seat {
    fd: VcpuFd,
    regs: kvm_regs,
}

/// The VM of one run.
#[derive(Debug)]
pub struct Kvm {
    seats: Vec<Seat>,
    vm: VmFd,
    /// Main memory has the empty name.
    slots: BTreeMap<String, Present>,
    next_slot: u32,
    /// What lies behind the slot that comes and goes to make the kernel drop every shadow page.
    scratch: Backing,
    log: EventLog,
    abilities: Abilities,
    apics: Apics,
    /// The inside view, or why there is none.
    inside: Result<Arc<Trace>, String>,
    /// What the kernel counts, or why that is not known.
    statistics: Result<Statistics, String>,
}

impl Kvm {
    /// Builds the VM of a run, without any guest content.
    ///
    /// # Errors
    /// If there is no KVM, or it can't do what the run needs.
    pub fn new(scenario: &Scenario, run: &RunConfig, detail: Detail) -> Result<Self, SimError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|error| failed("/dev/kvm", &error))?;
        let engines = Engines::here();
        let abilities = Abilities::of(&kvm, engines)?;
        abilities.suffice(scenario, run)?;
        let vm = kvm.create_vm().map_err(|error| failed("KVM_CREATE_VM", &error))?;
        abilities::disable_quirks(&vm)?;
        let apics = if abilities::sends_init(scenario, run) { Apics::Kernel } else { Apics::None };
        apics.prepare(&vm)?;
        let mut new = Self {
            seats: Vec::new(),
            vm,
            slots: BTreeMap::new(),
            next_slot: 0,
            scratch: Backing::new(PAGE_BYTES as usize)?,
            log: EventLog::new(detail),
            abilities,
            apics,
            inside: inside(detail),
            statistics: Err(NOTHING.to_owned()),
        };
        new.add("", Gpa(0), scenario.machine.memory / PAGE_BYTES, SlotFlags::default())?;
        for slot in scenario.slots.iter().filter(|slot| slot.present) {
            new.add_slot(slot)?;
        }
        for id in 0..scenario.machine.vcpus {
            let number = apics.number(id).into();
            let fd = new.vm.create_vcpu(number).map_err(|error| failed("KVM_CREATE_VCPU", &error))?;
            let cpuid = abilities::cpuid(&kvm, engines, run.vendor, scenario.machine.module.maxphyaddr)?;
            fd.set_cpuid2(&cpuid).map_err(|error| failed("KVM_SET_CPUID2", &error))?;
            apics.start(&fd)?;
            if new.abilities.has(Ability::Nested) {
                nested::permit(&fd, run.vendor, id)?;
            }
            if new.abilities.has(Ability::Smm) {
                nested::place_smm(&fd, id)?;
            }
            new.seats.push(Seat { fd, regs: kvm_regs::default() });
        }
        if detail != Detail::Nothing {
            let opened = Statistics::open(&new.vm, new.seats.iter().map(|seat| &seat.fd));
            new.statistics = opened.map_err(|error| format!("KVM_GET_STATS_FD: {error}"));
        }
        Ok(new)
    }

    /// What this KVM can do.
    #[must_use]
    pub const fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// Why there is no inside view, if there is none.
    #[must_use]
    pub fn closed(&self) -> Option<&str> {
        self.inside.as_ref().err().map(String::as_str)
    }

    /// What the kernel has counted so far.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn told(&self) -> Result<BTreeMap<Stat, u64>, String> {
        let statistics = self.statistics.as_ref().map_err(Clone::clone)?;
        statistics.told().map_err(|error| format!("KVM_GET_STATS_FD: {error}"))
    }

    /// Notes what the kernel's MMU did since the last time.
    fn look_inside(&mut self) {
        let Ok(trace) = &self.inside else { return };
        match trace.take() {
            Ok(events) => events.into_iter().for_each(|event| self.record(event)),
            Err(error) => self.inside = Err(format!("tracefs: {error}")),
        }
    }

    fn add(&mut self, name: &str, at: Gpa, pages: u64, flags: SlotFlags) -> Result<(), SimError> {
        let backing = Backing::new((pages * PAGE_BYTES) as usize)?;
        let slot = Present { number: self.next_slot, at, pages, backing, flags };
        slot.tell(&self.vm)?;
        self.next_slot += 1;
        self.slots.insert(name.to_owned(), slot);
        Ok(())
    }

    fn seat(&self, vcpu: u8) -> Result<&Seat, SimError> {
        self.seats.get(usize::from(vcpu)).ok_or_else(|| SimError::internal(format!("no vCPU {vcpu}")))
    }

    /// Marks the end of a run, whose last step has its events as well.
    pub fn end(&mut self) {
        self.look_inside();
    }

    /// Marks the beginning of a step.
    pub fn begin_step(&mut self, step: u32, text: String) {
        self.look_inside();
        self.record(Event::StepBegin { step, text });
    }

    /// Records an event of the engine's own; a real machine has no cycles to stamp it with.
    pub fn record(&mut self, event: Event) {
        self.log.push(Cycles(0), Cycles(0), event);
    }

    /// Every event so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.log.records()
    }

    /// Writes guest memory as userspace does.
    ///
    /// # Errors
    /// If no slot is there.
    pub fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), SimError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = at.offset(done as u64);
            let slot = self.slots.values().find(|slot| slot.holds(at));
            let slot =
                slot.ok_or_else(|| SimError::unmodelled(format!("memory contents at {at}, where no slot is")))?;
            let offset = at.0 - slot.at.0;
            let piece = bytes.len().min(done + (slot.bytes() - offset) as usize);
            slot.backing.write(offset as usize, &bytes[done..piece])?;
            done = piece;
        }
        Ok(())
    }

    /// One general-purpose register of a vCPU.
    #[must_use]
    pub fn gpr(&self, vcpu: u8, register: Gpr) -> u64 {
        self.seats.get(usize::from(vcpu)).map_or(0, |seat| registers::gpr(&seat.regs, register))
    }

    /// A vCPU's registers (`KVM_GET_SREGS`, `KVM_GET_REGS`).
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn sregs(&mut self, vcpu: u8) -> Result<Sregs, SimError> {
        let fd = &self.seat(vcpu)?.fd;
        let sregs = fd.get_sregs().map_err(|error| failed("KVM_GET_SREGS", &error))?;
        let regs = fd.get_regs().map_err(|error| failed("KVM_GET_REGS", &error))?;
        Ok(registers::read(&sregs, &regs))
    }

    /// Without CR4.VMXE and EFER.SVME where guests can't nest: a run that gets here never uses them.
    #[must_use]
    pub fn permitted(&self, cr4: Cr4, efer: Efer) -> (Cr4, Efer) {
        if self.abilities.has(Ability::Nested) { (cr4, efer) } else { (cr4 - Cr4::VMXE, efer - Efer::SVME) }
    }

    /// Sets a vCPU's registers (`KVM_SET_SREGS`, `KVM_SET_REGS`).
    ///
    /// # Errors
    /// If there is no such vCPU, or this KVM does not have such a mode.
    pub fn set_sregs(&mut self, vcpu: u8, new: &Sregs) -> Result<(), SimError> {
        self.record(Event::HostCall { what: "set sregs".to_owned() });
        let fd = &self.seat(vcpu)?.fd;
        let mut sregs = fd.get_sregs().map_err(|error| failed("KVM_GET_SREGS", &error))?;
        registers::write_sregs(&mut sregs, new);
        let (cr4, efer) = self.permitted(Cr4::from_bits_retain(sregs.cr4), Efer::from_bits_retain(sregs.efer));
        (sregs.cr4, sregs.efer) = (cr4.bits(), efer.bits());
        fd.set_sregs(&sregs).map_err(|error| failed("KVM_SET_SREGS", &error))?;
        // Some KVMs take what they can't do, and do something else.
        let got = fd.get_sregs().map_err(|error| failed("KVM_GET_SREGS", &error))?;
        if (got.cr0, got.cr4, got.efer) != (sregs.cr0, sregs.cr4, sregs.efer) {
            let (cr0, cr4, efer) = (sregs.cr0 ^ got.cr0, sregs.cr4 ^ got.cr4, sregs.efer ^ got.efer);
            let what = format!("a paging mode that this KVM drops (bits CR0 {cr0:#x}, CR4 {cr4:#x}, EFER {efer:#x})");
            return Err(SimError::unmodelled(what));
        }
        fd.set_regs(&registers::to_regs(new)).map_err(|error| failed("KVM_SET_REGS", &error))
    }

    /// Runs a vCPU to its next gate. A halted one goes on, as after an interrupt.
    ///
    /// # Errors
    /// If no gate is reached in time, or this KVM can't run the instruction.
    pub fn run(&mut self, vcpu: u8) -> Result<Stop, SimError> {
        let seat = self.seats.get_mut(usize::from(vcpu));
        let seat = seat.ok_or_else(|| SimError::internal(format!("no vCPU {vcpu}")))?;
        let alarm = Alarm::set(MOST_TIME)?;
        let stop = run_to_gate(&mut seat.fd);
        drop(alarm);
        seat.regs = seat.fd.get_regs().map_err(|error| failed("KVM_GET_REGS", &error))?;
        self.look_inside();
        // That alone is no finding: the clock and the load of this machine decide it.
        stop?.ok_or_else(|| SimError::unmodelled(NO_GATE))
    }

    /// Adds a slot of the scenario.
    ///
    /// # Errors
    /// If this KVM has no such slots.
    pub fn add_slot(&mut self, slot: &Slot) -> Result<(), SimError> {
        self.record(Event::HostCall { what: format!("add slot {}", slot.name) });
        host::is_plain(slot)?;
        let flags = SlotFlags { read_only: slot.read_only, logs: false };
        self.add(&slot.name, slot.at, slot.pages, flags)
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn delete_slot(&mut self, name: &str) -> Result<(), SimError> {
        self.record(Event::HostCall { what: format!("delete slot {name}") });
        let slot = self.slots.get(name);
        let slot = slot.ok_or_else(|| SimError::unmodelled(format!("deleting slot {name}, which does not exist")))?;
        set_slot(&self.vm, slot.number, slot.at.0, None)?;
        self.slots.remove(name);
        Ok(())
    }
}

/// The inside view of a run that wants its events.
fn inside(detail: Detail) -> Result<Arc<Trace>, String> {
    if detail == Detail::Nothing {
        return Err(NOTHING.to_owned());
    }
    Trace::of_this_thread().map_err(|error| format!("tracefs: {error}"))
}

/// Runs to a gate; none if the time is over.
fn run_to_gate(fd: &mut VcpuFd) -> Result<Option<Stop>, SimError> {
    for _ in 0..EXITS_MAX {
        match fd.run() {
            Ok(VcpuExit::IoOut(port, data)) if GATE_PORTS.contains(&port) => {
                // The instruction is complete only when the vCPU is run again, or told to come back at once.
                let value = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                complete(fd)?;
                return Ok(Some(Stop::Gate { port, value }));
            }
            // An OUT to a port of no device goes nowhere; reading what is not there gives ones.
            Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::Hlt) => return Ok(Some(Stop::Halted)),
            Ok(VcpuExit::Shutdown) => return Ok(Some(Stop::Shutdown)),
            Ok(VcpuExit::InternalError) => {
                return Err(SimError::unmodelled("an instruction that this KVM's emulator lacks"));
            }
            Ok(other) => return Err(SimError::unmodelled(format!("the exit {other:?} of this KVM"))),
            Err(error) if error.errno() == libc::EINTR => return Ok(None),
            Err(error) => return Err(failed("KVM_RUN", &error)),
        }
    }
    Ok(None)
}

/// Lets the kernel finish the OUT that the vCPU exited for, without running anything.
fn complete(fd: &mut VcpuFd) -> Result<(), SimError> {
    fd.set_kvm_immediate_exit(1);
    let ended = fd.run().map(|exit| format!("{exit:?}"));
    fd.set_kvm_immediate_exit(0);
    match ended {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        Err(error) => Err(failed("KVM_RUN", &error)),
        Ok(exit) => Err(SimError::unmodelled(format!("an OUT that ends with the exit {exit} on this KVM"))),
    }
}

/// The vendor string in CPUID leaf 0.
const fn vendor_words(vendor: Vendor) -> [u32; 3] {
    // EBX, EDX, ECX spell GenuineIntel and AuthenticAMD.
    match vendor {
        Vendor::Intel => [0x756e_6547, 0x4965_6e69, 0x6c65_746e],
        Vendor::Amd => [0x6874_7541, 0x6974_6e65, 0x444d_4163],
    }
}
