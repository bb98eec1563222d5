//! A second walk of the tables that L0 wrote, as hardware would do it (SDM 3A 4.4.2 and 4.5, SDM 3C 28.3.2). It shares
//! nothing with the MMU but the place where the root is.

use super::Machine;
use mmu::state::TdpMode;
use sim_core::addr::{Hfn, Hpa};

/// What hardware would do with an address: the frame, and whether it could be written, be reached by the user, and
/// be executed. Under EPT `user` says readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) frame: Hfn,
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) execute: bool,
}

const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Walks from the active root of a vCPU.
pub(crate) fn walk(machine: &Machine, cpu: usize, address: u64) -> Option<Mapped> {
    let mmu = machine.cpus[cpu].mmu.active();
    let ept = machine.vm.config.tdp == TdpMode::Ept;
    let mem = &machine.ground.mem;
    let (mut level, mut table) = if mmu.shadow_root_level == 3 {
        // CR3 names four PDPTEs, which have no permissions of their own.
        let pdpte = mem.read_u64(Hpa((mmu.root.hpa.0 & !0x1f) + (address >> 30 & 3) * 8));
        if pdpte & 1 == 0 {
            return None;
        }
        (2, pdpte & FRAME)
    } else {
        (mmu.shadow_root_level, mmu.root.hpa.0)
    };
    let (mut write, mut user, mut execute) = (true, true, true);
    loop {
        let index = address >> (12 + 9 * (level - 1)) & 0x1ff;
        let entry = mem.read_u64(Hpa(table + index * 8));
        if entry & if ept { 7 } else { 1 } == 0 {
            return None;
        }
        // Writable without readable is a misconfiguration, and address bits above MAXPHYADDR are reserved.
        if (ept && entry & 3 == 2) || (!ept && entry >> 40 & 0xfff != 0) {
            return None;
        }
        write &= entry & 2 != 0;
        user &= entry & if ept { 1 } else { 4 } != 0;
        execute &= if ept { entry & 4 != 0 } else { entry >> 63 == 0 };
        table = entry & FRAME;
        if level == 1 {
            return Some(Mapped { frame: Hfn(table >> 12), write, user, execute });
        }
        assert_eq!(entry >> 7 & 1, 0, "L0 makes no large pages, entry {entry:#x} at level {level}");
        level -= 1;
    }
}
