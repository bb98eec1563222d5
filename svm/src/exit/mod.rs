//! #VMEXIT: guest state to the VMCB, host state from the host save area (APM2 15.6).
//!
//! The save area holds whole segment registers, so that leaving a guest reads no descriptor table. CR2 and the
//! registers of VMLOAD keep the guest's values, as the manual says.
//!
//! Left out: EXITINTINFO for an event that the guest itself was delivering (the intercept hook does not tell); it is
//! written for injected events. The model restarts the interrupted instruction, so nothing is lost but the record.
//! Also left out: guest instruction bytes (decode assists of #PF and #NPF).

mod code;

pub use code::ExitCode;

use crate::capability::Features;
use crate::inject::EventInjection;
use crate::unit::{Gif, Svm};
use crate::vmcb::{self, Field, SegmentField, TableField};
use cpu::exec::Fault;
use cpu::paging::pdpte;
use cpu::{Activity, Core, Gpr, Regime, SecondStage};
use sim_core::addr::Gva;
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Segment, TableRegister};
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::memory::PhysMem;
use sim_core::{Ground, Hpa, SimError};

/// DR7 with every breakpoint disabled.
const DR7_DISABLED: u64 = 0x400;

/// What a #VMEXIT reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: ExitCode,
    pub(crate) info1: u64,
    pub(crate) info2: u64,
    /// nRIP: the next instruction for instruction intercepts, else 0 (APM2 15.7.1).
    pub(crate) next: u64,
}

impl Exit {
    /// An exit because of an instruction.
    pub(crate) const fn instruction(code: ExitCode, next: u64) -> Self {
        Self { code, info1: 0, info2: 0, next }
    }

    /// An exit because of something else.
    pub(crate) const fn event(code: ExitCode, info1: u64, info2: u64) -> Self {
        Self { code, info1, info2, next: 0 }
    }
}

impl Svm {
    /// Leaves the running guest.
    pub(crate) fn exit(&mut self, core: &mut Core, ground: &mut Ground, exit: &Exit) -> Result<(), SimError> {
        let running = self.running.take().ok_or_else(|| SimError::internal("#VMEXIT without a guest"))?;
        self.last = Some((running.controls.asid, core.pcid()));
        save_state(core, &mut ground.mem, running.vmcb);
        vmcb::write(&mut ground.mem, running.vmcb, Field::Dr7, core.dr7);
        vmcb::write(&mut ground.mem, running.vmcb, Field::Cr2, core.cr2.0);
        if matches!(running.controls.second, SecondStage::Npt { .. }) {
            vmcb::write(&mut ground.mem, running.vmcb, Field::GuestPat, core.msrs.pat);
            core.msrs.pat = vmcb::read(&ground.mem, self.hsave, Field::GuestPat);
        }
        vmcb::write(&mut ground.mem, running.vmcb, Field::ExitIntInfo, running.injecting.0);
        self.leave(core, ground, running.vmcb, exit)
    }

    /// The part of #VMEXIT that a refused VMRUN shares: no guest state is saved, because none was loaded.
    pub(crate) fn leave(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        vmcb: Hpa,
        exit: &Exit,
    ) -> Result<(), SimError> {
        let mem = &mut ground.mem;
        vmcb::write(mem, vmcb, Field::ExitCode, exit.code.number());
        vmcb::write(mem, vmcb, Field::ExitInfo1, exit.info1);
        vmcb::write(mem, vmcb, Field::ExitInfo2, exit.info2);
        if self.capabilities.has(Features::NRIP_SAVE) {
            vmcb::write(mem, vmcb, Field::NextRip, exit.next);
        }
        vmcb::write(mem, vmcb, Field::InterruptShadow, 0);
        let injection = EventInjection(vmcb::read(mem, vmcb, Field::EventInjection));
        vmcb::write(mem, vmcb, Field::EventInjection, injection.spent().0);
        self.gif = Gif::Clear;
        self.exiting = None;
        load_host(core, ground, self.hsave)?;
        let event = Event::VmExit {
            extension: Extension::Svm,
            region: vmcb,
            reason: exit.code.number(),
            name: exit.code.name(),
            qualification: exit.info1,
        };
        ground.spend(Cost::VmExit, event);
        Ok(())
    }
}

