//! GIF, virtual interrupts, virtual NMIs, virtual GIF and trapped writes, as the CPU asks about them between two
//! instructions (APM2 15.9, 15.13, 15.17, 15.21, 15.28, 15.33.2).

use super::{enter, field, report, set};
use crate::exit::ExitCode;
use crate::intercept::Intercepts;
use crate::interrupts::VirtualFlags;
use crate::msr::VmCr;
use crate::testing::{VMCB, machine, unit};
use crate::unit::{Gif, Svm};
use crate::virt::HELD_BY_GIF;
use crate::vmcb::{Field, SegmentField, TableField, write_segment, write_table};
use cpu::core::{Blocking, PinEvents};
use cpu::virt::{At, ControlRegister, HeldEvents, Trap, Verdict, VirtInstruction};
use cpu::{Core, Gpr, Virt};
use sim_core::Ground;
use sim_core::addr::Hpa;
use sim_core::arch::control::{Cr0, Efer};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::msr;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};

const GDT: u64 = 0x1_a000;
const IDT: u64 = 0x1_b000;
const HANDLER: u64 = 0x5678;
const VECTOR: u64 = 0x31;
/// V_IRQ with priority 8 and its vector.
const PENDING: u64 = VirtualFlags::IRQ.bits() | 8 << 16 | VECTOR << 32;

/// A flat 32-bit guest with an IDT, this virtual interrupt control and these intercepts; the host has IF set.
fn guest(control: u64, intercepts: Intercepts) -> (Core, Ground) {
    let (mut core, mut ground) = machine();
    core.rflags |= Rflags::IF;
    set(&mut ground, Field::Efer, Efer::SVME.bits());
    set(&mut ground, Field::Cr0, (Cr0::PE | Cr0::ET).bits());
    set(&mut ground, Field::Rip, 0x4000);
    write_segment(&mut ground.mem, VMCB, SegmentField::Cs, &Segment::flat(0x08, Rights::CODE32));
    write_table(&mut ground.mem, VMCB, TableField::Gdtr, TableRegister { base: GDT, limit: 0x1f });
    write_table(&mut ground.mem, VMCB, TableField::Idtr, TableRegister { base: IDT, limit: 0x1ff });
    ground.mem.write_u64(Hpa(GDT + 8), 0x00cf_9b00_0000_ffff);
    for vector in [2, VECTOR] {
        ground.mem.write_u64(Hpa(IDT + 8 * vector), 0x0000_8e00_0008_5678);
    }
    set(&mut ground, Field::VirtualInterrupt, control);
    (intercepts | Intercepts::VMRUN | Intercepts::HLT).write(&mut ground.mem, VMCB);
    (core, ground)
}

fn window(svm: &mut Svm, core: &mut Core, ground: &mut Ground) -> Verdict {
    svm.trap(core, ground, &Trap::Window, At::default()).unwrap()
}

/// APM2 15.21.4: a virtual interrupt is taken when RFLAGS.IF, the shadow, V_TPR and GIF let it, through the guest's IDT;
/// V_IRQ is then clear. With the VINTR intercept it exits instead and stays pending.
#[test]
fn virtual_interrupts() {
    let mut cases = 0;
    for bits in 0..32_u64 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let (enabled, shadow, high_tpr, ignores, intercepted) = (has(0), has(1), has(2), has(3), has(4));
        let tpr = if high_tpr { 8 } else { 7 };
        let ignore = if ignores { VirtualFlags::IGN_TPR.bits() } else { 0 };
        let intercepts = if intercepted { Intercepts::VINTR } else { Intercepts::empty() };
        let (mut core, mut ground) = guest(PENDING | tpr | ignore, intercepts);
        set(&mut ground, Field::Rflags, if enabled { 0x202 } else { 2 });
        set(&mut ground, Field::InterruptShadow, shadow.into());
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        let taken = enabled && !shadow && (ignores || !high_tpr);
        assert_eq!(svm.attention(&core), taken, "{bits:05b}");
        let verdict = window(&mut svm, &mut core, &mut ground);
        if taken && intercepted {
            assert_eq!((verdict, report(&ground)), (Verdict::Exited, (Some(ExitCode::Vintr), 0, 0, 0)));
        } else {
            assert_eq!((verdict, core.rip == HANDLER), (Verdict::Continue, taken), "{bits:05b}");
            assert!(!svm.attention(&core));
            core.rip = 0x4000;
            assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Hlt, At::of(1)), Ok(Verdict::Exited));
        }
        let pending = field(&ground, Field::VirtualInterrupt) & VirtualFlags::IRQ.bits() != 0;
        assert_eq!(pending, !taken || intercepted, "{bits:05b}");
        assert_eq!(field(&ground, Field::InterruptShadow), shadow.into());
        cases += 1;
    }
    println!("{cases} virtual interrupts");
}

