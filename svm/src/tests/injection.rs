//! Event injection through VMRUN (APM2 15.20), and exits on the way to the handler (APM2 15.7.2).

use super::{enter, field, report, set};
use crate::entry::Entered;
use crate::exit::ExitCode;
use crate::inject::EventInjection;
use crate::intercept::Intercepts;
use crate::testing::{self, VMCB, machine, unit};
use crate::vmcb::{Field, SegmentField, TableField, write_segment, write_table};
use cpu::virt::{At, Trap, Verdict};
use cpu::{Core, Gpr, Virt};
use sim_core::addr::{Gva, Hpa};
use sim_core::arch::control::{Cr0, Efer};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::{Ground, SimError};

const GDT: u64 = 0x1_a000;
const IDT: u64 = 0x1_b000;
const HANDLER: u64 = 0x5678;
/// A flat 32-bit code descriptor, accessed.
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// A present 32-bit interrupt gate to 08h:[`HANDLER`].
const GATE: u64 = 0x0000_8e00_0008_5678;
const IDT_LIMIT: u16 = 0xff;

/// A guest in flat 32-bit protected mode without paging, with an IDT of this limit.
fn guest32(idt_limit: u16) -> (Core, Ground) {
    let (core, mut ground) = machine();
    set(&mut ground, Field::Efer, Efer::SVME.bits());
    set(&mut ground, Field::Cr0, (Cr0::PE | Cr0::ET).bits());
    set(&mut ground, Field::Rip, 0x4000);
    write_segment(&mut ground.mem, VMCB, SegmentField::Cs, &Segment::flat(0x08, Rights::CODE32));
    write_table(&mut ground.mem, VMCB, TableField::Gdtr, TableRegister { base: GDT, limit: 0x1f });
    write_table(&mut ground.mem, VMCB, TableField::Idtr, TableRegister { base: IDT, limit: idt_limit });
    ground.mem.write_u64(Hpa(GDT + 8), CODE32);
    for vector in 0..32 {
        ground.mem.write_u64(Hpa(IDT + 8 * vector), GATE);
    }
    (core, ground)
}

fn with_error(vector: Vector) -> Exception {
    let error = vector.has_error_code().then_some(0x58);
    Exception { vector, error, cr2: None }
}

/// Every vector reaches its handler with the VMCB's rIP and its error code on the stack; CR2 stays; interception of the
/// vector does not matter; the next #VMEXIT clears V and reports nothing in EXITINTINFO.
#[test]
fn exceptions_are_delivered() {
    for vector in Vector::ALL {
        let (mut core, mut ground) = guest32(IDT_LIMIT);
        let exception = with_error(vector);
        let injection = EventInjection::of(&exception);
        set(&mut ground, Field::EventInjection, injection.0);
        set(&mut ground, Field::NextRip, 0x4001);
        set(&mut ground, Field::InterceptExceptions, u32::MAX.into());
        (Intercepts::VMRUN | Intercepts::HLT).write(&mut ground.mem, VMCB);
        let mut svm = unit();
        enter(&mut svm, &mut core, &mut ground);
        assert_eq!((core.rip, core.cr2), (HANDLER, Gva(0x1234)), "{vector:?}");
        let words = if exception.error.is_some() { 4 } else { 3 };
        assert_eq!(core.gpr(Gpr::Rsp), 0x7000 - 4 * words);
        let frame = Hpa(core.gpr(Gpr::Rsp));
        if let Some(error) = exception.error {
            assert_eq!(ground.mem.read_u32(frame), error);
        }
        // APM2 15.20: INT3 and INTO return to nRIP, faults to rIP.
        let returns = if injection.is_software() { 0x4001 } else { 0x4000 };
        assert_eq!(ground.mem.read_u32(frame.offset(4 * (words - 3))), returns, "return address");

        assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Hlt, At::of(1)), Ok(Verdict::Exited));
        assert_eq!(field(&ground, Field::EventInjection), injection.spent().0);
        assert_eq!(field(&ground, Field::ExitIntInfo), 0);
    }
    println!("{} injected vectors", Vector::ALL.len());
}

/// Every kind of event with every vector reaches its handler, whatever RFLAGS.IF says, and returns where it must.
#[test]
fn events_of_every_kind_are_delivered() {
    let mut cases = 0;
    for (kind, error) in [(0, None), (2, None), (3, None), (3, Some(0x58)), (4, None)] {
        for vector in 0..32_u64 {
            if kind == 3 && vector == 2 {
                continue;
            }
            let (mut core, mut ground) = guest32(IDT_LIMIT);
            let code = error.map_or(0, |error: u64| 1 << 11 | error << 32);
            let field_value = 1 << 31 | kind << 8 | code | vector;
            set(&mut ground, Field::EventInjection, field_value);
            set(&mut ground, Field::NextRip, 0x4002);
            set(&mut ground, Field::Rflags, 2);
            enter(&mut unit(), &mut core, &mut ground);
            let software = EventInjection(field_value).is_software();
            let pushed = u64::from(error.is_some() && !software);
            assert_eq!((core.rip, core.gpr(Gpr::Rsp)), (HANDLER, 0x7000 - 12 - 4 * pushed), "{field_value:#x}");
            let returns = Hpa(core.gpr(Gpr::Rsp) + 4 * pushed);
            assert_eq!(ground.mem.read_u32(returns), if software { 0x4002 } else { 0x4000 }, "{field_value:#x}");
            cases += 1;
        }
    }
    println!("{cases} injected events");
}

