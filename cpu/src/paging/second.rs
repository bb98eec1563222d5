//! The second stage, whichever is in force, and the walker that both stages share: what it may touch, and what each
//! touch costs (SDM 3C 28.2; APM2 15.25).

use super::descent::{CachedStep, Path, Root, Step, Structure, Tables, Update, cacheable};
use super::entry::Rights;
use super::format::Offers;
use super::memory_type::{Mtrrs, StageType};
use super::{ept, npt};
use crate::core::Core;
use crate::exec::Fault;
use crate::tlb::{self, CachedTable, Tlb};
use crate::virt::{FirstStage, Regime, SecondStage, StageFault, StageFaultKind, StagePurpose};
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
    /// What ordinary tables may use.
    pub(super) offers: Offers,
    /// Memory types of physical memory.
    pub(super) mtrrs: &'a Mtrrs,
    /// Where guest-physical mappings are cached.
    pub(super) tlb: &'a mut Tlb,
    /// Memory, time and choices.
    pub(super) ground: &'a mut Ground,
    /// References made so far to entries of both stages.
    pub(super) references: u32,
}

/// The memory types of a walker that is nobody's.
static WRITE_BACK: Mtrrs = Mtrrs::WRITE_BACK;

impl<'a> Walker<'a> {
    /// A processor's walker.
    pub(super) fn of(core: &'a mut Core, regime: &Regime, ground: &'a mut Ground) -> Self {
        let offers = Offers::ordinary(core.features);
        let Core { maxphyaddr, mtrrs, tlb, .. } = core;
        Self { regime: *regime, maxphyaddr: *maxphyaddr, offers, mtrrs, tlb, ground, references: 0 }
    }

    /// A walker that caches in a TLB of its own.
    pub(super) const fn detached(maxphyaddr: u32, tlb: &'a mut Tlb, regime: &Regime, ground: &'a mut Ground) -> Self {
        let offers = Offers::all();
        Self { regime: *regime, maxphyaddr, offers, mtrrs: &WRITE_BACK, tlb, ground, references: 0 }
    }
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
    /// What the first stage says of the linear address, if this is its final address.
    pub(super) first: Option<FirstStage>,
}

impl Request {
    /// The fault that this request takes.
    pub(super) const fn fault(&self, kind: StageFaultKind) -> StageFault {
        StageFault {
            gpa: self.gpa,
            gva: self.gva,
            access: self.access,
            purpose: self.purpose,
            first: self.first,
            convertible: false,
            kind,
        }
    }
}

/// What the first stage says of an address, by the rights it found (SDM 3C table 27-7 bits 11:9).
pub(crate) fn first_stage(rights: Rights) -> FirstStage {
    let mut first = FirstStage::empty();
    first.set(FirstStage::USER, rights.contains(Rights::USER));
    first.set(FirstStage::WRITABLE, rights.contains(Rights::WRITE));
    first.set(FirstStage::EXECUTE_DISABLED, !rights.contains(Rights::EXECUTE));
    first
}

/// What it says without paging: every linear address is a user-mode address, writable and executable.
pub(super) const UNPAGED: FirstStage = FirstStage::USER.union(FirstStage::WRITABLE);

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
    /// What the second stage says of the memory type.
    pub(super) stage_type: StageType,
}

/// Where a walk may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At the root.
    Root,
    /// At a cached table, if there is one.
    Cached,
}

