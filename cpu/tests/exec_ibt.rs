//! Indirect-branch tracking, and the registers of control-flow enforcement (SDM 1 17.3; SDM 4 table 2-2).

mod harness;

use cpu::profile::Features;
use cpu::{Core, Gpr};
use harness::{CODE, DATA, Machine, USER_CODE64};
use iced_x86::code_asm::{cr4, rax};
use sim_core::Hpa;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::Vector;

type Fault = (Vector, Option<u32>);

const UD: Fault = (Vector::InvalidOpcode, None);
const GP0: Fault = (Vector::GeneralProtection, Some(0));
const ENDBRANCH: Fault = (Vector::ControlProtection, Some(3));

const ENDBR_EN: u64 = 1 << 2;
const LEG_IW_EN: u64 = 1 << 3;
const NO_TRACK_EN: u64 = 1 << 4;
const SUPPRESS: u64 = 1 << 10;
const TRACKER: u64 = 1 << 11;
const OTHER: u64 = 0x9_4000;

/// 64-bit mode with CR4.CET set, and nothing enabled by it.
fn enforced() -> Machine {
    let mut machine = Machine::long64();
    machine.core.features |= Features::CET_SS | Features::CET_IBT;
    machine.core.cr4 |= Cr4::CET;
    machine
}

fn user() -> Machine {
    let mut machine = enforced();
    machine.drop_to_user();
    machine
}

fn raw(machine: &mut Machine, bytes: &[u8]) {
    machine.ground.mem.write_bytes(Hpa(CODE), bytes);
}

/// Every near branch, level, control and instruction at the target (SDM 1 table 17-1, 17.3.1).
#[test]
fn indirect_branch_tracking() {
    // Bytes of the branch, whether it is indirect, whether it has a no-track prefix in force.
    let branches: [(&[u8], bool, bool); 7] = [
        (&[0xff, 0xe0], true, false),
        (&[0xff, 0xd0], true, false),
        (&[0x3e, 0xff, 0xe0], true, true),
        (&[0x3e, 0xff, 0xd0], true, true),
        (&[0x3e, 0x64, 0xff, 0xe0], true, false),
        (&[0xe9, 0xfb, 0x0f, 0, 0], false, false),
        (&[0xe8, 0xfb, 0x0f, 0, 0], false, false),
    ];
    let targets: [&[u8]; 5] = [&[0xf3, 0x0f, 0x1e, 0xfa], &[0xf3, 0x0f, 0x1e, 0xfb], &[0x90], &[0xcc], &[0x06]];
    let mut cases = 0;
    for (branch, indirect, prefixed) in branches {
        for (target, bytes) in targets.into_iter().enumerate() {
            for controls in 0..8 {
                for ring3 in [false, true] {
                    let control = [ENDBR_EN, NO_TRACK_EN, SUPPRESS].into_iter().enumerate();
                    let control =
                        control.fold(0, |all, (index, bit)| if controls >> index & 1 != 0 { all | bit } else { all });
                    let mut machine = enforced();
                    if ring3 {
                        machine.drop_to_user();
                    }
                    *control_of(&mut machine.core, ring3) = control;
                    *control_of(&mut machine.core, !ring3) = 0;
                    machine.set(Gpr::Rax, CODE + 0x1000);
                    raw(&mut machine, branch);
                    machine.ground.mem.write_bytes(Hpa(CODE + 0x1000), bytes);
                    machine.retire(1);
                    let tracked = indirect
                        && control & ENDBR_EN != 0
                        && control & SUPPRESS == 0
                        && !(prefixed && control & NO_TRACK_EN != 0);
                    let waiting = if tracked { control | TRACKER } else { control };
                    assert_eq!(*control_of(&mut machine.core, ring3), waiting, "{branch:x?} {control:x}");
                    let cleared = target == 0 && control & ENDBR_EN != 0;
                    match (target, tracked) {
                        (0, _) | (1 | 2, false) => machine.retire(1),
                        (1 | 2 | 4, true) => assert_eq!(machine.exception(), ENDBRANCH, "{branch:x?} {bytes:x?}"),
                        (4, false) => assert_eq!(machine.exception(), UD),
                        _ => assert_eq!(machine.exception(), (Vector::Breakpoint, None)),
                    }
                    // An event at the same level leaves the tracker waiting for the handler's ENDBRANCH.
                    let event = target >= 3 || (tracked && target != 0);
                    let expected = match (event, ring3) {
                        (true, false) if control & ENDBR_EN != 0 => (control | TRACKER) & !SUPPRESS,
                        _ if cleared => control & !SUPPRESS,
                        _ => waiting,
                    };
                    assert_eq!(*control_of(&mut machine.core, ring3), expected, "{branch:x?} {bytes:x?} {control:x}");
                    cases += 1;
                }
            }
        }
    }
    println!("indirect-branch cases: {cases}");
    assert_eq!(cases, 7 * 5 * 8 * 2);
}

