//! Every intercept row: with its bit set the event exits with its code, with every other bit set it does not
//! (APM2 15.7 to 15.14, 15.25.6, appendix C).

use super::{enter, field, report, set};
use crate::capability::{Capabilities, Features};
use crate::exit::ExitCode;
use crate::intercept::{Intercepts, Support, TABLE};
use crate::testing::{self, GUEST_RIP, IOPM, MSRPM, VMCB, machine, unit};
use crate::unit::Svm;
use crate::vmcb::Field;
use cpu::virt::{
    At, ControlRegister, EventKind, StageFault, StageFaultKind, StagePurpose, StringIo, TableInstruction,
    TaskSwitchSource, Trap, Verdict,
};
use cpu::{Gpr, Virt};
use sim_core::Ground;
use sim_core::addr::{Gpa, Gva};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, PageFaultError, Vector};

const AT: At = At::of(2);
const NEXT: u64 = GUEST_RIP + 2;
/// CR0 of the testing guest with WP changed: a write that the selective intercept sees.
const CR0_WRITE: u64 = Cr0::PE.union(Cr0::PG).union(Cr0::ET).union(Cr0::WP).bits();

type Setting = Box<dyn Fn(&mut Ground)>;

/// One thing that can be intercepted.
struct Row {
    trap: Trap,
    software: Option<EventKind>,
    /// Sets the intercept.
    on: Setting,
    /// Sets every other intercept.
    others: Setting,
    expected: (ExitCode, u64, u64, u64),
}

/// Every honoured bit of the three words but those that stop what other bits stop too; they have tests of their own.
fn honoured() -> Intercepts {
    let shared = Intercepts::IDLE_HLT | Intercepts::MWAIT_ARMED | Intercepts::INVLPGB_BAD | Intercepts::SELECTIVE_CR0;
    TABLE.iter().filter(|row| row.1 == Support::Honoured).fold(Intercepts::empty(), |sum, row| sum | row.0) - shared
}

fn words(ground: &mut Ground, control: (u16, u16, u32), intercepts: Intercepts) {
    set(ground, Field::InterceptCrReads, control.0.into());
    set(ground, Field::InterceptCrWrites, control.1.into());
    set(ground, Field::InterceptExceptions, control.2.into());
    (intercepts | Intercepts::VMRUN).write(&mut ground.mem, VMCB);
}

fn all_maps(ground: &mut Ground) {
    for byte in (0..0x3000).step_by(8) {
        ground.mem.write_u64(IOPM.offset(byte), u64::MAX);
    }
    for byte in (0..0x2000).step_by(8) {
        ground.mem.write_u64(MSRPM.offset(byte), u64::MAX);
    }
}

/// A row whose intercept is one bit of the three words.
fn plain(trap: Trap, bit: Intercepts, code: ExitCode, info: (u64, u64), next: u64) -> Row {
    Row {
        trap,
        software: None,
        on: Box::new(move |ground| {
            words(ground, (0, 0, 0), bit);
            all_maps(ground);
        }),
        others: Box::new(move |ground| {
            words(ground, (u16::MAX, u16::MAX, u32::MAX), honoured() - bit);
            all_maps(ground);
        }),
        expected: (code, info.0, info.1, next),
    }
}

