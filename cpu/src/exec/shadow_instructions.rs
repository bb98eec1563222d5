//! Instructions on shadow stacks: RDSSP INCSSP SAVEPREVSSP RSTORSSP WRSS WRUSS SETSSBSY CLRSSBSY (SDM 2, each page; SDM 1
//! 17.2.5; APM3, each page).

use crate::core::Bitness;
use crate::exec::cet::{self, Cause, bit};
use crate::exec::context::Context;
use crate::exec::shadow_stack::{ShadowStack, Width};
use crate::exec::{Done, Fault, Flow};
use crate::profile::Features;
use iced_x86::{Instruction, Mnemonic};
use sim_core::arch::access::{AccessKind, Privilege};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;

/// The busy bit of a supervisor shadow-stack token.
const BUSY: u64 = 1 << 0;
/// The bit that tells a previous-SSP token from a restore token.
const PREVIOUS: u64 = 1 << 1;

fn require(condition: bool, otherwise: Exception) -> Result<(), Fault> {
    if condition { Ok(()) } else { Err(otherwise.into()) }
}

/// #UD unless shadow stacks are enabled at the current level.
fn require_enabled(cx: &Context<'_>) -> Result<(), Fault> {
    require(cet::has_shadow_stack(cx.core, cx.core.cpl()), Exception::ud())
}

/// #UD in virtual-8086 mode and unless supervisor shadow stacks are enabled, then #GP(0) outside ring 0.
fn require_supervisor(cx: &Context<'_>) -> Result<(), Fault> {
    let on = cet::is_on(cx.core, cx.core.cpl()) && cet::has_shadow_stack(cx.core, 0);
    require(on, Exception::ud())?;
    cx.require_cpl0()
}

/// The mode bit of tokens: 1 in 64-bit mode.
const fn mode_bit(cx: &Context<'_>) -> u64 {
    matches!(cx.core.bitness(), Bitness::Bits64) as u64
}

/// The shadow stack that a memory operand points to, aligned to its size.
fn operand_stack(cx: &Context<'_>, insn: &Instruction, bytes: usize) -> Result<ShadowStack, Fault> {
    let address = cx.operand_address(insn, 0, bytes, AccessKind::Write)?;
    require(address.0.is_multiple_of(bytes as u64), Exception::gp0())?;
    Ok(ShadowStack::new(address.0, Width::of(cx), cx.core.cpl()))
}

/// RDSSPD and RDSSPQ: a NOP while shadow stacks are off.
pub(crate) fn rdssp(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if cet::has_shadow_stack(cx.core, cx.core.cpl()) {
        let ssp = cx.core.ssp;
        cx.set_register(insn.op0_register(), ssp);
    }
    Ok(Flow::Next)
}

/// INCSSPD and INCSSPQ: touches the first and the last element that it steps over.
pub(crate) fn incssp(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_enabled(cx)?;
    let bytes = insn.op0_register().size();
    let count = cx.register(insn.op0_register()) & 0xff;
    let stack = ShadowStack::current(cx);
    stack.load(cx, 0, bytes)?;
    if count > 0 {
        stack.load(cx, bytes as u64 * (count - 1), bytes)?;
    }
    cx.core.ssp = stack.width.wrap(stack.pointer.wrapping_add(bytes as u64 * count));
    Ok(Flow::Next)
}

/// SAVEPREVSSP: a restore token on the stack that the previous-SSP token names. CF tells of a hole above the token.
pub(crate) fn saveprevssp(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    require_enabled(cx)?;
    let mut stack = ShadowStack::current(cx);
    let mode = mode_bit(cx);
    require(stack.pointer & 7 == 0, Exception::gp0())?;
    let token = stack.pop(cx, 8)?;
    if cx.flag(Rflags::CF) {
        require(mode == 0, Exception::gp0())?;
        let hole = stack.pop(cx, 4)?;
        require(hole == 0, Exception::gp0())?;
    }
    require(token & PREVIOUS != 0 && (mode == 1 || token >> 32 == 0), Exception::gp0())?;
    let old = token & !3;
    stack.at(old.wrapping_sub(4)).store(cx, 0, 4)?;
    stack.at((old & !7).wrapping_sub(8)).store(cx, old | mode, 8)?;
    cx.core.ssp = stack.pointer;
    Ok(Flow::Next)
}

/// RSTORSSP: switches to a stack with a restore token, which becomes a previous-SSP token.
pub(crate) fn rstorssp(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_enabled(cx)?;
    let stack = operand_stack(cx, insn, 8)?;
    let (mode, ssp) = (mode_bit(cx), cx.core.ssp);
    let right = |token: u64| {
        let place = (token & !1).wrapping_sub(8) & !7;
        token & 3 == mode && (mode == 1 || token >> 32 == 0) && place == stack.pointer
    };
    let token = stack.exchange(cx, |token| if right(token) { ssp | mode | PREVIOUS } else { token })?;
    require(right(token), cet::control_protection(Cause::RestoreShadowStack))?;
    cx.core.ssp = stack.pointer;
    let hole = if token & 4 != 0 { Rflags::CF } else { Rflags::empty() };
    cx.set_flags(Rflags::STATUS, hole);
    Ok(Flow::Next)
}

/// WRSSD and WRSSQ, which have an enable of their own.
pub(crate) fn wrss(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_enabled(cx)?;
    require(cet::control(cx.core, cx.core.cpl()) & bit::WR_SHSTK_EN != 0, Exception::ud())?;
    let stack = operand_stack(cx, insn, insn.op1_register().size())?;
    write(cx, insn, &stack)
}

/// WRUSSD and WRUSSQ: a user access by ring 0.
pub(crate) fn wruss(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cet::is_on(cx.core, cx.core.cpl()) && cx.core.features.contains(Features::CET_SS), Exception::ud())?;
    cx.require_cpl0()?;
    let stack = operand_stack(cx, insn, insn.op1_register().size())?;
    write(cx, insn, &ShadowStack { privilege: Privilege::User, ..stack })
}

fn write(cx: &mut Context<'_>, insn: &Instruction, stack: &ShadowStack) -> Done {
    let source = insn.op1_register();
    let value = cx.register(source);
    stack.store(cx, value, source.size())?;
    Ok(Flow::Next)
}

/// SETSSBSY and CLRSSBSY.
pub(crate) fn busy(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_supervisor(cx)?;
    if insn.mnemonic() == Mnemonic::Setssbsy { set_busy(cx) } else { clear_busy(cx, insn) }
}

fn set_busy(cx: &mut Context<'_>) -> Done {
    let stack = ShadowStack::new(cx.core.msrs.pl_ssp[0], Width::of(cx), 0);
    let free = stack.pointer;
    require(free & 7 == 0, Exception::gp0())?;
    let token = stack.exchange(cx, |token| if token == free { free | BUSY } else { token })?;
    require(token == free, cet::control_protection(Cause::SetBusy))?;
    cx.core.ssp = free;
    Ok(Flow::Next)
}

fn clear_busy(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let stack = operand_stack(cx, insn, 8)?;
    let free = stack.pointer;
    let token = stack.exchange(cx, |token| if token == free | BUSY { free } else { token })?;
    let invalid = if token == free | BUSY { Rflags::empty() } else { Rflags::CF };
    cx.set_flags(Rflags::STATUS, invalid);
    cx.core.ssp = 0;
    Ok(Flow::Next)
}
