//! What a trap changes in the extension or at the processor's pins, whatever was decided: events that an exit takes, NMIs
//! that IRET unblocks, PAUSE in loops, and the virtual TPR.

use super::{Controls, Decision};
use crate::controls::{PrimaryProc, SecondaryProc};
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::guest::{NmiMode, PendingExits};
use crate::unit::Vmx;
use crate::vmcs::Field;
use cpu::core::PinEvents;
use cpu::virt::{At, ControlRegister, Trap};
use cpu::{Blocking, Core};
use sim_core::{Ground, Hpa};

/// Where the virtual TPR is in the virtual-APIC page.
pub(crate) const VIRTUAL_TPR: u64 = 0x80;

impl Vmx {
    /// PAUSE exits by its own control, or at privilege level 0 in a loop that takes too long (SDM 3C 25.1.3).
    pub(super) fn pause_exit(&self, controls: &Controls<'_>, core: &Core, at: At) -> Decision {
        let exits = if controls.primary.contains(PrimaryProc::PAUSE_EXITING) {
            true
        } else if self.detects_loops() && core.cpl() == 0 {
            let mut pauses = self.guest.pause;
            let (gap, window) = (controls.get(Field::PleGap), controls.get(Field::PleWindow));
            pauses.pause(controls.ground.clock.now().0, gap, window)
        } else {
            false
        };
        Decision::exits(exits, || Exit::instruction(ExitReason::Pause, at.length))
    }

    const fn detects_loops(&self) -> bool {
        self.guest.secondary.contains(SecondaryProc::PAUSE_LOOP_EXITING)
    }

    /// Notes what a trap changes.
    pub(super) fn note(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, decision: &Decision) {
        match (decision, trap) {
            (Decision::Exit(exit), _) => take_event(core, trap, exit),
            (Decision::Pass, Trap::Iret) => self.iret(core),
            (Decision::Pass, Trap::Monitor) => self.guest.is_armed = true,
            (Decision::Pass, Trap::Mwait) => self.guest.is_armed = false,
            (Decision::Pass, Trap::Pause) => self.note_pause(core, ground),
            (Decision::Pass, Trap::CrWrite { register: ControlRegister::Cr8, value, .. }) => {
                self.write_virtual_tpr(ground, *value);
            }
            _ => {}
        }
    }

    /// IRET removes blocking by NMI, the processor's or the virtual one, before anything of it can fault (SDM 3C 25.3).
    fn iret(&mut self, core: &Core) {
        let was_blocked = match self.guest.nmi_mode() {
            NmiMode::Ordinary => core.blocking.contains(Blocking::NMI),
            NmiMode::Virtual => std::mem::take(&mut self.guest.nmi.blocked),
            NmiMode::Kept => false,
        };
        self.guest.nmi.iret = was_blocked.then_some(core.rip);
    }

    fn note_pause(&mut self, core: &Core, ground: &Ground) {
        if let Some(region) = self.guest_region()
            && self.detects_loops()
            && core.cpl() == 0
        {
            let (gap, window) = (region.get(ground, Field::PleGap), region.get(ground, Field::PleWindow));
            self.guest.pause.pause(ground.clock.now().0, gap, window);
        }
    }

    /// The page of the virtual TPR, while a guest with a TPR shadow runs.
    pub(crate) fn virtual_apic(&self, ground: &Ground) -> Option<Hpa> {
        let region = self.guest_region().filter(|_| self.guest.primary.contains(PrimaryProc::USE_TPR_SHADOW))?;
        Some(Hpa(region.get(ground, Field::VirtualApicAddress)))
    }

    /// MOV to CR8 with the TPR shadow (SDM 3C 29.3): the rest of the virtual TPR becomes 0, and falling below the
    /// threshold is a trap.
    fn write_virtual_tpr(&mut self, ground: &mut Ground, value: u64) {
        let Some(page) = self.virtual_apic(ground) else { return };
        ground.mem.write_u32(page.offset(VIRTUAL_TPR), (value as u32 & 0xf) << 4);
        let threshold = self.guest_region().map_or(0, |region| region.get(ground, Field::TprThreshold) & 0xf);
        if value & 0xf < threshold {
            self.guest.pending.insert(PendingExits::TPR_BELOW_THRESHOLD);
        }
    }
}

/// An exit for an event takes it from the pins; an external interrupt only if it is acknowledged.
fn take_event(core: &mut Core, trap: &Trap, exit: &Exit) {
    match exit.reason {
        ExitReason::Init => core.pins.events.remove(PinEvents::INIT),
        ExitReason::StartUp => core.pins.sipi = None,
        ExitReason::ExternalInterrupt if exit.interruption.is_some() => {
            cpu::apic::acknowledge(core);
        }
        ExitReason::ExceptionOrNmi if matches!(trap, Trap::Nmi | Trap::Window) => {
            core.pins.events.remove(PinEvents::NMI);
        }
        _ => {}
    }
}
