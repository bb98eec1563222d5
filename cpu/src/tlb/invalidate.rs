//! Which entries an invalidation covers (SDM 3A 4.10.4.1; SDM 3C 28.3.3; APM2 5.5.2, 15.16; APM3 INVLPGB): one row a
//! scope, and pure functions from a row to each kind of entry.
//!
//! A scope drops what the instruction is *required* to drop and nothing that it only may: the concrete TLB and the
//! permitted set share these rows. Two choices where the manuals leave room: the pieces that a TLB keeps of a large page
//! count as that page, and "all entries for the current PCID" (MOV to CR4 that changes PAE or sets SMEP) are those made
//! under it, global or not.

use super::{CachedTable, GuestPhysical, Mapping, Space, StageTag, Tables};
use sim_core::event::{Broadcast, BroadcastReach, FlushScope};
use sim_core::{Gpa, Gva, Hpa};

/// VPIDs or ASIDs.
#[derive(Clone, Copy)]
enum Contexts {
    None,
    Every,
    /// Every one but 0.
    Guests,
    One(u32),
}

/// Linear mappings and combined mappings.
#[derive(Clone, Copy)]
enum Roots {
    /// Linear mappings, and combined ones of every EPT root.
    Every,
    /// Combined mappings of every EPT root.
    Combined,
    /// Combined mappings of one EPT root.
    One(Hpa),
}

/// Global entries.
#[derive(Clone, Copy)]
enum Globals {
    /// Judged by the PCID that they were made under.
    AsOthers,
    /// Whatever PCID they were made under.
    EveryPcid,
    Spared,
}

/// Linear addresses.
#[derive(Clone, Copy)]
enum Pages {
    None,
    Every,
    /// `more` further pages after the one at `first`, `1 << stride` bytes apart.
    Range {
        first: Gva,
        more: u16,
        stride: u32,
    },
}

/// What the second stage alone gave.
#[derive(Clone, Copy)]
enum Stages {
    None,
    Every,
    EveryEpt,
    EveryNested,
    One(StageTag),
    /// What a guest-physical address uses under an EPT root.
    Address(Hpa, Gpa),
}

/// What a scope covers.
#[derive(Clone, Copy)]
struct Reach {
    contexts: Contexts,
    roots: Roots,
    /// None is every PCID.
    pcid: Option<u16>,
    globals: Globals,
    /// Of TLB entries.
    pages: Pages,
    /// Of paging-structure-cache entries: those that one of these addresses uses.
    tables: Pages,
    stages: Stages,
}

const NOTHING: Reach = Reach {
    contexts: Contexts::None,
    roots: Roots::Every,
    pcid: None,
    globals: Globals::EveryPcid,
    pages: Pages::Every,
    tables: Pages::Every,
    stages: Stages::None,
};

const fn one(gva: Gva) -> Pages {
    Pages::Range { first: gva, more: 0, stride: 12 }
}

/// The rows.
const fn reach(scope: &FlushScope) -> Reach {
    use Contexts::{Every, Guests, One};
    match *scope {
        FlushScope::All => Reach { contexts: Every, stages: Stages::Every, ..NOTHING },
        FlushScope::Context(context) => {
            Reach { contexts: One(context), stages: Stages::One(StageTag::Nested(context)), ..NOTHING }
        }
        FlushScope::ContextNonGlobal(context) => Reach {
            contexts: One(context),
            globals: Globals::Spared,
            stages: Stages::One(StageTag::Nested(context)),
            ..NOTHING
        },
        FlushScope::Pcid(context, pcid) => {
            Reach { contexts: One(context), pcid: Some(pcid), globals: Globals::Spared, ..NOTHING }
        }
        FlushScope::PcidWithGlobals(context, pcid) => {
            Reach { contexts: One(context), pcid: Some(pcid), globals: Globals::AsOthers, ..NOTHING }
        }
        FlushScope::Guests => Reach { contexts: Guests, ..NOTHING },
        FlushScope::Address { context, pcid, gva } => {
            Reach { contexts: One(context), pcid: Some(pcid), pages: one(gva), ..NOTHING }
        }
        FlushScope::AddressNonGlobal { context, pcid, gva } => Reach {
            contexts: One(context),
            pcid: Some(pcid),
            globals: Globals::Spared,
            pages: one(gva),
            tables: one(gva),
            ..NOTHING
        },
        FlushScope::AddressEveryPcid { context, gva } => {
            Reach { contexts: One(context), pages: one(gva), tables: one(gva), ..NOTHING }
        }
        FlushScope::PageFault { context, pcid, gva } => Reach {
            contexts: One(context),
            pcid: Some(pcid),
            globals: Globals::AsOthers,
            pages: one(gva),
            tables: one(gva),
            ..NOTHING
        },
        FlushScope::EptViolation { root, gpa, linear } => ept_violation(root, gpa, linear),
        FlushScope::EptRoot(root) => {
            Reach { contexts: Every, roots: Roots::One(root), stages: Stages::One(StageTag::Ept(root)), ..NOTHING }
        }
        FlushScope::AllEpt => Reach { contexts: Every, roots: Roots::Combined, stages: Stages::EveryEpt, ..NOTHING },
        FlushScope::Broadcast(ref operands) => broadcast(operands),
    }
}

