//! What single controls bring: VMCS shadowing, VM functions, #VE, page-modification logging, TSC, TPR shadow, CET and PKRS
//! state, MSR areas (SDM 3C 24.6, 25.3, 25.5, 27.4, 27.6, 28.3, 29.3).

use crate::bench::{AT, Bench, EPT, MSR_AREA, MSR_BITMAPS, OTHER, VMCS, VMXON, whole};
use cpu::core::Activity;
use cpu::virt::{
    ControlRegister, FirstStage, Movement, SecondStage, StageFault, StageFaultKind, StagePurpose, Trap, Verdict, Virt,
    VirtDone, VirtInstruction, VirtTarget,
};
use cpu::{Fault, Gpr};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::{Gpa, Gva, Hpa};
use vmx::checks::Draft;
use vmx::controls::{EntryControls, ExitControls, PrimaryProc, SecondaryProc};
use vmx::msr::{self, MsrRule};
use vmx::vmcs::Region;
use vmx::{ExitReason, Field};

fn guest(write: impl FnOnce(&mut Draft<'_>)) -> Bench {
    whole().run_with(write)
}

fn run(bench: &mut Bench, instruction: VirtInstruction) -> Result<VirtDone, Fault> {
    bench.vmx.instruction(&mut bench.core, &mut bench.ground, &instruction, AT)
}

const EXITED: Result<VirtDone, Fault> = Ok(VirtDone::Moved(Movement::Exited));

fn vmread(field: u64) -> VirtInstruction {
    VirtInstruction::Vmread { field, target: VirtTarget::Register(Gpr::Rax) }
}

/// A guest with a shadow VMCS; GUEST_RIP may be read and written, GUEST_RSP neither.
fn shadowing() -> Bench {
    let mut bench = whole();
    let revision = bench.vmx.capabilities().revision;
    bench.ground.mem.write_u32(VMXON, revision);
    let (read, write, shadow) = (MSR_BITMAPS, MSR_AREA, OTHER);
    bench.ground.mem.write_u32(shadow, revision | 1 << 31);
    for bitmap in [read, write] {
        let encoding = u64::from(Field::GuestRsp.encoding());
        bench.ground.mem.write(bitmap.offset(encoding / 8), 1 << (encoding % 8), 1);
    }
    bench.run_with(|draft| {
        draft.secondary(SecondaryProc::VMCS_SHADOWING);
        draft.set_all(&[(Field::VmreadBitmap, read.0), (Field::VmwriteBitmap, write.0)]);
        draft.set_all(&[(Field::VmcsLinkPointer, shadow.0), (Field::EptPointer, EPT.0 | 0x5e)]);
    })
}

/// SDM 3C 25.1.3 and 30.3 VMREAD, VMWRITE: the bitmap, encodings beyond it, privilege, and what is accessed.
#[test]
fn vmcs_shadowing() {
    let rip = u64::from(Field::GuestRip.encoding());
    let mut bench = shadowing();
    assert_eq!(run(&mut bench, VirtInstruction::Vmwrite { field: rip, value: 0x1234 }), Ok(VirtDone::Next));
    assert_eq!(run(&mut bench, vmread(rip)), Ok(VirtDone::Next));
    assert_eq!((bench.core.gpr(Gpr::Rax), Region(OTHER).get(&bench.ground, Field::GuestRip)), (0x1234, 0x1234));
    assert_eq!(bench.get(Field::GuestRip), 0x40_0000, "the current VMCS is not touched");
    assert_eq!(run(&mut bench, vmread(0x3ffe)), Ok(VirtDone::Next));
    assert!(bench.core.rflags.contains(Rflags::ZF));
    assert_eq!(Region(OTHER).get(&bench.ground, Field::InstructionError), 12);
    for field in [u64::from(Field::GuestRsp.encoding()), 1 << 15 | rip, 1 << 40] {
        let mut bench = shadowing();
        assert_eq!(run(&mut bench, vmread(field)), EXITED, "{field:#x}");
        assert_eq!(bench.get(Field::ExitReason), 23);
        let mut bench = shadowing();
        assert_eq!(run(&mut bench, VirtInstruction::Vmwrite { field, value: 0 }), EXITED, "{field:#x}");
        assert_eq!(bench.get(Field::ExitReason), 25);
    }
    bench.core.segments.ss.rights.0 |= 3 << 5;
    assert_eq!(run(&mut bench, vmread(rip)), Err(Exception::gp0().into()));
    let mut unlinked = guest(|draft| {
        draft.secondary(SecondaryProc::VMCS_SHADOWING);
        draft.set_all(&[(Field::VmreadBitmap, MSR_BITMAPS.0), (Field::VmwriteBitmap, MSR_BITMAPS.0)]);
    });
    assert_eq!(run(&mut unlinked, vmread(rip)), Ok(VirtDone::Next));
    assert!(unlinked.core.rflags.contains(Rflags::CF), "VMfailInvalid");
    assert_eq!(run(&mut guest(|_| {}), vmread(rip)), EXITED, "without shadowing");
}

/// SDM 3C 25.5.6: #UD, exit, or the switch; the list's entries are checked as VM-entry checks the EPTP.
#[test]
fn vm_functions() {
    let list = MSR_AREA;
    let start = guest(|draft| {
        draft.secondary(SecondaryProc::ENABLE_VM_FUNCTIONS | SecondaryProc::EPT_VIOLATION_VE);
        draft.set_all(&[(Field::VmFunctionControls, 1), (Field::EptpListAddress, list.0)]);
        draft.set(Field::VeInformationAddress, MSR_BITMAPS.0);
        draft.ground.mem.write_u64(list.offset(8 * 5), 0xb000 | 0x1e);
        draft.ground.mem.write_u64(list.offset(8 * 6), 0xb000 | 0x1f);
    });
    let cases = [
        (0, 5, Ok(VirtDone::Next)),
        (0, 6, EXITED),
        (0, 7, EXITED),
        (0, 512, EXITED),
        (1, 5, EXITED),
        (63, 5, EXITED),
        (64, 5, Err(Exception::ud().into())),
    ];
    for (function, index, expected) in cases {
        let mut bench = start.clone();
        bench.core.set_gpr(Gpr::Rax, function);
        bench.core.set_gpr(Gpr::Rcx, index);
        let done = run(&mut bench, VirtInstruction::Vmfunc);
        assert_eq!(done, expected, "{function} {index}");
        if done == Ok(VirtDone::Next) {
            let regime = bench.vmx.regime(&bench.core);
            assert_eq!(regime.tag.ept_root, Some(Hpa(0xb000)));
            assert!(matches!(regime.second, SecondStage::Ept { eptp: 0xb01e, .. }));
            assert_eq!((bench.get(Field::EptPointer), bench.get(Field::EptpIndex)), (0xb01e, 5));
        } else if done == EXITED {
            assert_eq!(bench.get(Field::ExitReason), u64::from(ExitReason::Vmfunc.number()));
        }
    }
    for mut bench in [whole(), guest(|_| {})] {
        assert_eq!(run(&mut bench, VirtInstruction::Vmfunc), Err(Exception::ud().into()));
    }
}

fn violation(convertible: bool) -> Trap {
    Trap::Stage(StageFault {
        gpa: Gpa(0xdead_b000),
        gva: Some(Gva(0x7777)),
        access: Access::new(AccessKind::Write, Privilege::User),
        purpose: StagePurpose::Final,
        first: Some(FirstStage::USER | FirstStage::EXECUTE_DISABLED),
        convertible,
        kind: StageFaultKind::EptViolation { allowed: 0b1001 },
    })
}

/// SDM 3C table 27-7 bits 14:13: a shadow-stack access, and bit 60 of the entry that maps the page.
#[test]
fn shadow_stack_violations() {
    for (shadow_stack, allowed, expected) in [(false, 1, 0), (true, 1, 1 << 13), (true, 0b1_0001, 3 << 13)] {
        let mut bench = guest(|_| {});
        let Trap::Stage(fault) = violation(false) else { unreachable!("a violation") };
        let access = Access { shadow_stack, ..fault.access };
        bench.trap(Trap::Stage(StageFault { access, kind: StageFaultKind::EptViolation { allowed }, ..fault }));
        assert_eq!(bench.get(Field::ExitQualification) & (0xf << 13 | 0x78), expected | 1 << 3, "{allowed:#b}");
    }
}

/// SDM 3C 25.5.7: every condition of the conversion, what the area gets, and that a busy area converts no more.
#[test]
fn virtualization_exceptions() {
    let area = MSR_BITMAPS;
    let start = guest(|draft| {
        draft.secondary(SecondaryProc::EPT_VIOLATION_VE);
        draft.set_all(&[(Field::VeInformationAddress, area.0), (Field::EptpIndex, 9)]);
    });
    let mut bench = start.clone();
    let raised = Verdict::Raise(Exception::plain(Vector::Virtualization));
    assert_eq!(bench.trap(violation(true)), raised);
    let qualification = 0b010 | 0b001 << 3 | 0b11 << 7 | 0b101 << 9;
    assert_eq!(bench.ground.mem.read_u32(area), 48);
    assert_eq!(bench.ground.mem.read_u32(area.offset(4)), 0xffff_ffff);
    let quadwords = [8, 16, 24, 32].map(|offset| bench.ground.mem.read_u64(area.offset(offset)));
    assert_eq!(quadwords, [qualification, 0x7777, 0xdead_b000, 9]);
    assert_eq!(bench.trap(violation(true)), Verdict::Exited, "busy");
    assert_eq!(bench.get(Field::ExitQualification), qualification);
    let delivering = cpu::virt::Delivery::of(&Exception::gp0());
    let spoilers: [fn(&mut Bench); 2] = [
        |b| b.core.cr0.remove(sim_core::arch::control::Cr0::PE),
        |b| b.core.delivering = Some(cpu::virt::Delivery::of(&Exception::gp0())),
    ];
    for spoil in spoilers {
        let mut bench = start.clone();
        spoil(&mut bench);
        assert_eq!(bench.trap(violation(true)), Verdict::Exited);
    }
    assert_eq!(delivering.vector, 13);
    assert_eq!(start.clone().trap(violation(false)), Verdict::Exited, "bit 63 of the entry");
    assert_eq!(guest(|_| {}).trap(violation(true)), Verdict::Exited, "without the control");
}

/// SDM 3C table 27-7: bits 6 and 11:9 by what the processor has.
#[test]
fn advanced_information() {
    let mode_based = guest(|draft| draft.secondary(SecondaryProc::MODE_BASED_EXECUTE_CONTROL));
    for (mut bench, bit6) in [(mode_based, 1), (guest(|_| {}), 0)] {
        bench.trap(violation(false));
        assert_eq!(bench.get(Field::ExitQualification), 0b010 | (0b001 | bit6 << 3) << 3 | 0b11 << 7 | 0b101 << 9);
    }
    let mut lean = crate::bench::running();
    lean.trap(violation(false));
    assert_eq!(lean.get(Field::ExitQualification), 0b010 | 0b001 << 3 | 0b11 << 7);
}

/// SDM 3C 28.3.6: the walker's view of the log, and the exit when it is full.
#[test]
fn page_modification_log() {
    let mut bench = guest(|draft| {
        draft.secondary(SecondaryProc::ENABLE_PML);
        draft.set_all(&[(Field::PmlAddress, MSR_AREA.0), (Field::PmlIndex, 511)]);
    });
    let SecondStage::Ept { controls, .. } = bench.vmx.regime(&bench.core).second else { panic!("no EPT") };
    let log = controls.log.unwrap();
    assert_eq!((log.log, bench.ground.mem.read(log.index, 2)), (MSR_AREA, 511));
    bench.ground.mem.write(log.index, 510, 2);
    assert_eq!(bench.get(Field::PmlIndex), 510);
    let Trap::Stage(fault) = violation(false) else { panic!("not a stage fault") };
    bench.trap(Trap::Stage(StageFault { kind: StageFaultKind::LogFull, ..fault }));
    assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitQualification)), (62, 0));
}

