//! VM-entry (SDM 3C chapter 26): the checks, the load of guest state, the MSR-load area, and event injection.
//!
//! Left out: injection of anything but hardware exceptions, pending debug exceptions, blocking by STI and MOV SS,
//! IA32_DEBUGCTL (checked, not loaded).

use crate::checks::controls::{EntryEvent, kind};
use crate::checks::guest::QUALIFICATION_PDPTE;
use crate::checks::{self, Check, View, first_broken, is_efer, is_pat};
use crate::controls::{EntryControls, SecondaryProc};
use crate::error::{InstructionError, VmFail};
use crate::exit::KEPT_CR0;
use crate::exit::reason::ExitReason;
use crate::invalidate::flush_untagged;
use crate::unit::{GuestMode, Operation, Vmx, show};
use crate::vmcs::segment::SegmentName;
use crate::vmcs::{Field, LaunchState, Region};
use cpu::exception::deliver_injected;
use cpu::paging::pdpte;
use cpu::virt::{EptControls, Regime, SecondStage, Tag};
use cpu::{Activity, Core, Fault};
use serde::{Deserialize, Serialize};
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::extension::Extension;
use sim_core::arch::msr;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::TableRegister;
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::{Ground, Gva, Hpa, SimError};

/// Which instruction enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Entry {
    /// VMLAUNCH.
    Launch,
    /// VMRESUME.
    Resume,
}

/// How an attempt to enter ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Entered {
    /// The guest was entered. Delivery of an injected event may already have left it again: see [`Vmx::operation`].
    Guest,
    /// VMfail: still in root operation, the core unchanged but for RFLAGS.
    Failed(VmFail),
    /// VM-entry failure, exit reason 33 or 34: host state is loaded, exit information is in the VMCS.
    Refused,
}

/// A VM-entry failure after the controls and the host state were found valid (SDM 3C 26.8).
struct Refusal {
    reason: ExitReason,
    qualification: u64,
}

impl Vmx {
    /// VMLAUNCH or VMRESUME.
    ///
    /// # Errors
    /// If the entry needs something that is not modelled, or the processor is not in root operation.
    pub fn enter(&mut self, core: &mut Core, ground: &mut Ground, how: Entry) -> Result<Entered, SimError> {
        if self.operation != Operation::Root {
            return Err(SimError::internal("VM-entry outside VMX root operation"));
        }
        let Some(region) = self.current.map(Region) else {
            let _ = show::<()>(core, Err(VmFail::Invalid));
            return Ok(Entered::Failed(VmFail::Invalid));
        };
        if let Some(error) = self.entry_error(core, ground, region, how) {
            ground.charge(Cost::VmEntry);
            let fail = self.vmfail(ground, error);
            let _ = show::<()>(core, Err(fail));
            return Ok(Entered::Failed(fail));
        }
        match self.load(core, ground, region)? {
            Some(refusal) => {
                ground.charge(Cost::VmEntry);
                self.refuse(core, ground, region, refusal.reason, refusal.qualification)?;
                Ok(Entered::Refused)
            }
            None => {
                self.begin(core, ground, region, how)?;
                Ok(Entered::Guest)
            }
        }
    }

