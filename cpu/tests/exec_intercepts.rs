//! What the extension is asked, with which operands, and that an intercepted instruction has no effect (SDM 3C 25.1;
//! APM2 15.7 to 15.9). Faults of privilege come before (SDM 3C 25.1.1).

mod harness;

use cpu::profile::Features;
use cpu::virt::{ControlRegister, ExtensionOpcode, MemoryOperand, Movement, Operands, TableInstruction, Trap};
use cpu::{Gpr, Outcome};
use harness::Machine;
use iced_x86::code_asm::*;
use sim_core::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::{Exception, PageFaultError, Vector};

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const PORT: Trap = Trap::Io { port: 0x80, bytes: 4, input: false, string: None };

/// Instruction, what is asked, and its length; rAX is 0x1234, rBX points to an absent page, rCX is IA32_STAR's address.
fn rows() -> Vec<(Emit, Trap, u8)> {
    let absent = harness::DATA + 0x3000;
    let cr_write = |register, value| Trap::CrWrite { register, gpr: Gpr::Rax, value };
    let cr_read = |register| Trap::CrRead { register, gpr: Gpr::Rdx };
    vec![
        (|a| a.mov(cr0, rax), cr_write(ControlRegister::Cr0, 0x1234), 3),
        (|a| a.mov(cr3, rax), cr_write(ControlRegister::Cr3, 0x1234), 3),
        (|a| a.mov(cr4, rax), cr_write(ControlRegister::Cr4, 0x1234), 3),
        (|a| a.mov(cr8, rax), cr_write(ControlRegister::Cr8, 0x1234), 4),
        (|a| a.mov(rdx, cr0), cr_read(ControlRegister::Cr0), 3),
        (|a| a.mov(rdx, cr3), cr_read(ControlRegister::Cr3), 3),
        (|a| a.mov(rdx, cr8), cr_read(ControlRegister::Cr8), 4),
        (CodeAssembler::clts, Trap::Clts, 2),
        (|a| a.invlpg(byte_ptr(rbx + 1)), Trap::Invlpg(Gva(absent + 1)), 4),
        (|a| a.invpcid(rax, xmmword_ptr(rbx)), Trap::Invpcid, 5),
        (|a| a.out(0x80, eax), PORT, 2),
        (|a| a.in_(al, dx), Trap::Io { port: 0, bytes: 1, input: true, string: None }, 1),
        (CodeAssembler::cpuid, Trap::Cpuid, 2),
        (CodeAssembler::hlt, Trap::Hlt, 1),
        (CodeAssembler::rdmsr, Trap::Rdmsr(0xc000_0081), 2),
        (CodeAssembler::wrmsr, Trap::Wrmsr(0xc000_0081, 0x1234), 2),
        (CodeAssembler::rdtsc, Trap::Rdtsc, 2),
        (CodeAssembler::wbinvd, Trap::Wbinvd, 2),
        (CodeAssembler::pause, Trap::Pause, 2),
        (|a| a.sgdt(ptr(rbx)), table(TableInstruction::Sgdt), 3),
        (|a| a.sidt(ptr(rbx)), table(TableInstruction::Sidt), 3),
        (|a| a.lgdt(ptr(rbx)), table(TableInstruction::Lgdt), 3),
        (|a| a.lidt(ptr(rbx)), table(TableInstruction::Lidt), 3),
        (|a| a.sldt(word_ptr(rbx)), table(TableInstruction::Sldt), 3),
        (|a| a.str(eax), table(TableInstruction::Str), 3),
        (|a| a.lldt(word_ptr(rbx)), table(TableInstruction::Lldt), 3),
        (|a| a.ltr(ax), table(TableInstruction::Ltr), 4),
        (|a| a.lmsw(ax), Trap::Lmsw { value: 0x1234, address: None }, 4),
        (|a| a.smsw(rdx), Trap::Smsw, 4),
        (|a| a.mov(dr6, rax), Trap::DrAccess { number: 6, gpr: Gpr::Rax, kind: AccessKind::Write }, 3),
        (|a| a.mov(rdx, dr0), Trap::DrAccess { number: 0, gpr: Gpr::Rdx, kind: AccessKind::Read }, 3),
        (CodeAssembler::rdtscp, Trap::Rdtscp, 3),
        (CodeAssembler::rdpmc, Trap::Rdpmc, 2),
        (CodeAssembler::rdpru, Trap::Rdpru, 3),
        (|a| a.rdrand(edx), Trap::Rdrand, 3),
        (|a| a.rdseed(rdx), Trap::Rdseed, 4),
        (CodeAssembler::invd, Trap::Invd, 2),
        (CodeAssembler::wbnoinvd, Trap::Wbinvd, 3),
        (CodeAssembler::monitor, Trap::Monitor, 3),
        (CodeAssembler::mwait, Trap::Mwait, 3),
        (CodeAssembler::xsetbv, Trap::Xsetbv, 3),
        (CodeAssembler::pushfq, Trap::Pushf, 1),
        (CodeAssembler::popfq, Trap::Popf, 1),
        (CodeAssembler::iretq, Trap::Iret, 2),
        (|a| a.int(0x80), Trap::Int(0x80), 2),
        (CodeAssembler::int1, Trap::Icebp, 1),
        (CodeAssembler::vmlaunch, Trap::Extension(ExtensionOpcode::Vmlaunch), 3),
        (|a| a.vmptrld(qword_ptr(rbx)), Trap::Extension(ExtensionOpcode::Vmptrld), 3),
        (|a| a.vmread(qword_ptr(rbx), rax), Trap::Extension(ExtensionOpcode::Vmread), 3),
        (|a| a.invept(rax, xmmword_ptr(rbx)), Trap::Extension(ExtensionOpcode::Invept), 5),
        (CodeAssembler::vmrun, Trap::Extension(ExtensionOpcode::Vmrun), 3),
        (CodeAssembler::skinit, Trap::Extension(ExtensionOpcode::Skinit), 3),
        (CodeAssembler::vmfunc, Trap::Extension(ExtensionOpcode::Vmfunc), 3),
        (CodeAssembler::int3, Trap::Exception(Exception::plain(Vector::Breakpoint)), 1),
        (CodeAssembler::ud2, Trap::Exception(Exception::ud()), 2),
        (|a| a.mov(dword_ptr(rbx), eax), Trap::Exception(Exception::page_fault(Gva(absent), PageFaultError::W)), 2),
    ]
}