impl Walker<'_> {
    /// Translates a guest-physical address.
    pub(super) fn second_stage(&mut self, request: &Request) -> Result<Staged, Fault> {
        match self.regime.second {
            SecondStage::None => Ok(identity(request.gpa)),
            SecondStage::Ept { eptp, controls } => ept::translate(self, &ept::Ept { eptp, controls }, request),
            SecondStage::Npt { ncr3, host, controls } => {
                npt::translate(self, &npt::Npt { ncr3, host, controls }, request)
            }
        }
    }

    /// Where the walk of an address begins: at the root, or as deep as a paging-structure cache allows.
    pub(super) fn start(&self, structure: Structure, tables: &tlb::Tables, address: u64, start: Start) -> Structure {
        match self.tlb.table(tables, address).filter(|_| start == Start::Cached) {
            None => structure,
            Some(entry) => {
                let CachedTable { shift, base, rights, .. } = *entry;
                Structure { root: Root::Cached(CachedStep { shift, base, rights }), ..structure }
            }
        }
    }

    /// Caches the tables that a walk used.
    pub(super) fn cache(&mut self, structure: &Structure, path: &Path, tables: tlb::Tables, address: u64) {
        for step in cacheable(structure, path) {
            let CachedStep { shift, base, rights } = step;
            let entry = CachedTable { tables, address: address >> shift << shift, shift, base, rights };
            self.tlb.insert_table(self.ground, entry);
        }
    }

    /// Tries a walk from a cached table, and if that fails for whatever reason, from the root: a stale step never
    /// causes a fault by itself, as no stale mapping does (SDM 3A 4.10.4.1, page faults).
    pub(super) fn through_caches<T>(
        &mut self,
        tables: &tlb::Tables,
        address: u64,
        mut walk: impl FnMut(&mut Self, Start) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if self.tlb.table(tables, address).is_none() {
            return walk(self, Start::Root);
        }
        walk(self, Start::Cached).or_else(|_| {
            self.tlb.drop_tables(tables, address);
            walk(self, Start::Root)
        })
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

    /// Replaces an entry's value, if it is still the old one.
    pub(super) fn update(&mut self, at: Hpa, old: u64, new: u64, bytes: usize) -> Update {
        self.ground.charge(Cost::WalkUpdate);
        if self.ground.mem.read(at, bytes) != old {
            return Update::Changed;
        }
        self.ground.mem.write(at, new, bytes);
        Update::Done
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
pub(crate) fn structure(maxphyaddr: u32, offers: Offers, second: &SecondStage) -> Result<Option<Structure>, SimError> {
    match *second {
        SecondStage::None => Ok(None),
        SecondStage::Ept { eptp, controls } => ept::structure(maxphyaddr, &ept::Ept { eptp, controls }).map(Some),
        SecondStage::Npt { ncr3, host, controls } => {
            npt::structure(maxphyaddr, offers, &npt::Npt { ncr3, host, controls }).map(Some)
        }
    }
}

/// Guest-physical is host-physical.
const fn identity(gpa: Gpa) -> Staged {
    Staged { hpa: gpa.as_hpa(), rights: Rights::all(), shift: 63, is_dirty: true, stage_type: StageType::Mtrr }
}

/// Whether second-stage rights allow an access to an address of which the first stage says `first`. A pure function, for
/// what was walked and for what was cached.
pub(crate) const fn permits(second: &SecondStage, rights: Rights, access: Access, first: Option<FirstStage>) -> bool {
    match second {
        SecondStage::None => true,
        SecondStage::Ept { eptp, controls } => {
            ept::permits(&ept::Ept { eptp: *eptp, controls: *controls }, rights, access, first)
        }
        SecondStage::Npt { controls, .. } => npt::permits(*controls, rights, access),
    }
}

/// The tables of the second stage: in host-physical memory, where a reference can't fail.
pub(super) struct HostTables<'a, 'b>(pub(super) &'a mut Walker<'b>);

impl Tables for HostTables<'_, '_> {
    type Error = Infallible;

    fn read(&mut self, at: u64, bytes: usize) -> Result<(Hpa, u64), Infallible> {
        Ok((Hpa(at), self.0.read(Hpa(at), bytes)))
    }

    fn update(&mut self, step: &Step, value: u64) -> Result<Update, Infallible> {
        Ok(self.0.update(step.hpa, step.value, value, step.bytes))
    }
}
