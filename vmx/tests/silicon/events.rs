//! What comes between instructions: monitor trap flag, VMX-preemption timer, windows, interrupts and NMIs, INIT and SIPI,
//! and their priorities (SDM 3C 25.2, 25.5, 26.7, 27.3.4).

use crate::bench::{Bench, whole};
use cpu::core::PinEvents;
use cpu::virt::{HeldEvents, Trap, Verdict, Virt};
use cpu::{Activity, Blocking};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use vmx::checks::Draft;
use vmx::controls::{ExitControls, PinBased, PrimaryProc};
use vmx::{Entered, Entry, Field};

const VIRTUAL_NMIS: PinBased = PinBased::NMI_EXITING.union(PinBased::VIRTUAL_NMIS);

/// The reason that a trap exits for, on a copy.
fn reason(bench: &Bench, trap: Trap) -> Option<u64> {
    bench.exit_of(trap).map(|(reason, _)| reason)
}

fn attends(bench: &Bench) -> bool {
    bench.vmx.attention(&bench.core)
}

fn guest(write: impl FnOnce(&mut Draft<'_>)) -> Bench {
    whole().run_with(write)
}

#[test]
fn a_plain_guest_wants_no_attention() {
    let bench = guest(|_| {});
    assert!(!attends(&bench));
    for trap in [Trap::Retired, Trap::Window, Trap::Interrupt(0x30), Trap::Nmi, Trap::Smi] {
        assert_eq!(bench.exit_of(trap), None, "{trap:?}");
    }
    assert_eq!(bench.vmx.held(&bench.core), HeldEvents::empty());
    assert_eq!(whole().vmx.held(&whole().core), HeldEvents::INIT, "root operation");
}

/// SDM 3C 25.5.2: the trap comes after an instruction, and after an injected event before the first one.
#[test]
fn monitor_trap_flag() {
    let mut bench = guest(|draft| draft.primary(PrimaryProc::MONITOR_TRAP_FLAG));
    assert!(attends(&bench));
    assert_eq!(reason(&bench, Trap::Window), None, "an instruction comes first");
    bench.core.pending_debug = 1 << 14;
    bench.trap(Trap::Retired);
    assert_eq!((bench.get(Field::ExitReason), bench.get(Field::GuestPendingDebug)), (37, 1 << 14));
    let injected = guest(|draft| draft.inject(0x8000_0700));
    assert!(attends(&injected));
    assert_eq!(reason(&injected, Trap::Window), Some(37));
    assert_eq!(injected.core.rip, injected.get(Field::GuestRip), "nothing goes through the IDT");
}

/// SDM 3C 25.5.1: one tick every 32 cycles; 0 expires before the first instruction; the rest is saved on request.
#[test]
fn preemption_timer() {
    let mut cases = 0;
    for (value, cycles) in (0..4_u64).flat_map(|value| (0..160_u64).map(move |cycles| (value, cycles))) {
        let mut bench = guest(|draft| {
            draft.pin(PinBased::ACTIVATE_PREEMPTION_TIMER);
            draft.exit(ExitControls::SAVE_PREEMPTION_TIMER);
            draft.set(Field::PreemptionTimer, value);
        });
        assert!(attends(&bench));
        // The entry charges its time after the timer has started.
        let start = bench.ground.clock.now().0 - Cost::VmEntry.cycles().0;
        for _ in 0..cycles {
            bench.ground.charge(Cost::Instruction);
        }
        let ticks = (bench.ground.clock.now().0 >> 5) - (start >> 5);
        let expired = ticks >= value;
        assert_eq!(reason(&bench, Trap::Window), expired.then_some(52), "{value} {cycles}");
        bench.trap(Trap::Cpuid);
        assert_eq!(bench.get(Field::PreemptionTimer), value.saturating_sub(ticks));
        cases += 1;
    }
    println!("{cases} of the preemption timer");
}

/// SDM 3C 25.2: interrupt window with every IF, STI and MOV SS; NMI window with every virtual-NMI blocking and MOV SS.
#[test]
fn windows() {
    for bits in 0..8_u8 {
        let [first, sti, mov_ss] = [0, 1, 2].map(|bit| bits >> bit & 1 == 1);
        let mut bench = guest(|draft| draft.primary(PrimaryProc::INTERRUPT_WINDOW_EXITING));
        bench.core.rflags.set(Rflags::IF, first);
        bench.core.blocking.set(Blocking::STI, sti);
        bench.core.blocking.set(Blocking::MOV_SS, mov_ss);
        assert_eq!(reason(&bench, Trap::Window), (first && !sti && !mov_ss).then_some(7), "{bits:#b}");
        let mut bench = guest(|draft| {
            draft.pin(VIRTUAL_NMIS);
            draft.primary(PrimaryProc::NMI_WINDOW_EXITING);
            draft.set(Field::GuestInterruptibility, u64::from(first) << 3);
        });
        bench.core.blocking.set(Blocking::STI, sti);
        bench.core.blocking.set(Blocking::MOV_SS, mov_ss);
        assert_eq!(reason(&bench, Trap::Window), (!first && !mov_ss).then_some(8), "{bits:#b}");
    }
}

/// SDM 3C 25.2: timer, NMI window, NMI, interrupt window, external interrupt, from the highest.
#[test]
fn priorities() {
    let all = guest(|draft| {
        draft.pin(VIRTUAL_NMIS | PinBased::ACTIVATE_PREEMPTION_TIMER | PinBased::EXTERNAL_INTERRUPT_EXITING);
        draft.primary(PrimaryProc::NMI_WINDOW_EXITING | PrimaryProc::INTERRUPT_WINDOW_EXITING);
    });
    let mut bench = all;
    bench.core.pins.events.insert(PinEvents::NMI);
    bench.core.pins.interrupt = Some(0x40);
    for trap in [Trap::Window, Trap::Nmi, Trap::Interrupt(0x40)] {
        assert_eq!(reason(&bench, trap), Some(52), "{trap:?}");
    }
    let without_timer = guest(|draft| {
        draft.pin(VIRTUAL_NMIS | PinBased::EXTERNAL_INTERRUPT_EXITING);
        draft.primary(PrimaryProc::NMI_WINDOW_EXITING | PrimaryProc::INTERRUPT_WINDOW_EXITING);
    });
    assert_eq!(reason(&without_timer, Trap::Nmi), Some(8));
    let mut without_nmi_window = guest(|draft| {
        draft.pin(VIRTUAL_NMIS | PinBased::EXTERNAL_INTERRUPT_EXITING);
        draft.primary(PrimaryProc::INTERRUPT_WINDOW_EXITING);
    });
    assert_eq!(reason(&without_nmi_window, Trap::Nmi), Some(0));
    assert_eq!(reason(&without_nmi_window, Trap::Interrupt(0x40)), Some(7));
    without_nmi_window.core.rflags.remove(Rflags::IF);
    assert_eq!(reason(&without_nmi_window, Trap::Window), None);
    without_nmi_window.core.pins.interrupt = Some(0x40);
    assert_eq!(reason(&without_nmi_window, Trap::Window), Some(1), "IF does not hold an exit back");
}

/// SDM 3C 24.7.1, 27.2.2: the vector is told, and the interrupt taken, only with "acknowledge interrupt on exit".
#[test]
fn external_interrupts() {
    for acknowledges in [false, true] {
        let mut bench = guest(|draft| {
            draft.pin(PinBased::EXTERNAL_INTERRUPT_EXITING);
            if acknowledges {
                draft.exit(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT);
            }
        });
        bench.core.pins.interrupt = Some(0x77);
        assert!(attends(&bench));
        assert_eq!(bench.trap(Trap::Interrupt(0x77)), Verdict::Exited);
        let information = if acknowledges { 0x8000_0077 } else { 0 };
        assert_eq!(bench.get(Field::ExitReason), 1);
        assert_eq!(bench.get(Field::ExitInterruptionInformation), information);
        assert_eq!(bench.core.pins.interrupt, (!acknowledges).then_some(0x77));
    }
}

/// SDM 3C 26.7.1, 27.3.4, 27.5.5, 25.3 IRET: what bit 3 of the interruptibility state means, and what IRET does to it.
#[test]
fn nmi_blocking() {
    let modes = [(PinBased::empty(), true), (PinBased::NMI_EXITING, false), (VIRTUAL_NMIS, true)];
    for ((pin, iret_unblocks), blocked) in modes.into_iter().flat_map(|mode| [false, true].map(|bit| (mode, bit))) {
        let mut bench = guest(|draft| {
            draft.pin(pin);
            draft.set(Field::GuestInterruptibility, u64::from(blocked) << 3);
        });
        let physical = blocked && pin != VIRTUAL_NMIS;
        assert_eq!(bench.core.blocking.contains(Blocking::NMI), physical, "{pin:?}");
        let mut same = bench.clone();
        same.trap(Trap::Cpuid);
        assert_eq!(same.get(Field::GuestInterruptibility), u64::from(blocked) << 3);
        // The CPU clears its own flag.
        assert_eq!(bench.trap(Trap::Iret), Verdict::Continue);
        bench.core.blocking.remove(Blocking::NMI);
        let mut faults = bench.clone();
        faults.set(Field::ExceptionBitmap, 1 << 13);
        faults.trap(Trap::Exception(Exception::gp0()));
        let unblocking = faults.get(Field::ExitInterruptionInformation) >> 12 & 1 == 1;
        assert_eq!(unblocking, blocked && iret_unblocks, "{pin:?} {blocked}");
        bench.core.rip += 1;
        bench.trap(Trap::Cpuid);
        let left = blocked && !iret_unblocks;
        assert_eq!(bench.get(Field::GuestInterruptibility), u64::from(left) << 3, "{pin:?} {blocked}");
        assert_eq!(bench.core.blocking.contains(Blocking::NMI), left);
    }
}

/// SDM 3C 25.2, 27.5.5: an NMI exit takes the NMI and blocks further ones; virtual-NMI blocking does not hold it back.
#[test]
fn nmis() {
    let mut bench = guest(|draft| {
        draft.pin(VIRTUAL_NMIS);
        draft.set(Field::GuestInterruptibility, 1 << 3);
    });
    bench.core.pins.events.insert(PinEvents::NMI);
    assert!(attends(&bench));
    assert_eq!(bench.trap(Trap::Window), Verdict::Exited);
    assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitInterruptionInformation)), (0, 0x8000_0202));
    assert_eq!(bench.get(Field::GuestInterruptibility), 1 << 3);
    assert!(bench.core.blocking.contains(Blocking::NMI) && bench.core.pins.events.is_empty());
    let kept = guest(|draft| {
        draft.pin(PinBased::NMI_EXITING);
        draft.set(Field::GuestInterruptibility, 1 << 3);
    });
    assert_eq!(kept.vmx.held(&kept.core), HeldEvents::NMI | HeldEvents::IRET_KEEPS_NMI);
}

