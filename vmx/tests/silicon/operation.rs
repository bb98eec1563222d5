//! The VMX instructions in every mode of operation (SDM 3C 23.3, 30.3), the numbers of VMfail (30.4), and the
//! capability MSRs (SDM 3D appendix A).

use crate::bench::{AT, Bench, OTHER, VMCS, VMXON, off, ready, root, running};
use cpu::core::Bitness;
use cpu::virt::{Movement, Virt, VirtDone, VirtInstruction, VirtTarget};
use cpu::{Fault, Gpr};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::Rights;
use sim_core::{Gva, Hpa};
use vmx::InstructionError::{self, *};
use vmx::controls::{PrimaryProc, SecondaryProc};
use vmx::{Capabilities, Entered, Entry, ExitReason, Field, InvvpidScope, Operation, VmFail, Vmx};

/// What an instruction does in one mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Succeeds(Operation),
    FailsInvalid,
    Fails(InstructionError),
    Enters,
    Exits(ExitReason),
    Ud,
    Gp,
}

use Does::{Enters, Exits, Fails, FailsInvalid, Gp, Succeeds, Ud};

const READ: VirtInstruction = VirtInstruction::Vmread { field: 0x681e, target: VirtTarget::Register(Gpr::Rbx) };
const SINGLE_EPT: VirtInstruction = VirtInstruction::Invept { kind: 1, descriptor: [0x901e, 0] };
const SINGLE_VPID: VirtInstruction = VirtInstruction::Invvpid { kind: 1, descriptor: [7, 0] };

/// Each VMX instruction: in root operation without a current VMCS, in root operation with one, in non-root operation.
const INSTRUCTIONS: [(VirtInstruction, Does, Does, Does); 12] = [
    (VirtInstruction::Vmxon(VMXON.0), FailsInvalid, Fails(VmxonInRoot), Exits(ExitReason::Vmxon)),
    (VirtInstruction::Vmxoff, Succeeds(Operation::Off), Succeeds(Operation::Off), Exits(ExitReason::Vmxoff)),
    (
        VirtInstruction::Vmclear(OTHER.0),
        Succeeds(Operation::Root),
        Succeeds(Operation::Root),
        Exits(ExitReason::Vmclear),
    ),
    (
        VirtInstruction::Vmptrld(OTHER.0),
        Succeeds(Operation::Root),
        Succeeds(Operation::Root),
        Exits(ExitReason::Vmptrld),
    ),
    (
        VirtInstruction::Vmptrst(VirtTarget::Register(Gpr::Rbx)),
        Succeeds(Operation::Root),
        Succeeds(Operation::Root),
        Exits(ExitReason::Vmptrst),
    ),
    (READ, FailsInvalid, Succeeds(Operation::Root), Exits(ExitReason::Vmread)),
    (
        VirtInstruction::Vmwrite { field: 0x681e, value: 1 },
        FailsInvalid,
        Succeeds(Operation::Root),
        Exits(ExitReason::Vmwrite),
    ),
    (VirtInstruction::Vmlaunch, FailsInvalid, Enters, Exits(ExitReason::Vmlaunch)),
    (VirtInstruction::Vmresume, FailsInvalid, Fails(VmresumeNotLaunched), Exits(ExitReason::Vmresume)),
    (VirtInstruction::Vmcall, FailsInvalid, Fails(VmcallInRoot), Exits(ExitReason::Vmcall)),
    (SINGLE_EPT, Succeeds(Operation::Root), Succeeds(Operation::Root), Exits(ExitReason::Invept)),
    (SINGLE_VPID, Succeeds(Operation::Root), Succeeds(Operation::Root), Exits(ExitReason::Invvpid)),
];

/// SVM's instructions do not exist on this processor.
const FOREIGN: [VirtInstruction; 7] = [
    VirtInstruction::Vmrun(0),
    VirtInstruction::Vmload(0),
    VirtInstruction::Vmsave(0),
    VirtInstruction::Stgi,
    VirtInstruction::Clgi,
    VirtInstruction::Vmmcall,
    VirtInstruction::Invlpga { address: Gva(0), asid: 1 },
];

