//! Whether something about to happen in the guest exits, and with what: a pure function of the controls loaded at
//! VMRUN, the permission maps and the core (APM2 15.7 to 15.14).
//!
//! Most intercepts are one bit and one exit code ([`plain`]); the others have a function each.

use super::info::{self, IoDirection, StopReason, stage_exit};
use super::maps::{MsrAccess, io_intercepted, msr_intercepted};
use super::{Controls, Intercepts};
use crate::capability::{Capabilities, Features};
use crate::exit::{Exit, ExitCode};
use crate::unit::{Monitor, PauseFilter, Running};
use cpu::Core;
use cpu::core::Bitness;
use cpu::virt::{At, ControlRegister, TableInstruction, TaskSwitchSource, Trap, VirtInstruction};
use sim_core::SimError;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cycles;
use sim_core::memory::PhysMem;

/// What a decision depends on, beside the trap.
pub(crate) struct Situation<'a> {
    pub(crate) running: &'a Running,
    pub(crate) capabilities: &'a Capabilities,
    pub(crate) mem: &'a PhysMem,
    pub(crate) core: &'a Core,
    pub(crate) monitor: Monitor,
}

/// Intercepts of one bit with nothing to tell: the bit and the exit code.
const fn plain(trap: &Trap) -> Option<(Intercepts, ExitCode)> {
    Some(match trap {
        Trap::Invpcid => (Intercepts::INVPCID, ExitCode::Invpcid),
        Trap::Cpuid => (Intercepts::CPUID, ExitCode::Cpuid),
        Trap::Rdtsc => (Intercepts::RDTSC, ExitCode::Rdtsc),
        Trap::Wbinvd => (Intercepts::WBINVD, ExitCode::Wbinvd),
        Trap::Invd => (Intercepts::INVD, ExitCode::Invd),
        Trap::Rdtscp => (Intercepts::RDTSCP, ExitCode::Rdtscp),
        Trap::Rdpmc => (Intercepts::RDPMC, ExitCode::Rdpmc),
        Trap::Rdpru => (Intercepts::RDPRU, ExitCode::Rdpru),
        Trap::Monitor => (Intercepts::MONITOR, ExitCode::Monitor),
        Trap::Xsetbv => (Intercepts::XSETBV, ExitCode::Xsetbv),
        Trap::Rsm => (Intercepts::RSM, ExitCode::Rsm),
        Trap::Iret => (Intercepts::IRET, ExitCode::Iret),
        Trap::Pushf => (Intercepts::PUSHF, ExitCode::Pushf),
        Trap::Popf => (Intercepts::POPF, ExitCode::Popf),
        Trap::Icebp => (Intercepts::ICEBP, ExitCode::Icebp),
        Trap::Tlbsync => (Intercepts::TLBSYNC, ExitCode::Tlbsync),
        Trap::DescriptorTable(instruction) => descriptor_table(*instruction),
        _ => return None,
    })
}

const fn descriptor_table(instruction: TableInstruction) -> (Intercepts, ExitCode) {
    match instruction {
        TableInstruction::Sgdt => (Intercepts::GDTR_READ, ExitCode::GdtrRead),
        TableInstruction::Sidt => (Intercepts::IDTR_READ, ExitCode::IdtrRead),
        TableInstruction::Sldt => (Intercepts::LDTR_READ, ExitCode::LdtrRead),
        TableInstruction::Str => (Intercepts::TR_READ, ExitCode::TrRead),
        TableInstruction::Lgdt => (Intercepts::GDTR_WRITE, ExitCode::GdtrWrite),
        TableInstruction::Lidt => (Intercepts::IDTR_WRITE, ExitCode::IdtrWrite),
        TableInstruction::Lldt => (Intercepts::LDTR_WRITE, ExitCode::LdtrWrite),
        TableInstruction::Ltr => (Intercepts::TR_WRITE, ExitCode::TrWrite),
    }
}

