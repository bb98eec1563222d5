//! VM-exit (SDM 3C chapter 27): exit information, the save of guest state, the load of host state.
//!
//! Left out: VM-exit MSR areas, VMX abort, IDT-vectoring information of events that were not injected.

pub mod reason;

use crate::controls::{EntryControls, ExitControls, SecondaryProc};
use crate::invalidate::flush_untagged;
use crate::unit::{GuestMode, Operation, Vmx};
use crate::vmcs::segment::SegmentName;
use crate::vmcs::{Field, Region};
use cpu::paging::pdpte;
use cpu::virt::Regime;
use cpu::{Activity, Core, Fault, Gpr};
use reason::{ENTRY_FAILURE, ExitReason};
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::exception::Exception;
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::{Gpa, Ground, Gva, SimError};

/// CR0 bits that VM-entry and VM-exit leave alone: ET, NW, CD and the reserved ones (SDM 3C 26.3.2.1, 27.5.1).
pub(crate) const KEPT_CR0: u64 = 0xffff_ffff_7ffa_ffd0;

/// What RFLAGS.RF is in the saved guest state (SDM 3C 27.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResumeFlag {
    /// 0: the exit is due to an instruction.
    Clear,
    /// 1: the instruction is to be run again after a fault.
    Set,
    /// As it was.
    Kept,
}

/// A VM-exit about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) reason: ExitReason,
    pub(crate) qualification: u64,
    pub(crate) interruption: Option<Interruption>,
    pub(crate) length: u8,
    pub(crate) guest_physical: Option<Gpa>,
    pub(crate) linear: Option<Gva>,
    pub(crate) resume_flag: ResumeFlag,
}

/// The event that caused a VM-exit, as the interruption-information and error-code fields show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interruption {
    pub(crate) information: u32,
    pub(crate) error: u32,
}

impl Exit {
    /// An exit with a reason alone.
    pub(crate) const fn plain(reason: ExitReason) -> Self {
        Self {
            reason,
            qualification: 0,
            interruption: None,
            length: 0,
            guest_physical: None,
            linear: None,
            resume_flag: ResumeFlag::Kept,
        }
    }

    /// An exit due to an instruction of this length.
    pub(crate) const fn instruction(reason: ExitReason, length: u8) -> Self {
        Self { length, resume_flag: ResumeFlag::Clear, ..Self::plain(reason) }
    }

    /// The same with a qualification.
    pub(crate) const fn qualified(self, qualification: u64) -> Self {
        Self { qualification, ..self }
    }
}

impl Interruption {
    /// An exception (SDM 3C table 24-17): type 6 for #BP and #OF, else 3. In real-address mode there are no error
    /// codes.
    pub(crate) fn of(exception: &Exception, cr0: Cr0) -> Self {
        use crate::checks::controls::kind;
        use sim_core::arch::exception::Vector;
        let kind = match exception.vector {
            Vector::Breakpoint | Vector::Overflow => kind::SOFTWARE_EXCEPTION,
            _ => kind::HARDWARE_EXCEPTION,
        };
        let error = exception.error.filter(|_| cr0.contains(Cr0::PE));
        let valid_error = u32::from(error.is_some()) << 11;
        let information = u32::from(exception.vector.number()) | u32::from(kind) << 8 | valid_error | 1 << 31;
        Self { information, error: error.unwrap_or(0) }
    }
}

impl Vmx {
    /// Performs a VM-exit from the running guest.
    pub(crate) fn leave(&mut self, core: &mut Core, ground: &mut Ground, exit: Exit) -> Result<(), SimError> {
        let Some(region) = self.guest_region() else {
            return Err(SimError::internal("VM-exit outside VMX non-root operation"));
        };
        let vectoring = self.delivering.take().map(|event| Interruption::of(&event, core.cr0));
        let controls = ExitControls::from_bits_retain(region.get(ground, Field::ExitControls) as u32);
        record(ground, region, &exit, vectoring);
        save(core, ground, region, controls, exit.resume_flag);
        self.store_mode(core, ground, region);
        for (count, what) in
            [(Field::ExitMsrStoreCount, "VM-exit MSR-store area"), (Field::ExitMsrLoadCount, "VM-exit MSR-load area")]
        {
            if region.get(ground, count) != 0 {
                return Err(SimError::unmodelled(what));
            }
        }
        self.exiting = None;
        self.return_to_host(core, ground, region, exit.reason, exit.qualification)
    }

