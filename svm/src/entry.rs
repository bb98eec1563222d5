//! VMRUN: host state to the host save area, checks, guest state from the VMCB (APM2 15.5).
//!
//! Simplifications: CPL is SS.DPL in the CPU, so the CPL field is loaded into SS.DPL. EFER.LMA is taken as EFER.LME
//! and CR0.PG, whatever the field says. DR6 is checked and stays in the VMCB, as nothing in the CPU changes it. VMCB
//! clean bits are ignored. Virtual-8086 mode, paged real mode and hardware breakpoints are refused by name.
//!
//! PDPTE registers of a PAE guest are loaded without nested paging; with it there are none, and the page walker reads
//! PDPTEs when it needs them (APM2 15.25.10).

use crate::asid::TlbControl;
use crate::capability::Capabilities;
use crate::checks::{self, Check, NestedPaging};
use crate::exit::{Exit, ExitCode, load_state, save_state};
use crate::inject::EventInjection;
use crate::intercept::{Controls, Intercepts, stage_exit};
use crate::unit::{Gif, Running, Svm};
use crate::vmcb::{self, Field};
use cpu::exception::deliver_injected;
use cpu::exec::Fault;
use cpu::paging::pdpte;
use cpu::virt::{HostPaging, NptControls, SecondStage};
use cpu::{Core, Outcome, Virt};
use sim_core::addr::{ENTRY_FRAME_MASK, Gva};
use sim_core::arch::control::{Cr0, Efer, PagingMode};
use sim_core::arch::exception::Exception;
use sim_core::arch::extension::Extension;
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::memory::PhysMem;
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

/// Fields that ask for something the model lacks: the bits, and the feature's name (APM2 tables B-1 and B-2). Moves of
/// debug registers other than DR7 are not in the list, because the CPU itself does not model them.
const UNMODELLED: &[(Field, u64, &str)] = &[
    (Field::InterceptDrReads, 1 << 7, "SVM intercept of reads of DR7"),
    (Field::InterceptDrWrites, 1 << 7, "SVM intercept of writes of DR7"),
    (Field::Dr7, 0x20ff, "hardware breakpoints (DR7)"),
    (Field::Rflags, 1 << 17, "virtual-8086 mode"),
    (Field::VirtualInterrupt, 1 << 8, "V_IRQ: a pending virtual interrupt"),
    (Field::VirtualInterrupt, 1 << 25, "virtual GIF"),
    (Field::VirtualInterrupt, 1 << 26, "virtual NMI"),
    (Field::VirtualInterrupt, 1 << 30, "x2AVIC"),
    (Field::VirtualInterrupt, 1 << 31, "AVIC"),
    (Field::NestedControl, 1 << 1, "SEV"),
    (Field::NestedControl, 1 << 2, "SEV-ES"),
    (Field::NestedControl, 1 << 3, "guest mode execute trap (GMET)"),
    (Field::NestedControl, 1 << 4, "supervisor shadow stack check (SSS)"),
    (Field::NestedControl, 1 << 5, "virtual transparent encryption"),
    (Field::NestedControl, 1 << 6, "read-only guest page tables"),
    (Field::NestedControl, 1 << 7, "INVLPGB and TLBSYNC in guests"),
    (Field::VirtualExtensions, 1 << 0, "LBR virtualization"),
    (Field::VirtualExtensions, 1 << 1, "virtual VMLOAD and VMSAVE"),
    (Field::VirtualExtensions, 1 << 2, "IBS virtualization"),
    (Field::VirtualExtensions, 1 << 3, "PMC virtualization"),
];

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
        let nested = NestedPaging::read(&ground.mem, vmcb, &self.capabilities);
        save_state(core, &mut ground.mem, self.hsave);
        vmcb::write(&mut ground.mem, self.hsave, Field::GuestPat, core.msrs.pat);
        if self.explain(core, ground, vmcb).is_some() {
            return self.refuse(core, ground, vmcb);
        }
        refuse_unmodelled(&ground.mem, vmcb, &self.capabilities)?;
        let injection = EventInjection(vmcb::read(&ground.mem, vmcb, Field::EventInjection));
        let injected = injection.exception()?;

        let controls = load_controls(core, &ground.mem, vmcb, nested);
        let root = match controls.second {
            SecondStage::Npt { ncr3, .. } => ncr3,
            SecondStage::None | SecondStage::Ept { .. } => vmcb::read(&ground.mem, vmcb, Field::Cr3),
        };
        load_guest(core, &ground.mem, vmcb, nested);
        let asid = controls.asid;
        self.running = Some(Running { vmcb, controls, injecting: EventInjection::default() });
        self.gif = Gif::Set;
        let root = Hpa(root & ENTRY_FRAME_MASK);
        ground.spend(Cost::VmEntry, Event::VmEntry { extension: Extension::Svm, region: vmcb, root });

        let control = TlbControl::decode(vmcb::read(&ground.mem, vmcb, Field::TlbControl), &self.capabilities);
        if let Some(scope) = control.and_then(|control| control.scope(asid)) {
            core.tlb.flush(ground, scope);
        }
        if core.paging_mode() == PagingMode::Pae
            && let Entered::Refused = self.load_pdptes(core, ground)?
        {
            return Ok(Entered::Refused);
        }
        match injected {
            Some(exception) => self.inject(core, ground, injection, exception),
            None => Ok(Entered::Guest),
        }
    }

    /// The check that VMRUN of this VMCB would fail now, if any.
    #[must_use]
    pub fn explain(&self, core: &Core, ground: &Ground, vmcb: Hpa) -> Option<&'static Check> {
        checks::refusal(&ground.mem, vmcb, core, &self.capabilities)
    }

    /// #VMEXIT(VMEXIT_INVALID).
    fn refuse(&mut self, core: &mut Core, ground: &mut Ground, vmcb: Hpa) -> Result<Entered, SimError> {
        ground.charge(Cost::VmEntry);
        vmcb::write(&mut ground.mem, vmcb, Field::ExitIntInfo, 0);
        self.leave(core, ground, vmcb, &Exit::event(ExitCode::Invalid, 0, 0))?;
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
        self.exit(core, ground, &exit)?;
        Ok(Entered::Refused)
    }

    /// Delivers an injected exception. An exit on the way reports the event in EXITINTINFO (APM2 15.7.2).
    fn inject(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        injection: EventInjection,
        exception: Exception,
    ) -> Result<Entered, SimError> {
        if let Some(running) = &mut self.running {
            running.injecting = injection;
        }
        let outcome = deliver_injected(core, self, ground, exception)?;
        let Some(running) = &mut self.running else {
            return Ok(Entered::Refused);
        };
        running.injecting = EventInjection::default();
        match outcome {
            Outcome::Shutdown => Err(SimError::unmodelled("shutdown in a guest without the SHUTDOWN intercept")),
            _ => Ok(Entered::Guest),
        }
    }
}

