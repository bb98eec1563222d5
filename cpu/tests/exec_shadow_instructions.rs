//! Instructions on shadow stacks (SDM 2, each page; SDM 1 17.2.5; APM3, each page).

mod harness;

use cpu::{Gpr, Outcome};
use harness::cet::*;
use harness::*;
use iced_x86::code_asm::*;
use proptest::prelude::*;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::{Hpa, SimError};

/// An instruction on shadow stacks that completes: the machine before, the instruction, and what holds after.
#[test]
fn instructions() {
    let rows: [(&str, Make, Emit, After); 13] = [
        ("RDSSPQ", user, |a| a.rdsspq(rcx), |m| m.gpr(Gpr::Rcx) == USER),
        ("RDSSPD", user, |a| a.rdsspd(ecx), |m| m.gpr(Gpr::Rcx) == USER),
        ("INCSSPQ takes eight bits", user, |a| a.incsspq(rbx), |m| m.core.ssp == USER + 8 * 3),
        ("INCSSPD", user, |a| a.incsspd(ebx), |m| m.core.ssp == USER + 4 * 3),
        ("INCSSPQ by 0", user, |a| a.incsspq(rbp), |m| m.core.ssp == USER),
        ("WRSSQ", user, |a| a.wrssq(qword_ptr(rdi), rbx), |m| m.quad(USER - 0x100) == 0x103),
        ("WRSSD", user, |a| a.wrssd(dword_ptr(rdi + 4), ebx), |m| m.dword(USER - 0xfc) == 0x103),
        ("WRUSSQ", enforced, |a| a.wrussq(qword_ptr(rdi), rbx), |m| m.quad(USER - 0x100) == 0x103),
        ("WRUSSD", enforced, |a| a.wrussd(dword_ptr(rdi), ebx), |m| m.dword(USER - 0x100) == 0x103),
        ("SETSSBSY", enforced, |a| a.setssbsy(), |m| m.core.ssp == ENTRY && m.quad(ENTRY) == ENTRY | 1),
        (
            "CLRSSBSY",
            enforced,
            |a| a.clrssbsy(qword_ptr(rsi)),
            |m| m.core.ssp == 0 && m.quad(INTERRUPT) == INTERRUPT && m.status().is_empty(),
        ),
        (
            "CLRSSBSY of a token that is not busy",
            enforced,
            |a| a.clrssbsy(qword_ptr(r8)),
            |m| m.core.ssp == 0 && m.quad(ENTRY) == ENTRY && m.status() == Rflags::CF,
        ),
        (
            "RSTORSSP",
            user,
            |a| a.rstorssp(qword_ptr(rdx)),
            |m| m.core.ssp == USER - 0x208 && m.quad(USER - 0x208) == USER | 3 && m.status().is_empty(),
        ),
    ];
    for (name, make, emit, after) in rows {
        let mut machine = make();
        machine.core.msrs.u_cet |= WR_SHSTK_EN;
        machine.ground.mem.write_u64(Hpa(INTERRUPT), INTERRUPT | 1);
        machine.ground.mem.write_u64(Hpa(USER - 0x208), (USER - 0x200) | 1);
        for (register, value) in [
            (Gpr::Rbx, 0x103),
            (Gpr::Rcx, u64::MAX),
            (Gpr::Rdi, USER - 0x100),
            (Gpr::Rsi, INTERRUPT),
            (Gpr::R8, ENTRY),
            (Gpr::Rdx, USER - 0x208),
        ] {
            machine.set(register, value);
        }
        machine.code64(emit);
        machine.retire(1);
        assert!(after(&machine), "{name}");
    }
}

/// RSTORSSP and SAVEPREVSSP together leave a token from which the first stack can be restored (SDM 1 17.2.5).
#[test]
fn switching_shadow_stacks() {
    let other = USER - 0x208;
    for (bits, hole) in [(64, false), (32, false), (32, true)] {
        let mut machine = user();
        let mode = u64::from(bits == 64);
        if bits == 32 {
            compatibility(&mut machine);
        }
        // With a hole, the pointer of the other stack lies four bytes above the token's end.
        let outer = other + 8 + 4 * u64::from(hole);
        machine.ground.mem.write_u64(Hpa(other + 8), 0);
        machine.ground.mem.write_u64(Hpa(other), outer | mode);
        machine.set(Gpr::Rax, other);
        machine.set(Gpr::Rbx, USER - 8);
        machine.assemble(bits, CODE, |a| {
            if bits == 64 { a.rstorssp(qword_ptr(rax)) } else { a.rstorssp(qword_ptr(eax)) }?;
            a.saveprevssp()?;
            if bits == 64 { a.rstorssp(qword_ptr(rbx)) } else { a.rstorssp(qword_ptr(ebx)) }
        });
        machine.retire(1);
        assert_eq!(machine.core.rflags.contains(Rflags::CF), hole);
        assert_eq!((machine.core.ssp, machine.quad(other)), (other, USER | mode | 2));
        machine.retire(1);
        assert_eq!((machine.core.ssp, machine.quad(USER - 8)), (outer, USER | mode));
        machine.retire(1);
        assert_eq!((machine.core.ssp, machine.quad(USER - 8)), (USER - 8, outer | mode | 2));
    }
}

