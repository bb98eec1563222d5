//! VMRUN: host state to the host save area, checks, guest state from the VMCB (APM2 15.5).
//!
//! Fields under a set clean bit come from the processor's copy (APM2 15.15). Simplifications: CPL is SS.DPL in the CPU,
//! so the CPL field is loaded into SS.DPL. EFER.LMA is taken as EFER.LME and CR0.PG, whatever the field says. Paged
//! real mode is refused by name, as is what [`UNMODELLED`] lists.
//!
//! PDPTE registers of a PAE guest are loaded without nested paging; with it there are none, and the page walker reads
//! PDPTEs when it needs them (APM2 15.25.10).

use crate::asid::TlbControl;
use crate::capability::{Capabilities, Features};
use crate::checks::{self, Check, NestedPaging};
use crate::exit::{Exit, ExitCode, flush_by_habit, load_state, save_host};
use crate::inject::EventInjection;
use crate::intercept::{Controls, Intercepts, stage_exit};
use crate::interrupts::{VirtualFlags, VirtualInterrupts};
use crate::unit::{Gif, HostSide, Monitor, PauseFilter, Running, Svm};
use crate::vmcb::{self, Field, Image};
use cpu::core::Blocking;
use cpu::exception::inject;
use cpu::exec::Fault;
use cpu::paging::pdpte;
use cpu::profile;
use cpu::virt::{Delivery, EventKind, HostPaging, NptControls, SecondStage};
use cpu::{Core, Outcome, Virt};
use sim_core::addr::{ENTRY_FRAME_MASK, Gva};
use sim_core::arch::control::{Cr0, Efer, PagingMode};
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::{Ground, Hpa, SimError};

/// How VMRUN ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entered {
    /// The core holds guest state.
    Guest,
    /// The core holds host state again and no instruction of the guest ran: #VMEXIT happened, and EXITCODE says why.
    /// That is VMEXIT_INVALID for an illegal VMCB, or an exit while PDPTEs were loaded or an injected event was
    /// delivered.
    Refused,
}

/// Fields that ask for something the model lacks: the bits, and the feature's name (APM2 tables B-1 and B-2).
const UNMODELLED: &[(Field, u64, &str)] = &[
    (Field::VirtualInterrupt, 1 << 30, "x2AVIC"),
    (Field::VirtualInterrupt, 1 << 31, "AVIC"),
    (Field::NestedControl, 1 << 1, "SEV"),
    (Field::NestedControl, 1 << 2, "SEV-ES"),
    (Field::NestedControl, 1 << 5, "virtual transparent encryption"),
    (Field::NestedControl, 1 << 6, "read-only guest page tables"),
    (Field::VirtualExtensions, 1 << 0, "LBR virtualization"),
    (Field::VirtualExtensions, 1 << 2, "IBS virtualization"),
    (Field::VirtualExtensions, 1 << 3, "PMC virtualization"),
];

/// INTERRUPT_SHADOW in the field at 068h.
pub(crate) const INTERRUPT_SHADOW: u64 = 1 << 0;

impl Svm {
    /// VMRUN, after the checks on rAX and privilege that belong to the instruction. `core.rip` is where the host goes
    /// on after #VMEXIT.
    ///
    /// # Errors
    /// If the VMCB asks for something that is not modelled, or a guest is already running.
    pub fn enter(&mut self, core: &mut Core, ground: &mut Ground, vmcb: Hpa) -> Result<Entered, SimError> {
        if self.running.is_some() {
            return Err(SimError::internal("VMRUN while a guest is running"));
        }
        if !core.efer.contains(Efer::SVME) || !vmcb::is_valid_address(vmcb.0, core.maxphyaddr) {
            return Err(SimError::internal("VMRUN by software that did not enable SVM or align its VMCB"));
        }
        let image = self.view(&ground.mem, vmcb);
        save_host(core, &mut ground.mem, self.hsave);
        if checks::refusal(&image, &ground.mem, core, &self.capabilities).is_some() {
            return self.refuse(core, ground, vmcb);
        }
        refuse_unmodelled(&image, &self.capabilities)?;
        let injection = EventInjection(image.field(Field::EventInjection));

        let running = load_running(core, &image, vmcb, &self.capabilities);
        let asid = running.controls.asid;
        let root = match running.controls.second {
            SecondStage::Npt { ncr3, .. } => ncr3,
            SecondStage::None | SecondStage::Ept { .. } => image.field(Field::Cr3),
        };
        load_guest(core, &image, &running);
        self.running = Some(running);
        self.gif = Gif::Set;
        self.monitor = Monitor::Idle;
        let control = TlbControl::decode(image.field(Field::TlbControl), &self.capabilities);
        let next_rip = image.field(Field::NextRip);
        self.cache.insert(vmcb, image);
        let root = Hpa(root & ENTRY_FRAME_MASK);
        ground.spend(Cost::VmEntry, Event::VmEntry { extension: Extension::Svm, region: vmcb, root });

        if let Some(scope) = control.and_then(|control| control.scope(asid)) {
            core.tlb.flush(ground, scope);
        }
        flush_by_habit(core, ground);
        if core.paging_mode() == PagingMode::Pae
            && let Entered::Refused = self.load_pdptes(core, ground)?
        {
            return Ok(Entered::Refused);
        }
        match injection.delivery() {
            Some(event) => self.inject(core, ground, event, next_rip),
            None => Ok(Entered::Guest),
        }
    }

