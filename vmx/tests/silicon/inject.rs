//! Event injection of every kind, and what an interrupted delivery tells (SDM 3C 26.6, 26.7.1, 27.2.4).

use crate::bench::{Bench, whole};
use cpu::{Activity, Blocking, Gpr};
use sim_core::Hpa;
use vmx::controls::{PinBased, PrimaryProc, SecondaryProc};
use vmx::{Entered, Entry, Field, Operation};

const PML4: u64 = 0x2_0000;
const GDT: u64 = 0x2_8000;
const IDT: u64 = 0x2_9000;
const CODE: u64 = 0x3_0000;
const HANDLER: u64 = 0x3_0800;
const STACK: u64 = 0x3_4000;

/// A guest without EPT in an identity map of 2 MiB, whose IDT sends every vector to one handler.
fn guest() -> Bench {
    let mut bench = whole();
    for (at, entry) in [(PML4, PML4 + 0x1007), (PML4 + 0x1000, PML4 + 0x2007), (PML4 + 0x2000, 0x87)] {
        bench.ground.mem.write_u64(Hpa(at), entry);
    }
    bench.ground.mem.write_u64(Hpa(GDT + 8), 0x00af_9b00_0000_ffff);
    for vector in 0..256 {
        let gate = HANDLER & 0xffff | 8 << 16 | 0xee00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
        bench.ground.mem.write_u64(Hpa(IDT + 16 * vector), gate);
    }
    bench.draft(|draft| {
        draft.without(SecondaryProc::ENABLE_EPT);
        draft.set_all(&[(Field::GuestCr3, PML4), (Field::GuestRip, CODE), (Field::GuestRsp, STACK)]);
        draft.set_all(&[(Field::GuestGdtrBase, GDT), (Field::GuestIdtrBase, IDT), (Field::GuestIdtrLimit, 0xfff)]);
    });
    bench
}

/// Every type that goes through the IDT: the word, the length, what is pushed as RIP, and the error code.
const EVENTS: [(u64, u64, u64, Option<u64>); 6] = [
    (0x8000_0030, 0, CODE, None),
    (0x8000_0202, 0, CODE, None),
    (0x8000_0b0e, 0, CODE, Some(0x17)),
    (0x8000_0480, 2, CODE + 2, None),
    (0x8000_0501, 1, CODE + 1, None),
    (0x8000_0603, 1, CODE + 1, None),
];

fn ask(bench: &mut Bench, (word, length, _, error): (u64, u64, u64, Option<u64>)) {
    bench.draft(|draft| {
        draft.inject(word);
        draft.set_all(&[(Field::EntryInstructionLength, length), (Field::EntryExceptionErrorCode, error.unwrap_or(0))]);
    });
}

#[test]
fn every_kind_goes_through_the_idt() {
    for event in EVENTS {
        let mut bench = guest();
        ask(&mut bench, event);
        bench.launch();
        let (word, _, pushed, error) = event;
        assert_eq!(bench.vmx.operation(), Operation::NonRoot, "{word:#x}");
        assert_eq!(bench.core.rip, HANDLER, "{word:#x}");
        let frame = bench.core.gpr(Gpr::Rsp);
        let depth = if error.is_some() { 48 } else { 40 };
        assert_eq!(frame, STACK - depth, "{word:#x}");
        let rip_at = Hpa(STACK - 40);
        assert_eq!(bench.ground.mem.read_u64(rip_at), pushed, "{word:#x}");
        if let Some(error) = error {
            assert_eq!(bench.ground.mem.read_u64(Hpa(frame)), error);
        }
        assert_eq!(bench.core.cr2.0, 0, "an injected page fault leaves CR2 alone");
        assert_eq!(bench.core.blocking.contains(Blocking::NMI), word == 0x8000_0202);
        assert_eq!(bench.core.delivering, None);
    }
    println!("{} kinds of events", EVENTS.len());
}

