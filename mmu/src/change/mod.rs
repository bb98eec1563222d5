//! KVM's history as data: every change to its MMU behaviour that the model knows, in upstream order, and the named
//! points of history that are prefixes of that list, or forks of it.
//!
//! Code never asks for a version. It asks a [`ChangeSet`] whether a change is in force, at the one place where that makes a
//! difference, or, where several changes decide or several places ask, one of its behavioural questions. A new change costs
//! one row here, one branch and one scenario. Source of the rows: kernel history as read in the sources listed in
//! `docs/history.md`.

mod points;
mod rows;

pub use points::{POINTS, Point};
pub use rows::Change;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What sort of change it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Brought a bug.
    Regression,
    /// Removed one, or moved code to where a later fix needs it.
    Fix,
    /// Meant to change no behaviour.
    Refactor,
    /// Was never merged: posted on the list, or made up to show why an order of commits matters.
    Variant,
}

/// One row of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The upstream commit, or the model's name for a variant.
    pub id: &'static str,
    /// The first release that has it, or where it was posted.
    pub release: &'static str,
    /// What sort of change it was.
    pub kind: Kind,
    /// Its title, abridged.
    pub title: &'static str,
    /// What it did to the model, in one line.
    pub effect: &'static str,
}

impl Change {
    /// The change with this upstream id, posting or variant name. A longer or shorter id of the same commit matches too,
    /// down to eight digits.
    #[must_use]
    pub fn by_id(id: &str) -> Option<Self> {
        let is_hash = |id: &str| id.len() >= 8 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
        let same = |change: &Self| {
            let own = change.info().id;
            own == id || (is_hash(id) && is_hash(own) && (own.starts_with(id) || id.starts_with(own)))
        };
        Self::ALL.iter().copied().find(same)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().id)
    }
}

/// A set of changes: what one simulated kernel behaves like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChangeSet(u128);

impl ChangeSet {
    /// The changes of a point of history.
    #[must_use]
    pub fn at(point: &Point) -> Self {
        point.changes().into_iter().collect()
    }

    /// Whether the change is in force.
    #[must_use]
    pub const fn has(self, change: Change) -> bool {
        self.0 & (1 << change as u8) != 0
    }

    /// The set with the change.
    #[must_use]
    pub const fn with(self, change: Change) -> Self {
        Self(self.0 | 1 << change as u8)
    }

    /// The set without the change.
    #[must_use]
    pub const fn without(self, change: Change) -> Self {
        Self(self.0 & !(1 << change as u8))
    }

    /// Whether nested_*_load_cr3 initialise the MMU before they look the root up.
    #[must_use]
    pub const fn load_cr3_inits_first(self) -> bool {
        self.has(Change::InitThenPgd) || self.has(Change::SwapOnly)
    }

    /// Whether kvm_init_shadow_{ept,npt}_mmu initialise before they look the root up.
    #[must_use]
    pub const fn nested_tdp_inits_first(self) -> bool {
        self.has(Change::InitThenPgd) || self.has(Change::Seed06)
    }

    /// Whether a TDP MMU is initialised anew when CR4.PAE changes.
    #[must_use]
    pub const fn tdp_role_tells_pae(self) -> bool {
        !self.has(Change::GpteSize) || self.has(Change::PaeInExtendedRole)
    }

    /// Whether a TDP MMU is initialised anew when CR4.LA57 changes.
    #[must_use]
    pub const fn tdp_role_tells_la57(self) -> bool {
        !self.has(Change::La57Dropped) || self.has(Change::La57InRole)
    }

    /// Whether an MMU is initialised anew when the guest's MAXPHYADDR changes. 6c032f12dd1e took that out of the role again
    /// when a new CPUID came to reset every MMU.
    #[must_use]
    pub const fn role_tells_maxphyaddr(self) -> bool {
        self.has(Change::MaxphyaddrInRole) && !self.has(Change::CpuidResetsAll)
    }

    /// Whether the initialisation of nested NPT is skipped, since the roles look like those of the MMU of before (C-4).
    #[must_use]
    pub const fn skips_nested_npt_init(self) -> bool {
        self.has(Change::InitShortcut) && !self.has(Change::NptGuestMmu)
    }

    /// Whether a root of nested EPT that leaves the current slot is said to be built for the EPTP that comes (C-3).
    #[must_use]
    pub const fn switch_retags_root(self) -> bool {
        self.has(Change::GuestMmu) && !self.has(Change::RootKeepsPgd)
    }

    /// Whether kvm_mmu_new_pgd looks up the stored role and not one computed from the vCPU's registers.
    #[must_use]
    pub const fn looks_up_stored_role(self) -> bool {
        self.has(Change::LookupStoredRole) || self.has(Change::Seed07)
    }

