//! Task switches (SDM 3A chapter 7; SDM 2 CALL, JMP, INT, IRET; SDM 3C 25.4.2): every source, between 16-bit and 32-bit
//! task-state segments, and every check.

mod harness;

use cpu::virt::{TaskSwitchSource, Trap};
use cpu::{Gpr, Outcome};
use harness::{ABSENT_CODE, ABSENT_DATA, CODE, CODE32, DATA0, GDT, IDT, Machine, READ_ONLY, STACK, TSS};
use harness::{USER_CODE32, USER_DATA};
use sim_core::Hpa;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

type Raised = (Vector, Option<u32>);
type Edit = fn(&mut Machine);

const OLD: u16 = 0x18;
const NEW: u16 = 0x60;
const TASK_GATE: u16 = 0x68;
const LDT: u16 = 0x70;
const NEW_TSS: u64 = 0x1_8000;
const NEW_CODE: u64 = 0x9123;
const NEW_STACK: u64 = 0xb000;

const fn raised(vector: Vector, error: u16) -> Raised {
    (vector, Some(error as u32))
}

const fn gp(error: u16) -> Raised {
    raised(Vector::GeneralProtection, error)
}

const fn np(error: u16) -> Raised {
    raised(Vector::SegmentNotPresent, error)
}

const fn ts(error: u16) -> Raised {
    raised(Vector::InvalidTss, error)
}

/// What starts a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    CallTss,
    JmpTss,
    CallGate,
    JmpGate,
    Int,
    /// #UD through a task gate.
    Exception,
    /// #GP(selector) through a task gate.
    WithError,
    Iret,
}

const STARTS: [Start; 8] = [
    Start::CallTss,
    Start::JmpTss,
    Start::CallGate,
    Start::JmpGate,
    Start::Int,
    Start::Exception,
    Start::WithError,
    Start::Iret,
];

impl Start {
    const fn source(self) -> TaskSwitchSource {
        match self {
            Self::CallTss | Self::CallGate => TaskSwitchSource::Call,
            Self::JmpTss | Self::JmpGate => TaskSwitchSource::Jmp,
            Self::Int | Self::Exception | Self::WithError => TaskSwitchSource::TaskGate,
            Self::Iret => TaskSwitchSource::Iret,
        }
    }

    const fn nests(self) -> bool {
        !matches!(self, Self::JmpTss | Self::JmpGate | Self::Iret)
    }

    const fn ext(self) -> u16 {
        matches!(self, Self::Exception | Self::WithError) as u16
    }

    /// Where the old task goes on.
    const fn next(self) -> u64 {
        match self {
            Self::Exception | Self::WithError => CODE,
            Self::Int => CODE + 2,
            Self::Iret => CODE + 1,
            _ => CODE + 7,
        }
    }
}

/// The size of a task-state segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Bits16,
    Bits32,
}

impl Size {
    const fn kind(self) -> u64 {
        match self {
            Self::Bits16 => 0x1,
            Self::Bits32 => 0x9,
        }
    }

    const fn limit(self) -> u64 {
        match self {
            Self::Bits16 => 0x2b,
            Self::Bits32 => 0x67,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
        }
    }

    /// EIP, EFLAGS, EAX to EDI (SDM 3A figures 7-2, 7-10).
    const fn registers(self) -> [u64; 10] {
        match self {
            Self::Bits16 => [0x0e, 0x10, 0x12, 0x14, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20],
            Self::Bits32 => [0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x44],
        }
    }

    /// ES, CS, SS, DS, FS, GS, LDT; the last two segments are the 32-bit format's own.
    const fn selectors(self) -> [Option<u64>; 7] {
        match self {
            Self::Bits16 => [Some(0x22), Some(0x24), Some(0x26), Some(0x28), None, None, Some(0x2a)],
            Self::Bits32 => [Some(0x48), Some(0x4c), Some(0x50), Some(0x54), Some(0x58), Some(0x5c), Some(0x60)],
        }
    }
}

fn set_descriptor(machine: &mut Machine, selector: u16, raw: u64) {
    machine.ground.mem.write_u64(Hpa(GDT + u64::from(selector & 0xfff8)), raw);
}

const fn tss_descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    (limit & 0xffff) | ((base & 0xff_ffff) << 16) | (rights << 40) | ((base >> 24) << 56)
}

