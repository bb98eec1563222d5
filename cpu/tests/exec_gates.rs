//! Call gates, 16-bit interrupt gates and 16-bit TSS stacks (SDM 3A 5.8.2 to 5.8.5, 6.12.1; SDM 2 CALL, JMP, INT).

mod harness;

use cpu::{Gpr, Outcome};
use harness::{CODE, CODE32, CODE64, DATA, DATA0, GDT, HANDLERS, IDT, Machine, RING0_STACK, STACK, TSS};
use harness::{USER_CODE32, USER_CODE64, USER_DATA, flat_descriptor};
use sim_core::Hpa;
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

type Raised = (Vector, Option<u32>);

const GATE: u16 = 0x60;
const TARGET: u64 = 0x9_0000;
/// A code segment that rows describe.
const TARGET_CODE: u16 = 0x70;
const CALL: u8 = 0x9a;
const JMP: u8 = 0xea;

const fn gp(selector: u16) -> Raised {
    (Vector::GeneralProtection, Some(selector as u32))
}

const fn np(selector: u16) -> Raised {
    (Vector::SegmentNotPresent, Some(selector as u32))
}

const fn ts(selector: u16) -> Raised {
    (Vector::InvalidTss, Some(selector as u32))
}

const fn ss(selector: u16) -> Raised {
    (Vector::StackFault, Some(selector as u32))
}

/// A gate: type and DPL and P in `rights`, parameters in `count`.
const fn gate(selector: u16, offset: u64, rights: u64, count: u64) -> u64 {
    (offset & 0xffff) | ((selector as u64) << 16) | (count << 32) | (rights << 40) | ((offset >> 16) << 48)
}

fn set_descriptor(machine: &mut Machine, selector: u16, raw: u64) {
    machine.ground.mem.write_u64(Hpa(GDT + u64::from(selector & 0xfff8)), raw);
}

/// A far CALL or JMP with an immediate pointer, in 32-bit code.
fn far(machine: &mut Machine, opcode: u8, selector: u16) {
    let [low, high] = selector.to_le_bytes();
    machine.ground.mem.write_bytes(Hpa(CODE), &[opcode, 0xef, 0xbe, 0xad, 0xde, low, high]);
}

fn user32() -> Machine {
    let mut machine = Machine::flat32();
    machine.core.gdtr.limit = 0xff;
    machine.drop_to_user32();
    for index in 0..4 {
        machine.ground.mem.write_u32(Hpa(STACK + 4 * index), (0x1111_0000 * (index as u32 + 1)) | index as u32);
    }
    machine
}

fn words(machine: &Machine, at: u64, count: u64, bytes: u64) -> Vec<u64> {
    (0..count).map(|index| machine.ground.mem.read(Hpa(at + bytes * index), bytes as usize)).collect()
}

/// SDM 3A figure 5-13: the frame of an inner call, in 32-bit and 16-bit gates.
#[test]
fn frames_of_inner_calls() {
    let user = u64::from(USER_CODE32);
    let data = u64::from(USER_DATA);
    let rows: [(&str, u64, u64, u64, &[u64]); 4] = [
        ("32-bit, no parameters", 0xec, 0, 4, &[CODE + 7, user, STACK, data]),
        ("32-bit, two parameters", 0xec, 2, 4, &[CODE + 7, user, 0x1111_0000, 0x2222_0001, STACK, data]),
        ("16-bit, no parameters", 0xe4, 0, 2, &[CODE + 7, user, STACK, data]),
        ("16-bit, three parameters", 0xe4, 3, 2, &[CODE + 7, user, 0, 0x1111, 1, STACK, data]),
    ];
    for (name, rights, count, bytes, frame) in rows {
        let mut machine = user32();
        let target = if bytes == 2 { 0x1234 } else { TARGET };
        // The upper half of a 16-bit gate's offset is reserved.
        let raw = gate(CODE32, target, rights, count) | if bytes == 2 { 0xdead << 48 } else { 0 };
        set_descriptor(&mut machine, GATE, raw);
        far(&mut machine, CALL, GATE | 3);
        machine.retire(1);
        let core = &machine.core;
        assert_eq!((core.rip, core.segments.cs.selector, core.segments.ss.selector), (target, CODE32, DATA0), "{name}");
        assert_eq!(core.cpl(), 0, "{name}");
        let top = RING0_STACK - bytes * frame.len() as u64;
        assert_eq!(core.gpr(Gpr::Rsp), top, "{name}");
        assert_eq!(words(&machine, top, frame.len() as u64, bytes), frame, "{name}");
    }
}