/// SDM 3C 24.6.5, 25.3 RDTSC: offset alone, and multiplied by the multiplier over 2^48.
#[test]
fn tsc() {
    let offset = guest(|draft| {
        draft.primary(PrimaryProc::USE_TSC_OFFSETTING);
        draft.set(Field::TscOffset, 0u64.wrapping_sub(100));
    });
    assert_eq!(offset.vmx.tsc(&offset.ground, 1000), 900);
    let scaled = guest(|draft| {
        draft.primary(PrimaryProc::USE_TSC_OFFSETTING);
        draft.secondary(SecondaryProc::USE_TSC_SCALING);
        draft.set_all(&[(Field::TscOffset, 7), (Field::TscMultiplier, 3 << 47)]);
    });
    assert_eq!(scaled.vmx.tsc(&scaled.ground, 1000), 1507);
    assert_eq!(whole().vmx.tsc(&whole().ground, 1000), 1000);
    let multiplier = guest(|draft| {
        draft.secondary(SecondaryProc::USE_TSC_SCALING);
        draft.set(Field::TscMultiplier, 1 << 49);
    });
    assert_eq!(multiplier.vmx.tsc(&multiplier.ground, 1000), 1000, "no offsetting, no scaling");
}

/// SDM 3C 29.3, 29.1.2: MOV CR8 reads and writes the virtual TPR; below the threshold is a trap.
#[test]
fn tpr_shadow() {
    let mut cases = 0;
    for (threshold, value) in (0..16_u64).flat_map(|threshold| (0..16_u64).map(move |value| (threshold, value))) {
        let mut bench = guest(|draft| {
            draft.tpr_shadow();
            draft.set_all(&[(Field::VirtualApicAddress, MSR_BITMAPS.0), (Field::TprThreshold, threshold)]);
            draft.ground.mem.write(MSR_BITMAPS.offset(0x80), 0xf5, 1);
        });
        assert_eq!(bench.cr_read(ControlRegister::Cr8, 3), 15);
        let write = Trap::CrWrite { register: ControlRegister::Cr8, gpr: Gpr::Rax, value };
        assert_eq!(bench.trap(write), Verdict::Continue);
        assert_eq!(bench.vmx.cr_write(&bench.ground, ControlRegister::Cr8, 3, value), 3);
        assert_eq!(bench.ground.mem.read_u32(MSR_BITMAPS.offset(0x80)), (value as u32) << 4);
        assert_eq!(bench.cr_read(ControlRegister::Cr8, 3), value);
        let below = value < threshold;
        assert_eq!(bench.exit_of(Trap::Retired).map(|(reason, _)| reason), below.then_some(43));
        assert_eq!(bench.vmx.attention(&bench.core), below);
        cases += 1;
    }
    println!("{cases} of TPR threshold and value");
}