fn plain_rows() -> Vec<Row> {
    let io = |port, bytes, input| Trap::Io { port, bytes, input, string: None };
    vec![
        plain(Trap::TripleFault, Intercepts::SHUTDOWN, ExitCode::Shutdown, (0, 0), 0),
        plain(Trap::Invlpg(Gva(0x5000)), Intercepts::INVLPG, ExitCode::Invlpg, (0x5000, 0), NEXT),
        plain(Trap::Invpcid, Intercepts::INVPCID, ExitCode::Invpcid, (0, 0), NEXT),
        plain(io(0x80, 1, false), Intercepts::IO, ExitCode::Io, (0x0080_0210, NEXT), NEXT),
        plain(io(0x80, 1, true), Intercepts::IO, ExitCode::Io, (0x0080_0211, NEXT), NEXT),
        plain(io(0xcf8, 2, false), Intercepts::IO, ExitCode::Io, (0x0cf8_0220, NEXT), NEXT),
        plain(io(0xffff, 4, true), Intercepts::IO, ExitCode::Io, (0xffff_0241, NEXT), NEXT),
        plain(Trap::Cpuid, Intercepts::CPUID, ExitCode::Cpuid, (0, 0), NEXT),
        plain(Trap::Hlt, Intercepts::HLT, ExitCode::Hlt, (0, 0), NEXT),
        plain(Trap::Rdmsr(0xc000_0080), Intercepts::MSR, ExitCode::Msr, (0, 0), NEXT),
        plain(Trap::Wrmsr(0xc000_0080, 1), Intercepts::MSR, ExitCode::Msr, (1, 0), NEXT),
        plain(Trap::Rdtsc, Intercepts::RDTSC, ExitCode::Rdtsc, (0, 0), NEXT),
        plain(Trap::Wbinvd, Intercepts::WBINVD, ExitCode::Wbinvd, (0, 0), NEXT),
        plain(Trap::Pause, Intercepts::PAUSE, ExitCode::Pause, (0, 0), NEXT),
        plain(Trap::Invd, Intercepts::INVD, ExitCode::Invd, (0, 0), NEXT),
        plain(Trap::Rdtscp, Intercepts::RDTSCP, ExitCode::Rdtscp, (0, 0), NEXT),
        plain(Trap::Rdpmc, Intercepts::RDPMC, ExitCode::Rdpmc, (0, 0), NEXT),
        plain(Trap::Rdpru, Intercepts::RDPRU, ExitCode::Rdpru, (0, 0), NEXT),
        plain(Trap::Monitor, Intercepts::MONITOR, ExitCode::Monitor, (0, 0), NEXT),
        plain(Trap::Mwait, Intercepts::MWAIT, ExitCode::Mwait, (0, 0), NEXT),
        plain(Trap::Xsetbv, Intercepts::XSETBV, ExitCode::Xsetbv, (0, 0), NEXT),
        plain(Trap::Rsm, Intercepts::RSM, ExitCode::Rsm, (0, 0), NEXT),
        plain(Trap::Iret, Intercepts::IRET, ExitCode::Iret, (0, 0), NEXT),
        plain(Trap::Pushf, Intercepts::PUSHF, ExitCode::Pushf, (0, 0), NEXT),
        plain(Trap::Popf, Intercepts::POPF, ExitCode::Popf, (0, 0), NEXT),
        plain(Trap::Int(0x80), Intercepts::INTN, ExitCode::SoftwareInterrupt, (0x80, 0), NEXT),
        plain(Trap::Icebp, Intercepts::ICEBP, ExitCode::Icebp, (0, 0), NEXT),
        plain(Trap::Smi, Intercepts::SMI, ExitCode::Smi, (1, 0), 0),
        plain(Trap::Nmi, Intercepts::NMI, ExitCode::Nmi, (0, 0), 0),
        plain(Trap::Init, Intercepts::INIT, ExitCode::Init, (0, 0), 0),
        plain(Trap::Interrupt(0x20), Intercepts::INTR, ExitCode::Intr, (0, 0), 0),
    ]
}