/// A call through a gate and the far RET that belongs to it release the parameters of both stacks (SDM 3A 5.8.6).
#[test]
fn call_and_return() {
    let mut machine = user32();
    set_descriptor(&mut machine, GATE, gate(CODE32, TARGET, 0xec, 2));
    far(&mut machine, CALL, GATE);
    machine.ground.mem.write_bytes(Hpa(TARGET), &[0xca, 8, 0]);
    machine.retire(2);
    let core = &machine.core;
    assert_eq!((core.rip, core.cpl(), core.gpr(Gpr::Rsp)), (CODE + 7, 3, STACK + 8));
    assert_eq!((core.segments.cs.selector, core.segments.ss.selector), (USER_CODE32, USER_DATA));
}

/// Without a change of level the current stack gets the return address only; JMP pushes nothing (SDM 2 CALL, JMP).
#[test]
fn same_level() {
    for (opcode, rights, bytes) in [(CALL, 0x8c, 4), (CALL, 0x84, 2), (JMP, 0x8c, 0), (JMP, 0x84, 0)] {
        let mut machine = Machine::flat32();
        machine.core.gdtr.limit = 0xff;
        set_descriptor(&mut machine, GATE, gate(CODE32, 0x1234, rights, 5));
        far(&mut machine, opcode, GATE);
        machine.retire(1);
        assert_eq!((machine.core.rip, machine.core.cpl()), (0x1234, 0));
        assert_eq!(machine.gpr(Gpr::Rsp), STACK - 2 * bytes);
        let expected: &[u64] = if bytes == 0 { &[] } else { &[CODE + 7, CODE32 as u64] };
        assert_eq!(words(&machine, STACK - 2 * bytes, expected.len() as u64, bytes.max(1)), expected);
    }
}

/// SDM 3A table 5-1 and figure 5-12, whole: CPL, RPL, the gate's DPL, the target's DPL and kind, CALL and JMP.
#[test]
fn privilege_rules() {
    let mut cases = 0;
    for case in 0..1024_u32 {
        let level = |shift: u32| (case >> shift & 3) as u8;
        let (cpl, rpl, gate_dpl, code_dpl) = (level(0), level(2), level(4), level(6));
        let conforming = case & 0x100 != 0;
        let opcode = if case & 0x200 == 0 { CALL } else { JMP };
        let mut machine = Machine::flat32();
        machine.core.gdtr.limit = 0xff;
        for inner in 0..3_u16 {
            let selector = 0x80 + 8 * inner;
            set_descriptor(&mut machine, selector, flat_descriptor(0xc093 | u64::from(inner) << 5));
            let at = TSS + 4 + 8 * u64::from(inner);
            machine.ground.mem.write_u32(Hpa(at), RING0_STACK as u32);
            machine.ground.mem.write_u32(Hpa(at + 4), u32::from(selector | inner));
        }
        let rights = |base: u32, dpl: u8| Rights(base | u32::from(dpl) << 5);
        machine.core.segments.cs = Segment::flat(0xa0 | u16::from(cpl), rights(Rights::CODE32.0, cpl));
        machine.core.segments.ss = Segment::flat(0xa8 | u16::from(cpl), rights(Rights::DATA.0, cpl));
        let kind = if conforming { 0xc09f } else { 0xc09b };
        set_descriptor(&mut machine, TARGET_CODE, flat_descriptor(kind | u64::from(code_dpl) << 5));
        set_descriptor(&mut machine, GATE, gate(TARGET_CODE | 3, TARGET, 0x8c | u64::from(gate_dpl) << 5, 0));
        far(&mut machine, opcode, GATE | u16::from(rpl));
        let direct = opcode == JMP && !conforming;
        let fits = if direct { code_dpl == cpl } else { code_dpl <= cpl };
        if cpl.max(rpl) > gate_dpl {
            assert_eq!(machine.exception(), gp(GATE), "{case:#x}");
        } else if !fits {
            assert_eq!(machine.exception(), gp(TARGET_CODE), "{case:#x}");
        } else {
            machine.retire(1);
            let level = if conforming { cpl } else { code_dpl };
            let selector = TARGET_CODE | u16::from(level);
            assert_eq!((machine.core.cpl(), machine.core.segments.cs.selector), (level, selector), "{case:#x}");
        }
        cases += 1;
    }
    println!("call-gate privilege cases: {cases}");
}

