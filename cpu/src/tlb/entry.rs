//! What a TLB keeps: mappings of linear addresses and of guest-physical addresses, each with its tags (SDM 3A 4.10.2.1;
//! SDM 3C 28.3.1; APM2 15.16).

use super::store::Entry;
use crate::paging::entry::Rights;
use crate::paging::memory_type::{MemoryType, StageType};
use serde::{Deserialize, Serialize};
use sim_core::{Gpa, Gva, Hpa};

/// The linear-address space that a mapping belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Space {
    /// VPID or ASID.
    pub context: u32,
    /// The EPT root of a combined mapping, none for a linear mapping.
    pub ept_root: Option<Hpa>,
    /// The PCID, 0 without CR4.PCIDE.
    pub pcid: u16,
}

/// A mapping of a linear address, linear or combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mapping {
    /// Its tags.
    pub space: Space,
    /// The first linear address that it translates.
    pub gva: Gva,
    /// What that address translates to.
    pub hpa: Hpa,
    /// log2 of the bytes that it translates.
    pub shift: u32,
    /// log2 of the bytes of the first stage's page, of which a second stage with smaller pages leaves only a part.
    pub page_shift: u32,
    /// What the first stage allows.
    pub rights: Rights,
    /// What the second stage allows.
    pub stage_rights: Rights,
    /// The protection key, 0 where there is none (SDM 3A 4.6.2).
    pub key: u8,
    /// The memory type that both stages and the MTRRs give.
    pub memory_type: MemoryType,
    /// Whether it translates for every PCID of its context.
    pub is_global: bool,
    /// Whether a write needs no dirty flag to be set.
    pub is_dirty: bool,
}

impl Mapping {
    /// Whether it translates an address of a space.
    #[must_use]
    pub fn serves(&self, space: &Space, gva: Gva) -> bool {
        self.space.context == space.context
            && self.space.ept_root == space.ept_root
            && (self.is_global || self.space.pcid == space.pcid)
            && self.gva.0 >> self.shift == gva.0 >> self.shift
    }

    /// What one of its addresses translates to.
    #[must_use]
    pub const fn translate(&self, gva: Gva) -> Hpa {
        Hpa(self.hpa.0 | (gva.0 & ((1 << self.shift) - 1)))
    }
}

/// The tag of what a second stage alone gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StageTag {
    /// The EPT root (SDM 3C 28.3.1).
    Ept(Hpa),
    /// The ASID whose nested tables they are (APM2 15.16).
    Nested(u32),
}

/// Which tables a paging-structure-cache entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tables {
    /// Those of a linear-address space.
    Linear(Space),
    /// Those of a second stage.
    Stage(StageTag),
}

/// An entry of a paging-structure cache: where the walk of an address goes on (SDM 3A 4.10.3; SDM 3C 28.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CachedTable {
    /// Its tags.
    pub tables: Tables,
    /// The first address that it is for, linear or guest-physical.
    pub address: u64,
    /// log2 of the bytes that the paging-structure entry translates: 21 for a PDE, 48 for a PML5E.
    pub shift: u32,
    /// The table that the walk goes on with, in the output space of these tables.
    pub base: u64,
    /// What the entries so far allow.
    pub rights: Rights,
}

impl CachedTable {
    /// Whether a walk of an address can begin here.
    #[must_use]
    pub fn serves(&self, tables: &Tables, address: u64) -> bool {
        self.tables == *tables && self.address >> self.shift == address >> self.shift
    }
}

/// A mapping of a guest-physical address, from EPT alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestPhysical {
    /// The EPT root, its only tag.
    pub ept_root: Hpa,
    /// The first guest-physical address that it translates.
    pub gpa: Gpa,
    /// What that address translates to.
    pub hpa: Hpa,
    /// log2 of the bytes that it translates.
    pub shift: u32,
    /// What EPT allows.
    pub rights: Rights,
    /// What EPT says of the memory type.
    pub stage_type: StageType,
    /// Whether a write needs no dirty flag to be set.
    pub is_dirty: bool,
}

impl GuestPhysical {
    /// Whether it translates an address under an EPT root.
    #[must_use]
    pub fn serves(&self, ept_root: Hpa, gpa: Gpa) -> bool {
        self.ept_root == ept_root && self.gpa.0 >> self.shift == gpa.0 >> self.shift
    }

    /// What one of its addresses translates to.
    #[must_use]
    pub const fn translate(&self, gpa: Gpa) -> Hpa {
        Hpa(self.hpa.0 | (gpa.0 & ((1 << self.shift) - 1)))
    }
}

impl Entry for Mapping {
    fn address(&self) -> u64 {
        self.gva.0
    }

    fn shift(&self) -> u32 {
        self.shift
    }
}

impl Entry for GuestPhysical {
    fn address(&self) -> u64 {
        self.gpa.0
    }

    fn shift(&self) -> u32 {
        self.shift
    }
}

impl Entry for CachedTable {
    fn address(&self) -> u64 {
        self.address
    }

    fn shift(&self) -> u32 {
        self.shift
    }
}
