//! Virtual-8086 mode (SDM 3A 20.2): segments, instructions that depend on IOPL, and the way in by IRET. The way out is
//! event delivery, and both ways also a task switch.
//!
//! The extensions of CR4.VME (SDM 3A 20.3.2, 20.3.3) are left out, and named where they would matter.

use crate::core::Gpr;
use crate::exec::context::Context;
use crate::exec::far::check_entry;
use crate::exec::flagops::iopl;
use crate::exec::segment::null_segment;
use crate::exec::shadow_frame;
use crate::exec::stack::Stack;
use crate::exec::{Done, Fault, Flow};
use iced_x86::Register;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

/// Writable data of ring 3, accessed, for every segment register (SDM 3C 26.3.1.2).
const RIGHTS: Rights = Rights(0xf3);

/// The order in which the data-segment registers are pushed.
const DATA: [Register; 4] = [Register::GS, Register::FS, Register::DS, Register::ES];

impl Context<'_> {
    /// Whether virtual-8086 mode is on.
    pub(crate) const fn is_virtual_8086(&self) -> bool {
        self.core.rflags.contains(Rflags::VM) && !self.is_real_mode()
    }

    /// Whether selectors are paragraphs: real mode and virtual-8086 mode.
    pub(crate) const fn has_paragraphs(&self) -> bool {
        self.is_real_mode() || self.is_virtual_8086()
    }
}

/// A segment register in virtual-8086 mode: 64 KBytes from 16 times the selector (SDM 3A 20.2.1).
pub(crate) const fn segment(selector: u16) -> Segment {
    Segment { selector, base: (selector as u64) << 4, limit: 0xffff, rights: RIGHTS }
}

/// PUSHF, POPF, INT n and IRET in virtual-8086 mode: #GP(0) unless IOPL is 3 (SDM 3A 20.2.7, 20.2.8).
pub(crate) fn require_iopl(cx: &Context<'_>) -> Result<(), Fault> {
    if !cx.is_virtual_8086() {
        return Ok(());
    }
    if cx.core.cr4.contains(Cr4::VME) {
        return Err(Fault::unmodelled("virtual-8086 mode extensions (CR4.VME)"));
    }
    if iopl(cx) == 3 { Ok(()) } else { Err(Exception::gp0().into()) }
}

/// What an event out of virtual-8086 mode pushes before SS (SDM 3A 20.3.1.1); nothing in other modes.
pub(crate) fn pushed(cx: &Context<'_>) -> Vec<u64> {
    if !cx.is_virtual_8086() {
        return Vec::new();
    }
    DATA.map(|name| u64::from(cx.segment(name).selector)).to_vec()
}

/// The data-segment registers are null for the handler, where there was something pushed.
pub(crate) fn leave(cx: &mut Context<'_>) {
    if cx.is_virtual_8086() {
        for name in DATA {
            *cx.segment_mut(name) = null_segment(0, 0);
        }
    }
}

/// IRETD of ring 0 with VM in the flags' image: pops ESP and every other segment register, and loads all flags (SDM 2
/// IRET, RETURN-TO-VIRTUAL-8086-MODE).
pub(crate) fn enter(cx: &mut Context<'_>, rip: u64, cs: u16, flags: Rflags, stack: Stack) -> Done {
    const ORDER: [Register; 5] = [Register::SS, Register::ES, Register::DS, Register::FS, Register::GS];
    let mut stack = stack;
    let code = segment(cs);
    let esp = stack.pop(cx, 4)?;
    let mut selectors = [0; 5];
    for selector in &mut selectors {
        *selector = stack.pop(cx, 4)? as u16;
    }
    check_entry(cx, &code, rip, Exception::gp0())?;
    shadow_frame::leave_to_virtual_8086(cx)?;
    for (name, selector) in ORDER.into_iter().zip(selectors) {
        *cx.segment_mut(name) = segment(selector);
    }
    cx.effects.keeps_resume = true;
    cx.core.rflags = flags.union(Rflags::FIXED);
    cx.core.segments.cs = code;
    cx.core.set_gpr(Gpr::Rsp, esp);
    cx.core.rip = rip;
    Ok(Flow::Jumped)
}
