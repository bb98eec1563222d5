//! This machine: how its KVM runs guests, and which point of history its kernel has reached.

use super::Engines;
use mmu::change::Point;
use sim_core::SimError;
use std::fs;

/// What runs are compared with, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// How this KVM runs guests.
    pub engines: Engines,
    /// Whether it uses two-dimensional paging.
    pub tdp: bool,
    /// The point of history of the model that is held against it.
    pub point: String,
    /// Mistakes that the model makes, to see whether the comparison notices.
    pub plants: Vec<String>,
}

impl Here {
    /// This machine's.
    ///
    /// # Errors
    /// If its kernel does not say which release it is, or is older than every one that is known.
    pub fn find() -> Result<Self, SimError> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self::of_release(&release, Engines::here(), false)
    }

    /// A machine's that is elsewhere.
    ///
    /// # Errors
    /// If its kernel is older than every one that is known.
    pub fn of_release(release: &str, engines: Engines, tdp: bool) -> Result<Self, SimError> {
        let point = reached(release);
        let point = point.ok_or_else(|| SimError::unmodelled(format!("a kernel of release {:?}", release.trim())))?;
        Ok(Self { engines, tdp, point: point.to_owned(), plants: Vec::new() })
    }
}

/// The newest release that a kernel's own name (`6.18.44-...`) has reached.
fn reached(release: &str) -> Option<&'static str> {
    let numbers = |text: &str| {
        let mut parts = text.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
        Some((parts.next()?, parts.next()?))
    };
    let running = numbers(release)?;
    let lineage = Point::newest().lineage();
    let mut releases = lineage.iter().rev().map(|point| point.name);
    releases.find(|name| name.strip_prefix('v').and_then(numbers).is_some_and(|point| point <= running))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kernels_give_points() {
        for (release, point) in [
            ("6.18.44-fc-v595\n", Some("v6.18")),
            ("6.1.0-56-cloud-amd64", Some("v6.1")),
            ("7.3.1", Some("v6.19")),
            ("odd", None),
        ] {
            assert_eq!(reached(release), point, "{release}");
        }
    }
}