    /// Ends an entry that failed on guest state or MSRs (SDM 3C 26.8): nothing is saved, host state is loaded.
    pub(crate) fn refuse(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        region: Region,
        reason: ExitReason,
        qualification: u64,
    ) -> Result<(), SimError> {
        region.set(ground, Field::ExitReason, u64::from(ENTRY_FAILURE) | u64::from(reason.number()));
        region.set(ground, Field::ExitQualification, qualification);
        if region.get(ground, Field::ExitMsrLoadCount) != 0 {
            return Err(SimError::unmodelled("VM-exit MSR-load area"));
        }
        self.exiting = None;
        self.return_to_host(core, ground, region, reason, qualification)
    }

    /// What depends on the execution controls: the PDPTE fields (SDM 3C 27.3.4), and "IA-32e mode guest" as the guest
    /// left it (SDM 3C 27.2.1).
    fn store_mode(&self, core: &Core, ground: &mut Ground, region: Region) {
        let has_ept = self.guest.regime.tag.ept_root.is_some();
        if has_ept && core.paging_mode() == PagingMode::Pae {
            for (field, pdpte) in Field::PDPTES.into_iter().zip(core.pdptes) {
                region.set(ground, field, pdpte);
            }
        }
        if self.capabilities.offers(SecondaryProc::UNRESTRICTED_GUEST) {
            let mut entry = EntryControls::from_bits_retain(region.get(ground, Field::EntryControls) as u32);
            entry.set(EntryControls::IA32E_MODE_GUEST, core.efer.contains(Efer::LMA));
            region.set(ground, Field::EntryControls, entry.bits().into());
        }
    }

    fn return_to_host(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        region: Region,
        reason: ExitReason,
        qualification: u64,
    ) -> Result<(), SimError> {
        load_host(core, ground, region)?;
        self.operation = Operation::Root;
        let event = Event::VmExit {
            extension: Extension::Vmx,
            region: region.0,
            reason: reason.number().into(),
            name: reason.name(),
            qualification,
        };
        ground.spend(Cost::VmExit, event);
        flush_untagged(core, ground, region);
        self.guest = GuestMode::default();
        Ok(())
    }
}

/// Writes the VM-exit information fields (SDM 3C 27.2), and marks the injected event as done.
fn record(ground: &mut Ground, region: Region, exit: &Exit, vectoring: Option<Interruption>) {
    let interruption = exit.interruption.unwrap_or(Interruption { information: 0, error: 0 });
    // A double fault or triple fault is not taken to be during the delivery of the first event (SDM 3C 27.2.4).
    let is_double = exit.reason == ExitReason::TripleFault || interruption.information & 0xff == 8;
    let vectoring = vectoring.filter(|_| !is_double).unwrap_or(Interruption { information: 0, error: 0 });
    let entry_event = region.get(ground, Field::EntryInterruptionInformation) & !(1 << 31);
    for (field, value) in [
        (Field::ExitReason, exit.reason.number().into()),
        (Field::ExitQualification, exit.qualification),
        (Field::ExitInterruptionInformation, interruption.information.into()),
        (Field::ExitInterruptionErrorCode, interruption.error.into()),
        (Field::IdtVectoringInformation, vectoring.information.into()),
        (Field::IdtVectoringErrorCode, vectoring.error.into()),
        (Field::ExitInstructionLength, exit.length.into()),
        (Field::ExitInstructionInformation, 0),
        (Field::EntryInterruptionInformation, entry_event),
    ] {
        region.set(ground, field, value);
    }
    if let Some(gpa) = exit.guest_physical {
        region.set(ground, Field::GuestPhysicalAddress, gpa.0);
    }
    if let Some(gva) = exit.linear {
        region.set(ground, Field::GuestLinearAddress, gva.0);
    }
}