/// SDM 3C 28.3.3.1: guest-physical mappings of the address; combined mappings of the linear address under the current
/// EPT root, VPID and PCID.
const fn ept_violation(root: Hpa, gpa: Gpa, linear: Option<(u32, u16, Gva)>) -> Reach {
    let physical = Reach { stages: Stages::Address(root, gpa), ..NOTHING };
    match linear {
        None => physical,
        Some((context, pcid, gva)) => Reach {
            contexts: Contexts::One(context),
            roots: Roots::One(root),
            pcid: Some(pcid),
            globals: Globals::AsOthers,
            pages: one(gva),
            tables: one(gva),
            ..physical
        },
    }
}

/// APM3 INVLPGB: what is not given matches everything.
const fn broadcast(operands: &Broadcast) -> Reach {
    let pages = match operands.gva {
        Some(first) => Pages::Range { first, more: operands.more, stride: operands.stride },
        None => Pages::Every,
    };
    let is_nested = operands.reach.contains(BroadcastReach::NESTED);
    Reach {
        contexts: match operands.asid {
            Some(asid) => Contexts::One(asid),
            None => Contexts::Every,
        },
        roots: Roots::Every,
        pcid: operands.pcid,
        globals: if operands.reach.contains(BroadcastReach::GLOBAL) { Globals::EveryPcid } else { Globals::Spared },
        pages,
        tables: if operands.reach.contains(BroadcastReach::FINAL_ONLY) { Pages::None } else { pages },
        stages: match operands.asid {
            _ if !is_nested => Stages::None,
            Some(asid) => Stages::One(StageTag::Nested(asid)),
            None => Stages::EveryNested,
        },
    }
}

impl Contexts {
    const fn has(self, context: u32) -> bool {
        match self {
            Self::None => false,
            Self::Every => true,
            Self::Guests => context != 0,
            Self::One(one) => one == context,
        }
    }
}

impl Roots {
    fn has(self, root: Option<Hpa>) -> bool {
        match self {
            Self::Every => true,
            Self::Combined => root.is_some(),
            Self::One(one) => root == Some(one),
        }
    }
}

impl Pages {
    /// Whether one of the addresses is in the block of `1 << shift` bytes that `gva` is in.
    const fn touch(self, gva: Gva, shift: u32) -> bool {
        let Self::Range { first, more, stride } = self else { return matches!(self, Self::Every) };
        let block = (gva.0 >> shift) << shift;
        let skipped = block.saturating_sub(first.0).div_ceil(1 << stride);
        if skipped > more as u64 {
            return false;
        }
        first.0.wrapping_add(skipped << stride) >> shift == block >> shift
    }
}

impl Stages {
    fn has(self, tag: StageTag, gpa: Gpa, shift: u32) -> bool {
        match (self, tag) {
            (Self::None, _) => false,
            (Self::Every, _) | (Self::EveryEpt, StageTag::Ept(_)) | (Self::EveryNested, StageTag::Nested(_)) => true,
            (Self::EveryEpt, StageTag::Nested(_)) | (Self::EveryNested, StageTag::Ept(_)) => false,
            (Self::One(one), _) => one == tag,
            (Self::Address(root, address), _) => tag == StageTag::Ept(root) && address.0 >> shift == gpa.0 >> shift,
        }
    }
}

impl Reach {
    fn has_space(&self, space: &Space) -> bool {
        self.contexts.has(space.context) && self.roots.has(space.ept_root)
    }

    fn has_pcid(&self, pcid: u16) -> bool {
        self.pcid.is_none_or(|one| one == pcid)
    }
}

/// Whether a scope covers a TLB entry of the page of `1 << page_shift` bytes at a linear address.
pub(super) fn covers_page(scope: &FlushScope, space: &Space, gva: Gva, page_shift: u32, is_global: bool) -> bool {
    let reach = reach(scope);
    let is_pcid_covered = match reach.globals {
        Globals::Spared if is_global => false,
        Globals::EveryPcid if is_global => true,
        Globals::Spared | Globals::EveryPcid | Globals::AsOthers => reach.has_pcid(space.pcid),
    };
    reach.has_space(space) && is_pcid_covered && reach.pages.touch(gva, page_shift)
}

/// Whether a scope covers a mapping of a linear address.
pub(super) fn covers(scope: &FlushScope, mapping: &Mapping) -> bool {
    // The whole page goes, however small the parts that the TLB keeps of it (SDM 3A 4.10.4.1, INVLPG).
    covers_page(scope, &mapping.space, mapping.gva, mapping.page_shift, mapping.is_global)
}

/// Whether a scope covers the paging-structure-cache entry for the block of `1 << shift` bytes at an address.
pub(super) fn covers_table(scope: &FlushScope, tables: &Tables, address: u64, shift: u32) -> bool {
    let reach = reach(scope);
    match tables {
        Tables::Linear(space) => {
            reach.has_space(space) && reach.has_pcid(space.pcid) && reach.tables.touch(Gva(address), shift)
        }
        Tables::Stage(tag) => reach.stages.has(*tag, Gpa(address), shift),
    }
}

/// Whether a scope covers a paging-structure-cache entry.
pub(super) fn covers_structure(scope: &FlushScope, entry: &CachedTable) -> bool {
    covers_table(scope, &entry.tables, entry.address, entry.shift)
}

/// Whether a scope covers what the second stage alone gives for the block of `1 << shift` bytes at an address.
pub(super) fn covers_stage(scope: &FlushScope, tag: StageTag, gpa: Gpa, shift: u32) -> bool {
    reach(scope).stages.has(tag, gpa, shift)
}

/// Whether a scope covers a guest-physical mapping.
pub(super) fn covers_guest_physical(scope: &FlushScope, mapping: &GuestPhysical) -> bool {
    covers_stage(scope, StageTag::Ept(mapping.ept_root), mapping.gpa, mapping.shift)
}