    /// The check that an entry would fail now, if any. For diagnostics: hardware tells only the error number.
    #[must_use]
    pub fn explain(&self, core: &Core, ground: &Ground) -> Option<&'static Check> {
        let view = View { ground, region: Region(self.current?), capabilities: &self.capabilities, core };
        [checks::controls::TABLE, checks::host::TABLE, checks::guest::TABLE]
            .into_iter()
            .find_map(|table| first_broken(table, &view))
    }

    /// What fails before any state is loaded (SDM 3C 26.1, 26.2).
    fn entry_error(&self, core: &Core, ground: &Ground, region: Region, how: Entry) -> Option<InstructionError> {
        match (how, region.launch_state(ground)) {
            (Entry::Launch, LaunchState::Launched) => return Some(InstructionError::VmlaunchNotClear),
            (Entry::Resume, LaunchState::Clear) => return Some(InstructionError::VmresumeNotLaunched),
            _ => {}
        }
        let view = View { ground, region, capabilities: &self.capabilities, core };
        if first_broken(checks::controls::TABLE, &view).is_some() {
            Some(InstructionError::EntryControls)
        } else if first_broken(checks::host::TABLE, &view).is_some() {
            Some(InstructionError::EntryHostState)
        } else {
            None
        }
    }

    /// Checks and loads guest state; the core changes only if the checks pass.
    fn load(&mut self, core: &mut Core, ground: &mut Ground, region: Region) -> Result<Option<Refusal>, SimError> {
        let view = View { ground, region, capabilities: &self.capabilities, core };
        let guest_state = |qualification| Some(Refusal { reason: ExitReason::EntryGuestState, qualification });
        if let Some(broken) = first_broken(checks::guest::TABLE, &view) {
            return Ok(guest_state(broken.qualification));
        }
        let mode = guest_mode(&view);
        let entry = view.entry();
        let pae = view.guest_pae();
        let cr3 = view.get(Field::GuestCr3);
        let pdptes = match (pae, mode.regime.second) {
            (false, _) => core.pdptes,
            (true, SecondStage::None) => match pdpte::load(core.maxphyaddr, &mode.regime, ground, cr3) {
                Ok(pdptes) => pdptes,
                Err(Fault::Exception(_)) => return Ok(guest_state(QUALIFICATION_PDPTE)),
                Err(Fault::Sim(error)) => return Err(error),
                Err(Fault::Stage(_) | Fault::Exited) => return Err(SimError::internal("PDPTE load without EPT")),
            },
            (true, _) => Field::PDPTES.map(|field| region.get(ground, field)),
        };
        load_registers(core, ground, region, entry);
        core.pdptes = pdptes;
        self.guest = mode;
        Ok(load_msrs(core, ground, region)
            .map(|number| Refusal { reason: ExitReason::EntryMsrLoading, qualification: number }))
    }

    /// The guest is loaded: from here on it runs (SDM 3C 26.4 to 26.6).
    fn begin(&mut self, core: &mut Core, ground: &mut Ground, region: Region, how: Entry) -> Result<(), SimError> {
        self.operation = Operation::NonRoot;
        self.exiting = None;
        if how == Entry::Launch {
            region.set_launch_state(ground, LaunchState::Launched);
        }
        let root = self.guest.regime.tag.ept_root.unwrap_or(Hpa(core.cr3));
        ground.spend(Cost::VmEntry, Event::VmEntry { extension: Extension::Vmx, region: region.0, root });
        flush_untagged(core, ground, region);
        match EntryEvent::decode(region.get(ground, Field::EntryInterruptionInformation) as u32) {
            None => Ok(()),
            Some(event) => {
                let error = region.get(ground, Field::EntryExceptionErrorCode) as u32;
                self.inject(core, ground, event, error)
            }
        }
    }

    /// Event injection (SDM 3C 26.6). An injected exception is not subject to the exception bitmap, and an injected
    /// page fault does not change CR2.
    fn inject(&mut self, core: &mut Core, ground: &mut Ground, event: EntryEvent, error: u32) -> Result<(), SimError> {
        let vector = match (event.kind, Vector::from_number(event.vector)) {
            (kind::HARDWARE_EXCEPTION, Some(vector)) => vector,
            (kind::HARDWARE_EXCEPTION, None) => {
                return Err(SimError::unmodelled(format!("injection of exception vector {}", event.vector)));
            }
            (other, _) => return Err(SimError::unmodelled(format!("injection of interruption type {other}"))),
        };
        let exception = Exception { vector, error: event.has_error.then_some(error), cr2: None };
        core.activity = Activity::Active;
        self.delivering = Some(exception);
        let delivered = deliver_injected(core, self, ground, exception);
        self.delivering = None;
        delivered.map(|_| ())
    }
}

/// The regime and mode that the controls select.
fn guest_mode(view: &View<'_>) -> GuestMode {
    let secondary = view.secondary();
    let context = if secondary.contains(SecondaryProc::ENABLE_VPID) { view.get(Field::Vpid) as u32 } else { 0 };
    let (ept_root, second) = if secondary.contains(SecondaryProc::ENABLE_EPT) {
        let eptp = view.get(Field::EptPointer);
        (Some(Hpa(eptp & ENTRY_FRAME_MASK)), SecondStage::Ept { eptp, controls: EptControls::default() })
    } else {
        (None, SecondStage::None)
    };
    GuestMode { regime: Regime { tag: Tag { context, ept_root }, second }, unrestricted: view.unrestricted() }
}