/// The new task's general registers, EAX first.
const VALUES: [u64; 8] = [0x1a01, 0x1a02, 0x1a03, 0x1a04, NEW_STACK, 0x1a06, 0x1a07, 0x1a08];
/// The new task's selectors: ES, CS, SS, DS, FS, GS, LDT.
const SELECTORS: [u16; 7] = [DATA0, CODE32, DATA0, USER_DATA, 0, READ_ONLY, LDT];

fn put(machine: &mut Machine, offset: u64, value: u64, bytes: usize) {
    machine.ground.mem.write(Hpa(NEW_TSS + offset), value, bytes);
}

/// Two tasks of ring 0, the first of which is about to start the switch.
fn machine(start: Start, old: Size, new: Size) -> Machine {
    let mut machine = Machine::flat32();
    machine.core.gdtr.limit = 0xff;
    set_descriptor(&mut machine, OLD, tss_descriptor(TSS, old.limit(), 0x82 | old.kind()));
    machine.core.segments.tr.limit = old.limit() as u32;
    machine.core.segments.tr.rights = Rights(0x82 | old.kind() as u32);
    let busy = if start == Start::Iret { 2 } else { 0 };
    set_descriptor(&mut machine, NEW, tss_descriptor(NEW_TSS, new.limit(), 0x80 | new.kind() | busy));
    set_descriptor(&mut machine, TASK_GATE, 0x8500_0000_0000 | u64::from(NEW) << 16);
    set_descriptor(&mut machine, LDT, tss_descriptor(0x2800, 0x17, 0x82));
    for index in 0..8_u8 {
        machine.core.gprs[usize::from(index)] = 0xc0de_0000 | u64::from(index);
    }
    machine.set(Gpr::Rsp, STACK);
    machine.core.segments.gs = Segment { selector: 3, rights: Rights::UNUSABLE, ..Segment::default() };
    for (offset, value) in new.registers().into_iter().zip([NEW_CODE, 0x0].into_iter().chain(VALUES)) {
        put(&mut machine, offset, value, new.bytes());
    }
    for (offset, selector) in new.selectors().into_iter().zip(SELECTORS) {
        if let Some(offset) = offset {
            put(&mut machine, offset, u64::from(selector), 2);
        }
    }
    code(&mut machine, start);
    machine
}

/// The instruction that starts the switch, and the gates on its way.
fn code(machine: &mut Machine, start: Start) {
    let gate = 0xe500_0000_0000 | u64::from(NEW) << 16;
    let far = |opcode: u8, selector: u16| {
        let [low, high] = selector.to_le_bytes();
        vec![opcode, 0xef, 0xbe, 0xad, 0xde, low, high]
    };
    let bytes = match start {
        Start::CallTss => far(0x9a, NEW),
        Start::JmpTss => far(0xea, NEW),
        Start::CallGate => far(0x9a, TASK_GATE),
        Start::JmpGate => far(0xea, TASK_GATE),
        Start::Int => vec![0xcd, 0x10],
        Start::Exception => vec![0x0f, 0x0b],
        // MOV DS, AX with a selector beyond the GDT.
        Start::WithError => vec![0x8e, 0xd8],
        Start::Iret => vec![0xcf],
    };
    machine.ground.mem.write_bytes(Hpa(CODE), &bytes);
    let vector = match start {
        Start::Int => 0x10,
        Start::Exception => 6,
        Start::WithError => 13,
        _ => return iret(machine, start),
    };
    machine.set(Gpr::Rax, 0xc0de_0abc);
    machine.ground.mem.write_u64(Hpa(IDT + 8 * vector), gate);
}

fn iret(machine: &mut Machine, start: Start) {
    if start == Start::Iret {
        machine.core.rflags |= Rflags::NT;
        machine.ground.mem.write(Hpa(TSS), u64::from(NEW), 2);
    }
}

fn begin(machine: &mut Machine, start: Start) {
    let delivered = matches!(start, Start::Int | Start::Exception | Start::WithError);
    let expected = if delivered { Outcome::Delivered } else { Outcome::Retired };
    assert_eq!(machine.step(), Ok(expected), "{start:?}");
}

fn rights(machine: &Machine, selector: u16) -> u64 {
    machine.quad(GDT + u64::from(selector)) >> 40 & 0xff
}

