//! What a VM-exit writes to the VMCS: exit information (SDM 3C 27.2) and guest state (27.3).

use super::{Exit, Interruption, PendingDebug, ResumeFlag};
use crate::controls::{EntryControls, ExitControls};
use crate::exit::reason::ExitReason;
use crate::unit::Vmx;
use crate::vmcs::segment::SegmentName;
use crate::vmcs::{Field, Region};
use cpu::virt::{Delivery, EventKind};
use cpu::{Blocking, Core, Gpr};
use sim_core::Ground;
use sim_core::arch::rflags::Rflags;

/// The blocking bits of the interruptibility state that the processor has itself.
const BLOCKING: Blocking = Blocking::STI.union(Blocking::MOV_SS).union(Blocking::SMI);

/// Writes the VM-exit information fields, and marks the injected event as done.
pub(super) fn record(ground: &mut Ground, region: Region, exit: &Exit, delivering: Option<&Delivery>) {
    let none = Interruption { information: 0, error: 0 };
    let interruption = exit.interruption.unwrap_or(none);
    // A double fault or triple fault is not taken to be during the delivery of the first event (SDM 3C 27.2.4).
    let is_double = exit.reason == ExitReason::TripleFault || interruption.information & 0xff == 8;
    let vectoring = delivering.filter(|_| !is_double).map_or(none, Interruption::of_delivery);
    let length = match delivering {
        Some(event) if exit.length == 0 && is_software(event) => event.length,
        _ => exit.length,
    };
    let entry_event = region.get(ground, Field::EntryInterruptionInformation) & !(1 << 31);
    for (field, value) in [
        (Field::ExitReason, exit.reason.number().into()),
        (Field::ExitQualification, exit.qualification),
        (Field::ExitInterruptionInformation, interruption.information.into()),
        (Field::ExitInterruptionErrorCode, interruption.error.into()),
        (Field::IdtVectoringInformation, vectoring.information.into()),
        (Field::IdtVectoringErrorCode, vectoring.error.into()),
        (Field::ExitInstructionLength, length.into()),
        (Field::ExitInstructionInformation, exit.information.into()),
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

/// Whether an event is an instruction's own.
const fn is_software(event: &Delivery) -> bool {
    matches!(
        event.kind,
        EventKind::SoftwareInterrupt | EventKind::PrivilegedSoftwareException | EventKind::SoftwareException
    )
}

/// RFLAGS as saved (SDM 3C 27.3.3): an exit during the delivery of an event saves what the event would have pushed.
fn rflags(core: &Core, resume_flag: ResumeFlag, delivering: Option<&Delivery>) -> Rflags {
    let effective = match (resume_flag, delivering) {
        (ResumeFlag::OfAccess, None) => ResumeFlag::Set,
        (ResumeFlag::OfAccess, Some(event)) if event.kind == EventKind::HardwareException => ResumeFlag::Set,
        (ResumeFlag::OfAccess, Some(_)) => ResumeFlag::Kept,
        (other, _) => other,
    };
    match effective {
        ResumeFlag::Clear => core.rflags.difference(Rflags::RF),
        ResumeFlag::Set => core.rflags.union(Rflags::RF),
        ResumeFlag::Kept | ResumeFlag::OfAccess => core.rflags,
    }
}

impl Vmx {
    /// Saves the guest-state area.
    pub(super) fn save(
        &self,
        core: &Core,
        ground: &mut Ground,
        region: Region,
        exit: &Exit,
        delivering: Option<&Delivery>,
    ) {
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
            (Field::GuestRflags, rflags(core, exit.resume_flag, delivering).bits()),
            (Field::GuestActivity, u64::from(core.activity as u8)),
            (Field::GuestInterruptibility, self.interruptibility(core).bits().into()),
            (Field::GuestPendingDebug, pending_debug(core, exit)),
        ] {
            region.set(ground, field, value);
        }
        for name in SegmentName::ALL {
            name.save(region, ground, name.of(&core.segments));
        }
        self.save_by_controls(core, ground, region);
    }

    /// What the VM-exit controls, and the controls that the processor has, select (SDM 3C 27.3.1).
    fn save_by_controls(&self, core: &Core, ground: &mut Ground, region: Region) {
        let controls = ExitControls::from_bits_retain(region.get(ground, Field::ExitControls) as u32);
        let remaining = self.guest.timer.map_or(0, |timer| timer.remaining(ground));
        let selected = |control| controls.contains(control);
        let has = |control: EntryControls| self.capabilities.offers(control);
        let (debug, cet) = (selected(ExitControls::SAVE_DEBUG_CONTROLS), has(EntryControls::LOAD_CET_STATE));
        for (is_saved, field, value) in [
            (debug, Field::GuestDr7, core.dr7),
            (debug, Field::GuestDebugctl, core.msrs.debugctl),
            (selected(ExitControls::SAVE_PAT), Field::GuestPat, core.msrs.pat),
            (selected(ExitControls::SAVE_EFER), Field::GuestEfer, core.efer.bits()),
            (selected(ExitControls::SAVE_PREEMPTION_TIMER), Field::PreemptionTimer, remaining),
            (cet, Field::GuestSCet, core.msrs.s_cet),
            (cet, Field::GuestSsp, core.ssp),
            (cet, Field::GuestInterruptSspTable, core.msrs.interrupt_ssp_table),
            (has(EntryControls::LOAD_PKRS), Field::GuestPkrs, core.msrs.pkrs),
        ] {
            if is_saved {
                region.set(ground, field, value);
            }
        }
    }

    /// The interruptibility state (SDM 3C 27.3.4): bit 3 is about virtual NMIs where there are any.
    fn interruptibility(&self, core: &Core) -> Blocking {
        let mut blocking = core.blocking.intersection(BLOCKING);
        blocking.set(Blocking::NMI, self.is_nmi_blocked(core));
        blocking
    }
}

/// Pending debug exceptions are saved only where the VM-exit comes before they could be delivered (SDM 3C 27.3.4).
fn pending_debug(core: &Core, exit: &Exit) -> u64 {
    match exit.debug {
        PendingDebug::Kept => core.pending_debug,
        PendingDebug::Cleared if core.blocking.contains(Blocking::MOV_SS) && !exit.is_debug() => core.pending_debug,
        PendingDebug::Cleared => 0,
    }
}
