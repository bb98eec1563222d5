//! The translation look-aside buffer: not architectural, modelled so that a missing invalidation can show (SDM 3A
//! 4.10.2; SDM 3C 28.3; APM2 5.5, 15.16).
//!
//! Two fully associative stores of fixed capacity, entries in the order of their insertion: mappings of linear
//! addresses (what the SDM calls linear mappings, or with EPT combined mappings) and guest-physical mappings of EPT.
//! Instructions and data share them. Left out: paging-structure caches, set associativity, speculative fills.

mod entry;
mod invalidate;

pub use entry::{GuestPhysical, Mapping, Space};

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
        self.mappings.iter().find(|mapping| mapping.serves(space, gva))
    }

    /// The oldest guest-physical mapping that translates an address under an EPT root.
    #[must_use]
    pub fn guest_physical(&self, ept_root: Hpa, gpa: Gpa) -> Option<&GuestPhysical> {
        self.guest_physical.iter().find(|mapping| mapping.serves(ept_root, gpa))
    }

    /// Keeps a mapping, giving one up if there is no room.
    pub fn insert(&mut self, ground: &mut Ground, mapping: Mapping) {
        self.changed();
        make_room(&mut self.mappings, MAPPINGS_MAX, ground);
        self.mappings.push(mapping);
    }

    /// Keeps a guest-physical mapping, giving one up if there is no room.
    pub fn insert_guest_physical(&mut self, ground: &mut Ground, mapping: GuestPhysical) {
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

    /// Drops every entry in the scope.
    pub fn invalidate(&mut self, scope: &FlushScope) {
        self.changed();
        self.mappings.retain(|mapping| !invalidate::covers(scope, mapping));
        self.guest_physical.retain(|mapping| !invalidate::covers_guest_physical(scope, mapping));
    }

    /// Drops every entry in the scope, charging time and recording the flush.
    pub fn flush(&mut self, ground: &mut Ground, scope: FlushScope) {
        self.invalidate(&scope);
        ground.spend(Cost::TlbFlush, Event::TlbFlush { scope });
    }
}

/// Gives up entries of a full store: which one is open (SDM 3A 4.10.2.2), alternative 0 is the oldest.
fn make_room<T>(entries: &mut Vec<T>, capacity: usize, ground: &mut Ground) {
    while entries.len() >= capacity {
        let victim = ground.choices.choose(ChoicePoint::TlbVictim, entries.len() as u32);
        entries.remove(victim as usize);
    }
}
