//! Simulated time. Every primitive of the silicon charges a [`Cost`]; nothing else moves the clock.
//!
//! This first table is flat: one constant a primitive, independent of caches and microarchitecture. The figures are
//! round numbers of the right order for a Zen 4 class core, not measurements; they order events and make costs
//! comparable inside one run, and claim nothing about a real machine.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A duration or a point of simulated time, in core cycles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cycles(pub u64);

impl fmt::Display for Cycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! costs {
    ($($(#[$doc:meta])* $name:ident = $cycles:literal,)*) => {
        /// A primitive that takes time.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Cost {
            $($(#[$doc])* $name,)*
        }

        impl Cost {
            /// Every primitive, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What the primitive costs, in core cycles.
            #[must_use]
            pub const fn cycles(self) -> Cycles {
                match self {
                    $(Self::$name => Cycles($cycles),)*
                }
            }

            /// The primitive's name, as the table spells it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

costs! {
    /// Issuing one instruction.
    Instruction = 1,
    /// A TLB look-up that hits.
    TlbHit = 1,
    /// One read or write of data, beyond its translation.
    DataAccess = 4,
    /// One reference of a page walk to a paging-structure entry, first or second stage.
    WalkReference = 14,
    /// Writing accessed or dirty bits back to an entry.
    WalkUpdate = 20,
    /// Dropping TLB entries, whatever the scope.
    TlbFlush = 150,
    /// Delivering an exception through the IDT.
    Exception = 60,
    /// A privileged register move that serialises.
    SystemRegister = 100,
    /// A VM-entry (VMLAUNCH, VMRESUME, VMRUN) with its checks.
    VmEntry = 600,
    /// A VM-exit with its state save and load.
    VmExit = 700,
    /// One VMREAD, VMWRITE, VMPTRLD or VMCLEAR.
    VmcsAccess = 40,
}

/// The machine's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Clock {
    now: Cycles,
}

impl Clock {
    /// The current time.
    #[must_use]
    pub const fn now(&self) -> Cycles {
        self.now
    }

    /// Moves time forward by what the primitive costs.
    pub const fn charge(&mut self, cost: Cost) {
        self.advance(cost.cycles());
    }

    /// Moves time forward by what several primitives cost together.
    pub const fn advance(&mut self, cycles: Cycles) {
        self.now.0 = self.now.0.wrapping_add(cycles.0);
    }
}
