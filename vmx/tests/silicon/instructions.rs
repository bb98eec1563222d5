//! What the VMX instructions do on a processor with every control: shadow VMCSs, VMWRITE to any field, exceptions that come
//! before operands are read (SDM 3C 24.2, 30.3).

use crate::bench::{AT, Bench, OTHER, VMCS, off, whole};
use cpu::virt::{ExtensionOpcode as Opcode, Trap, Verdict, Virt, VirtDone, VirtInstruction, VirtTarget};
use cpu::{Core, Gpr};
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::Rights;
use vmx::vmcs::Region;
use vmx::{Capabilities, Entered, Entry, Field, InstructionError, VmFail, Vmx};

fn run(bench: &mut Bench, instruction: VirtInstruction) -> Rflags {
    let done = bench.vmx.instruction(&mut bench.core, &mut bench.ground, &instruction, AT);
    assert_eq!(done, Ok(VirtDone::Next), "{instruction:?}");
    bench.core.rflags & Rflags::STATUS
}

fn make_shadow(bench: &mut Bench) {
    let revision = bench.vmx.capabilities().revision;
    bench.ground.mem.write_u32(OTHER, revision | 1 << 31);
}

/// SDM 3C 24.10, 30.3: a shadow VMCS can be made current, read and written, and not entered; without VMCS shadowing its
/// indicator is a wrong revision identifier.
#[test]
fn shadow_vmcs() {
    let mut bench = whole();
    make_shadow(&mut bench);
    assert_eq!(bench.vmx.vmptrld(&mut bench.ground, OTHER), Ok(()));
    let field = Field::GuestRip.encoding().into();
    assert_eq!(run(&mut bench, VirtInstruction::Vmwrite { field, value: 5 }), Rflags::empty());
    assert_eq!(Region(OTHER).get(&bench.ground, Field::GuestRip), 5);
    assert_eq!(bench.enter(Entry::Launch), Entered::Failed(VmFail::Invalid));
    let mut lean = crate::bench::ready();
    make_shadow(&mut lean);
    let fail = VmFail::Valid(InstructionError::VmptrldRevision);
    assert_eq!(lean.vmx.vmptrld(&mut lean.ground, OTHER), Err(fail));
    let mut bench = off();
    bench.vmx = Vmx::new(Capabilities::architectural());
    make_shadow(&mut bench);
    assert_eq!(bench.vmx.vmxon(&mut bench.core, &mut bench.ground, OTHER), Err(VmFail::Invalid));
}

/// SDM 3D A.6 bit 29: VMWRITE reaches exit information, in both halves of a 64-bit field.
#[test]
fn vmwrite_to_any_field() {
    let mut bench = whole();
    let gpa = u64::from(Field::GuestPhysicalAddress.encoding());
    for (field, value) in [(gpa, 0x1111_2222_3333_4444), (gpa | 1, 0x9999_0000_5555_6666)] {
        assert_eq!(run(&mut bench, VirtInstruction::Vmwrite { field, value }), Rflags::empty());
    }
    assert_eq!(bench.get(Field::GuestPhysicalAddress), 0x5555_6666_3333_4444);
    run(&mut bench, VirtInstruction::Vmread { field: gpa | 1, target: VirtTarget::Register(Gpr::R8) });
    assert_eq!(bench.core.gpr(Gpr::R8), 0x5555_6666);
    let field = u64::from(Field::ExitReason.encoding());
    for operand in [field | 1, 1 << 32 | field] {
        assert_eq!(run(&mut bench, VirtInstruction::Vmwrite { field: operand, value: 0 }), Rflags::ZF);
        assert_eq!(Region(VMCS).get(&bench.ground, Field::InstructionError), 12, "{operand:#x}");
    }
}

const VMX: [Opcode; 12] = [
    Opcode::Vmxon,
    Opcode::Vmclear,
    Opcode::Vmptrld,
    Opcode::Vmptrst,
    Opcode::Vmread,
    Opcode::Vmwrite,
    Opcode::Vmlaunch,
    Opcode::Vmresume,
    Opcode::Vmxoff,
    Opcode::Vmcall,
    Opcode::Invept,
    Opcode::Invvpid,
];

/// SDM 3C 30.3, the pseudocode of each instruction: #UD and #GP(0) before the operands are looked at.
#[test]
fn exceptions_before_operands() {
    type Spoiler = (fn(&mut Core), fn(Opcode) -> Option<Exception>);
    let ud = |_| Some(Exception::ud());
    let in_off: [Spoiler; 4] = [
        (|_| {}, |opcode| (opcode != Opcode::Vmxon).then(Exception::ud)),
        (|core| core.cr4.remove(Cr4::VMXE), ud),
        (
            |core| core.cr0.remove(Cr0::NE),
            |opcode| Some(if opcode == Opcode::Vmxon { Exception::gp0() } else { Exception::ud() }),
        ),
        (
            |core| core.segments.ss.rights.0 |= 3 << 5,
            |opcode| Some(if opcode == Opcode::Vmxon { Exception::gp0() } else { Exception::ud() }),
        ),
    ];
    let in_root: [Spoiler; 4] = [
        (|_| {}, |_| None),
        (|core| core.segments.ss.rights.0 |= 1 << 5, |_| Some(Exception::gp0())),
        (|core| core.segments.cs.rights = Rights::CODE32, ud),
        (|core| core.rflags.insert(Rflags::VM), ud),
    ];
    let in_guest: [Spoiler; 3] = [
        (|_| {}, |_| None),
        (|core| core.segments.ss.rights.0 |= 3 << 5, |_| None),
        (|core| core.segments.cs.rights = Rights::CODE32, |opcode| (opcode != Opcode::Vmcall).then(Exception::ud)),
    ];
    let mut cases = 0;
    let benches = [(off(), &in_off[..]), (whole(), &in_root[..]), (whole().run_with(|_| {}), &in_guest[..])];
    for (bench, spoilers) in benches {
        for ((spoil, expected), opcode) in spoilers.iter().flat_map(|row| VMX.map(|opcode| (*row, opcode))) {
            let mut bench = bench.clone();
            spoil(&mut bench.core);
            let verdict = expected(opcode).map_or(Verdict::Continue, Verdict::Raise);
            assert_eq!(bench.trap(Trap::Extension(opcode)), verdict, "{opcode:?}");
            cases += 1;
        }
        for opcode in [Opcode::Vmrun, Opcode::Stgi, Opcode::Vmmcall, Opcode::Invlpga] {
            let mut bench = bench.clone();
            assert_eq!(bench.trap(Trap::Extension(opcode)), Verdict::Raise(Exception::ud()), "{opcode:?}");
            cases += 1;
        }
    }
    println!("{cases} of opcode, operation and mode");
}