    /// Whether a table that is found with something out of sync below posts `KVM_REQ_MMU_SYNC` for what it owes.
    #[must_use]
    pub const fn unsync_link_syncs(self) -> bool {
        !self.has(Change::UnsyncLinkFlushes) || self.has(Change::UnsyncLinkSyncs)
    }

    /// Whether the notifier's sequence that a page fault saw is passed on as an int (`is_page_fault_stale`).
    #[must_use]
    pub const fn keeps_sequence_in_an_int(self) -> bool {
        self.has(Change::RetryInvalidRoot) && !self.has(Change::SequenceIsLong)
    }

    /// Whether a table that was synchronised and owes no flush is made anew beside the old one.
    #[must_use]
    pub const fn rebuilds_synced(self) -> bool {
        self.has(Change::SyncTellsFlush) && !self.has(Change::SyncedIsFound)
    }

    /// Whether entries of the TDP MMU are watched by their dirty bits even where hardware logs nothing (L2).
    #[must_use]
    pub const fn clears_dirty_of_l2(self) -> bool {
        self.has(Change::ClearDirtyByAd) && !self.has(Change::ProtectL2Spte)
    }

    /// Whether INVEPT of L1 gives up what was built from its tables. Before guest_mmu nothing of it outlived an exit to L1.
    #[must_use]
    pub const fn invept_frees_roots(self) -> bool {
        self.has(Change::InveptFreesRoots) || !self.has(Change::GuestMmu)
    }

    /// Whether the load of a root gives vmcs02 the CR3 of L2 as well.
    #[must_use]
    pub const fn vmx_load_writes_l2_cr3(self) -> bool {
        self.has(Change::VmxWritesCr3) || !self.has(Change::EnterWritesCr3)
    }

    /// Whether the load of a root gives vmcb02 the CR3 of L2 as well.
    #[must_use]
    pub const fn svm_load_writes_l2_cr3(self) -> bool {
        self.has(Change::SvmWritesCr3) || !self.has(Change::SvmSkipsCr3)
    }

    /// Whether L0 looks at a CR0.WP that the guest owns before it walks the guest's tables for the emulator.
    #[must_use]
    pub const fn refreshes_owned_wp(self) -> bool {
        self.has(Change::WpGuestOwned) && self.has(Change::RefreshWp)
    }

    /// Whether previous roots outlive a flush of a guest without PCIDs, all of whose later loads of CR3 flush.
    #[must_use]
    pub const fn keeps_roots_without_pcid(self) -> bool {
        self.has(Change::CachedCr3WithoutPcid) || !self.has(Change::PcidAllPgds)
    }
}

impl FromIterator<Change> for ChangeSet {
    fn from_iter<I: IntoIterator<Item = Change>>(changes: I) -> Self {
        changes.into_iter().fold(Self::default(), Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_point_builds_on_an_earlier_one_and_names_are_unique() {
        let mut seen = BTreeSet::new();
        for point in POINTS {
            assert!(point.parent.is_none_or(|parent| seen.contains(parent)), "{}", point.name);
            assert!(seen.insert(point.name), "{} twice", point.name);
        }
    }

    /// A release is a prefix of the mainline list, so bisecting over prefixes is bisecting over releases.
    #[test]
    fn releases_are_prefixes_of_the_mainline() {
        let mainline: Vec<_> =
            Change::ALL.iter().copied().filter(|change| change.info().kind != Kind::Variant).collect();
        for point in POINTS.iter().filter(|point| !point.is_stable()) {
            let changes = point.changes();
            if changes.iter().all(|change| change.info().kind != Kind::Variant) {
                assert_eq!(changes, mainline[..changes.len()], "{}", point.name);
            }
        }
        assert_eq!(Point::newest().changes(), mainline);
    }

    #[test]
    fn ids_are_found_in_any_length() {
        assert_eq!(Change::by_id("3cffc89d9d0795a74ee1b1027bba2f6099b51c33"), Some(Change::InitThenPgd));
        assert_eq!(Change::by_id("3cffc89d"), Some(Change::InitThenPgd));
        assert_eq!(Change::by_id("3cff"), None);
        assert_eq!(Change::by_id("seed/07"), Some(Change::Seed07));
        assert_eq!(Change::by_id("list:npt-prev-roots"), Some(Change::NptPrevRoots));
        for id in ["list:npt", "list:20200320212833", "list:npt-prev-roots-2", "swap-only-2"] {
            assert_eq!(Change::by_id(id), None, "{id}");
        }
    }
}
