//! The load of the guest-state area (SDM 3C 26.3.2).

use crate::controls::EntryControls;
use crate::exit::KEPT_CR0;
use crate::guest::NmiMode;
use crate::unit::Vmx;
use crate::vmcs::segment::SegmentName;
use crate::vmcs::{Field, Region};
use cpu::{Activity, Blocking, Core, Gpr};
use sim_core::Ground;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::TableRegister;

/// Loads registers.
pub(super) fn registers(core: &mut Core, ground: &Ground, region: Region, entry: EntryControls) {
    let get = |field| region.get(ground, field);
    let cr0 = get(Field::GuestCr0);
    core.cr0 = Cr0::from_bits_retain(core.cr0.bits() & KEPT_CR0 | cr0 & !KEPT_CR0);
    core.cr3 = get(Field::GuestCr3);
    core.cr4 = Cr4::from_bits_retain(get(Field::GuestCr4));
    msrs(core, ground, region, entry);
    for name in SegmentName::ALL {
        *name.of_mut(&mut core.segments) = name.load(region, ground);
    }
    core.gdtr = TableRegister { base: get(Field::GuestGdtrBase), limit: get(Field::GuestGdtrLimit) as u16 };
    core.idtr = TableRegister { base: get(Field::GuestIdtrBase), limit: get(Field::GuestIdtrLimit) as u16 };
    core.set_gpr(Gpr::Rsp, get(Field::GuestRsp));
    core.rip = get(Field::GuestRip);
    core.rflags = Rflags::from_bits_retain(get(Field::GuestRflags));
    core.activity = match get(Field::GuestActivity) {
        1 => Activity::Halted,
        2 => Activity::Shutdown,
        3 => Activity::WaitForSipi,
        _ => Activity::Active,
    };
    core.pending_debug = get(Field::GuestPendingDebug);
    core.delivering = None;
}

/// Debug controls and MSRs that have fields (SDM 3C 26.3.2.1).
fn msrs(core: &mut Core, ground: &Ground, region: Region, entry: EntryControls) {
    let get = |field| region.get(ground, field);
    core.efer = if entry.contains(EntryControls::LOAD_EFER) {
        Efer::from_bits_retain(get(Field::GuestEfer))
    } else {
        efer_of(core, entry.contains(EntryControls::IA32E_MODE_GUEST))
    };
    if entry.contains(EntryControls::LOAD_PAT) {
        core.msrs.pat = get(Field::GuestPat);
    }
    if entry.contains(EntryControls::LOAD_DEBUG_CONTROLS) {
        core.dr7 = get(Field::GuestDr7) & !0xd000 | 0x400;
        core.msrs.debugctl = get(Field::GuestDebugctl);
    }
    if entry.contains(EntryControls::LOAD_CET_STATE) {
        core.msrs.s_cet = get(Field::GuestSCet);
        core.ssp = get(Field::GuestSsp);
        core.msrs.interrupt_ssp_table = get(Field::GuestInterruptSspTable);
    }
    if entry.contains(EntryControls::LOAD_PKRS) {
        core.msrs.pkrs = get(Field::GuestPkrs);
    }
    core.msrs.sysenter_cs = get(Field::GuestSysenterCs);
    core.msrs.sysenter_esp = get(Field::GuestSysenterEsp);
    core.msrs.sysenter_eip = get(Field::GuestSysenterEip);
}

/// EFER when the VMCS does not load it: LMA from "IA-32e mode guest", LME equal to LMA under paging (SDM 3C 26.3.2.1).
fn efer_of(core: &Core, long: bool) -> Efer {
    let mut efer = core.efer;
    efer.set(Efer::LMA, long);
    if core.cr0.contains(Cr0::PG) {
        efer.set(Efer::LME, long);
    }
    efer
}

impl Vmx {
    /// Blocking of events (SDM 3C 26.7.1): with "virtual NMIs" the processor's own NMIs are not blocked.
    pub(super) fn load_blocking(&mut self, core: &mut Core, ground: &Ground, region: Region) {
        let wanted = Blocking::from_bits_truncate(region.get(ground, Field::GuestInterruptibility) as u8);
        for bit in [Blocking::STI, Blocking::MOV_SS] {
            core.blocking.set(bit, wanted.contains(bit));
        }
        let nmi = wanted.contains(Blocking::NMI);
        self.guest.nmi.blocked = nmi;
        core.blocking.set(Blocking::NMI, nmi && self.guest.nmi_mode() != NmiMode::Virtual);
    }
}
