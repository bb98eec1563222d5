//! What a processor may remember of some addresses: everything that its caches, and walks under way, may hold now. Two
//! processors that may remember the same, with the same memory and registers, are permitted the same from then on.
//!
//! Left out: addresses that nobody names, and what the vagueness of a [journal](super::super::journal) permits beyond the
//! architecture.

use super::Past;
use super::stage::tag_of;
use crate::core::Core;
use crate::paging::descent::Root;
use crate::paging::entry::Rights;
use crate::paging::walk;
use crate::tlb::entry::{Mapping, Space, StageTag, Tables};
use crate::virt::{Regime, SecondStage};
use serde::Serialize;
use sim_core::addr::PAGE_BYTES;
use sim_core::{Gpa, Ground, Gva, Hpa, SimError};
use std::collections::BTreeSet;

/// Where a table or page is: a host address, unless a second stage translates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Place {
    Host(Hpa),
    Guest(Gpa),
}

/// A table that a walk may go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Table {
    tables: Tables,
    address: u64,
    shape: (usize, usize),
    shift: u32,
    base: Place,
    rights: Rights,
}

/// A page that a walk may have found, before the second stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Page {
    space: Space,
    gva: Gva,
    shift: u32,
    at: Place,
    rights: Rights,
    key: u8,
    is_global: bool,
    is_dirty: bool,
}

/// A guest-physical translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Staged {
    tag: StageTag,
    gpa: Gpa,
    hpa: Hpa,
    shift: u32,
    rights: Rights,
    is_dirty: bool,
}

/// What a processor may remember, each once and in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Remembered {
    mappings: Vec<Mapping>,
    pages: BTreeSet<Page>,
    tables: BTreeSet<Table>,
    staged: BTreeSet<Staged>,
}

/// What a watched processor may remember of the translation of some addresses, in every address space that it was in.
///
/// # Errors
/// If the tables are not modelled.
pub fn remembered(
    core: &Core,
    regime: &Regime,
    ground: &Ground,
    addresses: &BTreeSet<Gva>,
) -> Result<Remembered, SimError> {
    let past = Past::of(core, regime, ground);
    let mut all = Remembered::default();
    // Host frames are no names: what is remembered is in the order in which it is asked for.
    let mut spaces: Vec<(Space, bool)> = Vec::new();
    let mut tags = BTreeSet::new();
    let mut physical: BTreeSet<Gpa> = addresses.iter().map(|gva| page_of(gva.0)).collect();
    for period in &past.periods {
        let is_staged = period.setting.second != SecondStage::None;
        let space = (period.setting.space, is_staged);
        if period.setting.is_paged() && !spaces.contains(&space) {
            spaces.push(space);
        }
        if is_staged
            && period.setting.is_paged()
            && let Root::Table(base) = walk::structure(&period.setting.paging, &period.setting.second, Gva(0))?.root
        {
            physical.insert(page_of(base));
        }
        tags.extend(tag_of(&period.setting.second, period.setting.space.context));
    }
    for (space, is_staged) in spaces {
        for gva in addresses {
            past.note_linear(&mut all, &mut physical, (space, is_staged), *gva)?;
        }
    }
    for tag in tags {
        for gpa in &physical {
            past.note_stage(&mut all, tag, *gpa)?;
        }
    }
    all.mappings.sort_by_key(super::linear::order);
    all.mappings.dedup();
    Ok(all)
}

const fn page_of(address: u64) -> Gpa {
    Gpa(address & !(PAGE_BYTES - 1))
}

impl Past<'_> {
    /// What is remembered of a linear address, and the guest-physical pages that its walks go through.
    fn note_linear(
        &self,
        all: &mut Remembered,
        physical: &mut BTreeSet<Gpa>,
        (space, is_staged): (Space, bool),
        gva: Gva,
    ) -> Result<(), SimError> {
        let now = self.view.now;
        let place = |address| if is_staged { Place::Guest(Gpa(address)) } else { Place::Host(Hpa(address)) };
        let found = self.linear(&space, gva)?;
        all.mappings.extend(found.mappings);
        for node in found.nodes.iter().filter(|node| node.when.contains(now)) {
            if is_staged {
                physical.insert(page_of(node.base));
            }
            let (shape, shift, rights) = (node.shape(), node.shift, node.rights);
            let tables = Tables::Linear(space);
            all.tables.insert(Table { tables, address: gva.0, shape, shift, base: place(node.base), rights });
        }
        for (leaf, _) in found.leaves.iter().filter(|(_, read)| read.contains(now)) {
            if is_staged {
                physical.insert(page_of(leaf.address));
            }
            all.pages.insert(Page {
                space,
                gva,
                shift: leaf.level.shift,
                at: place(leaf.address),
                rights: leaf.rights,
                key: leaf.level.key(leaf.raw),
                is_global: leaf.is_global,
                is_dirty: leaf.level.layout.dirty & !leaf.raw == 0,
            });
        }
        Ok(())
    }

    /// What is remembered of a guest-physical address.
    fn note_stage(&self, all: &mut Remembered, tag: StageTag, gpa: Gpa) -> Result<(), SimError> {
        let now = self.view.now;
        let found = self.stage(tag, gpa)?;
        for page in found.pages.iter().filter(|page| page.when.contains(now)) {
            let (hpa, shift, rights, is_dirty) = (page.hpa, page.shift, page.rights, page.is_dirty);
            all.staged.insert(Staged { tag, gpa, hpa, shift, rights, is_dirty });
        }
        for node in found.nodes.iter().filter(|node| node.when.contains(now)) {
            let (shape, shift, rights) = (node.shape(), node.shift, node.rights);
            let (tables, base) = (Tables::Stage(tag), Place::Host(Hpa(node.base)));
            all.tables.insert(Table { tables, address: gpa.0, shape, shift, base, rights });
        }
        Ok(())
    }
}
