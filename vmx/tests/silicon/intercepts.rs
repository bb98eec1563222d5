//! What leaves a guest, and with which qualification (SDM 3C chapter 25, 27.2.1).

use crate::bench::{AT, Bench, EPT, IO_A, IO_B, MSR_BITMAPS, ready, running};
use cpu::Gpr;
use cpu::virt::{ControlRegister, StageFault, StageFaultKind, StagePurpose, Trap, Verdict, Virt};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, PageFaultError, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::{Gpa, Gva, Hpa};
use vmx::controls::{PrimaryProc, SecondaryProc};
use vmx::{ExitReason, Field};

/// A guest that was entered with other controls.
fn running_with(field: Field, set: u32, clear: u32) -> Bench {
    let mut bench = ready();
    bench.change(field, set.into(), clear.into());
    bench.launch();
    bench
}

fn reason(reason: ExitReason) -> u64 {
    reason.number().into()
}

/// SDM 3C 24.6.6, 25.1.3, 25.3: every bit of CR0 and CR4, every value of mask, shadow, register and operand.
#[test]
fn cr_masks_and_shadows() {
    let registers = [
        (ControlRegister::Cr0, Field::Cr0GuestHostMask, Field::Cr0ReadShadow),
        (ControlRegister::Cr4, Field::Cr4GuestHostMask, Field::Cr4ReadShadow),
    ];
    let mut bench = running();
    let mut cases = 0;
    for (register, mask_field, shadow_field) in registers {
        for (bit, choice) in (0..64).flat_map(|bit| (0..16_u64).map(move |choice| (bit, choice))) {
            let [mask, shadow, actual, operand] = [0, 1, 2, 3].map(|which| choice >> which & 1);
            bench.set(mask_field, mask << bit);
            bench.set(shadow_field, shadow << bit);
            let read = if mask == 1 { shadow } else { actual };
            assert_eq!(bench.cr_read(register, actual << bit), read << bit);
            let written = if mask == 1 { actual } else { operand };
            let wrote = bench.vmx.cr_write(&bench.ground, register, actual << bit, operand << bit);
            assert_eq!(wrote, written << bit);
            let exits = mask == 1 && operand != shadow;
            let trap = Trap::CrWrite { register, gpr: Gpr::Rdx, value: operand << bit };
            let qualification = u64::from(register.number()) | 2 << 8;
            let expected = exits.then_some((reason(ExitReason::CrAccess), qualification));
            assert_eq!(bench.exit_of(trap), expected, "{register:?} bit {bit} {choice:#06b}");
            cases += 1;
        }
    }
    println!("{cases} of CR mask, shadow, register, operand");
}

/// SDM 3C 25.1.3 MOV to CR3: exits unless the value is one of the first CR3-target-count values.
#[test]
fn cr3_targets() {
    let bench = running();
    let write = |value| Trap::CrWrite { register: ControlRegister::Cr3, gpr: Gpr::Rax, value };
    assert_eq!(bench.exit_of(write(9)), None, "CR3-load exiting is 0");
    let mut bench = running_with(Field::PrimaryControls, PrimaryProc::CR3_LOAD_EXITING.bits(), 0);
    for (field, value) in Field::CR3_TARGETS.into_iter().zip(10..) {
        bench.set(field, value);
    }
    let mut cases = 0;
    for (count, value) in (0..=4).flat_map(|count| (9..=14).map(move |value| (count, value))) {
        bench.set(Field::Cr3TargetCount, count);
        let exits = !(10..10 + count).contains(&value);
        assert_eq!(bench.exit_of(write(value)), exits.then_some((reason(ExitReason::CrAccess), 3)), "{count} {value}");
        cases += 1;
    }
    println!("{cases} of CR3-target count and value");
}

