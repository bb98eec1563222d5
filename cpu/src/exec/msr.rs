//! RDMSR and WRMSR (SDM 2; SDM 4 chapter 2). MSRs of an extension are the extension's; an MSR in neither list does not
//! exist on this processor, and reading or writing it is #GP(0).

use crate::apic;
use crate::core::{Core, Gpr};
use crate::exec::cet;
use crate::exec::context::Context;
use crate::exec::control::write_efer;
use crate::exec::privileged::time_stamp;
use crate::exec::{Done, Fault, Flow};
use crate::profile::Features;
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Register};
use sim_core::addr::Gva;
use sim_core::arch::control::Efer;
use sim_core::arch::exception::Exception;
use sim_core::arch::msr;
use sim_core::clock::Cost;

/// IA32_TIME_STAMP_COUNTER.
const TIME_STAMP_COUNTER: u32 = 0x10;
/// IA32_APIC_BASE, IA32_DEBUGCTL, IA32_PKRS, IA32_XSS and IA32_TSC_AUX.
const APIC_BASE: u32 = 0x1b;
const DEBUGCTL: u32 = 0x1d9;
const PKRS: u32 = 0x6e1;
const XSS: u32 = 0xda0;
const TSC_AUX: u32 = 0xc000_0103;
/// VM_CR.SVMDIS: EFER.SVME can't be set (APM2 15.30.1).
const SVMDIS: u64 = 1 << 4;

/// What may be written to an MSR that only holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Anything,
    /// A canonical linear address.
    Address,
    /// A canonical linear address of a doubleword (SDM 1 17.2.3).
    ShadowStack,
    /// These bits, as in IA32_U_CET.
    FlowControl(u64),
    /// Nothing but these bits.
    Only(u64),
    /// BSP, EXTD, EN and the page of the registers; EXTD needs EN (SDM 3A 10.12.1).
    ApicBase,
    /// Eight memory types, one a byte (SDM 3A 11.12.2).
    MemoryTypes,
}

/// The MSRs that only hold a value, and where.
const fn holder(core: &mut Core, index: u32) -> Option<(&mut u64, Holds)> {
    match index {
        msr::PAT => Some((&mut core.msrs.pat, Holds::MemoryTypes)),
        msr::STAR => Some((&mut core.msrs.star, Holds::Anything)),
        msr::LSTAR => Some((&mut core.msrs.lstar, Holds::Address)),
        msr::CSTAR => Some((&mut core.msrs.cstar, Holds::Address)),
        msr::FMASK => Some((&mut core.msrs.fmask, Holds::Anything)),
        msr::FS_BASE => Some((&mut core.segments.fs.base, Holds::Address)),
        msr::GS_BASE => Some((&mut core.segments.gs.base, Holds::Address)),
        msr::KERNEL_GS_BASE => Some((&mut core.msrs.kernel_gs_base, Holds::Address)),
        msr::SYSENTER_CS => Some((&mut core.msrs.sysenter_cs, Holds::Anything)),
        msr::SYSENTER_ESP => Some((&mut core.msrs.sysenter_esp, Holds::Address)),
        msr::SYSENTER_EIP => Some((&mut core.msrs.sysenter_eip, Holds::Address)),
        _ => optional(core, index),
    }
}

/// Those that exist with a feature.
const fn optional(core: &mut Core, index: u32) -> Option<(&mut u64, Holds)> {
    let features = core.features;
    let enforced = features.intersects(Features::CET_SS.union(Features::CET_IBT));
    match index {
        TSC_AUX if features.intersects(Features::RDTSCP.union(Features::RDPID)) => {
            Some((&mut core.msrs.tsc_aux, Holds::Only(0xffff_ffff)))
        }
        APIC_BASE if features.contains(Features::X2APIC) => Some((&mut core.msrs.apic_base, Holds::ApicBase)),
        PKRS if features.contains(Features::PKS) => Some((&mut core.msrs.pkrs, Holds::Only(0xffff_ffff))),
        XSS if features.contains(Features::XSAVE) => Some((&mut core.msrs.xss, Holds::Only(0))),
        cet::U_CET if enforced => Some((&mut core.msrs.u_cet, Holds::FlowControl(cet::control_bits(features)))),
        cet::S_CET if enforced => Some((&mut core.msrs.s_cet, Holds::FlowControl(cet::control_bits(features)))),
        cet::PL0_SSP..=cet::PL3_SSP if features.contains(Features::CET_SS) => {
            Some((&mut core.msrs.pl_ssp[(index - cet::PL0_SSP) as usize], Holds::ShadowStack))
        }
        cet::INTERRUPT_SSP_TABLE if features.contains(Features::CET_SS) => {
            Some((&mut core.msrs.interrupt_ssp_table, Holds::Address))
        }
        DEBUGCTL => Some((&mut core.msrs.debugctl, Holds::Only(0b11))),
        _ => None,
    }
}

