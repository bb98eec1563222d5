//! KVM's history as data: every change to its MMU behaviour that the model knows, in upstream order, and the named
//! points of history that are prefixes of that list, or forks of it.
//!
//! Code never asks for a version. It asks a [`ChangeSet`] one of the behavioural questions at the end of this file,
//! each answered from one or two changes. A new change costs one row here, one branch where behaviour differs and one
//! scenario. Source of the rows: kernel history as read in the sources listed in `docs/history.md`.

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

macro_rules! history {
    ($($name:ident = ($id:literal, $release:literal, $kind:ident, $title:literal, $effect:literal),)*) => {
        /// A change to KVM's MMU behaviour.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum Change {
            $(#[doc = $title] $name,)*
        }

        impl Change {
            /// Every change, mainline first and in upstream order, then the variants.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The change's row.
            #[must_use]
            pub const fn info(self) -> Info {
                match self {
                    $(Self::$name => Info {
                        id: $id, release: $release, kind: Kind::$kind, title: $title, effect: $effect,
                    },)*
                }
            }
        }
    };
}

history! {
    EferLmeResets = ("d6174299365d", "v5.18", Fix, "Reinitialize context if host userspace toggles EFER.LME",
        "a change of EFER.LME resets the MMU context, as one of EFER.NX always did"),
    FreeBySp = ("594bef793108", "v5.18", Fix, "do not consult levels when freeing roots",
        "kvm_mmu_free_roots asks whether a root has a shadow page, not what the levels stored now say"),
    CacheKeepsCurrent = ("5499ea73e7db", "v5.18", Fix, "look for a cached PGD when going from 32-bit to 64-bit",
        "a root without a shadow page is freed first; an empty current slot no longer leaves a hole or evicts"),
    InitThenPgd = ("3cffc89d9d07", "v5.18", Fix, "load new PGD after the shadow MMU is initialized",
        "nested_*_load_cr3 and kvm_init_shadow_{ept,npt}_mmu initialise first and look the root up second"),
    LookupStoredRole = ("d2e5f3334169", "v5.18", Fix, "Always use current mmu's role when loading new PGD",
        "kvm_mmu_new_pgd looks up the stored role; kvm_mmu_calc_root_page_role is gone"),
    FlushOnReset = ("b5f61c035d49", "v5.18", Refactor, "flush TLB separately from MMU reset",
        "CR0, CR4 and EFER writes post KVM_REQ_TLB_FLUSH_GUEST by themselves"),
    EagerSplit = ("a3fe5dbda0a4", "v5.18", Fix, "Split huge pages mapped by the TDP MMU when dirty logging is enabled",
        "large pages of the TDP MMU become tables of small ones when their slot begins to log"),
    FreeObsoleteRoots = ("527d5cd7eece", "v5.18", Fix, "Zap only obsolete roots if a root shadow page is zapped",
        "KVM_REQ_MMU_RELOAD becomes KVM_REQ_MMU_FREE_OBSOLETE_ROOTS; valid roots survive it"),
    InvlpgGuard = ("9f46c187e2e6", "v5.18", Fix, "fix NULL pointer dereference on guest INVPCID",
        "INVPCID of an address without paging does nothing, where mmu->invlpg was called and is NULL"),
    NeptRoleNoSmm = ("daed87b8767c", "v5.19", Refactor, "nested EPT cannot be used in SMM",
        "the nested EPT role's smm is 0, not a copy of root_mmu's"),
    CpuRoleSplit = ("e5ed0fb01004", "v5.19", Refactor, "split cpu_role from mmu_role",
        "what the guest's paging looks like and what the shadow tables look like are stored apart"),
    TdpRoleConstant = ("2ba676774dfc", "v5.19", Fix, "cleanup computation of MMU roles for two-dimensional paging",
        "a TDP root's role no longer holds the guest's CR0.WP and EFER.NX: both are 1"),
    ShadowRoleNx = ("362505deb8e2", "v5.19", Refactor, "fetch shadow EFER.NX from MMU role",
        "without TDP the shadow root's role has efer_nx = 1 whatever the guest set"),
    PassthroughRoots = ("84e5ffd045f3", "v5.19", Fix, "Fix shadowing 5-level NPT for 4-level NPT L1 guest",
        "a level-5 root above the shadow of a level-4 nested table has role.passthrough, and shadows no table itself"),
    ChildRoleFromParent = ("2e65e842c57d", "v6.0", Refactor, "Derive shadow MMU page role from parent",
        "a child's role comes from the parent shadow page, not from the MMU"),
    TdpRootsPersist = ("edbdb43fc96b", "v6.4", Fix, "Preserve TDP MMU roots until they are explicitly invalidated",
        "a TDP root that no vCPU holds is kept, and found again by its role, until all roots are invalidated"),
    DummyRoots = ("0e3223d8d00a", "v6.6", Fix, "Use dummy root, backed by zero page, for !visible guest roots",
        "a guest root in no slot gets a root that maps nothing, and faults when it is used; before, a triple fault"),
    NeptQualification = ("a9466078687f", "v6.10", Refactor, "Move nEPT exit_qualification field from kvm_vcpu_arch to x86_exception",
        "bits 8:7 of an EPT violation that L1 gets come from the exit under way, and not from the last EPT violation"),
    CurrentVpid = ("2657b82a78f1", "v6.13", Fix, "Treat vpid01 as current if L2 is active, but with VPID disabled",
        "flushes for an L2 without a VPID of L1's go to vpid01, on which it runs, and not to vpid02"),
    NnptGuestModeFirst = ("46d6c6f3ef0e", "v6.14", Fix, "Enter guest mode before initializing nested NPT MMU",
        "VMRUN enters guest mode before nested_svm_init_mmu_context, so nested NPT roles have guest_mode = 1"),
    Seed06 = ("seed/06", "list 2022-02-04", Variant, "load new PGD once nested two-dimensional paging is initialized",
        "v1 06/23: only kvm_init_shadow_{ept,npt}_mmu look the root up last; levels still decide what a root is"),
    Seed07 = ("seed/07", "list 2022-02-04", Variant, "remove kvm_mmu_calc_root_page_role",
        "v1 07/23: kvm_mmu_new_pgd looks up the stored role while nested_*_load_cr3 still initialise second"),
    SwapOnly = ("swap-only", "derived", Variant, "swap the two halves of nested_*_load_cr3 and nothing else",
        "nested_*_load_cr3 initialise first while v5.17's levels still decide what a root is"),
}