/// Instructions on descriptor tables (APM2 15.9), and string I/O and task switches with all that they tell (APM2
/// 15.10.2, 15.14.1).
fn descriptor_and_task_rows() -> Vec<Row> {
    let tables = [
        (TableInstruction::Sgdt, Intercepts::GDTR_READ, ExitCode::GdtrRead),
        (TableInstruction::Sidt, Intercepts::IDTR_READ, ExitCode::IdtrRead),
        (TableInstruction::Sldt, Intercepts::LDTR_READ, ExitCode::LdtrRead),
        (TableInstruction::Str, Intercepts::TR_READ, ExitCode::TrRead),
        (TableInstruction::Lgdt, Intercepts::GDTR_WRITE, ExitCode::GdtrWrite),
        (TableInstruction::Lidt, Intercepts::IDTR_WRITE, ExitCode::IdtrWrite),
        (TableInstruction::Lldt, Intercepts::LDTR_WRITE, ExitCode::LdtrWrite),
        (TableInstruction::Ltr, Intercepts::TR_WRITE, ExitCode::TrWrite),
    ];
    let mut rows: Vec<_> = tables
        .into_iter()
        .map(|(instruction, bit, code)| plain(Trap::DescriptorTable(instruction), bit, code, (0, 0), NEXT))
        .collect();
    for (source, bits) in [
        (TaskSwitchSource::Call, 0),
        (TaskSwitchSource::Iret, 1 << 36),
        (TaskSwitchSource::Jmp, 1 << 38),
        (TaskSwitchSource::TaskGate, 0),
    ] {
        for error in [None, Some(0x58)] {
            let trap = Trap::TaskSwitch { selector: 0x28, source, error };
            let info2 = bits | error.map_or(0, |code| 1 << 44 | u64::from(code));
            let next = if source == TaskSwitchSource::TaskGate { 0 } else { NEXT };
            rows.push(plain(trap, Intercepts::TASK_SWITCH, ExitCode::TaskSwitch, (0x28, info2), next));
        }
    }
    for address_bytes in [2, 4, 8_u8] {
        for repeated in [false, true] {
            for segment in 0..6 {
                let string = Some(StringIo { address: Gva(0x5000), repeated, address_bytes, segment });
                let trap = Trap::Io { port: 0x60, bytes: 1, input: false, string };
                let size = u64::from(address_bytes) << 6;
                let info1 = 0x60_0014 | size | u64::from(repeated) << 3 | u64::from(segment) << 10;
                rows.push(plain(trap, Intercepts::IO, ExitCode::Io, (info1, NEXT), NEXT));
            }
        }
    }
    rows
}

/// MOV of every debug register, both ways (APM2 15.9).
fn debug_register_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for number in 0..16_u8 {
        let bit = 1_u16 << number;
        for kind in [AccessKind::Read, AccessKind::Write] {
            let (own, code) = match kind {
                AccessKind::Write => (Field::InterceptDrWrites, ExitCode::DrWrite(number)),
                _ => (Field::InterceptDrReads, ExitCode::DrRead(number)),
            };
            rows.push(Row {
                trap: Trap::DrAccess { number, gpr: Gpr::R9, kind },
                software: None,
                on: Box::new(move |ground| {
                    words(ground, (0, 0, 0), Intercepts::empty());
                    set(ground, own, bit.into());
                }),
                others: Box::new(move |ground| {
                    words(ground, (u16::MAX, u16::MAX, u32::MAX), honoured());
                    set(ground, Field::InterceptDrReads, u16::MAX.into());
                    set(ground, Field::InterceptDrWrites, u16::MAX.into());
                    set(ground, own, (!bit).into());
                }),
                expected: (code, 9, 0, NEXT),
            });
        }
    }
    rows
}

const REGISTERS: [ControlRegister; 5] =
    [ControlRegister::Cr0, ControlRegister::Cr2, ControlRegister::Cr3, ControlRegister::Cr4, ControlRegister::Cr8];
const GPRS: [Gpr; 4] = [Gpr::Rax, Gpr::Rbx, Gpr::R8, Gpr::R15];

/// APM2 15.8, 15.9: each register both ways, from and to several GPRs; CLTS.
fn control_register_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for register in REGISTERS {
        let number = register.number();
        let bit = 1_u16 << number;
        for gpr in GPRS {
            let info1 = 1 << 63 | gpr as u64;
            rows.push(Row {
                trap: Trap::CrRead { register, gpr },
                software: None,
                on: Box::new(move |ground| words(ground, (bit, 0, 0), Intercepts::empty())),
                others: Box::new(move |ground| words(ground, (!bit, u16::MAX, u32::MAX), honoured())),
                expected: (ExitCode::CrRead(number), info1, 0, NEXT),
            });
            rows.push(Row {
                trap: Trap::CrWrite { register, gpr, value: CR0_WRITE },
                software: None,
                on: Box::new(move |ground| words(ground, (0, bit, 0), Intercepts::SELECTIVE_CR0)),
                others: Box::new(move |ground| {
                    words(ground, (u16::MAX, !bit, u32::MAX), honoured());
                }),
                expected: (ExitCode::CrWrite(number), info1, 0, NEXT),
            });
        }
    }
    rows.push(Row {
        trap: Trap::Clts,
        software: None,
        on: Box::new(|ground| words(ground, (0, 1, 0), Intercepts::empty())),
        others: Box::new(|ground| words(ground, (u16::MAX, !1, u32::MAX), honoured())),
        expected: (ExitCode::CrWrite(0), 0, 0, NEXT),
    });
    rows.push(Row {
        trap: Trap::Smsw,
        software: None,
        on: Box::new(|ground| words(ground, (1, 0, 0), Intercepts::empty())),
        others: Box::new(|ground| words(ground, (!1, u16::MAX, u32::MAX), honoured())),
        expected: (ExitCode::CrRead(0), 0, 0, NEXT),
    });
    let lmsw = Trap::Lmsw { value: 1, address: None };
    rows.push(Row {
        trap: lmsw,
        software: None,
        on: Box::new(|ground| words(ground, (0, 1, 0), Intercepts::SELECTIVE_CR0)),
        others: Box::new(|ground| words(ground, (u16::MAX, !1, u32::MAX), honoured())),
        expected: (ExitCode::CrWrite(0), 0, 0, NEXT),
    });
    rows.push(plain(lmsw, Intercepts::SELECTIVE_CR0, ExitCode::Cr0SelectiveWrite, (0, 0), NEXT));
    if let Some(row) = rows.last_mut() {
        row.others = Box::new(|ground| words(ground, (u16::MAX, !1, u32::MAX), honoured()));
    }
    rows
}