/// SDM 3C 26.3.2.1, 27.3.1, 27.5.1: CET and PKRS state, and IA32_DEBUGCTL, are loaded, saved and loaded again.
#[test]
fn cet_pkrs_and_debug_state() {
    let mut bench = guest(|draft| {
        draft.set_all(&[(Field::GuestSCet, 1), (Field::GuestSsp, 0x1000), (Field::GuestInterruptSspTable, 0x2000)]);
        draft.set_all(&[(Field::GuestPkrs, 0x55), (Field::GuestDebugctl, 1)]);
        draft.set_all(&[(Field::HostSCet, 4), (Field::HostSsp, 0x3000), (Field::HostInterruptSspTable, 0x4000)]);
        draft.set(Field::HostPkrs, 0xaa);
    });
    let state = |bench: &Bench| {
        let core = &bench.core;
        (core.msrs.s_cet, core.ssp, core.msrs.interrupt_ssp_table, core.msrs.pkrs, core.msrs.debugctl)
    };
    assert_eq!(state(&bench), (1, 0x1000, 0x2000, 0x55, 1));
    bench.core.ssp = 0x1008;
    bench.core.msrs.debugctl = 2;
    bench.trap(Trap::Cpuid);
    assert_eq!(state(&bench), (4, 0x3000, 0x4000, 0xaa, 0));
    assert_eq!((bench.get(Field::GuestSsp), bench.get(Field::GuestDebugctl)), (0x1008, 2));
    let mut kept = whole();
    let exit = u64::from((ExitControls::LOAD_CET_STATE | ExitControls::LOAD_PKRS).bits());
    let entry = u64::from((EntryControls::LOAD_CET_STATE | EntryControls::LOAD_PKRS).bits());
    kept.change(Field::ExitControls, 0, exit);
    kept.change(Field::EntryControls, 0, entry);
    kept.core.ssp = 0x99;
    kept.launch();
    kept.trap(Trap::Cpuid);
    assert_eq!((kept.core.ssp, kept.get(Field::GuestSsp)), (0x99, 0x99));
}

