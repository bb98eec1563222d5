//! Eager splitting of large pages (KVM v5.18 `kvm_tdp_mmu_try_split_huge_pages`, module parameter `eager_page_split`, on by
//! default): when a slot begins to log, each large page of the TDP MMU becomes a table of small ones with the same rights,
//! so that the first write to each is no longer a fault that maps it anew.
//!
//! Nothing is flushed: the small pages translate as the large one did. It is done as far as host memory goes. Left out:
//! pages of the shadow MMU (v6.0), and splitting at `KVM_CLEAR_DIRTY_LOG`, which only logs that begin all set need.

use crate::memslot::AddressSpace;
use crate::page::ShadowPage;
use crate::plant::Plant;
use crate::spte::{self, Format};
use crate::state::{Ctx, NxHugePages};
use sim_core::addr::{Hpa, Level};
use std::ops::Range;

/// Entries of a table.
const ENTRIES: u64 = 512;

impl Ctx<'_> {
    /// Splits every large page of the TDP MMU that maps frames of a range, down to 4 KiB.
    pub(crate) fn split_large_pages(&mut self, space: AddressSpace, range: &Range<u64>) {
        let mut large = self.leaves_in(space, range);
        while let Some(sptep) = large.pop() {
            let tdp = self.vm.pages.at(sptep.page_base()).is_some_and(ShadowPage::is_tdp);
            let level = self.level_of(sptep).filter(|level| tdp && *level > Level::L1);
            let Some(below) = level.and_then(Level::down) else { continue };
            let Some(table) = self.split(sptep, below) else { return };
            large.extend((0..ENTRIES).map(|index| table.offset(index * 8)));
        }
    }

    /// `tdp_mmu_split_huge_page`: the table that stands in for a large page, none without memory for it.
    fn split(&mut self, sptep: Hpa, below: Level) -> Option<Hpa> {
        let (_, gfn) = self.gfn_of(sptep)?;
        let role = self.vm.pages.at(sptep.page_base())?.role.with_level(u32::from(below.number()));
        let large = self.ground.mem.read_u64(sptep);
        let table = self.tdp_page(gfn, role).ok()?.base();
        let same_frame = self.vm.plants.has(Plant::SplitRepeatsFrame);
        let format = self.vm.config.tdp.spte_format();
        for index in 0..ENTRIES {
            let offset = index * below.frames();
            let small = format.split(large, below, if same_frame { 0 } else { offset }, self.vm.config.nx_huge);
            let at = table.offset(index * 8);
            self.ground.mem.write_u64(at, small);
            self.vm.pages.map(gfn.offset(offset), at);
        }
        self.vm.pages.unmap(gfn, sptep);
        self.link_page(sptep, table);
        Some(table)
    }
}

impl Format {
    /// One of the entries that a large one is split into (`make_huge_page_split_spte`). One of 4 KiB may be executable
    /// again where large ones may not.
    const fn split(self, large: u64, below: Level, frames: u64, nx_huge: NxHugePages) -> u64 {
        let at = large + (frames << sim_core::addr::PAGE_SHIFT);
        match (below, nx_huge) {
            (Level::L1, NxHugePages::On) => self.executable(spte::small(at)),
            (Level::L1, NxHugePages::Off) => spte::small(at),
            _ => at,
        }
    }
}