const fn control_of(core: &mut Core, ring3: bool) -> &mut u64 {
    if ring3 { &mut core.msrs.u_cet } else { &mut core.msrs.s_cet }
}

/// A fetch that faults comes before a missing ENDBRANCH (SDM 1 figure 17-4), far transfers end suppression (17.3.3), and
/// the legacy code-page bitmap has a name.
#[test]
fn tracking_beside_tables() {
    let mut machine = user();
    machine.core.msrs.u_cet = ENDBR_EN | TRACKER;
    machine.core.rip = DATA + 0x3000;
    machine.set_page(3, 0);
    assert_eq!(machine.exception(), (Vector::PageFault, Some(0x14)));

    let mut machine = user();
    machine.core.msrs.u_cet = ENDBR_EN | SUPPRESS;
    machine.ground.mem.write_u64(Hpa(OTHER), CODE + 0x1000);
    machine.ground.mem.write(Hpa(OTHER + 8), USER_CODE64.into(), 2);
    machine.set(Gpr::Rax, OTHER);
    raw(&mut machine, &[0x48, 0xff, 0x28]);
    machine.retire(1);
    assert_eq!(machine.core.msrs.u_cet, ENDBR_EN | TRACKER);
    machine.core.msrs.u_cet |= LEG_IW_EN;
    let missing = machine.step().expect_err("not modelled").to_string();
    assert!(missing.contains("legacy code-page bitmap"), "{missing}");
}

/// What features bring: CR4.CET, MSRs and CPUID (SDM 3A 2.5; SDM 4 table 2-2; SDM 2 CPUID).
#[test]
fn registers_of_features() {
    let rows: [(&str, Features, u64, u64, bool); 15] = [
        ("U_CET of shadow stacks", Features::CET_SS, 0x6a0, 3, true),
        ("U_CET without tracking", Features::CET_SS, 0x6a0, ENDBR_EN, false),
        ("S_CET of tracking", Features::CET_IBT, 0x6a2, 0x7fff_ffff_f43c, true),
        ("S_CET without shadow stacks", Features::CET_IBT, 0x6a2, 1, false),
        ("reserved bits", Features::CET_IBT, 0x6a2, 1 << 6, false),
        ("a suppressed tracker that waits", Features::CET_IBT, 0x6a2, SUPPRESS | TRACKER, false),
        ("a bitmap that is not canonical", Features::CET_IBT, 0x6a0, 1 << 47, false),
        ("neither", Features::empty(), 0x6a0, 0, false),
        ("PL0_SSP", Features::CET_SS, 0x6a4, 0x1004, true),
        ("PL3_SSP, two off", Features::CET_SS, 0x6a7, 0x1002, false),
        ("PL1_SSP, not canonical", Features::CET_SS, 0x6a5, 1 << 47, false),
        ("PL2_SSP without shadow stacks", Features::CET_IBT, 0x6a6, 0, false),
        ("the interrupt SSP table", Features::CET_SS, 0x6a8, 0x1001, true),
        ("the table, not canonical", Features::CET_SS, 0x6a8, 1 << 47, false),
        ("the table without shadow stacks", Features::CET_IBT, 0x6a8, 0, false),
    ];
    for (name, features, index, value, good) in rows {
        let mut machine = Machine::long64();
        machine.core.features = features;
        for (register, value) in [(Gpr::Rcx, index), (Gpr::Rax, value & 0xffff_ffff), (Gpr::Rdx, value >> 32)] {
            machine.set(register, value);
        }
        machine.code64(|a| a.wrmsr());
        if good { machine.retire(1) } else { assert_eq!(machine.exception(), GP0, "{name}") }
    }
    for (features, protected, good) in [
        (Features::CET_SS, true, true),
        (Features::CET_IBT, true, true),
        (Features::CET_SS, false, false),
        (Features::all().difference(Features::CET_SS.union(Features::CET_IBT)), true, false),
    ] {
        let mut machine = Machine::long64();
        machine.core.features = features;
        machine.core.cr0.set(Cr0::WP, protected);
        machine.set(Gpr::Rax, (Cr4::PAE | Cr4::CET).bits());
        machine.code64(|a| a.mov(cr4, rax));
        if good { machine.retire(1) } else { assert_eq!(machine.exception(), GP0, "{features:?} {protected}") }
    }
    let mut core = Core::flat32(40);
    core.features = Features::CET_SS | Features::CET_IBT;
    let leaf = cpu::exec::cpuid::leaf(&core, None, 7, 0);
    assert_eq!((leaf[2] & 1 << 7, leaf[3] & 1 << 20), (1 << 7, 1 << 20));
}
