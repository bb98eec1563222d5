//! VMCB clean bits (APM2 15.15): a set bit makes VMRUN take its group from the processor's copy, a clear bit from memory.

use super::{enter, field, set};
use crate::capability::{Capabilities, Features};
use crate::entry::Entered;
use crate::intercept::Intercepts;
use crate::interrupts::VirtualFlags;
use crate::testing::{self, HSAVE, VMCB, machine, unit};
use crate::unit::Svm;
use crate::vmcb::{self, CleanBits, Field, SegmentField, TableField};
use cpu::virt::{At, SecondStage, Trap, Verdict};
use cpu::{Core, Virt};
use sim_core::Ground;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::{Segment, TableRegister};

/// A change of one thing in a VMCB, and how it shows once the guest runs.
struct Change {
    group: CleanBits,
    name: &'static str,
    make: fn(&mut Ground),
    shows: fn(&Svm, &Core) -> u64,
}

fn running(svm: &Svm) -> &crate::unit::Running {
    svm.running.as_ref().unwrap()
}

fn ncr3(svm: &Svm) -> u64 {
    match running(svm).controls.second {
        SecondStage::Npt { ncr3, .. } => ncr3,
        _ => 0,
    }
}

fn move_segment(ground: &mut Ground, field: SegmentField) {
    let old = vmcb::read_segment(&ground.mem, VMCB, field);
    vmcb::write_segment(&mut ground.mem, VMCB, field, &Segment { selector: 0x70, ..old });
}

macro_rules! changes {
    ($($group:ident $name:literal $make:expr, $shows:expr;)*) => {
        const CHANGES: &[Change] =
            &[$(Change { group: CleanBits::$group, name: $name, make: $make, shows: $shows },)*];
    };
}

