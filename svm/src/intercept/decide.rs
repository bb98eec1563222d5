//! Whether something about to happen in the guest exits, and with what: a pure function of the controls loaded at
//! VMRUN, the permission maps and the core (APM2 15.7 to 15.14, 15.25.6, 15.33).

use super::Intercepts;
use super::maps::{MsrAccess, io_intercepted, msr_intercepted};
use crate::capability::{Capabilities, Features};
use crate::exit::{Exit, ExitCode};
use cpu::core::Bitness;
use cpu::virt::{At, ControlRegister, StageFault, StageFaultKind, StagePurpose, Trap, VirtInstruction};
use cpu::{Core, Gpr, SecondStage};
use serde::{Deserialize, Serialize};
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, PageFaultError, Vector};
use sim_core::memory::PhysMem;
use sim_core::{Hpa, SimError};

/// What VMRUN loads from the control area and keeps while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Controls {
    pub(crate) cr_reads: u16,
    pub(crate) cr_writes: u16,
    pub(crate) exceptions: u32,
    pub(crate) intercepts: Intercepts,
    pub(crate) iopm: Hpa,
    pub(crate) msrpm: Hpa,
    pub(crate) tsc_offset: u64,
    pub(crate) asid: u32,
    pub(crate) second: SecondStage,
}

/// Decides about one trap.
pub(crate) fn decide(
    controls: &Controls,
    capabilities: &Capabilities,
    mem: &PhysMem,
    core: &Core,
    trap: &Trap,
    at: At,
) -> Result<Option<Exit>, SimError> {
    let next = next_rip(core, at);
    let plain = |bit: Intercepts, code| Ok(controls.intercepts.contains(bit).then(|| Exit::instruction(code, next)));
    match *trap {
        Trap::Exception(exception) => Ok(exception_exit(controls, &exception, next)),
        Trap::TripleFault => {
            Ok(controls.intercepts.contains(Intercepts::SHUTDOWN).then(|| Exit::event(ExitCode::Shutdown, 0, 0)))
        }
        Trap::CrWrite { register, gpr, value } => Ok(cr_write(controls, core, register, value)
            .map(|code| Exit { info1: cr_info(capabilities, gpr), ..Exit::instruction(code, next) })),
        Trap::CrRead { register, gpr } => {
            let hit = controls.cr_reads & (1 << register.number()) != 0;
            let code = ExitCode::CrRead(register.number());
            Ok(hit.then(|| Exit { info1: cr_info(capabilities, gpr), ..Exit::instruction(code, next) }))
        }
        // CLTS is a CR0 write without a register operand (APM2 15.8.1, 15.33.1: EXITINFO1 bit 63 stays clear). It
        // only changes TS, so the selective intercept never applies.
        Trap::Clts => Ok((controls.cr_writes & 1 != 0).then(|| Exit::instruction(ExitCode::CrWrite(0), next))),
        Trap::Invlpg(address) => {
            let info1 = if capabilities.has(Features::DECODE_ASSISTS) { address.0 } else { 0 };
            let hit = controls.intercepts.contains(Intercepts::INVLPG);
            Ok(hit.then(|| Exit { info1, ..Exit::instruction(ExitCode::Invlpg, next) }))
        }
        Trap::Invpcid => plain(Intercepts::INVPCID, ExitCode::Invpcid),
        Trap::Io { port, bytes, input, .. } => {
            let hit = controls.intercepts.contains(Intercepts::IO) && io_intercepted(mem, controls.iopm, port, bytes);
            let direction = if input { IoDirection::In } else { IoDirection::Out };
            let info1 = io_info(core.bitness(), port, bytes, direction);
            Ok(hit.then(|| Exit { info1, info2: next, ..Exit::instruction(ExitCode::Io, next) }))
        }
        Trap::Cpuid => plain(Intercepts::CPUID, ExitCode::Cpuid),
        Trap::Hlt => plain(Intercepts::HLT, ExitCode::Hlt),
        Trap::Rdmsr(index) => Ok(msr_exit(controls, mem, index, MsrAccess::Read, next)),
        Trap::Wrmsr(index, _) => Ok(msr_exit(controls, mem, index, MsrAccess::Write, next)),
        Trap::Rdtsc if !controls.intercepts.contains(Intercepts::RDTSC) && controls.tsc_offset != 0 => {
            Err(SimError::unmodelled("TSC_OFFSET"))
        }
        Trap::Rdtsc => plain(Intercepts::RDTSC, ExitCode::Rdtsc),
        Trap::Wbinvd => plain(Intercepts::WBINVD, ExitCode::Wbinvd),
        Trap::Pause => plain(Intercepts::PAUSE, ExitCode::Pause),
        Trap::Stage(fault) => stage_exit(&fault).map(Some),
        // Their intercepts are still refused when the guest is entered.
        Trap::Int(_)
        | Trap::Icebp
        | Trap::Iret
        | Trap::Pushf
        | Trap::Popf
        | Trap::Smsw
        | Trap::Lmsw { .. }
        | Trap::DescriptorTable(_)
        | Trap::DrAccess { .. }
        | Trap::Rdtscp
        | Trap::Rdpmc
        | Trap::Rdrand
        | Trap::Rdseed
        | Trap::Rdpru
        | Trap::Monitor
        | Trap::Mwait
        | Trap::Invd
        | Trap::Xsetbv
        | Trap::Rsm
        | Trap::Getsec
        | Trap::Invlpgb
        | Trap::Tlbsync
        | Trap::Retired
        | Trap::Window
        | Trap::TaskSwitch { .. }
        | Trap::Extension(_) => Ok(None),
        ref other => Err(SimError::unmodelled(format!("intercept of {other:?}"))),
    }
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
        VirtInstruction::Vmxon(_)
        | VirtInstruction::Vmclear(_)
        | VirtInstruction::Vmptrld(_)
        | VirtInstruction::Vmptrst(_)
        | VirtInstruction::Vmread { .. }
        | VirtInstruction::Vmwrite { .. }
        | VirtInstruction::Vmlaunch
        | VirtInstruction::Vmresume
        | VirtInstruction::Vmxoff
        | VirtInstruction::Vmcall
        | VirtInstruction::Vmfunc
        | VirtInstruction::Invept { .. }
        | VirtInstruction::Invvpid { .. } => None,
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
    let software = matches!(exception.vector, Vector::Breakpoint | Vector::Overflow);
    Some(Exit { next: if software { next } else { 0 }, ..exit })
}

