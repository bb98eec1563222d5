//! The translation caches of a logical processor: not architectural, modelled so that a missing invalidation can show (SDM
//! 3A 4.10; SDM 3C 28.3; APM2 5.5, 15.16).
//!
//! Linear, combined and guest-physical mappings, and paging-structure caches for both stages, in arrays as a profile's
//! [geometry](crate::profile::TlbGeometry) says. Walks fill arrays of level 1, whose victims move to level 2; a hit
//! changes nothing. Which translation an access uses is a [policy](TlbPolicy); beside the modelled TLB stands the
//! [permitted set](permitted). Left out: speculative fills of the modelled TLB (the permitted set has them), moving a hit
//! from level 2 to level 1, splitting a page that no array holds, nested paging-structure caches of AMD's processors.

mod entry;
mod invalidate;
mod journal;
pub mod permitted;
mod policy;
mod saved;
mod store;

pub use entry::{CachedTable, GuestPhysical, Mapping, Space, StageTag, Tables};
pub use policy::TlbPolicy;

use crate::core::Core;
use crate::profile::{CacheGeometry, Serves, TlbProfile};
use crate::virt::Regime;
use journal::Journal;
use saved::SavedTlb;
use serde::{Deserialize, Serialize};
use sim_core::arch::access::AccessKind;
use sim_core::clock::Cost;
use sim_core::event::{Event, FlushScope};
use sim_core::{Gpa, Ground, Gva, Hpa};
use std::hash::{Hash, Hasher};
use store::Store;

/// How many mappings of linear addresses a processor of the base profile keeps.
pub const MAPPINGS_MAX: usize = 64;
/// How many guest-physical mappings a processor of the base profile keeps.
pub const GUEST_PHYSICAL_MAX: usize = 32;

/// Cached translations of one logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "SavedTlb", into = "SavedTlb")]
pub struct Tlb {
    profile: TlbProfile,
    policy: TlbPolicy,
    pages: Vec<Store<Mapping>>,
    guest_physical: Store<GuestPhysical>,
    tables: Vec<Store<CachedTable>>,
    stage_tables: Vec<Store<CachedTable>>,
    /// Kept while the permitted set is asked for; a checkpoint does not save it.
    journal: Option<Box<Journal>>,
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

impl Default for Tlb {
    fn default() -> Self {
        Self::new(TlbProfile::Base)
    }
}

/// Whether an array is looked up for an access.
const fn is_for(geometry: &CacheGeometry, kind: AccessKind) -> bool {
    match geometry.serves {
        Serves::All => true,
        Serves::Fetches => matches!(kind, AccessKind::Fetch),
        Serves::Data => matches!(kind, AccessKind::Read | AccessKind::Write),
    }
}

impl Tlb {
    /// Empty caches of a profile's geometry.
    #[must_use]
    pub fn new(profile: TlbProfile) -> Self {
        let geometry = profile.geometry();
        Self {
            profile,
            policy: TlbPolicy::default(),
            pages: geometry.pages.iter().map(Store::new).collect(),
            guest_physical: Store::new(&geometry.guest_physical),
            tables: geometry.tables.iter().map(Store::new).collect(),
            stage_tables: geometry.stage_tables.iter().map(Store::new).collect(),
            journal: None,
            generation: Generation::default(),
        }
    }