/// Saves the guest-state area (SDM 3C 27.3).
fn save(core: &Core, ground: &mut Ground, region: Region, controls: ExitControls, resume_flag: ResumeFlag) {
    let mut rflags = core.rflags;
    match resume_flag {
        ResumeFlag::Clear => rflags.remove(Rflags::RF),
        ResumeFlag::Set => rflags.insert(Rflags::RF),
        ResumeFlag::Kept => {}
    }
    for (field, value) in [
        (Field::GuestCr0, core.cr0.bits()),
        (Field::GuestCr3, core.cr3),
        (Field::GuestCr4, core.cr4.bits()),
        (Field::GuestSysenterCs, core.msrs.sysenter_cs),
        (Field::GuestSysenterEsp, core.msrs.sysenter_esp),
        (Field::GuestSysenterEip, core.msrs.sysenter_eip),
        (Field::GuestGdtrBase, core.gdtr.base),
        (Field::GuestGdtrLimit, core.gdtr.limit.into()),
        (Field::GuestIdtrBase, core.idtr.base),
        (Field::GuestIdtrLimit, core.idtr.limit.into()),
        (Field::GuestRsp, core.gpr(Gpr::Rsp)),
        (Field::GuestRip, core.rip),
        (Field::GuestRflags, rflags.bits()),
        (Field::GuestActivity, u64::from(core.activity as u8)),
        (Field::GuestInterruptibility, 0),
        (Field::GuestPendingDebug, 0),
    ] {
        region.set(ground, field, value);
    }
    for (control, field, value) in [
        (ExitControls::SAVE_DEBUG_CONTROLS, Field::GuestDr7, core.dr7),
        (ExitControls::SAVE_PAT, Field::GuestPat, core.msrs.pat),
        (ExitControls::SAVE_EFER, Field::GuestEfer, core.efer.bits()),
    ] {
        if controls.contains(control) {
            region.set(ground, field, value);
        }
    }
    for name in SegmentName::ALL {
        name.save(region, ground, name.of(&core.segments));
    }
}

/// Loads the host-state area (SDM 3C 27.5).
fn load_host(core: &mut Core, ground: &mut Ground, region: Region) -> Result<(), SimError> {
    let get = |field| region.get(ground, field);
    let controls = ExitControls::from_bits_retain(get(Field::ExitControls) as u32);
    let long = controls.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    core.cr0 = Cr0::from_bits_retain(core.cr0.bits() & KEPT_CR0 | get(Field::HostCr0) & !KEPT_CR0);
    core.cr3 = get(Field::HostCr3);
    core.cr4 = Cr4::from_bits_retain(get(Field::HostCr4));
    match long {
        true => core.cr4.insert(Cr4::PAE),
        false => core.cr4.remove(Cr4::PCIDE),
    }
    core.dr7 = 0x400;
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
    load_host_segments(core, ground, region, long);
    core.set_gpr(Gpr::Rsp, get(Field::HostRsp));
    core.rip = get(Field::HostRip);
    core.rflags = Rflags::FIXED;
    core.activity = Activity::Active;
    if core.paging_mode() == PagingMode::Pae {
        core.pdptes = load_host_pdptes(core, ground)?;
    }
    Ok(())
}

/// A PAE host's PDPTEs come from memory; a bad one is a VMX abort (SDM 3C 27.5.4, 27.7).
fn load_host_pdptes(core: &Core, ground: &mut Ground) -> Result<[u64; 4], SimError> {
    pdpte::load(core.maxphyaddr, &Regime::default(), ground, core.cr3).map_err(|fault| match fault {
        Fault::Sim(error) => error,
        Fault::Exception(_) | Fault::Stage(_) | Fault::Exited => {
            SimError::unmodelled("VMX abort: host PDPTE with reserved bits")
        }
    })
}

/// Segment registers of the host: selectors from the VMCS, hidden parts fixed (SDM 3C 27.5.2).
fn load_host_segments(core: &mut Core, ground: &Ground, region: Region, long: bool) {
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
