//! The instructions of SVM: the legality table, interception, and what each one does (APM3 chapter 4).

use super::{enter, field, report, set};
use crate::exit::ExitCode;
use crate::intercept::Intercepts;
use crate::testing::{ASID, GUEST_RIP, VMCB, machine, unit};
use crate::unit::{Gif, Svm};
use crate::vmcb::{Field, SegmentField, read_segment};
use cpu::exec::Fault;
use cpu::virt::{At, Movement, VirtDone, VirtInstruction, VirtTarget};
use cpu::{Core, Gpr, Virt};
use sim_core::addr::Gva;
use sim_core::arch::control::{Cr0, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::event::{Event, FlushScope};
use sim_core::{Ground, SimError};

const AT: At = At::of(3);
const INVLPGA: VirtInstruction = VirtInstruction::Invlpga { address: Gva(0x6000), asid: ASID };
/// Every instruction with its intercept and exit code.
const INSTRUCTIONS: [(VirtInstruction, Intercepts, ExitCode); 7] = [
    (VirtInstruction::Vmrun(VMCB.0), Intercepts::VMRUN, ExitCode::Vmrun),
    (VirtInstruction::Vmload(VMCB.0), Intercepts::VMLOAD, ExitCode::Vmload),
    (VirtInstruction::Vmsave(VMCB.0), Intercepts::VMSAVE, ExitCode::Vmsave),
    (VirtInstruction::Stgi, Intercepts::STGI, ExitCode::Stgi),
    (VirtInstruction::Clgi, Intercepts::CLGI, ExitCode::Clgi),
    (VirtInstruction::Vmmcall, Intercepts::VMMCALL, ExitCode::Vmmcall),
    (INVLPGA, Intercepts::INVLPGA, ExitCode::Invlpga),
];

fn run(svm: &mut Svm, core: &mut Core, ground: &mut Ground, instruction: VirtInstruction) -> Result<VirtDone, Fault> {
    svm.instruction(core, ground, &instruction, AT)
}

/// Where an instruction is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Kernel,
    User,
    SvmOff,
    SvmOffUser,
    RealMode,
    Virtual8086,
}

fn prepare(core: &mut Core, place: Place) {
    let user = [Place::User, Place::SvmOffUser, Place::Virtual8086].contains(&place);
    core.segments.ss.rights.0 |= if user { 3 << 5 } else { 0 };
    if matches!(place, Place::SvmOff | Place::SvmOffUser) {
        core.efer.remove(Efer::SVME);
    }
    if place == Place::RealMode {
        core.cr0.remove(Cr0::PE | Cr0::PG);
    }
    if place == Place::Virtual8086 {
        core.rflags.insert(Rflags::VM);
    }
}

/// #UD without SVME or protected mode, #GP(0) at CPL 3, VMMCALL #UD anywhere in the host; nothing moves on a fault.
#[test]
fn legality() {
    let places = [Place::Kernel, Place::User, Place::SvmOff, Place::SvmOffUser, Place::RealMode, Place::Virtual8086];
    for (instruction, _, _) in INSTRUCTIONS {
        for place in places {
            let (mut core, mut ground) = machine();
            prepare(&mut core, place);
            let before = core.clone();
            let mut svm = unit();
            let result = run(&mut svm, &mut core, &mut ground, instruction);
            let expected = match place {
                _ if instruction == VirtInstruction::Vmmcall => Some(Exception::ud()),
                Place::Kernel => None,
                Place::User => Some(Exception::gp0()),
                Place::SvmOff | Place::SvmOffUser | Place::RealMode | Place::Virtual8086 => Some(Exception::ud()),
            };
            match expected {
                Some(exception) => {
                    assert_eq!(result, Err(Fault::Exception(exception)), "{instruction:?} {place:?}");
                    assert_eq!((core, svm), (before, unit()));
                }
                None => assert!(result.is_ok(), "{instruction:?} {place:?}: {result:?}"),
            }
        }
    }
    println!("{} instructions in {} places", INSTRUCTIONS.len(), places.len());
}

