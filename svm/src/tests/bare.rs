//! Real instructions through the CPU: a 64-bit host runs VMRUN, a 32-bit guest runs into its intercepts, the host goes
//! on behind VMRUN. With and without nested paging.

use super::{field, report, set};
use crate::exit::ExitCode;
use crate::intercept::Intercepts;
use crate::testing::{self, VMCB, machine, unit};
use crate::unit::Svm;
use crate::vmcb::{Field, SegmentField, write_segment};
use cpu::virt::Movement;
use cpu::{Core, Gpr, Outcome, step};
use sim_core::addr::Hpa;
use sim_core::arch::control::{Cr0, Efer};
use sim_core::arch::segment::{Rights, Segment};
use sim_core::{Ground, SimError};

/// An identity map of the first 2 MiB, for the host and as nested tables: PML4, PDPT, PD.
const TABLES: [u64; 3] = [0x2_0000, 0x2_1000, 0x2_2000];
const HOST_CODE: u64 = 0x2000;
const GUEST_CODE: u64 = 0x4000;
/// VMRUN; OUT 80h, AL.
const HOST: &[u8] = &[0x0f, 0x01, 0xd8, 0xe6, 0x80];

/// The machine with this guest code; the guest is flat 32-bit without paging of its own.
fn build(guest: &[u8], nested: bool, intercepts: Intercepts) -> (Core, Ground, Svm) {
    let (mut core, mut ground) = machine();
    ground.mem.write_u64(Hpa(TABLES[0]), TABLES[1] | 7);
    ground.mem.write_u64(Hpa(TABLES[1]), TABLES[2] | 7);
    // Present, writable, user, a 2-MByte page.
    ground.mem.write_u64(Hpa(TABLES[2]), 0x87);
    core.cr3 = TABLES[0];
    core.rip = HOST_CODE;
    ground.mem.write_bytes(Hpa(HOST_CODE), HOST);
    ground.mem.write_bytes(Hpa(GUEST_CODE), guest);
    set(&mut ground, Field::Efer, Efer::SVME.bits());
    set(&mut ground, Field::Cr0, (Cr0::PE | Cr0::ET).bits());
    set(&mut ground, Field::Rip, GUEST_CODE);
    write_segment(&mut ground.mem, VMCB, SegmentField::Cs, &Segment::flat(0x08, Rights::CODE32));
    if nested {
        testing::enable_nested_paging(&mut ground);
        set(&mut ground, Field::NestedCr3, TABLES[0]);
    }
    (intercepts | Intercepts::VMRUN).write(&mut ground.mem, VMCB);
    (core, ground, unit())
}

/// Steps until control has come back to the host's OUT; the outcomes on the way.
fn run(core: &mut Core, svm: &mut Svm, ground: &mut Ground) -> Result<Vec<Outcome>, SimError> {
    let mut outcomes = Vec::new();
    for _ in 0..16 {
        let outcome = step(core, svm, ground)?;
        outcomes.push(outcome);
        if matches!(outcome, Outcome::Out { .. }) {
            break;
        }
    }
    Ok(outcomes)
}

/// A guest program and the exit that it runs into.
struct Program {
    code: &'static [u8],
    intercepts: Intercepts,
    expected: (ExitCode, u64, u64),
    /// Offsets of the exiting instruction and of nRIP, 0 for none.
    rip: u64,
    next: u64,
}

const PROGRAMS: &[Program] = &[
    // NOP; CPUID
    Program {
        code: &[0x90, 0x0f, 0xa2],
        intercepts: Intercepts::CPUID,
        expected: (ExitCode::Cpuid, 0, 0),
        rip: 1,
        next: 3,
    },
    // NOP; HLT
    Program { code: &[0x90, 0xf4], intercepts: Intercepts::HLT, expected: (ExitCode::Hlt, 0, 0), rip: 1, next: 2 },
    // NOP; VMMCALL
    Program {
        code: &[0x90, 0x0f, 0x01, 0xd9],
        intercepts: Intercepts::VMMCALL,
        expected: (ExitCode::Vmmcall, 0, 0),
        rip: 1,
        next: 4,
    },
    // NOP; VMRUN
    Program {
        code: &[0x90, 0x0f, 0x01, 0xd8],
        intercepts: Intercepts::empty(),
        expected: (ExitCode::Vmrun, 0, 0),
        rip: 1,
        next: 4,
    },
    // NOP; INVLPG [EDX], EDX being 2222h
    Program {
        code: &[0x90, 0x0f, 0x01, 0x3a],
        intercepts: Intercepts::INVLPG,
        expected: (ExitCode::Invlpg, 0x2222, 0),
        rip: 1,
        next: 4,
    },
    // NOP; UD2 without an IDT that is present: #GP, #DF, shutdown
    Program {
        code: &[0x90, 0x0f, 0x0b],
        intercepts: Intercepts::SHUTDOWN,
        expected: (ExitCode::Shutdown, 0, 0),
        rip: 1,
        next: 0,
    },
];

#[test]
fn programs_exit_and_the_host_goes_on() {
    for nested in [false, true] {
        for program in PROGRAMS {
            let (mut core, mut ground, mut svm) = build(program.code, nested, program.intercepts);
            let outcomes = run(&mut core, &mut svm, &mut ground);
            let expected = vec![
                Outcome::Moved(Movement::Entered),
                Outcome::Retired,
                Outcome::Moved(Movement::Exited),
                Outcome::Out { port: 0x80, bytes: 1, value: VMCB.0 as u32 & 0xff },
            ];
            let (code, info1, info2) = program.expected;
            assert_eq!(outcomes, Ok(expected), "{code}");
            let next = if program.next == 0 { 0 } else { GUEST_CODE + program.next };
            assert_eq!(report(&ground), (Some(code), info1, info2, next));
            assert_eq!(field(&ground, Field::Rip), GUEST_CODE + program.rip);
            assert_eq!((core.rip, core.gpr(Gpr::Rax)), (HOST_CODE + HOST.len() as u64, VMCB.0));
        }
    }
    println!("{} guest programs, with and without nested paging", PROGRAMS.len());
}

/// APM2 15.25.6: an access that the nested tables don't map; with the entry made present, it goes through at the next
/// VMRUN, for nothing of the fault was cached.
#[test]
fn nested_page_fault_and_retry() {
    // MOV AL, [200000h]; VMMCALL
    let code = [0xa0, 0x00, 0x00, 0x20, 0x00, 0x0f, 0x01, 0xd9];
    let (mut core, mut ground, mut svm) = build(&code, true, Intercepts::VMMCALL);
    assert!(run(&mut core, &mut svm, &mut ground).is_ok());
    assert_eq!(report(&ground), (Some(ExitCode::NestedPageFault), 1 << 32 | 4, 0x20_0000, 0));
    assert_eq!(field(&ground, Field::Rip), GUEST_CODE);

    ground.mem.write_u64(Hpa(TABLES[2] + 8), 0x87);
    ground.mem.write(Hpa(0), 0x5a, 1);
    core.rip = HOST_CODE;
    assert!(run(&mut core, &mut svm, &mut ground).is_ok());
    assert_eq!(report(&ground).0, Some(ExitCode::Vmmcall));
    assert_eq!(field(&ground, Field::Rax) & 0xff, 0x5a);
}