fn switch_off(machine: &mut Machine) {
    (machine.core.msrs.u_cet, machine.core.msrs.s_cet) = (0, 0);
}

/// Writes the token that RSTORSSP finds.
fn set_token(machine: &mut Machine, value: u64) {
    machine.ground.mem.write_u64(Hpa(USER - 0x208), value);
}

fn refuse(rows: &[Refusal]) {
    for (name, make, emit, change, expected) in rows {
        let mut machine = make();
        machine.core.msrs.u_cet |= WR_SHSTK_EN;
        machine.core.msrs.s_cet |= WR_SHSTK_EN;
        set_token(&mut machine, (USER - 0x200) | 1);
        machine.set(Gpr::Rbx, 3);
        machine.set(Gpr::Rdi, USER - 0x100);
        machine.set(Gpr::Rdx, USER - 0x208);
        change(&mut machine);
        machine.code64(*emit);
        let before = machine.quad(USER - 0x208);
        assert_eq!(machine.exception(), *expected, "{name}");
        assert_eq!(machine.quad(USER - 0x208), before, "{name}");
    }
}

/// What the instructions that users have refuse (SDM 2, each page).
#[test]
fn instructions_refused() {
    let rstorssp: Emit = |a| a.rstorssp(qword_ptr(rdx));
    let wrss: Emit = |a| a.wrssq(qword_ptr(rdi), rbx);
    let save: Emit = |a| a.saveprevssp();
    refuse(&[
        ("INCSSP while off", user, |a| a.incsspq(rbx), switch_off, UD),
        (
            "INCSSP from no shadow stack",
            user,
            |a| a.incsspq(rbx),
            |m| m.core.ssp = DATA,
            (Vector::PageFault, Some(0x45)),
        ),
        (
            "INCSSP to no shadow stack",
            user,
            |a| a.incsspq(rbp),
            |m| {
                m.set(Gpr::Rbp, 0xff);
                m.core.ssp = USER + 0x700;
            },
            (Vector::PageFault, Some(0x45)),
        ),
        ("SAVEPREVSSP while off", user, save, switch_off, UD),
        ("SAVEPREVSSP four off", user, save, |m| m.core.ssp += 4, GP0),
        ("SAVEPREVSSP without a token", user, save, |m| m.ground.mem.write_u64(Hpa(USER), USER - 8), GP0),
        (
            "SAVEPREVSSP with CF in 64-bit mode",
            user,
            save,
            |m| {
                m.ground.mem.write_u64(Hpa(USER), (USER - 8) | 3);
                m.core.rflags |= Rflags::CF;
            },
            GP0,
        ),
        ("RSTORSSP while off", user, rstorssp, switch_off, UD),
        ("RSTORSSP four off", user, rstorssp, |m| m.set(Gpr::Rdx, USER - 0x204), GP0),
        ("RSTORSSP of another mode's token", user, rstorssp, |m| set_token(m, USER - 0x200), RSTORSSP),
        ("RSTORSSP of a previous-SSP token", user, rstorssp, |m| set_token(m, (USER - 0x200) | 3), RSTORSSP),
        ("RSTORSSP of a token from elsewhere", user, rstorssp, |m| set_token(m, (USER - 0x1f8) | 1), RSTORSSP),
        ("RSTORSSP from an ordinary page", user, rstorssp, |m| m.set(Gpr::Rdx, DATA), PF_USER_WRITE),
        ("WRSS while off", user, wrss, switch_off, UD),
        ("WRSS without its enable", user, wrss, |m| m.core.msrs.u_cet = SH_STK_EN, UD),
        ("WRSSQ four off", user, wrss, |m| m.set(Gpr::Rdi, USER - 0xfc), GP0),
        ("WRSSD two off", user, |a| a.wrssd(dword_ptr(rdi), ebx), |m| m.set(Gpr::Rdi, USER - 0xfe), GP0),
        ("WRSS to an ordinary page", user, wrss, |m| m.set(Gpr::Rdi, DATA), PF_USER_WRITE),
        ("WRSS by ring 0 to a user's", enforced, wrss, |_| (), PF_WRITE),
    ]);
}

