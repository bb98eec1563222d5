//! Shadow pages: host frames that hold page tables which hardware walks, with what KVM must know of each
//! (`struct kvm_mmu_page`), and looking them up or making them (`kvm_mmu_get_page`).
//!
//! The entries themselves live in simulated memory. Kept here: the hash by guest frame, parents of each page, and the
//! reverse map from guest frames to leaf entries, of direct and indirect pages alike.

use crate::change::Change;
use crate::memslot::{AddressSpace, first_of};
use crate::plant::Plant;
use crate::role::PageRole;
use crate::spte::AdType;
use crate::state::{Ctx, Mmu};
use crate::stats::Stat;
use crate::sync::Synced;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{Gfn, Hfn, Hpa, Level};
use sim_core::event::{Event, PageView};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Entries in a shadow page.
pub const ENTRIES: u64 = 512;
/// Levels at which an entry can map memory.
pub const LEAF_LEVELS: [Level; 3] = [Level::L1, Level::L2, Level::L3];

/// Who owns a page's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Owner {
    /// The shadow MMU: hashed by guest frame, kept when no root uses it.
    Shadow,
    /// The TDP MMU: freed with its root (up to v6.3).
    Tdp,
}

/// Whether a page stands in for a large page that must not be executable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NxSplit {
    /// It does not.
    #[default]
    No,
    /// It does, and the recovery worker may zap it.
    Yes,
}

/// Whether entries were dropped without a flush (`tlbs_dirty`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unflushed {
    /// None since every vCPU last flushed.
    #[default]
    None,
    /// Some: whoever takes a page away owes the flush.
    Some,
}

/// The guest's translation behind a leaf entry of an indirect page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shadowed {
    /// The guest frame that it maps.
    pub gfn: Gfn,
    /// What the guest's tables permitted when it was made, without what keeps the entry from being writable (`ACC_*`).
    pub access: u32,
}

/// One shadow page.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShadowPage {
    /// What it shadows: the guest's table, or the first frame that it maps if it is direct.
    pub gfn: Gfn,
    /// What it is for.
    pub role: PageRole,
    /// Root slots, and `pae_root` entries, that hold it.
    pub root_count: u32,
    /// The guest may write the shadowed table without L0 noticing (`unsync`).
    pub unsync: bool,
    /// Where non-leaf entries point to it (`parent_ptes`).
    pub parents: BTreeSet<Hpa>,
    /// What each leaf entry of an indirect page is the shadow of (`shadowed_translation`).
    pub shadowed: BTreeMap<u16, Shadowed>,
    /// The generation in which it was made (`mmu_valid_gen`).
    pub generation: u8,
    /// Writes to the shadowed table since it was last used (`write_flooding_count`).
    pub write_flooding: u32,
    /// Entries below which something is out of sync (`unsync_child_bitmap`).
    pub unsync_bitmap: BTreeSet<u16>,
    /// How many there are (`unsync_children`), counted by itself as KVM does.
    pub unsync_children: u32,
    /// Whether it maps small what would be a large page, were it not executable (`nx_huge_page_disallowed`).
    pub nx_split: NxSplit,
    /// When it was made, among all pages: the newest is at the head of `active_mmu_pages`.
    pub made: u64,
    /// Who owns its life.
    pub owner: Owner,
}

impl ShadowPage {
    /// Whether the TDP MMU owns it.
    #[must_use]
    pub fn is_tdp(&self) -> bool {
        self.owner == Owner::Tdp
    }

    /// The first guest frame that an entry of a direct page maps (`kvm_mmu_page_get_gfn`).
    #[must_use]
    pub fn direct_gfn(&self, index: u64) -> Option<Gfn> {
        let level = self.role.page_level()?;
        Some(self.gfn.offset(index * level.frames()))
    }

    /// As events show it.
    #[must_use]
    pub const fn view(&self) -> PageView {
        let Self { generation, gfn, role, root_count, unsync, .. } = self;
        PageView { generation: *generation, gfn: *gfn, role: role.word(), root_count: *root_count, unsync: *unsync }
    }