changes! {
    I "CR reads" |g| set(g, Field::InterceptCrReads, 0xff), |s, _| running(s).controls.cr_reads.into();
    I "CR writes" |g| set(g, Field::InterceptCrWrites, 0xff), |s, _| running(s).controls.cr_writes.into();
    I "DR reads" |g| set(g, Field::InterceptDrReads, 0xff), |s, _| running(s).controls.dr_reads.into();
    I "DR writes" |g| set(g, Field::InterceptDrWrites, 0xff), |s, _| running(s).controls.dr_writes.into();
    I "exceptions" |g| set(g, Field::InterceptExceptions, 2), |s, _| running(s).controls.exceptions.into();
    I "words" |g| (Intercepts::VMRUN | Intercepts::HLT | Intercepts::CPUID).write(&mut g.mem, VMCB),
        |s, _| running(s).controls.intercepts.bits() as u64;
    I "PAUSE filter" |g| set(g, Field::PauseFilterCount, 9), |s, _| running(s).controls.pause_count.into();
    I "PAUSE threshold" |g| set(g, Field::PauseFilterThreshold, 9), |s, _| running(s).controls.pause_threshold.into();
    I "TSC offset" |g| set(g, Field::TscOffset, 9), |s, _| running(s).controls.tsc_offset;
    IOPM "IOPM" |g| set(g, Field::IopmBase, 0x3_0000), |s, _| running(s).controls.iopm.0;
    IOPM "MSRPM" |g| set(g, Field::MsrpmBase, 0x3_0000), |s, _| running(s).controls.msrpm.0;
    ASID "ASID" |g| set(g, Field::Asid, 77), |s, _| running(s).controls.asid.into();
    TPR "V_TPR" |g| set(g, Field::VirtualInterrupt, 7), |s, _| running(s).virtual_interrupts.0;
    TPR "V_IRQ" |g| set(g, Field::VirtualInterrupt, VirtualFlags::IRQ.bits()), |s, _| running(s).virtual_interrupts.0;
    NP "N_CR3" |g| set(g, Field::NestedCr3, 0x7000), |s, _| ncr3(s);
    NP "G_PAT" |g| set(g, Field::GuestPat, 0x0606_0606_0606_0606), |_, c| c.msrs.pat;
    CRX "CR0" |g| set(g, Field::Cr0, (Cr0::PE | Cr0::PG | Cr0::WP).bits()), |_, c| c.cr0.bits();
    CRX "CR3" |g| set(g, Field::Cr3, 0x1_8000), |_, c| c.cr3;
    CRX "CR4" |g| set(g, Field::Cr4, (Cr4::PAE | Cr4::PGE).bits()), |_, c| c.cr4.bits();
    CRX "EFER" |g| set(g, Field::Efer, (Efer::SVME | Efer::LME | Efer::LMA | Efer::NXE).bits()), |_, c| c.efer.bits();
    DRX "DR6" |g| set(g, Field::Dr6, 0xffff_0ff1), |_, c| c.dr6;
    DRX "DR7" |g| set(g, Field::Dr7, 0x500), |_, c| c.dr7;
    DT "GDTR" |g| vmcb::write_table(&mut g.mem, VMCB, TableField::Gdtr, TableRegister { base: 1, limit: 2 }),
        |_, c| c.gdtr.base;
    DT "IDTR" |g| vmcb::write_table(&mut g.mem, VMCB, TableField::Idtr, TableRegister { base: 1, limit: 2 }),
        |_, c| u64::from(c.idtr.limit);
    SEG "ES" |g| move_segment(g, SegmentField::Es), |_, c| c.segments.es.selector.into();
    SEG "CS" |g| move_segment(g, SegmentField::Cs), |_, c| c.segments.cs.selector.into();
    SEG "SS" |g| move_segment(g, SegmentField::Ss), |_, c| c.segments.ss.selector.into();
    SEG "DS" |g| move_segment(g, SegmentField::Ds), |_, c| c.segments.ds.selector.into();
    SEG "CPL" |g| set(g, Field::Cpl, 3), |_, c| c.cpl().into();
    CR2 "CR2" |g| set(g, Field::Cr2, 0x9999), |_, c| c.cr2.0;
    ALWAYS "RIP" |g| set(g, Field::Rip, 0x9999), |_, c| c.rip;
    ALWAYS "RSP" |g| set(g, Field::Rsp, 0x9999), |_, c| c.gpr(cpu::Gpr::Rsp);
    ALWAYS "RAX" |g| set(g, Field::Rax, 0x9999), |_, c| c.gpr(cpu::Gpr::Rax);
    ALWAYS "RFLAGS" |g| set(g, Field::Rflags, 0x3), |_, c| c.rflags.bits();
    ALWAYS "interrupt shadow" |g| set(g, Field::InterruptShadow, 1), |_, c| u64::from(c.blocking.bits());
}

fn leave(svm: &mut Svm, core: &mut Core, ground: &mut Ground) {
    assert_eq!(svm.trap(core, ground, &Trap::Hlt, At::of(1)), Ok(Verdict::Exited));
}

/// A machine whose guest has run once.
fn warm(mut svm: Svm) -> (Svm, Core, Ground) {
    let (mut core, mut ground) = machine();
    testing::enable_nested_paging(&mut ground);
    (Intercepts::VMRUN | Intercepts::HLT).write(&mut ground.mem, VMCB);
    enter(&mut svm, &mut core, &mut ground);
    leave(&mut svm, &mut core, &mut ground);
    (svm, core, ground)
}

/// Every change under every clean bit: it is missed exactly when its own bit is set.
#[test]
fn a_change_under_its_clean_bit_is_missed() {
    let mut cases = 0;
    for change in CHANGES {
        for clean in CleanBits::all().iter().chain([CleanBits::empty(), CleanBits::all()]) {
            let (mut svm, mut core, mut ground) = warm(unit());
            let (mut other, mut same, mut fresh) = (svm.clone(), core.clone(), ground.clone());
            enter(&mut other, &mut same, &mut fresh);
            let old = (change.shows)(&other, &same);

            (change.make)(&mut ground);
            set(&mut ground, Field::CleanBits, u64::from(clean.bits()));
            let missed = !change.group.is_empty() && clean.contains(change.group);
            assert_eq!(svm.stale_groups(&ground.mem, VMCB), if missed { change.group } else { CleanBits::empty() });
            enter(&mut svm, &mut core, &mut ground);
            assert_eq!((change.shows)(&svm, &core) == old, missed, "{} under {clean:?}", change.name);
            cases += 1;
        }
    }
    println!("{cases} changes under clean bits");
}

