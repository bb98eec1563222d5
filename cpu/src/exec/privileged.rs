//! Instructions that report or steer the processor and that extensions like to intercept: RDTSCP RDPMC RDPRU RDRAND
//! RDSEED RDPID INVD MONITOR MWAIT XSETBV RDPKRU WRPKRU GETSEC (SDM 2, each instruction's page; APM3 RDPRU).
//!
//! Faults of privilege and of absent features come before the extension is asked, faults of operands after it (SDM 3C
//! 25.1.1). There is no performance counter, so RDPMC finds every index wrong; a monitor never needs to wait, for MWAIT
//! may always end by itself (SDM 2 MWAIT); random numbers are a function of simulated time. GETSEC is left out.

use crate::core::{Core, Gpr};
use crate::exec::context::Context;
use crate::exec::msr::set_edx_eax;
use crate::exec::{Done, Fault, Flow};
use crate::profile::Features;
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Mnemonic, Register};
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;

/// The components that XCR0 can name here: x87 and SSE. Protection keys are not among them.
const XCR0_X87: u64 = 1 << 0;
const XCR0_SSE: u64 = 1 << 1;

/// #UD unless the processor has all of these.
pub(crate) fn require_features(core: &Core, wanted: Features) -> Result<(), Fault> {
    if core.features.contains(wanted) { Ok(()) } else { Err(Exception::ud().into()) }
}

fn require(condition: bool, otherwise: Exception) -> Result<(), Fault> {
    if condition { Ok(()) } else { Err(otherwise.into()) }
}

/// #GP(0) for users with CR4.TSD.
fn require_time_stamp(core: &Core) -> Result<(), Fault> {
    require(core.cpl() == 0 || !core.cr4.contains(Cr4::TSD), Exception::gp0())
}

/// What RDTSC and RDTSCP show: the clock, IA32_TSC_ADJUST, and what the extension makes of it.
pub(crate) fn time_stamp<V: Virt>(cx: &Context<'_>, virt: &V) -> u64 {
    let now = cx.ground.clock.now().0.wrapping_add(cx.core.msrs.tsc_adjust);
    virt.tsc(cx.ground, now)
}

/// RDTSC.
pub(crate) fn rdtsc<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require_time_stamp(cx.core)?;
    cx.ask(virt, &Trap::Rdtsc)?;
    let now = time_stamp(cx, virt);
    set_edx_eax(cx, now);
    Ok(Flow::Next)
}

/// RDTSCP: RDTSC and IA32_TSC_AUX.
pub(crate) fn rdtscp<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require_features(cx.core, Features::RDTSCP)?;
    require_time_stamp(cx.core)?;
    cx.ask(virt, &Trap::Rdtscp)?;
    let now = time_stamp(cx, virt);
    set_edx_eax(cx, now);
    cx.set_register(Register::ECX, cx.core.msrs.tsc_aux);
    Ok(Flow::Next)
}

/// RDPID. VMX lets it exit with RDTSCP's control only by #UD, which the extension raises.
pub(crate) fn rdpid(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_features(cx.core, Features::RDPID)?;
    let value = cx.core.msrs.tsc_aux;
    cx.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

/// RDPMC.
pub(crate) fn rdpmc<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require(cx.core.cpl() == 0 || cx.core.cr4.contains(Cr4::PCE), Exception::gp0())?;
    cx.ask(virt, &Trap::Rdpmc)?;
    Err(Exception::gp0().into())
}

/// RDPRU: MPERF and APERF, which tick alike; other registers read as 0 (APM3 RDPRU).
pub(crate) fn rdpru<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require_features(cx.core, Features::RDPRU)?;
    require_time_stamp(cx.core)?;
    cx.ask(virt, &Trap::Rdpru)?;
    let known = cx.core.gpr(Gpr::Rcx) as u32 <= 1;
    let value = if known { cx.ground.clock.now().0 } else { 0 };
    set_edx_eax(cx, value);
    cx.set_flags(Rflags::STATUS, if known { Rflags::CF } else { Rflags::empty() });
    Ok(Flow::Next)
}