    /// Whether it shadows a guest table.
    #[must_use]
    pub const fn is_indirect(&self) -> bool {
        self.role.direct() == 0
    }
}

/// All shadow pages of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pages {
    pages: BTreeMap<Hfn, ShadowPage>,
    /// Pages of the shadow MMU by guest frame, newest first; zapped pages are not here.
    hash: BTreeMap<Gfn, Vec<Hfn>>,
    /// Leaf entries by the guest frame that they map; a large page is under its first frame and its level.
    rmap: BTreeMap<(AddressSpace, Level, Gfn), BTreeSet<Hpa>>,
    /// The generation of pages made now (`mmu_valid_gen`).
    pub generation: u8,
    /// Pages zapped but not yet given back, waiting for the remote flush.
    pub zapped: Vec<Hfn>,
    /// Guest tables that are shadowed (`indirect_shadow_pages`).
    pub indirect: u64,
    /// See [`Unflushed`].
    pub unflushed: Unflushed,
    /// Pages made so far.
    made: u64,
}

impl Pages {
    /// The page whose table is at an address (`to_shadow_page`): none for `pae_root`, what is above it, and no address.
    #[must_use]
    pub fn at(&self, table: Hpa) -> Option<&ShadowPage> {
        table.is_valid().then(|| self.pages.get(&table.frame()))?
    }

    /// The page whose table is at an address, to change.
    pub fn at_mut(&mut self, table: Hpa) -> Option<&mut ShadowPage> {
        table.is_valid().then(|| self.pages.get_mut(&table.frame()))?
    }

    /// Every page, by host frame.
    pub fn all(&self) -> impl Iterator<Item = (Hfn, &ShadowPage)> {
        self.pages.iter().map(|(hfn, page)| (*hfn, page))
    }

    /// The pages that shadow a guest frame, newest first.
    #[must_use]
    pub fn shadowing(&self, gfn: Gfn) -> &[Hfn] {
        self.hash.get(&gfn).map_or(&[], Vec::as_slice)
    }

    /// The leaf entries that map a guest frame in an address space, in pages of any size, by size and address.
    #[must_use]
    pub fn mappings(&self, space: AddressSpace, gfn: Gfn) -> Vec<Hpa> {
        let of_level = |level: Level| self.rmap.get(&(space, level, first_of(level, gfn))).into_iter().flatten();
        LEAF_LEVELS.into_iter().flat_map(of_level).copied().collect()
    }

    /// The leaf entries that map any frame of a range in an address space, by size and address.
    #[must_use]
    pub fn mappings_between(&self, space: AddressSpace, range: Range<u64>) -> Vec<Hpa> {
        let of_level = |level: Level| {
            let first = (space, level, first_of(level, Gfn(range.start)));
            self.rmap.range(first..(space, level, Gfn(range.end))).flat_map(|(_, entries)| entries)
        };
        LEAF_LEVELS.into_iter().flat_map(of_level).copied().collect()
    }

    /// The leaf entries that map a guest frame in any address space.
    #[must_use]
    pub fn all_mappings(&self, gfn: Gfn) -> Vec<Hpa> {
        AddressSpace::ALL.into_iter().flat_map(|space| self.mappings(space, gfn)).collect()
    }

    /// The whole reverse map.
    pub fn reverse_map(&self) -> impl Iterator<Item = (AddressSpace, Level, Gfn, &BTreeSet<Hpa>)> {
        self.rmap.iter().map(|((space, level, gfn), entries)| (*space, *level, *gfn, entries))
    }

    /// `is_obsolete_sp`.
    #[must_use]
    pub fn is_obsolete(&self, page: &ShadowPage) -> bool {
        page.role.invalid() == 1 || (!page.is_tdp() && page.generation != self.generation)
    }

