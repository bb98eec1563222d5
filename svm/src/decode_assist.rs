//! Decode assists for faults of data accesses: the guest instruction bytes of #PF and #NPF (APM2 15.8).
//!
//! The processor has fetched the instruction by then, so reading its bytes again neither takes time nor changes an entry
//! that is not already marked accessed. Faults of fetches and of the delivery of events tell no bytes.

use crate::capability::Features;
use crate::exit::InstructionBytes;
use crate::unit::Svm;
use cpu::core::Bitness;
use cpu::paging::translate::translate;
use cpu::virt::Trap;
use cpu::{Core, Virt};
use sim_core::Ground;
use sim_core::addr::{Gva, PAGE_BYTES};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::exception::{PageFaultError, Vector};

/// The most bytes that an exit tells.
const BYTES_MAX: usize = 15;

/// The bytes that an exit for this trap tells, with their number; none for other traps than data faults.
pub(crate) fn instruction_bytes(svm: &Svm, core: &mut Core, ground: &mut Ground, trap: &Trap) -> InstructionBytes {
    if !svm.capabilities.has(Features::DECODE_ASSISTS) || core.delivering.is_some() || !is_data_fault(trap) {
        return InstructionBytes::default();
    }
    let clock = ground.clock.clone();
    let bytes = fetch(svm, core, ground);
    ground.clock = clock;
    bytes
}

fn is_data_fault(trap: &Trap) -> bool {
    match trap {
        Trap::Stage(fault) => fault.access.kind != AccessKind::Fetch,
        Trap::Exception(exception) if exception.vector == Vector::PageFault => {
            !PageFaultError::from_bits_truncate(exception.error.unwrap_or(0)).contains(PageFaultError::F)
        }
        _ => false,
    }
}

/// As many bytes from rIP as translate for a fetch.
fn fetch(svm: &Svm, core: &mut Core, ground: &mut Ground) -> InstructionBytes {
    let regime = svm.regime(core);
    let privilege = if core.cpl() == 3 { Privilege::User } else { Privilege::Supervisor };
    let access = Access::new(AccessKind::Fetch, privilege);
    let start = match core.bitness() {
        Bitness::Bits64 => core.rip,
        Bitness::Bits16 | Bitness::Bits32 => core.segments.cs.base.wrapping_add(core.rip) & 0xffff_ffff,
    };
    let mut all = InstructionBytes::default();
    let mut done = 0;
    while done < BYTES_MAX {
        let address = Gva(start.wrapping_add(done as u64));
        let count = ((PAGE_BYTES - address.page_offset()) as usize).min(BYTES_MAX - done);
        let Ok(at) = translate(core, &regime, ground, address, access) else { break };
        ground.mem.read_bytes(at, &mut all.bytes[done..done + count]);
        done += count;
    }
    all.count = done as u8;
    all
}