/// Physical events: the bit, the exit code and EXITINFO1. The event stays pending until the host's GIF is set (APM2
/// 15.13): nothing here takes it from its pin.
const fn physical(trap: &Trap) -> Option<(Intercepts, ExitCode, u64)> {
    match trap {
        Trap::Interrupt(_) => Some((Intercepts::INTR, ExitCode::Intr, 0)),
        Trap::Nmi => Some((Intercepts::NMI, ExitCode::Nmi, 0)),
        Trap::Smi => Some((Intercepts::SMI, ExitCode::Smi, StopReason::ExternalSmi as u64)),
        Trap::Init => Some((Intercepts::INIT, ExitCode::Init, 0)),
        _ => None,
    }
}

/// Decides about one trap.
///
/// # Errors
/// If a fault of the other vendor's second stage comes here.
pub(crate) fn decide(at: &Situation<'_>, trap: &Trap, place: At) -> Result<Option<Exit>, SimError> {
    let controls = &at.running.controls;
    let next = next_rip(at.core, place);
    if let Some((bit, code)) = plain(trap) {
        return Ok(controls.intercepts.contains(bit).then(|| Exit::instruction(code, next)));
    }
    if let Some((bit, code, info1)) = physical(trap) {
        return Ok(controls.intercepts.contains(bit).then(|| Exit::event(code, info1, 0)));
    }
    Ok(match *trap {
        Trap::Exception(exception) => exception_exit(controls, &exception, place.software.map_or(0, |_| next)),
        Trap::TripleFault => {
            controls.intercepts.contains(Intercepts::SHUTDOWN).then(|| Exit::event(ExitCode::Shutdown, 0, 0))
        }
        Trap::CrWrite { register, gpr, value } => cr_write(controls, at.core, register, value)
            .map(|code| Exit { info1: info::cr(at.capabilities, gpr), ..Exit::instruction(code, next) }),
        Trap::CrRead { register, gpr } => {
            let hit = controls.cr_reads & (1 << register.number()) != 0;
            let exit = Exit::instruction(ExitCode::CrRead(register.number()), next);
            hit.then(|| Exit { info1: info::cr(at.capabilities, gpr), ..exit })
        }
        // Neither SMSW nor CLTS nor LMSW is a MOV: EXITINFO1 bit 63 stays clear (APM2 15.8).
        Trap::Smsw => (controls.cr_reads & 1 != 0).then(|| Exit::instruction(ExitCode::CrRead(0), next)),
        // It only changes TS, so the selective intercept never applies.
        Trap::Clts => (controls.cr_writes & 1 != 0).then(|| Exit::instruction(ExitCode::CrWrite(0), next)),
        Trap::Lmsw { .. } => lmsw(controls).map(|code| Exit::instruction(code, next)),
        Trap::DrAccess { number, gpr, kind } => {
            let (bits, code) = match kind {
                AccessKind::Write => (controls.dr_writes, ExitCode::DrWrite(number & 0xf)),
                AccessKind::Read | AccessKind::Fetch => (controls.dr_reads, ExitCode::DrRead(number & 0xf)),
            };
            let hit = bits & (1 << (number & 0xf)) != 0;
            hit.then(|| Exit { info1: info::dr(at.capabilities, gpr), ..Exit::instruction(code, next) })
        }
        Trap::Invlpg(address) => assisted(at, Intercepts::INVLPG, ExitCode::Invlpg, address.0, next),
        Trap::Int(vector) => assisted(at, Intercepts::INTN, ExitCode::SoftwareInterrupt, vector.into(), next),
        Trap::Io { .. } => io_exit(at, trap, next),
        Trap::Hlt => hlt(at.running).map(|code| Exit::instruction(code, next)),
        Trap::Mwait => mwait(controls, at.monitor).map(|code| Exit::instruction(code, next)),
        Trap::Rdmsr(index) => msr_exit(controls, at.mem, index, MsrAccess::Read, next),
        Trap::Wrmsr(index, _) => msr_exit(controls, at.mem, index, MsrAccess::Write, next),
        Trap::Invlpgb => invlpgb(controls, at.core).map(|code| Exit::instruction(code, next)),
        Trap::TaskSwitch { selector, source, error } => {
            let rf = at.core.rflags.contains(Rflags::RF);
            let (info1, info2) = info::task_switch(selector, source, error, rf);
            let next = if source == TaskSwitchSource::TaskGate { 0 } else { next };
            let exit = Exit { info1, info2, ..Exit::instruction(ExitCode::TaskSwitch, next) };
            controls.intercepts.contains(Intercepts::TASK_SWITCH).then_some(exit)
        }
        Trap::Stage(fault) => Some(stage_exit(&fault)?),
        _ => None,
    })
}

