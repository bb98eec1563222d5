//! The named points of history: releases, the commits of v5.18's rework of the root cache, commits between which v5.2 and v6.4
//! were broken, stable kernels, and forks that were never merged.

use super::{Change, Kind};

/// What a point adds to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adds {
    /// These changes.
    Listed(&'static [Change]),
    /// Every mainline change up to the release that the point is named after.
    Release,
}

/// A named point of history: a parent point and the changes on top of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The name scenarios use.
    pub name: &'static str,
    /// The point it builds on, none for the oldest.
    pub parent: Option<&'static str>,
    /// What it adds.
    content: Adds,
    /// One line on what it is.
    pub about: &'static str,
}

const fn release(name: &'static str, parent: &'static str) -> Point {
    Point { name, parent: Some(parent), content: Adds::Release, about: "release" }
}

const fn commit(name: &'static str, parent: &'static str, adds: &'static [Change], about: &'static str) -> Point {
    Point { name, parent: Some(parent), content: Adds::Listed(adds), about }
}

/// What a stable kernel took over from later releases.
const fn stable(name: &'static str, parent: &'static str, adds: &'static [Change]) -> Point {
    Point { name, parent: Some(parent), content: Adds::Listed(adds), about: "stable kernel, as far as it was seen" }
}

/// The points, each after its parent.
pub const POINTS: &[Point] = &[
    Point {
        name: "before-v4.19",
        parent: None,
        content: Adds::Listed(&[]),
        about: "v4.19's MMU without five older fixes of roles and slots, which the next five points bring",
    },
    release("v2.6.31", "before-v4.19"),
    release("v3.10", "v2.6.31"),
    release("v4.1", "v3.10"),
    release("v4.17", "v4.1"),
    release("v4.19", "v4.17"),
    release("v4.20", "v4.19"),
    release("v5.0", "v4.20"),
    release("v5.1", "v5.0"),
    commit("47c42e6b4192", "v5.1", &[Change::GpteSize], "the first of v5.2's changes"),
    release("v5.2", "47c42e6b4192"),
    release("v5.3", "v5.2"),
    release("v5.4", "v5.3"),
    release("v5.5", "v5.4"),
    release("v5.6", "v5.5"),
    release("v5.7", "v5.6"),
    release("v5.8", "v5.7"),
    release("v5.9", "v5.8"),
    release("v5.10", "v5.9"),
    release("v5.11", "v5.10"),
    release("v5.12", "v5.11"),
    release("v5.13", "v5.12"),
    release("v5.14", "v5.13"),
    release("v5.15", "v5.14"),
    release("v5.16", "v5.15"),
    release("v5.17", "v5.16"),
    commit("seed/06", "v5.17", &[Change::Seed06], "v5.17 and patch 06/23 as posted"),
    commit("seed/07", "seed/06", &[Change::Seed07], "and patch 07/23 as posted"),
    commit("swap-only", "v5.17", &[Change::SwapOnly], "v5.17 with nested_*_load_cr3 swapped"),
    commit("594bef793108", "v5.17", &[Change::EferLmeResets, Change::FreeBySp], "first merged commit"),
    commit("5499ea73e7db", "594bef793108", &[Change::CacheKeepsCurrent], "second merged commit"),
    commit("3cffc89d9d07", "5499ea73e7db", &[Change::InitThenPgd], "third merged commit: the reorder"),
    commit("d2e5f3334169", "3cffc89d9d07", &[Change::LookupStoredRole], "fourth merged commit: one role"),
    release("v5.18", "d2e5f3334169"),
    release("v5.19", "v5.18"),
    release("v6.0", "v5.19"),
    release("v6.1", "v6.0"),
    stable(
        "v6.1.176",
        "v6.1",
        &[
            Change::SequenceIsLong,
            Change::WpKeepsRoots,
            Change::WpGuestOwned,
            Change::RefreshWp,
            Change::TdpRootsPersist,
            Change::CurrentVpid,
            Change::NnptGuestModeFirst,
            Change::Vmcs12KeepsCr3,
            Change::SvmExitKeepsCr4,
            Change::SvmExitFailsSilently,
            Change::VmxUnpagedKeepsSmep,
        ],
    ),
    release("v6.2", "v6.1"),
    release("v6.3", "v6.2"),
    commit("01b31714bd90", "v6.3", &[Change::WpKeepsRoots], "the first of v6.4's changes"),
    commit(
        "fb509f76acc8",
        "01b31714bd90",
        &[
            Change::UnpagedWpIgnored,
            Change::InvlpgSyncs,
            Change::SyncKeepsUnchanged,
            Change::TdpRootsPersist,
            Change::ClearDirtyByAd,
            Change::WpGuestOwned,
        ],
        "v6.4 up to a commit that another of v6.4 mends",
    ),
    release("v6.4", "fb509f76acc8"),
    release("v6.5", "v6.4"),
    release("v6.6", "v6.5"),
    release("v6.7", "v6.6"),
    release("v6.8", "v6.7"),
    release("v6.9", "v6.8"),
    release("v6.10", "v6.9"),
    release("v6.11", "v6.10"),
    release("v6.12", "v6.11"),
    stable(
        "v6.12.95",
        "v6.12",
        &[
            Change::CurrentVpid,
            Change::NnptGuestModeFirst,
            Change::Vmcs12KeepsCr3,
            Change::SvmExitKeepsCr4,
            Change::SvmExitFailsSilently,
            Change::VmxUnpagedKeepsSmep,
        ],
    ),
    release("v6.13", "v6.12"),
    release("v6.14", "v6.13"),
    release("v6.15", "v6.14"),
    release("v6.16", "v6.15"),
    release("v6.17", "v6.16"),
    release("v6.18", "v6.17"),
    release("v6.19", "v6.18"),
];

/// The place of a release in the order of releases: `v2.6.31` is before `v4.19`.
fn ordinal(release: &str) -> Option<(u32, u32, u32)> {
    let mut parts = release.strip_prefix('v')?.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
}

impl Point {
    /// The point with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        POINTS.iter().find(|point| point.name == name)
    }

    /// The oldest point.
    #[must_use]
    pub fn oldest() -> &'static Self {
        &POINTS[0]
    }

    /// The newest release.
    #[must_use]
    pub fn newest() -> &'static Self {
        &POINTS[POINTS.len() - 1]
    }

    /// Whether it is a stable kernel, named after its branch and how far that had come: `v6.1.176`.
    #[must_use]
    pub fn is_stable(&self) -> bool {
        self.parent.is_some_and(|branch| self.name.strip_prefix(branch).is_some_and(|rest| rest.starts_with('.')))
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

    /// The changes that it adds to its parent, oldest first.
    #[must_use]
    pub fn adds(&self) -> Vec<Change> {
        let before = self.parent.and_then(Self::by_name).map(Self::changes).unwrap_or_default();
        self.changes().into_iter().filter(|change| !before.contains(change)).collect()
    }

    /// The changes in force at this point, oldest first.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        for point in self.lineage() {
            match point.content {
                Adds::Listed(adds) => changes.extend(adds),
                Adds::Release => {
                    let until = ordinal(point.name);
                    let mainline = Change::ALL.iter().filter(|change| change.info().kind != Kind::Variant);
                    let released = mainline.filter(|change| ordinal(change.info().release) <= until);
                    let new: Vec<Change> = released.copied().filter(|change| !changes.contains(change)).collect();
                    changes.extend(new);
                }
            }
        }
        changes
    }
}
