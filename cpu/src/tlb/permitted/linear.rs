//! What a linear address may still translate to: linear mappings, and combined mappings under a second stage (SDM 3A
//! 4.10.2, 4.10.3; SDM 3C 28.3.1).

use super::Past;
use super::explore::{Leaf, Node, Phase, explore};
use super::stage::{StagePage, tag_of};
use super::times::Times;
use crate::paging::entry::Rights;
use crate::paging::memory_type::MemoryType;
use crate::paging::second;
use crate::paging::walk;
use crate::tlb::entry::{Mapping, Space, Tables};
use crate::tlb::invalidate::covers_page;
use crate::tlb::journal::Setting;
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::control::Cr4;
use sim_core::{Gpa, Gva, Hpa, SimError};
use std::collections::BTreeSet;

/// What was found for one linear address.
#[derive(Default)]
pub(super) struct LinearFound {
    pub(super) nodes: Vec<Node>,
    pub(super) mappings: Vec<Mapping>,
    /// Pages of the first stage, with the moments at which a walk that read their entries may be under way.
    pub(super) leaves: Vec<(Leaf, Times)>,
}

/// The fixed order of permitted translations.
pub(super) fn order(mapping: &Mapping) -> impl Ord + use<> {
    let rights = (mapping.rights, mapping.stage_rights, mapping.key);
    let flags = (mapping.is_global, mapping.is_dirty);
    (mapping.hpa, mapping.shift, mapping.page_shift, rights, flags, mapping.space)
}