/// RDRAND and RDSEED: CF says that there is a number, and there always is.
pub(crate) fn random<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_features(cx.core, Features::RDRAND)?;
    cx.at.operand = cx.describe(insn);
    let trap = if insn.mnemonic() == Mnemonic::Rdrand { Trap::Rdrand } else { Trap::Rdseed };
    cx.ask(virt, &trap)?;
    let mut value = cx.ground.clock.now().0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    cx.set_register(insn.op0_register(), value ^ (value >> 31));
    cx.set_flags(Rflags::STATUS, Rflags::CF);
    Ok(Flow::Next)
}

/// INVD: there are no caches to drop.
pub(crate) fn invd<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.ask(virt, &Trap::Invd)?;
    Ok(Flow::Next)
}

/// MONITOR reads the byte that it watches, at DS:rAX or another segment's.
pub(crate) fn monitor<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_features(cx.core, Features::MONITOR)?;
    require(cx.core.cpl() == 0, Exception::ud())?;
    cx.ask(virt, &Trap::Monitor)?;
    require(cx.core.gpr(Gpr::Rcx) as u32 == 0, Exception::gp0())?;
    let offset = cx.register(insn.op0_register());
    let segment = match insn.segment_prefix() {
        Register::None => Register::DS,
        prefix => prefix,
    };
    let address = cx.linear(segment, offset, 1, AccessKind::Read)?;
    let access = cx.explicit(AccessKind::Read);
    cx.span(address, 1, access)?;
    Ok(Flow::Next)
}

/// MWAIT: over as soon as it begins.
pub(crate) fn mwait<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require_features(cx.core, Features::MONITOR)?;
    require(cx.core.cpl() == 0, Exception::ud())?;
    cx.ask(virt, &Trap::Mwait)?;
    require(cx.core.gpr(Gpr::Rcx) as u32 <= 1, Exception::gp0())?;
    Ok(Flow::Next)
}

fn require_xsave(core: &Core) -> Result<(), Fault> {
    let on = core.features.contains(Features::XSAVE) && core.cr4.contains(Cr4::OSXSAVE);
    require(on, Exception::ud())
}

/// XSETBV: x87 state can't be turned off (SDM 1 13.3).
pub(crate) fn xsetbv<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require_xsave(cx.core)?;
    cx.require_cpl0()?;
    cx.ask(virt, &Trap::Xsetbv)?;
    let value = (cx.core.gpr(Gpr::Rdx) << 32) | (cx.core.gpr(Gpr::Rax) & 0xffff_ffff);
    let known = cx.core.gpr(Gpr::Rcx) as u32 == 0;
    let fits = value & XCR0_X87 != 0 && value & !(XCR0_X87 | XCR0_SSE) == 0;
    require(known && fits, Exception::gp0())?;
    cx.core.xcr0 = value;
    Ok(Flow::Next)
}

/// RDPKRU and WRPKRU.
pub(crate) fn pkru(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cx.core.cr4.contains(Cr4::PKE), Exception::ud())?;
    require(cx.core.gpr(Gpr::Rcx) as u32 == 0, Exception::gp0())?;
    if insn.mnemonic() == Mnemonic::Rdpkru {
        let value = u64::from(cx.core.pkru);
        set_edx_eax(cx, value);
    } else {
        require(cx.core.gpr(Gpr::Rdx) as u32 == 0, Exception::gp0())?;
        cx.core.pkru = cx.core.gpr(Gpr::Rax) as u32;
    }
    Ok(Flow::Next)
}

/// GETSEC: #UD without CR4.SMXE.
pub(crate) fn getsec<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require(cx.core.cr4.contains(Cr4::SMXE), Exception::ud())?;
    cx.ask(virt, &Trap::Getsec)?;
    Err(Fault::unmodelled("GETSEC"))
}
