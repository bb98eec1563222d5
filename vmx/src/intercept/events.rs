//! What comes between instructions (SDM 3C 25.2, 25.5.1, 25.5.2, 26.7): monitor trap flag, VMX-preemption timer, windows,
//! NMIs and external interrupts, INIT and start-up IPIs, in the order of their priorities.
//!
//! External interrupts and NMIs that the processor itself would hold back (RFLAGS.IF) leave the guest all the same where
//! their control says so: they are looked for at the window before an instruction.

use super::{Controls, Decision};
use crate::controls::{ExitControls, PinBased, PrimaryProc};
use crate::exit::reason::ExitReason;
use crate::exit::{Exit, Interruption};
use crate::guest::{NmiMode, PendingExits};
use crate::unit::{Operation, Vmx};
use crate::vmcs::Field;
use cpu::core::PinEvents;
use cpu::virt::{EventKind, HeldEvents};
use cpu::{Activity, Blocking, Core};
use sim_core::arch::rflags::Rflags;

/// The vector of an NMI.
const NMI_VECTOR: u8 = 2;

/// A start-up IPI exits where it is waited for, and is lost elsewhere.
pub(super) fn start_up(core: &Core, vector: u8) -> Decision {
    Decision::exits(core.activity == Activity::WaitForSipi, || {
        Exit::plain(ExitReason::StartUp).qualified(vector.into())
    })
}

/// The activity states in which windows and the timer exit.
fn can_open(core: &Core) -> bool {
    !matches!(core.activity, Activity::WaitForSipi | Activity::Shutdown)
}

impl Vmx {
    /// The instruction before has retired: traps of it come before debug exceptions.
    pub(super) fn retired(&self) -> Decision {
        let pending = self.guest.pending;
        if pending.contains(PendingExits::TPR_BELOW_THRESHOLD) {
            return Decision::Exit(Exit::before_debug(ExitReason::TprBelowThreshold));
        }
        let traps = self.guest.primary.contains(PrimaryProc::MONITOR_TRAP_FLAG)
            || pending.contains(PendingExits::MONITOR_TRAP_FLAG);
        Decision::exits(traps, || Exit::before_debug(ExitReason::MonitorTrapFlag))
    }

    /// Before the next instruction.
    pub(super) fn window(&self, controls: &Controls<'_>, core: &Core) -> Decision {
        self.before_nmi(controls, core)
            .or_else(|| self.pending_nmi(core))
            .or_else(|| self.interrupt_window(core))
            .or_else(|| self.pending_interrupt(controls, core))
            .map_or(Decision::Pass, Decision::Exit)
    }

    /// An NMI is about to be delivered.
    pub(super) fn nmi(&self, controls: &Controls<'_>, core: &Core) -> Decision {
        let exits = self.guest.pin.contains(PinBased::NMI_EXITING);
        self.before_nmi(controls, core).or_else(|| exits.then(Self::nmi_exit)).map_or(Decision::Pass, Decision::Exit)
    }

    /// An external interrupt may be recognised.
    pub(super) fn interrupt(&self, controls: &Controls<'_>, core: &Core, vector: u8) -> Decision {
        let exits = self.guest.pin.contains(PinBased::EXTERNAL_INTERRUPT_EXITING);
        self.before_nmi(controls, core)
            .or_else(|| self.interrupt_window(core))
            .or_else(|| exits.then(|| interrupt_exit(controls, vector)))
            .map_or(Decision::Pass, Decision::Exit)
    }

    /// What takes priority over NMIs: pending traps, the timer, and the NMI window.
    fn before_nmi(&self, controls: &Controls<'_>, core: &Core) -> Option<Exit> {
        if self.guest.pending.contains(PendingExits::TPR_BELOW_THRESHOLD) {
            return Some(Exit::before_debug(ExitReason::TprBelowThreshold));
        }
        if self.guest.pending.contains(PendingExits::MONITOR_TRAP_FLAG) {
            return Some(Exit::before_debug(ExitReason::MonitorTrapFlag));
        }
        let expired = self.guest.timer.is_some_and(|timer| timer.remaining(controls.ground) == 0);
        if expired && core.activity != Activity::WaitForSipi {
            return Some(Exit::plain(ExitReason::PreemptionTimer));
        }
        let opens = self.guest.primary.contains(PrimaryProc::NMI_WINDOW_EXITING)
            && core.activity != Activity::WaitForSipi
            && !self.is_nmi_blocked(core)
            && !core.blocking.contains(Blocking::MOV_SS);
        opens.then(|| Exit::plain(ExitReason::NmiWindow))
    }