/// SDM 3A 7.3 and table 7-2: what is saved, loaded, linked and marked busy, for each source and pair of formats.
#[test]
fn every_source_between_every_pair_of_formats() {
    let mut cases = 0;
    for start in STARTS {
        for (old, new) in [(Size::Bits16, Size::Bits16), (Size::Bits16, Size::Bits32)]
            .into_iter()
            .chain([(Size::Bits32, Size::Bits16), (Size::Bits32, Size::Bits32)])
        {
            let mut machine = machine(start, old, new);
            let before = machine.core.clone();
            begin(&mut machine, start);
            saved(&machine, &before, start, old);
            loaded(&machine, start, new);
            let name = format!("{start:?} {old:?} {new:?}");
            let old_kind = old.kind() | if start.nests() { 2 } else { 0 };
            assert_eq!((rights(&machine, OLD), rights(&machine, NEW)), (0x80 | old_kind, 0x82 | new.kind()), "{name}");
            let link = machine.ground.mem.read(Hpa(NEW_TSS), 2);
            assert_eq!(link, if start.nests() { u64::from(OLD) } else { 0 }, "{name}");
            let asked = machine.virt.asked.iter().filter_map(|(trap, _)| match trap {
                Trap::TaskSwitch { selector, source, error } => Some((*selector, *source, *error)),
                _ => None,
            });
            let error = (start == Start::WithError).then_some(0xabc);
            assert_eq!(asked.collect::<Vec<_>>(), [(NEW, start.source(), error)], "{name}");
            cases += 1;
        }
    }
    println!("task switches: {cases}");
}

fn saved(machine: &Machine, before: &cpu::Core, start: Start, old: Size) {
    // Faults save RF (SDM 3B 17.3.1.1); IRET saves NT as 0.
    let resume = if start.ext() == 1 { 0x1_0000 } else { 0 };
    let flags = (before.rflags.bits() & !Rflags::NT.bits()) | resume;
    let registers = [start.next(), flags].into_iter().chain(before.gprs[..8].iter().copied());
    // TSS slots follow the encoding's order: EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    let mask = if old == Size::Bits16 { 0xffff } else { 0xffff_ffff };
    for (offset, value) in old.registers().into_iter().zip(registers) {
        assert_eq!(machine.ground.mem.read(Hpa(TSS + offset), old.bytes()), value & mask, "{start:?} {offset:#x}");
    }
    let selectors = [DATA0, CODE32, DATA0, DATA0, DATA0, 3];
    for (offset, selector) in old.selectors().into_iter().zip(selectors) {
        if let Some(offset) = offset {
            let found = machine.ground.mem.read(Hpa(TSS + offset), 2);
            assert_eq!(found, u64::from(selector), "{start:?} {offset:#x}");
        }
    }
}

fn loaded(machine: &Machine, start: Start, new: Size) {
    let core = &machine.core;
    let nested = if start.nests() { Rflags::NT.bits() } else { 0 };
    assert_eq!((core.rip, core.rflags.bits()), (NEW_CODE, 2 | nested), "{start:?}");
    let pushed = if start == Start::WithError { new.bytes() as u64 } else { 0 };
    for (index, value) in VALUES.into_iter().enumerate() {
        let value = if index == 4 { value - pushed } else { value };
        let mask = if new == Size::Bits16 && index != 4 { 0xffff } else { 0xffff_ffff };
        let found = core.gprs[index] & mask;
        assert_eq!(found, value | if index == 4 && new == Size::Bits16 { found & 0xffff_0000 } else { 0 }, "{start:?}");
    }
    if start == Start::WithError {
        let top = Hpa((NEW_STACK - pushed) & 0xffff);
        if new == Size::Bits32 {
            assert_eq!(machine.ground.mem.read(top, 4), 0xabc);
        }
    }
    let s = &core.segments;
    let visible = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldtr].map(|segment| segment.selector);
    let mut expected = SELECTORS;
    if new == Size::Bits16 {
        expected[5] = 0;
    }
    assert_eq!(visible, expected, "{start:?}");
    assert_eq!((s.ldtr.base, s.ldtr.limit, s.ds.rights.dpl(), s.fs.rights.is_unusable()), (0x2800, 0x17, 3, true));
    assert_eq!((s.tr.selector, s.tr.base, s.tr.limit), (NEW, NEW_TSS, new.limit() as u32), "{start:?}");
    assert_eq!(u64::from(s.tr.rights.0), 0x82 | new.kind(), "{start:?}");
    assert!(core.cr0.contains(Cr0::TS), "{start:?}");
}

