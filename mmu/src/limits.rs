//! How many shadow pages a VM may have (KVM v5.17 `make_mmu_pages_available`, `kvm_mmu_zap_oldest_mmu_pages`,
//! `kvm_mmu_change_mmu_pages`). Pages of the TDP MMU do not count.

use crate::plant::Plant;
use crate::state::Ctx;
use crate::stats::Stat;
use sim_core::addr::Hpa;

/// `KVM_MIN_FREE_MMU_PAGES`: what one fault may need.
const FREE_MIN: u64 = 5;
/// `KVM_REFILL_PAGES`: what is made available at once.
const REFILL: u64 = 25;

impl Ctx<'_> {
    /// Pages in use (`n_used_mmu_pages`).
    #[must_use]
    pub fn used_pages(&self) -> u64 {
        self.vm.pages.all().filter(|(_, page)| !page.is_tdp()).count() as u64
    }

    /// Makes room for one fault: the oldest pages go, but for those that are roots, whose zapping would free nothing.
    pub(crate) fn make_pages_available(&mut self) {
        let free = self.vm.config.pages_max.saturating_sub(self.used_pages());
        if free < FREE_MIN && !self.vm.plants.has(Plant::LimitIgnored) {
            self.zap_oldest(REFILL - free);
            self.commit_zap();
        }
    }

    /// `KVM_SET_NR_MMU_PAGES`.
    pub fn change_page_limit(&mut self, pages_max: u64) {
        let used = self.used_pages();
        self.vm.config.pages_max = pages_max;
        if used > pages_max {
            self.zap_oldest(used - pages_max);
            self.commit_zap();
        }
    }

    /// Zaps until this many pages are gone; one zap may take several, and the rest is looked at anew.
    fn zap_oldest(&mut self, count: u64) {
        let before = self.used_pages();
        let goal = before.saturating_sub(count);
        while self.used_pages() > goal {
            let Some(oldest) = self.oldest_unrooted() else { break };
            self.prepare_zap(oldest);
        }
        self.vm.stats.count_many(Stat::Recycled, before.saturating_sub(self.used_pages()));
    }

    fn oldest_unrooted(&self) -> Option<Hpa> {
        let pages = self.vm.pages.all().filter(|(_, page)| !page.is_tdp() && page.root_count == 0);
        pages.min_by_key(|(_, page)| page.made).map(|(hfn, _)| hfn.base())
    }
}