/// An intercept of one bit that tells something only with decode assists (APM2 15.8).
fn assisted(at: &Situation<'_>, bit: Intercepts, code: ExitCode, value: u64, next: u64) -> Option<Exit> {
    let info1 = info::assist(at.capabilities, value);
    at.running.controls.intercepts.contains(bit).then(|| Exit { info1, ..Exit::instruction(code, next) })
}

/// The intercept bit and exit code of each instruction of the extension; none for those of VMX.
pub(crate) const fn instruction_row(instruction: &VirtInstruction) -> Option<(Intercepts, ExitCode)> {
    match instruction {
        VirtInstruction::Vmrun(_) => Some((Intercepts::VMRUN, ExitCode::Vmrun)),
        VirtInstruction::Vmload(_) => Some((Intercepts::VMLOAD, ExitCode::Vmload)),
        VirtInstruction::Vmsave(_) => Some((Intercepts::VMSAVE, ExitCode::Vmsave)),
        VirtInstruction::Stgi => Some((Intercepts::STGI, ExitCode::Stgi)),
        VirtInstruction::Clgi => Some((Intercepts::CLGI, ExitCode::Clgi)),
        VirtInstruction::Vmmcall => Some((Intercepts::VMMCALL, ExitCode::Vmmcall)),
        VirtInstruction::Invlpga { .. } => Some((Intercepts::INVLPGA, ExitCode::Invlpga)),
        _ => None,
    }
}

/// Where the next instruction begins, at the width of the code being run.
pub(crate) fn next_rip(core: &Core, at: At) -> u64 {
    let next = core.rip.wrapping_add(u64::from(at.length));
    match core.bitness() {
        Bitness::Bits64 => next,
        Bitness::Bits32 => next & 0xffff_ffff,
        Bitness::Bits16 => next & 0xffff,
    }
}

/// APM2 15.12: EXITINFO1 is the error code; EXITINFO2 is what CR2 would become, and CR2 itself is not changed. Only a
/// software exception leaves an instruction behind it (APM2 15.7.1).
fn exception_exit(controls: &Controls, exception: &Exception, next: u64) -> Option<Exit> {
    let number = exception.vector.number();
    if controls.exceptions & (1 << number) == 0 {
        return None;
    }
    let info1 = exception.error.map_or(0, u64::from);
    let exit = Exit::event(ExitCode::Exception(number), info1, exception.cr2.map_or(0, |address| address.0));
    Some(Exit { next, ..exit })
}

/// APM2 15.9: the full CR0 write intercept goes before the selective one, which looks at every bit but TS and MP.
fn cr_write(controls: &Controls, core: &Core, register: ControlRegister, value: u64) -> Option<ExitCode> {
    if controls.cr_writes & (1 << register.number()) != 0 {
        return Some(ExitCode::CrWrite(register.number()));
    }
    let changed = (value ^ core.cr0.bits()) & !(Cr0::TS | Cr0::MP | Cr0::ET).bits();
    let selective = register == ControlRegister::Cr0 && controls.intercepts.contains(Intercepts::SELECTIVE_CR0);
    (selective && changed != 0).then_some(ExitCode::Cr0SelectiveWrite)
}

/// APM2 15.9: LMSW meets the selective CR0 intercept whatever it writes.
const fn lmsw(controls: &Controls) -> Option<ExitCode> {
    if controls.cr_writes & 1 != 0 {
        Some(ExitCode::CrWrite(0))
    } else if controls.intercepts.contains(Intercepts::SELECTIVE_CR0) {
        Some(ExitCode::Cr0SelectiveWrite)
    } else {
        None
    }
}

