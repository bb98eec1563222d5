//! Control and debug registers (SDM 3C 25.1.3; tables 27-3 and 27-4).

use super::{Controls, Decision};
use crate::controls::PrimaryProc;
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::vmcs::Field;
use cpu::Gpr;
use cpu::virt::{At, ControlRegister};
use sim_core::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr0;

/// Access types of a control-register exit, bits 5:4 of the qualification (SDM 3C table 27-3).
#[derive(Clone, Copy)]
enum Access {
    MovTo = 0,
    MovFrom = 1,
    Clts = 2,
    Lmsw = 3,
}

/// SDM 3C table 27-3.
const fn exit(register: ControlRegister, access: Access, gpr: Gpr, at: At) -> Exit {
    let number = register.number() as u64;
    let qualification = number | (access as u64) << 4 | (gpr as u64) << 8;
    Exit::instruction(ExitReason::CrAccess, at.length).qualified(qualification)
}

/// MOV to CR0 and CR4 exits if a bit owned by the host would differ from the read shadow; MOV to CR3 if the value is none
/// of the CR3-target values.
pub(super) fn cr_write(controls: &Controls<'_>, register: ControlRegister, gpr: Gpr, value: u64, at: At) -> Decision {
    let differs = |mask, shadow| (value ^ controls.get(shadow)) & controls.get(mask) != 0;
    let exits = match register {
        ControlRegister::Cr0 => differs(Field::Cr0GuestHostMask, Field::Cr0ReadShadow),
        ControlRegister::Cr4 => differs(Field::Cr4GuestHostMask, Field::Cr4ReadShadow),
        ControlRegister::Cr3 => {
            let count = controls.get(Field::Cr3TargetCount) as usize;
            controls.primary.contains(PrimaryProc::CR3_LOAD_EXITING)
                && Field::CR3_TARGETS.into_iter().take(count).all(|field| controls.get(field) != value)
        }
        ControlRegister::Cr8 => controls.primary.contains(PrimaryProc::CR8_LOAD_EXITING),
        ControlRegister::Cr2 => false,
    };
    Decision::exits(exits, || exit(register, Access::MovTo, gpr, at))
}

/// MOV from a control register.
pub(super) fn cr_read(controls: &Controls<'_>, register: ControlRegister, gpr: Gpr, at: At) -> Decision {
    let exits = match register {
        ControlRegister::Cr3 => controls.primary.contains(PrimaryProc::CR3_STORE_EXITING),
        ControlRegister::Cr8 => controls.primary.contains(PrimaryProc::CR8_STORE_EXITING),
        ControlRegister::Cr0 | ControlRegister::Cr2 | ControlRegister::Cr4 => false,
    };
    Decision::exits(exits, || exit(register, Access::MovFrom, gpr, at))
}

/// CLTS exits if CR0.TS is set in both the mask and the shadow.
pub(super) fn clts(controls: &Controls<'_>, at: At) -> Decision {
    let owned = controls.get(Field::Cr0GuestHostMask) & controls.get(Field::Cr0ReadShadow);
    Decision::exits(owned & Cr0::TS.bits() != 0, || exit(ControlRegister::Cr0, Access::Clts, Gpr::Rax, at))
}

/// LMSW exits if it would set an owned PE whose shadow is 0, or give an owned MP, EM or TS another value than the shadow.
pub(super) fn lmsw(controls: &Controls<'_>, value: u16, address: Option<Gva>, at: At) -> Decision {
    const MEMORY: u64 = 1 << 6;
    let source = u64::from(value);
    let (mask, shadow) = (controls.get(Field::Cr0GuestHostMask), controls.get(Field::Cr0ReadShadow));
    let sets_pe = mask & source & !shadow & Cr0::PE.bits() != 0;
    let others = Cr0::MP.union(Cr0::EM).union(Cr0::TS).bits();
    let exits = sets_pe || mask & (source ^ shadow) & others != 0;
    Decision::exits(exits, || {
        let access = exit(ControlRegister::Cr0, Access::Lmsw, Gpr::Rax, at);
        let form = if address.is_some() { MEMORY } else { 0 };
        Exit { linear: address, ..access.qualified(access.qualification | form | source << 16) }
    })
}

/// MOV DR (SDM 3C table 27-4).
pub(super) fn debug(controls: &Controls<'_>, number: u8, gpr: Gpr, kind: AccessKind, at: At) -> Decision {
    Decision::exits(controls.primary.contains(PrimaryProc::MOV_DR_EXITING), || {
        let from = u64::from(kind != AccessKind::Write) << 4;
        Exit::instruction(ExitReason::MovDr, at.length).qualified(u64::from(number & 7) | from | (gpr as u64) << 8)
    })
}
