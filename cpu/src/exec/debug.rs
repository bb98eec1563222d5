//! Debug registers: MOV DR, instruction and data breakpoints (SDM 3B 17.2, 17.3; APM2 13.1; SDM 2 MOV-Debug Registers).
//!
//! A breakpoint that is not enabled shows nothing in DR6, though processors may (SDM 3B 17.2.3). The accesses of the
//! processor itself to descriptor tables and task-state segments match no data breakpoint. I/O breakpoints are left out.

use crate::core::Core;
use crate::exec::context::{Context, gpr_of};
use crate::exec::cpuid;
use crate::exec::{Done, Fault, Flow};
use crate::virt::{Trap, Virt};
use iced_x86::Register;
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;

/// DR7: L0 to G3.
pub(crate) const ENABLES: u64 = 0xff;
/// DR7.GD.
const GENERAL_DETECT: u64 = 1 << 13;
/// DR6 and pending debug exceptions: BD, BS and BT.
pub(crate) const DEBUG_REGISTER: u64 = 1 << 13;
pub(crate) const SINGLE_STEP: u64 = 1 << 14;
pub(crate) const TASK_SWITCH: u64 = 1 << 15;
/// Pending debug exceptions: a breakpoint that matched is enabled (SDM 3C table 24-4).
pub(crate) const ENABLED_BREAKPOINT: u64 = 1 << 12;

/// DR6: bits that are 1 whatever is written, and bits that can be written (no RTM and no bus-lock detection).
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR6_WRITABLE: u64 = 0xe00f;
/// DR7: bit 10 is 1; bits 11, 12, 14 and 15 are 0.
pub(crate) const DR7_FIXED: u64 = 0x400;
pub(crate) const DR7_WRITABLE: u64 = 0xffff_23ff;

/// What a breakpoint waits for: its R/W field.
const EXECUTION: u64 = 0;
const DATA_WRITE: u64 = 1;
const IO: u64 = 2;
const DATA: u64 = 3;

/// One enabled breakpoint.
#[derive(Clone, Copy)]
struct Breakpoint {
    number: u32,
    kind: u64,
    /// Bytes watched: 1, 2, 4 or 8.
    bytes: u64,
    address: u64,
}

fn breakpoints(core: &Core) -> impl Iterator<Item = Breakpoint> + '_ {
    const BYTES: [u64; 4] = [1, 2, 8, 4];
    (0..4).filter(|number| (core.dr7 >> (2 * number)) & 3 != 0).map(|number| {
        let field = core.dr7 >> (16 + 4 * number);
        let bytes = BYTES[((field >> 2) & 3) as usize];
        let address = core.dr[number as usize] & !(bytes - 1);
        Breakpoint { number, kind: field & 3, bytes, address }
    })
}

/// The instruction breakpoints that match the first byte of an instruction, as DR6 bits; RF suppresses them.
pub(crate) fn instruction_matches(core: &Core, at: Gva) -> u64 {
    if core.dr7 & ENABLES == 0 || core.rflags.contains(Rflags::RF) {
        return 0;
    }
    let hits = breakpoints(core).filter(|each| each.kind == EXECUTION && each.bytes == 1 && each.address == at.0);
    hits.fold(0, |bits, each| bits | 1 << each.number)
}

/// The data breakpoints that an access touches, as bits of the pending debug exceptions.
pub(crate) fn data_matches(core: &Core, at: Gva, bytes: u64, kind: AccessKind) -> u64 {
    let wanted = |each: &Breakpoint| each.kind == DATA || (each.kind == DATA_WRITE && kind == AccessKind::Write);
    let touches = |each: &Breakpoint| at.0 < each.address.wrapping_add(each.bytes) && each.address < at.0 + bytes;
    let hits = breakpoints(core).filter(|each| kind != AccessKind::Fetch && wanted(each) && touches(each));
    hits.fold(0, |bits, each| bits | ENABLED_BREAKPOINT | 1 << each.number)
}

/// Names breakpoints that are not modelled.
fn require_modelled(core: &Core) -> Result<(), Fault> {
    let io = core.cr4.contains(Cr4::DE) && breakpoints(core).any(|each| each.kind == IO);
    if io { Err(Fault::unmodelled("I/O breakpoints (DR7.R/W = 2)")) } else { Ok(()) }
}

/// MOV to or from a debug register.
///
/// An exit of VMX comes before #GP for the privilege level and before #UD for DR4 and DR5 (SDM 3C 25.1.3), one of SVM
/// after all checks but DR7.GD (APM2 table 15-7).
pub(crate) fn mov_dr<V: Virt>(cx: &mut Context<'_>, virt: &mut V, to: Register, from: Register) -> Done {
    let (name, gpr) = if to.is_dr() { (to, from) } else { (from, to) };
    let number = name.number() as u8;
    if number > 7 {
        return Err(Exception::ud().into());
    }
    let kind = if to.is_dr() { AccessKind::Write } else { AccessKind::Read };
    let trap = Trap::DrAccess { number, gpr: gpr_of(gpr), kind };
    let first = cpuid::extension(cx.core, virt) == Some(Extension::Vmx);
    if first {
        cx.ask(virt, &trap)?;
    }
    if matches!(number, 4 | 5) && cx.core.cr4.contains(Cr4::DE) {
        return Err(Exception::ud().into());
    }
    cx.require_cpl0()?;
    if !first {
        cx.ask(virt, &trap)?;
    }
    if cx.core.dr7 & GENERAL_DETECT != 0 {
        cx.core.pending_debug = DEBUG_REGISTER;
        // A fault: RF is pushed as 1 (SDM 3B 17.3.1.1).
        cx.set_flags(Rflags::RF, Rflags::RF);
        return Err(Exception::plain(Vector::Debug).into());
    }
    if kind == AccessKind::Write {
        let value = cx.register(from);
        write(cx.core, number, value)?;
    } else {
        let value = read(cx.core, number);
        cx.set_register(to, value);
    }
    Ok(Flow::Next)
}

/// DR4 and DR5 are DR6 and DR7 without CR4.DE.
const fn read(core: &Core, number: u8) -> u64 {
    match number {
        0..=3 => core.dr[number as usize],
        4 | 6 => core.dr6,
        _ => core.dr7,
    }
}

fn write(core: &mut Core, number: u8, value: u64) -> Result<(), Fault> {
    if number >= 4 && value >> 32 != 0 {
        return Err(Exception::gp0().into());
    }
    match number {
        0..=3 => core.dr[usize::from(number)] = value,
        4 | 6 => core.dr6 = (value & DR6_WRITABLE) | DR6_FIXED,
        _ => core.dr7 = (value & DR7_WRITABLE) | DR7_FIXED,
    }
    require_modelled(core)
}
