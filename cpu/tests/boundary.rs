//! What comes between two instructions: interrupts, NMI and their blocking, debug traps and breakpoints, SMI and RSM, INIT
//! and start-up IPIs (SDM 3A 6.7 to 6.9, 8.4; SDM 3B 17.2, 17.3; SDM 3C 34; APM2 8.5, 10, 13.1).

mod harness;

use cpu::apic::{Destination, Message, Signal};
use cpu::core::{PinEvents, Pins};
use cpu::{Activity, Blocking, Gpr, Outcome, smp};
use harness::{CODE, DATA, HANDLERS, Machine};
use iced_x86::code_asm::*;
use sim_core::Hpa;
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;

fn nops() -> Machine {
    let mut machine = Machine::long64();
    machine.code64(|a| (0..8).try_for_each(|_| a.nop()));
    machine.core.rflags |= Rflags::IF;
    machine
}

const fn interrupt(vector: u8) -> Pins {
    Pins { events: PinEvents::empty(), interrupt: Some(vector), sipi: None }
}

/// The vector whose handler runs after a step.
fn handler(machine: &Machine) -> Option<u64> {
    (machine.core.rip >= HANDLERS).then(|| (machine.core.rip - HANDLERS) / 16)
}

type Setting = (&'static str, fn(&mut Machine), Option<u64>);

const EVENTS: [Setting; 14] = [
    ("nothing", |_| {}, None),
    ("an interrupt", |m| m.core.pins = interrupt(30), Some(30)),
    (
        "IF = 0",
        |m| {
            m.core.pins = interrupt(30);
            m.core.rflags.remove(Rflags::IF);
        },
        None,
    ),
    (
        "blocking by STI",
        |m| {
            m.core.pins = interrupt(30);
            m.core.blocking = Blocking::STI;
        },
        None,
    ),
    (
        "blocking by MOV SS",
        |m| {
            m.core.pins = interrupt(30);
            m.core.blocking = Blocking::MOV_SS;
        },
        None,
    ),
    (
        "task priority 1",
        |m| {
            m.core.pins = interrupt(30);
            m.core.cr8 = 1;
        },
        None,
    ),
    (
        "task priority 0",
        |m| {
            m.core.pins = interrupt(30);
            m.core.cr8 = 0;
        },
        Some(30),
    ),
    ("NMI", |m| m.core.pins.events = PinEvents::NMI, Some(2)),
    (
        "NMI in service",
        |m| {
            m.core.pins.events = PinEvents::NMI;
            m.core.blocking = Blocking::NMI;
        },
        None,
    ),
    (
        "NMI after STI",
        |m| {
            m.core.pins.events = PinEvents::NMI;
            m.core.blocking = Blocking::STI;
        },
        Some(2),
    ),
    (
        "NMI after MOV SS",
        |m| {
            m.core.pins.events = PinEvents::NMI;
            m.core.blocking = Blocking::MOV_SS;
        },
        None,
    ),
    (
        "debug trap before NMI",
        |m| {
            m.core.pins.events = PinEvents::NMI;
            m.core.pending_debug = 1 << 14;
        },
        Some(1),
    ),
    (
        "NMI before an interrupt",
        |m| {
            m.core.pins = interrupt(30);
            m.core.pins.events = PinEvents::NMI;
        },
        Some(2),
    ),
    ("bits without bit 12", |m| m.core.pending_debug = 3, None),
];

/// One step with everything pending that the row says.
#[test]
fn which_event_comes_first() {
    let all = |machine: &mut Machine| {
        machine.core.pins = interrupt(30);
        machine.core.pins.events = PinEvents::NMI;
        machine.core.pending_debug = 1 << 14;
    };
    let _: fn(&mut Machine) = all;
    for (name, set, expected) in EVENTS {
        let mut machine = nops();
        set(&mut machine);
        machine.step().unwrap();
        assert_eq!(handler(&machine), expected, "{name}");
        assert!(!machine.core.blocking.intersects(Blocking::STI | Blocking::MOV_SS), "{name}");
    }
    let mut machine = nops();
    all(&mut machine);
    let mut order = Vec::new();
    for _ in 0..2 {
        assert_eq!(machine.step(), Ok(Outcome::Delivered));
        order.push(handler(&machine));
    }
    assert_eq!(order, [Some(1), Some(2)], "#DB clears nothing of NMI, and IF is 0 in the handlers");
}

/// STI and MOV SS hold for exactly one instruction.
#[test]
fn shadows_last_one_instruction() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let rows: [(&str, Emit, usize); 5] = [
        ("STI from IF = 0", |a| a.sti(), 2),
        ("STI from IF = 1", |a| a.nop(), 0),
        ("MOV SS", |a| a.mov(ss, eax), 2),
        ("POP SS does the same", |a| a.mov(ss, ax), 2),
        (
            "STI STI",
            |a| {
                a.sti()?;
                a.sti()
            },
            2,
        ),
    ];
    for (name, emit, expected) in rows {
        let mut machine = Machine::long64();
        machine.set(Gpr::Rax, u64::from(harness::DATA0));
        machine.code64(|a| {
            emit(a)?;
            (0..4).try_for_each(|_| a.nop())
        });
        machine.core.rflags.set(Rflags::IF, !name.starts_with("STI") || name.ends_with("IF = 1"));
        if expected > 0 && machine.core.rflags.contains(Rflags::IF) {
            machine.retire(1);
            machine.core.pins = interrupt(30);
            machine.retire(1);
        } else {
            machine.core.pins = interrupt(30);
            machine.retire(expected);
        }
        assert_eq!((machine.step(), handler(&machine)), (Ok(Outcome::Delivered), Some(30)), "{name}");
    }
}

