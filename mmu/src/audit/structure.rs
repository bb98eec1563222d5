//! I11, I12, I13 and the bookkeeping around shadow pages, at rest: what every page, entry and count says must follow from
//! the tables in memory (kvm-mmu.md A.12).

use super::rest::{Entries, Rest};
use crate::audit::Audit;
use crate::memslot::{AddressSpace, Memslot};
use crate::page::{Owner, ShadowPage, Shadowed};
use crate::role::PageRole;
use sim_core::addr::{Gfn, Hpa, Level};
use std::collections::{BTreeMap, BTreeSet};

/// KVM's own marker of an entry that is there, and the bit of a large page: stated here once more.
const PRESENT: u64 = 1 << 11;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What an entry is, decided from its bits and its table's level alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Empty,
    Table(Hpa),
    Leaf,
}

pub(super) const fn kind(entry: u64, level: u32) -> Kind {
    if entry & PRESENT == 0 {
        Kind::Empty
    } else if level == 1 || entry & LARGE != 0 {
        Kind::Leaf
    } else {
        Kind::Table(Hpa(entry & FRAME))
    }
}

/// Every broken rule of the pages' structure.
pub(super) fn check(rest: &mut Rest<'_>) {
    let mut pointed: BTreeMap<Hpa, BTreeSet<Hpa>> = BTreeMap::new();
    let mut leaves: BTreeSet<(AddressSpace, Level, Gfn, Hpa)> = BTreeSet::new();
    let pages: Vec<_> = rest.vm.pages.all().map(|(hfn, page)| (hfn.base(), page)).collect();
    for (table, page) in &pages {
        for (sptep, entry) in Entries::of(rest.mem, *table) {
            match kind(entry, page.role.level()) {
                Kind::Empty => {}
                Kind::Table(child) => {
                    pointed.entry(child).or_default().insert(sptep);
                    below(rest, page, sptep, child);
                }
                Kind::Leaf => {
                    if let Some(leaf) = leaf(rest, page, sptep) {
                        leaves.insert(leaf);
                    }
                }
            }
        }
    }
    for (table, page) in &pages {
        parents(rest, *table, page, pointed.get(table));
        unsync(rest, page, pointed.get(table));
        hash(rest, *table, page);
    }
    reverse_map(rest, &leaves);
    counts(rest, &pages);
    limit(rest, &pages);
}

/// I11, and that the table below exists.
fn below(rest: &mut Rest<'_>, page: &ShadowPage, sptep: Hpa, child: Hpa) {
    let Some(found) = rest.vm.pages.at(child) else {
        rest.find(Audit::ParentLists, format!("the entry at {sptep} leads to {child}, which is no shadow page"));
        return;
    };
    let (parent, role) = (page.role, found.role);
    if role.level() + 1 != parent.level() {
        let what = format!("a level-{} table below a level-{} one", role.level(), parent.level());
        rest.find_roles(Audit::ChildRole, what, (parent, role));
    }
    let differs = (parent.0 ^ role.0) & !PageRole::PER_PAGE.0;
    if differs != 0 && parent.invalid() == 0 {
        let what = format!("the table of gfn {} has another role than the table above", found.gfn);
        let expected = PageRole(role.0 & PageRole::PER_PAGE.0 | parent.0 & !PageRole::PER_PAGE.0);
        rest.find_roles(Audit::ChildRole, what, (expected, role));
    }
}

/// The leaf's place in the reverse map.
fn leaf(rest: &mut Rest<'_>, page: &ShadowPage, sptep: Hpa) -> Option<(AddressSpace, Level, Gfn, Hpa)> {
    let level = Level::from_number(page.role.level() as u8)?;
    let index = sptep.page_offset() / 8;
    let span = 1u64 << (9 * (page.role.level() - 1));
    let gfn = if page.role.direct() == 1 {
        Gfn(page.gfn.0 + index * span)
    } else {
        let Some(Shadowed { gfn, .. }) = page.shadowed.get(&(index as u16)) else {
            rest.find(Audit::ReverseMap, format!("the leaf at {sptep} does not say which guest frame it maps"));
            return None;
        };
        Gfn(gfn.0 & !(span - 1))
    };
    let space = if page.role.smm() == 0 { AddressSpace::Normal } else { AddressSpace::Smm };
    Some((space, level, gfn, sptep))
}

/// I12: `parent_ptes` are exactly the entries that lead to the page.
fn parents(rest: &mut Rest<'_>, table: Hpa, page: &ShadowPage, pointed: Option<&BTreeSet<Hpa>>) {
    let none = BTreeSet::new();
    let pointed = pointed.unwrap_or(&none);
    if page.owner == Owner::Shadow && page.parents != *pointed {
        let (known, real) = (page.parents.len(), pointed.len());
        let what =
            format!("the page of gfn {} at {table} knows {known} parents, and {real} entries lead to it", page.gfn);
        rest.find(Audit::ParentLists, what);
    }
}

