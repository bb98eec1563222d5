//! The TDP MMU (`tdp_mmu.c`): direct roots shared by role, whose children inherit their parent's role. Up to v6.3 a root dies
//! with its last holder, from v6.4 on when all roots are invalidated (edbdb43fc96b).
//!
//! Left out: frozen entries and retries, for one writer runs at a time; walks over all roots, for TDP entries are in the
//! reverse map here.

use crate::change::Change;
use crate::fault::{Backing, PreparedFault};
use crate::huge;
use crate::leaf::{Install, Installed, Wants};
use crate::memslot::first_of;
use crate::page::{ENTRIES, Owner, ShadowPage, new_page};
use crate::role::PageRole;
use crate::spte::{self, Purpose};
use crate::state::{Ctx, Mmu, View};
use crate::unsync::Tables;
use sim_core::SimError;
use sim_core::addr::{Gfn, Hfn, Hpa, Level};
use sim_core::arch::exception::PageFaultError;
use sim_core::event::Event;

impl Ctx<'_> {
    /// `kvm_tdp_mmu_get_vcpu_root_hpa`: the root with this role, shared by all that ask for it.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn tdp_root(&mut self, role: PageRole) -> Result<Hpa, SimError> {
        let existing = self.vm.pages.all().find(|(_, page)| self.is_tdp_root(page) && page.role == role);
        let found = existing.map(|(hfn, _)| hfn);
        let (hfn, created) = match found {
            Some(hfn) => (hfn, false),
            None => (self.tdp_page(Gfn(0), role)?, true),
        };
        if let Some(page) = self.vm.pages.at_mut(hfn.base()) {
            page.root_count += 1;
            let page = page.view();
            // One that is found leaves no trace event.
            if created {
                self.ground.record(Event::PageGet { page, created });
            }
        }
        Ok(hfn.base())
    }

    /// Whether a page is a root: one that is held, or, from v6.4 on, of a root's level and not invalidated (no table below
    /// a root has its level).
    fn is_tdp_root(&self, page: &ShadowPage) -> bool {
        let kept = self.vm.changes.has(Change::TdpRootsPersist)
            && page.role.level() == u32::from(self.vm.config.tdp_root_level())
            && page.role.invalid() == 0;
        page.is_tdp() && (page.root_count > 0 || kept)
    }

    pub(crate) fn tdp_page(&mut self, gfn: Gfn, role: PageRole) -> Result<Hfn, SimError> {
        let hfn = self.vm.frames.take(self.ground)?;
        let generation = self.vm.pages.generation;
        self.vm.pages.insert(hfn, new_page(gfn, role, generation, Owner::Tdp));
        Ok(hfn)
    }

    /// `kvm_tdp_mmu_map`: maps the page of a fault below the MMU's root.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn tdp_map(&mut self, mmu: &Mmu, view: &View, fault: &PreparedFault) -> Result<Installed, SimError> {
        let PreparedFault { address, gfn, access, attempt, .. } = *fault;
        let page = match fault.backing {
            Backing::Page(page) => Some(page),
            Backing::None | Backing::NotWritable => None,
        };
        let most = if page.is_some() { Level::L3 } else { Level::L1 };
        let mut goal = huge::goal(self.vm, view.space(), gfn, most, attempt.error);
        let mut table = mmu.root.hpa;
        let mut role = match self.vm.pages.at(table) {
            Some(page) => page.role,
            None => return Err(SimError::internal("TDP root without a shadow page")),
        };
        loop {
            let level = role.page_level().ok_or_else(|| SimError::internal("TDP table without a level"))?;
            let sptep = table.offset(level.index(address) * 8);
            let entry = self.ground.mem.read_u64(sptep);
            goal = huge::keep_table(self.vm, goal, level, entry);
            if level == goal.level {
                let wants = if attempt.error.contains(PageFaultError::W) { Wants::Write } else { Wants::Read };
                let (tables, purpose) = (Tables::MayUnsync, Purpose::Access);
                return Ok(self.install(&Install { sptep, level, gfn, page, access, wants, tables, purpose }));
            }
            let below = level.down().ok_or_else(|| SimError::internal("TDP walk below level 1"))?;
            role = role.with_level(u32::from(below.number()));
            if spte::is_present(entry) && spte::is_leaf(entry, level) {
                self.drop_leaf(sptep);
            }
            table = match self.ground.mem.read_u64(sptep) {
                entry if spte::is_present(entry) => spte::frame(entry).base(),
                _ => self.tdp_child(first_of(level, gfn), role, sptep)?,
            };
            if goal.forbidden && goal.possible >= level {
                self.account_nx_split(table);
            }
        }
    }

    /// A new table below an entry; its role is its parent's at one level less (`tdp_mmu_init_child_sp`).
    fn tdp_child(&mut self, gfn: Gfn, role: PageRole, sptep: Hpa) -> Result<Hpa, SimError> {
        let child = self.tdp_page(gfn, role)?.base();
        if let Some(page) = self.vm.pages.at(child) {
            self.ground.record(Event::PageGet { page: page.view(), created: true });
        }
        self.link_page(sptep, child);
        Ok(child)
    }

    /// `kvm_tdp_mmu_put_root` at the last reference: the whole tree goes, unless it is kept until it is invalidated.
    pub fn tdp_put_last(&mut self, root: Hpa) {
        let kept = self.vm.pages.at(root).is_some_and(|page| page.role.invalid() == 0)
            && self.vm.changes.has(Change::TdpRootsPersist);
        if !kept {
            self.tdp_free_root(root);
        }
    }

    /// Frees a root and everything below it.
    fn tdp_free_root(&mut self, root: Hpa) {
        self.tdp_zap_root(root);
        self.vm.pages.remove(root.frame());
        self.vm.pages.zapped.push(root.frame());
    }

    /// `tdp_mmu_zap_root`: everything below a root, which itself leaves no trace event. From v5.18 on what is below entries of
    /// 1 GiB goes first, and from v6.9 on the small pages before that, so that no step of it takes long.
    fn tdp_zap_root(&mut self, root: Hpa) {
        if self.vm.changes.has(Change::ZapAtEachLevel) {
            self.tdp_zap_from(root, Level::L1);
            self.tdp_zap_from(root, Level::L2);
        }
        if self.vm.changes.has(Change::ZapInTwoPasses) {
            self.tdp_zap_from(root, Level::L3);
        }
        self.tdp_zap_entries(root);
        self.flush_remote();
    }

    /// Zaps the entries of a level below a table, or its own.
    fn tdp_zap_from(&mut self, table: Hpa, level: Level) {
        let Some(own) = self.vm.pages.at(table).and_then(|page| page.role.page_level()) else { return };
        if own <= level {
            return self.tdp_zap_entries(table);
        }
        for index in 0..ENTRIES {
            let entry = self.ground.mem.read_u64(table.offset(index * 8));
            if spte::is_present(entry) && !spte::is_leaf(entry, own) {
                self.tdp_zap_from(spte::frame(entry).base(), level);
            }
        }
    }

    /// Clears the entries of a table, and frees what is below them.
    fn tdp_zap_entries(&mut self, table: Hpa) {
        let Some((gfn, level)) = self.vm.pages.at(table).and_then(|page| Some((page.gfn, page.role.page_level()?)))
        else {
            return;
        };
        for index in 0..ENTRIES {
            let sptep = table.offset(index * 8);
            let entry = self.ground.mem.read_u64(sptep);
            if !spte::is_present(entry) {
                continue;
            }
            self.ground.mem.write_u64(sptep, 0);
            if spte::is_leaf(entry, level) {
                self.vm.pages.unmap(gfn.offset(index * level.frames()), sptep);
            } else {
                self.tdp_free_tree(spte::frame(entry).base());
            }
        }
    }

    /// A table that is no root, and everything below it (`handle_removed_pt`).
    pub(crate) fn tdp_free_tree(&mut self, table: Hpa) {
        let Some(page) = self.vm.pages.at(table) else { return };
        self.ground.record(Event::PageZap { page: page.view() });
        self.tdp_zap_entries(table);
        self.vm.pages.remove(table.frame());
        self.vm.pages.zapped.push(table.frame());
    }

    /// `kvm_tdp_mmu_invalidate_all_roots`: no look-up finds them any more. Which they are, the newest first, as `tdp_mmu_roots`
    /// lists them.
    pub fn tdp_invalidate_roots(&mut self) -> Vec<Hpa> {
        let roots = self.vm.pages.all().filter(|(_, page)| self.is_tdp_root(page));
        let mut roots: Vec<_> = roots.map(|(hfn, page)| (page.made, hfn.base())).collect();
        roots.sort_unstable_by(|one, other| other.cmp(one));
        for (_, root) in &roots {
            if let Some(page) = self.vm.pages.at_mut(*root) {
                page.role = page.role.with_invalid(1);
            }
        }
        roots.into_iter().map(|(_, root)| root).collect()
    }

    /// `kvm_tdp_mmu_zap_invalidated_roots`: what is below them goes at once, they themselves with their last holder.
    pub fn tdp_zap_invalidated(&mut self, roots: &[Hpa]) {
        for root in roots {
            match self.vm.pages.at(*root).map(|page| page.root_count) {
                Some(0) => self.tdp_free_root(*root),
                Some(_) => self.tdp_zap_root(*root),
                None => {}
            }
        }
    }
}