impl Change {
    /// The change with this upstream id or variant name. A longer or shorter id of the same commit matches too, down
    /// to eight digits.
    #[must_use]
    pub fn by_id(id: &str) -> Option<Self> {
        let same = |change: &Self| {
            let own = change.info().id;
            own == id || (id.len() >= 8 && (own.starts_with(id) || id.starts_with(own)))
        };
        Self::ALL.iter().copied().find(same)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().id)
    }
}

/// A named point of history: a parent point and the changes on top of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The name scenarios use.
    pub name: &'static str,
    /// The point it builds on, none for the oldest.
    pub parent: Option<&'static str>,
    /// What it adds.
    pub adds: &'static [Change],
    /// One line on what it is.
    pub about: &'static str,
}

/// The points, each after its parent.
pub const POINTS: &[Point] = &[
    Point { name: "v5.17", parent: None, adds: &[], about: "the release before the root-cache rework" },
    Point { name: "seed/06", parent: Some("v5.17"), adds: &[Change::Seed06], about: "v5.17 and patch 06/23 as posted" },
    Point { name: "seed/07", parent: Some("seed/06"), adds: &[Change::Seed07], about: "and patch 07/23 as posted" },
    Point {
        name: "swap-only",
        parent: Some("v5.17"),
        adds: &[Change::SwapOnly],
        about: "v5.17 with nested_*_load_cr3 swapped",
    },
    Point {
        name: "594bef793108",
        parent: Some("v5.17"),
        adds: &[Change::EferLmeResets, Change::FreeBySp],
        about: "first merged commit",
    },
    Point {
        name: "5499ea73e7db",
        parent: Some("594bef793108"),
        adds: &[Change::CacheKeepsCurrent],
        about: "second merged commit",
    },
    Point {
        name: "3cffc89d9d07",
        parent: Some("5499ea73e7db"),
        adds: &[Change::InitThenPgd],
        about: "third merged commit: the reorder",
    },
    Point {
        name: "d2e5f3334169",
        parent: Some("3cffc89d9d07"),
        adds: &[Change::LookupStoredRole],
        about: "fourth merged commit: one role",
    },
    Point {
        name: "v5.18",
        parent: Some("d2e5f3334169"),
        adds: &[Change::FlushOnReset, Change::EagerSplit, Change::FreeObsoleteRoots, Change::InvlpgGuard],
        about: "release",
    },
    Point {
        name: "v5.19",
        parent: Some("v5.18"),
        adds: &[
            Change::NeptRoleNoSmm,
            Change::CpuRoleSplit,
            Change::TdpRoleConstant,
            Change::ShadowRoleNx,
            Change::PassthroughRoots,
        ],
        about: "release: cpu_role and root_role",
    },
    Point { name: "v6.0", parent: Some("v5.19"), adds: &[Change::ChildRoleFromParent], about: "release" },
    Point { name: "v6.4", parent: Some("v6.0"), adds: &[Change::TdpRootsPersist], about: "release" },
    Point { name: "v6.6", parent: Some("v6.4"), adds: &[Change::DummyRoots], about: "release" },
    Point { name: "v6.10", parent: Some("v6.6"), adds: &[Change::NeptQualification], about: "release" },
    Point { name: "v6.13", parent: Some("v6.10"), adds: &[Change::CurrentVpid], about: "release" },
    Point { name: "v6.14", parent: Some("v6.13"), adds: &[Change::NnptGuestModeFirst], about: "release" },
];