/// Saves what both VMRUN (host) and #VMEXIT (guest) save.
pub(crate) fn save_state(core: &Core, mem: &mut PhysMem, area: Hpa) {
    let segments = &core.segments;
    for (field, segment) in [
        (SegmentField::Es, &segments.es),
        (SegmentField::Cs, &segments.cs),
        (SegmentField::Ss, &segments.ss),
        (SegmentField::Ds, &segments.ds),
    ] {
        vmcb::write_segment(mem, area, field, segment);
    }
    vmcb::write_table(mem, area, TableField::Gdtr, core.gdtr);
    vmcb::write_table(mem, area, TableField::Idtr, core.idtr);
    for (field, value) in [
        (Field::Efer, core.efer.bits()),
        (Field::Cr0, core.cr0.bits()),
        (Field::Cr3, core.cr3),
        (Field::Cr4, core.cr4.bits()),
        (Field::Rflags, core.rflags.bits()),
        (Field::Rip, core.rip),
        (Field::Rsp, core.gpr(Gpr::Rsp)),
        (Field::Rax, core.gpr(Gpr::Rax)),
        (Field::Cpl, u64::from(core.cpl())),
    ] {
        vmcb::write(mem, area, field, value);
    }
}

/// Loads what [`save_state`] saved. Bits that the model doesn't name are dropped.
pub(crate) fn load_state(core: &mut Core, mem: &PhysMem, area: Hpa) {
    let field = |field| vmcb::read(mem, area, field);
    core.efer = Efer::from_bits_truncate(field(Field::Efer));
    core.cr0 = Cr0::from_bits_truncate(field(Field::Cr0)) | Cr0::ET;
    core.cr3 = field(Field::Cr3);
    core.cr4 = Cr4::from_bits_truncate(field(Field::Cr4));
    core.rflags = Rflags::from_bits_truncate(field(Field::Rflags)) | Rflags::FIXED;
    core.rip = field(Field::Rip);
    core.set_gpr(Gpr::Rsp, field(Field::Rsp));
    core.set_gpr(Gpr::Rax, field(Field::Rax));
    // APM2 15.5.1: bases are sign-extended from the highest implemented bit rather than checked.
    let canonical = |base| Gva(base).canonical(core.linear_width()).0;
    let segment = |field| {
        let segment = vmcb::read_segment(mem, area, field);
        Segment { base: canonical(segment.base), ..segment }
    };
    let table = |field| {
        let table = vmcb::read_table(mem, area, field);
        TableRegister { base: canonical(table.base), ..table }
    };
    let (gdtr, idtr) = (table(TableField::Gdtr), table(TableField::Idtr));
    let [es, cs, ss, ds] = [SegmentField::Es, SegmentField::Cs, SegmentField::Ss, SegmentField::Ds].map(segment);
    (core.gdtr, core.idtr) = (gdtr, idtr);
    (core.segments.es, core.segments.cs, core.segments.ss, core.segments.ds) = (es, cs, ss, ds);
    core.activity = Activity::Active;
}

/// APM2 15.6: the host comes back with CR0.PE set, RFLAGS.VM clear, breakpoints disabled, at CPL 0; in PAE mode its
/// PDPTEs are read again.
fn load_host(core: &mut Core, ground: &mut Ground, hsave: Hpa) -> Result<(), SimError> {
    load_state(core, &ground.mem, hsave);
    core.cr0.insert(Cr0::PE);
    core.rflags.remove(Rflags::VM);
    core.dr7 = DR7_DISABLED;
    if core.paging_mode() == PagingMode::Pae {
        core.pdptes =
            pdpte::load(core.maxphyaddr, &Regime::default(), ground, core.cr3).map_err(|fault| match fault {
                Fault::Sim(error) => error,
                Fault::Exception(_) | Fault::Stage(_) | Fault::Exited => {
                    SimError::unmodelled("shutdown of the host: illegal PDPTE at #VMEXIT")
                }
            })?;
    }
    Ok(())
}
