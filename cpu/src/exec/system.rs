//! Small privileged instructions: HLT WBINVD PAUSE STAC CLAC UD RDFSBASE and its kin (SDM 2, each instruction's page).

use crate::exec::context::Context;
use crate::exec::{Done, Fault, Flow};
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Mnemonic, Register};
use sim_core::addr::Gva;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;

pub(crate) fn hlt<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.ask(virt, &Trap::Hlt)?;
    Ok(Flow::Halted)
}

/// WBINVD: there are no caches to write back.
pub(crate) fn wbinvd<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.ask(virt, &Trap::Wbinvd)?;
    Ok(Flow::Next)
}

pub(crate) fn pause<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.ask(virt, &Trap::Pause)?;
    Ok(Flow::Next)
}

/// STAC and CLAC: #UD outside ring 0.
pub(crate) fn alignment_flag(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if cx.core.cpl() != 0 {
        return Err(Exception::ud().into());
    }
    let value = if insn.mnemonic() == Mnemonic::Stac { Rflags::AC } else { Rflags::empty() };
    cx.set_flags(Rflags::AC, value);
    Ok(Flow::Next)
}

/// UD0, UD1 and UD2.
pub(crate) fn undefined(_cx: &mut Context<'_>, _insn: &Instruction) -> Result<Flow, Fault> {
    Err(Exception::ud().into())
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
pub(crate) fn segment_base(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if !cx.core.cr4.contains(Cr4::FSGSBASE) {
        return Err(Exception::ud().into());
    }
    let register = insn.op0_register();
    let name = match insn.mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => Register::FS,
        _ => Register::GS,
    };
    if matches!(insn.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
        let base = cx.segment(name).base;
        cx.set_register(register, base);
        return Ok(Flow::Next);
    }
    let base = cx.register(register);
    if !Gva(base).is_canonical(cx.core.linear_width()) {
        return Err(Exception::gp0().into());
    }
    cx.segment_mut(name).base = base;
    Ok(Flow::Next)
}
