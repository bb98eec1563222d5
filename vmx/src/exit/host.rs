//! The load of host state at a VM-exit, and at a VM-entry that failed late (SDM 3C 27.5).

use super::KEPT_CR0;
use super::abort::Abort;
use crate::controls::ExitControls;
use crate::vmcs::{Field, Region};
use cpu::paging::pdpte;
use cpu::virt::Regime;
use cpu::{Activity, Blocking, Core, Fault, Gpr};
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::{Ground, SimError};

/// Loads the host-state area. The inner error is a VMX abort.
pub(super) fn load(core: &mut Core, ground: &mut Ground, region: Region) -> Result<Result<(), Abort>, SimError> {
    let get = |field| region.get(ground, field);
    let controls = ExitControls::from_bits_retain(get(Field::ExitControls) as u32);
    let long = controls.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    if core.efer.contains(Efer::LMA) && !long {
        return Ok(Err(Abort::HostNot64Bit));
    }
    core.cr0 = Cr0::from_bits_retain(core.cr0.bits() & KEPT_CR0 | get(Field::HostCr0) & !KEPT_CR0);
    core.cr3 = get(Field::HostCr3);
    core.cr4 = Cr4::from_bits_retain(get(Field::HostCr4));
    match long {
        true => core.cr4.insert(Cr4::PAE),
        false => core.cr4.remove(Cr4::PCIDE),
    }
    core.dr7 = 0x400;
    load_msrs(core, ground, region, controls);
    load_segments(core, ground, region, long);
    core.set_gpr(Gpr::Rsp, region.get(ground, Field::HostRsp));
    core.rip = region.get(ground, Field::HostRip);
    core.rflags = Rflags::FIXED;
    core.activity = Activity::Active;
    core.blocking.remove(Blocking::STI | Blocking::MOV_SS);
    core.pending_debug = 0;
    core.delivering = None;
    if core.paging_mode() == PagingMode::Pae {
        match pdptes(core, ground)? {
            Ok(pdptes) => core.pdptes = pdptes,
            Err(abort) => return Ok(Err(abort)),
        }
    }
    Ok(Ok(()))
}

/// The MSRs that have fields (SDM 3C 27.5.1). IA32_DEBUGCTL becomes 0.
fn load_msrs(core: &mut Core, ground: &Ground, region: Region, controls: ExitControls) {
    let get = |field| region.get(ground, field);
    let long = controls.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    core.msrs.debugctl = 0;
    core.msrs.sysenter_cs = get(Field::HostSysenterCs);
    core.msrs.sysenter_esp = get(Field::HostSysenterEsp);
    core.msrs.sysenter_eip = get(Field::HostSysenterEip);
    if controls.contains(ExitControls::LOAD_EFER) {
        core.efer = Efer::from_bits_retain(get(Field::HostEfer));
    }
    core.efer.set(Efer::LMA, long);
    core.efer.set(Efer::LME, long);
    if controls.contains(ExitControls::LOAD_PAT) {
        core.msrs.pat = get(Field::HostPat);
    }
    if controls.contains(ExitControls::LOAD_CET_STATE) {
        core.msrs.s_cet = get(Field::HostSCet);
        core.ssp = get(Field::HostSsp);
        core.msrs.interrupt_ssp_table = get(Field::HostInterruptSspTable);
    }
    if controls.contains(ExitControls::LOAD_PKRS) {
        core.msrs.pkrs = get(Field::HostPkrs);
    }
}

/// A PAE host's PDPTEs come from memory; a bad one is a VMX abort (SDM 3C 27.5.4, 27.7).
fn pdptes(core: &Core, ground: &mut Ground) -> Result<Result<[u64; 4], Abort>, SimError> {
    match pdpte::load(core.maxphyaddr, &Regime::default(), ground, core.cr3) {
        Ok(pdptes) => Ok(Ok(pdptes)),
        Err(Fault::Sim(error)) => Err(error),
        Err(Fault::Exception(_) | Fault::Stage(_) | Fault::Exited) => Ok(Err(Abort::HostPdpte)),
    }
}

/// Segment registers of the host: selectors from the VMCS, hidden parts fixed (SDM 3C 27.5.2).
fn load_segments(core: &mut Core, ground: &Ground, region: Region, long: bool) {
    let get = |field| region.get(ground, field);
    let data = |field| {
        let selector = get(field) as u16;
        let rights = if selector == 0 { Rights::UNUSABLE } else { Rights::DATA };
        Segment::flat(selector, rights)
    };
    let segments = &mut core.segments;
    segments.cs = Segment::flat(get(Field::HostCsSelector) as u16, if long { Rights::CODE64 } else { Rights::CODE32 });
    segments.ss = Segment::flat(get(Field::HostSsSelector) as u16, Rights::DATA);
    segments.ds = data(Field::HostDsSelector);
    segments.es = data(Field::HostEsSelector);
    segments.fs = Segment { base: get(Field::HostFsBase), ..data(Field::HostFsSelector) };
    segments.gs = Segment { base: get(Field::HostGsBase), ..data(Field::HostGsSelector) };
    segments.ldtr = Segment { rights: Rights::UNUSABLE, ..Segment::default() };
    segments.tr = Segment {
        selector: get(Field::HostTrSelector) as u16,
        base: get(Field::HostTrBase),
        limit: 0x67,
        rights: Rights::BUSY_TSS,
    };
    core.gdtr = TableRegister { base: get(Field::HostGdtrBase), limit: 0xffff };
    core.idtr = TableRegister { base: get(Field::HostIdtrBase), limit: 0xffff };
}