/// Loads the guest-state area (SDM 3C 26.3.2).
fn load_registers(core: &mut Core, ground: &Ground, region: Region, entry: EntryControls) {
    let get = |field| region.get(ground, field);
    let cr0 = get(Field::GuestCr0);
    core.cr0 = Cr0::from_bits_retain(core.cr0.bits() & KEPT_CR0 | cr0 & !KEPT_CR0);
    core.cr3 = get(Field::GuestCr3);
    core.cr4 = Cr4::from_bits_retain(get(Field::GuestCr4));
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
    }
    core.msrs.sysenter_cs = get(Field::GuestSysenterCs);
    core.msrs.sysenter_esp = get(Field::GuestSysenterEsp);
    core.msrs.sysenter_eip = get(Field::GuestSysenterEip);
    for name in SegmentName::ALL {
        *name.of_mut(&mut core.segments) = name.load(region, ground);
    }
    core.gdtr = TableRegister { base: get(Field::GuestGdtrBase), limit: get(Field::GuestGdtrLimit) as u16 };
    core.idtr = TableRegister { base: get(Field::GuestIdtrBase), limit: get(Field::GuestIdtrLimit) as u16 };
    core.set_gpr(cpu::Gpr::Rsp, get(Field::GuestRsp));
    core.rip = get(Field::GuestRip);
    core.rflags = Rflags::from_bits_retain(get(Field::GuestRflags));
    core.activity = if get(Field::GuestActivity) == 1 { Activity::Halted } else { Activity::Active };
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

/// Loads the VM-entry MSR-load area; the number of the first entry that fails, from 1 (SDM 3C 26.4).
fn load_msrs(core: &mut Core, ground: &Ground, region: Region) -> Option<u64> {
    let count = region.get(ground, Field::EntryMsrLoadCount);
    let area = Hpa(region.get(ground, Field::EntryMsrLoadAddress));
    (1..=count).find(|number| {
        let at = area.offset((number - 1).wrapping_mul(16));
        let word = ground.mem.read_u64(at);
        word >> 32 != 0 || load_msr(core, word as u32, ground.mem.read_u64(at.offset(8))).is_none()
    })
}

/// Loads one MSR as WRMSR would at privilege level 0; none where WRMSR would fault, and for the MSRs that may not be in
/// the area: FS and GS base (SDM 3C 26.4).
fn load_msr(core: &mut Core, index: u32, value: u64) -> Option<()> {
    let canonical = Gva(value).is_canonical(core.linear_width());
    let register = match index {
        msr::EFER => return load_efer(core, value),
        msr::PAT if is_pat(value) => &mut core.msrs.pat,
        msr::STAR => &mut core.msrs.star,
        msr::LSTAR if canonical => &mut core.msrs.lstar,
        msr::CSTAR if canonical => &mut core.msrs.cstar,
        msr::FMASK if value >> 32 == 0 => &mut core.msrs.fmask,
        msr::KERNEL_GS_BASE if canonical => &mut core.msrs.kernel_gs_base,
        msr::SYSENTER_CS => &mut core.msrs.sysenter_cs,
        msr::SYSENTER_ESP if canonical => &mut core.msrs.sysenter_esp,
        msr::SYSENTER_EIP if canonical => &mut core.msrs.sysenter_eip,
        _ => return None,
    };
    *register = value;
    Some(())
}

/// WRMSR of EFER keeps LMA, and faults on a change of LME under paging (SDM 3A 9.8.5).
fn load_efer(core: &mut Core, value: u64) -> Option<()> {
    let new = Efer::from_bits_retain(value);
    let changes_lme = (new ^ core.efer).contains(Efer::LME);
    if !is_efer(value) || (core.paging_mode() != PagingMode::Off && changes_lme) {
        return None;
    }
    core.efer = new.difference(Efer::LMA) | core.efer.intersection(Efer::LMA);
    Some(())
}
