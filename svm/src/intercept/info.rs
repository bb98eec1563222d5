//! What EXITINFO1 and EXITINFO2 tell, by the kind of exit (APM2 15.8 to 15.14, 15.25.6).

use crate::capability::{Capabilities, Features};
use crate::exit::{Exit, ExitCode};
use cpu::Gpr;
use cpu::core::Bitness;
use cpu::virt::{StageFault, StageFaultKind, StagePurpose, StringIo, TaskSwitchSource};
use sim_core::SimError;
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::PageFaultError;

/// Why a physical event exits: EXITINFO1 of an SMI (APM2 15.13.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The SMI came from the pin.
    ExternalSmi = 1,
}

/// APM2 15.8: bit 63 says that the access was a MOV, bits 3:0 which register.
pub(super) const fn cr(capabilities: &Capabilities, gpr: Gpr) -> u64 {
    if capabilities.has(Features::DECODE_ASSISTS) { 1 << 63 | gpr as u64 } else { 0 }
}

/// APM2 15.8: bits 3:0 say which register.
pub(super) const fn dr(capabilities: &Capabilities, gpr: Gpr) -> u64 {
    assist(capabilities, gpr as u64)
}

/// What only decode assists tell.
pub(super) const fn assist(capabilities: &Capabilities, value: u64) -> u64 {
    if capabilities.has(Features::DECODE_ASSISTS) { value } else { 0 }
}

/// EXITINFO1 bit 0 of an I/O exit.
#[derive(Clone, Copy)]
pub(super) enum IoDirection {
    Out = 0,
    In = 1,
}

/// APM2 15.10.2, figure 15-2: port 31:16, segment 12:10 with decode assists, address size 9:7, operand size 6:4, REP 3,
/// STR 2, direction 0.
pub(super) fn io(
    capabilities: &Capabilities,
    bitness: Bitness,
    (port, bytes): (u16, u8),
    direction: IoDirection,
    string: Option<StringIo>,
) -> u64 {
    let address_bytes = string.map_or(
        match bitness {
            Bitness::Bits16 => 2,
            Bitness::Bits32 => 4,
            Bitness::Bits64 => 8,
        },
        |string| string.address_bytes,
    );
    // 2, 4 and 8 bytes are bits 7, 8 and 9.
    let address = u64::from(address_bytes) << 6;
    let string = string.map_or(0, |string| {
        let segment = assist(capabilities, u64::from(string.segment & 7) << 10);
        1 << 2 | u64::from(string.repeated) << 3 | segment
    });
    u64::from(port) << 16 | address | u64::from(bytes) << 4 | string | direction as u64
}

/// APM2 15.14.1: EXITINFO1 is the incoming TSS selector; EXITINFO2 has the error code in 31:0, IRET in 36, a far jump in
/// 38, whether there is an error code in 44, and RF as the outgoing TSS would get it in 48.
pub(super) fn task_switch(selector: u16, source: TaskSwitchSource, error: Option<u32>, rf: bool) -> (u64, u64) {
    let source = match source {
        TaskSwitchSource::Iret => 1_u64 << 36,
        TaskSwitchSource::Jmp => 1 << 38,
        TaskSwitchSource::Call | TaskSwitchSource::TaskGate => 0,
    };
    let error = error.map_or(0, |code| 1 << 44 | u64::from(code));
    (u64::from(selector), source | error | u64::from(rf) << 48)
}

/// APM2 15.25.6. Every nested access counts as a user access; a reference to a guest page table counts as a data
/// write, whatever the access that caused it.
pub(crate) fn stage_exit(fault: &StageFault) -> Result<Exit, SimError> {
    /// EXITINFO1 bit 37: the access was for a supervisor shadow-stack page (APM2 15.25.14).
    const SHADOW_STACK: u64 = 1 << 37;
    let (present, reserved, stack) = match fault.kind {
        StageFaultKind::NestedPageFault { present, reserved } => (present, reserved, 0),
        StageFaultKind::NestedShadowStack => (true, false, SHADOW_STACK),
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
    Ok(Exit::event(ExitCode::NestedPageFault, purpose | stack | u64::from(error.bits()), fault.gpa.0))
}