/// A software interrupt's handler must be reachable from the guest's privilege level; an exception's need not.
#[test]
fn software_events_check_the_gate() {
    for (field_value, faults) in [(0x8000_0420_u64, true), (0x8000_0303, true), (0x8000_0306, false)] {
        let (mut core, mut ground) = guest32(0x1ff);
        ground.mem.write_u64(Hpa(IDT + 8 * 0x20), GATE);
        set(&mut ground, Field::Cpl, 3);
        let code = Segment { rights: Rights(Rights::CODE32.0 | 3 << 5), ..Segment::flat(0x0b, Rights::CODE32) };
        write_segment(&mut ground.mem, VMCB, SegmentField::Cs, &code);
        set(&mut ground, Field::EventInjection, field_value);
        set(&mut ground, Field::NextRip, 0x4002);
        set(&mut ground, Field::InterceptExceptions, u32::MAX.into());
        let result = unit().enter(&mut core, &mut ground, VMCB);
        assert_eq!(result, Ok(Entered::Refused));
        // The exception gets as far as the stack of the inner level, which the guest's TSS does not give it.
        let vector = if faults { 13 } else { 10 };
        assert_eq!(report(&ground).0, Some(ExitCode::Exception(vector)), "{field_value:#x}");
        assert_eq!((field(&ground, Field::ExitIntInfo), field(&ground, Field::Rip)), (field_value, 0x4000));
    }
}

/// An IDT that is too short: #GP with the gate's index, which exits if intercepted, and leads to shutdown if not. A
/// double fault and a shutdown are no event's delivery any more.
#[test]
fn an_exit_on_the_way_reports_the_event() {
    let gp = 1 << Vector::GeneralProtection.number();
    let df = 1 << Vector::DoubleFault.number();
    // The error code names the IDT entry: index times 8, plus IDT and EXT (SDM 3A 6.13).
    let ud_gate = 6 * 8 + 3;
    let (first, none) = (EventInjection::of(&Exception::ud()), EventInjection::default());
    for (exceptions, words, expected) in [
        (gp, Intercepts::empty(), Ok((ExitCode::Exception(13), ud_gate, first))),
        (df, Intercepts::empty(), Ok((ExitCode::Exception(8), 0, none))),
        (0, Intercepts::SHUTDOWN, Ok((ExitCode::Shutdown, 0, none))),
        (0, Intercepts::empty(), Err("shutdown in a guest without the SHUTDOWN intercept")),
    ] {
        let (mut core, mut ground) = guest32(0);
        let injection = EventInjection::of(&Exception::ud());
        set(&mut ground, Field::EventInjection, injection.0);
        set(&mut ground, Field::InterceptExceptions, exceptions);
        (Intercepts::VMRUN | words).write(&mut ground.mem, VMCB);
        let host = core.clone();
        let mut svm = unit();
        let result = svm.enter(&mut core, &mut ground, VMCB);
        match expected {
            Err(name) => assert_eq!(result, Err(SimError::unmodelled(name))),
            Ok((code, info1, interrupted)) => {
                assert_eq!(result, Ok(Entered::Refused));
                assert_eq!(report(&ground), (Some(code), info1, 0, 0));
                assert_eq!(field(&ground, Field::ExitIntInfo), interrupted.0);
                assert_eq!(field(&ground, Field::EventInjection), injection.spent().0);
                assert_eq!((core.rip, svm.guest()), (host.rip, None));
            }
        }
    }
}

/// Nested tables that map nothing: reading the IDT is a nested page fault with the event in EXITINTINFO.
#[test]
fn a_nested_fault_on_the_way_reports_the_event() {
    let (mut core, mut ground) = guest32(IDT_LIMIT);
    testing::enable_nested_paging(&mut ground);
    let injection = EventInjection::of(&Exception::gp0());
    set(&mut ground, Field::EventInjection, injection.0);
    let mut svm = unit();
    assert_eq!(svm.enter(&mut core, &mut ground, VMCB), Ok(Entered::Refused));
    let gate = IDT + 8 * u64::from(Vector::GeneralProtection.number());
    assert_eq!(report(&ground), (Some(ExitCode::NestedPageFault), 1 << 32 | 4, gate, 0));
    assert_eq!(field(&ground, Field::ExitIntInfo), injection.0);
}
