//! A machine with a KVM: how that runs guests, and which point of history its kernel has reached.

use super::Engines;
use super::sequence::{Rules, TdpZaps};
use crate::backend::kvm::Abilities;
use crate::file::{RunConfig, Vendor};
use cpu::profile::TlbProfile;
use mmu::change::{Change, ChangeSet, POINTS, Point};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use std::fs;
use std::path::Path;

/// A machine with a KVM, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its kernel's release (`6.1.0-56-cloud-amd64`).
    pub release: String,
    /// What its kernel says of its build (`#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-04)`), where Debian has the patch
    /// level that the release hides.
    pub build: String,
    /// How its KVM runs guests.
    pub engines: Engines,
    /// Whether its KVM uses two-dimensional paging.
    pub tdp: bool,
    /// What its KVM can do.
    pub abilities: Abilities,
}

impl Host {
    /// This machine.
    ///
    /// # Errors
    /// If it has no KVM.
    pub fn find(kvm: &kvm_ioctls::Kvm) -> Result<Self, SimError> {
        let engines = Engines::here();
        let parameter = |(module, name)| {
            fs::read_to_string(Path::new("/sys/module").join(module).join("parameters").join(name)).unwrap_or_default()
        };
        let tdp = match engines {
            Engines::Hardware(Vendor::Intel) => parameter(("kvm_intel", "ept")),
            Engines::Hardware(Vendor::Amd) => parameter(("kvm_amd", "npt")),
            Engines::Split => String::new(),
        };
        let told =
            |name| fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).unwrap_or_default().trim().to_owned();
        Ok(Self {
            release: told("osrelease"),
            build: told("version"),
            engines,
            tdp: matches!(tdp.trim(), "Y" | "1"),
            abilities: Abilities::of(kvm, engines)?,
        })
    }
}

/// What runs are compared with, and where they were taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// How the KVM runs guests.
    pub engines: Engines,
    /// Whether it uses two-dimensional paging.
    pub tdp: bool,
    /// The point of history of the model that is held against it.
    pub point: String,
    /// The translation caches of the processor that its guests run on.
    pub tlb: TlbProfile,
    /// Mistakes that the model makes, to see whether the comparison notices.
    pub plants: Vec<String>,
}

impl Here {
    /// A machine's.
    ///
    /// # Errors
    /// If its kernel does not say which release it is, or is older than every one that is known.
    pub fn of(host: &Host) -> Result<Self, SimError> {
        let point = reached(&host.release, &host.build);
        let point = point.ok_or_else(|| SimError::unmodelled(format!("a kernel of release {:?}", host.release)))?;
        let tlb = TlbProfile::Base;
        Ok(Self { engines: host.engines, tdp: host.tdp, point: point.to_owned(), tlb, plants: Vec::new() })
    }

    /// How what its MMU did is compared with what the model's did.
    ///
    /// From v5.18 to v6.3 a thread of the kernel's own zaps tables of the TDP MMU (22b94c4b63eb, efd995dae5eb). Since v6.10
    /// entries of EPT have bit 63 (`VMX_EPT_SUPPRESS_VE_BIT`), which no silicon without #VE looks at, and which the model lacks.
    #[must_use]
    pub fn rules(&self) -> Rules {
        const SUPPRESS_VE: u64 = 1 << 63;
        let has = |change| Point::by_name(&self.point).is_some_and(|point| ChangeSet::at(point).has(change));
        let later = self.tdp && has(Change::ZapInTwoPasses) && !has(Change::TdpRootsPersist);
        let ept = self.tdp && self.engines == Engines::Hardware(Vendor::Intel);
        Rules { zaps: if later { TdpZaps::Later } else { TdpZaps::AtOnce }, ignored: if ept { SUPPRESS_VE } else { 0 } }
    }

    /// Whether a run is one that this KVM can be asked for.
    #[must_use]
    pub fn has(&self, run: &RunConfig) -> bool {
        match self.engines {
            Engines::Hardware(vendor) => run.vendor == vendor && run.tdp == self.tdp,
            Engines::Split => true,
        }
    }
}

/// The newest release that a kernel has reached, or the newest stable kernel of its branch.
fn reached(release: &str, build: &str) -> Option<&'static str> {
    let debian = build.split_once("Debian ").map(|(_, version)| version);
    let running = version(debian.unwrap_or(release))?;
    let stable = POINTS.iter().filter(|point| point.is_stable());
    let lineage = Point::newest().lineage();
    let all = lineage.into_iter().chain(stable).filter_map(|point| Some((version(point.name)?, point.name)));
    // A stable kernel is no ancestor of the releases behind it.
    let mut reached: Vec<_> =
        all.filter(|(point, _)| *point <= running && (point.2 == 0 || same_branch(*point, running))).collect();
    reached.sort_unstable();
    reached.last().map(|(_, name)| *name)
}

const fn same_branch(one: (u32, u32, u32), other: (u32, u32, u32)) -> bool {
    one.0 == other.0 && one.1 == other.1
}

/// `v6.1`, `6.18.44-...`, `6.1.192-2`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts =
        text.strip_prefix('v').unwrap_or(text).split(['.', '-', ' ']).map_while(|part| part.parse::<u32>().ok());
    Some((parts.next()?, parts.next()?, parts.next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kernels_give_points() {
        const DEBIAN: &str = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-04)";
        for (release, build, point) in [
            ("6.18.44-fc-v595", "#1 SMP", Some("v6.18")),
            ("6.1.0-56-cloud-amd64", DEBIAN, Some("v6.1.176")),
            ("6.1.20", "", Some("v6.1")),
            ("6.2.300", "", Some("v6.2")),
            ("7.3.1", "", Some("v6.19")),
            ("odd", "", None),
        ] {
            assert_eq!(reached(release, build), point, "{release}");
        }
    }
}
