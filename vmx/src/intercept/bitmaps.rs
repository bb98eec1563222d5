//! I/O bitmaps and MSR bitmaps (SDM 3C 24.6.4, 24.6.9, 25.1.3; table 27-5).

use super::{Controls, Decision};
use crate::controls::PrimaryProc;
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::instructions::information;
use crate::vmcs::Field;
use cpu::virt::{At, StringIo};
use sim_core::Hpa;

/// IN, OUT, INS and OUTS.
pub(super) fn io(
    controls: &Controls<'_>,
    port: u16,
    bytes: u8,
    input: bool,
    string: Option<StringIo>,
    at: At,
) -> Decision {
    Decision::exits(io_exits(controls, port, bytes), || {
        let form = string.map_or(0, |string| 1 << 4 | u64::from(string.repeated) << 5);
        let qualification = u64::from(bytes.wrapping_sub(1) & 7) | u64::from(input) << 3 | form;
        Exit {
            linear: string.map(|string| string.address),
            information: string.as_ref().map_or(0, information::string_io),
            ..Exit::instruction(ExitReason::Io, at.length).qualified(qualification | u64::from(port) << 16)
        }
    })
}

/// I/O bitmaps if they are used, else "unconditional I/O exiting". An access that wraps around the port space exits.
fn io_exits(controls: &Controls<'_>, port: u16, bytes: u8) -> bool {
    if !controls.primary.contains(PrimaryProc::USE_IO_BITMAPS) {
        return controls.primary.contains(PrimaryProc::UNCONDITIONAL_IO_EXITING);
    }
    let ports = u32::from(port)..u32::from(port) + u32::from(bytes);
    ports.into_iter().any(|port| match port {
        0..=0x7fff => bit_of(controls, Field::IoBitmapA, port),
        0x8000..=0xffff => bit_of(controls, Field::IoBitmapB, port - 0x8000),
        _ => true,
    })
}

/// RDMSR.
pub(super) fn rdmsr(controls: &Controls<'_>, index: u32, at: At) -> Decision {
    Decision::exits(msr_exits(controls, index, MsrAccess::Read), || Exit::instruction(ExitReason::Rdmsr, at.length))
}

/// WRMSR.
pub(super) fn wrmsr(controls: &Controls<'_>, index: u32, at: At) -> Decision {
    Decision::exits(msr_exits(controls, index, MsrAccess::Write), || Exit::instruction(ExitReason::Wrmsr, at.length))
}

/// Which MSR bitmap.
#[derive(Clone, Copy)]
enum MsrAccess {
    Read = 0,
    Write = 0x800,
}

/// MSR bitmaps: 1 KiB each for reads of low and of high MSRs, then for writes; every other MSR exits.
fn msr_exits(controls: &Controls<'_>, index: u32, access: MsrAccess) -> bool {
    if !controls.primary.contains(PrimaryProc::USE_MSR_BITMAPS) {
        return true;
    }
    let first_bit = match index {
        0..=0x1fff => index,
        0xc000_0000..=0xc000_1fff => index - 0xc000_0000 + 0x400 * 8,
        _ => return true,
    };
    bit_of(controls, Field::MsrBitmaps, first_bit + access as u32 * 8)
}

fn bit_of(controls: &Controls<'_>, bitmap: Field, bit: u32) -> bool {
    let at = Hpa(controls.get(bitmap)).offset(u64::from(bit / 8));
    controls.ground.mem.read(at, 1) >> (bit % 8) & 1 != 0
}
