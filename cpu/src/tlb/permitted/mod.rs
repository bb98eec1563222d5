//! The permitted set: every translation of an address that the architecture still allows a processor to have cached, or
//! to find now (SDM 3A 4.10.2 to 4.10.4; SDM 3C 28.3; APM2 5.5, 15.16).
//!
//! A permitted translation comes from a walk whose entries had their values at moments t1 <= t2 <= ... <= tn: each step
//! was remembered from its moment to the next one's, so no invalidation of paging-structure caches that covers it lies
//! between, and no invalidation that covers the translation lies between the last one and now. At each moment the
//! processor was in an address space with these tags, for which it may walk at any time, speculatively too. Values
//! written by any processor count. Under a second stage each reference goes through any guest-physical translation
//! that could be cached at that moment.
//!
//! The set is exact for what [`Tlb::watch`](super::Tlb::watch) has seen, with these readings of the manuals: an entry
//! whose accessed flag is 0 was not cached, for memory would show the flag; pieces of a large page are invalidated as
//! that page is; nested translations of AMD's processors are remembered by ASID until the whole ASID is invalidated; and
//! a walk in flight does not outlive an invalidation that covers what it is for. Left out: page faults out of a stale
//! step whose next entry is not present now, and memory types.

mod explore;
mod linear;
mod remembered;
mod stage;
mod times;

use super::entry::{CachedTable, GuestPhysical, Mapping, Space, StageTag, Tables};
use super::journal::{Journal, Period, Setting};
use crate::core::Core;
use crate::paging::context::PagingContext;
use crate::virt::Regime;
pub use remembered::{Remembered, remembered};

use explore::View;
use sim_core::{Gpa, Ground, Gva, SimError};

/// Every permitted translation of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermittedSet {
    /// What a walk finds now, if it finds a page.
    pub freshest: Option<Mapping>,
    /// All of them, the freshest among them, each once and in a fixed order. A mapping may be tagged with another PCID
    /// if it is global.
    pub all: Vec<Mapping>,
}

impl PermittedSet {
    /// Those that a walk does not find now.
    pub fn stale(&self) -> impl Iterator<Item = &Mapping> {
        self.all.iter().filter(|mapping| Some(*mapping) != self.freshest.as_ref())
    }
}

/// The permitted set of a linear address in the current address space. Without [`Tlb::watch`](super::Tlb::watch) it is
/// the freshest translation alone.
///
/// # Errors
/// If the tables are not modelled.
pub fn permitted(core: &Core, regime: &Regime, ground: &Ground, gva: Gva) -> Result<PermittedSet, SimError> {
    let setting = setting(core, regime);
    let past = Past::of(core, regime, ground);
    let all = past.mappings(&setting, gva)?;
    let freshest = past.present(&setting).mappings(&setting, gva)?.into_iter().next();
    Ok(PermittedSet { freshest, all })
}

/// Whether the TLB may hold a mapping.
///
/// # Errors
/// If the tables are not modelled.
pub fn is_permitted(core: &Core, regime: &Regime, ground: &Ground, mapping: &Mapping) -> Result<bool, SimError> {
    let past = Past::of(core, regime, ground);
    let found = past.linear(&mapping.space, mapping.gva)?;
    Ok(found.mappings.iter().any(|permitted| same(permitted, mapping)))
}

/// Whether the TLB may hold a guest-physical mapping.
///
/// # Errors
/// If the tables are not modelled.
pub fn is_guest_physical_permitted(
    core: &Core,
    regime: &Regime,
    ground: &Ground,
    mapping: &GuestPhysical,
) -> Result<bool, SimError> {
    let past = Past::of(core, regime, ground);
    let found = past.stage(StageTag::Ept(mapping.ept_root), mapping.gpa)?;
    Ok(found.pages.iter().any(|page| {
        page.when.contains(past.view.now)
            && (page.hpa, page.shift, page.rights, page.is_dirty)
                == (mapping.hpa, mapping.shift, mapping.rights, mapping.is_dirty)
    }))
}

/// Whether a paging-structure cache may hold an entry.
///
/// # Errors
/// If the tables are not modelled.
pub fn is_table_permitted(
    core: &Core,
    regime: &Regime,
    ground: &Ground,
    entry: &CachedTable,
) -> Result<bool, SimError> {
    let past = Past::of(core, regime, ground);
    let nodes = match entry.tables {
        Tables::Linear(space) => past.linear(&space, Gva(entry.address))?.nodes,
        Tables::Stage(tag) => past.stage(tag, Gpa(entry.address))?.nodes,
    };
    Ok(nodes.iter().any(|node| {
        node.when.contains(past.view.now)
            && (node.shift, node.base, node.rights) == (entry.shift, entry.base, entry.rights)
    }))
}

/// Whether two mappings are the same as far as the set tells.
fn same(left: &Mapping, right: &Mapping) -> bool {
    *left == Mapping { memory_type: left.memory_type, ..*right }
}

/// The current address space.
pub(super) fn setting(core: &Core, regime: &Regime) -> Setting {
    let space = Space { context: regime.tag.context, ept_root: regime.tag.ept_root, pcid: core.pcid() };
    Setting { space, second: regime.second, paging: PagingContext::of(core) }
}

/// What a processor's permitted sets are computed from.
struct Past<'a> {
    view: View<'a>,
    periods: Vec<Period>,
}

impl<'a> Past<'a> {
    fn of(core: &'a Core, regime: &Regime, ground: &'a Ground) -> Self {
        let now = ground.mem.now();
        let current = setting(core, regime);
        match core.tlb.journal() {
            Some(journal) => {
                let mut noted: Journal = journal.clone();
                let mut now = now;
                noted.note(now, current, || {
                    now = now.next();
                    now
                });
                let view = View { memory: &ground.mem, flushes: journal.flushes(), now };
                Self { view, periods: noted.periods().to_vec() }
            }
            None => {
                let period = Period { from: now, until: None, setting: current };
                Self { view: View { memory: &ground.mem, flushes: &[], now }, periods: vec![period] }
            }
        }
    }

    /// The same with nothing remembered.
    fn present(&self, setting: &Setting) -> Self {
        let period = Period { from: self.view.now, until: None, setting: *setting };
        Self { view: View { flushes: &[], ..self.view }, periods: vec![period] }
    }

    /// The permitted translations of a linear address for a setting, in order.
    fn mappings(&self, setting: &Setting, gva: Gva) -> Result<Vec<Mapping>, SimError> {
        let mut mappings =
            if setting.is_paged() { self.linear(&setting.space, gva)?.mappings } else { self.unpaged(setting, gva)? };
        mappings.sort_by_key(linear::order);
        mappings.dedup();
        Ok(mappings)
    }
}
