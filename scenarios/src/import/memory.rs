//! The memory of a skeleton: address spaces for the roots and CR3 values of a trace, and pages for the addresses that its guest
//! touched.
//!
//! The guest's own tables are not in a trace. Every space maps every page that was touched, at the address where it was touched,
//! to a frame of the scenario's own; where only a frame was told, the address is made up. Limits keep all tables inside the part of
//! memory that the engine has for them.

use crate::file::Mode;
use crate::image::layout::ENGINE_END;
use sim_core::addr::PAGE_BYTES;
use std::collections::{BTreeMap, BTreeSet};

/// Spaces of a skeleton.
const MOST_SPACES: usize = 6;
/// Pages of a skeleton.
const MOST_PAGES: usize = 64;
/// Page tables that each space needs for them.
const MOST_REGIONS: usize = 8;
/// Bytes that one page table maps, at most.
const REGION: u64 = 1 << 21;
/// Where addresses that are made up begin: every mode has them.
const MADE_UP: u64 = 0x4000_0000;

/// An address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    /// The frame in CR3, or of the first root page.
    pub(super) gfn: Option<u64>,
    /// Its mode.
    pub(super) mode: Mode,
}

/// A page that the guest touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Touched {
    /// At a linear address.
    Linear(u64),
    /// At a frame; its address is not told.
    Frame(u64),
}

impl Touched {
    /// The page that is touched.
    pub(super) const fn page(self) -> Self {
        match self {
            Self::Linear(at) => Self::Linear(at & !(PAGE_BYTES - 1)),
            Self::Frame(_) => self,
        }
    }
}

/// A page of the skeleton.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// The frames that the trace tells of.
    pub(super) gfns: BTreeSet<u64>,
    /// Its frame in the scenario.
    pub(super) frame: u64,
    /// Whether user code touched it.
    pub(super) user: bool,
}

/// Spaces and pages.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    spaces: Vec<Space>,
    /// By the linear address of the page.
    pages: BTreeMap<u64, Page>,
    frames: BTreeMap<u64, u64>,
}

/// A space's name.
pub(super) fn name(space: usize) -> String {
    format!("s{}", space + 1)
}

impl Memory {
    /// The spaces, in the order of their names.
    pub(super) fn spaces(&self) -> &[Space] {
        &self.spaces
    }

    /// The pages by linear address.
    pub(super) const fn pages(&self) -> &BTreeMap<u64, Page> {
        &self.pages
    }

    /// The space with this frame in CR3, or none where there are too many.
    pub(super) fn space(&mut self, gfn: Option<u64>, mode: Mode) -> Option<usize> {
        let space = Space { gfn, mode };
        if let Some(index) = self.spaces.iter().position(|other| *other == space) {
            return Some(index);
        }
        if self.spaces.len() == MOST_SPACES {
            return None;
        }
        self.spaces.push(space);
        Some(self.spaces.len() - 1)
    }

    /// The mode of a space; of none, the one that is assumed.
    pub(super) fn mode(&self, space: Option<usize>) -> Mode {
        space.and_then(|space| self.spaces.get(space)).map_or(Mode::Long4, |space| space.mode)
    }

    /// The linear address of a page that the guest touches in a mode, or why it has none.
    pub(super) fn touch(&mut self, touched: Touched, mode: Mode, user: bool) -> Result<u64, &'static str> {
        let at = match touched {
            Touched::Linear(at) => at & !(PAGE_BYTES - 1),
            Touched::Frame(gfn) => self.made_up(gfn),
        };
        if !mode.has_paging() {
            return Err("without paging this address is one of memory that the scenario may not have");
        }
        if at < ENGINE_END {
            return Err("the engine has the first 2 MiB");
        }
        if !mode.holds(at) {
            return Err("the mode that is assumed has no such address");
        }
        let regions: BTreeSet<u64> = self.pages.keys().map(|page| page / REGION).collect();
        let is_new = !self.pages.contains_key(&at);
        let is_far = !regions.contains(&(at / REGION));
        if is_new && (self.pages.len() == MOST_PAGES || (is_far && regions.len() == MOST_REGIONS)) {
            return Err("a skeleton has no more pages");
        }
        let frame = ENGINE_END + self.pages.len() as u64 * PAGE_BYTES;
        let page = self.pages.entry(at).or_insert_with(|| Page { frame, ..Page::default() });
        page.user |= user;
        if let Touched::Frame(gfn) = touched {
            page.gfns.insert(gfn);
            self.frames.insert(gfn, at);
        }
        Ok(at)
    }

    /// The address that is made up for a frame: a page's that no linear address has.
    fn made_up(&self, gfn: u64) -> u64 {
        let free = |at: &u64| !self.pages.contains_key(at);
        let mut next = (MADE_UP..MADE_UP + REGION).step_by(PAGE_BYTES as usize).filter(free);
        self.frames.get(&gfn).copied().or_else(|| next.next()).unwrap_or(MADE_UP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_their_limits() {
        let mut memory = Memory::default();
        let mut touch = |touched, mode| memory.touch(touched, mode, false);
        assert_eq!(touch(Touched::Linear(0x40_0123), Mode::Long4), Ok(0x40_0000));
        assert_eq!(touch(Touched::Frame(7), Mode::Long4), Ok(MADE_UP));
        assert_eq!(touch(Touched::Frame(8), Mode::Long4), Ok(MADE_UP + 0x1000));
        assert_eq!(touch(Touched::Frame(7), Mode::Long4), Ok(MADE_UP));
        assert!(touch(Touched::Linear(0x1000), Mode::Long4).is_err());
        assert!(touch(Touched::Linear(0x40_0000), Mode::Flat32).is_err());
        assert!(touch(Touched::Linear(1 << 40), Mode::Pae).is_err());
        for region in 0..6 {
            assert!(touch(Touched::Linear((1 << 31) + region * REGION), Mode::Long4).is_ok());
        }
        assert!(touch(Touched::Linear(1 << 33), Mode::Long4).is_err());
        assert!(touch(Touched::Linear(0x41_0000), Mode::Long4).is_ok());
        assert_eq!(memory.pages().len(), 10);
        for gfn in 0..MOST_SPACES as u64 {
            assert_eq!(memory.space(Some(gfn), Mode::Pae), Some(gfn as usize));
        }
        assert_eq!(memory.space(Some(99), Mode::Pae), None);
        assert_eq!(memory.space(Some(1), Mode::Pae), Some(1));
    }
}
