//! The VMX instructions as a guest on bare silicon runs them (SDM 3C 30.3): the exceptions in their order, the VM-exits of
//! non-root operation with what they tell, and the operations of [`Vmx`].

pub(crate) mod information;
mod shadow;
mod vmfunc;

use crate::capability::ept_vpid;
use crate::checks::is_eptp;
use crate::entry::{Entered, Entry};
use crate::error::{InstructionError, VmFail};
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::unit::{Operation, Vmx, show};
use cpu::core::Bitness;
use cpu::paging::translate::translate;
use cpu::virt::{At, ExtensionOpcode, Movement, VirtDone, VirtInstruction, VirtTarget};
use cpu::{Core, Fault, Virt};
use sim_core::addr::PAGE_BYTES;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::{Ground, Gva, Hpa};

/// Where an instruction that passed its checks is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// By the processor itself.
    Execute,
    /// It leaves the guest.
    Exit,
}

impl Vmx {
    pub(crate) fn execute(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        let Some((opcode, reason)) = opcode(instruction) else {
            return Err(Exception::ud().into());
        };
        if opcode == ExtensionOpcode::Vmfunc {
            return self.vmfunc(core, ground, at);
        }
        match self.admit(core, ground, instruction, opcode)? {
            Verdict::Execute => self.carry_out(core, ground, instruction),
            Verdict::Exit => {
                let exit = Exit::instruction(reason, at.length)
                    .qualified(information::displacement(&at.operand))
                    .informed(information::of_opcode(opcode, &at.operand));
                self.leave(core, ground, exit)?;
                self.exiting = Some(*instruction);
                Ok(VirtDone::Moved(Movement::Exited))
            }
        }
    }

    /// #UD, VM-exit, #GP(0), in the order of the manual's pseudocode: VMCALL leaves the guest from every mode.
    fn admit(
        &self,
        core: &Core,
        ground: &Ground,
        instruction: &VirtInstruction,
        opcode: ExtensionOpcode,
    ) -> Result<Verdict, Exception> {
        let off = self.operation == Operation::Off;
        let is_vmxon = opcode == ExtensionOpcode::Vmxon;
        if !self.exists(opcode) || (off && !(is_vmxon && core.cr4.contains(Cr4::VMXE))) {
            return Err(Exception::ud());
        }
        let is_guest = self.operation == Operation::NonRoot;
        if is_guest && opcode == ExtensionOpcode::Vmcall {
            return Ok(Verdict::Exit);
        }
        if !can_decode(core) {
            return Err(Exception::ud());
        }
        if is_guest && !self.is_shadowed(ground, instruction) {
            return Ok(Verdict::Exit);
        }
        if core.cpl() > 0 || (off && !self.allows_vmxon(core)) {
            return Err(Exception::gp0());
        }
        Ok(Verdict::Execute)
    }

    /// The exception of an instruction of an extension that comes before its operands are read. In a guest that is #UD
    /// alone: what follows depends on the operands, or is a VM-exit.
    pub(crate) fn refusal(&self, core: &Core, opcode: ExtensionOpcode) -> Option<Exception> {
        let is_vmx = matches!(
            opcode,
            ExtensionOpcode::Vmxon
                | ExtensionOpcode::Vmclear
                | ExtensionOpcode::Vmptrld
                | ExtensionOpcode::Vmptrst
                | ExtensionOpcode::Vmread
                | ExtensionOpcode::Vmwrite
                | ExtensionOpcode::Vmlaunch
                | ExtensionOpcode::Vmresume
                | ExtensionOpcode::Vmxoff
                | ExtensionOpcode::Vmcall
                | ExtensionOpcode::Vmfunc
                | ExtensionOpcode::Invept
                | ExtensionOpcode::Invvpid
        );
        let off = self.operation == Operation::Off;
        let is_guest = self.operation == Operation::NonRoot;
        let starts = opcode == ExtensionOpcode::Vmxon && core.cr4.contains(Cr4::VMXE);
        let needs_mode = !(is_guest && opcode == ExtensionOpcode::Vmcall) && opcode != ExtensionOpcode::Vmfunc;
        if !is_vmx || !self.exists(opcode) || (off && !starts) || (needs_mode && !can_decode(core)) {
            return Some(Exception::ud());
        }
        let is_barred = core.cpl() > 0 || (off && !self.allows_vmxon(core));
        (!is_guest && opcode != ExtensionOpcode::Vmfunc && is_barred).then(Exception::gp0)
    }