    /// Whether a write to a guest frame must be noticed: it holds a table that is shadowed and in sync.
    #[must_use]
    pub fn tables_at(&self, gfn: Gfn) -> Vec<Hpa> {
        let backed = |hfn: &&Hfn| self.pages.get(hfn).is_some_and(|page| page.role.has_gptes());
        self.shadowing(gfn).iter().filter(backed).map(|hfn| hfn.base()).collect()
    }

    pub(crate) fn insert(&mut self, hfn: Hfn, mut page: ShadowPage) {
        page.made = self.made;
        self.made += 1;
        if !page.is_tdp() {
            self.hash.entry(page.gfn).or_default().insert(0, hfn);
        }
        self.pages.insert(hfn, page);
    }

    pub(crate) fn unhash(&mut self, hfn: Hfn, gfn: Gfn) {
        if let Some(bucket) = self.hash.get_mut(&gfn) {
            bucket.retain(|other| *other != hfn);
            if bucket.is_empty() {
                self.hash.remove(&gfn);
            }
        }
    }

    pub(crate) fn remove(&mut self, hfn: Hfn) -> Option<ShadowPage> {
        self.pages.remove(&hfn)
    }

    /// Puts a leaf entry into the reverse map (`rmap_add`). The table that it is in says level and address space.
    pub(crate) fn map(&mut self, gfn: Gfn, sptep: Hpa) {
        if let Some(key) = self.rmap_key(gfn, sptep) {
            self.rmap.entry(key).or_default().insert(sptep);
        }
    }

    /// Takes a leaf entry out of the reverse map (`rmap_remove`), while its table is still there.
    pub(crate) fn unmap(&mut self, gfn: Gfn, sptep: Hpa) {
        let Some(key) = self.rmap_key(gfn, sptep) else { return };
        if let Some(entries) = self.rmap.get_mut(&key) {
            entries.remove(&sptep);
            if entries.is_empty() {
                self.rmap.remove(&key);
            }
        }
    }

    fn rmap_key(&self, gfn: Gfn, sptep: Hpa) -> Option<(AddressSpace, Level, Gfn)> {
        let role = self.at(sptep.page_base())?.role;
        let level = role.page_level()?;
        Some((AddressSpace::of_role(role), level, first_of(level, gfn)))
    }
}

/// What a new shadow page maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maps {
    /// Guest memory directly.
    Memory,
    /// What a guest table maps.
    GuestTable,
}

/// What is looked for by [`Ctx::get_page`].
#[derive(Clone, Copy, Debug)]
pub struct GetPage {
    /// The guest's table, or the first frame mapped.
    pub gfn: Gfn,
    /// Any address below the page, for the quadrant.
    pub gaddr: u64,
    /// The page's level.
    pub level: Level,
    /// What it maps.
    pub maps: Maps,
    /// Permissions of the entries above.
    pub access: u32,
}

