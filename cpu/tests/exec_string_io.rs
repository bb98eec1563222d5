//! INS and OUTS: what an extension is told, element by element (SDM 3C 25.1.3, table 27-5; SDM 2 INS, OUTS).

mod harness;

use cpu::virt::{StringIo, Trap};
use cpu::{Gpr, Outcome};
use harness::{DATA, Machine};
use sim_core::arch::exception::Vector;
use sim_core::{Gva, Hpa};

fn machine(code: &[u8]) -> Machine {
    let mut machine = Machine::long64();
    machine.ground.mem.write_bytes(Hpa(harness::CODE), code);
    machine.ground.mem.write_u64(Hpa(DATA), 0x8877_6655_4433_2211);
    for (register, value) in [(Gpr::Rsi, DATA), (Gpr::Rdi, DATA + 0x100), (Gpr::Rdx, 0x1_03f8), (Gpr::Rcx, 3)] {
        machine.set(register, value);
    }
    machine
}

/// A string access as the extension is asked.
fn asked(machine: &Machine) -> Vec<Trap> {
    machine.virt.asked.iter().map(|(trap, _)| *trap).filter(|trap| matches!(trap, Trap::Io { .. })).collect()
}

#[test]
fn what_an_extension_is_told() {
    let string = |address, repeated, address_bytes, segment| {
        Some(StringIo { address: Gva(address), repeated, address_bytes, segment })
    };
    let rows: [(&[u8], bool, u8, Option<StringIo>); 5] = [
        (&[0x6c], true, 1, string(DATA + 0x100, false, 8, 0)),
        (&[0xf3, 0x66, 0x6d], true, 2, string(DATA + 0x100, true, 8, 0)),
        (&[0x6f], false, 4, string(DATA, false, 8, 3)),
        (&[0x67, 0xf3, 0x6e], false, 1, string(DATA, true, 4, 3)),
        (&[0x65, 0x6e], false, 1, string(DATA + 0x40, false, 8, 5)),
    ];
    for (code, input, bytes, string) in rows {
        let mut machine = machine(code);
        machine.core.segments.gs.base = 0x40;
        machine.step().unwrap();
        assert_eq!(asked(&machine), [Trap::Io { port: 0x3f8, bytes, input, string }], "{code:02x?}");
    }
}

/// An exit leaves everything as it was, also where the operand would fault.
#[test]
fn the_exit_comes_first() {
    let mut machine = machine(&[0xf3, 0x6c]);
    machine.virt.intercepts = |trap| matches!(trap, Trap::Io { .. });
    machine.set(Gpr::Rdi, 0x4000_0000);
    let before = machine.core.gprs;
    assert!(matches!(machine.step(), Ok(Outcome::Moved(_))));
    assert_eq!((machine.core.gprs, machine.core.rip), (before, harness::CODE));
    machine.virt.intercepts = |_| false;
    assert_eq!(machine.exception().0, Vector::PageFault);
    assert_eq!(machine.core.cr2, Gva(0x4000_0000));
}

/// REP OUTS reaches the bus once an element; a fault stands after the last whole element.
#[test]
fn elements_reach_the_bus_one_by_one() {
    let mut machine = machine(&[0xf3, 0x6e, 0x90]);
    for (value, left, rip) in [(0x11, 2, 0), (0x22, 1, 0), (0x33, 0, 2)] {
        assert_eq!(machine.step(), Ok(Outcome::Out { port: 0x3f8, bytes: 1, value }));
        assert_eq!((machine.gpr(Gpr::Rcx), machine.core.rip), (left, harness::CODE + rip));
    }
    assert_eq!(machine.gpr(Gpr::Rsi), DATA + 3);
}

/// An unclaimed bus cycle reads ones.
#[test]
fn input_of_nothing_reads_ones() {
    let mut machine = machine(&[0xf3, 0x66, 0x6d]);
    machine.retire(3);
    assert_eq!(machine.quad(DATA + 0x100), 0x0000_ffff_ffff_ffff);
    assert_eq!((machine.gpr(Gpr::Rdi), machine.gpr(Gpr::Rcx)), (DATA + 0x106, 0));
    assert_eq!(machine.core.rip, harness::CODE + 3);
}

/// No element: no access to the bus, but the port must be allowed all the same.
#[test]
fn no_element() {
    for (user, expected) in [(false, Outcome::Retired), (true, Outcome::Delivered)] {
        let mut machine = machine(&[0xf3, 0x6e]);
        machine.set(Gpr::Rcx, 0);
        if user {
            machine.drop_to_user();
        }
        assert_eq!(machine.step(), Ok(expected));
        assert!(asked(&machine).is_empty());
    }
}

/// The repetition that the string form shares with the others assembles as it should.
#[test]
fn the_encodings_are_those_meant() {
    let mut machine = machine(&[]);
    assert_eq!(machine.code64(|a| a.rep().outsb()), 2);
    assert_eq!(machine.quad(harness::CODE) & 0xffff, 0x6ef3);
}