/// Names the first feature of the VMCB that the model lacks.
fn refuse_unmodelled(mem: &PhysMem, vmcb: Hpa, capabilities: &Capabilities) -> Result<(), SimError> {
    let enabled = UNMODELLED.iter().find(|(field, bit, _)| vmcb::read(mem, vmcb, *field) & bit != 0);
    if let Some((_, _, name)) = enabled {
        return Err(SimError::unmodelled(*name));
    }
    if let Some(name) = Intercepts::read(mem, vmcb).unmodelled() {
        return Err(SimError::unmodelled(format!("SVM intercept of {name}")));
    }
    if vmcb::read(mem, vmcb, Field::Asid) >= u64::from(capabilities.nasid) {
        return Err(SimError::unmodelled("a guest ASID beyond CPUID Fn8000_000A EBX"));
    }
    let has = |field, bits| vmcb::read(mem, vmcb, field) & bits == bits;
    if has(Field::Cr0, Cr0::PG.bits()) && !has(Field::Cr0, Cr0::PE.bits()) {
        return Err(SimError::unmodelled("paged real mode (APM2 15.19)"));
    }
    Ok(())
}

fn load_controls(core: &Core, mem: &PhysMem, vmcb: Hpa, nested: NestedPaging) -> Controls {
    let field = |field| vmcb::read(mem, vmcb, field);
    let host = HostPaging { cr0: core.cr0, cr4: core.cr4, efer: core.efer, pat: core.msrs.pat };
    Controls {
        cr_reads: field(Field::InterceptCrReads) as u16,
        cr_writes: field(Field::InterceptCrWrites) as u16,
        exceptions: field(Field::InterceptExceptions) as u32,
        intercepts: Intercepts::read(mem, vmcb),
        iopm: Hpa(field(Field::IopmBase)),
        msrpm: Hpa(field(Field::MsrpmBase)),
        tsc_offset: field(Field::TscOffset),
        asid: field(Field::Asid) as u32,
        second: match nested {
            NestedPaging::On => {
                SecondStage::Npt { ncr3: field(Field::NestedCr3), host, controls: NptControls::default() }
            }
            NestedPaging::Off => SecondStage::None,
        },
    }
}

/// APM2 15.5.1: what VMRUN loads from the state save area.
fn load_guest(core: &mut Core, mem: &PhysMem, vmcb: Hpa, nested: NestedPaging) {
    load_state(core, mem, vmcb);
    let long = core.efer.contains(Efer::LME) && core.cr0.contains(Cr0::PG);
    core.efer.set(Efer::LMA, long);
    core.cr2 = Gva(vmcb::read(mem, vmcb, Field::Cr2));
    core.dr7 = vmcb::read(mem, vmcb, Field::Dr7);
    if nested == NestedPaging::On {
        core.msrs.pat = vmcb::read(mem, vmcb, Field::GuestPat);
    }
    // Real mode is CPL 0, whatever the field says.
    let real = !core.cr0.contains(Cr0::PE);
    let cpl = if real { 0 } else { vmcb::read(mem, vmcb, Field::Cpl) as u32 & 3 };
    let rights = &mut core.segments.ss.rights.0;
    *rights = (*rights & !(3 << 5)) | (cpl << 5);
}