impl Ctx<'_> {
    /// `kvm_mmu_get_page`: finds or makes the shadow page of a guest table. The role is the MMU's, or from v6.0 the
    /// parent page's, with the page's own fields replaced.
    ///
    /// # Errors
    /// If host memory runs out.
    pub fn get_page(&mut self, mmu: &Mmu, want: &GetPage, parent: Option<Hpa>) -> Result<Hpa, SimError> {
        let role = self.page_role(mmu, want, parent);
        let mut stale = Vec::new();
        for hfn in self.vm.pages.shadowing(want.gfn).to_vec() {
            let Some(page) = self.vm.pages.at(hfn.base()) else { continue };
            if self.vm.pages.is_obsolete(page) {
                continue;
            }
            if page.role != role {
                if want.level > Level::L1 && page.unsync {
                    if self.vm.changes.has(Change::UnsyncNeverUpper) {
                        self.prepare_zap(hfn.base());
                    } else {
                        stale.push(hfn.base());
                    }
                }
                continue;
            }
            // The page is good, but stale: it is brought up to date, and stays out of sync until the guest asks.
            if page.unsync && want.maps == Maps::GuestTable && !self.vm.plants.has(Plant::NoSyncOnHit) {
                match self.sync_page(mmu, hfn.base()) {
                    Synced::Zapped => break,
                    Synced::OwesFlush if self.vm.plants.has(Plant::NoFlushAfterSync) => {}
                    Synced::OwesFlush => self.flush_after_sync(),
                    Synced::Agrees if self.vm.changes.rebuilds_synced() => break,
                    Synced::Agrees => {}
                }
            }
            self.note_use(hfn.base());
            self.record_get(hfn.base(), false);
            return Ok(hfn.base());
        }
        let made = self.make_page(role, want.gfn)?;
        self.sync_beside(mmu, stale);
        Ok(made)
    }

    /// Before ddc16abbbae9: the frame of a table that is out of sync becomes a table of an upper level, and the first is brought
    /// up to date by the MMU that is active, whoever it belongs to (`kvm_sync_pages`).
    fn sync_beside(&mut self, mmu: &Mmu, stale: Vec<Hpa>) {
        for table in stale {
            self.sync_unsync(mmu, table);
        }
        self.commit_zap();
    }

    fn page_role(&self, mmu: &Mmu, want: &GetPage, parent: Option<Hpa>) -> PageRole {
        let parent_role = parent
            .filter(|_| self.vm.changes.has(Change::ChildRoleFromParent))
            .and_then(|table| self.vm.pages.at(table))
            .map(|page| page.role.with_passthrough(0));
        let role = parent_role.unwrap_or(mmu.root_role);
        let level = u32::from(want.level.number());
        let quadrant = if role.has_4_byte_gpte() == 1 && !self.vm.plants.has(Plant::QuadrantZero) {
            (want.gaddr >> want.level.shift() >> 9) as u32 & ((1 << level) - 1)
        } else {
            0
        };
        // Only a root passes through, and only above the guest's own root.
        let role = if want.level.number() <= mmu.root_level { role.with_passthrough(0) } else { role };
        role.with_level(level)
            .with_direct(u32::from(want.maps == Maps::Memory))
            .with_access(want.access)
            .with_quadrant(quadrant)
    }

    fn make_page(&mut self, role: PageRole, gfn: Gfn) -> Result<Hpa, SimError> {
        let hfn = self.vm.frames.take(self.ground)?;
        let generation = self.vm.pages.generation;
        self.vm.pages.insert(hfn, new_page(gfn, role, generation, Owner::Shadow));
        self.vm.stats.count(Stat::CacheMiss);
        if role.has_gptes() {
            self.account_shadowed(gfn, role);
        }
        self.record_get(hfn.base(), true);
        Ok(hfn.base())
    }

    fn record_get(&mut self, table: Hpa, created: bool) {
        if let Some(page) = self.vm.pages.at(table) {
            let page = page.view();
            self.ground.record(Event::PageGet { page, created });
        }
    }

    /// `kvm_mmu_link_shadow_page`: makes a non-leaf entry point to a page.
    pub fn link_page(&mut self, sptep: Hpa, table: Hpa) {
        let format = self.vm.config.tdp.spte_format();
        let role = self.vm.pages.at(table).map(|page| page.role).unwrap_or_default();
        let ad = AdType::of(role, self.vm.config.pml);
        self.ground.mem.write_u64(sptep, format.non_leaf(table, ad));
        let Some(page) = self.vm.pages.at_mut(table) else { return };
        page.parents.insert(sptep);
        if (page.unsync || page.unsync_children > 0) && !self.vm.plants.has(Plant::LinkForgetsUnsync) {
            self.mark_entry(sptep);
        }
    }
}

/// A page that nothing uses yet.
#[must_use]
pub const fn new_page(gfn: Gfn, role: PageRole, generation: u8, owner: Owner) -> ShadowPage {
    ShadowPage {
        gfn,
        role,
        root_count: 0,
        unsync: false,
        parents: BTreeSet::new(),
        shadowed: BTreeMap::new(),
        generation,
        write_flooding: 0,
        unsync_bitmap: BTreeSet::new(),
        unsync_children: 0,
        nx_split: NxSplit::No,
        made: 0,
        owner,
    }
}