/// SDM 2 CALL: what a call through a gate to an inner level checks, row by row in its order.
#[test]
fn calls_refused() {
    type Edit = fn(&mut Machine);
    let rows: [(&str, Edit, Raised); 16] = [
        ("gate not present", |m| set_descriptor(m, GATE, gate(CODE32, TARGET, 0x6c, 0)), np(GATE)),
        ("null code", |m| set_descriptor(m, GATE, gate(3, TARGET, 0xec, 0)), gp(0)),
        ("code beyond the GDT", |m| set_descriptor(m, GATE, gate(0x100, TARGET, 0xec, 0)), gp(0x100)),
        ("data instead of code", |m| set_descriptor(m, GATE, gate(DATA0, TARGET, 0xec, 0)), gp(DATA0)),
        ("absent code", |m| set_descriptor(m, GATE, gate(0x48, TARGET, 0xec, 0)), np(0x48)),
        ("TSS too small", |m| m.core.segments.tr.limit = 8, ts(0x18)),
        ("null SS0", |m| m.ground.mem.write_u32(Hpa(TSS + 8), 0), ts(0)),
        ("SS0 with RPL 3", |m| m.ground.mem.write_u32(Hpa(TSS + 8), 0x13), ts(0x10)),
        ("SS0 beyond the GDT", |m| m.ground.mem.write_u32(Hpa(TSS + 8), 0x100), ts(0x100)),
        ("SS0 is code", |m| m.ground.mem.write_u32(Hpa(TSS + 8), 0x08), ts(0x08)),
        ("SS0 is read-only", |m| m.ground.mem.write_u32(Hpa(TSS + 8), 0x58), ts(0x58)),
        ("SS0 is a user's", |m| m.ground.mem.write_u32(Hpa(TSS + 8), 0x30), ts(0x30)),
        ("SS0 not present", |m| m.ground.mem.write_u32(Hpa(TSS + 8), 0x50), ss(0x50)),
        (
            "no room in SS0",
            |m| {
                set_descriptor(m, 0x68, 0x0040_9300_0000_5000);
                m.ground.mem.write_u32(Hpa(TSS + 8), 0x68);
            },
            ss(0x68),
        ),
        ("outer stack without the parameters", |m| m.core.segments.ss.limit = STACK as u32 + 3, ss(0)),
        (
            "target beyond the code",
            |m| {
                set_descriptor(m, TARGET_CODE, 0x0040_9b00_0000_ffff);
                set_descriptor(m, GATE, gate(TARGET_CODE, TARGET, 0xec, 0));
            },
            gp(0),
        ),
    ];
    for (name, edit, expected) in rows {
        let mut machine = user32();
        set_descriptor(&mut machine, GATE, gate(CODE32, TARGET, 0xec, 2));
        edit(&mut machine);
        far(&mut machine, CALL, GATE);
        assert_eq!(first(&mut machine), expected, "{name}");
    }
}

/// The first exception of a step, whether or not it could be delivered.
fn first(machine: &mut Machine) -> Raised {
    use cpu::virt::Trap;
    machine.step().expect("a modelled step");
    let raised = machine.virt.asked.iter().find_map(|(trap, _)| match trap {
        Trap::Exception(exception) => Some((exception.vector, exception.error)),
        _ => None,
    });
    raised.expect("an exception")
}