/// What #VMEXIT saves is clean: the guest goes on where it was although every bit is set.
#[test]
fn saved_state_is_clean() {
    let (mut svm, mut core, mut ground) = warm(unit());
    set(&mut ground, Field::CleanBits, u64::from(CleanBits::all().bits()));
    enter(&mut svm, &mut core, &mut ground);
    core.cr3 = 0x1_c000;
    core.cr2 = sim_core::Gva(0x5555);
    core.dr7 = 0x700;
    core.msrs.pat = 0x0404_0404_0404_0404;
    core.segments.ds.selector = 0x68;
    core.gdtr.limit = 0x1f;
    let guest = core.clone();
    leave(&mut svm, &mut core, &mut ground);
    assert_eq!(svm.stale_groups(&ground.mem, VMCB), CleanBits::empty());
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(core, guest);
}

/// The first VMRUN, another VMCB, a processor without the feature and a VMCB that was refused: nothing to reuse.
#[test]
fn without_a_copy_memory_counts() {
    let all = u64::from(CleanBits::all().bits());
    let (mut core, mut ground) = machine();
    set(&mut ground, Field::CleanBits, all);
    let mut svm = unit();
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(core.cr3, 0xb000, "the first VMRUN of a VMCB reads it");

    let features = Features::all() - Features::VMCB_CLEAN;
    let mut without = Svm::new(Capabilities { features, ..Capabilities::default() });
    without.set_hsave(HSAVE);
    let (mut svm, mut core, mut ground) = warm(without);
    set(&mut ground, Field::CleanBits, all);
    set(&mut ground, Field::Cr3, 0x1_8000);
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(core.cr3, 0x1_8000, "a processor without clean bits ignores them");

    let (mut svm, mut core, mut ground) = warm(unit());
    set(&mut ground, Field::Asid, 0);
    assert_eq!(svm.enter(&mut core, &mut ground, VMCB), Ok(Entered::Refused));
    set(&mut ground, Field::CleanBits, all);
    set(&mut ground, Field::Asid, 9);
    set(&mut ground, Field::Cr3, 0x1_8000);
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!((running(&svm).controls.asid, core.cr3), (9, 0x1_8000), "a refused VMRUN leaves no copy");
}

/// Checks look at what VMRUN would load: a bad value under a clean bit is not seen, a good one does not help.
#[test]
fn checks_see_the_copy() {
    let (mut svm, mut core, mut ground) = warm(unit());
    set(&mut ground, Field::CleanBits, u64::from(CleanBits::ASID.bits()));
    set(&mut ground, Field::Asid, 0);
    assert!(svm.explain(&core, &ground, VMCB).is_none());
    enter(&mut svm, &mut core, &mut ground);
    leave(&mut svm, &mut core, &mut ground);
    set(&mut ground, Field::CleanBits, 0);
    assert_eq!(svm.explain(&core, &ground, VMCB).map(|check| check.name), Some("asid-zero"));
    assert_eq!(field(&ground, Field::Asid), 0);
}

/// The copies of many VMCBs: the one used longest ago goes first.
#[test]
fn copies_are_bounded() {
    let (mut svm, mut core, mut ground) = warm(unit());
    let mut page = vec![0; 0x1000];
    ground.mem.read_bytes(VMCB, &mut page);
    for index in 0..17_u64 {
        let other = VMCB.offset(0x1_0000 + 0x1000 * index);
        ground.mem.write_bytes(other, &page);
        assert_eq!(svm.enter(&mut core, &mut ground, other), Ok(Entered::Guest));
        leave(&mut svm, &mut core, &mut ground);
        let held = svm.cache.get(VMCB).is_some();
        assert_eq!(held, index < 15, "after {} other VMCBs", index + 1);
    }
}