/// APM2 15.33.2: STGI and CLGI of a guest with a virtual GIF move that, hold virtual interrupts, and leave the physical
/// one alone; without it they move the physical one.
#[test]
fn virtual_gif() {
    for enable in [false, true] {
        let control = PENDING | if enable { VirtualFlags::GIF_ENABLE.bits() } else { 0 } | VirtualFlags::GIF.bits();
        let (mut core, mut ground) = guest(control, Intercepts::empty());
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        assert!(svm.attention(&core));
        svm.instruction(&mut core, &mut ground, &VirtInstruction::Clgi, At::of(3)).unwrap();
        assert!(!svm.attention(&core));
        assert_eq!(svm.gif(), if enable { Gif::Set } else { Gif::Clear });
        assert_eq!(svm.held(&core), if enable { HeldEvents::empty() } else { HELD_BY_GIF });
        svm.instruction(&mut core, &mut ground, &VirtInstruction::Stgi, At::of(3)).unwrap();
        assert!(svm.attention(&core));
        svm.instruction(&mut core, &mut ground, &VirtInstruction::Clgi, At::of(3)).unwrap();
        assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Hlt, At::of(1)), Ok(Verdict::Exited));
        let virtual_gif = field(&ground, Field::VirtualInterrupt) & VirtualFlags::GIF.bits() != 0;
        assert_eq!(virtual_gif, !enable, "written back where it is in use");
    }
}

/// APM2 15.17: GIF = 0 in the host holds everything; VMRUN sets it, #VMEXIT clears it.
#[test]
fn gif_holds_everything() {
    let (mut core, mut ground) = guest(0, Intercepts::empty());
    let mut svm = unit();
    assert_eq!(svm.held(&core), HeldEvents::empty());
    svm.clgi();
    assert_eq!(svm.held(&core), HELD_BY_GIF);
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(svm.held(&core), HeldEvents::empty());
    assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Hlt, At::of(1)), Ok(Verdict::Exited));
    assert_eq!(svm.held(&core), HELD_BY_GIF);
}

/// APM2 15.21.1, 15.21.2: V_INTR_MASKING takes RFLAGS.IF and CR8 from the guest for physical interrupts.
#[test]
fn interrupt_masking() {
    let masking = VirtualFlags::INTR_MASKING.bits();
    for host_enabled in [false, true] {
        let (mut core, mut ground) = guest(masking | 5, Intercepts::INTR);
        core.rflags.set(Rflags::IF, host_enabled);
        core.cr8 = 9;
        set(&mut ground, Field::Rflags, 2);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        assert_eq!(core.cr8, 5, "the guest's CR8 is V_TPR");
        core.cr8 = 3;
        core.pins.interrupt = Some(0x20);
        assert_eq!(svm.held(&core).contains(HeldEvents::INTERRUPT), !host_enabled);
        assert_eq!(svm.attention(&core), host_enabled);
        if host_enabled {
            assert_eq!(window(&mut svm, &mut core, &mut ground), Verdict::Exited);
            assert_eq!(report(&ground).0, Some(ExitCode::Intr));
            assert_eq!(core.pins.interrupt, Some(0x20), "it waits for the host's GIF");
        } else {
            assert_eq!(window(&mut svm, &mut core, &mut ground), Verdict::Continue);
            assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Hlt, At::of(1)), Ok(Verdict::Exited));
        }
        assert_eq!((core.cr8, field(&ground, Field::VirtualInterrupt) & 0xff), (9, 3));
    }
    // Without masking a write of CR8 reaches both registers.
    let (mut core, mut ground) = guest(5, Intercepts::empty());
    let mut svm = unit();
    enter(&mut svm, &mut core, &mut ground);
    let write = Trap::CrWrite { register: ControlRegister::Cr8, gpr: Gpr::Rax, value: 7 };
    assert_eq!(svm.trap(&mut core, &mut ground, &write, At::of(4)), Ok(Verdict::Continue));
    assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Hlt, At::of(1)), Ok(Verdict::Exited));
    assert_eq!(field(&ground, Field::VirtualInterrupt) & 0xff, 7);
}