/// SDM 3C 25.4.2: an exit leaves both TSSs, both descriptors, NT and TR as they were.
#[test]
fn an_exit_comes_before_any_change() {
    for start in STARTS {
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        machine.virt.intercepts = |trap| matches!(trap, Trap::TaskSwitch { .. });
        let tables = |machine: &Machine| {
            (0..0x20)
                .map(|index| machine.quad(GDT + 8 * index))
                .chain((0..16).map(|index| machine.quad(TSS + 8 * index)))
                .chain((0..16).map(|index| machine.quad(NEW_TSS + 8 * index)))
                .collect::<Vec<_>>()
        };
        let (before, memory) = (machine.core.clone(), tables(&machine));
        machine.step().expect("an exit");
        assert_eq!(tables(&machine), memory, "{start:?}");
        let core = &machine.core;
        assert_eq!((core.segments, core.gprs, core.rip), (before.segments, before.gprs, before.rip), "{start:?}");
        assert_eq!((core.rflags, core.cr0), (before.rflags, before.cr0), "{start:?}");
    }
}

/// The exceptions of a step, in order, whether or not they could be delivered.
fn exceptions(machine: &mut Machine) -> Vec<Raised> {
    machine.step().expect("a modelled step");
    let raised = machine.virt.asked.iter().filter_map(|(trap, _)| match trap {
        Trap::Exception(exception) => Some((exception.vector, exception.error)),
        _ => None,
    });
    raised.collect()
}

/// The exception of a step's task switch: the first, or the second if an exception started it.
fn fault_of(machine: &mut Machine, start: Start) -> Option<Raised> {
    exceptions(machine).get(usize::from(start.ext())).copied()
}

/// SDM 3A table 7-1, the rows that are checked in the old task: nothing has changed yet.
#[test]
fn faults_of_the_old_task() {
    let tss = |limit, rights| tss_descriptor(NEW_TSS, limit, rights);
    for start in STARTS {
        let returns = start == Start::Iret;
        let invalid = if returns { ts } else { gp };
        let busy = if returns { 2 } else { 0 };
        let rows: [(&str, u64, Raised); 8] = [
            ("not a system segment", tss(0x67, 0x93), invalid(NEW)),
            ("an LDT", tss(0x67, 0x82), invalid(NEW)),
            ("the wrong busy flag, 32-bit", tss(0x67, 0x8b ^ busy), invalid(NEW)),
            ("the wrong busy flag, 16-bit", tss(0x67, 0x83 ^ busy), invalid(NEW)),
            ("not present", tss(0x67, 0x09 | busy), np(NEW)),
            ("limit of a 32-bit TSS", tss(0x66, 0x89 | busy), ts(NEW)),
            ("limit of a 16-bit TSS", tss(0x2a, 0x81 | busy), ts(NEW)),
            ("not present and too small", tss(0, 0x09 | busy), np(NEW)),
        ];
        for (name, raw, (vector, error)) in rows {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            set_descriptor(&mut machine, NEW, raw);
            let expected = (vector, error.map(|error| error | u32::from(start.ext())));
            assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?}: {name}");
            assert_eq!(machine.core.segments.tr.selector, OLD, "{start:?}: {name}");
            assert!(!machine.virt.asked.iter().any(|(trap, _)| matches!(trap, Trap::TaskSwitch { .. })), "{name}");
        }
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        machine.core.segments.tr.limit = 0x66;
        assert_eq!(fault_of(&mut machine, start), Some(ts(OLD | start.ext())), "{start:?}: the old TSS is too small");
    }
}

