//! Requests: what is owed to a vCPU before it may run again (`KVM_REQ_*`), and effects: what a vendor must do at once.

use serde::{Deserialize, Serialize};
use sim_core::Ground;
use sim_core::event::{Event, RequestPhase};

macro_rules! requests {
    ($($(#[$($doc:tt)*])* $name:ident = $bit:literal,)*) => {
        bitflags::bitflags! {
            /// The pending requests of a vCPU.
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
            pub struct Requests: u16 {
                $($(#[$($doc)*])* const $name = 1 << $bit;)*
            }
        }

        impl Requests {
            /// Every request with KVM's name for it, without the `KVM_REQ_`.
            pub const TABLE: &[(Self, &str)] = &[$((Self::$name, stringify!($name)),)*];
        }
    };
}

requests! {
    /// Finish loading nested state: pages that vmcs12 or vmcb12 name.
    GET_NESTED_STATE_PAGES = 0,
    /// Free every root (v5.17).
    MMU_RELOAD = 1,
    /// Free the roots that became obsolete (v5.18).
    MMU_FREE_OBSOLETE_ROOTS = 2,
    /// Synchronise the current root.
    MMU_SYNC = 3,
    /// Write the current root into the hardware's pointer.
    LOAD_MMU_PGD = 4,
    /// Flush every TLB tag of the vCPU.
    TLB_FLUSH = 5,
    /// Flush the tags of the current context.
    TLB_FLUSH_CURRENT = 6,
    /// Flush what the guest itself asked to be flushed.
    TLB_FLUSH_GUEST = 7,
    /// The vCPU has triple-faulted.
    TRIPLE_FAULT = 8,
    /// Switch the page-modification log on or off, as slots log or no longer do.
    UPDATE_CPU_DIRTY_LOGGING = 9,
}

impl Requests {
    /// The names of the set requests, in table order.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        Self::TABLE.iter().filter(|(bit, _)| self.contains(*bit)).map(|(_, name)| *name).collect()
    }

    /// Makes requests pending and records each that was not pending before.
    pub fn post(&mut self, ground: &mut Ground, requests: Self) {
        for name in (requests - *self).names() {
            ground.record(Event::Request { name, phase: RequestPhase::Posted });
        }
        self.insert(requests);
    }

    /// Takes one request: clears it, records it, and says whether it was pending.
    pub fn take(&mut self, ground: &mut Ground, request: Self) -> bool {
        let pending = self.contains(request);
        self.remove(request);
        for name in if pending { request.names() } else { Vec::new() } {
            ground.record(Event::Request { name, phase: RequestPhase::Serviced });
        }
        pending
    }
}

bitflags::bitflags! {
    /// What the vendor must do before anything else happens.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Effects: u8 {
        /// Write the current root into the hardware's pointer (`kvm_x86_load_mmu_pgd`).
        const LOAD_PGD = 1 << 0;
        /// Flush the current context's tags (`kvm_x86_flush_tlb_current`).
        const FLUSH_CURRENT = 1 << 1;
    }
}