type Spoiler = (&'static str, fn(&mut Bench));

fn without_current() -> Bench {
    let mut bench = ready();
    bench.vmx.vmclear(&mut bench.ground, VMCS).unwrap();
    bench
}

fn execute(bench: &mut Bench, instruction: &VirtInstruction) -> Does {
    let before = bench.core.clone();
    match bench.vmx.instruction(&mut bench.core, &mut bench.ground, instruction, AT) {
        Ok(VirtDone::Moved(Movement::Entered)) => Enters,
        Ok(VirtDone::Moved(Movement::Exited)) => {
            assert_eq!(bench.vmx.exiting_instruction(), Some(*instruction));
            assert_eq!(bench.get(Field::ExitInstructionLength), u64::from(AT.length));
            assert_eq!(bench.get(Field::GuestRip), before.rip);
            Exits(ExitReason::from_word(bench.get(Field::ExitReason)).unwrap())
        }
        Ok(VirtDone::Next) => match bench.core.rflags.intersection(Rflags::STATUS) {
            Rflags::CF => FailsInvalid,
            Rflags::ZF => {
                let number = bench.get(Field::InstructionError) as u32;
                Fails(InstructionError::ALL.iter().copied().find(|error| error.number() == number).unwrap())
            }
            none => {
                assert!(none.is_empty());
                Succeeds(bench.vmx.operation())
            }
        },
        Err(fault) => {
            assert_eq!(bench.core, before);
            if fault == Fault::Exception(Exception::ud()) {
                Ud
            } else {
                assert_eq!(fault, Fault::Exception(Exception::gp0()));
                Gp
            }
        }
    }
}

#[test]
fn every_instruction_in_every_mode() {
    let mut cases = 0;
    for (instruction, no_current, current, guest) in INSTRUCTIONS {
        let is_vmxon = matches!(instruction, VirtInstruction::Vmxon(_));
        let outside = if is_vmxon { Succeeds(Operation::Root) } else { Ud };
        let outside_user = if is_vmxon { Gp } else { Ud };
        for (mut bench, at_ring0, at_ring3) in [
            (off(), outside, outside_user),
            (without_current(), no_current, Gp),
            (ready(), current, Gp),
            (running(), guest, guest),
        ] {
            let mode = bench.vmx.operation();
            let mut user = bench.clone();
            user.core.segments.ss.rights = Rights(0xc0f3);
            assert_eq!(execute(&mut user, &instruction), at_ring3, "{instruction:?} in {mode:?} at CPL 3");
            bench.core.rflags.insert(Rflags::STATUS);
            assert_eq!(execute(&mut bench, &instruction), at_ring0, "{instruction:?} in {mode:?}");
            cases += 2;
        }
    }
    println!("{cases} of instruction x mode x privilege");
}

/// SDM 3C 30.3: #UD in real-address, virtual-8086 and compatibility mode, and with CR4.VMXE = 0 outside VMX operation.
#[test]
fn undecodable_is_ud_everywhere() {
    let spoilers: [Spoiler; 3] = [
        ("real-address", |b| b.core.cr0 = b.core.cr0.difference(sim_core::arch::control::Cr0::PE)),
        ("virtual-8086", |b| b.core.rflags.insert(Rflags::VM)),
        ("compatibility", |b| b.core.segments.cs.rights = Rights::CODE32),
    ];
    let mut cases = 0;
    for (name, spoil) in spoilers {
        for make in [off, without_current, ready, running] {
            for (instruction, ..) in INSTRUCTIONS {
                let mut bench = make();
                // VMCALL leaves a guest from every mode.
                let leaves = instruction == VirtInstruction::Vmcall && bench.vmx.operation() == Operation::NonRoot;
                spoil(&mut bench);
                let expected = if leaves { Exits(ExitReason::Vmcall) } else { Ud };
                assert_eq!(execute(&mut bench, &instruction), expected, "{instruction:?} in {name} mode");
                cases += 1;
            }
        }
    }
    for make in [off, ready, running] {
        for instruction in FOREIGN {
            assert_eq!(execute(&mut make(), &instruction), Ud, "{instruction:?}");
            cases += 1;
        }
    }
    let mut bench = off();
    bench.core.cr4.remove(sim_core::arch::control::Cr4::VMXE);
    assert_eq!(execute(&mut bench, &VirtInstruction::Vmxon(VMXON.0)), Ud);
    println!("{} of #UD", cases + 1);
}

/// SDM 3C 30.4, with what brings each number about.
#[test]
fn vmfail_numbers() {
    let bad = 1 << 46;
    let write = |field| VirtInstruction::Vmwrite { field, value: 0 };
    let read = |field| VirtInstruction::Vmread { field, target: VirtTarget::Register(Gpr::Rbx) };
    let invept = |kind, eptp| VirtInstruction::Invept { kind, descriptor: [eptp, 0] };
    let invvpid = |kind, low, address| VirtInstruction::Invvpid { kind, descriptor: [low, address] };
    let cases = [
        (VirtInstruction::Vmcall, VmcallInRoot),
        (VirtInstruction::Vmclear(0x2800), VmclearAddress),
        (VirtInstruction::Vmclear(bad), VmclearAddress),
        (VirtInstruction::Vmclear(VMXON.0), VmclearVmxonPointer),
        (VirtInstruction::Vmresume, VmresumeNotLaunched),
        (VirtInstruction::Vmptrld(1), VmptrldAddress),
        (VirtInstruction::Vmptrld(VMXON.0), VmptrldVmxonPointer),
        (VirtInstruction::Vmptrld(0xb000), VmptrldRevision),
        (read(0x4026), UnsupportedComponent),
        (read(1 << 32 | 0x681e), UnsupportedComponent),
        (write(0x4026), UnsupportedComponent),
        (write(0x4400), ReadOnlyComponent),
        (write(0x2400), ReadOnlyComponent),
        (VirtInstruction::Vmxon(VMXON.0), VmxonInRoot),
        (invept(0, 0x901e), InvalidationOperand),
        (invept(1, 0x901f), InvalidationOperand),
        (invept(3, 0x901e), InvalidationOperand),
        (invvpid(0, 0, 0x1000), InvalidationOperand),
        (invvpid(0, 7, 1 << 60), InvalidationOperand),
        (invvpid(1, 0, 0), InvalidationOperand),
        (invvpid(1, 0x1_0007, 0), InvalidationOperand),
        (invvpid(3, 0, 0), InvalidationOperand),
        (invvpid(4, 7, 0), InvalidationOperand),
    ];
    for (instruction, error) in cases {
        assert_eq!(execute(&mut ready(), &instruction), Fails(error), "{instruction:?}");
    }
    let mut bench = ready();
    bench.launch();
    assert_eq!(execute(&mut bench, &VirtInstruction::Vmcall), Exits(ExitReason::Vmcall));
    assert_eq!(execute(&mut bench, &VirtInstruction::Vmlaunch), Fails(VmlaunchNotClear));
    assert_eq!(bench.enter(Entry::Launch), Entered::Failed(VmFail::Valid(VmlaunchNotClear)));
    println!("{} of VMfailValid", cases.len() + 2);
}

/// SDM 3C 30.3 VMXON: a bad region is VMfailInvalid; control registers without the fixed bits are #GP(0).
#[test]
fn vmxon_looks_at_its_region_and_the_control_registers() {
    for region in [VMXON.0 + 8, 1 << 46, 0xb000] {
        let mut bench = off();
        assert_eq!(execute(&mut bench, &VirtInstruction::Vmxon(region)), FailsInvalid, "{region:#x}");
        assert_eq!(bench.vmx.operation(), Operation::Off);
    }
    let mut bench = off();
    bench.core.cr0.remove(sim_core::arch::control::Cr0::NE);
    assert_eq!(execute(&mut bench, &VirtInstruction::Vmxon(VMXON.0)), Gp);
}

/// SDM 3C 30.3: what the instructions read and write; both halves of a 64-bit field.
#[test]
fn fields_by_instruction() {
    let mut bench = ready();
    let write = |field, value| VirtInstruction::Vmwrite { field, value };
    let read = |field| VirtInstruction::Vmread { field, target: VirtTarget::Register(Gpr::Rbx) };
    for (field, value, expected) in [
        (Field::GuestRip, 0x1111_2222_3333_4444, 0x1111_2222_3333_4444),
        (Field::GuestEsLimit, 0x1111_2222_3333_4444, 0x3333_4444),
        (Field::GuestEsSelector, 0x1_2222_3333, 0x3333),
        (Field::TscOffset, u64::MAX, u64::MAX),
    ] {
        let encoding = field.encoding().into();
        assert_eq!(execute(&mut bench, &write(encoding, value)), Succeeds(Operation::Root));
        assert_eq!(execute(&mut bench, &read(encoding)), Succeeds(Operation::Root));
        assert_eq!(bench.core.gpr(Gpr::Rbx), expected, "{}", field.name());
        assert_eq!(bench.vmx.vmread(&bench.ground, field), expected);
    }
    let high = u64::from(Field::TscOffset.encoding()) | 1;
    assert_eq!(execute(&mut bench, &write(high, 0x55)), Succeeds(Operation::Root));
    assert_eq!(bench.get(Field::TscOffset), 0x55_ffff_ffff);
    assert_eq!(execute(&mut bench, &read(high)), Succeeds(Operation::Root));
    assert_eq!(bench.core.gpr(Gpr::Rbx), 0x55);
    assert_eq!(bench.core.bitness(), Bitness::Bits64);
    let store = VirtInstruction::Vmptrst(VirtTarget::Register(Gpr::Rcx));
    assert_eq!(execute(&mut bench, &store), Succeeds(Operation::Root));
    assert_eq!(bench.core.gpr(Gpr::Rcx), VMCS.0);
    assert_eq!(execute(&mut bench, &VirtInstruction::Vmclear(VMCS.0)), Succeeds(Operation::Root));
    assert_eq!(execute(&mut bench, &store), Succeeds(Operation::Root));
    assert_eq!(bench.core.gpr(Gpr::Rcx), u64::MAX);
}

/// The methods that L0 calls keep to the same rules.
#[test]
fn l0_calls() {
    let mut bench = off();
    assert_eq!(bench.vmx.vmptrld(&mut bench.ground, VMCS), Err(VmFail::Invalid));
    assert_eq!(bench.vmx.vmxoff(&mut bench.core, &mut bench.ground), Err(VmFail::Invalid));
    let mut bench = root();
    assert_eq!(bench.vmx.current(), Some(VMCS));
    assert_eq!(bench.vmx.vmclear(&mut bench.ground, Hpa(1)), Err(VmFail::Valid(VmclearAddress)));
    let scope = InvvpidScope::Single(0);
    let done = bench.vmx.invvpid(&mut bench.core, &mut bench.ground, scope);
    assert_eq!(done, Err(VmFail::Valid(InvalidationOperand)));
    bench.vmx.vmxoff(&mut bench.core, &mut bench.ground).unwrap();
    assert_eq!((bench.vmx.operation(), bench.vmx.current()), (Operation::Off, None));
    assert!(bench.vmx.enter(&mut bench.core, &mut bench.ground, Entry::Launch).is_err());
}

/// A profile without a control: its fields are unsupported components, and an entry that sets it fails late, with
/// error 7.
#[test]
fn a_lean_profile_refuses_late() {
    let mut bench = ready();
    let eptp = u64::from(Field::EptPointer.encoding());
    let lean = bench.vmx.capabilities().without(SecondaryProc::ENABLE_EPT);
    let mut vmx = Vmx::new(lean);
    vmx.vmxon(&mut bench.core, &mut bench.ground, VMXON).unwrap();
    vmx.vmptrld(&mut bench.ground, VMCS).unwrap();
    bench.vmx = vmx;
    assert_eq!(bench.enter(Entry::Launch), Entered::Failed(VmFail::Valid(EntryControls)));
    let write = VirtInstruction::Vmwrite { field: eptp, value: 0 };
    assert_eq!(execute(&mut bench, &write), Fails(UnsupportedComponent));
    bench.without_ept();
    assert_eq!(bench.enter(Entry::Launch), Entered::Guest);
}

/// SDM 3D appendix A; IA32_FEATURE_CONTROL is locked.
#[test]
fn capability_msrs() {
    let mut bench = off();
    let full = Capabilities::default();
    let mut present = 0;
    for index in 0x480..=0x491 {
        let expected = full.msr(index).ok_or(Exception::gp0());
        assert_eq!(bench.vmx.rdmsr(&bench.core, index), Some(expected), "{index:#x}");
        assert_eq!(bench.vmx.wrmsr(&mut bench.core, index, 0), Some(Err(Exception::gp0())));
        present += u32::from(expected.is_ok());
    }
    assert_eq!(bench.vmx.rdmsr(&bench.core, 0x3a), Some(Ok(5)));
    assert_eq!(bench.vmx.rdmsr(&bench.core, 0xc000_0080), None);
    let secondary = full.msr(0x48b).unwrap() >> 32;
    assert_eq!(secondary, 0b1_0000_1110_0010, "EPT, VPID, WBINVD, unrestricted guest, INVPCID");
    assert_eq!(full.msr(0x482).unwrap() >> 63, u64::from(full.offers(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS)));
    println!("{present} of 18 capability MSRs");
}

/// A unit survives a checkpoint in every mode, with the operands of whatever instruction left the guest last.
#[test]
fn units_are_saved_whole() {
    let exited = INSTRUCTIONS.map(|(instruction, ..)| {
        let mut bench = running();
        execute(&mut bench, &instruction);
        bench.vmx
    });
    for vmx in exited.into_iter().chain([off().vmx, ready().vmx, running().vmx]) {
        let saved = serde_json::to_string(&vmx).unwrap();
        assert_eq!(serde_json::from_str::<Vmx>(&saved).unwrap(), vmx);
    }
}
