//! Shadow stacks across far transfers: far CALL, JMP and RET, events, IRET and system calls (SDM 1 17.2.2, 17.2.3; SDM 2
//! CALL, JMP, RET, IRET, INT n, SYSCALL, SYSRET, SYSENTER, SYSEXIT; APM2 18).
//!
//! A transfer that switches shadow stacks takes the token at the base of the new one, which must not be busy, and gives it
//! back on the way out. Each function here is the last of its instruction that may fault: tokens and frames in memory
//! come first, registers after them. If a push faults, the token stays busy, as the manual says. The rule that a token and
//! its frame share 32 bytes is Intel's, and applies here to both vendors. Left out: task switches.

use crate::core::Core;
use crate::exec::Fault;
use crate::exec::cet::{self, Cause};
use crate::exec::context::Context;
use crate::exec::ibt;
use crate::exec::shadow_stack::{ShadowStack, Width};
use crate::profile::Features;
use sim_core::addr::Gva;
use sim_core::arch::exception::Exception;
use sim_core::arch::segment::Segment;

/// The busy bit of a supervisor shadow-stack token.
const BUSY: u64 = 1 << 0;
/// CS, linear instruction pointer and SSP, a quadword each.
const FRAME_BYTES: u64 = 24;

/// An event on its way to its handler, or a call through a gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// The code segment that is entered.
    pub(crate) code: Segment,
    /// Its privilege level.
    pub(crate) cpl: u8,
    /// The IST field of an interrupt or trap gate.
    pub(crate) ist: u8,
    /// The offset to come back to.
    pub(crate) return_rip: u64,
}

/// A return on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// The code segment that is returned to.
    pub(crate) code: Segment,
    /// Its privilege level.
    pub(crate) level: u8,
    /// The offset in it.
    pub(crate) rip: u64,
    /// Which instruction returns.
    pub(crate) by: Returns,
}

/// Who returns: only IRET can leave a shadow stack of the interrupt SSP table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Returns {
    /// Far RET.
    Ret,
    /// IRET.
    Iret,
}

/// The linear address of an offset in a code segment.
const fn linear(cx: &Context<'_>, code: &Segment, rip: u64) -> u64 {
    match width(cx, code) {
        Width::Bits64 => rip,
        Width::Bits32 => code.base.wrapping_add(rip) & 0xffff_ffff,
    }
}

/// The width of a shadow stack under a code segment.
const fn width(cx: &Context<'_>, code: &Segment) -> Width {
    if cx.is_long_mode() && code.rights.is_long() { Width::Bits64 } else { Width::Bits32 }
}

/// #GP(0) unless code of this segment can use the pointer.
fn require_reach(cx: &Context<'_>, code: &Segment, ssp: u64) -> Result<(), Fault> {
    let reached = match width(cx, code) {
        Width::Bits64 => Gva(ssp).is_canonical(cx.core.linear_width()),
        Width::Bits32 => ssp >> 32 == 0,
    };
    if reached { Ok(()) } else { Err(Exception::gp0().into()) }
}

/// Pushes the frame of the code being run, on a stack that is aligned already.
fn push_frame(cx: &mut Context<'_>, stack: &mut ShadowStack, return_rip: u64) -> Result<(), Fault> {
    let cs = cx.core.segments.cs;
    for value in [u64::from(cs.selector), linear(cx, &cs, return_rip), cx.core.ssp] {
        stack.push(cx, value, 8)?;
    }
    Ok(())
}

/// Fills a hole of four bytes with zeroes, or what the frame overwrites, so that no stale token is left, and pushes.
fn push_aligned_frame(cx: &mut Context<'_>, stack: &mut ShadowStack, return_rip: u64) -> Result<(), Fault> {
    stack.at(stack.pointer.wrapping_sub(4)).store(cx, 0, 4)?;
    stack.pointer &= !7;
    push_frame(cx, stack, return_rip)
}

