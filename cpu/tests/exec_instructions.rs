//! What instructions do, one row a case (SDM 2, each instruction's page).

mod harness;

use cpu::virt::{VirtInstruction, VirtTarget};
use cpu::{Gpr, Outcome, StopOn};
use harness::{DATA, Machine};
use iced_x86::code_asm::*;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::event::{Detail, Event, EventLog};
use sim_core::{Gva, Hpa, SimError};

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const OLD: u64 = 0x8877_6655_4433_2211;

/// 64-bit code; rAX and the quadword at DATA (which rBX points to) hold OLD, rCX 0x1234: what rAX and memory become.
const MOVES: &[(&str, Emit, u64, u64)] = &[
    ("mov r8 keeps the rest", |a| a.mov(al, cl), (OLD & !0xff) | 0x34, OLD),
    ("mov high byte", |a| a.mov(ah, cl), (OLD & !0xff00) | 0x3400, OLD),
    ("mov r16 keeps the rest", |a| a.mov(ax, cx), (OLD & !0xffff) | 0x1234, OLD),
    ("mov r32 clears the upper half", |a| a.mov(eax, ecx), 0x1234, OLD),
    ("mov r64, imm32 sign-extends", |a| a.mov(rax, -2_i64), u64::MAX - 1, OLD),
    ("mov m8", |a| a.mov(byte_ptr(rbx), cl), OLD, (OLD & !0xff) | 0x34),
    ("mov m32", |a| a.mov(dword_ptr(rbx), ecx), OLD, (OLD & !0xffff_ffff) | 0x1234),
    ("mov m64, imm32", |a| a.mov(qword_ptr(rbx), -1), OLD, u64::MAX),
    ("mov moffs", |a| a.mov(rax, qword_ptr(DATA)), OLD, OLD),
    ("movzx", |a| a.movzx(eax, byte_ptr(rbx + 7)), 0x88, OLD),
    ("movsx to 64", |a| a.movsx(rax, byte_ptr(rbx + 7)), 0xffff_ffff_ffff_ff88, OLD),
    ("movsx to 32 clears the upper half", |a| a.movsx(eax, byte_ptr(rbx + 7)), 0xffff_ff88, OLD),
    ("movsxd", |a| a.movsxd(rax, dword_ptr(rbx + 4)), 0xffff_ffff_8877_6655, OLD),
    ("mov from a segment register", |a| a.mov(eax, ds), 0x10, OLD),
    ("mov from a segment register to memory is 16 bits", |a| a.mov(word_ptr(rbx), ds), OLD, (OLD & !0xffff) | 0x10),
    ("lea", |a| a.lea(rax, ptr(rbx + rcx * 4 + 5)), DATA + 0x1234 * 4 + 5, OLD),
    ("lea with 32-bit addresses", |a| a.lea(rax, ptr(ebx - 0x20_0001)), 0xffff_ffff, OLD),
    ("lea relative to RIP", |a| a.db(&[0x48, 0x8d, 0x05, 0x10, 0, 0, 0]), harness::CODE + 7 + 0x10, OLD),
    ("xchg", |a| a.xchg(qword_ptr(rbx), rcx), OLD, 0x1234),
    ("xadd", |a| a.xadd(qword_ptr(rbx), rax), OLD, OLD.wrapping_mul(2)),
    ("cmpxchg, equal", |a| a.cmpxchg(qword_ptr(rbx), rcx), OLD, 0x1234),
    ("cmpxchg, not equal", |a| a.cmpxchg(word_ptr(rbx + 2), cx), (OLD & !0xffff) | 0x4433, OLD),
    ("bswap", |a| a.bswap(rax), OLD.swap_bytes(), OLD),
    ("bswap of 32 bits", |a| a.bswap(eax), 0x1122_3344, OLD),
    ("cbw", CodeAssembler::cbw, (OLD & !0xffff) | 0x11, OLD),
    ("cwde", CodeAssembler::cwde, 0x2211, OLD),
    ("cdqe", CodeAssembler::cdqe, 0x4433_2211, OLD),
    ("setc, carry clear", |a| a.setb(al), OLD & !0xff, OLD),
    ("setnc to memory", |a| a.setae(byte_ptr(rbx)), OLD, (OLD & !0xff) | 1),
    ("cmov taken", |a| a.cmovae(rax, rcx), 0x1234, OLD),
    ("cmov not taken", |a| a.cmovb(rax, rcx), OLD, OLD),
    ("cmov not taken clears the upper half", |a| a.cmovb(eax, ecx), OLD & 0xffff_ffff, OLD),
    ("bts beyond the operand", |a| a.bts(dword_ptr(rbx - 4), r8d), OLD, OLD | 1 << 3),
    ("btr with a negative index", |a| a.btr(dword_ptr(rbx + 4), r9d), OLD, OLD & !(1 << 4)),
    ("btc with an immediate", |a| a.btc(qword_ptr(rbx), 63), OLD, OLD ^ 1 << 63),
    ("bsf", |a| a.bsf(rax, rcx), 2, OLD),
    ("bsr", |a| a.bsr(rax, rcx), 12, OLD),
    ("bsf of zero keeps the destination", |a| a.bsf(rax, rdi), OLD, OLD),
    ("lahf", CodeAssembler::lahf, (OLD & !0xff00) | 0x0200, OLD),
    ("imul of three operands", |a| a.imul_3(rax, rcx, -2), (0x2468_u64).wrapping_neg(), OLD),
    ("imul of two operands", |a| a.imul_2(rcx, rcx), OLD, OLD),
    ("nop of many bytes", |a| a.nop_1(dword_ptr(rdi)), OLD, OLD),
    ("rdfsbase", |a| a.rdfsbase(rax), 0x1000, OLD),
    ("FS base", |a| a.mov(rax, qword_ptr(rbx - 0x1000).fs()), OLD, OLD),
    ("bases of other segments do not count", |a| a.mov(rax, qword_ptr(rbx).es()), OLD, OLD),
];

