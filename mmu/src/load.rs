//! Building a root for an MMU that has none, and giving roots up (`kvm_mmu_load`, `kvm_mmu_free_roots`,
//! `kvm_mmu_unload`).
//!
//! A root is one of four kinds: a shadow page; `pae_root`, four entries on a page without a shadow page, for guests of
//! two or three levels and none; or a special root, `pae_root` below `pml4_root`, and that below `pml5_root` on a host
//! of five levels, for 32-bit nested paging shadowed by 64-bit nested paging. From v6.6 on there is
//! the dummy root too, a page of zeroes.

use crate::change::Change;
use crate::memslot::{AddressSpace, Visibility};
use crate::page::{GetPage, Maps};
use crate::plant::Plant;
use crate::request::{Effects, Requests};
use crate::role::ACCESS_ALL;
use crate::state::{Ctx, DirectMmu, Mmu, PREV_ROOTS, Root, TdpMode, VcpuMmu, View, Warned};
use crate::stats::Stat;
use sim_core::SimError;
use sim_core::addr::{ENTRY_FRAME_MASK, Gfn, Gpa, Hfn, Hpa, Level};
use sim_core::event::{Event, MmuId};

/// Entries in `pae_root`.
pub const PAE_ROOTS: u64 = 4;
/// Present.
const PAE_PRESENT: u64 = 1;
/// Present, writable, user, accessed: what the entries of a special root have.
const PAE_UNDER_PML4: u64 = 0x27;

/// Where entry `index` of a table is.
const fn slot(table: Hfn, index: u64) -> Hpa {
    table.base().offset(index * 8)
}

/// The shadow page's table that a `pae_root` entry points to.
#[must_use]
pub const fn pae_target(entry: u64) -> Hpa {
    Hpa(entry & ENTRY_FRAME_MASK)
}

/// Which roots of an MMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The current root and all previous ones.
    All,
    /// Only the current root.
    Current,
    /// One previous root.
    Prev(usize),
}