/// rAX must be a page-aligned physical address.
#[test]
fn addresses() {
    for make in [VirtInstruction::Vmrun, VirtInstruction::Vmload, VirtInstruction::Vmsave] {
        for (address, ok) in [(VMCB.0, true), (VMCB.0 + 8, false), (1 << 48, false), (u64::MAX << 12, false)] {
            let (mut core, mut ground) = machine();
            let result = run(&mut unit(), &mut core, &mut ground, make(address));
            assert_eq!(result.is_ok(), ok, "{address:#x}");
            assert!(ok || result == Err(Fault::Exception(Exception::gp0())));
        }
    }
}

/// In a guest: the bit set exits and keeps the instruction, the bit clear lets it run (VMRUN's can't be clear).
#[test]
fn interception() {
    for (instruction, bit, code) in INSTRUCTIONS {
        for intercepted in [true, false] {
            if bit == Intercepts::VMRUN && !intercepted {
                continue;
            }
            let (mut core, mut ground) = machine();
            let others = INSTRUCTIONS.iter().fold(Intercepts::VMRUN, |sum, row| sum | row.1) - bit;
            (if intercepted { bit | Intercepts::VMRUN } else { others }).write(&mut ground.mem, VMCB);
            let mut svm = unit();
            enter(&mut svm, &mut core, &mut ground);
            let result = run(&mut svm, &mut core, &mut ground, instruction);
            if intercepted {
                assert_eq!(result, Ok(VirtDone::Moved(Movement::Exited)), "{instruction:?}");
                assert_eq!(report(&ground), (Some(code), 0, 0, GUEST_RIP + 3));
                assert_eq!((svm.guest(), svm.exiting_instruction()), (None, Some(instruction)));
            } else {
                let vmmcall = instruction == VirtInstruction::Vmmcall;
                let expected = if vmmcall { Err(Exception::ud().into()) } else { Ok(VirtDone::Next) };
                assert_eq!(result, expected, "{instruction:?}");
                assert_eq!(svm.guest(), Some(VMCB));
            }
        }
    }
}

/// The intercept goes before the check of rAX, which is an address of the guest (APM2 table 15-7).
#[test]
fn intercept_before_address() {
    let (mut core, mut ground) = machine();
    let mut svm = unit();
    enter(&mut svm, &mut core, &mut ground);
    let result = run(&mut svm, &mut core, &mut ground, VirtInstruction::Vmrun(1));
    assert_eq!(result, Ok(VirtDone::Moved(Movement::Exited)));
    assert_eq!(svm.exiting_instruction(), Some(VirtInstruction::Vmrun(1)));
}

/// VMRUN by software on the processor: the host goes on after the instruction, with its own rAX.
#[test]
fn vmrun_returns_behind_itself() {
    let (mut core, mut ground) = machine();
    let mut svm = unit();
    let rip = core.rip;
    let result = run(&mut svm, &mut core, &mut ground, VirtInstruction::Vmrun(VMCB.0));
    assert_eq!((result, core.rip), (Ok(VirtDone::Moved(Movement::Entered)), GUEST_RIP));
    let result = run(&mut svm, &mut core, &mut ground, VirtInstruction::Vmrun(0));
    assert_eq!((result, core.rip), (Ok(VirtDone::Moved(Movement::Exited)), rip + 3));
    assert_eq!(core.gpr(Gpr::Rax), VMCB.0);

    set(&mut ground, Field::Asid, 0);
    let result = run(&mut svm, &mut core, &mut ground, VirtInstruction::Vmrun(VMCB.0));
    assert_eq!((result, core.rip), (Ok(VirtDone::Moved(Movement::Exited)), rip + 6));
    assert_eq!(report(&ground).0, Some(ExitCode::Invalid));
    assert_eq!(svm.exiting_instruction(), None);
}

