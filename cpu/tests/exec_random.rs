//! Any bytes at any bitness end in an outcome or in something named as not modelled: never in a panic, never in an
//! internal error, and twice the same way.

mod harness;

use cpu::{Gpr, StopOn};
use harness::Machine;
use proptest::prelude::*;
use sim_core::arch::segment::Rights;
use sim_core::hash::digest;
use sim_core::{Hpa, SimError};

/// Runs bytes for a while; the digest tells one run from another.
fn run(mut machine: Machine, bytes: &[u8], registers: &[u64]) -> Result<u64, TestCaseError> {
    machine.ground.mem.write_bytes(Hpa(harness::CODE), bytes);
    machine.core.gprs.copy_from_slice(registers);
    let result = cpu::run(&mut machine.core, &mut machine.virt, &mut machine.ground, StopOn::Bus, 40);
    let fine = matches!(result, Ok(_) | Err(SimError::Unmodelled { .. } | SimError::Runaway { .. }));
    prop_assert!(fine, "{result:?}");
    Ok(digest(&(&machine.core, &machine.ground.mem, machine.ground.clock.now())))
}

fn modes() -> [fn() -> Machine; 5] {
    [
        Machine::long64,
        || {
            let mut machine = Machine::long64();
            machine.drop_to_user();
            machine
        },
        || {
            let mut machine = Machine::long64();
            machine.core.segments.cs.rights = Rights::CODE32;
            machine
        },
        Machine::flat32,
        || {
            let mut machine = Machine::flat32();
            machine.core.segments.cs.rights = Rights(0x809b);
            machine
        },
    ]
}

/// A register that is small, near memory that exists, or anything.
fn register() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..64, 0x20_0000_u64..0x40_0000, any::<u64>(), Just(1 << 63)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 1..48), registers in prop::collection::vec(register(), 16)) {
        for mode in modes() {
            let first = run(mode(), &bytes, &registers)?;
            prop_assert_eq!(first, run(mode(), &bytes, &registers)?);
        }
    }

    /// The same with a likely prefix and a two-byte opcode, where the system instructions are.
    #[test]
    fn random_system_instructions(opcode in any::<u8>(), tail in prop::collection::vec(any::<u8>(), 8), registers in prop::collection::vec(register(), 16)) {
        for prefix in [&[][..], &[0x66], &[0xf3], &[0x48], &[0xf0]] {
            let bytes = [prefix, &[0x0f, opcode], &tail[..]].concat();
            for mode in modes() {
                run(mode(), &bytes, &registers)?;
            }
        }
    }
}

/// Every one-byte opcode with every ModRM byte, in every mode.
#[test]
fn every_opcode_and_modrm() {
    let registers = [0x20_0100; 16];
    for opcode in 0..=255 {
        for modrm in 0..=255 {
            for mode in modes() {
                let mut machine = mode();
                machine.core.gprs = registers;
                machine.set(Gpr::Rcx, 3);
                machine.ground.mem.write_bytes(Hpa(harness::CODE), &[opcode, modrm, 0x24, 0, 0, 0x20, 0, 0, 0, 0]);
                let result = machine.step();
                let fine = matches!(result, Ok(_) | Err(SimError::Unmodelled { .. }));
                assert!(fine, "{opcode:#x} {modrm:#x}: {result:?}");
            }
        }
    }
}
