//! VM-exit (SDM 3C chapter 27): what an exit is, and its steps: information, guest state, MSR-store area, host state,
//! MSR-load area.

pub mod abort;
mod host;
pub mod reason;
mod save;

use crate::capability::offered::misc;
use crate::controls::EntryControls;
use crate::guest::{GuestMode, NmiMode};
use crate::invalidate::flush_untagged;
use crate::msr;
use crate::unit::{Operation, Vmx};
use crate::vmcs::{Field, Region};
use abort::Abort;
use cpu::virt::{Delivery, EventKind};
use cpu::{Blocking, Core};
use reason::{ENTRY_FAILURE, ExitReason};
use sim_core::arch::control::{Efer, PagingMode};
use sim_core::arch::exception::Vector;
use sim_core::arch::extension::Extension;
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::{Gpa, Ground, Gva, Hpa, SimError};

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
    /// 1 for an access to memory by an instruction; by the delivery of an event, what the event would push.
    OfAccess,
}

/// What becomes of pending debug exceptions (SDM 3C 27.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingDebug {
    /// They are saved.
    Kept,
    /// They are saved only while blocked by MOV SS.
    Cleared,
}

/// A VM-exit about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) reason: ExitReason,
    pub(crate) qualification: u64,
    pub(crate) interruption: Option<Interruption>,
    pub(crate) length: u8,
    pub(crate) information: u32,
    pub(crate) guest_physical: Option<Gpa>,
    pub(crate) linear: Option<Gva>,
    pub(crate) resume_flag: ResumeFlag,
    pub(crate) debug: PendingDebug,
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
            information: 0,
            guest_physical: None,
            linear: None,
            resume_flag: ResumeFlag::Kept,
            debug: PendingDebug::Cleared,
        }
    }

    /// An exit due to an instruction of this length.
    pub(crate) const fn instruction(reason: ExitReason, length: u8) -> Self {
        Self { length, resume_flag: ResumeFlag::Clear, ..Self::plain(reason) }
    }

    /// An exit between two instructions that comes before pending debug exceptions.
    pub(crate) const fn before_debug(reason: ExitReason) -> Self {
        Self { debug: PendingDebug::Kept, ..Self::plain(reason) }
    }

    /// The same with a qualification.
    pub(crate) const fn qualified(self, qualification: u64) -> Self {
        Self { qualification, ..self }
    }

    /// The same with instruction information.
    pub(crate) const fn informed(self, information: u32) -> Self {
        Self { information, ..self }
    }

    /// Whether a debug exception caused it.
    fn is_debug(&self) -> bool {
        let vector = u32::from(Vector::Debug.number());
        self.reason == ExitReason::ExceptionOrNmi
            && self.interruption.is_some_and(|event| event.information & 0xff == vector)
    }

    /// Whether an NMI caused it.
    fn is_nmi(&self) -> bool {
        self.reason == ExitReason::ExceptionOrNmi
            && self.interruption.is_some_and(|event| event.information >> 8 & 7 == EventKind::Nmi as u32)
    }
}

impl Interruption {
    const VALID: u32 = 1 << 31;

    /// An event of this kind (SDM 3C table 24-17).
    pub(crate) fn new(vector: u8, kind: EventKind, error: Option<u32>) -> Self {
        let valid_error = u32::from(error.is_some()) << 11;
        let information = u32::from(vector) | (kind as u32) << 8 | valid_error | Self::VALID;
        Self { information, error: error.unwrap_or(0) }
    }

    /// An event on its way through the IDT.
    fn of_delivery(event: &Delivery) -> Self {
        Self::new(event.vector, event.kind, event.error)
    }
}

impl Vmx {
    /// Performs a VM-exit from the running guest.
    pub(crate) fn leave(&mut self, core: &mut Core, ground: &mut Ground, exit: Exit) -> Result<(), SimError> {
        let Some(region) = self.guest_region() else {
            return Err(SimError::internal("VM-exit outside VMX non-root operation"));
        };
        let delivering = core.delivering.take();
        save::record(ground, region, &exit, delivering.as_ref());
        self.save(core, ground, region, &exit, delivering.as_ref());
        self.store_mode(core, ground, region);
        self.exiting = None;
        if self.guest.nmi_mode() == NmiMode::Kept {
            core.blocking.set(Blocking::NMI, self.guest.nmi.blocked);
        }
        if exit.is_nmi() {
            core.blocking.insert(Blocking::NMI);
        }
        let area = Hpa(region.get(ground, Field::ExitMsrStoreAddress));
        let count = region.get(ground, Field::ExitMsrStoreCount);
        if msr::store(core, ground, area, count).is_some() {
            self.abort(core, ground, region, Abort::GuestMsrStore);
            return Ok(());
        }
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
        self.exiting = None;
        self.return_to_host(core, ground, region, reason, qualification)
    }

    /// Whether what bit 3 of the interruptibility state tells is in force: blocking by NMI, of the processor or virtual.
    pub(crate) fn is_nmi_blocked(&self, core: &Core) -> bool {
        match self.guest.nmi_mode() {
            NmiMode::Ordinary => core.blocking.contains(Blocking::NMI),
            NmiMode::Kept | NmiMode::Virtual => self.guest.nmi.blocked,
        }
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
        if self.capabilities.misc & misc::STORES_LMA != 0 {
            let mut entry = EntryControls::from_bits_retain(region.get(ground, Field::EntryControls) as u32);
            entry.set(EntryControls::IA32E_MODE_GUEST, core.efer.contains(Efer::LMA));
            region.set(ground, Field::EntryControls, entry.bits().into());
        }
    }

    /// Host state, MSR-load area, and the flush rules.
    fn return_to_host(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        region: Region,
        reason: ExitReason,
        qualification: u64,
    ) -> Result<(), SimError> {
        let loaded = host::load(core, ground, region)?;
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
        let area = Hpa(region.get(ground, Field::ExitMsrLoadAddress));
        let count = region.get(ground, Field::ExitMsrLoadCount);
        match loaded {
            Err(abort) => self.abort(core, ground, region, abort),
            Ok(()) if msr::load(msr::EXIT_LOAD, core, ground, area, count).is_some() => {
                self.abort(core, ground, region, Abort::HostMsrLoad);
            }
            Ok(()) => {}
        }
        Ok(())
    }
}
