//! VM-entry (SDM 3C chapter 26): the checks, the load of guest state and of the MSR-load area, and event injection.

mod inject;
mod load;

use crate::capability::offered::unmodelled;
use crate::checks::guest::QUALIFICATION_PDPTE;
use crate::checks::{self, Check, View, first_broken};
use crate::controls::Control;
use crate::error::{InstructionError, VmFail};
use crate::exit::reason::ExitReason;
use crate::guest::GuestMode;
use crate::invalidate::flush_untagged;
use crate::msr;
use crate::unit::{Operation, Vmx, show};
use crate::vmcs::{Field, LaunchState, Region};
use cpu::paging::pdpte;
use cpu::virt::SecondStage;
use cpu::{Blocking, Core, Fault};
use serde::{Deserialize, Serialize};
use sim_core::arch::extension::Extension;
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::{Ground, Hpa, SimError};

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
        let Some(region) = self.current.map(Region).filter(|region| !region.is_shadow(ground)) else {
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
        let view = View::new(ground, Region(self.current?), &self.capabilities, core);
        [checks::CONTROLS, checks::HOST, checks::GUEST].into_iter().find_map(|tables| first_broken(tables, &view))
    }

    /// What fails before any state is loaded (SDM 3C 26.1, 26.2).
    fn entry_error(&self, core: &Core, ground: &Ground, region: Region, how: Entry) -> Option<InstructionError> {
        if core.blocking.contains(Blocking::MOV_SS) {
            return Some(InstructionError::EntryBlockedByMovSs);
        }
        match (how, region.launch_state(ground)) {
            (Entry::Launch, LaunchState::Launched) => return Some(InstructionError::VmlaunchNotClear),
            (Entry::Resume, LaunchState::Clear) => return Some(InstructionError::VmresumeNotLaunched),
            _ => {}
        }
        let view = View::new(ground, region, &self.capabilities, core);
        if first_broken(checks::CONTROLS, &view).is_some() {
            Some(InstructionError::EntryControls)
        } else if first_broken(checks::HOST, &view).is_some() {
            Some(InstructionError::EntryHostState)
        } else {
            None
        }
    }

    /// Checks and loads guest state; the core changes only if the checks pass.
    fn load(&mut self, core: &mut Core, ground: &mut Ground, region: Region) -> Result<Option<Refusal>, SimError> {
        let view = View::new(ground, region, &self.capabilities, core);
        let guest_state = |qualification| Some(Refusal { reason: ExitReason::EntryGuestState, qualification });
        if let Some(broken) = first_broken(checks::GUEST, &view) {
            return Ok(guest_state(broken.qualification));
        }
        require_modelled(&view)?;
        let mode = GuestMode::of(&view);
        let entry = view.entry();
        let (pae, cr3) = (view.guest_pae(), view.get(Field::GuestCr3));
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
        load::registers(core, ground, region, entry);
        core.pdptes = pdptes;
        self.guest = mode;
        self.load_blocking(core, ground, region);
        let area = Hpa(region.get(ground, Field::EntryMsrLoadAddress));
        let count = region.get(ground, Field::EntryMsrLoadCount);
        Ok(msr::load(msr::ENTRY_LOAD, core, ground, area, count)
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
        self.inject(core, ground, region)
    }
}

/// Names the controls that the processor offers, the VMCS sets and nobody acts on.
fn require_modelled(view: &View<'_>) -> Result<(), SimError> {
    let controls: [Control; 5] = [
        view.pin().intersection(unmodelled::PIN).into(),
        view.primary().intersection(unmodelled::PRIMARY).into(),
        view.secondary().intersection(unmodelled::SECONDARY).into(),
        view.exit().intersection(unmodelled::EXIT).into(),
        view.entry().intersection(unmodelled::ENTRY).into(),
    ];
    let names: Vec<_> = controls.into_iter().flat_map(Control::names).collect();
    if names.is_empty() { Ok(()) } else { Err(SimError::unmodelled(format!("VM-entry with {}", names.join(", ")))) }
}