#[test]
fn moves_and_bits() {
    for (name, emit, expected, memory) in MOVES {
        let mut machine = Machine::long64();
        machine.core.cr4 |= sim_core::arch::control::Cr4::FSGSBASE;
        machine.core.segments.fs.base = 0x1000;
        machine.core.segments.es.base = 0x5000;
        machine.code64(emit);
        machine.ground.mem.write_u64(Hpa(DATA), OLD);
        for (register, value) in
            [(Gpr::Rax, OLD), (Gpr::Rbx, DATA), (Gpr::Rcx, 0x1234), (Gpr::R8, 35), (Gpr::R9, u64::from(-28_i32 as u32))]
        {
            machine.set(register, value);
        }
        machine.retire(1);
        assert_eq!(machine.gpr(Gpr::Rax), *expected, "{name}");
        assert_eq!(machine.quad(DATA), *memory, "{name}");
    }
}

/// SDM 2 CMPXCHG8B and CMPXCHG16B.
#[test]
fn compare_and_exchange_pairs() {
    for equal in [false, true] {
        let mut machine = Machine::long64();
        machine.ground.mem.write_u64(Hpa(DATA), 1);
        machine.ground.mem.write_u64(Hpa(DATA + 8), 2);
        machine.code64(|a| a.lock().cmpxchg16b(xmmword_ptr(rdi)));
        for (register, value) in
            [(Gpr::Rdi, DATA), (Gpr::Rax, 1), (Gpr::Rdx, 2 + u64::from(!equal)), (Gpr::Rbx, 7), (Gpr::Rcx, 8)]
        {
            machine.set(register, value);
        }
        machine.retire(1);
        assert_eq!(machine.core.rflags.contains(Rflags::ZF), equal);
        let memory = [machine.quad(DATA), machine.quad(DATA + 8)];
        assert_eq!(memory, if equal { [7, 8] } else { [1, 2] });
        assert_eq!([machine.gpr(Gpr::Rax), machine.gpr(Gpr::Rdx)], [1, 2]);
    }
}

