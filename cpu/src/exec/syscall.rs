//! System calls: SYSCALL SYSRET SYSENTER SYSEXIT (SDM 2, each page; APM3, each page; SDM 3A 5.8.7, 5.8.8).
//!
//! The vendors differ, and the extension tells which one the processor is from: AMD's has SYSCALL in legacy and
//! compatibility mode too but no SYSENTER in long mode, keeps the attributes of SS on SYSRET, and checks no return
//! address. A processor without an extension is as Intel's.

use crate::core::Gpr;
use crate::exec::context::Context;
use crate::exec::cpuid;
use crate::exec::shadow_frame;
use crate::exec::{Done, Fault, Flow};
use crate::virt::Virt;
use iced_x86::{Instruction, Mnemonic};
use sim_core::addr::Gva;
use sim_core::arch::control::Efer;
use sim_core::arch::exception::Exception;
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

/// The flags that SYSRET can load: all but RF and VM (SDM 2 SYSRET).
const RETURNED: u64 = 0x3c_7fd7;

fn require(condition: bool, otherwise: Exception) -> Result<(), Fault> {
    if condition { Ok(()) } else { Err(otherwise.into()) }
}

fn is_amd<V: Virt>(cx: &Context<'_>, virt: &V) -> bool {
    cpuid::extension(cx.core, virt) == Some(Extension::Svm)
}

/// A flat code segment of this width and privilege level.
const fn code(selector: u16, long: bool, dpl: u32) -> Segment {
    let rights = if long { Rights::CODE64 } else { Rights::CODE32 };
    Segment::flat(selector, Rights(rights.0 | dpl << 5))
}

const fn data(selector: u16, dpl: u32) -> Segment {
    Segment::flat(selector, Rights(Rights::DATA.0 | dpl << 5))
}

fn enter(cx: &mut Context<'_>, cs: Segment, ss: Segment, rip: u64) -> Done {
    cx.core.segments.cs = cs;
    cx.core.segments.ss = ss;
    cx.core.rip = rip;
    Ok(Flow::Jumped)
}

/// SYSCALL.
pub(crate) fn syscall<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    let amd = is_amd(cx, virt);
    let exists = cx.core.efer.contains(Efer::SCE) && !cx.is_real_mode() && (cx.is_64bit() || amd);
    require(exists, Exception::ud())?;
    shadow_frame::enter_system(cx);
    let msrs = cx.core.msrs;
    let selector = (msrs.star >> 32) as u16 & 0xfffc;
    let next = cx.next_rip();
    cx.core.set_gpr(Gpr::Rcx, next);
    if !cx.is_long_mode() {
        cx.set_flags(Rflags::IF.union(Rflags::VM).union(Rflags::RF), Rflags::empty());
        return enter(cx, code(selector, false, 0), data(selector + 8, 0), msrs.star & 0xffff_ffff);
    }
    let target = if cx.is_64bit() { msrs.lstar } else { msrs.cstar };
    cx.core.set_gpr(Gpr::R11, cx.core.rflags.bits());
    let masked = Rflags::from_bits_truncate(msrs.fmask).union(Rflags::RF);
    cx.set_flags(masked, Rflags::empty());
    enter(cx, code(selector, true, 0), data(selector.wrapping_add(8), 0), target)
}

/// SYSRET, to 64-bit code with REX.W.
pub(crate) fn sysret<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let amd = is_amd(cx, virt);
    let exists = cx.core.efer.contains(Efer::SCE) && !cx.is_real_mode() && (cx.is_64bit() || amd);
    require(exists, Exception::ud())?;
    cx.require_cpl0()?;
    let long = insn.mnemonic() == Mnemonic::Sysretq;
    let target = cx.core.gpr(Gpr::Rcx) & if long { u64::MAX } else { 0xffff_ffff };
    require(amd || !long || Gva(target).is_canonical(cx.core.linear_width()), Exception::gp0())?;
    let base = (cx.core.msrs.star >> 48) as u16;
    if cx.is_long_mode() {
        let image = Rflags::from_bits_truncate(cx.core.gpr(Gpr::R11) & RETURNED);
        cx.effects.keeps_resume = true;
        cx.set_flags(Rflags::all(), image);
    } else {
        cx.set_flags(Rflags::IF, Rflags::IF);
    }
    shadow_frame::leave_system(cx);
    let selector = base.wrapping_add(8) | 3;
    let ss = if amd {
        let old = cx.core.segments.ss;
        Segment { selector, rights: Rights(old.rights.0 | 3 << 5), ..old }
    } else {
        data(selector, 3)
    };
    enter(cx, code(base.wrapping_add(if long { 16 } else { 0 }) | 3, long, 3), ss, target)
}

/// What SYSENTER and SYSEXIT check: AMD's have no such instructions in long mode.
fn sysenter_selector<V: Virt>(cx: &Context<'_>, virt: &V) -> Result<u16, Fault> {
    require(!(cx.is_long_mode() && is_amd(cx, virt)), Exception::ud())?;
    let selector = cx.core.msrs.sysenter_cs as u16 & 0xfffc;
    require(!cx.is_real_mode() && selector != 0, Exception::gp0())?;
    Ok(selector)
}

/// SYSENTER.
pub(crate) fn sysenter<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    let selector = sysenter_selector(cx, virt)?;
    let long = cx.is_long_mode();
    let width = if long { u64::MAX } else { 0xffff_ffff };
    shadow_frame::enter_system(cx);
    let msrs = cx.core.msrs;
    cx.set_flags(Rflags::IF.union(Rflags::VM).union(Rflags::RF), Rflags::empty());
    cx.core.set_gpr(Gpr::Rsp, msrs.sysenter_esp & width);
    enter(cx, code(selector, long, 0), data(selector.wrapping_add(8), 0), msrs.sysenter_eip & width)
}

/// SYSEXIT, to 64-bit code with REX.W.
pub(crate) fn sysexit<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let selector = sysenter_selector(cx, virt)?;
    cx.require_cpl0()?;
    let long = insn.mnemonic() == Mnemonic::Sysexitq;
    let width = if long { u64::MAX } else { 0xffff_ffff };
    let (rsp, rip) = (cx.core.gpr(Gpr::Rcx) & width, cx.core.gpr(Gpr::Rdx) & width);
    let canonical = |address| Gva(address).is_canonical(cx.core.linear_width());
    require(!long || (canonical(rsp) && canonical(rip)), Exception::gp0())?;
    shadow_frame::leave_system(cx);
    let (cs, ss) = if long { (32, 40) } else { (16, 24) };
    cx.core.set_gpr(Gpr::Rsp, rsp);
    enter(cx, code(selector.wrapping_add(cs) | 3, long, 3), data(selector.wrapping_add(ss) | 3, 3), rip)
}