/// Selectors in the LDT, null ones and ones beyond the GDT (SDM 2 CALL, INT, IRET; SDM 3A table 7-1).
#[test]
fn selectors_of_tasks() {
    for (selector, error) in [(0_u16, 0_u16), (3, 0), (NEW | 4, NEW | 4), (0x100, 0x100)] {
        for start in [Start::CallGate, Start::JmpGate, Start::Int, Start::Exception, Start::Iret] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            machine.core.segments.ldtr = Segment { base: GDT, limit: 0xff, rights: Rights(0x82), selector: LDT };
            let raw = 0xe500_0000_0000 | u64::from(selector) << 16;
            set_descriptor(&mut machine, TASK_GATE, raw);
            machine.ground.mem.write_u64(Hpa(IDT + 8 * 0x10), raw);
            machine.ground.mem.write_u64(Hpa(IDT + 8 * 6), raw);
            machine.ground.mem.write(Hpa(TSS), u64::from(selector), 2);
            let invalid = if start == Start::Iret { ts } else { gp };
            let expected = invalid(error | start.ext());
            assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?} {selector:#x}");
        }
    }
}

/// Privilege: of the task gate where there is one, else of the TSS descriptor (SDM 3C 25.4.2); whole over CPL 0 and 3,
/// RPL and DPL of the gate and of the TSS.
#[test]
fn privilege_rules() {
    let mut cases = 0;
    for case in 0..0x80_u64 {
        let (rpl, gate_dpl, tss_dpl) = (case & 3, case >> 2 & 3, case >> 4 & 3);
        let user = case & 0x40 != 0;
        let cpl = if user { 3 } else { 0 };
        for start in [Start::CallTss, Start::JmpTss, Start::CallGate, Start::JmpGate, Start::Int, Start::Exception] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            if user {
                machine.drop_to_user32();
            }
            set_descriptor(&mut machine, NEW, tss_descriptor(NEW_TSS, 0x67, 0x89 | tss_dpl << 5));
            let gate = 0x8500_0000_0000 | gate_dpl << 45 | u64::from(NEW) << 16;
            set_descriptor(&mut machine, TASK_GATE, gate);
            for vector in [6, 0x10] {
                machine.ground.mem.write_u64(Hpa(IDT + 8 * vector), gate);
            }
            let named = machine.ground.mem.read(Hpa(CODE + 5), 2);
            if matches!(start, Start::CallTss | Start::JmpTss | Start::CallGate | Start::JmpGate) {
                machine.ground.mem.write(Hpa(CODE + 5), named | rpl, 2);
            }
            let (fits, fault) = match start {
                Start::CallTss | Start::JmpTss => (cpl.max(rpl) <= tss_dpl, gp(NEW)),
                Start::CallGate | Start::JmpGate => (cpl.max(rpl) <= gate_dpl, gp(TASK_GATE)),
                Start::Int => (cpl <= gate_dpl, gp(0x10 << 3 | 2)),
                _ => (true, gp(0)),
            };
            let found = fault_of(&mut machine, start);
            assert_eq!(found, (!fits).then_some(fault), "{start:?} {case:#x}");
            cases += 1;
        }
    }
    println!("task privilege cases: {cases}");
}

/// An absent task gate is #NP with its own selector, in the IDT with its vector (SDM 2 CALL, INT).
#[test]
fn absent_task_gates() {
    for (start, expected) in [
        (Start::CallGate, np(TASK_GATE)),
        (Start::JmpGate, np(TASK_GATE)),
        (Start::Int, np(0x82)),
        (Start::Exception, np(0x33)),
    ] {
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        let raw = 0x6500_0000_0000 | u64::from(NEW) << 16;
        set_descriptor(&mut machine, TASK_GATE, raw);
        for vector in [6, 0x10] {
            machine.ground.mem.write_u64(Hpa(IDT + 8 * vector), raw);
        }
        assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?}");
    }
}