/// APM2 15.21.10: a virtual NMI is taken unless masked, masks itself, and the mask is the guest's own; physical NMIs
/// exit meanwhile.
#[test]
fn virtual_nmis() {
    let enable = VirtualFlags::NMI_ENABLE.bits();
    for masked in [false, true] {
        let mask = if masked { VirtualFlags::NMI_MASK.bits() } else { 0 };
        let (mut core, mut ground) = guest(enable | VirtualFlags::NMI.bits() | mask, Intercepts::NMI);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        assert_eq!(core.blocking.contains(Blocking::NMI), masked);
        assert_eq!(window(&mut svm, &mut core, &mut ground), Verdict::Continue);
        assert_eq!((core.rip == HANDLER, core.blocking.contains(Blocking::NMI)), (!masked, true));
        core.pins.events.insert(PinEvents::NMI);
        assert!(svm.attention(&core));
        assert_eq!(window(&mut svm, &mut core, &mut ground), Verdict::Exited);
        assert_eq!(report(&ground).0, Some(ExitCode::Nmi));
        assert!(core.pins.events.contains(PinEvents::NMI), "it waits for the host's GIF");
        assert!(!core.blocking.contains(Blocking::NMI), "the host's mask is its own");
        let word = field(&ground, Field::VirtualInterrupt);
        let still = if masked { VirtualFlags::NMI.bits() } else { 0 };
        assert_eq!(word, enable | still | VirtualFlags::NMI_MASK.bits());
    }
}

/// APM2 15.9: trapped writes exit behind their instruction with the new value; an instruction that faults does not.
#[test]
fn trapped_writes() {
    let cr = |register| Trap::CrWrite { register, gpr: Gpr::Rax, value: 0 };
    for (trap, bit, code) in [
        (cr(ControlRegister::Cr0), Intercepts::CR0_TRAP, ExitCode::CrWriteTrap(0)),
        (Trap::Clts, Intercepts::CR0_TRAP, ExitCode::CrWriteTrap(0)),
        (cr(ControlRegister::Cr2), Intercepts::CR2_TRAP, ExitCode::CrWriteTrap(2)),
        (cr(ControlRegister::Cr3), Intercepts::CR3_TRAP, ExitCode::CrWriteTrap(3)),
        (cr(ControlRegister::Cr4), Intercepts::CR4_TRAP, ExitCode::CrWriteTrap(4)),
        (cr(ControlRegister::Cr8), Intercepts::CR8_TRAP, ExitCode::CrWriteTrap(8)),
        (Trap::Wrmsr(msr::EFER, 0), Intercepts::EFER_TRAP, ExitCode::EferWriteTrap),
    ] {
        for (intercepted, faults) in [(true, false), (true, true), (false, false)] {
            let (mut core, mut ground) = guest(0, if intercepted { bit } else { Intercepts::empty() });
            let mut svm = unit();
            enter(&mut svm, &mut core, &mut ground);
            assert_eq!(svm.trap(&mut core, &mut ground, &trap, At::of(3)), Ok(Verdict::Continue));
            if faults {
                let fault = Trap::Exception(Exception::gp0());
                assert_eq!(svm.trap(&mut core, &mut ground, &fault, At::of(3)), Ok(Verdict::Continue));
            }
            core.rip += 3;
            core.cr3 = 0x7000;
            assert_eq!(svm.attention(&core), intercepted);
            let verdict = svm.trap(&mut core, &mut ground, &Trap::Retired, At::default());
            let exits = intercepted && !faults;
            assert_eq!(verdict, Ok(if exits { Verdict::Exited } else { Verdict::Continue }), "{trap:?}");
            if exits {
                assert_eq!((report(&ground).0, field(&ground, Field::Rip)), (Some(code), 0x4003));
                let value = field(&ground, Field::ExitInfo1);
                assert!(code != ExitCode::CrWriteTrap(3) || value == 0x7000, "{value:#x}");
            }
        }
    }
}

