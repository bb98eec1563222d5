//! Instructions on the flags themselves: CLC STC CMC CLD STD CLI STI LAHF SAHF PUSHF POPF (SDM 2, each page).
//!
//! CR4.PVI and CR4.VME are left out.

use crate::core::Blocking;
use crate::exec::context::Context;
use crate::exec::moves::stack_bytes;
use crate::exec::stack::Stack;
use crate::exec::{Done, Fault, Flow, virtual8086};
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Register};
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;

pub(crate) fn clc(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    cx.set_flags(Rflags::CF, Rflags::empty());
    Ok(Flow::Next)
}

pub(crate) fn stc(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    cx.set_flags(Rflags::CF, Rflags::CF);
    Ok(Flow::Next)
}

pub(crate) fn cmc(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    cx.core.rflags.toggle(Rflags::CF);
    Ok(Flow::Next)
}

pub(crate) fn cld(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    cx.set_flags(Rflags::DF, Rflags::empty());
    Ok(Flow::Next)
}

pub(crate) fn std(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    cx.set_flags(Rflags::DF, Rflags::DF);
    Ok(Flow::Next)
}

/// The I/O privilege level.
pub(crate) fn iopl(cx: &Context<'_>) -> u8 {
    ((cx.core.rflags.bits() >> 12) & 3) as u8
}

/// #GP(0) unless CPL <= IOPL; real mode runs at CPL 0.
fn require_iopl(cx: &Context<'_>) -> Result<(), Fault> {
    if cx.core.cpl() <= iopl(cx) {
        return Ok(());
    }
    if cx.is_virtual_8086() {
        return virtual8086::require_iopl(cx);
    }
    if cx.core.cpl() == 3 && cx.core.cr4.contains(Cr4::PVI) {
        return Err(Fault::unmodelled("CLI or STI with CR4.PVI"));
    }
    Err(Exception::gp0().into())
}

pub(crate) fn cli(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    require_iopl(cx)?;
    cx.set_flags(Rflags::IF, Rflags::empty());
    Ok(Flow::Next)
}

pub(crate) fn sti(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    require_iopl(cx)?;
    if !cx.flag(Rflags::IF) {
        cx.effects.shadow = Blocking::STI;
    }
    cx.set_flags(Rflags::IF, Rflags::IF);
    Ok(Flow::Next)
}

/// SF, ZF, AF, PF and CF: what AH holds.
const AH_FLAGS: Rflags = Rflags::STATUS.difference(Rflags::OF);

pub(crate) fn lahf(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    let low = cx.core.rflags.intersection(AH_FLAGS).union(Rflags::FIXED);
    cx.set_register(Register::AH, low.bits());
    Ok(Flow::Next)
}

pub(crate) fn sahf(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    let value = Rflags::from_bits_truncate(cx.register(Register::AH));
    cx.set_flags(AH_FLAGS, value);
    Ok(Flow::Next)
}

/// PUSHF: VM and RF read as 0.
pub(crate) fn pushf<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    cx.ask(virt, &Trap::Pushf)?;
    virtual8086::require_iopl(cx)?;
    let image = cx.core.rflags.difference(Rflags::VM.union(Rflags::RF)).union(Rflags::FIXED);
    cx.push(image.bits(), stack_bytes(insn))?;
    Ok(Flow::Next)
}

/// The flags that POPF and IRET may change at a privilege level (SDM 2 POPF table 4-22, IRET).
pub(crate) fn writable_flags(cx: &Context<'_>, bytes: usize) -> Rflags {
    let always = Rflags::STATUS.union(Rflags::TF).union(Rflags::DF).union(Rflags::NT);
    let interrupt = if cx.core.cpl() <= iopl(cx) { Rflags::IF } else { Rflags::empty() };
    let level = if cx.core.cpl() == 0 { Rflags::IOPL } else { Rflags::empty() };
    let upper = if bytes == 2 { Rflags::empty() } else { Rflags::AC.union(Rflags::ID) };
    always.union(interrupt).union(level).union(upper)
}

/// POPF: RF is cleared; VM, VIF and VIP stay or are cleared, and they are 0 in this model.
pub(crate) fn popf<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    cx.ask(virt, &Trap::Popf)?;
    virtual8086::require_iopl(cx)?;
    let size = stack_bytes(insn);
    let mut stack = Stack::current(cx);
    let image = Rflags::from_bits_truncate(stack.pop(cx, size)?);
    cx.commit_stack(&stack);
    let writable = writable_flags(cx, size);
    cx.set_flags(writable, image);
    if size != 2 {
        cx.set_flags(Rflags::RF, Rflags::empty());
    }
    Ok(Flow::Next)
}