/// SDM 1 appendix B: each condition over every combination of its flags.
#[test]
fn conditions() {
    let flags = [Rflags::CF, Rflags::ZF, Rflags::SF, Rflags::OF, Rflags::PF];
    for combination in 0..32_u32 {
        let bit = |index: usize| combination >> index & 1 == 1;
        let (c, z, s, o, p) = (bit(0), bit(1), bit(2), bit(3), bit(4));
        let even = [o, c, z, c || z, s, p, s != o, z || s != o];
        for (index, expected) in even.into_iter().flat_map(|holds| [holds, !holds]).enumerate() {
            let mut machine = Machine::long64();
            machine.core.rflags = flags.into_iter().zip(0..).filter(|(_, at)| bit(*at)).map(|(flag, _)| flag).collect();
            // Jcc +16, then SETcc AL at either place.
            let opcode = index as u8;
            machine.ground.mem.write_bytes(Hpa(harness::CODE), &[0x70 | opcode, 0x10, 0x0f, 0x90 | opcode, 0xc0]);
            machine.ground.mem.write_bytes(Hpa(harness::CODE + 0x12), &[0x0f, 0x90 | opcode, 0xc0]);
            machine.retire(2);
            let end = if expected { harness::CODE + 0x15 } else { harness::CODE + 5 };
            assert_eq!(machine.core.rip, end, "condition {index:#x} with {combination:#07b}");
            assert_eq!(machine.gpr(Gpr::Rax), u64::from(expected));
        }
    }
}

/// PUSH, POP, CALL, RET, LEAVE: the stack in 64-bit code.
#[test]
fn stack_and_calls() {
    let mut machine = Machine::long64();
    machine.set(Gpr::Rax, 0x1_0000_0001);
    machine.code64(|a| {
        let mut function = a.create_label();
        let mut after = a.create_label();
        a.push(rsp)?;
        a.pop(rbx)?;
        a.push(-1)?;
        a.push(ax)?;
        a.pop(cx)?;
        a.pop(rdx)?;
        a.call(function)?;
        a.jmp(after)?;
        a.set_label(&mut function)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.sub(rsp, 0x40)?;
        a.leave()?;
        a.ret()?;
        a.set_label(&mut after)?;
        a.push(qword_ptr(rsp - 8))?;
        a.pop(qword_ptr(rsp))?;
        a.hlt()
    });
    machine.ground.mem.write_u64(Hpa(harness::STACK - 8), 0);
    assert_eq!(machine.run(), Outcome::Halted);
    assert_eq!(machine.gpr(Gpr::Rbx), harness::STACK, "PUSH RSP pushes the old value");
    assert_eq!((machine.gpr(Gpr::Rcx), machine.gpr(Gpr::Rdx)), (1, u64::MAX));
    assert_eq!(machine.gpr(Gpr::Rsp), harness::STACK);
    assert_ne!(machine.quad(harness::STACK), 0, "POP [RSP] addresses memory with RSP after the pop");
}

/// RET imm16 and far CALL and RET in 32-bit code.
#[test]
fn far_calls() {
    let mut machine = Machine::flat32();
    machine.code32(|a| {
        a.push(1)?;
        a.db(&[0x9a])?;
        a.dd(&[0xa000])?;
        a.dw(&[harness::CODE32])?;
        a.hlt()
    });
    machine.assemble(32, 0xa000, |a| a.retf_1(4));
    assert_eq!(machine.run(), Outcome::Halted);
    assert_eq!(machine.gpr(Gpr::Rsp), harness::STACK);
    assert_eq!(machine.dword(harness::STACK - 8), u32::from(harness::CODE32));
}

/// LOOP, LOOPNE, JRCXZ.
#[test]
fn loops() {
    let mut machine = Machine::long64();
    machine.code64(|a| {
        let mut top = a.create_label();
        let mut end = a.create_label();
        a.mov(ecx, 5)?;
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.loop_(top)?;
        a.jrcxz(end)?;
        a.ud2()?;
        a.set_label(&mut end)?;
        a.hlt()
    });
    assert_eq!(machine.run(), Outcome::Halted);
    assert_eq!((machine.gpr(Gpr::Rax), machine.gpr(Gpr::Rcx)), (5, 0));
}