const fn table(instruction: TableInstruction) -> Trap {
    Trap::DescriptorTable(instruction)
}

fn machine(emit: Emit) -> Machine {
    let mut machine = Machine::long64();
    machine.set_page(3, 0);
    machine.set(Gpr::Rax, 0x1234);
    machine.set(Gpr::Rbx, harness::DATA + 0x3000);
    machine.set(Gpr::Rcx, 0xc000_0081);
    machine.core.features = Features::all();
    machine.core.cr4 |= Cr4::OSXSAVE;
    machine.code64(emit);
    machine
}

#[test]
fn intercepted_instructions_have_no_effect() {
    for (emit, trap, length) in rows() {
        let mut machine = machine(emit);
        machine.virt.intercepts = |_| true;
        let mut before = machine.core.clone();
        assert_eq!(machine.step(), Ok(Outcome::Moved(Movement::Exited)), "{trap:?}");
        let asked: Vec<_> = machine.virt.asked.iter().map(|(asked, at)| (*asked, at.length)).collect();
        assert_eq!(asked, [(trap, length)]);
        before.tlb = machine.core.tlb.clone();
        assert_eq!(machine.core, before, "{trap:?}");
    }
}

/// What users may execute, or what the extension itself judges.
const fn is_open(trap: &Trap) -> bool {
    matches!(
        trap,
        Trap::Cpuid
            | Trap::Rdtsc
            | Trap::Pause
            | Trap::Exception(_)
            | Trap::DescriptorTable(
                TableInstruction::Sgdt | TableInstruction::Sidt | TableInstruction::Sldt | TableInstruction::Str
            )
            | Trap::Smsw
            | Trap::Rdtscp
            | Trap::Rdpru
            | Trap::Rdrand
            | Trap::Rdseed
            | Trap::Pushf
            | Trap::Popf
            | Trap::Iret
            | Trap::Int(_)
            | Trap::Icebp
            | Trap::Extension(_)
    )
}

/// Ring 3: privileged instructions are #GP(0) before anything else is asked.
#[test]
fn privilege_comes_first() {
    for (emit, trap, _) in rows() {
        let open = is_open(&trap);
        let mut machine = machine(emit);
        machine.drop_to_user();
        machine.virt.intercepts = |_| true;
        assert_eq!(machine.step(), Ok(Outcome::Moved(Movement::Exited)));
        let first = machine.virt.asked[0].0;
        let undefined = matches!(trap, Trap::Monitor | Trap::Mwait);
        let refused = if undefined { Exception::ud() } else { Exception::gp0() };
        let expected = if open { trap } else { Trap::Exception(refused) };
        if let (Trap::Exception(asked), Trap::Exception(expected)) = (first, expected) {
            assert_eq!(asked.vector, expected.vector);
        } else {
            assert_eq!(first, expected);
        }
    }
}

