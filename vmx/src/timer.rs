//! What counts time in non-root operation: the VMX-preemption timer (SDM 3C 25.5.1), pause-loop exiting (25.1.3 PAUSE),
//! and the guest's time-stamp counter (25.3 RDTSC). The TSC is the simulated clock.

use crate::capability::offered::misc;
use crate::controls::{PrimaryProc, SecondaryProc};
use crate::unit::Vmx;
use crate::vmcs::Field;
use serde::{Deserialize, Serialize};
use sim_core::Ground;

/// The VMX-preemption timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct PreemptionTimer {
    /// The tick at VM-entry.
    start: u64,
    /// The value at VM-entry.
    value: u64,
}

/// The timer counts down by 1 whenever this bit of the TSC changes.
const fn tick(tsc: u64) -> u64 {
    tsc >> misc::TIMER_RATE
}

impl PreemptionTimer {
    /// Starts at VM-entry.
    pub(crate) fn start(ground: &Ground, value: u64) -> Self {
        Self { start: tick(ground.clock.now().0), value }
    }

    /// What is left; 0 has expired.
    pub(crate) fn remaining(&self, ground: &Ground) -> u64 {
        self.value.saturating_sub(tick(ground.clock.now().0).wrapping_sub(self.start))
    }
}

/// The loop of PAUSE instructions that the processor believes to see, in TSC units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct PauseLoop {
    /// When the loop began.
    first: u64,
    /// The last PAUSE; none before the first at privilege level 0.
    last: Option<u64>,
}

impl PauseLoop {
    /// One more PAUSE at privilege level 0; whether it exits.
    pub(crate) fn pause(&mut self, now: u64, gap: u64, window: u64) -> bool {
        let is_new = self.last.is_none_or(|last| now.wrapping_sub(last) > gap);
        if is_new {
            self.first = now;
        }
        self.last = Some(now);
        !is_new && now.wrapping_sub(self.first) > window
    }
}

impl Vmx {
    /// What RDTSC shows: the TSC, multiplied in units of 2^-48 and offset if the controls say so.
    pub(crate) fn guest_tsc(&self, ground: &Ground, now: u64) -> u64 {
        let Some(region) = self.guest_region() else { return now };
        if !self.guest.primary.contains(PrimaryProc::USE_TSC_OFFSETTING) {
            return now;
        }
        let scaled = if self.guest.secondary.contains(SecondaryProc::USE_TSC_SCALING) {
            ((u128::from(now) * u128::from(region.get(ground, Field::TscMultiplier))) >> 48) as u64
        } else {
            now
        };
        scaled.wrapping_add(region.get(ground, Field::TscOffset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3C 25.1.3 PAUSE: a gap longer than PLE_Gap starts a new loop; a loop longer than PLE_Window exits.
    #[test]
    fn pause_loops() {
        let mut pauses = PauseLoop::default();
        let times = [(100, false), (110, false), (150, false), (190, false), (201, true), (1000, false), (1040, false)];
        for (now, exits) in times {
            assert_eq!(pauses.pause(now, 40, 100), exits, "{now}");
        }
    }

    #[test]
    fn the_timer_counts_ticks() {
        let mut ground = Ground::new(1);
        let timer = PreemptionTimer::start(&ground, 3);
        assert_eq!(timer.remaining(&ground), 3);
        while tick(ground.clock.now().0) < 2 {
            ground.charge(sim_core::clock::Cost::Instruction);
        }
        assert_eq!(timer.remaining(&ground), 1);
        for _ in 0..100 {
            ground.charge(sim_core::clock::Cost::Instruction);
        }
        assert_eq!(timer.remaining(&ground), 0);
    }
}