    fn pending_nmi(&self, core: &Core) -> Option<Exit> {
        let blocking = match self.guest.nmi_mode() {
            NmiMode::Ordinary => return None,
            NmiMode::Kept if self.guest.nmi.blocked => return None,
            NmiMode::Kept | NmiMode::Virtual => Blocking::MOV_SS.union(Blocking::SMI),
        };
        let is_pending = core.pins.events.contains(PinEvents::NMI) && core.activity != Activity::WaitForSipi;
        (is_pending && !core.blocking.intersects(blocking)).then(Self::nmi_exit)
    }

    fn interrupt_window(&self, core: &Core) -> Option<Exit> {
        let opens = self.guest.primary.contains(PrimaryProc::INTERRUPT_WINDOW_EXITING)
            && can_open(core)
            && core.rflags.contains(Rflags::IF)
            && !core.blocking.intersects(Blocking::STI | Blocking::MOV_SS);
        opens.then(|| Exit::plain(ExitReason::InterruptWindow))
    }

    fn pending_interrupt(&self, controls: &Controls<'_>, core: &Core) -> Option<Exit> {
        let vector = core.waiting_interrupt()?;
        let exits = self.guest.pin.contains(PinBased::EXTERNAL_INTERRUPT_EXITING)
            && core.activity != Activity::WaitForSipi
            && !core.blocking.intersects(Blocking::STI | Blocking::MOV_SS);
        exits.then(|| interrupt_exit(controls, vector))
    }

    fn nmi_exit() -> Exit {
        let interruption = Some(Interruption::new(NMI_VECTOR, EventKind::Nmi, None));
        Exit { interruption, ..Exit::plain(ExitReason::ExceptionOrNmi) }
    }

    /// Whether traps or windows are wanted around the next instruction.
    pub(crate) fn attends(&self, core: &Core) -> bool {
        if self.operation != Operation::NonRoot {
            return false;
        }
        let guest = &self.guest;
        let watched = PrimaryProc::MONITOR_TRAP_FLAG
            .union(PrimaryProc::INTERRUPT_WINDOW_EXITING)
            .union(PrimaryProc::NMI_WINDOW_EXITING);
        guest.primary.intersects(watched)
            || guest.timer.is_some()
            || !guest.pending.is_empty()
            || (guest.pin.contains(PinBased::EXTERNAL_INTERRUPT_EXITING) && core.waiting_interrupt().is_some())
            || (core.pins.events.contains(PinEvents::NMI) && guest.pin.contains(PinBased::NMI_EXITING))
    }

    /// What VMX operation holds back: INIT in root operation (SDM 3C 23.8), and NMIs of a guest whose blocking IRET does
    /// not change.
    pub(crate) fn holds(&self) -> HeldEvents {
        match self.operation {
            Operation::Off => HeldEvents::empty(),
            Operation::Root => HeldEvents::INIT,
            Operation::NonRoot if self.guest.nmi_mode() == NmiMode::Kept && self.guest.nmi.blocked => {
                HeldEvents::NMI | HeldEvents::IRET_KEEPS_NMI
            }
            Operation::NonRoot => HeldEvents::empty(),
        }
    }
}

/// The interrupt is acknowledged only with "acknowledge interrupt on exit".
fn interrupt_exit(controls: &Controls<'_>, vector: u8) -> Exit {
    let word = controls.get(Field::ExitControls) as u32;
    let acknowledges = ExitControls::from_bits_retain(word).contains(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT);
    let interruption = acknowledges.then(|| Interruption::new(vector, EventKind::ExternalInterrupt, None));
    Exit { interruption, ..Exit::plain(ExitReason::ExternalInterrupt) }
}