impl Ctx<'_> {
    /// `kvm_mmu_reload`: makes sure that `arch.mmu` has a root. The effects are to be performed before anything else.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn reload(&mut self, vcpu: &mut VcpuMmu, view: &View) -> Result<Effects, SimError> {
        if vcpu.active().root.is_valid() {
            return Ok(Effects::empty());
        }
        self.alloc_special_tables(vcpu)?;
        if vcpu.active().is_direct() {
            self.alloc_direct_root(vcpu, view)?;
        } else if !self.alloc_shadow_root(vcpu, view)? {
            return Ok(Effects::empty());
        }
        self.vm.stats.count(Stat::RootLoads);
        let mmu = vcpu.active();
        let root = self.vm.root_view(mmu.root);
        self.ground.record(Event::RootLoad { mmu: mmu.id, root, role: mmu.root_role.word() });
        self.sync_roots(vcpu, view)?;
        Ok(Effects::LOAD_PGD | Effects::FLUSH_CURRENT)
    }

    /// `mmu_alloc_special_roots`, and the `pae_root` page that KVM allocates with the vCPU when TDP is off.
    fn alloc_special_tables(&mut self, vcpu: &mut VcpuMmu) -> Result<(), SimError> {
        let mmu = vcpu.active();
        let special = !mmu.is_direct() && mmu.root_level < 4 && mmu.shadow_root_level >= 4;
        if special && self.vm.config.tdp == TdpMode::Off {
            self.warn("special root without TDP (mmu_alloc_special_roots)");
        }
        if mmu.walks_pae_root() && mmu.pae_root.is_none() {
            vcpu.active_mut().pae_root = Some(self.vm.frames.take(self.ground)?);
        }
        if special && vcpu.active().pml4_root.is_none() {
            vcpu.active_mut().pml4_root = Some(self.vm.frames.take(self.ground)?);
        }
        if special && vcpu.active().shadow_root_level == 5 && vcpu.active().pml5_root.is_none() {
            vcpu.active_mut().pml5_root = Some(self.vm.frames.take(self.ground)?);
        }
        Ok(())
    }

    /// `mmu_alloc_direct_roots`.
    fn alloc_direct_root(&mut self, vcpu: &mut VcpuMmu, view: &View) -> Result<(), SimError> {
        // Up to v5.6 a direct root is known by the CR3 that it was made under, though it serves every one.
        let any = self.vm.changes.has(Change::DirectIgnoresCr3);
        let pgd = if any { 0 } else { guest_pgd(vcpu.active().id, view) };
        if self.vm.config.tdp != TdpMode::Off {
            let hpa = match self.vm.config.direct {
                DirectMmu::Tdp => self.tdp_root(vcpu.active().root_role)?,
                DirectMmu::Legacy => self.legacy_direct_root(vcpu.active())?,
            };
            vcpu.active_mut().root = Root { hpa, pgd };
            return Ok(());
        }
        let pae_root = Self::pae_table(vcpu.active())?;
        for index in 0..PAE_ROOTS {
            let want = GetPage {
                gfn: Gfn(index << 18),
                gaddr: index << 30,
                level: Level::L2,
                maps: Maps::Memory,
                access: ACCESS_ALL,
            };
            let entry = self.take_root_page(vcpu.active(), &want)?.0 | PAE_PRESENT;
            self.set_pae_entry(pae_root, index, entry);
        }
        vcpu.active_mut().root = Root { hpa: pae_root.base(), pgd };
        Ok(())
    }

    /// A direct root of the shadow MMU: one page from frame 0, whatever the guest's CR3.
    fn legacy_direct_root(&mut self, mmu: &Mmu) -> Result<Hpa, SimError> {
        let level = Level::from_number(mmu.shadow_root_level)
            .ok_or_else(|| SimError::internal("direct root level out of range"))?;
        let want = GetPage { gfn: Gfn(0), gaddr: 0, level, maps: Maps::Memory, access: ACCESS_ALL };
        self.take_root_page(mmu, &want)
    }

    /// `mmu_alloc_shadow_roots`. False if the guest's root is not in any memslot: a triple fault is pending instead.
    fn alloc_shadow_root(&mut self, vcpu: &mut VcpuMmu, view: &View) -> Result<bool, SimError> {
        let pgd = guest_pgd(vcpu.active().id, view);
        let root_gfn = Gpa(pgd & ENTRY_FRAME_MASK).frame();
        if !self.is_visible(view.space(), root_gfn) {
            return self.no_root(vcpu, pgd);
        }
        if vcpu.active().root_level >= 4 {
            let mmu = vcpu.active();
            let level = Level::from_number(mmu.shadow_root_level)
                .ok_or_else(|| SimError::internal("shadow root level out of range"))?;
            let want = GetPage { gfn: root_gfn, gaddr: 0, level, maps: Maps::GuestTable, access: ACCESS_ALL };
            let hpa = self.take_root_page(mmu, &want)?;
            vcpu.active_mut().root = Root { hpa, pgd };
            return Ok(true);
        }
        self.alloc_pae_roots(vcpu, view, root_gfn, pgd)
    }

    /// The guest's root is in no slot: a root that maps nothing, so that the guest finds out when it uses it, or a triple
    /// fault at once.
    fn no_root(&mut self, vcpu: &mut VcpuMmu, pgd: u64) -> Result<bool, SimError> {
        if !self.vm.changes.has(Change::DummyRoots) {
            vcpu.requests.post(self.ground, Requests::TRIPLE_FAULT);
            return Ok(false);
        }
        let page = match self.vm.zero_page {
            Some(page) => page,
            None => *self.vm.zero_page.insert(self.vm.frames.take(self.ground)?),
        };
        vcpu.active_mut().root = Root { hpa: page.base(), pgd };
        Ok(true)
    }

    fn alloc_pae_roots(&mut self, vcpu: &mut VcpuMmu, view: &View, root_gfn: Gfn, pgd: u64) -> Result<bool, SimError> {
        let pae_root = Self::pae_table(vcpu.active())?;
        let (top, attributes) = self.link_special_tables(vcpu.active(), pae_root);
        let gfns = [0, 1, 2, 3].map(|index| match vcpu.active().root_level {
            3 => self.present_pdpte(vcpu.active().id, view, index),
            _ => Some(root_gfn),
        });
        // All are looked at before any is taken: a root that can't be built must leave nothing behind.
        let visible = gfns.map(|gfn| gfn.filter(|gfn| self.is_visible(view.space(), *gfn)));
        if visible != gfns && !self.vm.changes.has(Change::DummyRoots) {
            vcpu.requests.post(self.ground, Requests::TRIPLE_FAULT);
            return Ok(false);
        }
        for (index, gfn) in (0..PAE_ROOTS).zip(visible) {
            let entry = match gfn {
                None => 0,
                Some(gfn) => {
                    let gaddr = index << 30;
                    let want = GetPage { gfn, gaddr, level: Level::L2, maps: Maps::GuestTable, access: ACCESS_ALL };
                    self.take_root_page(vcpu.active(), &want)?.0 | attributes
                }
            };
            self.set_pae_entry(pae_root, index, entry);
        }
        vcpu.active_mut().root = Root { hpa: top.base(), pgd };
        Ok(true)
    }

    /// Puts `pae_root` below as many tables as hardware walks. The topmost, and what entries of `pae_root` say of rights.
    fn link_special_tables(&mut self, mmu: &Mmu, pae_root: Hfn) -> (Hfn, u64) {
        let above = [(4, mmu.pml4_root), (5, mmu.pml5_root)];
        let used = above.into_iter().filter(|(level, _)| *level <= mmu.shadow_root_level);
        used.filter_map(|(_, table)| table).fold((pae_root, PAE_PRESENT), |(below, _), table| {
            if Some(table) != mmu.pml5_root || !self.vm.plants.has(Plant::Pml5NotLinked) {
                self.ground.mem.write_u64(table.base(), below.base().0 | PAE_UNDER_PML4);
            }
            (table, PAE_UNDER_PML4)
        })
    }

    /// `kvm_vcpu_is_visible_gfn`: a slot of userspace's is there.
    fn is_visible(&self, space: AddressSpace, gfn: Gfn) -> bool {
        self.vm.slots.find(space, gfn).is_some_and(|slot| slot.visibility == Visibility::Public)
    }

    /// The table that PDPTE `index` points to, if the entry is present (`get_pdptr`). L2's nested PDPTEs are read from
    /// L1's memory each time, as nested paging does (APM2 15.25.10).
    #[must_use]
    pub fn present_pdpte(&self, id: MmuId, view: &View, index: u64) -> Option<Gfn> {
        let entry = match id {
            MmuId::Root | MmuId::Nested => view.pdptes[index as usize],
            MmuId::Guest => {
                let gpa = Gpa(view.nested_pgd & 0xffff_ffe0).offset(index * 8);
                self.vm.slots.host(view.space(), gpa).map_or(0, |hpa| self.ground.mem.read_u64(hpa))
            }
        };
        (entry & PAE_PRESENT != 0).then(|| Gpa(entry & ENTRY_FRAME_MASK).frame())
    }

    fn take_root_page(&mut self, mmu: &Mmu, want: &GetPage) -> Result<Hpa, SimError> {
        let hpa = self.get_page(mmu, want, None)?;
        if let Some(page) = self.vm.pages.at_mut(hpa) {
            page.root_count += 1;
        }
        Ok(hpa)
    }

    fn pae_table(mmu: &Mmu) -> Result<Hfn, SimError> {
        mmu.pae_root.ok_or_else(|| SimError::internal("no pae_root for a PAE root"))
    }

    fn set_pae_entry(&mut self, pae_root: Hfn, index: u64, entry: u64) {
        if self.ground.mem.read_u64(slot(pae_root, index)) != 0 {
            self.warn("pae_root entry still valid when a new one is made (IS_VALID_PAE_ROOT)");
        }
        self.ground.mem.write_u64(slot(pae_root, index), entry);
    }

    /// `kvm_mmu_free_roots`.
    pub fn free_roots(&mut self, vcpu: &mut VcpuMmu, id: MmuId, which: Which) {
        for index in 0..PREV_ROOTS {
            if which == Which::All || which == Which::Prev(index) {
                let root = std::mem::replace(&mut vcpu.get_mut(id).prev[index], Root::NONE);
                self.free_root_page(id, root);
            }
        }
        if matches!(which, Which::All | Which::Current) {
            self.free_current(vcpu, id);
        }
        self.commit_zap();
    }

    /// Gives up the current root. What kind of root it is, v5.17 concludes from the levels stored now; 594bef793108
    /// asks whether it has a shadow page.
    pub fn free_current(&mut self, vcpu: &mut VcpuMmu, id: MmuId) {
        let mmu = vcpu.get_mut(id);
        let root = std::mem::replace(&mut mmu.root, Root::NONE);
        if !root.is_valid() {
            return;
        }
        if self.vm.is_dummy_root(root.hpa) {
            self.ground.record(Event::RootFree { mmu: id, root: self.vm.root_view(root) });
            return;
        }
        let is_page = if self.vm.changes.has(Change::FreeBySp) {
            self.vm.pages.at(root.hpa).is_some()
        } else {
            mmu.shadow_root_level >= 4 && (mmu.root_level >= 4 || mmu.is_direct())
        };
        let pae_root = mmu.pae_root;
        if is_page {
            self.free_root_page(id, root);
        } else if let Some(pae_root) = pae_root {
            self.ground.record(Event::RootFree { mmu: id, root: self.vm.root_view(root) });
            self.free_pae_entries(pae_root);
        }
        self.commit_zap();
    }

    fn free_pae_entries(&mut self, pae_root: Hfn) {
        for index in 0..PAE_ROOTS {
            let entry = self.ground.mem.read_u64(slot(pae_root, index));
            if entry != 0 {
                self.ground.mem.write_u64(slot(pae_root, index), 0);
                self.put_root_page(pae_target(entry));
            }
        }
    }

    /// `mmu_free_root_page`.
    fn free_root_page(&mut self, id: MmuId, root: Root) {
        if !root.is_valid() {
            return;
        }
        self.ground.record(Event::RootFree { mmu: id, root: self.vm.root_view(root) });
        self.put_root_page(root.hpa);
    }

    fn put_root_page(&mut self, hpa: Hpa) {
        let keeps = self.vm.plants.has(Plant::RootKeepsCount);
        let Some(page) = self.vm.pages.at_mut(hpa) else {
            // Up to v5.17 the kernel dereferences the missing page; 9191b8f0745e made it a warning.
            self.warn("root without a shadow page freed (mmu_free_root_page: NULL dereference up to v5.17)");
            return;
        };
        page.root_count = page.root_count.saturating_sub(u32::from(!keeps));
        let (tdp, unused) = (page.is_tdp(), page.root_count == 0);
        if tdp && unused {
            self.tdp_put_last(hpa);
        } else if unused && page_is_invalid(self, hpa) {
            self.prepare_zap(hpa);
        }
    }

    /// `kvm_mmu_unload`: every root of `root_mmu` and `guest_mmu`.
    pub fn unload(&mut self, vcpu: &mut VcpuMmu) {
        for id in [MmuId::Root, MmuId::Guest] {
            self.free_roots(vcpu, id, Which::All);
        }
    }

    /// `kvm_mmu_free_obsolete_roots` (v5.18): roots whose page is invalid or of an old generation, and roots without a
    /// shadow page, which can't tell.
    pub fn free_obsolete_roots(&mut self, vcpu: &mut VcpuMmu) {
        for id in [MmuId::Root, MmuId::Guest] {
            let mmu = vcpu.get(id);
            let obsolete = |root: Root| {
                root.is_valid() && self.vm.pages.at(root.hpa).is_none_or(|page| self.vm.pages.is_obsolete(page))
            };
            // Like `kvm_mmu_free_roots`, which is told all of them at once, the previous ones first.
            let prev = (0..PREV_ROOTS).filter(|index| obsolete(mmu.prev[*index])).map(Which::Prev);
            let current = obsolete(mmu.root).then_some(Which::Current);
            for which in prev.chain(current).collect::<Vec<_>>() {
                self.free_roots(vcpu, id, which);
            }
        }
    }

    /// Records that KVM would have warned here.
    pub fn warn(&mut self, what: &'static str) {
        self.warn_of(what, None);
    }

    /// Records that KVM would have warned or died here, by an open bug of its own.
    pub fn warn_of(&mut self, what: &'static str, known: Option<&'static str>) {
        self.ground.record(Event::Warning { what });
        self.vm.warned.push(Warned { what, known });
    }
}

fn page_is_invalid(ctx: &Ctx<'_>, hpa: Hpa) -> bool {
    ctx.vm.pages.at(hpa).is_some_and(|page| page.role.invalid() == 1)
}

/// `get_guest_pgd`: what the active MMU's tables are rooted at.
#[must_use]
pub const fn guest_pgd(id: MmuId, view: &View) -> u64 {
    match id {
        MmuId::Root | MmuId::Nested => view.cr3,
        MmuId::Guest => view.nested_pgd,
    }
}
