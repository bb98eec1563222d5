//! VM-exits for instructions on a processor with every control: reason, qualification, instruction information and length,
//! with and without the control (SDM 3C 25.1.2, 25.1.3, 25.3, 27.2).

use crate::bench::{AT, Bench, IO_A, whole};
use cpu::Gpr;
use cpu::virt::{
    At, ControlRegister, MemoryOperand, Operands, StringIo, TableInstruction, TaskSwitchSource, Trap, Verdict, Virt,
};
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::Exception;
use sim_core::{Gva, Hpa};
use vmx::controls::{Control, PrimaryProc, SecondaryProc};
use vmx::{ExitReason, Field};

/// `[rbx + rsi*8 + 0x7f]` with a third register, in 64-bit mode.
const MEMORY: MemoryOperand = MemoryOperand {
    base: Some(Gpr::Rbx),
    index: Some(Gpr::Rsi),
    scale: 3,
    segment: 3,
    address_bytes: 8,
    displacement: 0x7f,
};
/// The fields that every table of SDM 3C 27.2.5 has for it.
const FORM: u64 = 3 | 2 << 7 | 3 << 15 | 6 << 18 | 3 << 23;

fn at(operand: Operands) -> At {
    At { operand, ..AT }
}

fn memory(reg: Option<Gpr>, bytes: u8) -> At {
    at(Operands { memory: Some(MEMORY), rm: None, reg, bytes })
}

fn register(rm: Gpr, bytes: u8) -> At {
    at(Operands { memory: None, rm: Some(rm), reg: None, bytes })
}

/// A running guest with one control more.
fn with(control: impl Into<Control>) -> Bench {
    let control = control.into();
    whole().run_with(|draft| match control {
        Control::Primary(bits) => draft.primary(bits),
        Control::Secondary(bits) => draft.secondary(bits),
        other => panic!("{other:?}"),
    })
}

/// Reason, qualification and instruction information.
fn told(bench: &mut Bench, trap: Trap, at: At) -> Option<(u64, u64, u64)> {
    match bench.vmx.trap(&mut bench.core, &mut bench.ground, &trap, at).unwrap() {
        Verdict::Exited => {
            assert_eq!(bench.get(Field::ExitInstructionLength), u64::from(at.length), "{trap:?}");
            Some((
                bench.get(Field::ExitReason),
                bench.get(Field::ExitQualification),
                bench.get(Field::ExitInstructionInformation),
            ))
        }
        Verdict::Continue => None,
        Verdict::Raise(exception) => panic!("{trap:?} raised {exception:?}"),
    }
}

#[test]
fn instructions_of_one_control() {
    use ExitReason as Reason;
    let table = |instruction, at| (Trap::DescriptorTable(instruction), at);
    let wide = 1 << 11;
    type Case = (Control, (Trap, At), Reason, u64, u64);
    let tables = SecondaryProc::DESCRIPTOR_TABLE_EXITING;
    let cases: Vec<Case> = vec![
        (PrimaryProc::HLT_EXITING.into(), (Trap::Hlt, AT), Reason::Hlt, 0, 0),
        (PrimaryProc::INVLPG_EXITING.into(), (Trap::Invlpg(Gva(0x77)), AT), Reason::Invlpg, 0x77, 0),
        (PrimaryProc::MWAIT_EXITING.into(), (Trap::Mwait, AT), Reason::Mwait, 0, 0),
        (PrimaryProc::MONITOR_EXITING.into(), (Trap::Monitor, AT), Reason::Monitor, 0, 0),
        (PrimaryProc::RDPMC_EXITING.into(), (Trap::Rdpmc, AT), Reason::Rdpmc, 0, 0),
        (PrimaryProc::RDTSC_EXITING.into(), (Trap::Rdtsc, AT), Reason::Rdtsc, 0, 0),
        (PrimaryProc::PAUSE_EXITING.into(), (Trap::Pause, AT), Reason::Pause, 0, 0),
        (SecondaryProc::WBINVD_EXITING.into(), (Trap::Wbinvd, AT), Reason::Wbinvd, 0, 0),
        (
            SecondaryProc::RDRAND_EXITING.into(),
            (Trap::Rdrand, register(Gpr::R10, 8)),
            Reason::Rdrand,
            0,
            10 << 3 | 2 << 11,
        ),
        (SecondaryProc::RDSEED_EXITING.into(), (Trap::Rdseed, register(Gpr::Rcx, 2)), Reason::Rdseed, 0, 1 << 3),
        (tables.into(), table(TableInstruction::Sgdt, memory(None, 8)), Reason::GdtrIdtr, 0x7f, FORM | wide),
        (tables.into(), table(TableInstruction::Sidt, memory(None, 4)), Reason::GdtrIdtr, 0x7f, FORM | wide | 1 << 28),
        (tables.into(), table(TableInstruction::Lgdt, memory(None, 2)), Reason::GdtrIdtr, 0x7f, FORM | 2 << 28),
        (tables.into(), table(TableInstruction::Lidt, memory(None, 8)), Reason::GdtrIdtr, 0x7f, FORM | wide | 3 << 28),
        (tables.into(), table(TableInstruction::Sldt, memory(None, 2)), Reason::LdtrTr, 0x7f, FORM),
        (
            tables.into(),
            table(TableInstruction::Str, register(Gpr::Rdx, 8)),
            Reason::LdtrTr,
            0,
            2 << 3 | 1 << 10 | 1 << 28,
        ),
        (tables.into(), table(TableInstruction::Lldt, memory(None, 2)), Reason::LdtrTr, 0x7f, FORM | 2 << 28),
        (
            tables.into(),
            table(TableInstruction::Ltr, register(Gpr::R15, 2)),
            Reason::LdtrTr,
            0,
            15 << 3 | 1 << 10 | 3 << 28,
        ),
        (
            PrimaryProc::CR3_STORE_EXITING.into(),
            (cr_read(ControlRegister::Cr3), AT),
            Reason::CrAccess,
            3 | 1 << 4 | 9 << 8,
            0,
        ),
        (
            PrimaryProc::CR8_STORE_EXITING.into(),
            (cr_read(ControlRegister::Cr8), AT),
            Reason::CrAccess,
            8 | 1 << 4 | 9 << 8,
            0,
        ),
    ];
    for (control, (trap, at), reason, qualification, information) in &cases {
        let expected = Some((u64::from(reason.number()), *qualification, *information));
        assert_eq!(told(&mut with(*control), *trap, *at), expected, "{trap:?}");
        assert_eq!(told(&mut whole().run_with(|_| {}), *trap, *at), None, "{trap:?} without {control:?}");
    }
    println!("{} instructions of one control, with and without it", cases.len());
}