fn is_allowed(holds: Holds, value: u64, linear_width: u32) -> bool {
    match holds {
        Holds::Anything => true,
        Holds::Only(bits) => value & !bits == 0,
        Holds::ApicBase => value & !0xf_ffff_fd00 == 0 && (value & 1 << 10 == 0 || value & 1 << 11 != 0),
        Holds::ShadowStack => value & 3 == 0 && Gva(value).is_canonical(linear_width),
        Holds::FlowControl(bits) => cet::is_control(value, bits, linear_width),
        Holds::Address => Gva(value).is_canonical(linear_width),
        Holds::MemoryTypes => value.to_le_bytes().into_iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)),
    }
}

/// Whether the processor has SVM, and EFER.SVME may be set.
fn has_svme<V: Virt>(core: &Core, virt: &V) -> bool {
    matches!(virt.rdmsr(core, msr::VM_CR), Some(Ok(value)) if value & SVMDIS == 0)
}

fn read<V: Virt>(cx: &mut Context<'_>, virt: &V, index: u32) -> Result<u64, Fault> {
    if index == msr::EFER {
        return Ok(cx.core.efer.bits());
    }
    if index == TIME_STAMP_COUNTER {
        return Ok(time_stamp(cx, virt));
    }
    if (apic::FIRST_MSR..=apic::LAST_MSR).contains(&index) {
        return apic::read(cx.core, index);
    }
    if let Some((value, _)) = holder(cx.core, index) {
        return Ok(*value);
    }
    Ok(virt.rdmsr(cx.core, index).unwrap_or(Err(Exception::gp0()))?)
}

fn write<V: Virt>(cx: &mut Context<'_>, virt: &mut V, index: u32, value: u64) -> Result<(), Fault> {
    if index == msr::EFER {
        let svme = if has_svme(cx.core, virt) { Efer::empty() } else { Efer::SVME };
        return write_efer(cx, Efer::all().difference(svme), value);
    }
    if index == TIME_STAMP_COUNTER {
        let now = cx.ground.clock.now().0;
        cx.core.msrs.tsc_adjust = value.wrapping_sub(now);
        return Ok(());
    }
    if (apic::FIRST_MSR..=apic::LAST_MSR).contains(&index) {
        return apic::write(cx.core, index, value);
    }
    let width = cx.core.linear_width();
    if let Some((held, holds)) = holder(cx.core, index) {
        if !is_allowed(holds, value, width) {
            return Err(Exception::gp0().into());
        }
        *held = value;
        return Ok(());
    }
    Ok(virt.wrmsr(cx.core, index, value).unwrap_or(Err(Exception::gp0()))?)
}

fn low(cx: &Context<'_>, register: Gpr) -> u32 {
    cx.core.gpr(register) as u32
}

/// Puts a quadword into EDX:EAX.
pub(crate) fn set_edx_eax(cx: &mut Context<'_>, value: u64) {
    cx.set_register(Register::EAX, value);
    cx.set_register(Register::EDX, value >> 32);
}

pub(crate) fn rdmsr<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.ground.charge(Cost::SystemRegister);
    let index = low(cx, Gpr::Rcx);
    cx.ask(virt, &Trap::Rdmsr(index))?;
    let value = read(cx, virt, index)?;
    set_edx_eax(cx, value);
    Ok(Flow::Next)
}

pub(crate) fn wrmsr<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.ground.charge(Cost::SystemRegister);
    let index = low(cx, Gpr::Rcx);
    let value = (u64::from(low(cx, Gpr::Rdx)) << 32) | u64::from(low(cx, Gpr::Rax));
    cx.ask(virt, &Trap::Wrmsr(index, value))?;
    write(cx, virt, index, value)?;
    Ok(Flow::Next)
}

/// SWAPGS.
pub(crate) fn swapgs(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    std::mem::swap(&mut cx.core.segments.gs.base, &mut cx.core.msrs.kernel_gs_base);
    Ok(Flow::Next)
}
