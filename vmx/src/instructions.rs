//! The VMX instructions as a guest on bare silicon runs them (SDM 3C 30.3): the exceptions, the VM-exits of non-root
//! operation, and the operations of [`Vmx`].
//!
//! The VM-exit instruction-information field is 0 and the exit qualification of these exits too: they describe the
//! operands' addressing forms, which the CPU has already resolved ([`Vmx::exiting_instruction`]).

use crate::checks::View;
use crate::entry::{Entered, Entry};
use crate::error::{InstructionError, VmFail};
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::unit::{Operation, Vmx, show};
use crate::vmcs::Region;
use cpu::core::Bitness;
use cpu::paging::translate::translate;
use cpu::virt::{At, Movement, VirtDone, VirtInstruction, VirtTarget};
use cpu::{Core, Fault, Virt};
use sim_core::addr::PAGE_BYTES;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::{Ground, Gva, Hpa};

impl Vmx {
    pub(crate) fn execute(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        let Some(reason) = exit_reason(instruction) else {
            return Err(Exception::ud().into());
        };
        let is_vmxon = matches!(instruction, VirtInstruction::Vmxon(_));
        let off = self.operation == Operation::Off;
        if !can_decode(core) || (off && !(is_vmxon && core.cr4.contains(Cr4::VMXE))) {
            return Err(Exception::ud().into());
        }
        if self.operation == Operation::NonRoot {
            self.leave(core, ground, Exit::instruction(reason, at.length))?;
            self.exiting = Some(*instruction);
            return Ok(VirtDone::Moved(Movement::Exited));
        }
        if core.cpl() > 0 || (off && !self.allows_vmxon(core)) {
            return Err(Exception::gp0().into());
        }
        match instruction {
            VirtInstruction::Vmlaunch => self.enter_from_root(core, ground, Entry::Launch),
            VirtInstruction::Vmresume => self.enter_from_root(core, ground, Entry::Resume),
            VirtInstruction::Vmptrst(target) => {
                let pointer = self.current().unwrap_or(Hpa::INVALID);
                self.store(core, ground, *target, pointer.0, 8)?;
                let _ = show(core, Ok(()));
                Ok(VirtDone::Next)
            }
            VirtInstruction::Vmread { field, target } => self.vmread_to(core, ground, *field, *target),
            other => {
                let done = self.operate(core, ground, other);
                let _ = show(core, done);
                Ok(VirtDone::Next)
            }
        }
    }

    /// What keeps VMXON from starting VMX operation with #GP(0): control registers without the fixed bits (SDM 3C
    /// 23.7, 23.8).
    fn allows_vmxon(&self, core: &Core) -> bool {
        let keeps = |value: u64, (must, may): (u64, u64)| value & must == must && value & !may == 0;
        keeps(core.cr0.bits(), self.capabilities.cr0_fixed) && keeps(core.cr4.bits(), self.capabilities.cr4_fixed)
    }

    /// The instructions that only succeed or fail.
    fn operate(&mut self, core: &mut Core, ground: &mut Ground, instruction: &VirtInstruction) -> Result<(), VmFail> {
        match *instruction {
            VirtInstruction::Vmxon(region) => self.vmxon(core, ground, Hpa(region)),
            VirtInstruction::Vmxoff => self.vmxoff(core, ground),
            VirtInstruction::Vmclear(region) => self.vmclear(ground, Hpa(region)),
            VirtInstruction::Vmptrld(region) => self.vmptrld(ground, Hpa(region)),
            VirtInstruction::Vmwrite { field, value } => {
                ground.charge(Cost::VmcsAccess);
                self.write_operand(ground, field, value)
            }
            VirtInstruction::Vmcall => Err(self.vmfail(ground, InstructionError::VmcallInRoot)),
            VirtInstruction::Invept { kind, descriptor } => {
                let region = Region(Hpa(0));
                let is_eptp = View { ground, region, capabilities: &self.capabilities, core }.is_eptp(descriptor[0]);
                self.invept_operands(core, ground, kind, descriptor, is_eptp)
            }
            VirtInstruction::Invvpid { kind, descriptor } => self.invvpid_operands(core, ground, kind, descriptor),
            _ => Err(VmFail::Invalid),
        }
    }