impl Past<'_> {
    /// Everything that serves an address in a space: what was made under its PCID, and global mappings made under
    /// others.
    pub(super) fn linear(&self, space: &Space, gva: Gva) -> Result<LinearFound, SimError> {
        let is_like = |other: &Space| (other.context, other.ept_root) == (space.context, space.ept_root);
        let spaces = self.periods.iter().map(|period| period.setting.space).filter(is_like);
        let mut found = self.made_under(space, gva)?;
        for other in spaces.filter(|other| other != space).collect::<BTreeSet<_>>() {
            let more = self.made_under(&other, gva)?.mappings.into_iter();
            found.mappings.extend(more.filter(|mapping| mapping.is_global));
        }
        Ok(found)
    }

    /// What was made under a space's own PCID.
    fn made_under(&self, space: &Space, gva: Gva) -> Result<LinearFound, SimError> {
        let phases = self.linear_phases(space, gva)?;
        let found = explore(self.view, &phases, &Tables::Linear(*space), gva.0, &|phase, at, when| {
            self.locate(space, phase, Gpa(at), when)
        });
        let active = phases.iter().fold(Times::default(), |all, phase| all.or(&phase.when));
        let mappings = found.leaves.iter().flat_map(|leaf| self.cached(space, gva, leaf, &active)).collect();
        let leaves = found.leaves.into_iter().map(|leaf| (self.read(space, gva, &leaf), leaf));
        let leaves = leaves.map(|(read, leaf)| (leaf, read)).collect();
        Ok(LinearFound { mappings, nodes: found.nodes, leaves })
    }

    /// The tables in force in a space.
    fn linear_phases(&self, space: &Space, gva: Gva) -> Result<Vec<Phase>, SimError> {
        let mut phases: Vec<Phase> = Vec::new();
        for period in &self.periods {
            let Setting { space: other, second, paging } = &period.setting;
            if other != space || !period.setting.is_paged() {
                continue;
            }
            let structure = walk::structure(paging, second, gva)?;
            let has_globals = paging.cr4.contains(Cr4::PGE);
            let (when, is_current) = (self.when(period), period.until.is_none());
            let is_same = |phase: &&mut Phase| {
                let key = (phase.structure, phase.second, phase.has_globals, phase.is_current);
                key == (structure, *second, has_globals, is_current)
            };
            match phases.iter_mut().find(is_same) {
                Some(phase) => phase.when = phase.when.or(&when),
                None => phases.push(Phase { structure, second: *second, has_globals, is_current, when }),
            }
        }
        Ok(phases)
    }

    /// Where a first-stage entry may have been read. The second stage sees a read of it as its format says, and sets its
    /// dirty flag first where that is a write.
    fn locate(&self, space: &Space, phase: &Phase, at: Gpa, when: &Times) -> Vec<(Hpa, Times)> {
        let second = &phase.second;
        let Some(tag) = tag_of(second, space.context) else { return vec![(Hpa(at.0), when.clone())] };
        let kind = second::table_read(second);
        let pages = self.stage(tag, at).map(|found| found.pages).unwrap_or_default();
        let usable = pages
            .into_iter()
            .filter(|page| second::permits(second, page.rights, Access::implicit(kind), None))
            .map(|page| {
                let is_unmarked = kind == AccessKind::Write && !page.is_dirty;
                let marked = if is_unmarked { phase.marking(self.view.now) } else { page.when.clone() };
                (within(&page, at), page.when.and(&marked).and(when))
            });
        usable.filter(|(_, when)| !when.is_empty()).collect()
    }

    /// How long a walk may be under way that read a page's entry.
    fn read(&self, space: &Space, gva: Gva, leaf: &Leaf) -> Times {
        self.view.remembered(&leaf.when, |scope| covers_page(scope, space, gva, leaf.level.shift, leaf.is_global))
    }

    /// The mappings that a page found may still be cached as.
    fn cached(&self, space: &Space, gva: Gva, leaf: &Leaf, active: &Times) -> Vec<Mapping> {
        let page_shift = leaf.level.shift;
        let covers = |scope: &_| covers_page(scope, space, gva, page_shift, leaf.is_global);
        let read = self.read(space, gva, leaf);
        let whole = StagePage {
            hpa: Hpa(leaf.address >> page_shift << page_shift),
            shift: 63,
            rights: Rights::all(),
            is_dirty: true,
            when: read.clone(),
        };
        let staged = match tag_of(&leaf.second, space.context) {
            None => vec![(Hpa(leaf.address), whole)],
            Some(tag) => {
                let gpa = Gpa(leaf.address);
                let pages = self.stage(tag, gpa).map(|found| found.pages).unwrap_or_default();
                pages.into_iter().map(|page| (within(&page, gpa), page)).collect()
            }
        };
        let mappings = staged.into_iter().filter_map(|(hpa, page)| {
            let made = page.when.and(&read).and(active);
            let shift = page_shift.min(page.shift);
            let is_there = self.view.remembered(&made, covers).contains(self.view.now);
            is_there.then(|| Mapping {
                space: *space,
                gva: Gva(gva.0 >> shift << shift),
                hpa: Hpa(hpa.0 >> shift << shift),
                shift,
                page_shift,
                rights: leaf.rights,
                stage_rights: page.rights,
                key: leaf.level.key(leaf.raw),
                memory_type: MemoryType::WriteBack,
                is_global: leaf.is_global,
                is_dirty: leaf.level.layout.dirty & !leaf.raw == 0 && page.is_dirty,
            })
        });
        mappings.collect()
    }

    /// Without paging a linear address is the guest-physical address, and only guest-physical mappings are cached.
    pub(super) fn unpaged(&self, setting: &Setting, gva: Gva) -> Result<Vec<Mapping>, SimError> {
        let Some(tag) = tag_of(&setting.second, setting.space.context) else { return Ok(Vec::new()) };
        let pages = self.stage(tag, Gpa(gva.0))?.pages;
        let usable = pages.into_iter().filter(|page| page.when.contains(self.view.now));
        Ok(usable.map(|page| unpaged(setting.space, gva, &page)).collect())
    }
}

const fn unpaged(space: Space, gva: Gva, page: &StagePage) -> Mapping {
    Mapping {
        space,
        gva: Gva(gva.0 >> page.shift << page.shift),
        hpa: page.hpa,
        shift: page.shift,
        page_shift: page.shift,
        rights: Rights::all(),
        stage_rights: page.rights,
        key: 0,
        memory_type: MemoryType::WriteBack,
        is_global: false,
        is_dirty: page.is_dirty,
    }
}

/// Where an address of a page is.
const fn within(page: &StagePage, gpa: Gpa) -> Hpa {
    Hpa(page.hpa.0 | (gpa.0 & ((1 << page.shift) - 1)))
}
