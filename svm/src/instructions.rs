//! The instructions of SVM: legality, interception and effect (APM2 15.5, 15.8, 15.16, 15.17, 15.33; APM3 chapter 4).
//!
//! Order: #UD, then #GP for CPL, then the intercept, then #GP for an address in rAX (APM2 table 15-7; an address that
//! is wrong for the host need not be wrong for the guest, so it can't come before the intercept).

use crate::asid::invlpga_scope;
use crate::entry::Entered;
use crate::exit::{Exit, ExitCode};
use crate::intercept::{Intercepts, instruction_row, next_rip};
use crate::interrupts::VirtualFlags;
use crate::unit::{Gif, Svm};
use crate::vmcb::{self, Field, SegmentField};
use cpu::core::Blocking;
use cpu::exec::Fault;
use cpu::paging::translate::translate_physical;
use cpu::virt::{At, Movement, StagePurpose, Verdict, VirtDone, VirtInstruction};
use cpu::{Core, SecondStage, Virt};
use serde::{Deserialize, Serialize};
use sim_core::addr::{Gpa, Gva};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::control::{Cr0, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::{Ground, Hpa, SimError};

/// An instruction of SVM with its operands, as the unit keeps it after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Decoded {
    Vmrun(u64),
    Vmload(u64),
    Vmsave(u64),
    Stgi,
    Clgi,
    Vmmcall,
    Invlpga { address: Gva, asid: u32 },
}

impl Decoded {
    /// None for an instruction of VMX.
    const fn of(instruction: &VirtInstruction) -> Option<Self> {
        match *instruction {
            VirtInstruction::Vmrun(address) => Some(Self::Vmrun(address)),
            VirtInstruction::Vmload(address) => Some(Self::Vmload(address)),
            VirtInstruction::Vmsave(address) => Some(Self::Vmsave(address)),
            VirtInstruction::Stgi => Some(Self::Stgi),
            VirtInstruction::Clgi => Some(Self::Clgi),
            VirtInstruction::Vmmcall => Some(Self::Vmmcall),
            VirtInstruction::Invlpga { address, asid } => Some(Self::Invlpga { address, asid }),
            _ => None,
        }
    }

    /// The form that the CPU uses.
    pub(crate) const fn instruction(self) -> VirtInstruction {
        match self {
            Self::Vmrun(address) => VirtInstruction::Vmrun(address),
            Self::Vmload(address) => VirtInstruction::Vmload(address),
            Self::Vmsave(address) => VirtInstruction::Vmsave(address),
            Self::Stgi => VirtInstruction::Stgi,
            Self::Clgi => VirtInstruction::Clgi,
            Self::Vmmcall => VirtInstruction::Vmmcall,
            Self::Invlpga { address, asid } => VirtInstruction::Invlpga { address, asid },
        }
    }
}

impl Svm {
    /// Executes one instruction of the extension.
    pub(crate) fn execute(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        let (Some(decoded), Some((bit, code))) = (Decoded::of(instruction), instruction_row(instruction)) else {
            // An instruction of VMX has no meaning on this processor.
            return Err(Exception::ud().into());
        };
        check_legality(core, decoded)?;
        if self.running.as_ref().is_some_and(|running| running.controls.intercepts.contains(bit)) {
            let next = next_rip(core, at);
            self.exit(core, ground, &Exit::instruction(code, next));
            self.exiting = Some(decoded);
            return Ok(VirtDone::Moved(Movement::Exited));
        }
        match decoded {
            Decoded::Vmrun(address) => return self.vmrun(core, ground, address, at),
            Decoded::Vmload(address) => {
                let vmcb = checked_address(core, address)?;
                let vmcb = self.translated(core, ground, vmcb, AccessKind::Read)?;
                self.vmload(core, ground, vmcb);
            }
            Decoded::Vmsave(address) => {
                let vmcb = checked_address(core, address)?;
                let vmcb = self.translated(core, ground, vmcb, AccessKind::Write)?;
                self.vmsave(core, ground, vmcb);
            }
            Decoded::Stgi => self.set_gif(Gif::Set),
            Decoded::Clgi => self.set_gif(Gif::Clear),
            // APM3 VMMCALL: without an intercept, in the host too, there is nobody to call.
            Decoded::Vmmcall => return Err(Exception::ud().into()),
            Decoded::Invlpga { address, asid } => self.invlpga(core, ground, address, asid),
        }
        Ok(VirtDone::Next)
    }

    /// VMRUN. A host save area of zero is none (APM2 15.30.4).
    fn vmrun(&mut self, core: &mut Core, ground: &mut Ground, address: u64, at: At) -> Result<VirtDone, Fault> {
        let vmcb = checked_address(core, address)?;
        if self.hsave == Hpa(0) {
            return Err(Exception::gp0().into());
        }
        core.rip = next_rip(core, at);
        core.blocking.remove(Blocking::STI | Blocking::MOV_SS);
        let movement = match self.enter(core, ground, vmcb)? {
            Entered::Guest => Movement::Entered,
            Entered::Refused => Movement::Exited,
        };
        Ok(VirtDone::Moved(movement))
    }

    /// Where a VMCB named by VMLOAD or VMSAVE is. In a guest whose VMLOAD is virtualized the address is guest-physical,
    /// and the nested tables may fault; else it is a system-physical address even there (APM2 15.33.1).
    fn translated(&self, core: &Core, ground: &mut Ground, at: Hpa, kind: AccessKind) -> Result<Hpa, Fault> {
        let Some(running) = self.running.as_ref().filter(|running| running.controls.virtual_vmload) else {
            return Ok(at);
        };
        if running.controls.second == SecondStage::None || !core.efer.contains(Efer::LMA) {
            return Err(
                SimError::unmodelled("virtual VMLOAD and VMSAVE without nested paging or outside long mode").into()
            );
        }
        let access = Access::implicit(kind);
        translate_physical(core.maxphyaddr, &self.regime(core), ground, Gpa(at.0), access, StagePurpose::Final)
    }