/// SDM 3C 25.2: INIT always exits; a start-up IPI in wait-for-SIPI, with its vector.
#[test]
fn init_and_sipi() {
    let mut bench = guest(|_| {});
    bench.core.pins.events.insert(PinEvents::INIT);
    assert_eq!(bench.trap(Trap::Init), Verdict::Exited);
    assert_eq!((bench.get(Field::ExitReason), bench.core.pins.events), (3, PinEvents::empty()));
    let mut bench = guest(|draft| draft.set(Field::GuestActivity, 3));
    assert_eq!(bench.core.activity, Activity::WaitForSipi);
    assert_eq!(bench.trap(Trap::Sipi(0x9a)), Verdict::Exited);
    assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitQualification)), (4, 0x9a));
    assert_eq!((bench.get(Field::GuestActivity), bench.core.activity), (3, Activity::Active));
    assert_eq!(guest(|_| {}).exit_of(Trap::Sipi(1)), None);
}

/// SDM 3C 27.3.4: blocking by STI and MOV SS and pending debug exceptions are saved and loaded; the host has none.
#[test]
fn interruptibility_and_pending_debug() {
    let mut bench = guest(|_| {});
    for (blocking, debug, saved) in
        [(Blocking::STI, 1 << 14, 0), (Blocking::MOV_SS, 1 << 14, 1 << 14), (Blocking::empty(), 0b11, 0)]
    {
        bench.core.blocking = blocking;
        bench.core.pending_debug = debug;
        bench.trap(Trap::Cpuid);
        assert_eq!(bench.get(Field::GuestInterruptibility), u64::from(blocking.bits()));
        assert_eq!(bench.get(Field::GuestPendingDebug), saved, "{blocking:?}");
        assert_eq!((bench.core.blocking, bench.core.pending_debug), (Blocking::empty(), 0));
        if saved != 0 {
            bench.change(Field::GuestRflags, 1 << 8, 0);
        }
        assert_eq!(bench.enter(Entry::Resume), Entered::Guest);
        assert_eq!((bench.core.blocking, bench.core.pending_debug), (blocking, saved));
        bench.core.rflags.remove(Rflags::TF);
    }
}

/// SDM 3C 34.14: an SMI leaves VMX operation, RSM comes back into the guest.
#[test]
fn smi_and_rsm() {
    let mut bench = guest(|_| {});
    let before = bench.vmx.clone();
    assert_eq!(bench.trap(Trap::Smi), Verdict::Continue);
    assert_eq!(bench.vmx.operation(), vmx::Operation::Off);
    assert_eq!(bench.vmx.regime(&bench.core), Default::default());
    assert_eq!(bench.exit_of(Trap::Cpuid), None);
    assert_eq!(bench.trap(Trap::Rsm), Verdict::Continue);
    assert_eq!(bench.vmx, before);
}

/// SDM 3C 24.2, 26.2.1.1: the interruptibility of root operation stops an entry (VM-instruction error 26).
#[test]
fn no_entry_in_the_shadow_of_mov_ss() {
    let mut bench = whole();
    bench.core.blocking.insert(Blocking::MOV_SS);
    let fail = vmx::VmFail::Valid(vmx::InstructionError::EntryBlockedByMovSs);
    assert_eq!(bench.enter(Entry::Launch), Entered::Failed(fail));
}