/// I13.
fn unsync(rest: &mut Rest<'_>, page: &ShadowPage, pointed: Option<&BTreeSet<Hpa>>) {
    if page.unsync && (page.role.level() != 1 || page.role.direct() == 1) {
        rest.find(Audit::UnsyncMarks, format!("gfn {} of role {} is out of sync", page.gfn, page.role));
    }
    if page.unsync_bitmap.len() != page.unsync_children as usize {
        let (counted, bits) = (page.unsync_children, page.unsync_bitmap.len());
        rest.find(Audit::UnsyncMarks, format!("gfn {} counts {counted} unsync children, {bits} are marked", page.gfn));
    }
    if !page.unsync && page.unsync_children == 0 {
        return;
    }
    for sptep in pointed.into_iter().flatten() {
        let index = (sptep.page_offset() / 8) as u16;
        let marked = rest.vm.pages.at(sptep.page_base()).is_none_or(|above| above.unsync_bitmap.contains(&index));
        if !marked {
            let what = format!("the table above gfn {} does not know that something is out of sync below", page.gfn);
            rest.find(Audit::UnsyncMarks, what);
        }
    }
}

/// Every page that is good can be found, and no two are the same.
fn hash(rest: &mut Rest<'_>, table: Hpa, page: &ShadowPage) {
    if page.owner == Owner::Tdp {
        return;
    }
    let found: Vec<Hpa> = rest.vm.pages.shadowing(page.gfn).iter().map(|hfn| hfn.base()).collect();
    if found.contains(&table) != (page.role.invalid() == 0) {
        rest.find(Audit::PageHash, format!("gfn {} of role {} is hashed and zapped, or neither", page.gfn, page.role));
    }
    let same = |other: &&Hpa| {
        rest.vm.pages.at(**other).is_some_and(|other| {
            other.role == page.role && other.gfn == page.gfn && other.generation == page.generation
        })
    };
    if page.role.invalid() == 0 && found.iter().filter(same).count() > 1 {
        rest.find(Audit::PageHash, format!("gfn {} of role {} has two shadow pages", page.gfn, page.role));
    }
}

/// I12: the reverse map holds exactly the leaves.
fn reverse_map(rest: &mut Rest<'_>, leaves: &BTreeSet<(AddressSpace, Level, Gfn, Hpa)>) {
    let known: BTreeSet<_> = rest
        .vm
        .pages
        .reverse_map()
        .flat_map(|(space, level, gfn, entries)| entries.iter().map(move |sptep| (space, level, gfn, *sptep)))
        .collect();
    if let Some((_, level, gfn, sptep)) = leaves.difference(&known).next() {
        let level = level.number();
        let what = format!("the level-{level} leaf of gfn {gfn} at {sptep} is not in the reverse map");
        rest.find(Audit::ReverseMap, what);
    }
    if let Some((_, level, gfn, sptep)) = known.difference(leaves).next() {
        let level = level.number();
        let what = format!("the reverse map has a level-{level} leaf of gfn {gfn} at {sptep}, where none is");
        rest.find(Audit::ReverseMap, what);
    }
}

/// Room is made before each fault, so that only roots, which zapping would not free, can be beyond the limit.
fn limit(rest: &mut Rest<'_>, pages: &[(Hpa, &ShadowPage)]) {
    let counted = |page: &ShadowPage| page.owner == Owner::Shadow && page.root_count == 0;
    let (used, most) = (pages.iter().filter(|(_, page)| counted(page)).count() as u64, rest.vm.config.pages_max);
    if used > most {
        rest.find(Audit::PageLimit, format!("{used} pages that are no roots, where {most} may be"));
    }
}

/// Counts that say what may not be written or mapped large are those of the tables that are shadowed.
fn counts(rest: &mut Rest<'_>, pages: &[(Hpa, &ShadowPage)]) {
    let shadowed: Vec<_> = pages
        .iter()
        .filter(|(_, page)| page.role.direct() == 0 && page.role.passthrough() == 0 && page.role.invalid() == 0)
        .map(|(_, page)| page)
        .collect();
    if shadowed.len() as u64 != rest.vm.pages.indirect {
        let what = format!("{} tables are shadowed, {} are counted", shadowed.len(), rest.vm.pages.indirect);
        rest.find(Audit::TableCounts, what);
    }
    for space in AddressSpace::ALL {
        let own = |page: &&&&ShadowPage| (page.role.smm() != 0) == (space == AddressSpace::Smm);
        let tables: Vec<_> = shadowed.iter().filter(own).map(|page| (page.gfn, page.role.level())).collect();
        for slot in rest.vm.slots.all(space) {
            if let Some(what) = miscounted(slot, &tables) {
                rest.find(Audit::TableCounts, what);
                return;
            }
        }
    }
}

fn miscounted(slot: &Memslot, tables: &[(Gfn, u32)]) -> Option<String> {
    let mut tracked: BTreeMap<Gfn, u32> = BTreeMap::new();
    let mut no_large: BTreeMap<(Level, Gfn), u32> = BTreeMap::new();
    for (gfn, level) in tables.iter().filter(|(gfn, _)| slot.holds(*gfn)) {
        if *level > 1 {
            *tracked.entry(*gfn).or_default() += 1;
        }
        for (large, shift) in [(Level::L2, 9), (Level::L3, 18)] {
            *no_large.entry((large, Gfn(gfn.0 >> shift << shift))).or_default() += 1;
        }
    }
    if tracked != slot.tracked {
        return Some(format!("slot {} tracks writes to {:?}, shadowed there is {tracked:?}", slot.name, slot.tracked));
    }
    (no_large != slot.no_large).then(|| format!("slot {} counts reasons against large pages wrongly", slot.name))
}