/// What the instructions of ring 0 refuse (SDM 2, each page).
#[test]
fn supervisor_instructions_refused() {
    let wruss: Emit = |a| a.wrussq(qword_ptr(rdi), rbx);
    refuse(&[
        ("WRUSS with CR4.CET clear", enforced, wruss, |m| m.core.cr4.remove(Cr4::CET), UD),
        ("WRUSS by a user", user, wruss, |_| (), GP0),
        ("WRUSS four off", enforced, wruss, |m| m.set(Gpr::Rdi, USER - 0xfc), GP0),
        ("WRUSS to a supervisor's", enforced, wruss, |m| m.set(Gpr::Rdi, SUPERVISOR), PF_USER_WRITE),
        ("SETSSBSY while off", enforced, |a| a.setssbsy(), switch_off, UD),
        ("SETSSBSY by a user", user, |a| a.setssbsy(), |_| (), GP0),
        ("SETSSBSY four off", enforced, |a| a.setssbsy(), |m| m.core.msrs.pl_ssp[0] = ENTRY - 4, GP0),
        (
            "SETSSBSY of a busy token",
            enforced,
            |a| a.setssbsy(),
            |m| m.ground.mem.write_u64(Hpa(ENTRY), ENTRY | 1),
            SETSSBSY,
        ),
        ("CLRSSBSY by a user", user, |a| a.clrssbsy(qword_ptr(rdx)), |_| (), GP0),
        ("CLRSSBSY four off", enforced, |a| a.clrssbsy(qword_ptr(rdx)), |m| m.set(Gpr::Rdx, ENTRY - 4), GP0),
    ]);
}

/// One of the bytes that CET gives a meaning, or that it changes the meaning of.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let known: [&[u8]; 20] = [
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8],
        &[0xf3, 0x48, 0x0f, 0xae, 0xe9],
        &[0xf3, 0x0f, 0x01, 0xea],
        &[0xf3, 0x0f, 0x01, 0x2a],
        &[0x48, 0x0f, 0x38, 0xf6, 0x1f],
        &[0x0f, 0x38, 0xf6, 0x1f],
        &[0x66, 0x48, 0x0f, 0x38, 0xf5, 0x1f],
        &[0xf3, 0x0f, 0x01, 0xe8],
        &[0xf3, 0x0f, 0xae, 0x36],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0xf3, 0x0f, 0x1e, 0xfb],
        &[0xff, 0xd0],
        &[0x3e, 0xff, 0xe0],
        &[0xe8, 0, 0, 0, 0],
        &[0xc3],
        &[0x48, 0xcb],
        &[0x48, 0xcf],
        &[0xcc],
        &[0x0f, 0x05],
        &[0xff, 0x18],
    ];
    prop::sample::select(known.to_vec()).prop_map(<[u8]>::to_vec)
}

/// A register that is on or near a shadow stack or its code, or anything.
fn register() -> impl Strategy<Value = u64> {
    let near = prop::sample::select(vec![USER, SUPERVISOR, ENTRY, INTERRUPT, CODE, STACK]);
    prop_oneof![4 => (near, 0..64_u64).prop_map(|(base, more)| base.wrapping_sub(32) + more), 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever the registers and the tokens hold, instructions end in an outcome or in something named, and a fault leaves
    /// the processor's shadow-stack registers to the delivery alone: with the enables clear they never change.
    #[test]
    fn anything_ends(
        bytes in prop::collection::vec(instruction(), 1..12),
        registers in prop::collection::vec(register(), 16),
        words in prop::collection::vec(register(), 8),
        (ssp, controls, modes) in (register(), 0..0x1000_u64, 0..8_u8),
    ) {
        let mut machine = if modes & 1 == 0 { user() } else { enforced() };
        if modes & 2 != 0 && machine.core.cpl() == 3 {
            compatibility(&mut machine);
        }
        if modes & 4 != 0 {
            machine.core.cr4.remove(Cr4::CET);
        }
        machine.core.gprs.copy_from_slice(&registers);
        for (index, word) in words.into_iter().enumerate() {
            for base in [USER, SUPERVISOR, STACK] {
                machine.ground.mem.write_u64(Hpa(base + 8 * index as u64), word);
            }
        }
        (machine.core.ssp, machine.core.msrs.u_cet, machine.core.msrs.s_cet) = (ssp, controls & 0xc3f, controls & 0x43f);
        machine.ground.mem.write_bytes(Hpa(CODE), &bytes.concat());
        let kept = |machine: &Machine| (machine.core.ssp, machine.core.msrs.u_cet, machine.core.msrs.s_cet);
        let before = kept(&machine);
        for _ in 0..24 {
            let result = machine.step();
            prop_assert!(matches!(result, Ok(_) | Err(SimError::Unmodelled { .. })), "{:?}", result);
            if modes & 4 != 0 {
                prop_assert_eq!(kept(&machine), before);
            }
            if !matches!(result, Ok(Outcome::Retired | Outcome::Delivered)) {
                break;
            }
        }
    }
}