fn cr_read(register: ControlRegister) -> Trap {
    Trap::CrRead { register, gpr: Gpr::R9 }
}

/// SDM 3C 27.2.1: MWAIT tells whether a MONITOR has armed it.
#[test]
fn mwait_tells_of_its_monitor() {
    let mut bench = with(PrimaryProc::MWAIT_EXITING);
    assert_eq!(told(&mut bench, Trap::Monitor, AT), None);
    assert_eq!(told(&mut bench, Trap::Mwait, AT), Some((36, 1, 0)));
}

/// SDM 3C 25.1.2: always, whatever the controls.
#[test]
fn unconditional_instructions() {
    let running = whole().run_with(|_| {});
    for (trap, reason) in [
        (Trap::Cpuid, ExitReason::Cpuid),
        (Trap::Getsec, ExitReason::Getsec),
        (Trap::Invd, ExitReason::Invd),
        (Trap::Xsetbv, ExitReason::Xsetbv),
    ] {
        assert_eq!(told(&mut running.clone(), trap, AT), Some((reason.number().into(), 0, 0)), "{trap:?}");
    }
    for trap in [Trap::Int(3), Trap::Icebp, Trap::Pushf, Trap::Popf, Trap::Iret, Trap::Smsw, Trap::Rsm] {
        assert_eq!(told(&mut running.clone(), trap, AT), None, "{trap:?}");
    }
}

/// SDM 3C 25.3: #UD without the control that enables the instruction; with it, the control that intercepts it.
#[test]
fn instructions_that_need_a_control() {
    let rdtsc = PrimaryProc::RDTSC_EXITING;
    let cases = [
        (SecondaryProc::ENABLE_RDTSCP, rdtsc, Trap::Rdtscp, AT, (51, 0, 0)),
        (
            SecondaryProc::ENABLE_INVPCID,
            PrimaryProc::INVLPG_EXITING,
            Trap::Invpcid,
            memory(Some(Gpr::Rdi), 8),
            (58, 0x7f, FORM | 7 << 28),
        ),
    ];
    for (enables, intercepts, trap, at, expected) in cases {
        let mut without = with(intercepts);
        assert_eq!(
            without.vmx.trap(&mut without.core, &mut without.ground, &trap, at).unwrap(),
            Verdict::Raise(Exception::ud())
        );
        assert_eq!(told(&mut with(enables), trap, at), None);
        let mut both = whole().run_with(|draft| {
            draft.secondary(enables);
            draft.primary(intercepts);
        });
        assert_eq!(told(&mut both, trap, at), Some(expected));
    }
}

/// SDM 3C 25.1.3 XSAVES, XRSTORS: an exit if a component is asked for, in IA32_XSS and in the XSS-exiting bitmap.
#[test]
fn xss_exiting() {
    let mut cases = 0;
    for bits in 0..64_u64 {
        let [asked, xss, bitmap] = [0, 2, 4].map(|shift| (bits >> shift & 3) << 11);
        for (trap, reason) in [(Trap::Xsaves(asked), 63), (Trap::Xrstors(asked), 64)] {
            let mut bench = whole().run_with(|draft| {
                draft.secondary(SecondaryProc::ENABLE_XSAVES_XRSTORS);
                draft.set(Field::XssExitingBitmap, bitmap);
            });
            bench.core.msrs.xss = xss;
            let exits = asked & xss & bitmap != 0;
            assert_eq!(told(&mut bench, trap, memory(None, 8)), exits.then_some((reason, 0x7f, FORM)), "{bits:#x}");
            cases += 1;
        }
    }
    let mut without = whole().run_with(|_| {});
    let refused = without.vmx.trap(&mut without.core, &mut without.ground, &Trap::Xsaves(0), AT).unwrap();
    assert_eq!(refused, Verdict::Raise(Exception::ud()));
    println!("{cases} of XSS exiting");
}