/// SDM 3C 25.1.2, 25.1.3: a control that alone decides, the trap, the reason and the qualification.
#[test]
fn instructions_of_one_control() {
    let primary = |control: PrimaryProc| (Field::PrimaryControls, control.bits());
    let cr8 = ControlRegister::Cr8;
    let cases: [(_, Trap, ExitReason, u64); 9] = [
        (primary(PrimaryProc::HLT_EXITING), Trap::Hlt, ExitReason::Hlt, 0),
        (primary(PrimaryProc::INVLPG_EXITING), Trap::Invlpg(Gva(0x1234_5678)), ExitReason::Invlpg, 0x1234_5678),
        (primary(PrimaryProc::INVLPG_EXITING), Trap::Invpcid, ExitReason::Invpcid, 0),
        (primary(PrimaryProc::RDTSC_EXITING), Trap::Rdtsc, ExitReason::Rdtsc, 0),
        (primary(PrimaryProc::PAUSE_EXITING), Trap::Pause, ExitReason::Pause, 0),
        ((Field::SecondaryControls, SecondaryProc::WBINVD_EXITING.bits()), Trap::Wbinvd, ExitReason::Wbinvd, 0),
        (
            primary(PrimaryProc::CR3_STORE_EXITING),
            Trap::CrRead { register: ControlRegister::Cr3, gpr: Gpr::R9 },
            ExitReason::CrAccess,
            3 | 1 << 4 | 9 << 8,
        ),
        (
            primary(PrimaryProc::CR8_STORE_EXITING),
            Trap::CrRead { register: cr8, gpr: Gpr::Rcx },
            ExitReason::CrAccess,
            8 | 1 << 4 | 1 << 8,
        ),
        (
            primary(PrimaryProc::CR8_LOAD_EXITING),
            Trap::CrWrite { register: cr8, gpr: Gpr::Rcx, value: 3 },
            ExitReason::CrAccess,
            8 | 1 << 8,
        ),
    ];
    for ((field, bit), trap, exit, qualification) in cases {
        let bench = running_with(field, bit, 0);
        assert_eq!(bench.exit_of(trap), Some((reason(exit), qualification)), "{trap:?}");
        let bench = running_with(field, 0, bit);
        assert_eq!(bench.exit_of(trap), None, "{trap:?}");
    }
    let bench = running();
    assert_eq!(bench.exit_of(Trap::Cpuid), Some((reason(ExitReason::Cpuid), 0)));
    assert_eq!(bench.exit_of(Trap::TripleFault), Some((reason(ExitReason::TripleFault), 0)));
    for register in [ControlRegister::Cr0, ControlRegister::Cr2, ControlRegister::Cr4] {
        assert_eq!(bench.exit_of(Trap::CrRead { register, gpr: Gpr::Rax }), None);
    }
    let mut bench = running_with(Field::SecondaryControls, 0, SecondaryProc::ENABLE_INVPCID.bits());
    assert_eq!(bench.trap(Trap::Invpcid), Verdict::Raise(Exception::ud()));
    println!("{} of instructions of one control", cases.len());
}

/// SDM 3C 25.1.3 CLTS: exits if mask and shadow both have TS.
#[test]
fn clts() {
    let mut bench = running();
    let ts = Cr0::TS.bits();
    for (mask, shadow) in [(0, 0), (0, ts), (ts, 0), (ts, ts)] {
        bench.set_all(&[(Field::Cr0GuestHostMask, mask), (Field::Cr0ReadShadow, shadow)]);
        let exits = mask & shadow != 0;
        assert_eq!(bench.exit_of(Trap::Clts), exits.then_some((reason(ExitReason::CrAccess), 2 << 4)));
    }
}

/// SDM 3C 25.1.3: the I/O bitmaps override "unconditional I/O exiting"; an access that wraps around exits.
#[test]
fn io() {
    let mut cases = 0;
    let ports = [0, 1, 0x7ffd, 0x7fff, 0x8000, 0xfffc, 0xfffd, 0xffff_u16];
    for (port, bytes) in ports.into_iter().flat_map(|port| [1, 2, 4].map(|bytes| (port, bytes))) {
        for marked in (0..=5_u32).map(|offset| (u32::from(port) + offset).wrapping_sub(1)) {
            let mut bench = running();
            if marked <= 0xffff {
                let bitmap = if marked < 0x8000 { IO_A } else { IO_B };
                let at = bitmap.offset(u64::from(marked & 0x7fff) / 8);
                bench.ground.mem.write(at, 1 << (marked % 8), 1);
            }
            let first = u32::from(port);
            let last = first + u32::from(bytes) - 1;
            let exits = last > 0xffff || (first..=last).contains(&marked);
            let qualification = u64::from(bytes - 1) | 1 << 3 | u64::from(port) << 16;
            let trap = Trap::Io { port, bytes, input: true, string: None };
            assert_eq!(bench.exit_of(trap), exits.then_some((reason(ExitReason::Io), qualification)), "{port:#x}");
            cases += 1;
        }
    }
    let (bitmaps, always) = (PrimaryProc::USE_IO_BITMAPS, PrimaryProc::UNCONDITIONAL_IO_EXITING);
    let out = Trap::Io { port: 0x80, bytes: 1, input: false, string: None };
    for (set, exits) in [(bitmaps, false), (bitmaps | always, false), (always, true), (PrimaryProc::empty(), false)] {
        let bench = running_with(Field::PrimaryControls, set.bits(), (bitmaps | always).bits());
        assert_eq!(bench.exit_of(out), exits.then_some((reason(ExitReason::Io), 0x80 << 16)), "{set:?}");
        cases += 1;
    }
    println!("{cases} of I/O");
}