/// REP, both directions, and a fault in the middle: registers stand after the last whole element (SDM 2 REP).
#[test]
fn strings() {
    let fill = |machine: &mut Machine| {
        for index in 0..4 {
            machine.ground.mem.write_u64(Hpa(DATA + 8 * index), 0x11 * (index + 1));
        }
    };
    let mut machine = Machine::long64();
    fill(&mut machine);
    machine.set(Gpr::Rsi, DATA + 24);
    machine.set(Gpr::Rdi, DATA + 0x124);
    machine.set(Gpr::Rcx, 4);
    machine.code64(|a| {
        a.std()?;
        a.rep().movsq()?;
        a.cld()?;
        a.lodsb()?;
        a.stosd()
    });
    machine.retire(2);
    assert_eq!((machine.gpr(Gpr::Rsi), machine.gpr(Gpr::Rdi), machine.gpr(Gpr::Rcx)), (DATA - 8, DATA + 0x104, 0));
    assert_eq!(machine.quad(DATA + 0x10c), 0x11);
    machine.retire(3);
    assert_eq!((machine.gpr(Gpr::Rsi), machine.gpr(Gpr::Rdi)), (DATA - 7, DATA + 0x108));

    let mut machine = Machine::long64();
    machine.set_page(1, 0);
    machine.set(Gpr::Rax, u64::MAX);
    machine.set(Gpr::Rdi, DATA + 0xff0);
    machine.set(Gpr::Rcx, 100);
    machine.code64(|a| a.rep().stosd());
    machine.exception();
    assert_eq!((machine.gpr(Gpr::Rdi), machine.gpr(Gpr::Rcx)), (DATA + 0x1000, 96));
    assert_eq!(machine.core.cr2, Gva(DATA + 0x1000));
}

/// A long REP takes several steps and ends where a single one would.
#[test]
fn a_long_repetition_takes_several_steps() {
    let mut machine = Machine::long64();
    machine.set(Gpr::Rax, 0x5a);
    machine.set(Gpr::Rdi, DATA);
    machine.set(Gpr::Rcx, 10_000);
    machine.code64(|a| {
        a.rep().stosb()?;
        a.hlt()
    });
    machine.retire(2);
    assert_eq!(machine.core.rip, harness::CODE);
    assert_eq!(machine.run(), Outcome::Halted);
    assert_eq!((machine.gpr(Gpr::Rdi), machine.gpr(Gpr::Rcx)), (DATA + 10_000, 0));
    assert_eq!(machine.quad(DATA + 9_992), 0x5a5a_5a5a_5a5a_5a5a);
}

/// PUSHF and POPF at each privilege level (SDM 2 POPF table 4-22).
#[test]
fn popf_by_privilege() {
    let all = Rflags::STATUS | Rflags::IF | Rflags::DF | Rflags::IOPL | Rflags::AC | Rflags::ID | Rflags::NT;
    let user = all.difference(Rflags::IF | Rflags::IOPL);
    for (user_mode, iopl, expected) in [
        (false, Rflags::empty(), all),
        (true, Rflags::empty(), user),
        (true, Rflags::IOPL, user | Rflags::IOPL | Rflags::IF),
    ] {
        let mut machine = Machine::long64();
        if user_mode {
            machine.drop_to_user();
        }
        machine.core.rflags = Rflags::FIXED | iopl;
        machine.ground.mem.write_u64(Hpa(harness::STACK), (all | Rflags::FIXED).bits());
        machine.code64(|a| {
            a.popfq()?;
            a.pushfq()
        });
        machine.retire(2);
        assert_eq!(machine.core.rflags, expected | Rflags::FIXED, "user {user_mode}, IOPL {iopl:?}");
        assert_eq!(machine.quad(harness::STACK), machine.core.rflags.bits());
    }
}

/// SGDT, LGDT, SIDT, LIDT, LTR, STR, LLDT, SLDT.
#[test]
fn descriptor_tables() {
    let mut machine = Machine::long64();
    machine.core.segments.tr = Default::default();
    machine.ground.mem.write_u64(Hpa(harness::GDT + 0x18), 0x0000_8900_4000_0067);
    machine.set(Gpr::Rbx, DATA);
    machine.code64(|a| {
        a.sgdt(ptr(rbx))?;
        a.lidt(ptr(rbx))?;
        a.mov(eax, 0x18)?;
        a.ltr(eax)?;
        a.str(ecx)?;
        a.xor(eax, eax)?;
        a.lldt(eax)?;
        a.sldt(edx)
    });
    machine.retire(8);
    assert_eq!(machine.core.idtr, machine.core.gdtr);
    let tr = machine.core.segments.tr;
    assert_eq!((tr.selector, tr.base, tr.limit, tr.rights.0), (0x18, harness::TSS, 0x67, 0x8b));
    assert_eq!(machine.quad(harness::GDT + 0x18), 0x0000_8b00_4000_0067, "LTR marks the TSS busy in memory");
    assert_eq!((machine.gpr(Gpr::Rcx), machine.gpr(Gpr::Rdx)), (0x18, 0));
    assert!(machine.core.segments.ldtr.rights.is_unusable());
}