/// A delivery that ends in a VM-exit tells the event as IDT-vectoring information, with its length; with nothing in the
/// IDT it meets #GP, which the exception bitmap intercepts.
#[test]
fn an_interrupted_delivery_is_told() {
    for event in EVENTS {
        let mut bench = guest();
        ask(&mut bench, event);
        bench.set_all(&[(Field::GuestIdtrLimit, 0), (Field::ExceptionBitmap, 1 << 13)]);
        assert_eq!(bench.enter(Entry::Launch), Entered::Guest);
        let (word, length, _, error) = event;
        assert_eq!(bench.vmx.operation(), Operation::Root, "{word:#x}");
        assert_eq!(bench.get(Field::ExitReason), 0);
        assert_eq!(bench.get(Field::ExitInterruptionInformation), 0x8000_0b0d);
        assert_eq!(bench.get(Field::IdtVectoringInformation), word, "{word:#x}");
        assert_eq!(bench.get(Field::IdtVectoringErrorCode), error.unwrap_or(0));
        assert_eq!(bench.get(Field::ExitInstructionLength), length, "{word:#x}");
        assert_eq!(bench.get(Field::EntryInterruptionInformation), word & !(1 << 31), "the valid bit is cleared");
    }
}

/// SDM 3C 27.2.4: the double fault that a second exception makes is not told as an interrupted delivery, nor is the
/// triple fault.
#[test]
fn double_and_triple_faults_are_not_interrupted_deliveries() {
    for (bitmap, reason, information) in [(1 << 8, 0, 0x8000_0b08), (0, 2, 0)] {
        let mut bench = guest();
        ask(&mut bench, EVENTS[2]);
        bench.set_all(&[(Field::GuestIdtrLimit, 0), (Field::ExceptionBitmap, bitmap)]);
        assert_eq!(bench.enter(Entry::Launch), Entered::Guest);
        assert_eq!(
            (bench.get(Field::ExitReason), bench.get(Field::ExitInterruptionInformation)),
            (reason, information)
        );
        assert_eq!(bench.get(Field::IdtVectoringInformation), 0);
    }
}

/// SDM 3C 26.7.1, 26.7.2: an injected event wakes the guest and ends its shadows; an NMI blocks NMIs, virtual ones where
/// there are any.
#[test]
fn what_an_injection_changes() {
    let mut halted = guest();
    ask(&mut halted, EVENTS[0]);
    halted.set(Field::GuestActivity, 1);
    halted.launch();
    assert_eq!((halted.core.activity, halted.core.rip), (Activity::Active, HANDLER));
    let mut blocked = guest();
    ask(&mut blocked, EVENTS[2]);
    blocked.set(Field::GuestInterruptibility, 1);
    blocked.launch();
    assert_eq!(blocked.core.blocking, Blocking::empty());
    let mut virtual_nmi = guest();
    ask(&mut virtual_nmi, EVENTS[1]);
    virtual_nmi.draft(|draft| draft.pin(PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS));
    virtual_nmi.launch();
    assert!(!virtual_nmi.core.blocking.contains(Blocking::NMI));
    virtual_nmi.trap(cpu::virt::Trap::Cpuid);
    assert_eq!(virtual_nmi.get(Field::GuestInterruptibility), 1 << 3);
    let mut traced = guest();
    ask(&mut traced, EVENTS[0]);
    traced.draft(|draft| draft.primary(PrimaryProc::MONITOR_TRAP_FLAG));
    traced.launch();
    let exit = traced.exit_of(cpu::virt::Trap::Window);
    assert_eq!((exit, traced.core.rip), (Some((37, 0)), HANDLER), "before the handler's first instruction");
}

/// SDM 3C 24.4.2: a guest is entered in every activity state.
#[test]
fn activity_states() {
    let states = [Activity::Active, Activity::Halted, Activity::Shutdown, Activity::WaitForSipi];
    for (number, state) in (0..).zip(states) {
        let mut bench = guest();
        bench.set(Field::GuestActivity, number);
        bench.launch();
        assert_eq!(bench.core.activity, state);
    }
}