/// 64-bit mode calls through memory operands, compatibility mode also with immediates; every type of system descriptor
/// but the 64-bit call gate is #GP in IA-32e mode (SDM 2 CALL).
#[test]
fn system_descriptors_in_long_mode() {
    for kind in 0..16_u64 {
        for opcode in [CALL, JMP] {
            let mut machine = Machine::long64();
            machine.core.gdtr.limit = 0xff;
            machine.core.segments.cs = Segment::flat(CODE32, Rights::CODE32);
            set_descriptor(&mut machine, GATE, gate(CODE64, TARGET, 0x80 | kind, 0));
            set_descriptor(&mut machine, GATE + 8, 0);
            far(&mut machine, opcode, GATE);
            if kind == 0xc {
                machine.retire(1);
                assert_eq!((machine.core.rip, machine.core.segments.cs.selector), (TARGET, CODE64));
                let frame: &[u64] = if opcode == CALL { &[CODE + 7, CODE32 as u64] } else { &[] };
                let top = STACK - 8 * frame.len() as u64;
                assert_eq!(machine.gpr(Gpr::Rsp), top);
                assert_eq!(words(&machine, top, frame.len() as u64, 8), frame);
            } else {
                assert_eq!(machine.exception(), gp(GATE), "{kind:#x}");
            }
        }
    }
}

/// 64-bit gates: targets above 4 GBytes, RSPn with a null SS, no alignment, no parameters (SDM 3A 5.8.5.1).
#[test]
fn long_inner_call() {
    type Edit = fn(&mut Machine);
    let rows: [(&str, Edit, Option<Raised>); 9] = [
        ("fits", |_| {}, None),
        ("upper type not 0", |m| set_descriptor(m, GATE + 8, 1 << 40), Some(gp(GATE))),
        ("upper half beyond the GDT", |m| m.core.gdtr.limit = GATE + 14, Some(gp(GATE))),
        ("not present", |m| set_descriptor(m, GATE, gate(CODE64, TARGET, 0x6c, 0)), Some(np(GATE))),
        ("a system gate", |m| set_descriptor(m, GATE, gate(CODE64, TARGET, 0x8c, 0)), Some(gp(GATE))),
        ("32-bit code", |m| set_descriptor(m, GATE, gate(CODE32, TARGET, 0xec, 0)), Some(gp(CODE32))),
        ("not canonical", |m| set_descriptor(m, GATE + 8, 0x8000), Some(gp(0))),
        ("TSS too small", |m| m.core.segments.tr.limit = 0xa, Some(ts(0x18))),
        ("stack not canonical", |m| m.ground.mem.write_u64(Hpa(TSS + 4), 1 << 63), Some(ss(0))),
    ];
    for (name, edit, expected) in rows {
        let mut machine = Machine::long64();
        machine.core.gdtr.limit = 0xff;
        machine.drop_to_user();
        machine.ground.mem.write_u64(Hpa(TSS + 4), RING0_STACK + 4);
        set_descriptor(&mut machine, GATE, gate(CODE64, TARGET, 0xec, 31));
        set_descriptor(&mut machine, GATE + 8, 0);
        machine.set(Gpr::Rbx, DATA);
        machine.ground.mem.write(Hpa(DATA + 4), u64::from(GATE | 3), 2);
        // CALL far [rbx].
        machine.ground.mem.write_bytes(Hpa(CODE), &[0xff, 0x1b]);
        edit(&mut machine);
        if let Some(expected) = expected {
            assert_eq!(first(&mut machine), expected, "{name}");
            continue;
        }
        machine.retire(1);
        let core = &machine.core;
        assert_eq!(
            (core.rip, core.cpl(), core.segments.cs.selector, core.segments.ss.selector),
            (TARGET, 0, CODE64, 0)
        );
        let top = RING0_STACK + 4 - 32;
        assert_eq!(core.gpr(Gpr::Rsp), top);
        let frame = [CODE + 2, u64::from(USER_CODE64), STACK, u64::from(USER_DATA)];
        assert_eq!(words(&machine, top, 4, 8), frame);
    }
}

