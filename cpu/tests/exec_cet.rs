//! Control-flow enforcement: shadow stacks and indirect-branch tracking (SDM 1 17; SDM 2, each instruction's page; SDM 3A
//! 6.14, 6.15; APM2 18).

mod harness;

use cpu::profile::Features;
use cpu::{Gpr, Outcome};
use harness::{CODE, CODE32, CODE64, DATA, DATA0, HANDLERS, IDT, Machine, RING0_STACK, STACK, TSS};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use sim_core::Hpa;
use sim_core::arch::control::{Cr4, Efer};
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
type Fault = (Vector, Option<u32>);
type Make = fn() -> Machine;
type Change = fn(&mut Machine);
type After = fn(&Machine) -> bool;
/// A name, the machine, the instruction, what else is made of the machine, and the fault.
type Refusal = (&'static str, Make, Emit, Change, Fault);

const UD: Fault = (Vector::InvalidOpcode, None);
const GP0: Fault = (Vector::GeneralProtection, Some(0));
const NEAR_RET: Fault = (Vector::ControlProtection, Some(1));
const FAR_RET: Fault = (Vector::ControlProtection, Some(2));
const RSTORSSP: Fault = (Vector::ControlProtection, Some(4));
const SETSSBSY: Fault = (Vector::ControlProtection, Some(5));
/// #PF: present, write, shadow stack; and a user's.
const PF_WRITE: Fault = (Vector::PageFault, Some(0x43));
const PF_USER_WRITE: Fault = (Vector::PageFault, Some(0x47));

const SH_STK_EN: u64 = 1 << 0;
const WR_SHSTK_EN: u64 = 1 << 1;
const ENDBR_EN: u64 = 1 << 2;
const TRACKER: u64 = 1 << 11;

/// A supervisor's and a user's shadow stack, and where their pointers are at first.
const SUPERVISOR: u64 = DATA + 0x1_0800;
const USER: u64 = DATA + 0x1_1800;
/// The tokens of IA32_PL0_SSP and of the interrupt SSP table's first entry, and that table.
const ENTRY: u64 = DATA + 0x1_2ff8;
const INTERRUPT: u64 = DATA + 0x1_3ff8;
const TABLE: u64 = DATA + 0x1_4000;
const OTHER: u64 = 0x9_4000;

/// 64-bit mode with shadow stacks at every level. Every gate has a stack of its own by IST 1.
fn enforced() -> Machine {
    let mut machine = Machine::long64();
    machine.core.features |= Features::CET_SS | Features::CET_IBT;
    machine.core.cr4 |= Cr4::CET;
    for (page, flags) in [(0x10, 0x61), (0x11, 0x65), (0x12, 0x61), (0x13, 0x61)] {
        machine.set_page(page, (DATA + (page << 12)) | flags);
    }
    let memory = &mut machine.ground.mem;
    memory.write_u64(Hpa(ENTRY), ENTRY);
    memory.write_u64(Hpa(INTERRUPT), INTERRUPT);
    memory.write_u64(Hpa(TABLE + 8), INTERRUPT);
    memory.write_u64(Hpa(TSS + 0x24), RING0_STACK);
    for vector in 0..32 {
        memory.write(Hpa(IDT + 16 * vector + 4), 1, 1);
    }
    let core = &mut machine.core;
    core.msrs.interrupt_ssp_table = TABLE;
    core.msrs.pl_ssp[0] = ENTRY;
    (core.msrs.s_cet, core.msrs.u_cet) = (SH_STK_EN, SH_STK_EN);
    core.ssp = SUPERVISOR;
    machine
}

fn user() -> Machine {
    let mut machine = enforced();
    machine.drop_to_user();
    machine.core.ssp = USER;
    machine
}

fn without_ist(machine: &mut Machine, vector: u64) {
    machine.ground.mem.write(Hpa(IDT + 16 * vector + 4), 0, 1);
}

fn compatibility(machine: &mut Machine) {
    machine.core.segments.cs = Segment::flat(0x43, Rights(Rights::CODE32.0 | 0x60));
}

fn raw(machine: &mut Machine, bytes: &[u8]) {
    machine.ground.mem.write_bytes(Hpa(CODE), bytes);
}

/// What stands on a shadow stack from an address on.
fn quads(machine: &Machine, at: u64) -> [u64; 3] {
    [0, 8, 16].map(|offset| machine.quad(at + offset))
}

/// SDM 2 CALL and RET, near: what is pushed, at both kinds of levels, and that RET takes it back.
#[test]
fn near_calls_and_returns() {
    // Source, code, bytes of the instruction, bytes pushed.
    let rows: [(&str, &[u8], u64, u64); 4] = [
        ("CALL rel32", &[0xe8, 0xfb, 0x0f, 0, 0], 5, 8),
        ("CALL rel32 of 0: nothing is pushed", &[0xe8, 0, 0, 0, 0], 5, 0),
        ("CALL r64", &[0xff, 0xd0], 2, 8),
        ("CALL r64 of the next instruction", &[0xff, 0xd3], 2, 8),
    ];
    for (name, bytes, length, pushed) in rows {
        for (mut machine, start) in [(enforced(), SUPERVISOR), (user(), USER)] {
            machine.set(Gpr::Rax, CODE + 0x1000);
            machine.set(Gpr::Rbx, CODE + 2);
            raw(&mut machine, bytes);
            machine.retire(1);
            assert_eq!(machine.core.ssp, start - pushed, "{name}");
            if pushed != 0 {
                assert_eq!(machine.quad(start - 8), CODE + length, "{name}");
                let at = machine.core.rip;
                machine.assemble(64, at, |a| a.ret());
                machine.retire(1);
                assert_eq!((machine.core.rip, machine.core.ssp), (CODE + length, start), "{name}");
            }
        }
    }
}

/// SDM 2 CALL and RET in compatibility mode: four bytes, also for a 16-bit operand, whose address is zero-extended.
#[test]
fn near_calls_of_compatibility_mode() {
    for (name, bytes, length) in
        [("CALL rel32", &[0xe8u8, 0xfb, 0x0f, 0, 0][..], 5), ("CALL rel16", &[0x66, 0xe8, 0xfc, 0x0f], 4)]
    {
        let mut machine = user();
        compatibility(&mut machine);
        raw(&mut machine, bytes);
        machine.retire(1);
        assert_eq!((machine.core.ssp, machine.dword(USER - 4)), (USER - 4, (CODE + length) as u32), "{name}");
        let target = machine.core.rip;
        machine.ground.mem.write_bytes(Hpa(target), if length == 4 { &[0x66, 0xc3] } else { &[0xc3] });
        machine.retire(1);
        assert_eq!((machine.core.rip, machine.core.ssp), (CODE + length, USER), "{name}");
    }
}

/// What near transfers refuse; nothing changes, RSP and SSP least of all.
#[test]
fn near_transfers_refused() {
    let call: Emit = |a| a.call(CODE + 0x1000);
    let ret: Emit = |a| a.ret();
    let rows: [(&str, Emit, Change, Fault); 7] = [
        ("SDM 2 RET: another address", ret, |m| m.ground.mem.write_u64(Hpa(USER), CODE + 1), NEAR_RET),
        ("SDM 2 RET: all 64 bits count", ret, |m| m.ground.mem.write_u64(Hpa(USER), CODE | 1 << 40), NEAR_RET),
        ("SDM 3A 4.6: a call onto an ordinary page", call, |m| m.core.ssp = DATA + 0x800, PF_USER_WRITE),
        ("SDM 3A 4.6: a call onto a supervisor's shadow stack", call, |m| m.core.ssp = SUPERVISOR, PF_USER_WRITE),
        ("SDM 3A 4.6: a return from it", ret, |m| m.core.ssp = SUPERVISOR, (Vector::PageFault, Some(0x45))),
        ("SDM 1 17.2: a pointer that is not canonical", call, |m| m.core.ssp = 1 << 48, GP0),
        (
            "SDM 3A 4.6: an ordinary write to a shadow stack",
            |a| a.mov(qword_ptr(rdi), rax),
            |m| m.set(Gpr::Rdi, USER),
            (Vector::PageFault, Some(7)),
        ),
    ];
    for (name, emit, set, expected) in rows {
        let mut machine = user();
        machine.ground.mem.write_u64(Hpa(STACK), CODE);
        set(&mut machine);
        let ssp = machine.core.ssp;
        machine.code64(emit);
        assert_eq!(machine.exception(), expected, "{name}");
        // The frame on the handler's stack tells RSP as it was, and IA32_PL3_SSP tells SSP.
        let error = 8;
        assert_eq!(machine.quad(machine.gpr(Gpr::Rsp) + error + 24), STACK, "{name}");
        assert_eq!(machine.core.msrs.pl_ssp[3], ssp, "{name}");
    }
}

/// A far CALL to the same level and back, with and without a hole of four bytes (SDM 2 CALL, RET).
#[test]
fn far_calls_and_returns() {
    for (name, ssp, base) in
        [("aligned", SUPERVISOR, SUPERVISOR - 24), ("four bytes off: a hole is left", SUPERVISOR + 4, SUPERVISOR - 24)]
    {
        let mut machine = enforced();
        machine.core.ssp = ssp;
        machine.ground.mem.write_u64(Hpa(OTHER), CODE + 0x1000);
        machine.ground.mem.write(Hpa(OTHER + 8), CODE64.into(), 2);
        machine.ground.mem.write_u64(Hpa(SUPERVISOR), u64::MAX);
        machine.set(Gpr::Rax, OTHER);
        raw(&mut machine, &[0x48, 0xff, 0x18]);
        machine.retire(1);
        assert_eq!((machine.core.rip, machine.core.ssp), (CODE + 0x1000, base), "{name}");
        assert_eq!(quads(&machine, base), [ssp, CODE + 3, CODE64.into()], "{name}");
        if ssp != SUPERVISOR {
            assert_eq!(machine.dword(SUPERVISOR), 0, "{name}");
        }
        machine.ground.mem.write_bytes(Hpa(CODE + 0x1000), &[0x48, 0xcb]);
        machine.retire(1);
        assert_eq!((machine.core.rip, machine.core.ssp), (CODE + 3, ssp), "{name}");
    }
}

/// Frames that far RET and IRET refuse (SDM 2 RET, IRET).
#[test]
fn far_returns_refused() {
    let rows: [(&str, Change, Fault); 7] = [
        ("another CS", |m| m.ground.mem.write_u64(Hpa(SUPERVISOR + 16), CODE32.into()), FAR_RET),
        ("CS beyond 16 bits", |m| m.ground.mem.write_u64(Hpa(SUPERVISOR + 16), 0x1_0028), FAR_RET),
        ("another address", |m| m.ground.mem.write_u64(Hpa(SUPERVISOR + 8), OTHER + 1), FAR_RET),
        ("an SSP off by two", |m| m.ground.mem.write_u64(Hpa(SUPERVISOR), SUPERVISOR + 26), FAR_RET),
        ("an SSP that is not canonical", |m| m.ground.mem.write_u64(Hpa(SUPERVISOR), 1 << 47), GP0),
        ("SSP itself four off", |m| m.core.ssp += 4, FAR_RET),
        ("nothing wrong", |_| (), UD),
    ];
    for (code, name) in [(&[0x48u8, 0xcb][..], "far RET"), (&[0x48, 0xcf], "IRET")] {
        for (what, change, expected) in rows {
            let mut machine = enforced();
            let frame = [OTHER, CODE64.into(), 2, STACK, DATA0.into()];
            for (index, value) in frame.into_iter().enumerate() {
                machine.ground.mem.write_u64(Hpa(STACK + 8 * index as u64), value);
            }
            for (index, value) in [SUPERVISOR + 24, OTHER, CODE64.into()].into_iter().enumerate() {
                machine.ground.mem.write_u64(Hpa(SUPERVISOR + 8 * index as u64), value);
            }
            machine.ground.mem.write_bytes(Hpa(OTHER), &[0x0f, 0x0b]);
            change(&mut machine);
            raw(&mut machine, code);
            if expected == UD {
                machine.retire(1);
                assert_eq!(machine.core.ssp, SUPERVISOR + 24, "{name}, {what}");
            }
            assert_eq!(machine.exception(), expected, "{name}, {what}");
        }
    }
}

/// A far JMP or CALL into compatibility mode needs SSP below 4 GB (SDM 2 JMP, CALL).
#[test]
fn shadow_stacks_of_compatibility_mode_are_low() {
    for (name, code) in [("JMP m16:32", [0xff, 0x28]), ("CALL m16:32", [0xff, 0x18])] {
        for (high, expected) in [(false, None), (true, Some(GP0))] {
            let mut machine = user();
            machine.set_page(0x11, (DATA + 0x1_1000) | 0x65);
            machine.ground.mem.write_u32(Hpa(OTHER), CODE as u32 + 0x1000);
            machine.ground.mem.write(Hpa(OTHER + 4), 0x43, 2);
            machine.set(Gpr::Rax, OTHER);
            raw(&mut machine, &code);
            if high {
                machine.core.ssp |= 1 << 32;
            }
            match expected {
                Some(fault) => assert_eq!(machine.exception(), fault, "{name}"),
                None => machine.retire(1),
            }
        }
    }
}

/// INT3 by a user to ring 0: the token of IA32_PL0_SSP becomes busy, nothing is pushed, SSP goes to IA32_PL3_SSP; IRET
/// undoes all (SDM 2 INT n, IRET; SDM 1 17.2.3).
#[test]
fn events_that_change_the_level() {
    let mut machine = user();
    without_ist(&mut machine, 3);
    machine.code64(|a| a.int3());
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    assert_eq!((machine.core.cpl(), machine.core.ssp), (0, ENTRY));
    assert_eq!((machine.quad(ENTRY), machine.core.msrs.pl_ssp[3]), (ENTRY | 1, USER));
    machine.ground.mem.write_bytes(Hpa(HANDLERS + 48), &[0x48, 0xcf]);
    machine.retire(1);
    assert_eq!((machine.core.cpl(), machine.core.ssp, machine.core.rip), (3, USER, CODE + 1));
    assert_eq!(machine.quad(ENTRY), ENTRY);
}

/// An event within a level: CS, LIP and SSP are pushed on the same shadow stack, or on one of the interrupt SSP table,
/// whose token IRET gives back (SDM 2 INT n, IRET).
#[test]
fn events_within_a_level() {
    for (name, ist, ssp, base) in [
        ("the same shadow stack", false, SUPERVISOR, SUPERVISOR - 24),
        ("the same, with a hole", false, SUPERVISOR + 4, SUPERVISOR - 24),
        ("IST", true, SUPERVISOR, INTERRUPT - 24),
    ] {
        let mut machine = enforced();
        if !ist {
            without_ist(&mut machine, 3);
        }
        machine.core.ssp = ssp;
        machine.code64(|a| a.int3());
        assert_eq!(machine.step(), Ok(Outcome::Delivered), "{name}");
        assert_eq!(machine.core.ssp, base, "{name}");
        assert_eq!(quads(&machine, base), [ssp, CODE + 1, CODE64.into()], "{name}");
        assert_eq!(machine.quad(INTERRUPT), INTERRUPT | u64::from(ist), "{name}");
        machine.ground.mem.write_bytes(Hpa(HANDLERS + 48), &[0x48, 0xcf]);
        machine.retire(1);
        assert_eq!((machine.core.ssp, machine.core.rip), (ssp, CODE + 1), "{name}");
        assert_eq!(machine.quad(INTERRUPT), INTERRUPT, "{name}");
    }
}

/// 32-bit protected mode: the same, with 32-bit linear addresses of a segment with a base (SDM 2 INT n, IRET).
#[test]
fn events_of_protected_mode() {
    let mut machine = Machine::flat32();
    machine.core.features |= Features::CET_SS;
    machine.core.cr4 |= Cr4::CET;
    machine.core.msrs.s_cet = SH_STK_EN;
    machine.core.ssp = SUPERVISOR;
    machine.core.segments.cs.base = 0x1000;
    machine.core.rip = CODE - 0x1000;
    raw(&mut machine, &[0xcc]);
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    assert_eq!(machine.core.ssp, SUPERVISOR - 24);
    assert_eq!(quads(&machine, SUPERVISOR - 24), [SUPERVISOR, CODE + 1, CODE32.into()]);
}

/// Tokens that delivery refuses: #GP(0), and the token stays as it is (SDM 2 INT n; SDM 1 17.2.3).
#[test]
fn tokens_refused() {
    let rows: [(&str, Change); 6] = [
        ("busy", |m| m.ground.mem.write_u64(Hpa(ENTRY), ENTRY | 1)),
        ("reserved bit 1", |m| m.ground.mem.write_u64(Hpa(ENTRY), ENTRY | 2)),
        ("another address", |m| m.ground.mem.write_u64(Hpa(ENTRY), ENTRY - 8)),
        ("a pointer four off", |m| m.core.msrs.pl_ssp[0] = ENTRY - 4),
        ("a frame across 32 bytes", |m| {
            m.core.msrs.pl_ssp[0] = ENTRY - 8;
            m.ground.mem.write_u64(Hpa(ENTRY - 8), ENTRY - 8);
        }),
        ("a pointer that is not canonical", |m| m.core.msrs.pl_ssp[0] = 0x8000_0000_0000_0018),
    ];
    for (name, change) in rows {
        let mut machine = user();
        without_ist(&mut machine, 3);
        change(&mut machine);
        let token = machine.quad(ENTRY);
        machine.code64(|a| a.int3());
        assert_eq!(machine.exception(), GP0, "{name}");
        assert_eq!((machine.quad(ENTRY), machine.core.ssp), (token, INTERRUPT), "{name}");
        assert_eq!(machine.core.msrs.pl_ssp[3], USER, "{name}");
    }
}

/// SYSCALL, SYSRET, SYSENTER and SYSEXIT: SSP to and from IA32_PL3_SSP, and 0 in ring 0 (SDM 2, each page). The tracker of
/// ring 0 waits behind an entry (SDM 1 17.3).
#[test]
fn system_calls() {
    let rows: [(&str, Emit, Emit); 2] =
        [("SYSCALL", |a| a.syscall(), |a| a.sysretq()), ("SYSENTER", |a| a.sysenter(), |a| a.sysexitq())];
    for (name, enter, leave) in rows {
        for enables in 0..4 {
            let (at_user, at_supervisor) = (enables & 1 != 0, enables & 2 != 0);
            let mut machine = user();
            machine.core.efer |= Efer::SCE;
            machine.core.msrs.star = 0x0030_0028_0000_0000;
            (machine.core.msrs.lstar, machine.core.msrs.sysenter_eip) = (OTHER, OTHER);
            machine.core.msrs.sysenter_cs = 0x28;
            machine.core.msrs.u_cet = u64::from(at_user);
            machine.core.msrs.s_cet = u64::from(at_supervisor) | ENDBR_EN;
            machine.code64(enter);
            machine.retire(1);
            let (ssp, kept) = (if at_supervisor { 0 } else { USER }, if at_user { USER } else { 0 });
            assert_eq!((machine.core.ssp, machine.core.msrs.pl_ssp[3]), (ssp, kept), "{name} {enables}");
            assert_ne!(machine.core.msrs.s_cet & TRACKER, 0, "{name}");
            machine.core.msrs.s_cet &= !TRACKER;
            machine.core.msrs.pl_ssp[3] = USER - 8;
            machine.assemble(64, OTHER, leave);
            machine.set(Gpr::Rcx, CODE);
            machine.set(Gpr::Rdx, CODE);
            machine.retire(1);
            assert_eq!(machine.core.ssp, if at_user { USER - 8 } else { ssp }, "{name} {enables}");
        }
    }
}

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

/// With CR4.CET clear nothing of it is there, whatever the MSRs say (SDM 1 17.1).
#[test]
fn nothing_while_off() {
    let mut machine = user();
    machine.core.cr4.remove(Cr4::CET);
    (machine.core.msrs.u_cet, machine.core.msrs.s_cet) = (0x17 | TRACKER, 0x17);
    machine.core.ssp = 0x1234_5678_9abc_def0;
    machine.set(Gpr::Rcx, 5);
    machine.set(Gpr::Rax, OTHER);
    machine.code64(|a| {
        a.rdsspq(rcx)?;
        a.call(rax)?;
        a.int3()
    });
    machine.assemble(64, OTHER, |a| a.ret());
    machine.retire(3);
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    assert_eq!((machine.gpr(Gpr::Rcx), machine.core.ssp), (5, 0x1234_5678_9abc_def0));
    assert_eq!((machine.core.msrs.u_cet, machine.core.msrs.s_cet), (0x17 | TRACKER, 0x17));
    assert_eq!((machine.quad(ENTRY), machine.quad(INTERRUPT)), (ENTRY, INTERRUPT));
}