/// SDM 3A table 7-1, the rows that are checked in the new task: TR, EIP and the registers are already its own.
#[test]
fn faults_of_the_new_task() {
    let rows: [(&str, Edit, Raised); 18] = [
        ("LDT beyond the GDT", |m| put(m, 0x60, 0x100, 2), ts(0x100)),
        ("LDT in an LDT", |m| put(m, 0x60, u64::from(LDT | 4), 2), ts(LDT | 4)),
        ("LDT is a TSS", |m| put(m, 0x60, u64::from(OLD), 2), ts(OLD)),
        ("LDT not present", |m| set_descriptor(m, LDT, tss_descriptor(0x2800, 0x17, 0x02)), ts(LDT)),
        ("null CS", |m| put(m, 0x4c, 0, 2), ts(0)),
        ("CS is data", |m| put(m, 0x4c, u64::from(DATA0), 2), ts(DATA0)),
        ("CS with another RPL", |m| put(m, 0x4c, u64::from(CODE32 | 1), 2), ts(CODE32)),
        ("CS not present", |m| put(m, 0x4c, u64::from(ABSENT_CODE), 2), np(ABSENT_CODE)),
        ("null SS", |m| put(m, 0x50, 0, 2), ts(0)),
        ("SS is code", |m| put(m, 0x50, u64::from(CODE32), 2), ts(CODE32)),
        ("SS is read-only", |m| put(m, 0x50, u64::from(READ_ONLY), 2), ts(READ_ONLY)),
        ("SS with another RPL", |m| put(m, 0x50, u64::from(DATA0 | 1), 2), ts(DATA0)),
        ("SS of a user", |m| put(m, 0x50, u64::from(USER_DATA), 2), ts(USER_DATA & !3)),
        ("SS not present", |m| put(m, 0x50, u64::from(ABSENT_DATA), 2), raised(Vector::StackFault, ABSENT_DATA)),
        ("DS beyond the GDT", |m| put(m, 0x54, 0x100, 2), ts(0x100)),
        ("FS not readable", |m| put(m, 0x58, u64::from(NEW), 2), ts(NEW)),
        ("GS not present", |m| put(m, 0x5c, u64::from(ABSENT_DATA), 2), np(ABSENT_DATA)),
        ("ES of ring 0 with RPL 3", |m| put(m, 0x48, u64::from(DATA0 | 3), 2), ts(DATA0)),
    ];
    for (name, edit, (vector, error)) in rows {
        for start in STARTS {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            edit(&mut machine);
            let expected = (vector, error.map(|error| error | u32::from(start.ext())));
            assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?}: {name}");
            assert_eq!(machine.core.segments.tr.selector, NEW, "{start:?}: {name}");
            assert_eq!(machine.gpr(Gpr::Rax), VALUES[0], "{start:?}: {name}");
        }
    }
    for start in STARTS {
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        set_descriptor(&mut machine, CODE32, 0x0040_9b00_0000_0fff);
        assert_eq!(fault_of(&mut machine, start), Some(gp(start.ext())), "{start:?}: EIP beyond CS");
    }
}

/// Into ring 3 and back: a user's task calls nothing of its own, IRET returns to the first (SDM 3A 7.4).
#[test]
fn call_a_user_task_and_return() {
    let mut machine = machine(Start::CallTss, Size::Bits32, Size::Bits32);
    for (offset, selector) in [(0x4c, USER_CODE32), (0x50, USER_DATA), (0x48, 0), (0x5c, 0)] {
        put(&mut machine, offset, u64::from(selector), 2);
    }
    machine.ground.mem.write_bytes(Hpa(NEW_CODE), &[0xcf]);
    let before = machine.core.clone();
    machine.retire(1);
    assert_eq!((machine.core.cpl(), machine.core.segments.cs.selector), (3, USER_CODE32));
    machine.retire(1);
    let core = &machine.core;
    assert_eq!((core.rip, core.cpl(), core.gprs), (CODE + 7, 0, before.gprs));
    assert_eq!((core.segments.tr, core.rflags), (before.segments.tr, before.rflags));
    assert_eq!((rights(&machine, OLD), rights(&machine, NEW)), (0x8b, 0x89));
    // The task that returned goes on behind its IRET, with NT saved as 0.
    assert_eq!((machine.dword(NEW_TSS + 0x20), machine.dword(NEW_TSS + 0x24)), (NEW_CODE as u32 + 1, 2));
}

/// The T flag raises #DB with BT before the new task's first instruction; L0 to L3 go (SDM 3B 17.2.4, 17.3.1.5).
#[test]
fn debug_trap() {
    for start in STARTS {
        for trap in [0, 1] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            put(&mut machine, 0x64, trap, 2);
            machine.ground.mem.write_bytes(Hpa(NEW_CODE), &[0x90]);
            machine.core.dr = [0xffff_0000; 4];
            machine.core.dr7 = 0x7ff;
            begin(&mut machine, start);
            assert_eq!(machine.core.dr7, 0x6aa, "{start:?}");
            if trap == 0 {
                machine.retire(1);
                continue;
            }
            assert_eq!(machine.step(), Ok(Outcome::Delivered), "{start:?}");
            assert_eq!(machine.last_exception(), Some((Vector::Debug, None)), "{start:?}");
            assert_eq!(machine.core.dr6 & 0xe00f, 0x8000, "{start:?}");
            let rip = machine.dword(machine.gpr(Gpr::Rsp));
            assert_eq!(u64::from(rip), NEW_CODE, "{start:?}");
        }
    }
}

