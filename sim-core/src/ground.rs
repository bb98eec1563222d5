//! What every primitive needs at hand: memory, time, the event log and the open choices.

use crate::choice::Choices;
use crate::clock::{Clock, Cost};
use crate::event::{Event, EventLog};
use crate::memory::PhysMem;
use serde::{Deserialize, Serialize};

/// The part of a machine that is not a processor and not software.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ground {
    /// Physical memory.
    pub mem: PhysMem,
    /// Simulated time.
    pub clock: Clock,
    /// What happened so far; not part of the machine's state.
    #[serde(skip)]
    pub log: EventLog,
    /// Open points of the architecture and how they were decided.
    pub choices: Choices,
}

impl Ground {
    /// A machine with `frames` 4 KiB frames of zeroed memory at time 0.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        Self {
            mem: PhysMem::new(frames),
            clock: Clock::default(),
            log: EventLog::default(),
            choices: Choices::default(),
        }
    }

    /// Charges a primitive's cost to the clock.
    pub const fn charge(&mut self, cost: Cost) {
        self.clock.charge(cost);
    }

    /// Records an event that took no time of its own.
    pub fn record(&mut self, event: Event) {
        let now = self.clock.now();
        self.log.push(now, now, event);
    }

    /// Charges a primitive and records the event over its duration.
    pub fn spend(&mut self, cost: Cost, event: Event) {
        let start = self.clock.now();
        self.clock.charge(cost);
        let end = self.clock.now();
        self.log.push(start, end, event);
    }
}