/// APM2 15.14.4: the count, the threshold that starts it anew, and no count at all.
#[test]
fn pause_filter() {
    for (count, threshold, gap, exits_at) in [
        (0_u64, 0_u64, 10_u64, Some(1)),
        (3, 0, 10, Some(4)),
        (3, 0, 1000, Some(4)),
        (3, 100, 10, Some(4)),
        (3, 100, 1000, None),
        (0, 100, 1000, Some(1)),
    ] {
        let (mut core, mut ground) = guest(0, Intercepts::PAUSE);
        set(&mut ground, Field::PauseFilterCount, count);
        set(&mut ground, Field::PauseFilterThreshold, threshold);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        let mut exited = None;
        for number in 1..=8_u32 {
            for _ in 0..gap {
                ground.charge(sim_core::clock::Cost::Instruction);
            }
            if svm.trap(&mut core, &mut ground, &Trap::Pause, At::of(2)) == Ok(Verdict::Exited) {
                exited = Some(number);
                break;
            }
        }
        assert_eq!(exited, exits_at, "count {count}, threshold {threshold}, every {gap} cycles");
    }
}

/// APM2 15.9: MWAIT with an armed monitor, and HLT that a pending virtual event lets through.
#[test]
fn conditional_intercepts() {
    for armed in [false, true] {
        let (mut core, mut ground) = guest(0, Intercepts::MWAIT_ARMED);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        if armed {
            assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Monitor, At::of(3)), Ok(Verdict::Continue));
        }
        let verdict = svm.trap(&mut core, &mut ground, &Trap::Mwait, At::of(3));
        assert_eq!(verdict, Ok(if armed { Verdict::Exited } else { Verdict::Continue }));
        assert!(!armed || report(&ground).0 == Some(ExitCode::MwaitConditional));
    }
    for control in [0, PENDING, PENDING | 0xf] {
        let (mut core, mut ground) = guest(control, Intercepts::empty());
        (Intercepts::VMRUN | Intercepts::IDLE_HLT).write(&mut ground.mem, VMCB);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        let verdict = svm.trap(&mut core, &mut ground, &Trap::Hlt, At::of(1));
        let pending = control == PENDING;
        assert_eq!(verdict, Ok(if pending { Verdict::Continue } else { Verdict::Exited }), "{control:#x}");
        assert!(pending || report(&ground).0 == Some(ExitCode::IdleHlt));
    }
}

/// APM2 15.28: a redirected INIT is #SX(1) in host and guest; an intercepted one exits first.
#[test]
fn redirected_init() {
    let (mut core, mut ground) = guest(0, Intercepts::empty());
    let mut svm = Svm { vm_cr: VmCr::R_INIT, ..unit() };
    let raised = Ok(Verdict::Raise(Exception::with_error(Vector::Security, 1)));
    assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Init, At::default()), raised);
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Init, At::default()), raised);
    let (mut core, mut ground) = guest(0, Intercepts::INIT);
    let mut svm = Svm { vm_cr: VmCr::R_INIT, ..unit() };
    core.pins.events.insert(PinEvents::INIT);
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Init, At::default()), Ok(Verdict::Exited));
    assert!(core.pins.events.contains(PinEvents::INIT), "it stays pending");
    let (mut core, mut ground) = guest(0, Intercepts::empty());
    assert_eq!(unit().trap(&mut core, &mut ground, &Trap::Init, At::default()), Ok(Verdict::Continue));
    let mut svm = unit();
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Init, At::default()), Ok(Verdict::Continue));
    assert!(svm.guest().is_none(), "the guest is gone");
}

/// APM2 15.30.5: the guest's time is scaled, then offset; the host's is not.
#[test]
fn time_stamp_counter() {
    for (ratio, offset, now, expected) in [
        (1_u64 << 32, 0_u64, 1000_u64, 1000_u64),
        (1 << 32, 5, 1000, 1005),
        (1 << 31, 5, 1000, 505),
        (3 << 32, 0_u64.wrapping_sub(1), 1000, 2999),
        ((1 << 40) - 1, 0, u64::MAX, 0xffff_fffe_ffff_ff00),
    ] {
        let (mut core, mut ground) = guest(0, Intercepts::empty());
        set(&mut ground, Field::TscOffset, offset);
        let mut svm = unit();
        svm.wrmsr(&mut core, crate::msr::TSC_RATIO, ratio).unwrap().unwrap();
        assert_eq!(svm.tsc(&ground, now), now);
        enter(&mut svm, &mut core, &mut ground);
        assert_eq!(svm.tsc(&ground, now), expected, "{ratio:#x} {offset:#x} {now}");
    }
}