#[test]
fn nmi_is_blocked_until_iret() {
    let mut machine = nops();
    machine.assemble(64, HANDLERS + 32, |a| a.iretq());
    machine.core.pins.events = PinEvents::NMI;
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    assert_eq!(machine.core.blocking, Blocking::NMI);
    machine.core.pins.events = PinEvents::NMI;
    machine.retire(1);
    assert_eq!((machine.core.rip, machine.core.blocking), (CODE, Blocking::empty()));
    assert_eq!((machine.step(), handler(&machine)), (Ok(Outcome::Delivered), Some(2)));
}

#[test]
fn halted_processors_wake() {
    for (name, set, expected) in [
        ("nothing", (|_| {}) as fn(&mut Machine), None),
        ("an interrupt", |m| m.core.pins = interrupt(30), Some(30)),
        (
            "masked",
            |m| {
                m.core.pins = interrupt(30);
                m.core.rflags.remove(Rflags::IF);
            },
            None,
        ),
        ("NMI", |m| m.core.pins.events = PinEvents::NMI, Some(2)),
    ] {
        let mut machine = nops();
        machine.core.activity = Activity::Halted;
        set(&mut machine);
        let outcome = if expected.is_some() { Outcome::Delivered } else { Outcome::Halted };
        assert_eq!((machine.step(), handler(&machine)), (Ok(outcome), expected), "{name}");
    }
}

/// RFLAGS.TF as an instruction begins makes a trap behind it; INT clears it first, and MOV SS defers it.
#[test]
fn single_step() {
    let mut machine = nops();
    machine.core.rflags |= Rflags::TF;
    machine.retire(1);
    assert_eq!(machine.exception(), (Vector::Debug, None));
    assert_eq!((machine.core.dr6, machine.quad(machine.gpr(Gpr::Rsp))), (0xffff_4ff0, CODE + 1));
    assert!(!machine.core.rflags.contains(Rflags::TF));

    // POPF that sets TF: the trap comes behind the next instruction.
    let mut machine = Machine::long64();
    machine.code64(|a| {
        a.push(0x102)?;
        a.popfq()?;
        a.nop()?;
        a.nop()
    });
    machine.retire(3);
    assert_eq!(machine.exception(), (Vector::Debug, None));
    assert_eq!(machine.quad(machine.gpr(Gpr::Rsp)), CODE + 7);

    let mut machine = Machine::long64();
    machine.set(Gpr::Rax, u64::from(harness::DATA0));
    machine.code64(|a| {
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()
    });
    machine.core.rflags |= Rflags::TF;
    machine.retire(2);
    assert_eq!(machine.exception(), (Vector::Debug, None));

    let mut machine = Machine::long64();
    machine.code64(|a| a.int3());
    machine.core.rflags |= Rflags::TF;
    assert_eq!(machine.exception(), (Vector::Breakpoint, None));
    assert_eq!((machine.core.pending_debug, machine.core.rflags.contains(Rflags::TF)), (0, false));

    // DebugCtl.BTF: only branches step.
    let mut machine = Machine::long64();
    machine.code64(|a| {
        a.nop()?;
        a.db(&[0xeb, 0])?;
        a.nop()
    });
    machine.core.rflags |= Rflags::TF;
    machine.core.msrs.debugctl = 2;
    machine.retire(2);
    assert_eq!(machine.exception(), (Vector::Debug, None));
    assert_eq!(machine.core.msrs.debugctl, 0);
}

