//! Counters under KVM's own statistics names (`struct kvm_vm_stat`, `struct kvm_vcpu_stat`, KVM v5.19 and later), and a
//! few of the model's own that its budgets need.
//!
//! Some of KVM's say how many there are, not how many there ever were. Here all only go up, for a budget is about what was done;
//! [`Vm::told`] has what KVM would tell, with those taken from the state.
//!
//! Counters are not state: two machines that differ in them alone are the same machine, so they take no part in
//! comparison and hashing.

use crate::page::NxSplit;
use crate::state::Vm;
use serde::{Deserialize, Serialize};
use sim_core::addr::Level;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

macro_rules! stats {
    ($($name:ident = ($text:literal, $about:literal),)*) => {
        /// A counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum Stat {
            $(#[doc = $about] $name,)*
        }

        impl Stat {
            /// Every counter.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name; KVM's, where KVM has it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it counts.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$name => $about,)* }
            }
        }

        const COUNT: usize = Stat::ALL.len();
    };
}

stats! {
    ShadowZapped = ("mmu_shadow_zapped", "shadow pages zapped"),
    PteWrite = ("mmu_pte_write", "writes to shadowed tables seen by the MMU"),
    PdeZapped = ("mmu_pde_zapped", "entries above level 1 dropped because something other than 0 was written there"),
    Flooded = ("mmu_flooded", "shadow pages zapped because their tables were written too often or in part"),
    Recycled = ("mmu_recycled", "shadow pages zapped to make room"),
    CacheMiss = ("mmu_cache_miss", "shadow pages made because none was found"),
    Unsync = ("mmu_unsync", "shadow pages let go out of sync"),
    RemoteTlbFlush = ("remote_tlb_flush", "flushes of every vCPU that were needed"),
    RemoteTlbFlushRequests = ("remote_tlb_flush_requests", "flushes of every vCPU that were asked for"),
    Pages4k = ("pages_4k", "4 KiB leaf entries installed"),
    Pages2m = ("pages_2m", "2 MiB leaf entries installed"),
    Pages1g = ("pages_1g", "1 GiB leaf entries installed"),
    NxSplits = ("nx_lpage_splits", "large pages mapped small because they are executable"),
    PfTaken = ("pf_taken", "page faults handled by the MMU, but those on MMIO entries that are up to date"),
    PfFixed = ("pf_fixed", "page faults that installed an entry"),
    PfEmulate = ("pf_emulate", "page faults that led to emulation"),
    PfSpurious = ("pf_spurious", "page faults that found the entry good"),
    PfFast = ("pf_fast", "page faults mended, or found to be mended, without the MMU lock"),
    PfMmioSpteCreated = ("pf_mmio_spte_created", "page faults that installed an MMIO entry"),
    PfGuest = ("pf_guest", "page faults that the guest gets from L0"),
    RootLoads = ("mmu_root_loads", "roots given to an MMU that had none"),
    TlbFlush = ("tlb_flush", "flushes of a vCPU's translations that were asked for"),
    Invlpg = ("invlpg", "INVLPG, INVLPGA and INVPCID of an address that L0 emulated"),
    MmioExits = ("mmio_exits", "emulated accesses that userspace has to answer"),
    MmuInit = ("mmu_init", "initialisations of an MMU; from v4.20 on, only those that found another role"),
    NestedRun = ("nested_run", "entries of L2 that came past hardware's checks"),
}

/// The counters of a VM, all vCPUs together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats(Vec<u64>);

impl Stats {
    /// Counts one more.
    pub fn count(&mut self, stat: Stat) {
        self.count_many(stat, 1);
    }

    /// Counts some more.
    pub fn count_many(&mut self, stat: Stat, more: u64) {
        if self.0.is_empty() {
            self.0 = vec![0; COUNT];
        }
        if let Some(count) = self.0.get_mut(stat as usize) {
            *count += more;
        }
    }

    /// Every counter that is not 0, in table order.
    pub fn nonzero(&self) -> impl Iterator<Item = (Stat, u64)> {
        Stat::ALL.iter().map(|stat| (*stat, self.get(*stat))).filter(|(_, count)| *count != 0)
    }

    /// How many there were.
    #[must_use]
    pub fn get(&self, stat: Stat) -> u64 {
        self.0.get(stat as usize).copied().unwrap_or(0)
    }
}

impl Vm {
    /// What KVM_GET_STATS_FD would tell of this VM and its vCPUs: counters, and of some things how many there are now.
    #[must_use]
    pub fn told(&self) -> BTreeMap<Stat, u64> {
        let mut told: BTreeMap<Stat, u64> = Stat::ALL.iter().map(|stat| (*stat, self.stats.get(*stat))).collect();
        let leaves = |wanted: Level| -> usize {
            self.pages.reverse_map().filter(|(_, level, ..)| *level == wanted).map(|(.., entries)| entries.len()).sum()
        };
        let unsync = self.pages.all().filter(|(_, page)| page.unsync).count();
        let split = self.pages.all().filter(|(_, page)| page.nx_split == NxSplit::Yes).count();
        let now = [
            (Stat::Unsync, unsync),
            (Stat::Pages4k, leaves(Level::L1)),
            (Stat::Pages2m, leaves(Level::L2)),
            (Stat::Pages1g, leaves(Level::L3)),
            (Stat::NxSplits, split),
        ];
        told.extend(now.map(|(stat, count)| (stat, count as u64)));
        told
    }
}

impl PartialEq for Stats {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Stats {}

impl Hash for Stats {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_count_and_are_no_state() {
        let mut stats = Stats::default();
        assert_eq!(stats.get(Stat::NestedRun), 0);
        stats.count(Stat::NestedRun);
        stats.count(Stat::NestedRun);
        assert_eq!((stats.get(Stat::NestedRun), stats.get(Stat::Unsync)), (2, 0));
        assert_eq!(stats, Stats::default());
    }
}