    fn enter_from_root(&mut self, core: &mut Core, ground: &mut Ground, how: Entry) -> Result<VirtDone, Fault> {
        Ok(match (self.enter(core, ground, how)?, self.operation) {
            (Entered::Failed(_), _) => VirtDone::Next,
            (Entered::Guest, Operation::NonRoot) => VirtDone::Moved(Movement::Entered),
            (Entered::Guest | Entered::Refused, _) => VirtDone::Moved(Movement::Exited),
        })
    }

    /// VMREAD. Outside 64-bit mode the destination has 32 bits.
    fn vmread_to(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        field: u64,
        target: VirtTarget,
    ) -> Result<VirtDone, Fault> {
        ground.charge(Cost::VmcsAccess);
        let bytes = if core.bitness() == Bitness::Bits64 { 8 } else { 4 };
        let read = self.read_operand(ground, field);
        if let Ok(value) = read {
            self.store(core, ground, target, value, bytes)?;
        }
        let _ = show(core, read);
        Ok(VirtDone::Next)
    }

    fn store(
        &self,
        core: &mut Core,
        ground: &mut Ground,
        target: VirtTarget,
        value: u64,
        bytes: usize,
    ) -> Result<(), Fault> {
        match target {
            VirtTarget::Register(gpr) if bytes == 4 => core.set_gpr(gpr, value & 0xffff_ffff),
            VirtTarget::Register(gpr) => core.set_gpr(gpr, value),
            VirtTarget::Memory(gva) => self.store_memory(core, ground, gva, &value.to_le_bytes()[..bytes])?,
        }
        Ok(())
    }

    /// Writes at a linear address. Every page is translated before anything is written.
    fn store_memory(&self, core: &mut Core, ground: &mut Ground, gva: Gva, bytes: &[u8]) -> Result<(), Fault> {
        let privilege = if core.cpl() == 3 { Privilege::User } else { Privilege::Supervisor };
        let access = Access::new(AccessKind::Write, privilege);
        let regime = self.regime(core);
        let within = ((PAGE_BYTES - gva.page_offset()) as usize).min(bytes.len());
        let (head, tail) = bytes.split_at(within);
        let first = translate(core, &regime, ground, gva, access)?;
        let second = match tail {
            [] => first,
            _ => translate(core, &regime, ground, gva.offset(within as u64), access)?,
        };
        ground.charge(Cost::DataAccess);
        ground.mem.write_bytes(first, head);
        ground.mem.write_bytes(second, tail);
        Ok(())
    }
}

/// VMX instructions don't exist in real-address mode, in virtual-8086 mode and in compatibility mode (SDM 3C 30.3).
const fn can_decode(core: &Core) -> bool {
    let compatibility = core.efer.contains(Efer::LMA) && !core.segments.cs.rights.is_long();
    core.cr0.contains(Cr0::PE) && !core.rflags.contains(Rflags::VM) && !compatibility
}

/// The exit reason of a VMX instruction in non-root operation (SDM 3C 25.1.2); none for SVM's instructions.
const fn exit_reason(instruction: &VirtInstruction) -> Option<ExitReason> {
    Some(match instruction {
        VirtInstruction::Vmxon(_) => ExitReason::Vmxon,
        VirtInstruction::Vmclear(_) => ExitReason::Vmclear,
        VirtInstruction::Vmptrld(_) => ExitReason::Vmptrld,
        VirtInstruction::Vmptrst(_) => ExitReason::Vmptrst,
        VirtInstruction::Vmread { .. } => ExitReason::Vmread,
        VirtInstruction::Vmwrite { .. } => ExitReason::Vmwrite,
        VirtInstruction::Vmlaunch => ExitReason::Vmlaunch,
        VirtInstruction::Vmresume => ExitReason::Vmresume,
        VirtInstruction::Vmxoff => ExitReason::Vmxoff,
        VirtInstruction::Vmcall => ExitReason::Vmcall,
        VirtInstruction::Invept { .. } => ExitReason::Invept,
        VirtInstruction::Invvpid { .. } => ExitReason::Invvpid,
        VirtInstruction::Vmrun(_)
        | VirtInstruction::Vmload(_)
        | VirtInstruction::Vmsave(_)
        | VirtInstruction::Stgi
        | VirtInstruction::Clgi
        | VirtInstruction::Vmmcall
        | VirtInstruction::Invlpga { .. } => return None,
    })
}