/// Takes the token of a shadow stack: #GP(0) unless it is free and right.
fn acquire(cx: &mut Context<'_>, stack: &ShadowStack) -> Result<(), Fault> {
    let free = stack.pointer;
    let taken = |token| if token == free { free | BUSY } else { token };
    let aligned = free & 7 == 0 && (free & !0x1f) == (free.wrapping_sub(FRAME_BYTES) & !0x1f);
    if aligned && stack.exchange(cx, taken)? == free { Ok(()) } else { Err(Exception::gp0().into()) }
}

/// Gives a token back if it is there; if not, nothing happens.
fn release(cx: &mut Context<'_>, stack: &ShadowStack) -> Result<(), Fault> {
    let free = stack.pointer;
    stack.exchange(cx, |token| if token == free | BUSY { free } else { token }).map(|_| ())
}

/// A pointer as IA32_PL3_SSP keeps it: the bits that no linear address has repeat the topmost one that it has.
const fn adjusted(core: &Core, long: bool, ssp: u64) -> u64 {
    if !long {
        return ssp;
    }
    let unused = if core.features.contains(Features::LA57) { 64 - 57 } else { 64 - 48 };
    (((ssp << unused) as i64) >> unused) as u64
}

fn keep_user_pointer(cx: &mut Context<'_>) {
    cx.core.msrs.pl_ssp[3] = adjusted(cx.core, cx.is_long_mode(), cx.core.ssp);
}

/// Far JMP.
pub(crate) fn jump(cx: &mut Context<'_>, code: &Segment) -> Result<(), Fault> {
    let cpl = cx.core.cpl();
    if cet::has_shadow_stack(cx.core, cpl) && width(cx, code) == Width::Bits32 {
        require_reach(cx, code, cx.core.ssp)?;
    }
    ibt::track(cx.core, cpl);
    Ok(())
}

/// Far CALL to the same privilege level.
pub(crate) fn call(cx: &mut Context<'_>, code: &Segment) -> Result<(), Fault> {
    let cpl = cx.core.cpl();
    if cet::has_shadow_stack(cx.core, cpl) {
        let mut stack = ShadowStack::new(cx.core.ssp, width(cx, code), cpl);
        if stack.width == Width::Bits32 {
            require_reach(cx, code, stack.pointer)?;
        }
        push_aligned_frame(cx, &mut stack, cx.next_rip())?;
        cx.core.ssp = stack.pointer;
    }
    ibt::track(cx.core, cpl);
    Ok(())
}

/// Delivery of an event, and CALL through a gate. CS and CPL are still those of the code that is left.
pub(crate) fn enter(cx: &mut Context<'_>, entry: &Entry) -> Result<(), Fault> {
    if !cet::is_on(cx.core, entry.cpl) {
        return Ok(());
    }
    let from = cx.core.cpl();
    let entered = if cet::has_shadow_stack(cx.core, entry.cpl) { Some(switch(cx, entry, from)?) } else { None };
    if from == 3 && entry.cpl < 3 && cet::has_shadow_stack(cx.core, 3) {
        keep_user_pointer(cx);
    }
    cx.core.ssp = entered.unwrap_or(cx.core.ssp);
    ibt::track(cx.core, entry.cpl);
    Ok(())
}

/// The shadow stack that is entered, with a frame on it if the code that is left is not a user's: the pointer.
fn switch(cx: &mut Context<'_>, entry: &Entry, from: u8) -> Result<u64, Fault> {
    let inner = entry.cpl < from;
    let switches = inner || entry.ist != 0;
    let pointer = match (entry.ist, inner) {
        (0, true) => cx.core.msrs.pl_ssp[usize::from(entry.cpl)],
        (0, false) => cx.core.ssp,
        (ist, _) => cx.read_system(cx.core.msrs.interrupt_ssp_table.wrapping_add(8 * u64::from(ist)), 8)?,
    };
    let mut stack = ShadowStack::new(pointer, width(cx, &entry.code), entry.cpl);
    if switches {
        if stack.width == Width::Bits32 {
            require_reach(cx, &entry.code, pointer)?;
        }
        acquire(cx, &stack)?;
    }
    match (inner, from) {
        (false, _) => push_aligned_frame(cx, &mut stack, entry.return_rip)?,
        (true, 3) => {}
        (true, _) => push_frame(cx, &mut stack, entry.return_rip)?,
    }
    Ok(stack.pointer)
}