/// 16-bit interrupt and trap gates push words; only interrupt gates clear IF (SDM 3A 6.12.1, 6.12.1.2).
#[test]
fn sixteen_bit_interrupt_gates() {
    let frame32 = |machine: &Machine| (machine.core.rip, machine.gpr(Gpr::Rsp));
    for (kind, bytes, masks) in [(0x6, 2, true), (0x7, 2, false), (0xe, 4, true), (0xf, 4, false)] {
        for tss_bytes in [2, 4] {
            let mut machine = user32();
            machine.core.rflags |= Rflags::IF;
            if tss_bytes == 2 {
                machine.core.segments.tr.rights = Rights(0x83);
                machine.core.segments.tr.limit = 0x2b;
                machine.ground.mem.write(Hpa(TSS + 2), RING0_STACK - 0x100, 2);
                machine.ground.mem.write(Hpa(TSS + 4), u64::from(DATA0), 2);
            }
            let raw = gate(CODE32, HANDLERS + 0x30, 0xe0 | kind, 0) | if bytes == 2 { 0xdead << 48 } else { 0 };
            machine.ground.mem.write_u64(Hpa(IDT + 8 * 0x10), raw);
            machine.ground.mem.write_bytes(Hpa(CODE), &[0xcd, 0x10]);
            assert_eq!(machine.step(), Ok(Outcome::Delivered));
            let esp0 = if tss_bytes == 2 { RING0_STACK - 0x100 } else { RING0_STACK };
            let top = esp0 - 5 * bytes;
            assert_eq!(frame32(&machine), (HANDLERS + 0x30, top), "{kind:#x}");
            let frame = [CODE + 2, u64::from(USER_CODE32), 0x202, STACK, u64::from(USER_DATA)];
            assert_eq!(words(&machine, top, 5, bytes), frame, "{kind:#x}");
            assert_eq!(machine.core.rflags.contains(Rflags::IF), !masks, "{kind:#x}");
        }
    }
}

/// The least limits of 16-bit and 32-bit TSSs that still hold the stack of ring 0 (SDM 2 INT, CALL).
#[test]
fn least_tss_limits() {
    for (rights, least) in [(0x83, 5), (0x8b, 9)] {
        for limit in 0..12 {
            let mut machine = user32();
            machine.core.segments.tr.rights = Rights(rights);
            machine.core.segments.tr.limit = limit;
            machine.ground.mem.write(Hpa(TSS + 2), RING0_STACK, 2);
            if rights == 0x83 {
                machine.ground.mem.write(Hpa(TSS + 4), u64::from(DATA0), 2);
            } else {
                machine.ground.mem.write_u32(Hpa(TSS + 4), RING0_STACK as u32);
            }
            set_descriptor(&mut machine, GATE, gate(CODE32, TARGET, 0xec, 0));
            far(&mut machine, CALL, GATE);
            if limit < least {
                assert_eq!(first(&mut machine), ts(0x18), "{limit}");
            } else {
                machine.retire(1);
            }
        }
    }
}

/// Gate types that the IDT knows, in each mode (SDM 3A table 3-2, 6.11, 6.14.1).
#[test]
fn types_in_the_idt() {
    for long in [false, true] {
        for kind in 0..32_u64 {
            let known: &[u64] = if long { &[0xe, 0xf] } else { &[0x5, 0x6, 0x7, 0xe, 0xf] };
            let mut machine = if long { Machine::long64() } else { Machine::flat32() };
            let (code, bytes) = if long { (CODE64, 16) } else { (CODE32, 8) };
            machine.ground.mem.write_u64(Hpa(IDT + bytes * 0x10), gate(code, 0x1234, 0x80 | kind, 0));
            machine.ground.mem.write_bytes(Hpa(CODE), &[0xcd, 0x10]);
            machine.step().expect("a modelled step");
            let raised = machine.last_exception();
            // A task gate goes on to its selector, here code.
            let expected = if known.contains(&kind) && kind != 5 {
                None
            } else if known.contains(&kind) {
                Some(gp(CODE32))
            } else {
                Some(gp(0x82))
            };
            assert_eq!(raised.filter(|(vector, _)| *vector == Vector::GeneralProtection), expected, "{long} {kind:#x}");
        }
    }
}