/// CR3 comes from the new TSS only with paging; a change drops the TLB, reloads PDPTEs and checks them (SDM 3A 4.4.1,
/// 4.10.4.1, 7.2.1).
#[test]
fn address_spaces() {
    use harness::{PAE_PDPT, PD};
    const SECOND: u64 = 0x1_5000;
    let mut plain = machine(Start::JmpTss, Size::Bits32, Size::Bits32);
    put(&mut plain, 0x1c, SECOND, 4);
    plain.retire(1);
    assert_eq!(plain.core.cr3, 0, "without paging");
    for (entry, cr3, expected) in [(PD | 1, SECOND, None), (PD | 3, SECOND, Some(gp(0))), (0, PAE_PDPT, None)] {
        let mut machine = machine(Start::JmpTss, Size::Bits32, Size::Bits32);
        machine.paging64();
        machine.ground.mem.write_u64(Hpa(SECOND), entry);
        let core = &mut machine.core;
        core.cr3 = PAE_PDPT;
        core.cr4 = Cr4::PAE;
        core.cr0 |= Cr0::PG;
        core.pdptes = [PD | 1, 0, 0, 0];
        put(&mut machine, 0x1c, cr3, 4);
        assert_eq!(fault_of(&mut machine, Start::JmpTss), expected);
        let flushes = machine
            .ground
            .log
            .records()
            .iter()
            .filter(|record| matches!(record.event, sim_core::event::Event::TlbFlush { .. }));
        let flushed = flushes.count() > 0;
        assert_eq!(flushed, cr3 == SECOND && expected.is_none());
        let reached = if expected.is_some() { PAE_PDPT } else { cr3 };
        assert_eq!((machine.core.cr3, machine.core.segments.tr.selector), (reached, NEW));
    }
}

/// Pages of both TSSs are touched before anything changes (SDM 3A 7.3 step 5): a fault is the old task's.
#[test]
fn page_faults_come_first() {
    use harness::{DATA, PAE_PDPT, PD};
    for start in STARTS {
        for (link, page) in [(true, 6), (false, 6), (false, 5)] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            machine.paging64();
            let core = &mut machine.core;
            core.cr3 = PAE_PDPT;
            core.cr4 = Cr4::PAE;
            core.cr0 |= Cr0::PG | Cr0::WP;
            core.pdptes = [PD | 1, 0, 0, 0];
            // The new TSS lies across pages 5 and 6 of the small pages.
            let base = DATA + 0x5fe0;
            for index in 0..0x68 {
                let byte = machine.ground.mem.read(Hpa(NEW_TSS + index), 1);
                machine.ground.mem.write(Hpa(base + index), byte, 1);
            }
            let busy = if start == Start::Iret { 2 } else { 0 };
            set_descriptor(&mut machine, NEW, tss_descriptor(base, 0x67, 0x89 | busy));
            machine.ground.mem.write_u32(Hpa(base + 0x1c), PAE_PDPT as u32);
            // Read-only pages stop the link alone.
            let entry = if link { (DATA + 0x5000) | 1 } else { 0 };
            machine.set_page(if link { 5 } else { page }, entry);
            let fault = fault_of(&mut machine, start);
            if link && !start.nests() {
                assert_eq!(fault, None, "{start:?}");
                continue;
            }
            assert_eq!(fault.map(|(vector, _)| vector), Some(Vector::PageFault), "{start:?}");
            assert_eq!((machine.core.segments.tr.selector, rights(&machine, OLD)), (OLD, 0x8b), "{start:?}");
            assert_eq!(machine.dword(TSS + 0x20), 0, "{start:?}");
        }
    }
}

/// IRET with NT in IA-32e mode is #GP (SDM 3C 25.4.2, case g).
#[test]
fn no_tasks_in_long_mode() {
    let mut machine = Machine::long64();
    machine.core.rflags |= Rflags::NT;
    machine.ground.mem.write_bytes(Hpa(CODE), &[0x48, 0xcf]);
    assert_eq!(machine.exception(), gp(0));
}
