//! The second stage, whichever is in force, and the walker that both stages share: what it may touch, and what each
//! touch costs (SDM 3C 28.2; APM2 15.25).

use super::descent::{Step, Structure, Tables};
use super::entry::Rights;
use super::{ept, npt};
use crate::exec::Fault;
use crate::tlb::Tlb;
use crate::virt::{Regime, SecondStage, StageFault, StageFaultKind, StagePurpose};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::clock::Cost;
use sim_core::{Gpa, Ground, Gva, Hpa, SimError};
use std::convert::Infallible;

/// The hardware walker during one translation.
pub(super) struct Walker<'a> {
    /// The translation regime.
    pub(super) regime: Regime,
    /// MAXPHYADDR, in bits.
    pub(super) maxphyaddr: u32,
    /// Where guest-physical mappings are cached.
    pub(super) tlb: &'a mut Tlb,
    /// Memory, time and choices.
    pub(super) ground: &'a mut Ground,
    /// References made so far to entries of both stages.
    pub(super) references: u32,
}

/// One access to a guest-physical address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// The address.
    pub(super) gpa: Gpa,
    /// The linear address behind it, if there is one.
    pub(super) gva: Option<Gva>,
    /// What is done to it.
    pub(super) access: Access,
    /// For a table of the first stage, or for the final address.
    pub(super) purpose: StagePurpose,
}

impl Request {
    /// The fault that this request takes.
    pub(super) const fn fault(&self, kind: StageFaultKind) -> StageFault {
        StageFault {
            gpa: self.gpa,
            gva: self.gva,
            access: self.access,
            purpose: self.purpose,
            first: None,
            convertible: false,
            kind,
        }
    }
}

/// What the second stage made of a guest-physical address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Staged {
    /// The host-physical address.
    pub(super) hpa: Hpa,
    /// What the second stage allows there.
    pub(super) rights: Rights,
    /// log2 of the bytes over which this translation holds.
    pub(super) shift: u32,
    /// Whether a write needs no further flag to be set in the second stage.
    pub(super) is_dirty: bool,
}

impl Walker<'_> {
    /// Translates a guest-physical address.
    pub(super) fn second_stage(&mut self, request: &Request) -> Result<Staged, Fault> {
        match self.regime.second {
            SecondStage::None => Ok(identity(request.gpa)),
            SecondStage::Ept { eptp, .. } => ept::translate(self, eptp, request),
            SecondStage::Npt { ncr3, host, .. } => npt::translate(self, ncr3, &host, request),
        }
    }

    /// How the second stage sees the walker reading a table of the first stage.
    pub(super) const fn table_read(&self) -> AccessKind {
        table_read(&self.regime.second)
    }

    /// Reads an entry.
    pub(super) fn read(&mut self, at: Hpa, bytes: usize) -> u64 {
        self.references = self.references.wrapping_add(1);
        self.ground.charge(Cost::WalkReference);
        self.ground.mem.read(at, bytes)
    }

    /// Writes an entry back.
    pub(super) fn write_back(&mut self, at: Hpa, value: u64, bytes: usize) {
        self.ground.charge(Cost::WalkUpdate);
        self.ground.mem.write(at, value, bytes);
    }
}

/// How a second stage sees the walker reading a table of the first stage.
pub(crate) const fn table_read(second: &SecondStage) -> AccessKind {
    match *second {
        SecondStage::None => AccessKind::Read,
        SecondStage::Ept { eptp, .. } => ept::table_read(eptp),
        SecondStage::Npt { .. } => npt::TABLE_READ,
    }
}

/// The tables of a second stage, none if there is no second stage.
///
/// # Errors
/// If they are not modelled.
pub(crate) fn structure(maxphyaddr: u32, second: &SecondStage) -> Result<Option<Structure>, SimError> {
    match second {
        SecondStage::None => Ok(None),
        SecondStage::Ept { eptp, .. } => ept::structure(maxphyaddr, *eptp).map(Some),
        SecondStage::Npt { ncr3, host, .. } => npt::structure(maxphyaddr, *ncr3, host).map(Some),
    }
}

/// Guest-physical is host-physical.
const fn identity(gpa: Gpa) -> Staged {
    Staged { hpa: gpa.as_hpa(), rights: Rights::all(), shift: 63, is_dirty: true }
}

/// Whether second-stage rights allow an access. Every nested access is a user access (APM2 15.25.5); EPT implies that
/// right.
pub(crate) const fn permits(rights: Rights, kind: AccessKind) -> bool {
    let needed = match kind {
        AccessKind::Read => Rights::READ,
        AccessKind::Write => Rights::WRITE,
        AccessKind::Fetch => Rights::EXECUTE,
    };
    rights.contains(needed.union(Rights::USER))
}

/// The tables of the second stage: in host-physical memory, where a reference can't fail.
pub(super) struct HostTables<'a, 'b>(pub(super) &'a mut Walker<'b>);

impl Tables for HostTables<'_, '_> {
    type Error = Infallible;

    fn read(&mut self, at: u64, bytes: usize) -> Result<(Hpa, u64), Infallible> {
        Ok((Hpa(at), self.0.read(Hpa(at), bytes)))
    }

    fn write_back(&mut self, step: &Step, value: u64) -> Result<(), Infallible> {
        self.0.write_back(step.hpa, value, step.bytes);
        Ok(())
    }
}
