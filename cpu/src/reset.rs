//! INIT and start-up IPIs (SDM 3A 8.4, 9.1, table 9-1; APM2 14.1, 16.8).
//!
//! What table 9-1 leaves unchanged on INIT stays: XMM registers, the time-stamp counter, most MSRs, CR0.CD and CR0.NW.
//! EDX gets family, model and stepping, which are 0 here.

use crate::apic;
use crate::core::{Activity, Blocking, Core, Passed, Segments};
use sim_core::addr::Gva;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};

/// IA32_APIC_BASE: this is the bootstrap processor (SDM 3A 10.4.4).
const BOOTSTRAP: u64 = 1 << 8;
/// Rights of segments in real mode, of the LDT and of the TSS after a reset.
const REAL_CODE: Rights = Rights(0x9b);
const REAL_DATA: Rights = Rights(0x93);
const LDT: Rights = Rights(0x82);

const fn data() -> Segment {
    Segment { selector: 0, base: 0, limit: 0xffff, rights: REAL_DATA }
}

/// INIT: the bootstrap processor goes on at the reset vector, the others wait for a start-up IPI.
pub fn init(core: &mut Core) {
    core.gprs = [0; 16];
    core.rip = 0xfff0;
    core.rflags = Rflags::FIXED;
    core.cr0 = core.cr0.intersection(Cr0::CD.union(Cr0::NW)).union(Cr0::ET);
    core.cr2 = Gva(0);
    core.cr3 = 0;
    core.cr4 = Cr4::empty();
    core.efer = Efer::empty();
    core.pdptes = [0; 4];
    core.segments = Segments {
        cs: Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, rights: REAL_CODE },
        es: data(),
        ss: data(),
        ds: data(),
        fs: data(),
        gs: data(),
        ldtr: Segment { rights: LDT, ..data() },
        tr: Segment { rights: Rights::BUSY_TSS, ..data() },
    };
    core.gdtr = TableRegister { base: 0, limit: 0xffff };
    core.idtr = TableRegister { base: 0, limit: 0xffff };
    core.dr = [0; 4];
    core.dr6 = 0xffff_0ff0;
    core.dr7 = 0x400;
    core.cr8 = 0;
    core.ssp = 0;
    core.msrs.u_cet = 0;
    core.msrs.s_cet = 0;
    core.msrs.pl_ssp = [0; 4];
    core.msrs.interrupt_ssp_table = 0;
    core.blocking = Blocking::empty();
    core.pending_debug = 0;
    core.delivering = None;
    core.passed = Passed::Nothing;
    core.pins.sipi = None;
    apic::init(core);
    let bootstrap = core.msrs.apic_base & BOOTSTRAP != 0;
    core.activity = if bootstrap { Activity::Active } else { Activity::WaitForSipi };
}

/// A start-up IPI: real mode at the start of page `vector` (SDM 3A 8.4.4.1).
pub fn start_up(core: &mut Core, vector: u8) {
    core.segments.cs.selector = u16::from(vector) << 8;
    core.segments.cs.base = u64::from(vector) << 12;
    core.rip = 0;
    core.activity = Activity::Active;
}