/// Far RET and IRET. CS and CPL are still those of the code that returns.
pub(crate) fn leave(cx: &mut Context<'_>, exit: &Exit) -> Result<(), Fault> {
    let from = cx.core.cpl();
    let had = cet::has_shadow_stack(cx.core, from);
    if exit.level == from {
        return if had { leave_within(cx, exit) } else { Ok(()) };
    }
    let mut stack = ShadowStack::current(cx);
    let mut ssp = cx.core.msrs.pl_ssp[3];
    if had && exit.level == 3 {
        require_aligned(&stack)?;
    } else if had {
        ssp = pop_frame(cx, &mut stack, exit)?;
    }
    let has = cet::has_shadow_stack(cx.core, exit.level);
    if has {
        require_reach(cx, &exit.code, ssp)?;
    }
    if had {
        release(cx, &stack)?;
    }
    if has {
        cx.core.ssp = ssp;
    }
    Ok(())
}

/// IRET into virtual-8086 mode, which has no shadow stack: only the token is given back.
pub(crate) fn leave_to_virtual_8086(cx: &mut Context<'_>) -> Result<(), Fault> {
    if !cet::has_shadow_stack(cx.core, cx.core.cpl()) {
        return Ok(());
    }
    let stack = ShadowStack::current(cx);
    require_aligned(&stack)?;
    release(cx, &stack)
}

/// A return to the same level. An IRET that finds another stack in its frame left one of the interrupt SSP table.
fn leave_within(cx: &mut Context<'_>, exit: &Exit) -> Result<(), Fault> {
    let mut stack = ShadowStack::current(cx);
    let ssp = pop_frame(cx, &mut stack, exit)?;
    require_reach(cx, &exit.code, ssp)?;
    if exit.by == Returns::Iret && cx.is_long_mode() && ssp != stack.pointer {
        release(cx, &stack)?;
    }
    cx.core.ssp = ssp;
    Ok(())
}

fn require_aligned(stack: &ShadowStack) -> Result<(), Fault> {
    if stack.pointer & 7 == 0 { Ok(()) } else { Err(cet::control_protection(Cause::FarReturn).into()) }
}

/// Pops a frame, which must be that of the code returned to, and returns the pointer in it.
fn pop_frame(cx: &mut Context<'_>, stack: &mut ShadowStack, exit: &Exit) -> Result<u64, Fault> {
    require_aligned(stack)?;
    let ssp = stack.pop(cx, 8)?;
    let rip = stack.pop(cx, 8)?;
    let cs = stack.pop(cx, 8)?;
    let same = cs == u64::from(exit.code.selector) && rip == linear(cx, &exit.code, exit.rip);
    if same && ssp & 3 == 0 { Ok(ssp) } else { Err(cet::control_protection(Cause::FarReturn).into()) }
}

/// SYSCALL and SYSENTER, before CPL changes. Ring 0 starts without a shadow stack, and takes one by SETSSBSY.
pub(crate) fn enter_system(cx: &mut Context<'_>) {
    if cet::has_shadow_stack(cx.core, cx.core.cpl()) {
        keep_user_pointer(cx);
    }
    if cet::has_shadow_stack(cx.core, 0) {
        cx.core.ssp = 0;
    }
    ibt::track(cx.core, 0);
}

/// SYSRET and SYSEXIT.
pub(crate) const fn leave_system(cx: &mut Context<'_>) {
    if cet::has_shadow_stack(cx.core, 3) {
        cx.core.ssp = cx.core.msrs.pl_ssp[3];
    }
}
