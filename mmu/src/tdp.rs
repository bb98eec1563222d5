//! The TDP MMU: direct roots shared by role, whose children inherit their parent's role and die with the root
//! (`tdp_mmu.c`, v5.17 to v6.3; root lifetime until invalidation, edbdb43fc96b v6.4, is not modelled yet).

use crate::fetch::Tables;
use crate::page::{ENTRIES, Owner, new_page};
use crate::role::{ACCESS_ALL, PageRole};
use crate::spte;
use crate::state::{Ctx, Mmu};
use sim_core::SimError;
use sim_core::addr::{Gfn, Hfn, Hpa, Level};
use sim_core::event::Event;

impl Ctx<'_> {
    /// `kvm_tdp_mmu_get_vcpu_root_hpa`: the root with this role, shared by all that ask for it.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn tdp_root(&mut self, role: PageRole) -> Result<Hpa, SimError> {
        let existing = self.vm.pages.all().find(|(_, page)| page.is_tdp() && page.role == role && page.root_count > 0);
        let found = existing.map(|(hfn, _)| hfn);
        let (hfn, created) = match found {
            Some(hfn) => (hfn, false),
            None => (self.tdp_page(Gfn(0), role)?, true),
        };
        if let Some(page) = self.vm.pages.at_mut(hfn.base()) {
            page.root_count += 1;
            let page = page.view();
            self.ground.record(Event::PageGet { page, created });
        }
        Ok(hfn.base())
    }

    fn tdp_page(&mut self, gfn: Gfn, role: PageRole) -> Result<Hfn, SimError> {
        let hfn = self.vm.frames.take(self.ground)?;
        let generation = self.vm.pages.generation;
        self.vm.pages.insert(hfn, new_page(gfn, role, generation, Owner::Tdp));
        Ok(hfn)
    }

    /// `kvm_tdp_mmu_map`: maps one guest frame below the MMU's root.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn tdp_map(&mut self, mmu: &Mmu, gfn: Gfn, frame: Hfn) -> Result<(), SimError> {
        let address = gfn.base().0;
        let mut table = mmu.root.hpa;
        let mut role = match self.vm.pages.at(table) {
            Some(page) => page.role,
            None => return Err(SimError::internal("TDP root without a shadow page")),
        };
        while let Some((level, below)) = role.page_level().and_then(|level| Some((level, level.down()?))) {
            let sptep = table.offset(level.index(address) * 8);
            let entry = self.ground.mem.read_u64(sptep);
            role = role.with_level(u32::from(below.number()));
            table = if spte::is_present(entry) {
                spte::frame(entry).base()
            } else {
                let child = self.tdp_page(Gfn(gfn.0 & !(level.frames() - 1)), role)?;
                if let Some(page) = self.vm.pages.at(child.base()) {
                    self.ground.record(Event::PageGet { page: page.view(), created: true });
                }
                self.link_page(sptep, child.base());
                child.base()
            };
        }
        self.set_leaf(table.offset(Level::L1.index(address) * 8), gfn, frame, ACCESS_ALL, Tables::MayUnsync);
        Ok(())
    }

    /// `kvm_tdp_mmu_put_root` at the last reference: the whole tree goes.
    pub fn tdp_free_root(&mut self, root: Hpa) {
        self.tdp_free_tree(root);
        self.flush_remote();
    }

    fn tdp_free_tree(&mut self, table: Hpa) {
        let Some(page) = self.vm.pages.at(table).cloned() else { return };
        self.ground.record(Event::PageZap { page: page.view() });
        for index in 0..ENTRIES {
            let sptep = table.offset(index * 8);
            let entry = self.ground.mem.read_u64(sptep);
            if !spte::is_present(entry) {
                continue;
            }
            if page.role.level() > 1 {
                self.tdp_free_tree(spte::frame(entry).base());
            } else {
                self.vm.pages.unmap(page.gfn.offset(index), sptep);
            }
        }
        self.vm.pages.remove(table.frame());
        self.vm.pages.zapped.push(table.frame());
    }

    /// `kvm_tdp_mmu_invalidate_all_roots`: no look-up finds them any more.
    pub fn tdp_invalidate_roots(&mut self) {
        let roots: Vec<_> =
            self.vm.pages.all().filter(|(_, page)| page.is_tdp() && page.root_count > 0).map(|(hfn, _)| hfn).collect();
        for hfn in roots {
            if let Some(page) = self.vm.pages.at_mut(hfn.base()) {
                page.role = page.role.with_invalid(1);
            }
        }
    }
}