    /// STGI and CLGI: the virtual GIF in a guest that has one (APM2 15.33.2), else the physical one.
    const fn set_gif(&mut self, gif: Gif) {
        if let Some(running) = &mut self.running
            && running.virtual_interrupts.has(VirtualFlags::GIF_ENABLE)
        {
            running.virtual_interrupts.set(VirtualFlags::GIF, matches!(gif, Gif::Set));
            return;
        }
        self.gif = gif;
    }

    /// SKINIT, before its operand is read. Nothing of secure init is modelled.
    pub(crate) fn skinit(&mut self, core: &mut Core, ground: &mut Ground, at: At) -> Result<Verdict, SimError> {
        if let Err(exception) = check_privilege(core) {
            return Ok(Verdict::Raise(exception));
        }
        if self.running.as_ref().is_some_and(|running| running.controls.intercepts.contains(Intercepts::SKINIT)) {
            let next = next_rip(core, at);
            self.exit(core, ground, &Exit::instruction(ExitCode::Skinit, next));
            return Ok(Verdict::Exited);
        }
        Err(SimError::unmodelled("SKINIT"))
    }

    /// VMLOAD: FS, GS, TR, LDTR with their hidden parts, and the MSRs of system calls (APM3 VMLOAD).
    pub fn vmload(&mut self, core: &mut Core, ground: &mut Ground, vmcb: Hpa) {
        ground.charge(Cost::VmcsAccess);
        let width = core.linear_width();
        for (field, segment) in [
            (SegmentField::Fs, &mut core.segments.fs),
            (SegmentField::Gs, &mut core.segments.gs),
            (SegmentField::Tr, &mut core.segments.tr),
            (SegmentField::Ldtr, &mut core.segments.ldtr),
        ] {
            *segment = vmcb::read_segment(&ground.mem, vmcb, field);
            segment.base = Gva(segment.base).canonical(width).0;
        }
        for (field, holds, register) in system_call_registers(core) {
            let value = vmcb::read(&ground.mem, vmcb, field);
            *register = match holds {
                Holds::Address => Gva(value).canonical(width).0,
                Holds::Value => value,
            };
        }
    }

    /// VMSAVE: the reverse of VMLOAD (APM3 VMSAVE).
    pub fn vmsave(&mut self, core: &mut Core, ground: &mut Ground, vmcb: Hpa) {
        ground.charge(Cost::VmcsAccess);
        for (field, segment) in [
            (SegmentField::Fs, &core.segments.fs),
            (SegmentField::Gs, &core.segments.gs),
            (SegmentField::Tr, &core.segments.tr),
            (SegmentField::Ldtr, &core.segments.ldtr),
        ] {
            vmcb::write_segment(&mut ground.mem, vmcb, field, segment);
        }
        for (field, _, register) in system_call_registers(core) {
            vmcb::write(&mut ground.mem, vmcb, field, *register);
        }
    }

    /// STGI (APM2 15.17).
    pub const fn stgi(&mut self) {
        self.gif = Gif::Set;
    }

    /// CLGI (APM2 15.17).
    pub const fn clgi(&mut self) {
        self.gif = Gif::Clear;
    }

    /// INVLPGA: drops one page of one ASID (APM2 15.16).
    pub fn invlpga(&self, core: &mut Core, ground: &mut Ground, address: Gva, asid: u32) {
        core.tlb.flush(ground, invlpga_scope(address, asid));
    }
}

/// #UD without EFER.SVME or outside protected mode, #GP(0) above CPL 0. VMMCALL has neither rule.
fn check_legality(core: &Core, decoded: Decoded) -> Result<(), Exception> {
    if decoded == Decoded::Vmmcall {
        return Ok(());
    }
    check_privilege(core)
}

fn check_privilege(core: &Core) -> Result<(), Exception> {
    let protected = core.cr0.contains(Cr0::PE) && !core.rflags.contains(Rflags::VM);
    if !core.efer.contains(Efer::SVME) || !protected {
        return Err(Exception::ud());
    }
    if core.cpl() != 0 {
        return Err(Exception::gp0());
    }
    Ok(())
}

/// #GP(0) unless rAX is a page-aligned physical address (APM3 VMRUN, VMLOAD, VMSAVE).
fn checked_address(core: &Core, address: u64) -> Result<Hpa, Exception> {
    if vmcb::is_valid_address(address, core.maxphyaddr) { Ok(Hpa(address)) } else { Err(Exception::gp0()) }
}

/// What VMLOAD does to a value: addresses are made canonical, not checked (APM2 15.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Value,
    Address,
}

fn system_call_registers(core: &mut Core) -> [(Field, Holds, &mut u64); 8] {
    let msrs = &mut core.msrs;
    [
        (Field::KernelGsBase, Holds::Address, &mut msrs.kernel_gs_base),
        (Field::Star, Holds::Value, &mut msrs.star),
        (Field::Lstar, Holds::Address, &mut msrs.lstar),
        (Field::Cstar, Holds::Address, &mut msrs.cstar),
        (Field::Sfmask, Holds::Value, &mut msrs.fmask),
        (Field::SysenterCs, Holds::Value, &mut msrs.sysenter_cs),
        (Field::SysenterEsp, Holds::Address, &mut msrs.sysenter_esp),
        (Field::SysenterEip, Holds::Address, &mut msrs.sysenter_eip),
    ]
}
