//! What a logical processor's permitted set is made of, beside the history of memory: which address spaces it was in,
//! and what it invalidated, at which moments.
//!
//! A change of context shows when it is noted: after every instruction, with every flush of a control-register write,
//! and at the next access. Where other processors acted between the change and its note, both contexts count as current
//! for that while: more is then permitted than the architecture does, never less.

use super::Space;
use crate::paging::context::PagingContext;
use crate::virt::SecondStage;
use sim_core::arch::control::PagingMode;
use sim_core::event::FlushScope;
use sim_core::history::{Moment, Observer};
use sim_core::memory::PhysMem;

/// Everything that decides how a linear address is translated: an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Setting {
    /// The tags.
    pub(crate) space: Space,
    /// The second stage.
    pub(crate) second: SecondStage,
    /// The registers of the first stage.
    pub(crate) paging: PagingContext,
}

impl Setting {
    /// Whether linear addresses are translated at all.
    pub(crate) fn is_paged(&self) -> bool {
        self.paging.mode() != PagingMode::Off
    }
}

/// Moments in which a setting was current.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Period {
    pub(crate) from: Moment,
    /// The first moment in which it was not; none while it is current.
    pub(crate) until: Option<Moment>,
    pub(crate) setting: Setting,
}

/// The last moment in which the current setting was surely current.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Touch {
    /// It was used at this moment.
    Used(Moment),
    /// At this moment a flush ended; if the setting changes before it is used, it had changed before the flush.
    Flushed(Moment),
}

/// The journal of one logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Journal {
    observer: Observer,
    periods: Vec<Period>,
    flushes: Vec<(Moment, FlushScope)>,
    touched: Touch,
}

impl Journal {
    /// A journal that begins now, with nothing cached.
    pub(crate) fn new(memory: &mut PhysMem) -> Self {
        let observer = memory.observe();
        Self { observer, periods: Vec::new(), flushes: Vec::new(), touched: Touch::Flushed(memory.now()) }
    }

    /// The settings, oldest first.
    pub(crate) fn periods(&self) -> &[Period] {
        &self.periods
    }

    /// The invalidations, oldest first. One at a moment drops what was loaded before that moment.
    pub(crate) fn flushes(&self) -> &[(Moment, FlushScope)] {
        &self.flushes
    }

    /// The setting is current now. If it was another one before, that it changed takes the moment that `tick` gives.
    pub(crate) fn note(&mut self, now: Moment, setting: Setting, tick: impl FnOnce() -> Moment) {
        // These judge accesses, not translations; memory types are left out.
        let paging = PagingContext { rflags: Default::default(), pkru: 0, pkrs: 0, pat: 0, ..setting.paging };
        let setting = Setting { paging, ..setting };
        if self.periods.last().is_some_and(|last| last.setting == setting) {
            self.touched = Touch::Used(now);
            return;
        }
        let now = match self.touched {
            Touch::Used(_) if !self.periods.is_empty() => tick(),
            Touch::Used(_) | Touch::Flushed(_) => now,
        };
        let (from, until) = match self.touched {
            Touch::Used(at) => (at.next().min(now), now),
            Touch::Flushed(at) => (at, at),
        };
        if let Some(last) = self.periods.last_mut() {
            last.until = Some(until);
        }
        self.periods.push(Period { from, until: None, setting });
        self.touched = Touch::Used(now);
    }

    /// Entries in the scope are dropped now.
    pub(crate) fn flush(&mut self, memory: &mut PhysMem, scope: &FlushScope) {
        let at = memory.tick();
        self.touched = Touch::Flushed(at);
        if self.is_everything(scope) {
            self.forget(memory, at);
        } else {
            self.flushes.push((at, scope.clone()));
        }
    }

    /// Whether nothing that was ever cached survives the scope.
    fn is_everything(&self, scope: &FlushScope) -> bool {
        match *scope {
            FlushScope::All => true,
            FlushScope::Context(context) => self
                .periods
                .iter()
                .all(|period| period.setting.space.context == context && period.setting.second == SecondStage::None),
            _ => false,
        }
    }

    /// Forgets what was before a moment.
    fn forget(&mut self, memory: &mut PhysMem, at: Moment) {
        self.flushes.clear();
        if let Some(last) = self.periods.pop() {
            self.periods = vec![Period { from: last.from.max(at), ..last }];
        }
        memory.release(self.observer, at);
    }
}
