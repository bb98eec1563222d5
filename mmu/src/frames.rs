//! L0's allocator of host frames: page tables, VMCSs and guest memory all come from here.
//!
//! Frames are given out lowest first and reused lowest first, so that a run's host addresses depend on nothing but the
//! run.

use serde::{Deserialize, Serialize};
use sim_core::addr::Hfn;
use sim_core::{Ground, SimError};
use std::collections::BTreeSet;

/// The free host frames.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frames {
    next: Hfn,
    end: Hfn,
    freed: BTreeSet<Hfn>,
}

impl Frames {
    /// An allocator over `[first, end)`.
    #[must_use]
    pub const fn new(first: Hfn, end: Hfn) -> Self {
        Self { next: first, end, freed: BTreeSet::new() }
    }

    /// Takes `count` consecutive frames that were never used, without clearing them.
    ///
    /// # Errors
    /// If the host has no such run of frames left.
    pub fn take_run(&mut self, count: u64) -> Result<Hfn, SimError> {
        let first = self.next;
        if self.end.0.saturating_sub(first.0) < count {
            return Err(SimError::unmodelled(format!("host memory exhaustion ({count} more frames wanted)")));
        }
        self.next = first.offset(count);
        Ok(first)
    }

    /// Takes `count` consecutive frames whose first is a multiple of `align`, a power of two; what lies before it is
    /// left for single frames.
    ///
    /// # Errors
    /// If the host has no such run of frames left.
    pub fn take_aligned_run(&mut self, count: u64, align: u64) -> Result<Hfn, SimError> {
        let skipped = self.next.0.wrapping_neg() & (align - 1);
        let before = self.take_run(skipped)?;
        self.freed.extend((0..skipped).map(|offset| before.offset(offset)));
        self.take_run(count)
    }

    /// Takes one frame and clears it.
    ///
    /// # Errors
    /// If the host has no frame left.
    pub fn take(&mut self, ground: &mut Ground) -> Result<Hfn, SimError> {
        let frame = match self.freed.pop_first() {
            Some(frame) => frame,
            None => self.take_run(1)?,
        };
        ground.mem.clear_frame(frame);
        Ok(frame)
    }

    /// Whether a frame was given back and not taken since.
    #[must_use]
    pub fn is_free(&self, frame: Hfn) -> bool {
        self.freed.contains(&frame)
    }

    /// Gives one frame back.
    pub fn give(&mut self, frame: Hfn) {
        self.freed.insert(frame);
    }
}
