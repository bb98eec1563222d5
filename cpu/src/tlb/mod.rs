//! The translation look-aside buffer: not architectural, modelled so that a missing invalidation can show (SDM 3A
//! 4.10.2; SDM 3C 28.3; APM2 5.5, 15.16).
//!
//! Two fully associative stores of fixed capacity, entries in the order of their insertion: mappings of linear
//! addresses (what the SDM calls linear mappings, or with EPT combined mappings) and guest-physical mappings of EPT.
//! Instructions and data share them. Left out: paging-structure caches, set associativity, speculative fills.

mod entry;
mod invalidate;
mod journal;
pub mod permitted;
mod policy;

pub use entry::{CachedTable, GuestPhysical, Mapping, Space, StageTag, Tables};
pub use policy::TlbPolicy;

use crate::core::Core;
use crate::virt::Regime;
use journal::Journal;
use serde::{Deserialize, Serialize};
use sim_core::choice::ChoicePoint;
use sim_core::clock::Cost;
use sim_core::event::{Event, FlushScope};
use sim_core::{Gpa, Ground, Gva, Hpa};
use std::hash::{Hash, Hasher};

/// How many mappings of linear addresses a processor keeps.
pub const MAPPINGS_MAX: usize = 64;
/// How many guest-physical mappings a processor keeps.
pub const GUEST_PHYSICAL_MAX: usize = 32;

/// Cached translations of one logical processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tlb {
    mappings: Vec<Mapping>,
    guest_physical: Vec<GuestPhysical>,
    policy: TlbPolicy,
    /// Kept while the permitted set is asked for; a checkpoint does not save it.
    #[serde(skip)]
    journal: Option<Box<Journal>>,
    #[serde(skip)]
    generation: Generation,
}

/// Counts the changes of a [`Tlb`], so that what was concluded from it can be kept while nothing changes. It is no
/// part of the machine's state: all generations are equal.
#[derive(Clone, Copy, Debug, Default)]
struct Generation(u64);

impl PartialEq for Generation {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Generation {}

impl Hash for Generation {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Tlb {
    /// A number that differs from every earlier one of this TLB whenever a look-up might give another answer than
    /// before.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation.0
    }

    const fn changed(&mut self) {
        self.generation.0 = self.generation.0.wrapping_add(1);
    }

    /// Which translation an access uses.
    #[must_use]
    pub const fn policy(&self) -> TlbPolicy {
        self.policy
    }

    /// Says which translation an access uses from now on. Whatever is cached is dropped first; an adversarial TLB is
    /// also [watched](Self::watch).
    pub fn set_policy(&mut self, ground: &mut Ground, policy: TlbPolicy) {
        self.policy = policy;
        self.drop_covered(&FlushScope::All);
        if policy == TlbPolicy::Adversarial {
            self.watch(ground);
        }
    }

    /// Keeps from now on what [`permitted`] needs, this TLB's journal and the history of memory, beginning with nothing
    /// cached. It lasts for the run and costs time with every write and flush.
    pub fn watch(&mut self, ground: &mut Ground) {
        if self.journal.is_none() {
            self.drop_covered(&FlushScope::All);
            self.journal = Some(Box::new(Journal::new(&mut ground.mem)));
        }
    }

    /// Whether an access that this TLB serves needs nothing but a look-up: the modelled TLB answers, and nobody watches.
    #[must_use]
    pub const fn is_concrete(&self) -> bool {
        matches!(self.policy, TlbPolicy::Concrete) && self.journal.is_none()
    }

    /// Whether a journal is kept.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.journal.is_some()
    }

    /// The journal, while it is kept.
    pub(crate) fn journal(&self) -> Option<&Journal> {
        self.journal.as_deref()
    }

    /// Every mapping of a linear address, oldest first.
    #[must_use]
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Every guest-physical mapping, oldest first.
    #[must_use]
    pub fn guest_physical_mappings(&self) -> &[GuestPhysical] {
        &self.guest_physical
    }

    /// The oldest mapping that translates an address.
    #[must_use]
    pub fn look_up(&self, space: &Space, gva: Gva) -> Option<&Mapping> {
        self.mappings.iter().find(|mapping| mapping.serves(space, gva)).filter(|_| self.caches())
    }

    /// The oldest guest-physical mapping that translates an address under an EPT root.
    #[must_use]
    pub fn guest_physical(&self, ept_root: Hpa, gpa: Gpa) -> Option<&GuestPhysical> {
        self.guest_physical.iter().find(|mapping| mapping.serves(ept_root, gpa))
    }

    /// Whether the modelled TLB takes part.
    const fn caches(&self) -> bool {
        matches!(self.policy, TlbPolicy::Concrete)
    }

    /// Keeps a mapping, giving one up if there is no room.
    pub fn insert(&mut self, ground: &mut Ground, mapping: Mapping) {
        if !self.caches() {
            return;
        }
        self.changed();
        make_room(&mut self.mappings, MAPPINGS_MAX, ground);
        self.mappings.push(mapping);
    }

    /// Keeps a guest-physical mapping, giving one up if there is no room.
    pub fn insert_guest_physical(&mut self, ground: &mut Ground, mapping: GuestPhysical) {
        if !self.caches() {
            return;
        }
        self.changed();
        make_room(&mut self.guest_physical, GUEST_PHYSICAL_MAX, ground);
        self.guest_physical.push(mapping);
    }

    /// Drops every mapping that translates an address.
    pub fn drop_mapping(&mut self, space: &Space, gva: Gva) {
        self.changed();
        self.mappings.retain(|mapping| !mapping.serves(space, gva));
    }

    /// Drops every guest-physical mapping that translates an address under an EPT root.
    pub fn drop_guest_physical(&mut self, ept_root: Hpa, gpa: Gpa) {
        self.changed();
        self.guest_physical.retain(|mapping| !mapping.serves(ept_root, gpa));
    }

    /// Drops every entry in the scope, as part of something that is told and timed by itself: a fault, a task switch.
    pub fn invalidate(&mut self, ground: &mut Ground, scope: &FlushScope) {
        self.drop_covered(scope);
        if let Some(journal) = &mut self.journal {
            journal.flush(&mut ground.mem, scope);
        }
    }

    fn drop_covered(&mut self, scope: &FlushScope) {
        self.changed();
        self.mappings.retain(|mapping| !invalidate::covers(scope, mapping));
        self.guest_physical.retain(|mapping| !invalidate::covers_guest_physical(scope, mapping));
    }

    /// Drops every entry in the scope, charging time and recording the flush.
    pub fn flush(&mut self, ground: &mut Ground, scope: FlushScope) {
        self.invalidate(ground, &scope);
        ground.spend(Cost::TlbFlush, Event::TlbFlush { scope });
    }
}

/// Tells a watched TLB which address space its processor is in now: after whatever changes control registers, tags or
/// the second stage. Instructions and accesses tell by themselves.
pub fn note(core: &mut Core, regime: &Regime, ground: &Ground) {
    if core.tlb.journal.is_none() {
        return;
    }
    let setting = permitted::setting(core, regime);
    if let Some(journal) = &mut core.tlb.journal {
        journal.note(ground.mem.now(), setting);
    }
}

/// Gives up entries of a full store: which one is open (SDM 3A 4.10.2.2), alternative 0 is the oldest.
fn make_room<T>(entries: &mut Vec<T>, capacity: usize, ground: &mut Ground) {
    while entries.len() >= capacity {
        let victim = ground.choices.choose(ChoicePoint::TlbVictim, entries.len() as u32);
        entries.remove(victim as usize);
    }
}
