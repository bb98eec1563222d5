//! The translation look-aside buffer: not architectural, modelled so that a missing invalidation can show.

use serde::{Deserialize, Serialize};
use sim_core::Ground;
use sim_core::clock::Cost;
use sim_core::event::{Event, FlushScope};

/// Cached translations of one logical processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tlb {}

impl Tlb {
    /// Drops every entry in the scope.
    pub fn invalidate(&mut self, _scope: &FlushScope) {}

    /// Drops every entry in the scope, charging time and recording the flush.
    pub fn flush(&mut self, ground: &mut Ground, scope: FlushScope) {
        self.invalidate(&scope);
        ground.spend(Cost::TlbFlush, Event::TlbFlush { scope });
    }
}