/// SDM 3C 25.1.3 LMSW, table 27-3: every mask, shadow and source of PE, MP, EM and TS.
#[test]
fn lmsw() {
    let mut cases = 0;
    let running = whole().run_with(|_| {});
    for bits in 0..4096_u64 {
        let [mask, shadow, source] = [bits & 15, bits >> 4 & 15, bits >> 8];
        let mut bench = running.clone();
        bench.set_all(&[(Field::Cr0GuestHostMask, mask), (Field::Cr0ReadShadow, shadow)]);
        let pe_exits = mask & 1 == 1 && source & 1 == 1 && shadow & 1 == 0;
        let others_exit = (1..4).any(|bit| mask >> bit & 1 == 1 && source >> bit & 1 != shadow >> bit & 1);
        let exits = pe_exits || others_exit;
        let value = source as u16 | 0xabc0;
        let qualification = 3 << 4 | u64::from(value) << 16;
        let trap = Trap::Lmsw { value, address: None };
        assert_eq!(told(&mut bench, trap, AT), exits.then_some((28, qualification, 0)), "{bits:#x}");
        cases += 1;
    }
    let mut bench = running;
    bench.set(Field::Cr0GuestHostMask, 2);
    let trap = Trap::Lmsw { value: 2, address: Some(Gva(0x5678)) };
    assert_eq!(told(&mut bench, trap, AT), Some((28, 3 << 4 | 1 << 6 | 2 << 16, 0)));
    assert_eq!(bench.get(Field::GuestLinearAddress), 0x5678);
    println!("{} of LMSW", cases + 1);
}

/// SDM 3C table 27-4: every register and direction.
#[test]
fn mov_dr() {
    for number in 0..8_u8 {
        for (kind, from) in [(AccessKind::Write, 0), (AccessKind::Read, 1 << 4)] {
            let trap = Trap::DrAccess { number, gpr: Gpr::R11, kind };
            let qualification = u64::from(number) | from | 11 << 8;
            assert_eq!(told(&mut with(PrimaryProc::MOV_DR_EXITING), trap, AT), Some((29, qualification, 0)));
        }
    }
}

/// SDM 3C tables 27-5 and 27-8: INS and OUTS.
#[test]
fn string_io() {
    for (repeated, input, address_bytes, code) in [(false, true, 2, 0), (true, false, 4, 1), (true, true, 8, 2)] {
        let mut bench = with(PrimaryProc::USE_IO_BITMAPS);
        bench.set(Field::IoBitmapA, IO_A.0);
        bench.ground.mem.write(Hpa(IO_A.0 + 0x70 / 8), 1, 1);
        let string = Some(StringIo { address: Gva(0x9000), repeated, address_bytes, segment: 4 });
        let trap = Trap::Io { port: 0x70, bytes: 2, input, string };
        let qualification = 1 | u64::from(input) << 3 | 1 << 4 | u64::from(repeated) << 5 | 0x70 << 16;
        assert_eq!(told(&mut bench, trap, AT), Some((30, qualification, code << 7 | 4 << 15)));
        assert_eq!(bench.get(Field::GuestLinearAddress), 0x9000);
    }
}

/// SDM 3C 25.4.2, table 27-2: always; the length is the instruction's.
#[test]
fn task_switches() {
    for (source, number) in [
        (TaskSwitchSource::Call, 0),
        (TaskSwitchSource::Iret, 1),
        (TaskSwitchSource::Jmp, 2),
        (TaskSwitchSource::TaskGate, 3),
    ] {
        let mut bench = whole().run_with(|_| {});
        let trap = Trap::TaskSwitch { selector: 0x48, source, error: None };
        assert_eq!(bench.trap(trap), Verdict::Exited);
        assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitQualification)), (9, 0x48 | number << 30));
        let length = if source == TaskSwitchSource::TaskGate { 0 } else { AT.length };
        assert_eq!(bench.get(Field::ExitInstructionLength), u64::from(length));
    }
}

/// SDM 3C 25.1.3 PAUSE: pause-loop exiting counts at privilege level 0 only.
#[test]
fn pause_loops() {
    let start = whole().run_with(|draft| {
        draft.secondary(SecondaryProc::PAUSE_LOOP_EXITING);
        draft.set_all(&[(Field::PleGap, 10), (Field::PleWindow, 100)]);
    });
    for (level, exits) in [(0, true), (3, false)] {
        let mut bench = start.clone();
        bench.core.segments.ss.rights.0 |= level << 5;
        let mut pauses = 0;
        while pauses < 200 && told(&mut bench, Trap::Pause, AT).is_none() {
            bench.ground.charge(sim_core::clock::Cost::Instruction);
            pauses += 1;
        }
        assert_eq!(pauses, if exits { 101 } else { 200 }, "one cycle a turn, more than 100 cycles");
    }
}