/// SDM 3C 24.6.9: the four MSR bitmaps; MSRs outside their ranges exit, and all do without bitmaps.
#[test]
fn msr_bitmaps() {
    let places = [(0_u32, 0_u64, 0_u64), (0x1fff, 1023, 7), (0xc000_0000, 1024, 0), (0xc000_1fff, 2047, 7)];
    let mut cases = 0;
    for (index, byte, bit) in places {
        for marks in 0..4_u64 {
            let mut bench = running();
            let (read, write) = (marks & 1, marks >> 1);
            bench.ground.mem.write(MSR_BITMAPS.offset(byte), read << bit, 1);
            bench.ground.mem.write(MSR_BITMAPS.offset(byte + 2048), write << bit, 1);
            let expected = |mark, exit| (mark == 1).then_some((reason(exit), 0));
            assert_eq!(bench.exit_of(Trap::Rdmsr(index)), expected(read, ExitReason::Rdmsr), "{index:#x}");
            assert_eq!(bench.exit_of(Trap::Wrmsr(index, 0)), expected(write, ExitReason::Wrmsr), "{index:#x}");
            cases += 2;
        }
    }
    let mut bench = running();
    for index in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xffff_ffff] {
        assert_eq!(bench.exit_of(Trap::Rdmsr(index)), Some((reason(ExitReason::Rdmsr), 0)), "{index:#x}");
        cases += 1;
    }
    bench = running_with(Field::PrimaryControls, 0, PrimaryProc::USE_MSR_BITMAPS.bits());
    assert_eq!(bench.exit_of(Trap::Wrmsr(0x10, 0)), Some((reason(ExitReason::Wrmsr), 0)));
    println!("{} of MSR bitmaps", cases + 1);
}

/// SDM 3C 24.6.3: every vector by its bit; interruption information per table 24-17.
#[test]
fn exception_bitmap() {
    for vector in Vector::ALL {
        let exception = Exception { vector, error: vector.has_error_code().then_some(0x18), cr2: None };
        let mut bench = running();
        bench.set(Field::ExceptionBitmap, !(1 << vector.number()));
        let is_fault = vector == Vector::PageFault;
        bench.set(Field::PageFaultErrorMatch, if is_fault { 0 } else { 1 });
        assert_eq!(bench.exit_of(Trap::Exception(exception)), None, "{vector:?}");
        bench.set(Field::ExceptionBitmap, 1 << vector.number());
        bench.core.pending_debug = 1 << 14 | 1 << 12 | 0b10;
        bench.trap(Trap::Exception(exception));
        let software = matches!(vector, Vector::Breakpoint | Vector::Overflow);
        let kind = if software { 6 } else { 3 };
        let error = u64::from(vector.has_error_code());
        let information = 1 << 31 | error << 11 | kind << 8 | u64::from(vector.number());
        let debug = if vector == Vector::Debug { 1 << 14 | 0b10 } else { 0 };
        assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitQualification)), (0, debug));
        assert_eq!(bench.get(Field::ExitInterruptionInformation), information, "{vector:?}");
        assert_eq!(bench.get(Field::ExitInterruptionErrorCode), error * 0x18);
        assert_eq!(bench.get(Field::ExitInstructionLength), if software { AT.length.into() } else { 0 });
        let resumes = !software && !matches!(vector, Vector::DoubleFault | Vector::Debug);
        assert_eq!(bench.get(Field::GuestRflags) & Rflags::RF.bits() != 0, resumes, "{vector:?}");
    }
    println!("{} vectors", Vector::ALL.len());
}