/// Loading a segment sets the accessed bit in its descriptor, once (SDM 3A 3.4.5.1).
#[test]
fn accessed_descriptors() {
    let mut machine = Machine::long64();
    let at = Hpa(harness::GDT + 0x10);
    machine.ground.mem.write_u64(at, harness::flat_descriptor(0xc092));
    machine.set(Gpr::Rax, 0x10);
    machine.code64(|a| a.mov(ds, eax));
    machine.retire(1);
    assert_eq!(machine.ground.mem.read_u64(at), harness::flat_descriptor(0xc093));
    assert_eq!(machine.core.segments.ds.rights.0, 0xc093);
}

/// OUT reaches the bus; IN of nothing reads ones; the TSS's bitmap opens single ports (SDM 1 18.5.2).
#[test]
fn ports() {
    let mut machine = Machine::long64();
    machine.set(Gpr::Rax, 0x1234_5678);
    machine.set(Gpr::Rdx, 0x3f8);
    machine.code64(|a| {
        a.out(0x80, al)?;
        a.out(dx, eax)?;
        a.in_(ax, 0x80)
    });
    assert_eq!(machine.step(), Ok(Outcome::Out { port: 0x80, bytes: 1, value: 0x78 }));
    assert_eq!(machine.step(), Ok(Outcome::Out { port: 0x3f8, bytes: 4, value: 0x1234_5678 }));
    machine.retire(1);
    assert_eq!(machine.gpr(Gpr::Rax), 0x1234_ffff);

    for (bytes, allowed) in [(1, true), (2, false)] {
        let mut machine = Machine::long64();
        machine.drop_to_user();
        machine.core.segments.tr.limit = 0x68 + 0x20;
        machine.ground.mem.write_bytes(Hpa(harness::TSS + 0x68), &[0xff; 0x20]);
        machine.ground.mem.write(Hpa(harness::TSS + 0x68 + 0x10), 0xff7f, 2);
        machine.code64(|a| if bytes == 1 { a.out(0x87, al) } else { a.out(0x87, ax) });
        let outcome = machine.step().unwrap();
        assert_eq!(matches!(outcome, Outcome::Out { .. }), allowed, "{bytes} bytes: {outcome:?}");
    }
}

/// Instructions of an extension arrive with their operands.
#[test]
fn extension_operands() {
    let rows: [(Emit, VirtInstruction); 16] = [
        (|a| a.vmxon(qword_ptr(rbx)), VirtInstruction::Vmxon(OLD)),
        (|a| a.vmclear(qword_ptr(rbx)), VirtInstruction::Vmclear(OLD)),
        (|a| a.vmptrld(qword_ptr(rbx)), VirtInstruction::Vmptrld(OLD)),
        (|a| a.vmptrst(qword_ptr(rbx)), VirtInstruction::Vmptrst(VirtTarget::Memory(Gva(DATA)))),
        (|a| a.vmread(rdx, rcx), VirtInstruction::Vmread { field: 0x681e, target: VirtTarget::Register(Gpr::Rdx) }),
        (
            |a| a.vmread(qword_ptr(rbx + 8), rcx),
            VirtInstruction::Vmread { field: 0x681e, target: VirtTarget::Memory(Gva(DATA + 8)) },
        ),
        (|a| a.vmwrite(rcx, qword_ptr(rbx)), VirtInstruction::Vmwrite { field: 0x681e, value: OLD }),
        (CodeAssembler::vmlaunch, VirtInstruction::Vmlaunch),
        (CodeAssembler::vmcall, VirtInstruction::Vmcall),
        (CodeAssembler::vmxoff, VirtInstruction::Vmxoff),
        (|a| a.invept(rcx, xmmword_ptr(rbx)), VirtInstruction::Invept { kind: 0x681e, descriptor: [OLD, 0] }),
        (|a| a.invvpid(rcx, xmmword_ptr(rbx)), VirtInstruction::Invvpid { kind: 0x681e, descriptor: [OLD, 0] }),
        (|a| a.db(&[0x0f, 0x01, 0xd8]), VirtInstruction::Vmrun(0x1_0000_2000)),
        (|a| a.db(&[0x67, 0x0f, 0x01, 0xd8]), VirtInstruction::Vmrun(0x2000)),
        (|a| a.db(&[0x0f, 0x01, 0xdf]), VirtInstruction::Invlpga { address: Gva(0x1_0000_2000), asid: 0x681e }),
        (|a| a.db(&[0x0f, 0x01, 0xd9]), VirtInstruction::Vmmcall),
    ];
    for (emit, expected) in rows {
        let mut machine = Machine::long64();
        machine.ground.mem.write_u64(Hpa(DATA), OLD);
        machine.set(Gpr::Rbx, DATA);
        machine.set(Gpr::Rcx, 0x681e);
        machine.set(Gpr::Rax, 0x1_0000_2000);
        machine.code64(emit);
        let outcome = machine.step().unwrap();
        assert_eq!(machine.virt.instructions, [expected]);
        match expected {
            VirtInstruction::Vmxoff => assert_eq!((outcome, machine.core.rip), (Outcome::Retired, harness::CODE + 3)),
            VirtInstruction::Vmlaunch | VirtInstruction::Vmcall => {
                assert!(matches!(outcome, Outcome::Moved(_)));
                assert_eq!(machine.core.rip, harness::CODE);
            }
            _ => assert_eq!(outcome, Outcome::Delivered),
        }
    }
}

