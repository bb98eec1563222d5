//! TLB tags of the physical processors: VPIDs (`allocate_vpid`, `free_vpid`; vmx.c v5.17) and ASIDs (`new_asid`,
//! `pre_svm_run`; svm.c v5.17).
//!
//! A VPID belongs to one guest context on every processor and may run out; a context without one has VPID 0, and every
//! transition flushes. An ASID belongs to one processor and one generation: a processor that has none left begins a new
//! generation, flushes everything, and every VMCB of the old generation gets a new ASID before it runs again.
//!
//! SEV's fixed ASIDs are left out, so the lowest ASID of a guest is 1.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The VPIDs that L0 may give to guests (`vmx_vpid_bitmap`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vpids {
    last: u16,
    taken: BTreeSet<u16>,
}

impl Vpids {
    /// None taken; `last` is the highest VPID.
    #[must_use]
    pub const fn new(last: u16) -> Self {
        Self { last, taken: BTreeSet::new() }
    }

    /// `allocate_vpid`: the lowest one that is free, or 0.
    pub fn allocate(&mut self) -> u16 {
        let free = (1..=self.last).find(|vpid| !self.taken.contains(vpid)).unwrap_or(0);
        if free != 0 {
            self.taken.insert(free);
        }
        free
    }

    /// `free_vpid`; 0 was never taken.
    pub fn free(&mut self, vpid: u16) {
        self.taken.remove(&vpid);
    }
}

/// The ASIDs of one processor (`struct svm_cpu_data`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Asids {
    /// The generation under way.
    pub generation: u64,
    next: u32,
    max: u32,
}

/// What a VMCB gets when it needs an ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewAsid {
    /// The ASID.
    pub asid: u32,
    /// Its generation.
    pub generation: u64,
    /// Whether the processor must forget what it cached under every ASID.
    pub flush: FlushAll,
}

/// Whether every ASID is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushAll {
    /// The generation goes on.
    No,
    /// A generation begins.
    Yes,
}

/// The lowest ASID of a guest: 0 is the host's (APM2 15.16).
const MIN_ASID: u32 = 1;

impl Asids {
    /// A processor with `nasid` ASIDs, as `svm_hardware_enable` leaves it: the first VMRUN begins a generation.
    #[must_use]
    pub const fn new(nasid: u32) -> Self {
        Self { generation: 1, next: nasid, max: nasid - 1 }
    }

    /// `new_asid`.
    pub fn assign(&mut self) -> NewAsid {
        let flush = if self.next > self.max {
            self.generation += 1;
            self.next = MIN_ASID;
            FlushAll::Yes
        } else {
            FlushAll::No
        };
        let asid = self.next;
        self.next += 1;
        NewAsid { asid, generation: self.generation, flush }
    }
}

/// Where a VMCB ran last, and with an ASID of which generation (`struct kvm_vmcb_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmcbTag {
    /// The processor; none before the first VMRUN.
    pub cpu: Option<u8>,
    /// The generation; 0 is one that no processor has.
    pub generation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// vmx.c `allocate_vpid`, `free_vpid`.
    #[test]
    fn vpids_are_the_lowest_free_and_run_out() {
        let mut vpids = Vpids::new(3);
        assert_eq!([0; 5].map(|_| vpids.allocate()), [1, 2, 3, 0, 0]);
        vpids.free(2);
        vpids.free(0);
        assert_eq!([0; 2].map(|_| vpids.allocate()), [2, 0]);
        assert_eq!(Vpids::new(0).allocate(), 0);
    }

    /// svm.c `new_asid`: a generation holds every ASID but the host's, and only its first one flushes.
    #[test]
    fn asids_begin_a_generation_when_none_is_left() {
        let mut asids = Asids::new(3);
        let taken = [0; 5].map(|_| {
            let new = asids.assign();
            (new.asid, new.generation, new.flush)
        });
        let expected = [
            (1, 2, FlushAll::Yes),
            (2, 2, FlushAll::No),
            (1, 3, FlushAll::Yes),
            (2, 3, FlushAll::No),
            (1, 4, FlushAll::Yes),
        ];
        assert_eq!(taken, expected);
    }
}