/// APM2 15.12: every vector of the model.
fn exception_rows() -> Vec<Row> {
    let row = |vector: Vector| {
        let number = vector.number();
        let bit = 1_u32 << number;
        let exception = match vector {
            Vector::PageFault => Exception::page_fault(Gva(0x1_2345), PageFaultError::P | PageFaultError::W),
            _ if vector.has_error_code() => Exception::with_error(vector, 0x58),
            _ => Exception::plain(vector),
        };
        let info1 = exception.error.map_or(0, u64::from);
        let info2 = exception.cr2.map_or(0, |address| address.0);
        let software = matches!(vector, Vector::Breakpoint | Vector::Overflow).then_some(EventKind::SoftwareException);
        Row {
            trap: Trap::Exception(exception),
            software,
            on: Box::new(move |ground| words(ground, (0, 0, bit), Intercepts::empty())),
            others: Box::new(move |ground| words(ground, (u16::MAX, u16::MAX, !bit), honoured())),
            expected: (ExitCode::Exception(number), info1, info2, if software.is_some() { NEXT } else { 0 }),
        }
    };
    Vector::ALL.into_iter().map(row).collect()
}

fn all_rows() -> Vec<Row> {
    let families =
        [plain_rows(), descriptor_and_task_rows(), debug_register_rows(), control_register_rows(), exception_rows()];
    families.into_iter().flatten().collect()
}

#[test]
fn set_exits_clear_does_not() {
    let rows = all_rows();
    for Row { trap, software, on, others, expected } in &rows {
        for (setting, verdict) in [(on, Verdict::Exited), (others, Verdict::Continue)] {
            let (mut core, mut ground) = machine();
            setting(&mut ground);
            let mut svm = unit();
            enter(&mut svm, &mut core, &mut ground);
            let before = core.clone();
            assert_eq!(
                svm.trap(&mut core, &mut ground, trap, At { software: *software, ..AT }),
                Ok(verdict),
                "{trap:?}"
            );
            if verdict == Verdict::Exited {
                let (code, info1, info2, next) = *expected;
                assert_eq!(report(&ground), (Some(code), info1, info2, next), "{trap:?}");
                assert_eq!(field(&ground, Field::Rip), GUEST_RIP, "the instruction has not completed");
                assert_eq!(field(&ground, Field::Cr2), 0x1234, "CR2 does not change");
            } else {
                assert_eq!(core, before, "{trap:?}");
            }
        }
    }
    println!("{} intercept rows, set and clear", rows.len());
}

/// Nothing is intercepted in the host.
#[test]
fn the_host_is_never_stopped() {
    for row in all_rows() {
        let (mut core, mut ground) = machine();
        (row.on)(&mut ground);
        assert_eq!(unit().trap(&mut core, &mut ground, &row.trap, AT), Ok(Verdict::Continue));
    }
}

