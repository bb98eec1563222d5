//! What the processor keeps at hand while a guest runs: controls and regime, taken from the VMCS at VM-entry, and the state
//! of its own that only non-root operation has.
//!
//! Nothing but the processor changes a current VMCS under a running guest, so a copy of the controls is as good.

use crate::capability::ept_vpid;
use crate::checks::View;
use crate::controls::{PinBased, PrimaryProc, SecondaryProc};
use crate::timer::{PauseLoop, PreemptionTimer};
use crate::vmcs::{Field, Region};
use cpu::virt::{EptControls, EptFlags, PageModificationLog, Regime, SecondStage, Tag};
use serde::{Deserialize, Serialize};
use sim_core::Hpa;
use sim_core::addr::ENTRY_FRAME_MASK;

/// EPTP bit 7: supervisor shadow-stack control.
const EPTP_SHADOW_STACK: u64 = 1 << 7;

/// A running guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct GuestMode {
    /// The translation regime.
    pub(crate) regime: Regime,
    /// The pin-based controls.
    pub(crate) pin: PinBased,
    /// The primary processor-based controls.
    pub(crate) primary: PrimaryProc,
    /// The secondary ones, all 0 unless activated.
    pub(crate) secondary: SecondaryProc,
    /// The VMX-preemption timer, if active.
    pub(crate) timer: Option<PreemptionTimer>,
    /// Where pause-loop exiting is.
    pub(crate) pause: PauseLoop,
    /// A VM-exit that waits for the next instruction boundary.
    pub(crate) pending: PendingExits,
    /// Blocking of NMIs that belongs to the extension while a guest runs.
    pub(crate) nmi: NmiBlocking,
    /// Whether MONITOR has run since VM-entry, and no MWAIT after it (SDM 3C 27.2.1).
    pub(crate) is_armed: bool,
}

impl Default for GuestMode {
    fn default() -> Self {
        Self {
            regime: Regime::default(),
            pin: PinBased::empty(),
            primary: PrimaryProc::empty(),
            secondary: SecondaryProc::empty(),
            timer: None,
            pause: PauseLoop::default(),
            pending: PendingExits::empty(),
            nmi: NmiBlocking::default(),
            is_armed: false,
        }
    }
}

bitflags::bitflags! {
    /// VM-exits that wait for an instruction boundary.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub(crate) struct PendingExits: u8 {
        /// By the monitor trap flag: an event was injected with it, or it was injected itself (SDM 3C 25.5.2).
        const MONITOR_TRAP_FLAG = 1 << 0;
        /// The virtual TPR fell below the threshold (SDM 3C 29.1.2).
        const TPR_BELOW_THRESHOLD = 1 << 1;
    }
}

/// Blocking by NMI in non-root operation (SDM 3C 24.4.2, 25.3 IRET).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct NmiBlocking {
    /// Virtual NMIs, with "virtual NMIs".
    pub(crate) blocked: bool,
    /// The IRET at this RIP has just removed blocking by NMI: a fault of the same instruction tells.
    pub(crate) iret: Option<u64>,
}

/// Whose NMIs IRET unblocks, by "NMI exiting" and "virtual NMIs" (SDM 3C 25.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NmiMode {
    /// The processor's.
    Ordinary,
    /// Nobody's: the guest has the processor's blocking and IRET does not change it.
    Kept,
    /// Virtual ones.
    Virtual,
}

impl GuestMode {
    /// The mode that the controls select.
    pub(crate) fn of(view: &View<'_>) -> Self {
        let (pin, primary, secondary) = (view.pin(), view.primary(), view.secondary());
        let context = if secondary.contains(SecondaryProc::ENABLE_VPID) { view.get(Field::Vpid) as u32 } else { 0 };
        let (ept_root, second) = if secondary.contains(SecondaryProc::ENABLE_EPT) {
            let eptp = view.get(Field::EptPointer);
            (Some(Hpa(eptp & ENTRY_FRAME_MASK)), SecondStage::Ept { eptp, controls: ept_controls(view, eptp) })
        } else {
            (None, SecondStage::None)
        };
        Self {
            regime: Regime { tag: Tag { context, ept_root }, second },
            pin,
            primary,
            secondary,
            timer: pin
                .contains(PinBased::ACTIVATE_PREEMPTION_TIMER)
                .then(|| PreemptionTimer::start(view.ground, view.get(Field::PreemptionTimer))),
            ..Self::default()
        }
    }

    /// Whether the guest may run without protection or paging.
    pub(crate) const fn is_unrestricted(&self) -> bool {
        self.secondary.contains(SecondaryProc::UNRESTRICTED_GUEST)
    }

    /// How NMIs are blocked.
    pub(crate) const fn nmi_mode(&self) -> NmiMode {
        if !self.pin.contains(PinBased::NMI_EXITING) {
            NmiMode::Ordinary
        } else if self.pin.contains(PinBased::VIRTUAL_NMIS) {
            NmiMode::Virtual
        } else {
            NmiMode::Kept
        }
    }

    /// Moves to another EPT root (SDM 3C 25.5.6.3).
    pub(crate) const fn switch_eptp(&mut self, new: u64) {
        if let SecondStage::Ept { eptp, .. } = &mut self.regime.second {
            *eptp = new;
            self.regime.tag.ept_root = Some(Hpa(new & ENTRY_FRAME_MASK));
        }
    }
}

fn ept_controls(view: &View<'_>, eptp: u64) -> EptControls {
    let mut flags = EptFlags::empty();
    flags.set(EptFlags::MODE_BASED_EXECUTE, view.has(SecondaryProc::MODE_BASED_EXECUTE_CONTROL));
    flags.set(EptFlags::VIOLATION_VE, view.has(SecondaryProc::EPT_VIOLATION_VE));
    flags.set(EptFlags::SUPERVISOR_SHADOW_STACK, eptp & EPTP_SHADOW_STACK != 0);
    for (missing, capability) in [
        (EptFlags::NO_EXECUTE_ONLY, ept_vpid::EXECUTE_ONLY),
        (EptFlags::NO_PAGE_2M, ept_vpid::PAGES_2M),
        (EptFlags::NO_PAGE_1G, ept_vpid::PAGES_1G),
    ] {
        flags.set(missing, view.capabilities.ept_vpid & capability == 0);
    }
    let index = Region::slot(view.region, Field::PmlIndex);
    let log = || PageModificationLog { index, log: Hpa(view.get(Field::PmlAddress)) };
    EptControls { flags, log: view.has(SecondaryProc::ENABLE_PML).then(log) }
}