/// What is not in the table is named, with its bytes' meaning, and changes nothing.
#[test]
fn unmodelled_instructions_are_named() {
    let mut machine = Machine::long64();
    machine.code64(|a| a.addps(xmm1, xmm2));
    let mut before = machine.core.clone();
    let error = machine.step().unwrap_err();
    assert!(matches!(&error, SimError::Unmodelled { what } if what.contains("addps xmm1,xmm2")), "{error}");
    before.tlb = machine.core.tlb.clone();
    assert_eq!(machine.core, before);
}

/// Code that changes under the decoder's feet, from inside and from outside.
#[test]
fn modified_code_runs_as_modified() {
    let mut machine = Machine::long64();
    for value in 0..4_u8 {
        machine.core.rip = harness::CODE;
        machine.ground.mem.write_bytes(Hpa(harness::CODE), &[0x90; 15]);
        machine.code64(|a| a.mov(byte_ptr(harness::CODE + 16), i32::from(value) + 0x10));
        machine.ground.mem.write_bytes(Hpa(harness::CODE + 15), &[0xb0, 0, 0xf4]);
        assert_eq!(machine.run(), Outcome::Halted);
        machine.core.activity = cpu::Activity::Active;
        assert_eq!(machine.gpr(Gpr::Rax), u64::from(value) + 0x10);
    }
}

/// Time: an instruction costs its issue and its data; the log names it.
#[test]
fn time_and_events() {
    let mut machine = Machine::flat32();
    machine.ground.log = EventLog::new(Detail::Everything);
    machine.code32(|a| a.add(dword_ptr(DATA as u32), eax));
    let start = machine.ground.clock.now().0;
    machine.retire(1);
    let spent = machine.ground.clock.now().0 - start;
    assert_eq!(spent, Cost::Instruction.cycles().0 + 2 * Cost::DataAccess.cycles().0);
    let issued = machine.ground.log.records().iter().find_map(|record| match record.event {
        Event::Instruction { rip, mnemonic } => Some((rip, mnemonic)),
        _ => None,
    });
    assert_eq!(issued, Some((Gva(harness::CODE), "add")));
}

/// A run without an end is a runaway; HLT stops for good.
#[test]
fn budgets() {
    let mut machine = Machine::flat32();
    machine.ground.mem.write_bytes(Hpa(harness::CODE), &[0xeb, 0xfe]);
    let result = cpu::run(&mut machine.core, &mut machine.virt, &mut machine.ground, StopOn::Bus, 100);
    assert_eq!(result, Err(SimError::Runaway { budget: 100, rip: harness::CODE }));
    machine.ground.mem.write(Hpa(harness::CODE), 0xf4, 1);
    assert_eq!(machine.run(), Outcome::Halted);
    assert_eq!(machine.step(), Ok(Outcome::Halted));
    assert_eq!(machine.core.rip, harness::CODE + 1);
}
