//! Returns that load CS: IRET, IRETD, IRETQ and far RET, to the same or an outer privilege level (SDM 2 IRET, RET;
//! SDM 3A 6.14.4). With NT it is a task switch ([`crate::exec::task`]). Into virtual-8086 mode:
//! [`crate::exec::virtual8086`].
//!
//! Everything is read and checked first; then registers change together.

use crate::core::Blocking;
use crate::exec::context::Context;
use crate::exec::far::{check_entry, is_long_and_big, is_lost_at};
use crate::exec::flagops::writable_flags;
use crate::exec::segment::{gp, is_null, null_segment, real_mode_segment, rpl, selector_fault};
use crate::exec::shadow_frame::{self, Exit, Returns};
use crate::exec::stack::{Stack, StackWidth};
use crate::exec::{Done, Fault, Flow, task, virtual8086};
use crate::virt::{HeldEvents, Trap, Virt};
use iced_x86::{Instruction, Mnemonic, Register};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::Segment;

/// A return whose CS and offset have been popped.
pub(crate) struct Return {
    pub(crate) rip: u64,
    pub(crate) cs: u16,
    /// Operand size: 2, 4 or 8.
    pub(crate) size: usize,
    /// The flags, for IRET.
    pub(crate) flags: Option<Rflags>,
    /// Argument bytes to release, for RET.
    pub(crate) release: u64,
    /// The stack after what was popped.
    pub(crate) stack: Stack,
}

impl Return {
    const fn exit(&self, code: Segment, level: u8) -> Exit {
        Exit { code, level, rip: self.rip, by: if self.flags.is_some() { Returns::Iret } else { Returns::Ret } }
    }
}

/// IRET, IRETD, IRETQ.
pub(crate) fn iret<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    cx.ask(virt, &Trap::Iret)?;
    unblock_nmi(cx, virt);
    let size = match insn.mnemonic() {
        Mnemonic::Iret => 2,
        Mnemonic::Iretd => 4,
        _ => 8,
    };
    virtual8086::require_iopl(cx)?;
    if cx.flag(Rflags::NT) && !cx.has_paragraphs() {
        if cx.is_long_mode() {
            return Err(Exception::gp0().into());
        }
        task::back(cx, virt)?;
        return Ok(Flow::Jumped);
    }
    let mut stack = Stack::current(cx);
    let rip = stack.pop(cx, size)?;
    let cs = stack.pop(cx, size)? as u16;
    let flags = Rflags::from_bits_truncate(stack.pop(cx, size)?);
    if flags.contains(Rflags::VM) && !cx.is_long_mode() && cx.core.cpl() == 0 && !cx.is_real_mode() {
        return virtual8086::enter(cx, rip, cs, flags, stack);
    }
    return_far(cx, &Return { rip, cs, size, flags: Some(flags), release: 0, stack })
}

/// IRET ends the blocking by NMI, even if it faults (SDM 3A 6.7.1), unless the extension keeps it.
fn unblock_nmi<V: Virt>(cx: &mut Context<'_>, virt: &V) {
    if cx.core.blocking.contains(Blocking::NMI) && !virt.held(cx.core).contains(HeldEvents::IRET_KEEPS_NMI) {
        cx.core.blocking.remove(Blocking::NMI);
        cx.at.unblocked = Blocking::NMI;
    }
}

/// Finishes a return in any mode.
pub(crate) fn return_far(cx: &mut Context<'_>, to: &Return) -> Done {
    if cx.has_paragraphs() {
        let segment = real_mode_segment(cx.core.segments.cs, to.cs);
        check_entry(cx, &segment, to.rip, Exception::gp0())?;
        cx.commit_stack(&to.stack.released(to.release));
        set_flags(cx, to);
        return enter(cx, segment, to.rip);
    }
    let code = return_target(cx, to.cs)?;
    let level = rpl(to.cs);
    let outer = level > cx.core.cpl();
    // IRET in 64-bit mode pops RSP and SS whatever the privilege levels.
    if outer || (to.flags.is_some() && cx.is_64bit()) {
        return with_stack(cx, to, code, level);
    }
    check_entry(cx, &code, to.rip, Exception::gp0())?;
    shadow_frame::leave(cx, &to.exit(code, level))?;
    cx.commit_stack(&to.stack.released(to.release));
    set_flags(cx, to);
    enter(cx, code, to.rip)
}

