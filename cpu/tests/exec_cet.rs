//! Control-flow enforcement: shadow stacks and indirect-branch tracking (SDM 1 17; SDM 2, each instruction's page; SDM 3A
//! 6.14, 6.15; APM2 18).

mod harness;

use cpu::profile::Features;
use cpu::{Gpr, Outcome, Pace, StopOn};
use harness::cet::*;
use harness::*;
use iced_x86::code_asm::*;
use sim_core::Hpa;
use sim_core::arch::control::{Cr4, Efer};
use sim_core::arch::exception::Vector;
use sim_core::arch::segment::{Rights, Segment};

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

/// A call gate at 0x60 to ring 0, code and data of ring 1 at 0x70 and 0x78, and a far CALL of the gate.
fn with_call_gate(machine: &mut Machine) {
    let gate = (OTHER & 0xffff) | (u64::from(CODE64) << 16) | (0xec << 40) | ((OTHER >> 16) << 48);
    for (selector, raw) in [(0x60, gate), (0x68, 0), (0x70, flat_descriptor(0xa0bb)), (0x78, flat_descriptor(0xc0b3))] {
        machine.ground.mem.write_u64(Hpa(GDT + selector), raw);
    }
    machine.core.gdtr.limit = 0x7f;
    machine.ground.mem.write_u64(Hpa(POINTER), 0);
    machine.ground.mem.write(Hpa(POINTER + 8), 0x60, 2);
    machine.set(Gpr::Rax, POINTER);
    raw(machine, &[0x48, 0xff, 0x18]);
    machine.ground.mem.write_bytes(Hpa(OTHER), &[0x48, 0xcb]);
}

const POINTER: u64 = 0x9_5000;

fn ring1() -> Machine {
    let mut machine = enforced();
    machine.core.segments.cs = Segment::flat(0x71, Rights(Rights::CODE64.0 | 0x20));
    machine.core.segments.ss = Segment::flat(0x79, Rights(Rights::DATA.0 | 0x20));
    machine
}

/// CALL through a gate from every kind of level, and far RET: a user leaves no frame, ring 1 leaves one on the stack of
/// IA32_PL0_SSP, ring 0 on its own (SDM 2 CALL, RET; SDM 1 17.2.3).
#[test]
fn calls_through_gates() {
    let rows: [(&str, Make, u64, bool, Option<u64>); 3] = [
        ("a user", user, ENTRY, true, None),
        ("ring 1", ring1, ENTRY - 24, true, Some(0x71)),
        ("ring 0", enforced, SUPERVISOR - 24, false, Some(0x28)),
    ];
    for (name, make, base, busy, frame) in rows {
        let mut machine = make();
        let (ssp, cpl) = (machine.core.ssp, machine.core.cpl());
        with_call_gate(&mut machine);
        machine.retire(1);
        assert_eq!((machine.core.ssp, machine.core.rip, machine.core.cpl()), (base, OTHER, 0), "{name}");
        assert_eq!(machine.quad(ENTRY), ENTRY | u64::from(busy), "{name}");
        if let Some(selector) = frame {
            assert_eq!(quads(&machine, base), [ssp, CODE + 3, selector], "{name}");
        }
        assert_eq!(machine.core.msrs.pl_ssp[3], if cpl == 3 { USER } else { 0 }, "{name}");
        machine.retire(1);
        assert_eq!((machine.core.ssp, machine.core.rip, machine.core.cpl()), (ssp, CODE + 3, cpl), "{name}");
        assert_eq!(machine.quad(ENTRY), ENTRY, "{name}");
    }
}

/// A CALL through a gate whose token is busy changes nothing, and a JMP through one only makes the tracker wait.
#[test]
fn gates_refused_and_jumped_through() {
    let mut machine = user();
    with_call_gate(&mut machine);
    machine.ground.mem.write_u64(Hpa(ENTRY), ENTRY | 1);
    assert_eq!(machine.exception(), GP0);
    assert_eq!((machine.quad(ENTRY), machine.core.msrs.pl_ssp[3]), (ENTRY | 1, USER));

    let mut machine = enforced();
    machine.core.msrs.s_cet |= ENDBR_EN;
    with_call_gate(&mut machine);
    raw(&mut machine, &[0x48, 0xff, 0x28]);
    machine.retire(1);
    assert_eq!((machine.core.rip, machine.core.ssp), (OTHER, SUPERVISOR));
    assert_eq!(machine.core.msrs.s_cet & TRACKER, TRACKER);
}

/// Out of virtual-8086 mode the token is taken and nothing is pushed or kept for the mode; IRETD into it gives the token
/// back. Inside the mode there is no shadow stack, nor its instructions (SDM 2 INT n, IRET; SDM 1 17.2.2).
#[test]
fn virtual_8086_mode() {
    let mut machine = Machine::flat32();
    machine.core.features |= Features::CET_SS;
    machine.core.cr4 |= Cr4::CET;
    (machine.core.msrs.s_cet, machine.core.msrs.u_cet) = (SH_STK_EN, SH_STK_EN);
    (machine.core.ssp, machine.core.msrs.pl_ssp) = (ENTRY, [ENTRY, 0, 0, 7]);
    machine.ground.mem.write_u64(Hpa(ENTRY), ENTRY | 1);
    let frame = [0x100, 0x800, 0x2_3002, 0x700, 0, 0, 0, 0, 0];
    for (index, value) in frame.into_iter().enumerate() {
        machine.ground.mem.write_u32(Hpa(STACK + 4 * index as u64), value);
    }
    raw(&mut machine, &[0xcf]);
    machine.retire(1);
    assert_eq!((machine.core.cpl(), machine.quad(ENTRY)), (3, ENTRY));
    // CALL of 3 bytes further; SETSSBSY there, which the mode does not have.
    machine.ground.mem.write_bytes(Hpa(0x8100), &[0xe8, 0, 1]);
    machine.ground.mem.write_bytes(Hpa(0x8203), &[0xf3, 0x0f, 0x01, 0xe8]);
    machine.core.ssp = SUPERVISOR;
    machine.retire(1);
    assert_eq!(machine.core.ssp, SUPERVISOR);
    assert_eq!(machine.exception(), UD);
    assert_eq!((machine.core.cpl(), machine.core.ssp, machine.quad(ENTRY)), (0, ENTRY, ENTRY | 1));
    assert_eq!(machine.core.msrs.pl_ssp[3], 7);
}

/// Long runs, in which blocks may take over from steps, keep the shadow stack and the tracker as single steps do.
#[test]
fn blocks_leave_it_to_steps() {
    let run = |pace| {
        let mut machine = user();
        machine.core.msrs.u_cet |= ENDBR_EN;
        machine.set(Gpr::Rcx, 500);
        machine.set(Gpr::Rax, OTHER);
        machine.code64(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.call(rax)?;
            a.dec(rcx)?;
            a.jnz(again)?;
            a.push(rax)?;
            a.ret()
        });
        machine.assemble(64, OTHER, |a| {
            a.endbr64()?;
            a.ret()
        });
        let ended = cpu::run_at(pace, &mut machine.core, &mut machine.virt, &mut machine.ground, StopOn::Bus, 10_000);
        assert_eq!(ended, Ok(Outcome::Halted));
        assert_eq!((machine.gpr(Gpr::Rcx), machine.last_exception()), (0, Some(NEAR_RET)));
        assert_eq!(machine.core.msrs.pl_ssp[3], USER);
        assert_eq!(machine.quad(USER - 8), CODE + 2);
        machine.ground.clock.now()
    };
    assert_eq!(run(Pace::Steps), run(Pace::Blocks));
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
