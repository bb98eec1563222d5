//! vCPUs on logical processors (`vcpu_load`, `vcpu_put`, `vmx_vcpu_load_vmcs`, `loaded_vmcs_clear`; v5.17).
//!
//! A vCPU's thread runs on one processor; userspace or the scheduler may move it. The vCPU is loaded there when L0 next
//! works for it. A VMCS that was loaded elsewhere is cleared there first, and then everything is flushed, for the new
//! processor may hold translations of an earlier stay under the same tags. An SVM processor gives the VMCB a new ASID.
//!
//! A loaded vCPU stays until another one needs the processor: `vcpu_put` only saves what it left in registers that no
//! VMCS or VMCB switches.

use crate::machine::{LogicalProcessor, Machine};
use crate::run::Run;
use crate::tags::{Asids, Vpids};
use crate::vcpu::VendorState;
use cpu::Core;
use cpu::core::{Msrs, VectorState};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::event::Event;

/// What L0 keeps of the machine outside of any VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Host {
    /// The VPIDs of all processors.
    pub vpids: Vpids,
    /// One a processor.
    pub cpus: Vec<HostCpu>,
}

/// What L0 keeps of one processor (`per_cpu`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostCpu {
    /// The vCPU whose registers it holds.
    pub occupant: Option<u8>,
    /// Its ASIDs.
    pub asids: Asids,
}

/// The processors beside the one that a [`Run`] is on: where an inter-processor interrupt can reach.
#[derive(Debug)]
pub struct Others<'a> {
    before: &'a mut [LogicalProcessor],
    after: &'a mut [LogicalProcessor],
}

impl<'a> Others<'a> {
    /// One processor, and the others.
    pub fn split(processors: &'a mut [LogicalProcessor], at: u8) -> Option<(&'a mut LogicalProcessor, Self)> {
        let (before, rest) = processors.split_at_mut_checked(usize::from(at))?;
        let (this, after) = rest.split_first_mut()?;
        Some((this, Self { before, after }))
    }

    /// Another processor by its number.
    pub fn get_mut(&mut self, at: u8) -> Option<&mut LogicalProcessor> {
        let at = usize::from(at);
        match at.checked_sub(self.before.len()) {
            None => self.before.get_mut(at),
            Some(offset) => self.after.get_mut(offset.checked_sub(1)?),
        }
    }
}

/// What a guest leaves in a processor that neither VMCS nor VMCB switches: `vcpu_put` saves it (debug registers, FPU
/// state, user-return MSRs).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resident {
    dr: [u64; 4],
    dr6: u64,
    pkru: u32,
    xcr0: u64,
    vectors: VectorState,
    msrs: Msrs,
}

impl Resident {
    fn take(core: &Core) -> Self {
        Self { dr: core.dr, dr6: core.dr6, pkru: core.pkru, xcr0: core.xcr0, vectors: core.vectors, msrs: core.msrs }
    }

    fn give(self, core: &mut Core) {
        core.dr = self.dr;
        core.dr6 = self.dr6;
        core.pkru = self.pkru;
        core.xcr0 = self.xcr0;
        core.vectors = self.vectors;
        core.msrs = self.msrs;
    }
}

impl Machine {
    /// Moves a vCPU's thread to a processor (`sched_setaffinity`); the vCPU follows when L0 next works for it.
    ///
    /// # Errors
    /// If there is no such vCPU or processor.
    pub fn migrate(&mut self, id: u8, cpu: u8) -> Result<(), SimError> {
        self.ground.record(Event::HostCall { what: format!("migrate to processor {cpu}") });
        if usize::from(cpu) >= self.processors.len() {
            return Err(SimError::unmodelled(format!("migration to processor {cpu}, which the machine lacks")));
        }
        let vcpu = self.vcpus.get_mut(usize::from(id)).ok_or_else(|| SimError::internal(format!("no vCPU {id}")))?;
        vcpu.thread_on = cpu;
        Ok(())
    }

    /// `vcpu_put` for whoever holds the processor that a vCPU is about to take, and for the vCPU where it was.
    pub(crate) fn vacate(&mut self, id: u8, cpu: u8) {
        let held = self.host.cpus.iter().enumerate().filter(|(at, host)| {
            let here = *at == usize::from(cpu);
            (here && host.occupant != Some(id)) || (!here && host.occupant == Some(id))
        });
        let places: Vec<_> = held.filter_map(|(at, host)| Some((at, host.occupant?))).collect();
        for (at, occupant) in places {
            let core = &self.processors[at].core;
            self.vcpus[usize::from(occupant)].resident = Some(Resident::take(core));
            self.host.cpus[at].occupant = None;
        }
    }
}

impl Run<'_> {
    /// `vcpu_load`, if the vCPU is not on this processor yet.
    ///
    /// # Errors
    /// If hardware refuses the VMCS.
    pub(crate) fn vcpu_load(&mut self) -> Result<(), SimError> {
        let here = usize::from(self.cpu);
        if self.host.cpus[here].occupant == Some(self.vcpu.id) {
            return Ok(());
        }
        self.host.cpus[here].occupant = Some(self.vcpu.id);
        if let Some(resident) = self.vcpu.resident.take() {
            resident.give(&mut self.processor.core);
        }
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_vcpu_load()?,
            // The VMCB's tag tells the next VMRUN that it ran elsewhere.
            VendorState::Svm(_) => {}
        }
        self.vcpu.cpu = Some(self.cpu);
        Ok(())
    }
}