/// Every length, kind, place and size of access against the ranges of SDM 3B 17.2.5.
#[test]
fn data_breakpoints() {
    let mut cases = 0;
    for (field, bytes) in [(0u64, 1u64), (1, 2), (2, 8), (3, 4)] {
        for kind in [1u64, 3] {
            for size in [1u64, 2, 4, 8] {
                for offset in 0..24 {
                    for write in [false, true] {
                        let mut machine = Machine::long64();
                        machine.core.dr[2] = DATA + 8;
                        machine.core.dr7 = 0x400 | 1 << 4 | kind << 24 | field << 26;
                        machine.set(Gpr::Rbx, DATA + offset);
                        machine.code64(|a| match (size, write) {
                            (1, false) => a.mov(al, byte_ptr(rbx)),
                            (2, false) => a.mov(ax, word_ptr(rbx)),
                            (4, false) => a.mov(eax, dword_ptr(rbx)),
                            (_, false) => a.mov(rax, qword_ptr(rbx)),
                            (1, true) => a.mov(byte_ptr(rbx), al),
                            (2, true) => a.mov(word_ptr(rbx), ax),
                            (4, true) => a.mov(dword_ptr(rbx), eax),
                            (_, true) => a.mov(qword_ptr(rbx), rax),
                        });
                        machine.retire(1);
                        let touched = (offset..offset + size).any(|byte| (8..8 + bytes).contains(&byte));
                        let hit = touched && (write || kind == 3);
                        assert_eq!(machine.core.pending_debug, u64::from(hit) * (1 << 12 | 1 << 2));
                        if hit {
                            assert_eq!(machine.exception(), (Vector::Debug, None));
                            assert_eq!(machine.core.dr6, 0xffff_0ff4);
                        }
                        cases += 1;
                    }
                }
            }
        }
    }
    println!("data breakpoint cases: {cases}");
}

/// An instruction breakpoint is a fault, and RF in IRET's image steps over it once.
#[test]
fn instruction_breakpoints_and_rf() {
    let mut machine = nops();
    machine.core.dr[0] = CODE + 1;
    machine.core.dr7 = 0x401;
    machine.retire(1);
    assert_eq!(machine.exception(), (Vector::Debug, None));
    let frame = machine.gpr(Gpr::Rsp);
    assert_eq!((machine.core.dr6, machine.quad(frame)), (0xffff_0ff1, CODE + 1));
    let flags = machine.quad(frame + 16);
    machine.ground.mem.write_u64(Hpa(frame + 16), flags | Rflags::RF.bits());
    machine.assemble(64, HANDLERS + 16, |a| a.iretq());
    machine.retire(2);
    assert_eq!((machine.core.rip, machine.core.rflags.contains(Rflags::RF)), (CODE + 2, false));
}

