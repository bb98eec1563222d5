//! The instructions of SVM: legality, interception and effect (APM2 15.5, 15.8, 15.16.3, 15.17; APM3 chapter 4).
//!
//! Order: #UD, then #GP for CPL, then the intercept, then #GP for an address in rAX (APM2 table 15-7; an address that
//! is wrong for the host need not be wrong for the guest, so it can't come before the intercept).

use crate::asid::invlpga_scope;
use crate::entry::Entered;
use crate::exit::Exit;
use crate::intercept::{instruction_row, next_rip};
use crate::unit::{Gif, Svm};
use crate::vmcb::{self, Field, SegmentField};
use cpu::Core;
use cpu::exec::Fault;
use cpu::virt::{At, Movement, VirtDone, VirtInstruction};
use serde::{Deserialize, Serialize};
use sim_core::addr::Gva;
use sim_core::arch::control::{Cr0, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::{Ground, Hpa};

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
            self.exit(core, ground, &Exit::instruction(code, next))?;
            self.exiting = Some(decoded);
            return Ok(VirtDone::Moved(Movement::Exited));
        }
        match decoded {
            Decoded::Vmrun(address) => {
                let vmcb = checked_address(core, address)?;
                core.rip = next_rip(core, at);
                let movement = match self.enter(core, ground, vmcb)? {
                    Entered::Guest => Movement::Entered,
                    Entered::Refused => Movement::Exited,
                };
                return Ok(VirtDone::Moved(movement));
            }
            Decoded::Vmload(address) => {
                let vmcb = checked_address(core, address)?;
                self.vmload(core, ground, vmcb);
            }
            Decoded::Vmsave(address) => {
                let vmcb = checked_address(core, address)?;
                self.vmsave(core, ground, vmcb);
            }
            Decoded::Stgi => self.stgi(),
            Decoded::Clgi => self.clgi(),
            // APM3 VMMCALL: without an intercept, in the host too, there is nobody to call.
            Decoded::Vmmcall => return Err(Exception::ud().into()),
            Decoded::Invlpga { address, asid } => self.invlpga(core, ground, address, asid),
        }
        Ok(VirtDone::Next)
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
        for (field, register) in system_call_registers(core) {
            *register = vmcb::read(&ground.mem, vmcb, field);
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
        for (field, register) in system_call_registers(core) {
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

    /// INVLPGA: drops one page of one ASID (APM2 15.16.3).
    pub fn invlpga(&mut self, core: &mut Core, ground: &mut Ground, address: Gva, asid: u32) {
        let current = self.running.as_ref().map_or(0, |running| running.controls.asid);
        let pcid = if asid == current {
            Some(core.pcid())
        } else {
            self.last.and_then(|(last, pcid)| (last == asid).then_some(pcid))
        };
        core.tlb.flush(ground, invlpga_scope(address, asid, pcid));
    }
}

/// #UD without EFER.SVME or outside protected mode, #GP(0) above CPL 0. VMMCALL has neither rule.
fn check_legality(core: &Core, decoded: Decoded) -> Result<(), Exception> {
    if decoded == Decoded::Vmmcall {
        return Ok(());
    }
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

fn system_call_registers(core: &mut Core) -> [(Field, &mut u64); 8] {
    let msrs = &mut core.msrs;
    [
        (Field::KernelGsBase, &mut msrs.kernel_gs_base),
        (Field::Star, &mut msrs.star),
        (Field::Lstar, &mut msrs.lstar),
        (Field::Cstar, &mut msrs.cstar),
        (Field::Sfmask, &mut msrs.fmask),
        (Field::SysenterCs, &mut msrs.sysenter_cs),
        (Field::SysenterEsp, &mut msrs.sysenter_esp),
        (Field::SysenterEip, &mut msrs.sysenter_eip),
    ]
}
