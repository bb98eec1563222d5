//! Which entries an invalidation covers (SDM 3A 4.10.4.1; SDM 3C 28.3.3.1; APM2 5.5.2, 15.16).
//!
//! Invalidations for a VPID cover combined mappings of every EPT root and no guest-physical ones; those for an EPT root
//! cover its guest-physical and combined mappings of every VPID and PCID, global or not, and no linear ones.

use super::{GuestPhysical, Mapping};
use sim_core::event::FlushScope;

/// Whether a scope covers a mapping of a linear address.
pub(super) fn covers(scope: &FlushScope, mapping: &Mapping) -> bool {
    let is_of = |context: u32| mapping.space.context == context;
    match *scope {
        FlushScope::All => true,
        FlushScope::Context(context) => is_of(context),
        FlushScope::Pcid(context, pcid) => is_of(context) && !mapping.is_global && mapping.space.pcid == pcid,
        FlushScope::ContextNonGlobal(context) => is_of(context) && !mapping.is_global,
        FlushScope::Address { context, pcid, gva } => {
            // The whole page goes, however small the parts that the TLB keeps of it (SDM 3A 4.10.4.1, INVLPG).
            let is_in_page = mapping.gva.0 >> mapping.page_shift == gva.0 >> mapping.page_shift;
            is_of(context) && is_in_page && (mapping.is_global || mapping.space.pcid == pcid)
        }
        FlushScope::EptRoot(root) => mapping.space.ept_root == Some(root),
        FlushScope::AllEpt => mapping.space.ept_root.is_some(),
    }
}

/// Whether a scope covers a guest-physical mapping.
pub(super) fn covers_guest_physical(scope: &FlushScope, mapping: &GuestPhysical) -> bool {
    match *scope {
        FlushScope::All | FlushScope::AllEpt => true,
        FlushScope::EptRoot(root) => mapping.ept_root == root,
        FlushScope::Context(_)
        | FlushScope::Pcid(..)
        | FlushScope::ContextNonGlobal(_)
        | FlushScope::Address { .. } => false,
    }
}