    /// The check that VMRUN of this VMCB would fail now, if any.
    #[must_use]
    pub fn explain(&self, core: &Core, ground: &Ground, vmcb: Hpa) -> Option<&'static Check> {
        checks::refusal(&self.view(&ground.mem, vmcb), &ground.mem, core, &self.capabilities)
    }

    /// #VMEXIT(VMEXIT_INVALID). What was loaded before the check failed is not kept for a later VMRUN.
    fn refuse(&mut self, core: &mut Core, ground: &mut Ground, vmcb: Hpa) -> Result<Entered, SimError> {
        ground.charge(Cost::VmEntry);
        self.cache.forget(vmcb);
        vmcb::write(&mut ground.mem, vmcb, Field::ExitIntInfo, 0);
        self.leave(core, ground, vmcb, &Exit::event(ExitCode::Invalid, 0, 0));
        Ok(Entered::Refused)
    }

    fn load_pdptes(&mut self, core: &mut Core, ground: &mut Ground) -> Result<Entered, SimError> {
        let exit = match pdpte::load(core.maxphyaddr, &self.regime(core), ground, core.cr3) {
            Ok(pdptes) => {
                core.pdptes = pdptes;
                return Ok(Entered::Guest);
            }
            Err(Fault::Exception(_)) => Exit::event(ExitCode::Invalid, 0, 0),
            Err(Fault::Stage(fault)) => stage_exit(&fault)?,
            Err(Fault::Sim(error)) => return Err(error),
            Err(Fault::Exited) => return Err(SimError::internal("a PDPTE load exited by itself")),
        };
        self.exit(core, ground, &exit);
        Ok(Entered::Refused)
    }

    /// Delivers an injected event. An exit on the way reports it in EXITINTINFO (APM2 15.7.2).
    fn inject(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        event: Delivery,
        next_rip: u64,
    ) -> Result<Entered, SimError> {
        let event = self.returning(core, event, next_rip);
        if event.kind == EventKind::Nmi
            && let Some(running) = &self.running
            && running.virtual_interrupts.has(VirtualFlags::NMI_ENABLE)
        {
            // APM2 15.21.10: an injected NMI masks virtual NMIs, as a virtual one does.
            core.blocking.insert(Blocking::NMI);
        }
        let outcome = inject(core, self, ground, event)?;
        if self.running.is_none() {
            return Ok(Entered::Refused);
        }
        match outcome {
            Outcome::Shutdown => Err(SimError::unmodelled("shutdown in a guest without the SHUTDOWN intercept")),
            _ => Ok(Entered::Guest),
        }
    }

    /// A software event returns to nRIP where the processor has that (APM2 15.20).
    fn returning(&self, core: &mut Core, event: Delivery, next_rip: u64) -> Delivery {
        let software = matches!(event.kind, EventKind::SoftwareInterrupt | EventKind::SoftwareException);
        if !software || !self.capabilities.has(Features::NRIP_SAVE) {
            return event;
        }
        match u8::try_from(next_rip.wrapping_sub(core.rip)) {
            Ok(length) => Delivery { length, ..event },
            Err(_) => {
                core.rip = next_rip;
                event
            }
        }
    }
}