/// APM2 15.8.1: the full CR0 write intercept goes before the selective one, which looks at every bit but TS and MP.
fn cr_write(controls: &Controls, core: &Core, register: ControlRegister, value: u64) -> Option<ExitCode> {
    if controls.cr_writes & (1 << register.number()) != 0 {
        return Some(ExitCode::CrWrite(register.number()));
    }
    let changed = (value ^ core.cr0.bits()) & !(Cr0::TS | Cr0::MP | Cr0::ET).bits();
    let selective = register == ControlRegister::Cr0 && controls.intercepts.contains(Intercepts::SELECTIVE_CR0);
    (selective && changed != 0).then_some(ExitCode::Cr0SelectiveWrite)
}

/// APM2 15.33.1: bit 63 says that the access was a MOV, bits 3:0 which register.
const fn cr_info(capabilities: &Capabilities, gpr: Gpr) -> u64 {
    if capabilities.has(Features::DECODE_ASSISTS) { 1 << 63 | gpr as u64 } else { 0 }
}

/// EXITINFO1 bit 0 of an I/O exit.
#[derive(Clone, Copy)]
enum IoDirection {
    Out = 0,
    In = 1,
}

/// APM2 15.10.2, figure 15-2: port 31:16, address size 9:7, operand size 6:4, direction 0. String I/O is not
/// modelled, so STR, REP and SEG are 0.
const fn io_info(bitness: Bitness, port: u16, bytes: u8, direction: IoDirection) -> u64 {
    let address = match bitness {
        Bitness::Bits16 => 1 << 7,
        Bitness::Bits32 => 1 << 8,
        Bitness::Bits64 => 1 << 9,
    };
    (port as u64) << 16 | address | ((bytes as u64) << 4) | direction as u64
}

/// APM2 15.11: EXITINFO1 is 1 for WRMSR.
fn msr_exit(controls: &Controls, mem: &PhysMem, index: u32, access: MsrAccess, next: u64) -> Option<Exit> {
    let hit = controls.intercepts.contains(Intercepts::MSR) && msr_intercepted(mem, controls.msrpm, index, access);
    hit.then(|| Exit { info1: access as u64, ..Exit::instruction(ExitCode::Msr, next) })
}

/// APM2 15.25.6. Every nested access counts as a user access; a reference to a guest page table counts as a data
/// write, whatever the access that caused it.
pub(crate) fn stage_exit(fault: &StageFault) -> Result<Exit, SimError> {
    let (present, reserved, shadow_stack) = match fault.kind {
        StageFaultKind::NestedPageFault { present, reserved } => (present, reserved, 0),
        StageFaultKind::NestedShadowStack => (true, false, 1 << 37),
        _ => return Err(SimError::internal("an EPT fault reached SVM")),
    };
    let (purpose, table) = match fault.purpose {
        StagePurpose::Final => (1_u64 << 32, false),
        StagePurpose::Table => (1_u64 << 33, true),
    };
    let mut error = PageFaultError::U;
    error.set(PageFaultError::P, present);
    error.set(PageFaultError::W, table || fault.access.kind == AccessKind::Write);
    error.set(PageFaultError::RSVD, reserved);
    error.set(PageFaultError::F, !table && fault.access.kind == AccessKind::Fetch);
    Ok(Exit::event(ExitCode::NestedPageFault, purpose | shadow_stack | u64::from(error.bits()), fault.gpa.0))
}
