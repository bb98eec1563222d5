//! Event injection (SDM 3C 26.6): an event of any kind goes through the guest's IDT, or is a pending monitor-trap-flag
//! VM-exit. An injected exception is not subject to the exception bitmap, and an injected page fault does not change CR2.

use crate::checks::event::EntryEvent;
use crate::controls::PrimaryProc;
use crate::guest::{NmiMode, PendingExits};
use crate::unit::{Operation, Vmx};
use crate::vmcs::{Field, Region};
use cpu::core::Passed;
use cpu::exception::inject;
use cpu::virt::{Delivery, EventKind};
use cpu::{Activity, Blocking, Core};
use sim_core::{Ground, SimError};

impl Vmx {
    /// Delivers the event that the VMCS asks for, if it asks for one.
    pub(super) fn inject(&mut self, core: &mut Core, ground: &mut Ground, region: Region) -> Result<(), SimError> {
        let word = region.get(ground, Field::EntryInterruptionInformation) as u32;
        let Some(event) = EntryEvent::decode(word) else { return Ok(()) };
        let Some(kind) = event.event_kind() else {
            self.guest.pending.insert(PendingExits::MONITOR_TRAP_FLAG);
            // It comes before pending debug exceptions, as if an instruction had retired.
            core.passed = Passed::Instruction;
            return Ok(());
        };
        let error = region.get(ground, Field::EntryExceptionErrorCode) as u32;
        let length = if event.is_software() { region.get(ground, Field::EntryInstructionLength) as u8 } else { 0 };
        core.activity = Activity::Active;
        core.blocking.remove(Blocking::STI | Blocking::MOV_SS);
        core.pending_debug = 0;
        if kind == EventKind::Nmi {
            self.block_nmi(core);
        }
        let error = event.has_error.then_some(error);
        inject(core, self, ground, Delivery { vector: event.vector, kind, error, length })?;
        if self.operation == Operation::NonRoot && self.guest.primary.contains(PrimaryProc::MONITOR_TRAP_FLAG) {
            self.guest.pending.insert(PendingExits::MONITOR_TRAP_FLAG);
        }
        Ok(())
    }

    /// What the delivery of an NMI to the guest blocks (SDM 3C 26.7.1).
    fn block_nmi(&mut self, core: &mut Core) {
        self.guest.nmi.blocked = true;
        if self.guest.nmi_mode() != NmiMode::Virtual {
            core.blocking.insert(Blocking::NMI);
        }
    }
}