impl Point {
    /// The point with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        POINTS.iter().find(|point| point.name == name)
    }

    /// The points from the oldest to this one.
    #[must_use]
    pub fn lineage(&self) -> Vec<&'static Self> {
        let mut lineage = Vec::new();
        let mut next = Self::by_name(self.name);
        while let Some(point) = next {
            lineage.push(point);
            next = point.parent.and_then(Self::by_name);
        }
        lineage.reverse();
        lineage
    }

    /// The changes in force at this point, oldest first.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        self.lineage().iter().flat_map(|point| point.adds.iter().copied()).collect()
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

    /// Whether kvm_mmu_new_pgd looks up the stored role and not one computed from the vCPU's registers.
    #[must_use]
    pub const fn looks_up_stored_role(self) -> bool {
        self.has(Change::LookupStoredRole) || self.has(Change::Seed07)
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
        for point in POINTS {
            let changes = point.changes();
            if changes.iter().all(|change| change.info().kind != Kind::Variant) {
                assert_eq!(changes, mainline[..changes.len()], "{}", point.name);
            }
        }
        assert_eq!(Point::by_name("v6.14").unwrap().changes(), mainline);
    }

    #[test]
    fn ids_are_found_in_any_length() {
        assert_eq!(Change::by_id("3cffc89d9d0795a74ee1b1027bba2f6099b51c33"), Some(Change::InitThenPgd));
        assert_eq!(Change::by_id("3cffc89d"), Some(Change::InitThenPgd));
        assert_eq!(Change::by_id("3cff"), None);
        assert_eq!(Change::by_id("seed/07"), Some(Change::Seed07));
    }
}