/// APM2 15.9: the selective intercept over every single-bit change of CR0.
#[test]
fn selective_cr0() {
    let current = Cr0::PE | Cr0::PG | Cr0::ET;
    for bit in Cr0::all().iter() {
        let (mut core, mut ground) = machine();
        words(&mut ground, (0, 0, 0), Intercepts::SELECTIVE_CR0);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        let value = (current ^ bit).bits();
        let trap = Trap::CrWrite { register: ControlRegister::Cr0, gpr: Gpr::Rcx, value };
        let exits = ![Cr0::TS, Cr0::MP, Cr0::ET].contains(&bit);
        let verdict = if exits { Verdict::Exited } else { Verdict::Continue };
        assert_eq!(svm.trap(&mut core, &mut ground, &trap, AT), Ok(verdict), "{bit:?}");
        if exits {
            assert_eq!(report(&ground), (Some(ExitCode::Cr0SelectiveWrite), 1 << 63 | 1, 0, NEXT));
        }
    }
}

/// The permission maps decide once the intercept is on: a clear map lets everything in its range through.
#[test]
fn maps_decide() {
    for (trap, exits) in [
        (Trap::Io { port: 0x80, bytes: 4, input: true, string: None }, false),
        (Trap::Rdmsr(0x174), false),
        (Trap::Wrmsr(0xc000_0102, 0), false),
        (Trap::Rdmsr(0x4000_0000), true),
    ] {
        let (mut core, mut ground) = machine();
        words(&mut ground, (0, 0, 0), Intercepts::IO | Intercepts::MSR);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        let verdict = if exits { Verdict::Exited } else { Verdict::Continue };
        assert_eq!(svm.trap(&mut core, &mut ground, &trap, AT), Ok(verdict), "{trap:?}");
    }
}

/// APM2 15.8: without decode assists EXITINFO1 is zero where they would fill it.
#[test]
fn decode_assists_are_a_capability() {
    let features = Features::all() - Features::DECODE_ASSISTS;
    for trap in [
        Trap::Invlpg(Gva(0x5000)),
        Trap::CrRead { register: ControlRegister::Cr3, gpr: Gpr::Rdi },
        Trap::CrWrite { register: ControlRegister::Cr3, gpr: Gpr::Rdi, value: 0 },
    ] {
        let (mut core, mut ground) = machine();
        words(&mut ground, (u16::MAX, u16::MAX, 0), Intercepts::INVLPG);
        let mut svm = Svm::new(Capabilities { features, ..Capabilities::default() });
        svm.set_hsave(testing::HSAVE);
        enter(&mut svm, &mut core, &mut ground);
        assert_eq!(svm.trap(&mut core, &mut ground, &trap, AT), Ok(Verdict::Exited));
        assert_eq!(field(&ground, Field::ExitInfo1), 0, "{trap:?}");
    }
}

/// APM2 15.25.6: EXITINFO1 of a nested page fault, over every combination of its inputs.
#[test]
fn nested_page_faults() {
    let mut cases = 0;
    for kind in AccessKind::ALL {
        for (purpose, base) in [(StagePurpose::Final, 1_u64 << 32), (StagePurpose::Table, 1 << 33)] {
            for (present, reserved) in [(false, false), (true, false), (true, true), (false, true)] {
                let (mut core, mut ground) = machine();
                testing::enable_nested_paging(&mut ground);
                let mut svm = unit();
                enter(&mut svm, &mut core, &mut ground);
                let fault = StageFault {
                    gpa: Gpa(0x1234_5678),
                    gva: Some(Gva(0x9000)),
                    access: Access::new(kind, Privilege::Supervisor),
                    purpose,
                    first: None,
                    convertible: false,
                    kind: StageFaultKind::NestedPageFault { present, reserved },
                };
                assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Stage(fault), AT), Ok(Verdict::Exited));
                let table = purpose == StagePurpose::Table;
                let write = u64::from(table || kind == AccessKind::Write) << 1;
                let fetch = u64::from(!table && kind == AccessKind::Fetch) << 4;
                let info1 = base | u64::from(present) | write | 4 | u64::from(reserved) << 3 | fetch;
                assert_eq!(report(&ground), (Some(ExitCode::NestedPageFault), info1, 0x1234_5678, 0));
                cases += 1;
            }
        }
    }
    println!("{cases} nested page faults");
}