fn write_area(bench: &mut Bench, entries: &[(u64, u64)]) {
    for (number, (index, value)) in entries.iter().enumerate() {
        let at = Hpa(MSR_AREA.0 + 16 * number as u64);
        bench.ground.mem.write_u64(at, *index);
        bench.ground.mem.write_u64(at.offset(8), *value);
    }
}

/// SDM 3C 27.4, 27.6: what is stored and loaded, and a VMX abort for each rule.
#[test]
fn exit_msr_areas() {
    let mut bench = guest(|draft| {
        draft.set_all(&[(Field::ExitMsrStoreCount, 3), (Field::ExitMsrStoreAddress, MSR_AREA.0)]);
        draft.set_all(&[(Field::ExitMsrLoadCount, 1), (Field::ExitMsrLoadAddress, MSR_AREA.0)]);
    });
    write_area(&mut bench, &[(0x174, 0), (0xc000_0080, 0), (0x10, 0)]);
    bench.core.msrs.sysenter_cs = 0x1234;
    let efer = bench.core.efer.bits();
    bench.trap(Trap::Cpuid);
    let stored = [0, 1, 2].map(|number| bench.ground.mem.read_u64(MSR_AREA.offset(16 * number + 8)));
    assert_eq!(stored[..2], [0x1234, efer]);
    assert!(stored[2] > 0, "the TSC");
    assert_eq!(bench.core.msrs.sysenter_cs, 0x1234, "loaded from the same area");
    let areas: [(&[MsrRule], Field, Field, u32); 2] = [
        (msr::EXIT_STORE, Field::ExitMsrStoreCount, Field::ExitMsrStoreAddress, 1),
        (msr::EXIT_LOAD, Field::ExitMsrLoadCount, Field::ExitMsrLoadAddress, 4),
    ];
    let mut cases = 0;
    for (rules, count, address, indicator) in areas {
        for rule in rules {
            let mut bench = guest(|draft| draft.set_all(&[(count, 2), (address, MSR_AREA.0)]));
            write_area(&mut bench, &[(0x174, 8), (rule.broken.index, rule.broken.value)]);
            assert_eq!(bench.trap(Trap::Cpuid), Verdict::Exited);
            assert_eq!(Region(VMCS).abort(&bench.ground), indicator, "{}", rule.name);
            assert_eq!(bench.core.activity, Activity::Shutdown);
            cases += 1;
        }
    }
    println!("{cases} of VMX aborts for MSRs");
}
