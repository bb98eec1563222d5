//! Which host frame a page is, for one kind of access: a memo of TLB hits. A line is good while everything stays that
//! [`cached`] depends on; [`Memo::forget`] empties it when something changed.

use crate::access::privilege_of;
use crate::core::Core;
use crate::paging::translate::cached;
use crate::virt::Regime;
use sim_core::addr::{Gva, Hfn, Hpa, PAGE_SHIFT};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::clock::Cost;
use sim_core::memory::{self, FrameBytes, OpenFrame, PhysMem};

/// Lines for each kind of access; a power of two.
const LINES: usize = 256;
/// A page number that no address has.
const NO_PAGE: u64 = u64::MAX;
/// Frames of code that are kept apart from frames that are written.
const CODE_FRAMES_MAX: usize = 256;

/// What translations depend on beside the memo's own key.
pub(super) struct View<'a> {
    pub(super) core: &'a Core,
    pub(super) regime: &'a Regime,
    /// What one translation costs now.
    pub(super) cost: Option<Cost>,
}

impl View<'_> {
    /// Where an address is, if a TLB hit of the usual cost says so.
    pub(super) fn find(&self, address: u64, kind: AccessKind) -> Option<Hpa> {
        let gva = Gva(address);
        if !gva.is_canonical(self.core.linear_width()) {
            return None;
        }
        let found = cached(self.core, self.regime, gva, Access::new(kind, privilege_of(self.core.cpl())))?;
        (found.cost == self.cost).then_some(found.hpa)
    }
}

#[derive(Clone, Copy, Debug)]
struct ReadLine {
    page: u64,
    frame: Hfn,
    open: Option<OpenFrame>,
}

#[derive(Clone, Copy, Debug)]
struct WriteLine {
    page: u64,
    frame: Hfn,
    open: OpenFrame,
}

/// The memo for data. Frames that hold code which runs now are never written through it.
#[derive(Debug)]
pub(super) struct Memo {
    reads: Box<[ReadLine; LINES]>,
    writes: Box<[WriteLine; LINES]>,
    code: Vec<Hfn>,
}

impl Default for Memo {
    fn default() -> Self {
        let read = ReadLine { page: NO_PAGE, frame: Hfn(0), open: None };
        let write = WriteLine { page: NO_PAGE, frame: Hfn(0), open: OpenFrame::default() };
        Self { reads: Box::new([read; LINES]), writes: Box::new([write; LINES]), code: Vec::new() }
    }
}

const fn line_of(page: u64) -> usize {
    page as usize % LINES
}

impl Memo {
    /// Empties it.
    pub(super) fn forget(&mut self) {
        self.reads.iter_mut().for_each(|line| line.page = NO_PAGE);
        self.writes.iter_mut().for_each(|line| line.page = NO_PAGE);
    }

    /// No code runs any more.
    pub(super) fn forget_code(&mut self) {
        self.code.clear();
    }

    /// Keeps a frame from being written, as code runs from it; false if there are too many.
    #[must_use]
    pub(super) fn guard(&mut self, frame: Hfn) -> bool {
        if self.code.contains(&frame) {
            return true;
        }
        if self.code.len() == CODE_FRAMES_MAX {
            return false;
        }
        self.code.push(frame);
        self.writes.iter_mut().filter(|line| line.frame == frame).for_each(|line| line.page = NO_PAGE);
        true
    }

    /// Reads inside one page.
    #[inline]
    pub(super) fn load(&mut self, view: &View<'_>, mem: &PhysMem, address: u64, bytes: usize) -> Option<u64> {
        let page = address >> PAGE_SHIFT;
        let mut line = self.reads[line_of(page)];
        if line.page != page {
            line = self.fill_read(view, address)?;
        }
        let frame = match line.open {
            Some(open) => mem.opened(open)?,
            None => mem.frame(line.frame)?,
        };
        memory::load(frame, Hpa(address).page_offset() as usize, bytes)
    }

    #[cold]
    fn fill_read(&mut self, view: &View<'_>, address: u64) -> Option<ReadLine> {
        let frame = view.find(address, AccessKind::Read)?.frame();
        let page = address >> PAGE_SHIFT;
        let line = ReadLine { page, frame, open: None };
        self.reads[line_of(page)] = line;
        Some(line)
    }

    /// The frame of an address that is about to be written, inside one page.
    #[inline]
    pub(super) fn frame_mut<'m>(
        &mut self,
        view: &View<'_>,
        mem: &'m mut PhysMem,
        address: u64,
    ) -> Option<&'m mut FrameBytes> {
        let page = address >> PAGE_SHIFT;
        let mut line = self.writes[line_of(page)];
        if line.page != page {
            line = self.fill_write(view, mem, address)?;
        }
        mem.opened_mut(line.open)
    }

    #[cold]
    fn fill_write(&mut self, view: &View<'_>, mem: &mut PhysMem, address: u64) -> Option<WriteLine> {
        let frame = view.find(address, AccessKind::Write)?.frame();
        if self.code.contains(&frame) {
            return None;
        }
        let page = address >> PAGE_SHIFT;
        let line = WriteLine { page, frame, open: mem.open(frame)? };
        self.writes[line_of(page)] = line;
        let read = &mut self.reads[line_of(page)];
        if read.page == page && read.frame == frame {
            read.open = Some(line.open);
        }
        Some(line)
    }
}