/// An exception during a delivery is offered by itself before it merges into #DF, and an intercepted page fault leaves
/// CR2 alone (SDM 3C 27.1).
#[test]
fn nested_exceptions_are_offered_first() {
    let mut machine = machine(|a| a.mov(dword_ptr(rbx), eax));
    machine.set(Gpr::Rsp, harness::DATA + 0x3800);
    machine.virt.intercepts = |trap| matches!(trap, Trap::Exception(e) if e.cr2 == Some(Gva(harness::DATA + 0x37f8)));
    assert_eq!(machine.step(), Ok(Outcome::Moved(Movement::Exited)));
    assert_eq!(machine.virt.asked.len(), 2);
    assert_eq!(machine.core.cr2, Gva(harness::DATA + 0x3000), "CR2 is the first fault's");

    let mut machine = self::machine(|a| a.mov(dword_ptr(rbx), eax));
    machine.virt.intercepts = |_| true;
    machine.step().unwrap();
    assert_eq!(machine.core.cr2, Gva(0));
}

/// An injected exception is not asked about and does not touch CR2; what its delivery meets is (SDM 3C 26.6.1).
#[test]
fn injection() {
    let mut machine = machine(CodeAssembler::nop);
    machine.virt.intercepts = |_| true;
    let fault = Exception::page_fault(Gva(0x5000), PageFaultError::W);
    let (core, virt, ground) = (&mut machine.core, &mut machine.virt, &mut machine.ground);
    let outcome = cpu::exception::deliver_injected(core, virt, ground, fault);
    assert_eq!(outcome, Ok(Outcome::Delivered));
    assert_eq!((machine.core.cr2, machine.virt.asked.len()), (Gva(0), 0));
    assert_eq!(machine.core.rip, harness::HANDLERS + 16 * 14);
    assert_eq!(machine.quad(machine.gpr(Gpr::Rsp)), 2);

    machine.core.idtr.limit = 0;
    let (core, virt, ground) = (&mut machine.core, &mut machine.virt, &mut machine.ground);
    let outcome = cpu::exception::deliver_injected(core, virt, ground, Exception::ud());
    assert_eq!(outcome, Ok(Outcome::Moved(Movement::Exited)));
    let expected = Exception::with_error(Vector::GeneralProtection, 6 * 8 + 3);
    assert_eq!(machine.virt.asked[0].0, Trap::Exception(expected));
}

/// The operands as encoded (SDM 3C 27.2.5): memory operands with their parts, registers by their place in ModRM.
#[test]
fn operands_as_encoded() {
    let memory = |base, index, scale, segment, displacement: i64| {
        Some(MemoryOperand { base, index, scale, segment, address_bytes: 8, displacement: displacement as u64 })
    };
    let rows: Vec<(Emit, Operands)> = vec![
        (
            |a| a.sgdt(ptr(rbx + 8)),
            Operands { memory: memory(Some(Gpr::Rbx), None, 0, 3, 8), bytes: 8, ..Operands::NONE },
        ),
        (
            |a| a.lidt(ptr(rsp + rcx * 4 - 16)),
            Operands { memory: memory(Some(Gpr::Rsp), Some(Gpr::Rcx), 2, 2, -16), bytes: 8, ..Operands::NONE },
        ),
        (|a| a.str(edx), Operands { rm: Some(Gpr::Rdx), bytes: 4, ..Operands::NONE }),
        (
            |a| a.vmwrite(rcx, qword_ptr(r9).fs()),
            Operands { memory: memory(Some(Gpr::R9), None, 0, 4, 0), reg: Some(Gpr::Rcx), bytes: 8, ..Operands::NONE },
        ),
        (|a| a.vmread(rdx, rsi), Operands { rm: Some(Gpr::Rdx), reg: Some(Gpr::Rsi), bytes: 8, ..Operands::NONE }),
        (
            |a| a.invvpid(rdi, xmmword_ptr(0x1234)),
            Operands { memory: memory(None, None, 0, 3, 0x1234), reg: Some(Gpr::Rdi), bytes: 8, ..Operands::NONE },
        ),
        (|a| a.rdrand(ebp), Operands { rm: Some(Gpr::Rbp), bytes: 4, ..Operands::NONE }),
    ];
    for (emit, expected) in rows {
        let mut machine = machine(emit);
        machine.virt.intercepts = |_| true;
        machine.step().unwrap();
        assert_eq!(machine.virt.asked[0].1.operand, expected, "{:?}", machine.virt.asked[0].0);
    }
}

/// CPUID says what there is: no extension here, and MAXPHYADDR.
#[test]
fn cpuid_leaves() {
    for (leaf, register, expected) in [
        (0, Gpr::Rax, 7),
        (0, Gpr::Rbx, u64::from(u32::from_le_bytes(*b"role"))),
        (1, Gpr::Rcx, 1 << 13 | 1 << 17),
        (0x8000_0008, Gpr::Rax, 57 << 8 | 40),
        (0x1234_5678, Gpr::Rax, 0),
    ] {
        let mut machine = Machine::long64();
        machine.set(Gpr::Rax, leaf);
        machine.code64(CodeAssembler::cpuid);
        machine.retire(1);
        assert_eq!(machine.gpr(register), expected, "leaf {leaf:#x}");
    }
}