    /// INVEPT and INVVPID exist only where IA32_VMX_EPT_VPID_CAP says so.
    fn exists(&self, opcode: ExtensionOpcode) -> bool {
        let needs = match opcode {
            ExtensionOpcode::Invept => ept_vpid::INVEPT,
            ExtensionOpcode::Invvpid => ept_vpid::INVVPID,
            _ => 0,
        };
        self.capabilities.ept_vpid & needs == needs
    }

    fn carry_out(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
    ) -> Result<VirtDone, Fault> {
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
                let region = self.accessed(ground).ok_or(VmFail::Invalid)?;
                self.write_operand(ground, region, field, value)
            }
            // No SMM-transfer monitor can be activated: IA32_SMM_MONITOR_CTL does not exist.
            VirtInstruction::Vmcall => Err(self.vmfail(ground, InstructionError::VmcallInRoot)),
            VirtInstruction::Invept { kind, descriptor } => {
                let is_eptp = is_eptp(&self.capabilities, core.maxphyaddr, descriptor[0]);
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
        let read = match self.accessed(ground) {
            Some(region) => self.read_operand(ground, region, field),
            None => Err(VmFail::Invalid),
        };
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

/// Which VMX instruction it is, and its exit reason in non-root operation (SDM 3C 25.1.2); none for SVM's instructions.
const fn opcode(instruction: &VirtInstruction) -> Option<(ExtensionOpcode, ExitReason)> {
    use ExtensionOpcode as Opcode;
    Some(match instruction {
        VirtInstruction::Vmxon(_) => (Opcode::Vmxon, ExitReason::Vmxon),
        VirtInstruction::Vmclear(_) => (Opcode::Vmclear, ExitReason::Vmclear),
        VirtInstruction::Vmptrld(_) => (Opcode::Vmptrld, ExitReason::Vmptrld),
        VirtInstruction::Vmptrst(_) => (Opcode::Vmptrst, ExitReason::Vmptrst),
        VirtInstruction::Vmread { .. } => (Opcode::Vmread, ExitReason::Vmread),
        VirtInstruction::Vmwrite { .. } => (Opcode::Vmwrite, ExitReason::Vmwrite),
        VirtInstruction::Vmlaunch => (Opcode::Vmlaunch, ExitReason::Vmlaunch),
        VirtInstruction::Vmresume => (Opcode::Vmresume, ExitReason::Vmresume),
        VirtInstruction::Vmxoff => (Opcode::Vmxoff, ExitReason::Vmxoff),
        VirtInstruction::Vmcall => (Opcode::Vmcall, ExitReason::Vmcall),
        VirtInstruction::Vmfunc => (Opcode::Vmfunc, ExitReason::Vmfunc),
        VirtInstruction::Invept { .. } => (Opcode::Invept, ExitReason::Invept),
        VirtInstruction::Invvpid { .. } => (Opcode::Invvpid, ExitReason::Invvpid),
        VirtInstruction::Vmrun(_)
        | VirtInstruction::Vmload(_)
        | VirtInstruction::Vmsave(_)
        | VirtInstruction::Stgi
        | VirtInstruction::Clgi
        | VirtInstruction::Vmmcall
        | VirtInstruction::Invlpga { .. }
        | VirtInstruction::Skinit(_) => return None,
    })
}
