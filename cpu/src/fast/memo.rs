//! Which host frame a page is, for one kind of access: a memo of TLB hits. A line is good while everything stays that
//! [`cached`] depends on; [`Memo::forget`] empties it when something changed.

use super::block::TRANSLATION;
use crate::access::privilege_of;
use crate::core::Core;
use crate::paging::translate::cached;
use crate::virt::Regime;
use sim_core::addr::{Gva, Hfn, Hpa, PAGE_SHIFT};
use sim_core::arch::access::{Access, AccessKind};
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
}

impl View<'_> {
    /// Where an address is, if a TLB hit of the usual cost says so.
    pub(super) fn find(&self, address: u64, kind: AccessKind) -> Option<Hpa> {
        let gva = Gva(address);
        if !gva.is_canonical(self.core.linear_width()) {
            return None;
        }
        let found = cached(self.core, self.regime, gva, Access::new(kind, privilege_of(self.core.cpl())))?;
        (found.cost == Some(TRANSLATION)).then_some(found.hpa)
    }
}

/// One page, its frame, and the frame's number among the open ones, if it is one.
#[derive(Clone, Copy, Debug)]
struct Line {
    page: u64,
    frame: Hfn,
    open: OpenFrame,
}

impl Line {
    const EMPTY: Self = Self { page: NO_PAGE, frame: Hfn(0), open: OpenFrame::NONE };
}

/// The memo for data. Frames that hold code which runs now are never written through it.
#[derive(Debug)]
pub(super) struct Memo {
    reads: Box<[Line; LINES]>,
    writes: Box<[Line; LINES]>,
    code: Vec<Hfn>,
}

impl Default for Memo {
    fn default() -> Self {
        Self { reads: Box::new([Line::EMPTY; LINES]), writes: Box::new([Line::EMPTY; LINES]), code: Vec::new() }
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

    /// Reads 1, 2, 4 or 8 bytes inside one page.
    #[inline(always)]
    pub(super) fn load(&mut self, view: &View<'_>, mem: &PhysMem, address: u64, bytes: usize) -> Option<u64> {
        let page = address >> PAGE_SHIFT;
        let line = &self.reads[line_of(page)];
        if line.page == page
            && let Some(frame) = mem.opened(line.open)
        {
            return memory::load(frame, Hpa(address).page_offset() as usize, bytes);
        }
        self.load_shared(view, mem, address, bytes)
    }

    /// Reads a page that is not known, or whose frame is not open.
    #[inline(never)]
    fn load_shared(&mut self, view: &View<'_>, mem: &PhysMem, address: u64, bytes: usize) -> Option<u64> {
        let page = address >> PAGE_SHIFT;
        let line = &mut self.reads[line_of(page)];
        if line.page != page {
            let frame = view.find(address, AccessKind::Read)?.frame();
            *line = Line { page, frame, open: mem.open_frame(frame) };
        }
        memory::load(mem.frame(line.frame)?, Hpa(address).page_offset() as usize, bytes)
    }

    /// The frame of an address that is about to be written, inside one page.
    #[inline(always)]
    pub(super) fn frame_mut<'m>(
        &mut self,
        view: &View<'_>,
        mem: &'m mut PhysMem,
        address: u64,
    ) -> Option<&'m mut FrameBytes> {
        let page = address >> PAGE_SHIFT;
        let line = &self.writes[line_of(page)];
        let open = if line.page == page { line.open } else { self.fill_write(view, mem, address)? };
        mem.opened_mut(open)
    }

    #[cold]
    fn fill_write(&mut self, view: &View<'_>, mem: &mut PhysMem, address: u64) -> Option<OpenFrame> {
        let frame = view.find(address, AccessKind::Write)?.frame();
        if self.code.contains(&frame) {
            return None;
        }
        let page = address >> PAGE_SHIFT;
        let line = Line { page, frame, open: mem.open(frame)? };
        self.writes[line_of(page)] = line;
        self.reads.iter_mut().filter(|read| read.frame == frame).for_each(|read| read.open = line.open);
        Some(line.open)
    }
}
