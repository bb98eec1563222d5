//! Two tasks, the first of which is about to switch to the second, for the tests of task switches.

use super::{CODE, CODE32, DATA0, GDT, IDT, Machine, READ_ONLY, STACK, TSS, USER_DATA};
use cpu::Gpr;
use cpu::virt::{TaskSwitchSource, Trap};
use sim_core::Hpa;
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

pub(crate) type Raised = (Vector, Option<u32>);

pub(crate) const OLD: u16 = 0x18;
pub(crate) const NEW: u16 = 0x60;
pub(crate) const TASK_GATE: u16 = 0x68;
pub(crate) const LDT: u16 = 0x70;
pub(crate) const NEW_TSS: u64 = 0x1_8000;
pub(crate) const NEW_CODE: u64 = 0x9123;
pub(crate) const NEW_STACK: u64 = 0xb000;

pub(crate) const fn raised(vector: Vector, error: u16) -> Raised {
    (vector, Some(error as u32))
}

pub(crate) const fn gp(error: u16) -> Raised {
    raised(Vector::GeneralProtection, error)
}

pub(crate) const fn np(error: u16) -> Raised {
    raised(Vector::SegmentNotPresent, error)
}

pub(crate) const fn ts(error: u16) -> Raised {
    raised(Vector::InvalidTss, error)
}

/// What starts a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
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

pub(crate) const STARTS: [Start; 8] = [
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
    pub(crate) const fn source(self) -> TaskSwitchSource {
        match self {
            Self::CallTss | Self::CallGate => TaskSwitchSource::Call,
            Self::JmpTss | Self::JmpGate => TaskSwitchSource::Jmp,
            Self::Int | Self::Exception | Self::WithError => TaskSwitchSource::TaskGate,
            Self::Iret => TaskSwitchSource::Iret,
        }
    }

    pub(crate) const fn nests(self) -> bool {
        !matches!(self, Self::JmpTss | Self::JmpGate | Self::Iret)
    }

    pub(crate) const fn ext(self) -> u16 {
        matches!(self, Self::Exception | Self::WithError) as u16
    }

    /// Where the old task goes on.
    pub(crate) const fn next(self) -> u64 {
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
pub(crate) enum Size {
    Bits16,
    Bits32,
}

impl Size {
    pub(crate) const fn kind(self) -> u64 {
        match self {
            Self::Bits16 => 0x1,
            Self::Bits32 => 0x9,
        }
    }

    pub(crate) const fn limit(self) -> u64 {
        match self {
            Self::Bits16 => 0x2b,
            Self::Bits32 => 0x67,
        }
    }

    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
        }
    }

    /// EIP, EFLAGS, EAX to EDI (SDM 3A figures 7-2, 7-10).
    pub(crate) const fn registers(self) -> [u64; 10] {
        match self {
            Self::Bits16 => [0x0e, 0x10, 0x12, 0x14, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20],
            Self::Bits32 => [0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x44],
        }
    }

    /// ES, CS, SS, DS, FS, GS, LDT; the last two segments are the 32-bit format's own.
    pub(crate) const fn selectors(self) -> [Option<u64>; 7] {
        match self {
            Self::Bits16 => [Some(0x22), Some(0x24), Some(0x26), Some(0x28), None, None, Some(0x2a)],
            Self::Bits32 => [Some(0x48), Some(0x4c), Some(0x50), Some(0x54), Some(0x58), Some(0x5c), Some(0x60)],
        }
    }
}

pub(crate) fn set_descriptor(machine: &mut Machine, selector: u16, raw: u64) {
    machine.ground.mem.write_u64(Hpa(GDT + u64::from(selector & 0xfff8)), raw);
}

pub(crate) const fn tss_descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    (limit & 0xffff) | ((base & 0xff_ffff) << 16) | (rights << 40) | ((base >> 24) << 56)
}

/// The new task's general registers, EAX first.
pub(crate) const VALUES: [u64; 8] = [0x1a01, 0x1a02, 0x1a03, 0x1a04, NEW_STACK, 0x1a06, 0x1a07, 0x1a08];
/// The new task's selectors: ES, CS, SS, DS, FS, GS, LDT.
pub(crate) const SELECTORS: [u16; 7] = [DATA0, CODE32, DATA0, USER_DATA, 0, READ_ONLY, LDT];

pub(crate) fn put(machine: &mut Machine, offset: u64, value: u64, bytes: usize) {
    machine.ground.mem.write(Hpa(NEW_TSS + offset), value, bytes);
}

/// Two tasks of ring 0, the first of which is about to start the switch.
pub(crate) fn machine(start: Start, old: Size, new: Size) -> Machine {
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
pub(crate) fn code(machine: &mut Machine, start: Start) {
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

pub(crate) fn iret(machine: &mut Machine, start: Start) {
    if start == Start::Iret {
        machine.core.rflags |= Rflags::NT;
        machine.ground.mem.write(Hpa(TSS), u64::from(NEW), 2);
    }
}

/// The exceptions of a step, in order, whether or not they could be delivered.
pub(crate) fn exceptions(machine: &mut Machine) -> Vec<Raised> {
    machine.step().expect("a modelled step");
    let raised = machine.virt.asked.iter().filter_map(|(trap, _)| match trap {
        Trap::Exception(exception) => Some((exception.vector, exception.error)),
        _ => None,
    });
    raised.collect()
}

/// The exception of a step's task switch: the first, or the second if an exception started it.
pub(crate) fn fault_of(machine: &mut Machine, start: Start) -> Option<Raised> {
    exceptions(machine).get(usize::from(start.ext())).copied()
}

pub(crate) fn rights(machine: &Machine, selector: u16) -> u64 {
    machine.quad(GDT + u64::from(selector)) >> 40 & 0xff
}