fn enter(cx: &mut Context<'_>, code: Segment, rip: u64) -> Done {
    cx.core.segments.cs = code;
    cx.core.rip = rip;
    Ok(Flow::Jumped)
}

/// The flags change by the rules of the level that runs IRET, so before CPL does.
fn set_flags(cx: &mut Context<'_>, to: &Return) {
    if let Some(image) = to.flags {
        let resume = if to.size == 2 { Rflags::empty() } else { Rflags::RF };
        cx.effects.keeps_resume = true;
        let writable = writable_flags(cx, to.size).union(resume);
        cx.set_flags(writable, image);
    }
}

fn with_stack(cx: &mut Context<'_>, to: &Return, code: Segment, level: u8) -> Done {
    let mut stack = to.stack.released(to.release);
    let rsp = stack.pop(cx, to.size)?;
    let selector = stack.pop(cx, to.size)? as u16;
    let ss = return_stack(cx, selector, level, &code)?;
    check_entry(cx, &code, to.rip, Exception::gp0())?;
    shadow_frame::leave(cx, &to.exit(code, level))?;
    set_flags(cx, to);
    let long = cx.is_long_mode() && code.rights.is_long();
    let width = if long { StackWidth::Bits64 } else { StackWidth::of_segment(&ss) };
    if level > cx.core.cpl() {
        drop_inner_segments(cx, level);
    }
    cx.core.segments.ss = ss;
    cx.commit_stack(&Stack::new(ss, width, rsp.wrapping_add(to.release), level));
    enter(cx, code, to.rip)
}

/// Checks the code segment of a return (SDM 2 IRET, RET): its RPL is the new CPL and may not be below the old.
fn return_target(cx: &mut Context<'_>, selector: u16) -> Result<Segment, Fault> {
    if is_null(selector) {
        return Err(Exception::gp0().into());
    }
    let descriptor = cx.descriptor(selector, gp(selector))?;
    let (dpl, level) = (descriptor.rights().dpl(), rpl(selector));
    let privileged = if descriptor.is_conforming() { dpl <= level } else { dpl == level };
    if level < cx.core.cpl() || !descriptor.is_code() || !privileged || is_long_and_big(cx, &descriptor) {
        return Err(gp(selector).into());
    }
    if !descriptor.rights().is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector).into());
    }
    Ok(cx.mark_accessed(descriptor)?.segment(selector))
}

/// Checks the stack segment of a return; null is allowed into 64-bit code outside ring 3.
fn return_stack(cx: &mut Context<'_>, selector: u16, level: u8, code: &Segment) -> Result<Segment, Fault> {
    if is_null(selector) {
        let allowed = cx.is_long_mode() && code.rights.is_long() && level != 3 && rpl(selector) == level;
        return if allowed { Ok(null_segment(selector, level)) } else { Err(Exception::gp0().into()) };
    }
    let descriptor = cx.descriptor(selector, gp(selector))?;
    if rpl(selector) != level || !descriptor.is_writable_data() || descriptor.rights().dpl() != level {
        return Err(gp(selector).into());
    }
    if !descriptor.rights().is_present() {
        return Err(selector_fault(Vector::StackFault, selector).into());
    }
    Ok(cx.mark_accessed(descriptor)?.segment(selector))
}

/// Data segments that the new level may not use become null (SDM 3A 5.8.6).
fn drop_inner_segments(cx: &mut Context<'_>, level: u8) {
    for name in [Register::ES, Register::DS, Register::FS, Register::GS] {
        let segment = cx.segment(name);
        if is_lost_at(&segment, level) {
            *cx.segment_mut(name) = null_segment(0, 0);
        }
    }
}