    /// The profile whose geometry the caches have.
    #[must_use]
    pub const fn profile(&self) -> TlbProfile {
        self.profile
    }

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
        self.changed();
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
            self.changed();
            self.drop_covered(&FlushScope::All);
            self.journal = Some(Box::new(Journal::new(&mut ground.mem)));
        }
    }

    /// Whether an access that this TLB serves needs nothing but a look-up: the modelled TLB answers, and nobody watches.
    #[must_use]
    pub const fn is_concrete(&self) -> bool {
        self.caches() && self.journal.is_none()
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

    /// Whether the modelled TLB takes part.
    const fn caches(&self) -> bool {
        matches!(self.policy, TlbPolicy::Concrete)
    }

    /// Every mapping of a linear address, array by array, oldest first.
    #[must_use]
    pub fn mappings(&self) -> Vec<Mapping> {
        self.pages.iter().flat_map(Store::entries).collect()
    }

    /// Every guest-physical mapping, oldest first.
    #[must_use]
    pub fn guest_physical_mappings(&self) -> Vec<GuestPhysical> {
        self.guest_physical.entries()
    }

    /// Every paging-structure-cache entry, array by array, oldest first.
    #[must_use]
    pub fn cached_tables(&self) -> Vec<CachedTable> {
        self.tables.iter().chain(&self.stage_tables).flat_map(Store::entries).collect()
    }

    /// A mapping that translates an address, for whatever access.
    #[must_use]
    pub fn look_up(&self, space: &Space, gva: Gva) -> Option<&Mapping> {
        self.pages.iter().find_map(|array| array.find(gva.0, |mapping| mapping.serves(space, gva)))
    }

    /// The mapping that an access finds.
    #[must_use]
    pub fn look_up_for(&self, space: &Space, gva: Gva, kind: AccessKind) -> Option<&Mapping> {
        let mut arrays = self.pages.iter().filter(|array| is_for(array.geometry(), kind));
        arrays.find_map(|array| array.find(gva.0, |mapping| mapping.serves(space, gva)))
    }

    /// The guest-physical mapping that translates an address under an EPT root.
    #[must_use]
    pub fn guest_physical(&self, ept_root: Hpa, gpa: Gpa) -> Option<&GuestPhysical> {
        self.guest_physical.find(gpa.0, |mapping| mapping.serves(ept_root, gpa))
    }

    /// The deepest table at which the walk of an address can begin.
    #[must_use]
    pub fn table(&self, tables: &Tables, address: u64) -> Option<&CachedTable> {
        let arrays = match tables {
            Tables::Linear(_) => &self.tables,
            Tables::Stage(_) => &self.stage_tables,
        };
        arrays.iter().find_map(|array| array.find(address, |entry| entry.serves(tables, address)))
    }

    /// Keeps a mapping that a data access made.
    pub fn insert(&mut self, ground: &mut Ground, mapping: Mapping) {
        self.insert_for(ground, mapping, AccessKind::Read);
    }

    /// Keeps a mapping that an access made. Whatever a full array of level 1 gives up moves to level 2.
    pub fn insert_for(&mut self, ground: &mut Ground, mapping: Mapping, kind: AccessKind) {
        if !self.caches() {
            return;
        }
        self.changed();
        let mut moving = Some(mapping);
        for level in [1, 2] {
            let Some(entry) = moving else { return };
            let holds = |geometry: &CacheGeometry| {
                geometry.level == level && is_for(geometry, kind) && geometry.shifts.contains(&entry.shift)
            };
            if let Some(array) = self.pages.iter_mut().find(|array| holds(array.geometry())) {
                moving = array.insert(ground, entry);
            }
        }
    }

    /// Keeps a guest-physical mapping, giving one up if there is no room.
    pub fn insert_guest_physical(&mut self, ground: &mut Ground, mapping: GuestPhysical) {
        if self.caches() {
            self.changed();
            self.guest_physical.insert(ground, mapping);
        }
    }

    /// Keeps a paging-structure-cache entry, if an array is for its level.
    pub fn insert_table(&mut self, ground: &mut Ground, entry: CachedTable) {
        if !self.caches() {
            return;
        }
        let arrays = match entry.tables {
            Tables::Linear(_) => &mut self.tables,
            Tables::Stage(_) => &mut self.stage_tables,
        };
        if let Some(array) = arrays.iter_mut().find(|array| array.geometry().shifts.contains(&entry.shift))
            && array.find(entry.address, |known| *known == entry).is_none()
        {
            array.drop_if(|known| known.shift == entry.shift && known.serves(&entry.tables, entry.address));
            array.insert(ground, entry);
        }
    }

    /// Drops every mapping that translates an address.
    pub fn drop_mapping(&mut self, space: &Space, gva: Gva) {
        self.changed();
        for array in &mut self.pages {
            array.drop_if(|mapping| mapping.serves(space, gva));
        }
    }

    /// Drops every guest-physical mapping that translates an address under an EPT root.
    pub fn drop_guest_physical(&mut self, ept_root: Hpa, gpa: Gpa) {
        self.changed();
        self.guest_physical.drop_if(|mapping| mapping.serves(ept_root, gpa));
    }

    /// Drops every paging-structure-cache entry that the walk of an address could use.
    pub fn drop_tables(&mut self, tables: &Tables, address: u64) {
        for array in self.tables.iter_mut().chain(&mut self.stage_tables) {
            array.drop_if(|entry| entry.serves(tables, address));
        }
    }

    /// Drops every entry in the scope, as part of something that is told and timed by itself: a fault, a task switch.
    pub fn invalidate(&mut self, ground: &mut Ground, scope: &FlushScope) {
        self.drop_covered(scope);
        if let Some(journal) = &mut self.journal {
            journal.flush(&mut ground.mem, scope);
        }
    }

    fn drop_covered(&mut self, scope: &FlushScope) {
        let mut is_changed = self.guest_physical.drop_if(|mapping| invalidate::covers_guest_physical(scope, mapping));
        for array in &mut self.pages {
            is_changed |= array.drop_if(|mapping| invalidate::covers(scope, mapping));
        }
        for array in self.tables.iter_mut().chain(&mut self.stage_tables) {
            array.drop_if(|entry| invalidate::covers_structure(scope, entry));
        }
        if is_changed {
            self.changed();
        }
    }

    /// Drops every entry in the scope, charging time and recording the flush.
    pub fn flush(&mut self, ground: &mut Ground, scope: FlushScope) {
        self.invalidate(ground, &scope);
        ground.spend(Cost::TlbFlush, Event::TlbFlush { scope });
    }
}

/// Tells a watched TLB which address space its processor is in now: after whatever changes control registers, tags or
/// the second stage. Instructions and accesses tell by themselves.
pub fn note(core: &mut Core, regime: &Regime, ground: &mut Ground) {
    if core.tlb.journal.is_none() {
        return;
    }
    let setting = permitted::setting(core, regime);
    if let Some(journal) = &mut core.tlb.journal {
        journal.note(ground.mem.now(), setting, || ground.mem.tick());
    }
}