/// Names the first feature of the VMCB that the model lacks.
fn refuse_unmodelled(image: &Image, capabilities: &Capabilities) -> Result<(), SimError> {
    let enabled = UNMODELLED.iter().find(|(field, bit, _)| image.field(*field) & bit != 0);
    if let Some((_, _, name)) = enabled {
        return Err(SimError::unmodelled(*name));
    }
    if let Some(name) = Intercepts::of(image).unmodelled() {
        return Err(SimError::unmodelled(format!("SVM intercept of {name}")));
    }
    if image.field(Field::Asid) >= u64::from(capabilities.nasid) {
        return Err(SimError::unmodelled("a guest ASID beyond CPUID Fn8000_000A EBX"));
    }
    let has = |field, bits| image.field(field) & bits == bits;
    if has(Field::Cr0, Cr0::PG.bits()) && !has(Field::Cr0, Cr0::PE.bits()) {
        return Err(SimError::unmodelled("paged real mode (APM2 15.19)"));
    }
    Ok(())
}

/// What the unit keeps while the guest runs, taken while the core still holds host state.
fn load_running(core: &Core, image: &Image, vmcb: Hpa, capabilities: &Capabilities) -> Running {
    let nested = NestedPaging::of(image, capabilities);
    let controls = Controls::load(core, image, nested, capabilities);
    let host = HostSide {
        interrupts: core.rflags.contains(Rflags::IF),
        cr8: core.cr8,
        nmi_blocked: core.blocking.contains(Blocking::NMI),
    };
    Running {
        vmcb,
        pause: PauseFilter { left: controls.pause_count, ..PauseFilter::default() },
        controls,
        virtual_interrupts: VirtualInterrupts::load(image.field(Field::VirtualInterrupt), capabilities),
        host,
        write_trap: None,
    }
}

/// The second stage that a VMCB asks for (APM2 15.25.3, 15.25.13, 15.25.14).
pub(crate) fn second_stage(
    core: &Core,
    image: &Image,
    nested: NestedPaging,
    capabilities: &Capabilities,
) -> SecondStage {
    if nested == NestedPaging::Off {
        return SecondStage::None;
    }
    let enabled = |bit: u64, feature| image.field(Field::NestedControl) & bit != 0 && capabilities.has(feature);
    let mut controls = NptControls::empty();
    controls.set(NptControls::GUEST_MODE_EXECUTE_TRAP, enabled(1 << 3, Features::GMET));
    controls.set(NptControls::SUPERVISOR_SHADOW_STACK, enabled(1 << 4, Features::SUPERVISOR_SHADOW_STACK));
    let host = HostPaging { cr0: core.cr0, cr4: core.cr4, efer: core.efer, pat: core.msrs.pat };
    SecondStage::Npt { ncr3: image.field(Field::NestedCr3), host, controls }
}

/// APM2 15.5.1: what VMRUN loads from the state save area.
fn load_guest(core: &mut Core, image: &Image, running: &Running) {
    load_state(core, image);
    let long = core.efer.contains(Efer::LME) && core.cr0.contains(Cr0::PG);
    core.efer.set(Efer::LMA, long);
    core.cr2 = Gva(image.field(Field::Cr2));
    core.dr6 = image.field(Field::Dr6);
    core.dr7 = image.field(Field::Dr7);
    core.pending_debug = 0;
    if matches!(running.controls.second, SecondStage::Npt { .. }) {
        core.msrs.pat = image.field(Field::GuestPat);
    }
    if core.features.contains(profile::Features::CET_SS) {
        core.msrs.s_cet = image.field(Field::SCet);
        core.ssp = image.field(Field::Ssp);
        core.msrs.interrupt_ssp_table = image.field(Field::IsstAddress);
    }
    core.blocking.remove(Blocking::STI | Blocking::MOV_SS);
    core.blocking.set(Blocking::STI, image.field(Field::InterruptShadow) & INTERRUPT_SHADOW != 0);
    let word = running.virtual_interrupts;
    if word.has(VirtualFlags::INTR_MASKING) {
        core.cr8 = word.tpr();
    }
    if word.has(VirtualFlags::NMI_ENABLE) {
        core.blocking.set(Blocking::NMI, word.has(VirtualFlags::NMI_MASK));
    }
    // Real mode is CPL 0, whatever the field says.
    let real = !core.cr0.contains(Cr0::PE);
    let cpl = if real { 0 } else { image.field(Field::Cpl) as u32 & 3 };
    let rights = &mut core.segments.ss.rights.0;
    *rights = (*rights & !(3 << 5)) | (cpl << 5);
}