#[test]
fn debug_registers() {
    // General detect: #DB before the access, and DR7.GD is clear for the handler.
    let mut machine = Machine::long64();
    machine.code64(|a| a.mov(rax, dr0));
    machine.core.dr7 = 0x2400;
    assert_eq!(machine.exception(), (Vector::Debug, None));
    assert_eq!((machine.core.dr6, machine.core.dr7), (0xffff_2ff0, 0x400));
    assert_eq!(machine.quad(machine.gpr(Gpr::Rsp)), CODE);

    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    type Row = (&'static str, Emit, u64, fn(&Machine) -> u64, u64);
    let rows: [Row; 5] = [
        ("DR0 holds 64 bits", |a| a.mov(dr0, rax), u64::MAX, |m| m.core.dr[0], u64::MAX),
        ("DR6 reserved bits", |a| a.mov(dr6, rax), 0, |m| m.core.dr6, 0xffff_0ff0),
        ("DR6 writable bits", |a| a.mov(dr6, rax), 0xffff_ffff, |m| m.core.dr6, 0xffff_efff),
        ("DR7 reserved bits", |a| a.mov(dr7, rax), 0xd800, |m| m.core.dr7, 0x400),
        ("DR5 is DR7", |a| a.mov(dr5, rax), 0x2000, |m| m.core.dr7, 0x2400),
    ];
    for (name, emit, value, read, expected) in rows {
        let mut machine = Machine::long64();
        machine.set(Gpr::Rax, value);
        machine.code64(emit);
        machine.retire(1);
        assert_eq!(read(&machine), expected, "{name}");
    }
    for emit in [(|a| a.mov(dr6, rax)) as Emit, |a| a.mov(dr7, rax)] {
        let mut machine = Machine::long64();
        machine.set(Gpr::Rax, 1 << 32);
        machine.code64(emit);
        assert_eq!(machine.exception(), (Vector::GeneralProtection, Some(0)));
    }
}

/// #AC: every size and misalignment, at CPL 3 with CR0.AM and RFLAGS.AC only.
#[test]
fn alignment_checks() {
    use sim_core::arch::control::Cr0;
    for size in [1u64, 2, 4, 8] {
        for offset in 0..8 {
            for (user, am, ac) in [(true, true, true), (false, true, true), (true, false, true), (true, true, false)] {
                let mut machine = Machine::long64();
                if user {
                    machine.drop_to_user();
                }
                machine.core.cr0.set(Cr0::AM, am);
                machine.core.rflags.set(Rflags::AC, ac);
                machine.set(Gpr::Rbx, DATA + offset);
                machine.code64(|a| match size {
                    1 => a.mov(al, byte_ptr(rbx)),
                    2 => a.mov(ax, word_ptr(rbx)),
                    4 => a.mov(eax, dword_ptr(rbx)),
                    _ => a.mov(rax, qword_ptr(rbx)),
                });
                if user && am && ac && offset % size != 0 {
                    assert_eq!(machine.exception(), (Vector::AlignmentCheck, Some(0)));
                } else {
                    machine.retire(1);
                }
            }
        }
    }
}

/// SMI and RSM: everything comes back, SMBASE may move, and the handler runs in a flat real mode.
#[test]
fn system_management() {
    let mut machine = nops();
    machine.core.segments.fs.base = 0x1234_5678_9abc;
    for (number, value) in machine.core.gprs.iter_mut().enumerate() {
        *value = 0x1111_1111_1111_1111 * number as u64;
    }
    machine.core.blocking = Blocking::NMI;
    let before = machine.core.clone();
    machine.assemble(16, 0x3_8000, |a| {
        a.mov(eax, 1)?;
        a.rsm()
    });
    machine.core.pins.events = PinEvents::SMI;
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    let core = &machine.core;
    assert_eq!((core.segments.cs.selector, core.segments.cs.base, core.rip), (0x3000, 0x3_0000, 0x8000));
    assert_eq!((core.segments.ds.limit, core.cr0.bits(), core.cr4.bits()), (0xffff_ffff, 0x1_0030, 0));
    assert_eq!(core.blocking, Blocking::SMI | Blocking::NMI);
    // A second SMI waits.
    machine.core.pins.events = PinEvents::SMI;
    machine.retire(1);
    machine.ground.mem.write_u32(Hpa(0x3_ff00), 0x4_0000);
    machine.core.pins.events = PinEvents::empty();
    machine.retire(1);
    let mut after = machine.core.clone();
    assert_eq!(after.msrs.smbase, 0x4_0000);
    after.msrs.smbase = 0x3_0000;
    after.tlb = before.tlb.clone();
    assert_eq!(after, before);

    for (name, slot, value) in [
        ("PG without PE", 0xff58, 0x8000_0010u64),
        ("NW without CD", 0xff58, 0xa000_0011),
        ("reserved CR4", 0xff48, 1 << 40),
        ("LMA without PG", 0xff58, 0x11),
    ] {
        let mut machine = nops();
        machine.assemble(16, 0x3_8000, CodeAssembler::rsm);
        machine.core.pins.events = PinEvents::SMI;
        machine.step().unwrap();
        machine.ground.mem.write_u64(Hpa(0x3_0000 + slot), value);
        assert_eq!(machine.step(), Ok(Outcome::Shutdown), "{name}");
        assert_eq!(machine.core.activity, Activity::Shutdown);
    }

    // RSM outside is #UD; an SMI in HLT goes back to HLT.
    let mut machine = Machine::long64();
    machine.code64(CodeAssembler::rsm);
    assert_eq!(machine.exception(), (Vector::InvalidOpcode, None));
    let mut machine = nops();
    machine.assemble(16, 0x3_8000, CodeAssembler::rsm);
    machine.core.activity = Activity::Halted;
    machine.core.pins.events = PinEvents::SMI;
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    assert_eq!((machine.step(), machine.core.rip), (Ok(Outcome::Halted), CODE));
}

/// INIT, then a start-up IPI (SDM 3A table 9-1, 8.4.4.1).
#[test]
fn init_and_start_up() {
    for (base, activity) in [(0xfee0_0800, Activity::WaitForSipi), (0xfee0_0900, Activity::Active)] {
        let mut machine = nops();
        machine.core.msrs.apic_base = base;
        machine.core.pins.events = PinEvents::INIT;
        machine.core.pins.interrupt = Some(40);
        assert_eq!(machine.step(), Ok(Outcome::Delivered));
        let core = &machine.core;
        assert_eq!((core.activity, core.segments.cs.base, core.rip), (activity, 0xffff_0000, 0xfff0));
        assert_eq!((core.cr0.bits(), core.rflags.bits(), core.efer.bits()), (0x10, 2, 0));
    }
    let mut machine = nops();
    machine.core.activity = Activity::WaitForSipi;
    machine.core.pins.events = PinEvents::NMI;
    assert_eq!(machine.step(), Ok(Outcome::Halted));
    machine.core.pins.sipi = Some(0x9a);
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    let core = &machine.core;
    assert_eq!((core.segments.cs.selector, core.segments.cs.base, core.rip), (0x9a00, 0x9_a000, 0));
}

/// Which processors a message reaches, for each destination.
#[test]
fn interprocessor_interrupts() {
    for (to, expected) in [
        (Destination::Itself, [false, true, false, false]),
        (Destination::All, [true, true, true, true]),
        (Destination::Others, [true, false, true, true]),
        (Destination::Physical(2), [false, false, true, false]),
        (Destination::Physical(u32::MAX), [true, true, true, true]),
        (Destination::Logical(0b1001), [true, false, false, true]),
        (Destination::Logical(1 << 16 | 1), [false, false, false, false]),
    ] {
        let mut cores: Vec<_> = (0..4)
            .map(|id| {
                let mut core = cpu::Core::flat32(40);
                core.apic.id = id;
                core
            })
            .collect();
        cores[1].apic.outbox.push(Message { to, signal: Signal::Fixed(0x41) });
        cores[1].apic.outbox.push(Message { to, signal: Signal::Nmi });
        smp::deliver(&mut cores.iter_mut().collect::<Vec<_>>());
        for (core, expected) in cores.iter().zip(expected) {
            assert_eq!(core.apic.requested[1] == 2, expected, "{to:?}");
            assert_eq!(core.pins.events == PinEvents::NMI, expected, "{to:?}");
        }
    }
}

/// The local APIC: a self-IPI is delivered, in service until EOI, and outranks lower classes (SDM 3A 10.8).
#[test]
fn local_apic() {
    let mut machine = nops();
    machine.core.msrs.apic_base = 0xfee0_0d00;
    for vector in [0x14u8, 0x1e] {
        machine.core.apic.request(vector);
    }
    assert_eq!((machine.step(), handler(&machine)), (Ok(Outcome::Delivered), Some(0x1e)));
    assert_eq!(machine.core.waiting_interrupt(), None, "the same class waits for EOI");
    machine.core.rip = CODE;
    machine.set(Gpr::Rcx, 0x80b);
    machine.set(Gpr::Rax, 0);
    machine.set(Gpr::Rdx, 0);
    machine.code64(CodeAssembler::wrmsr);
    machine.retire(1);
    assert_eq!(machine.core.waiting_interrupt(), Some(0x14));
    machine.core.rip = CODE;
    machine.set(Gpr::Rcx, 0x830);
    machine.set(Gpr::Rax, 0xc_4500);
    machine.retire(1);
    assert_eq!(machine.core.apic.outbox, [Message { to: Destination::Others, signal: Signal::Init }]);
}