/// APM2 15.9: the plain intercept goes before the one that a pending virtual event lifts.
const fn hlt(running: &Running) -> Option<ExitCode> {
    let intercepts = running.controls.intercepts;
    let word = running.virtual_interrupts;
    if intercepts.contains(Intercepts::HLT) {
        Some(ExitCode::Hlt)
    } else if intercepts.contains(Intercepts::IDLE_HLT) && !word.is_pending() && !word.is_nmi_pending() {
        Some(ExitCode::IdleHlt)
    } else {
        None
    }
}

/// APM2 15.9: always, or only with an armed monitor.
const fn mwait(controls: &Controls, monitor: Monitor) -> Option<ExitCode> {
    if controls.intercepts.contains(Intercepts::MWAIT) {
        Some(ExitCode::Mwait)
    } else if controls.intercepts.contains(Intercepts::MWAIT_ARMED) && matches!(monitor, Monitor::Armed) {
        Some(ExitCode::MwaitConditional)
    } else {
        None
    }
}

/// APM2 15.16: all INVLPGBs, or only those that are illegally specified (APM3 INVLPGB: reserved bits of rAX, ECX, EDX).
fn invlpgb(controls: &Controls, core: &Core) -> Option<ExitCode> {
    use cpu::Gpr::{Rax, Rcx, Rdx};
    const RESERVED: [(cpu::Gpr, u64); 3] = [(Rax, 0xfc0), (Rcx, 0x7fff_0000), (Rdx, 0xf000_0000)];
    if controls.intercepts.contains(Intercepts::INVLPGB) {
        return Some(ExitCode::Invlpgb);
    }
    let illegal = RESERVED.iter().any(|(gpr, bits)| core.gpr(*gpr) & bits != 0);
    (illegal && controls.intercepts.contains(Intercepts::INVLPGB_BAD)).then_some(ExitCode::InvlpgbIllegal)
}

/// APM2 15.10.
fn io_exit(at: &Situation<'_>, trap: &Trap, next: u64) -> Option<Exit> {
    let Trap::Io { port, bytes, input, string } = *trap else { return None };
    let controls = &at.running.controls;
    if !controls.intercepts.contains(Intercepts::IO) || !io_intercepted(at.mem, controls.iopm, port, bytes) {
        return None;
    }
    let direction = if input { IoDirection::In } else { IoDirection::Out };
    let info1 = info::io(at.capabilities, at.core.bitness(), (port, bytes), direction, string);
    Some(Exit { info1, info2: next, ..Exit::instruction(ExitCode::Io, next) })
}

/// APM2 15.11: EXITINFO1 is 1 for WRMSR.
fn msr_exit(controls: &Controls, mem: &PhysMem, index: u32, access: MsrAccess, next: u64) -> Option<Exit> {
    let hit = controls.intercepts.contains(Intercepts::MSR) && msr_intercepted(mem, controls.msrpm, index, access);
    hit.then(|| Exit { info1: access as u64, ..Exit::instruction(ExitCode::Msr, next) })
}

/// APM2 15.14.4: whether a PAUSE exits, and the filter afterwards. A gap longer than the threshold starts the count
/// anew; without a count every PAUSE exits.
pub(crate) fn pause(
    controls: &Controls,
    capabilities: &Capabilities,
    filter: PauseFilter,
    now: Cycles,
) -> (bool, PauseFilter) {
    if !controls.intercepts.contains(Intercepts::PAUSE) {
        return (false, filter);
    }
    let counts = capabilities.has(Features::PAUSE_FILTER);
    let threshold = u64::from(controls.pause_threshold);
    let fresh = threshold != 0 && now.0.wrapping_sub(filter.last.0) > threshold;
    let left = if fresh { controls.pause_count } else { filter.left };
    let exits = !counts || left == 0;
    (exits, PauseFilter { left: left.saturating_sub(1), last: now })
}
