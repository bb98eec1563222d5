//! Instructions of VMX and SVM: operands are found here, everything else is the extension's.
//!
//! The extension is asked twice: before the operands are read, when it may exit or raise what comes before their faults
//! (SDM 3C 25.1.1), and with the operands, to carry the instruction out.

use crate::core::Gpr;
use crate::exec::context::{Context, gpr_of, mask};
use crate::exec::operand::is_memory;
use crate::exec::{Done, Fault, Flow};
use crate::virt::{ExtensionOpcode, Trap, Virt, VirtDone, VirtInstruction, VirtTarget};
use iced_x86::{Code, Instruction, Mnemonic};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;

/// Any instruction of an extension.
pub(crate) fn extension<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    cx.at.operand = cx.describe(insn);
    cx.ask(virt, &Trap::Extension(opcode(insn.mnemonic())?))?;
    let instruction = operands(cx, insn)?;
    match virt.instruction(cx.core, cx.ground, &instruction, cx.at)? {
        VirtDone::Next => Ok(Flow::Next),
        VirtDone::Moved(movement) => Ok(Flow::Moved(movement)),
    }
}

fn opcode(mnemonic: Mnemonic) -> Result<ExtensionOpcode, Fault> {
    Ok(match mnemonic {
        Mnemonic::Vmxon => ExtensionOpcode::Vmxon,
        Mnemonic::Vmclear => ExtensionOpcode::Vmclear,
        Mnemonic::Vmptrld => ExtensionOpcode::Vmptrld,
        Mnemonic::Vmptrst => ExtensionOpcode::Vmptrst,
        Mnemonic::Vmread => ExtensionOpcode::Vmread,
        Mnemonic::Vmwrite => ExtensionOpcode::Vmwrite,
        Mnemonic::Vmlaunch => ExtensionOpcode::Vmlaunch,
        Mnemonic::Vmresume => ExtensionOpcode::Vmresume,
        Mnemonic::Vmxoff => ExtensionOpcode::Vmxoff,
        Mnemonic::Vmcall => ExtensionOpcode::Vmcall,
        Mnemonic::Vmfunc => ExtensionOpcode::Vmfunc,
        Mnemonic::Invept => ExtensionOpcode::Invept,
        Mnemonic::Invvpid => ExtensionOpcode::Invvpid,
        Mnemonic::Vmrun => ExtensionOpcode::Vmrun,
        Mnemonic::Vmload => ExtensionOpcode::Vmload,
        Mnemonic::Vmsave => ExtensionOpcode::Vmsave,
        Mnemonic::Stgi => ExtensionOpcode::Stgi,
        Mnemonic::Clgi => ExtensionOpcode::Clgi,
        Mnemonic::Skinit => ExtensionOpcode::Skinit,
        Mnemonic::Vmmcall => ExtensionOpcode::Vmmcall,
        Mnemonic::Invlpga => ExtensionOpcode::Invlpga,
        other => return Err(Fault::unmodelled(format!("{other:?}"))),
    })
}

fn operands(cx: &mut Context<'_>, insn: &Instruction) -> Result<VirtInstruction, Fault> {
    Ok(match insn.mnemonic() {
        Mnemonic::Vmxon => VirtInstruction::Vmxon(quadword(cx, insn)?),
        Mnemonic::Vmclear => VirtInstruction::Vmclear(quadword(cx, insn)?),
        Mnemonic::Vmptrld => VirtInstruction::Vmptrld(quadword(cx, insn)?),
        Mnemonic::Vmptrst => VirtInstruction::Vmptrst(target(cx, insn, 8)?),
        Mnemonic::Vmread => vmread(cx, insn)?,
        Mnemonic::Vmwrite => {
            let field = cx.register(insn.op0_register());
            VirtInstruction::Vmwrite { field, value: cx.value(insn, 1)? }
        }
        Mnemonic::Vmlaunch => VirtInstruction::Vmlaunch,
        Mnemonic::Vmresume => VirtInstruction::Vmresume,
        Mnemonic::Vmxoff => VirtInstruction::Vmxoff,
        Mnemonic::Vmcall => VirtInstruction::Vmcall,
        Mnemonic::Vmfunc => VirtInstruction::Vmfunc,
        Mnemonic::Skinit => VirtInstruction::Skinit(cx.core.gpr(Gpr::Rax) as u32),
        Mnemonic::Invept => {
            let (kind, descriptor) = invalidation(cx, insn)?;
            VirtInstruction::Invept { kind, descriptor }
        }
        Mnemonic::Invvpid => {
            let (kind, descriptor) = invalidation(cx, insn)?;
            VirtInstruction::Invvpid { kind, descriptor }
        }
        Mnemonic::Vmrun => VirtInstruction::Vmrun(accumulator(cx, insn)),
        Mnemonic::Vmload => VirtInstruction::Vmload(accumulator(cx, insn)),
        Mnemonic::Vmsave => VirtInstruction::Vmsave(accumulator(cx, insn)),
        Mnemonic::Stgi => VirtInstruction::Stgi,
        Mnemonic::Clgi => VirtInstruction::Clgi,
        Mnemonic::Vmmcall => VirtInstruction::Vmmcall,
        Mnemonic::Invlpga => {
            let asid = cx.core.gpr(Gpr::Rcx) as u32;
            VirtInstruction::Invlpga { address: Gva(accumulator(cx, insn)), asid }
        }
        other => return Err(Fault::unmodelled(format!("{other:?}"))),
    })
}

fn quadword(cx: &mut Context<'_>, insn: &Instruction) -> Result<u64, Fault> {
    let span = cx.memory(insn, 0, 8, AccessKind::Read)?;
    Ok(cx.load(&span) as u64)
}

/// Where a result goes; memory is checked for segmentation here and for paging when it is written.
fn target(cx: &Context<'_>, insn: &Instruction, bytes: usize) -> Result<VirtTarget, Fault> {
    if !is_memory(insn, 0) {
        return Ok(VirtTarget::Register(gpr_of(insn.op0_register())));
    }
    Ok(VirtTarget::Memory(cx.operand_address(insn, 0, bytes, AccessKind::Write)?))
}

fn vmread(cx: &Context<'_>, insn: &Instruction) -> Result<VirtInstruction, Fault> {
    let field = cx.register(insn.op1_register());
    let bytes = insn.op1_register().size();
    Ok(VirtInstruction::Vmread { field, target: target(cx, insn, bytes)? })
}

/// The type and the two quadwords of INVEPT and INVVPID.
pub(crate) fn invalidation(cx: &mut Context<'_>, insn: &Instruction) -> Result<(u64, [u64; 2]), Fault> {
    let kind = cx.register(insn.op0_register());
    let span = cx.memory(insn, 1, 16, AccessKind::Read)?;
    let raw = cx.load(&span);
    Ok((kind, [raw as u64, (raw >> 64) as u64]))
}

/// rAX in the address size.
fn accumulator(cx: &Context<'_>, insn: &Instruction) -> u64 {
    let bytes = match insn.code() {
        Code::Vmrunw | Code::Vmloadw | Code::Vmsavew | Code::Invlpgaw => 2,
        Code::Vmrund | Code::Vmloadd | Code::Vmsaved | Code::Invlpgad => 4,
        _ => 8,
    };
    cx.core.gpr(Gpr::Rax) & mask(bytes)
}