/// VMSAVE then VMLOAD brings back every register of the two, and VMLOAD touches no other.
#[test]
fn vmload_and_vmsave() {
    let (mut core, mut ground) = machine();
    core.segments.fs.base = 0x1000;
    core.segments.gs.base = 0x2000;
    core.segments.tr.selector = 0x28;
    core.segments.ldtr.limit = 0x17;
    core.msrs = cpu::core::Msrs {
        pat: 1,
        star: 2,
        lstar: 3,
        cstar: 4,
        fmask: 5,
        kernel_gs_base: 6,
        sysenter_cs: 7,
        sysenter_esp: 8,
        sysenter_eip: 9,
        ..core.msrs
    };
    let saved = core.clone();
    let mut svm = unit();
    svm.vmsave(&mut core, &mut ground, VMCB);
    assert_eq!(core, saved);
    assert_eq!((field(&ground, Field::Star), field(&ground, Field::SysenterEip)), (2, 9));
    assert_eq!(read_segment(&ground.mem, VMCB, SegmentField::Tr), saved.segments.tr);
    let (mut other, _) = machine();
    svm.vmload(&mut other, &mut ground, VMCB);
    assert_eq!(other.msrs, cpu::core::Msrs { pat: other.msrs.pat, ..saved.msrs });
    assert_eq!(other.segments, saved.segments);
    assert_ne!(other.msrs.pat, 1);
}

#[test]
fn global_interrupt_flag() {
    let (mut core, mut ground) = machine();
    let mut svm = unit();
    for (instruction, gif) in [(VirtInstruction::Clgi, Gif::Clear), (VirtInstruction::Stgi, Gif::Set)] {
        assert_eq!(run(&mut svm, &mut core, &mut ground, instruction), Ok(VirtDone::Next));
        assert_eq!(svm.gif(), gif);
    }
}

/// APM2 15.16: INVLPGA names an ASID, the host's included, wherever it is executed; it reaches every PCID.
#[test]
fn invlpga_scopes() {
    let (mut core, mut ground) = machine();
    let mut svm = unit();
    let page = Gva(0x6000);
    let asids = [ASID, 0, 9];
    for asid in asids {
        svm.invlpga(&mut core, &mut ground, page, asid);
    }
    enter(&mut svm, &mut core, &mut ground);
    for asid in asids {
        svm.invlpga(&mut core, &mut ground, page, asid);
    }
    let flushes = ground.log.records().iter().filter_map(|record| match &record.event {
        Event::TlbFlush { scope } => Some(scope.clone()),
        _ => None,
    });
    let expected = asids.map(|context| FlushScope::AddressEveryPcid { context, gva: page });
    assert_eq!(flushes.collect::<Vec<_>>(), [expected.clone(), expected].concat());
}

/// Instructions of VMX are undefined here.
#[test]
fn vmx_instructions() {
    for instruction in [
        VirtInstruction::Vmxon(0),
        VirtInstruction::Vmclear(0),
        VirtInstruction::Vmptrld(0),
        VirtInstruction::Vmptrst(VirtTarget::Register(Gpr::Rax)),
        VirtInstruction::Vmread { field: 0, target: VirtTarget::Register(Gpr::Rax) },
        VirtInstruction::Vmwrite { field: 0, value: 0 },
        VirtInstruction::Vmlaunch,
        VirtInstruction::Vmresume,
        VirtInstruction::Vmxoff,
        VirtInstruction::Vmcall,
        VirtInstruction::Invept { kind: 1, descriptor: [0; 2] },
        VirtInstruction::Invvpid { kind: 1, descriptor: [0; 2] },
    ] {
        let (mut core, mut ground) = machine();
        let result = run(&mut unit(), &mut core, &mut ground, instruction);
        assert_eq!(result, Err(Fault::Exception(Exception::ud())), "{instruction:?}");
    }
}

/// Software that calls the unit directly may not skip what the instruction would have checked.
#[test]
fn direct_calls_are_checked() {
    let (mut core, mut ground) = machine();
    let mut svm = unit();
    let internal = |result| matches!(result, Err(SimError::Internal(_)));
    assert!(internal(svm.enter(&mut core, &mut ground, VMCB.offset(8))));
    enter(&mut svm, &mut core, &mut ground);
    assert!(internal(svm.enter(&mut core, &mut ground, VMCB)));
}