/// SDM 3C 25.2: a page fault exits if its error code matches and bit 14 is 1, or does not match and bit 14 is 0.
#[test]
fn page_fault_mask_and_match() {
    let mut cases = 0;
    let mut bench = running();
    for choice in 0..1024_u64 {
        let [error, mask, matching] = [0, 3, 6].map(|shift| choice >> shift & 7);
        let bit = choice >> 9;
        bench.set_all(&[(Field::PageFaultErrorMask, mask), (Field::PageFaultErrorMatch, matching)]);
        bench.set(Field::ExceptionBitmap, bit << 14);
        let exits = (error & mask == matching) == (bit == 1);
        let error = PageFaultError::from_bits_retain(error as u32);
        let trap = Trap::Exception(Exception::page_fault(Gva(0xdead_0000), error));
        assert_eq!(bench.exit_of(trap), exits.then_some((0, 0xdead_0000)), "{choice:#012b}");
        cases += 1;
    }
    println!("{cases} of page-fault error code, mask, match, bitmap");
}

fn stage(access: AccessKind, purpose: StagePurpose, gva: Option<Gva>, kind: StageFaultKind) -> Trap {
    let access = Access::new(access, Privilege::User);
    Trap::Stage(StageFault { gpa: Gpa(0x1234_5678), gva, access, purpose, first: None, convertible: false, kind })
}

/// SDM 3C table 27-7, all of bits 8:7 and 5:0.
#[test]
fn ept_violation_qualification() {
    let mut cases = 0;
    for flags in [0, 1 << 6] {
        let mut start = ready();
        start.set(Field::EptPointer, EPT.0 | 0x1e | flags);
        start.launch();
        for (kind, access) in AccessKind::ALL.into_iter().zip([1_u64, 2, 4]) {
            for (purpose, gva, valid) in [
                (StagePurpose::Final, Some(Gva(0x7000)), 0x180),
                (StagePurpose::Table, Some(Gva(0x7000)), 0x80),
                (StagePurpose::Table, None, 0),
            ] {
                for allowed in 0..8_u8 {
                    let mut bench = start.clone();
                    bench.trap(stage(kind, purpose, gva, StageFaultKind::EptViolation { allowed }));
                    let both = flags != 0 && purpose == StagePurpose::Table && kind == AccessKind::Write;
                    let access = if both { 3 } else { access };
                    assert_eq!(bench.get(Field::ExitReason), 48);
                    assert_eq!(bench.get(Field::ExitQualification), access | u64::from(allowed) << 3 | valid);
                    assert_eq!(bench.get(Field::GuestPhysicalAddress), 0x1234_5678);
                    assert_eq!(bench.get(Field::GuestLinearAddress), gva.map_or(0, |gva| gva.0));
                    cases += 1;
                }
            }
        }
    }
    let mut bench = running();
    bench.trap(stage(AccessKind::Read, StagePurpose::Final, Some(Gva(0)), StageFaultKind::EptMisconfiguration));
    assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitQualification)), (49, 0));
    assert_eq!(bench.get(Field::GuestPhysicalAddress), 0x1234_5678);
    println!("{} of EPT violation and misconfiguration", cases + 1);
}

/// Outside non-root operation nothing is intercepted, and control registers are what they are.
#[test]
fn the_host_is_not_intercepted() {
    let traps = [
        Trap::Cpuid,
        Trap::Hlt,
        Trap::TripleFault,
        Trap::Exception(Exception::gp0()),
        Trap::Io { port: 0, bytes: 4, input: true, string: None },
        Trap::Rdmsr(0x9999),
        Trap::CrWrite { register: ControlRegister::Cr3, gpr: Gpr::Rax, value: 0 },
    ];
    let benches: [fn() -> Bench; 2] = [crate::bench::off, ready];
    for make in benches {
        let mut bench = make();
        for trap in traps {
            assert_eq!(bench.exit_of(trap), None, "{trap:?}");
        }
        bench.ground.mem.write_u64(Hpa(0x2000), 0);
        assert_eq!(bench.cr_read(ControlRegister::Cr0, 0x1234), 0x1234);
        assert_eq!(bench.vmx.regime(&bench.core), Default::default());
    }
}
