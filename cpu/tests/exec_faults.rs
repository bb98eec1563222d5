//! Exceptions: which instruction raises which, how they are delivered across privilege levels, and what happens when
//! delivery itself faults (SDM 3A chapter 6; SDM 2, each instruction's page).

mod harness;

use cpu::core::Bitness;
use cpu::virt::Trap;
use cpu::{Gpr, Outcome};
use harness::Machine;
use iced_x86::code_asm::*;
use sim_core::arch::exception::Vector::{self, *};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, TableRegister};
use sim_core::{Gva, Hpa};

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
type Prepare = fn(&mut Machine);

/// One instruction of 64-bit code, how to prepare for it, and the exception it must raise.
const FAULTS_64: &[(&str, Prepare, Emit, Vector, Option<u32>)] = &[
    ("DIV by zero", |_| {}, |a| a.div(rbx), Divide, None),
    ("DIV overflow", |m| m.set(Gpr::Rdx, 5), |a| a.div(rdx), Divide, None),
    ("IDIV overflow", min_by_minus_one, |a| a.idiv(rbx), Divide, None),
    ("UD2", |_| {}, CodeAssembler::ud2, InvalidOpcode, None),
    ("invalid opcode (PUSH ES in 64-bit mode)", |_| {}, |a| a.db(&[0x06]), InvalidOpcode, None),
    ("LOCK where it is not legal", |_| {}, |a| a.db(&[0xf0, 0x90]), InvalidOpcode, None),
    ("LOCK with a register destination", |_| {}, |a| a.db(&[0xf0, 0x01, 0xc0]), InvalidOpcode, None),
    ("MOV to CS", |_| {}, |a| a.db(&[0x8e, 0xc8]), InvalidOpcode, None),
    ("MOV from CR1", |_| {}, |a| a.db(&[0x0f, 0x20, 0xc8]), InvalidOpcode, None),
    ("STAC in ring 3", Machine::drop_to_user, CodeAssembler::stac, InvalidOpcode, None),
    ("RDFSBASE without CR4.FSGSBASE", |_| {}, |a| a.rdfsbase(rax), InvalidOpcode, None),
    ("an instruction of 16 bytes", |_| {}, sixteen_bytes, GeneralProtection, Some(0)),
    ("non-canonical data", bad_pointer, |a| a.mov(rax, qword_ptr(rbx)), GeneralProtection, Some(0)),
    ("data that leaves the canonical range", edge_pointer, |a| a.mov(rax, qword_ptr(rbx)), GeneralProtection, Some(0)),
    ("non-canonical stack", bad_stack, |a| a.push(rax), StackFault, Some(0)),
    ("non-canonical through RBP", bad_frame, |a| a.mov(rax, qword_ptr(rbp)), StackFault, Some(0)),
    ("non-canonical jump", bad_pointer, |a| a.jmp(rbx), GeneralProtection, Some(0)),
    ("non-canonical call", bad_pointer, |a| a.call(rbx), GeneralProtection, Some(0)),
    ("null into SS in ring 3", Machine::drop_to_user, |a| a.mov(ss, eax), GeneralProtection, Some(0)),
    ("selector beyond the GDT", |m| m.set(Gpr::Rax, 0x100), |a| a.mov(ds, eax), GeneralProtection, Some(0x100)),
    (
        "selector in an LDT that is not there",
        |m| m.set(Gpr::Rax, 0xc),
        |a| a.mov(ds, eax),
        GeneralProtection,
        Some(0xc),
    ),
    ("ring-0 data in ring 3", ring0_data_for_user, |a| a.mov(ds, eax), GeneralProtection, Some(0x10)),
    ("absent data", |m| m.set(Gpr::Rax, 0x50), |a| a.mov(ds, eax), SegmentNotPresent, Some(0x50)),
    ("absent stack", |m| m.set(Gpr::Rax, 0x50), |a| a.mov(ss, eax), StackFault, Some(0x50)),
    ("read-only stack", |m| m.set(Gpr::Rax, 0x58), |a| a.mov(ss, eax), GeneralProtection, Some(0x58)),
    ("a system segment as data", |m| m.set(Gpr::Rax, 0x18), |a| a.mov(ds, eax), GeneralProtection, Some(0x18)),
    ("LTR of a null selector", |_| {}, |a| a.ltr(eax), GeneralProtection, Some(0)),
    ("LTR of a busy TSS", |m| m.set(Gpr::Rax, 0x18), |a| a.ltr(eax), GeneralProtection, Some(0x18)),
    ("far return to an absent segment", far_to_absent, CodeAssembler::retf, SegmentNotPresent, Some(0x48)),
    ("far return to data", far_to_data, CodeAssembler::retf, GeneralProtection, Some(0x10)),
    ("IRETQ with NT", |m| m.core.rflags |= Rflags::NT, CodeAssembler::iretq, GeneralProtection, Some(0)),
    ("INT beyond the IDT", |_| {}, |a| a.int(0x80), GeneralProtection, Some(0x80 * 8 + 2)),
    ("INT through a ring-0 gate", Machine::drop_to_user, |a| a.int(0x0d), GeneralProtection, Some(13 * 8 + 2)),
    ("OUT in ring 3 without permission", Machine::drop_to_user, |a| a.out(0x80, al), GeneralProtection, Some(0)),
    ("CMPXCHG16B not aligned", odd_pointer, |a| a.cmpxchg16b(xmmword_ptr(rbx)), GeneralProtection, Some(0)),
    ("read of an absent page", absent_page, |a| a.mov(rax, qword_ptr(rbx)), PageFault, Some(0)),
    ("write of an absent page", absent_page, |a| a.mov(qword_ptr(rbx), rax), PageFault, Some(2)),
    ("ADD to an absent page is a write", absent_page, |a| a.add(qword_ptr(rbx), rax), PageFault, Some(2)),
    ("write of a read-only page", read_only_page, |a| a.mov(qword_ptr(rbx), rax), PageFault, Some(3)),
    ("CMPXCHG of a read-only page", read_only_page, |a| a.cmpxchg(qword_ptr(rbx), rax), PageFault, Some(3)),
    ("user read of a supervisor page", supervisor_page, |a| a.mov(rax, qword_ptr(rbx)), PageFault, Some(5)),
    ("fetch of an absent page", absent_page, |a| a.jmp(rbx), PageFault, Some(0x10)),
];

fn min_by_minus_one(machine: &mut Machine) {
    machine.set(Gpr::Rdx, 1 << 63);
    machine.set(Gpr::Rbx, u64::MAX);
}

fn bad_pointer(machine: &mut Machine) {
    machine.set(Gpr::Rbx, 1 << 47);
}

fn edge_pointer(machine: &mut Machine) {
    machine.set(Gpr::Rbx, (1 << 47) - 7);
}

fn bad_stack(machine: &mut Machine) {
    machine.drop_to_user();
    machine.set(Gpr::Rsp, (1 << 47) + 0x100);
}

fn bad_frame(machine: &mut Machine) {
    machine.set(Gpr::Rbp, 1 << 47);
}

fn odd_pointer(machine: &mut Machine) {
    machine.set(Gpr::Rbx, harness::DATA + 8);
}

fn ring0_data_for_user(machine: &mut Machine) {
    machine.drop_to_user();
    machine.set(Gpr::Rax, u64::from(harness::DATA0));
}

fn sixteen_bytes(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.db(&[0x66; 15])?;
    a.db(&[0x90])
}

fn far_frame(machine: &mut Machine, selector: u16) {
    machine.ground.mem.write_u64(Hpa(harness::STACK), harness::CODE);
    machine.ground.mem.write_u64(Hpa(harness::STACK + 8), u64::from(selector));
}

fn far_to_absent(machine: &mut Machine) {
    far_frame(machine, harness::ABSENT_CODE);
}

fn far_to_data(machine: &mut Machine) {
    far_frame(machine, harness::DATA0);
}

fn page(machine: &mut Machine, entry: u64) {
    machine.set(Gpr::Rbx, harness::DATA + 0x3000);
    machine.set_page(3, entry);
}

fn absent_page(machine: &mut Machine) {
    page(machine, 0);
}

fn read_only_page(machine: &mut Machine) {
    page(machine, 0x20_3005);
}

fn supervisor_page(machine: &mut Machine) {
    machine.drop_to_user();
    page(machine, 0x20_3003);
}

#[test]
fn faults_of_64_bit_code() {
    for (name, prepare, emit, vector, error) in FAULTS_64 {
        let mut machine = Machine::long64();
        machine.code64(emit);
        prepare(&mut machine);
        let before = machine.core.clone();
        // A jump to a bad page retires; the fetch there faults.
        let mut faulting = before.rip;
        let mut outcome = machine.step();
        if outcome == Ok(Outcome::Retired) {
            faulting = machine.core.rip;
            outcome = machine.step();
        }
        assert_eq!(outcome, Ok(Outcome::Delivered), "{name}");
        assert_eq!(machine.last_exception(), Some((*vector, *error)), "{name}");
        // The frame: error code, RIP, CS, RFLAGS with RF, RSP, SS.
        let at = machine.gpr(Gpr::Rsp) + if error.is_some() { 8 } else { 0 };
        if let Some(error) = error {
            assert_eq!(machine.quad(at - 8), u64::from(*error), "{name}");
        }
        let frame = [0, 1, 2, 3, 4].map(|index| machine.quad(at + 8 * index));
        let flags = before.rflags.union(Rflags::RF).bits();
        let (code, stack) = (before.segments.cs.selector, before.segments.ss.selector);
        assert_eq!(frame, [faulting, u64::from(code), flags, before.gpr(Gpr::Rsp), u64::from(stack)], "{name}");
        assert_eq!(machine.core.rip, harness::HANDLERS + 16 * u64::from(vector.number()), "{name}");
        assert_eq!(machine.core.cpl(), 0, "{name}");
        let mut unchanged = before.gprs;
        unchanged[Gpr::Rsp as usize] = machine.gpr(Gpr::Rsp);
        assert_eq!(machine.core.gprs, unchanged, "{name}: a faulting instruction changes no register");
    }
}

/// The same for 32-bit code without paging: limits and types of segments.
const FAULTS_32: &[(&str, Prepare, Emit, Vector, Option<u32>)] = &[
    ("INTO", |m| m.core.rflags |= Rflags::OF, CodeAssembler::into, Overflow, None),
    ("beyond the limit of DS", short_ds, |a| a.mov(eax, dword_ptr(0xffd)), GeneralProtection, Some(0)),
    ("beyond the limit of SS", |_| {}, |a| a.mov(eax, dword_ptr(ebp + 0xffff_fffd_u32 as i32)), StackFault, Some(0)),
    ("below an expand-down segment", expand_down, |a| a.mov(eax, dword_ptr(0xffc)), GeneralProtection, Some(0)),
    ("write through read-only DS", read_only_ds, |a| a.mov(dword_ptr(0), eax), GeneralProtection, Some(0)),
    ("write through CS", |_| {}, |a| a.mov(dword_ptr(0).cs(), eax), GeneralProtection, Some(0)),
    ("through a null segment", null_es, |a| a.mov(eax, dword_ptr(0).es()), GeneralProtection, Some(0)),
    ("jump beyond the limit of CS", short_cs, |a| a.jmp(ebx), GeneralProtection, Some(0)),
    ("instruction beyond the limit of CS", shorter_cs, |a| a.mov(eax, 1), GeneralProtection, Some(0)),
    ("far jump to null", |_| {}, |a| a.db(&[0xea, 0, 0, 0, 0, 0, 0]), GeneralProtection, Some(0)),
    ("null into SS", |_| {}, |a| a.mov(ss, eax), GeneralProtection, Some(0)),
    ("CLI in ring 3", Machine::drop_to_user32, CodeAssembler::cli, GeneralProtection, Some(0)),
];

fn short_ds(machine: &mut Machine) {
    machine.core.segments.ds.limit = 0xfff;
}

fn expand_down(machine: &mut Machine) {
    machine.core.segments.ds.rights = Rights(0xc097);
    machine.core.segments.ds.limit = 0xfff;
}

fn read_only_ds(machine: &mut Machine) {
    machine.core.segments.ds.rights = Rights(0xc091);
}

fn null_es(machine: &mut Machine) {
    machine.core.segments.es.rights = Rights::UNUSABLE;
}

fn short_cs(machine: &mut Machine) {
    machine.core.segments.cs.limit = 0xffff;
    machine.set(Gpr::Rbx, 0x1_0000);
}

fn shorter_cs(machine: &mut Machine) {
    machine.core.segments.cs.limit = harness::CODE as u32 + 3;
}

#[test]
fn faults_of_32_bit_code() {
    for (name, prepare, emit, vector, error) in FAULTS_32 {
        let mut machine = Machine::flat32();
        machine.code32(emit);
        prepare(&mut machine);
        let before = machine.core.clone();
        assert_eq!(machine.step(), Ok(Outcome::Delivered), "{name}");
        assert_eq!(machine.last_exception(), Some((*vector, *error)), "{name}");
        let words = if before.cpl() == 3 { 5 } else { 3 } + u64::from(error.is_some());
        let top = if before.cpl() == 3 { harness::RING0_STACK } else { harness::STACK };
        assert_eq!(machine.gpr(Gpr::Rsp), top - 4 * words, "{name}");
        assert_eq!((machine.core.cpl(), machine.core.bitness()), (0, Bitness::Bits32), "{name}");
    }
}

/// Ring 0 to ring 3 by IRETQ and back by #PF, #GP and INT3, with the stack from TSS.RSP0 (SDM 3A 6.14).
#[test]
fn user_and_back() {
    const USER_CODE: u64 = 0xa000;
    const USER_STACK: u64 = 0x20_2000;
    let rows: [(Emit, Vector, Option<u32>, u64); 3] = [
        (|a| a.mov(byte_ptr(0x20_3000), al), PageFault, Some(7), 0),
        (CodeAssembler::hlt, GeneralProtection, Some(0), 0),
        (CodeAssembler::int3, Breakpoint, None, 1),
    ];
    for (emit, vector, error, advance) in rows {
        let mut machine = Machine::long64();
        machine.set_page(3, 0x20_3003);
        machine.code64(|a| {
            a.push(i32::from(harness::USER_DATA))?;
            a.push(USER_STACK as i32)?;
            a.push(0x3202)?;
            a.push(i32::from(harness::USER_CODE64))?;
            a.push(USER_CODE as i32)?;
            a.iretq()
        });
        machine.assemble(64, USER_CODE, emit);
        machine.retire(6);
        let core = &machine.core;
        assert_eq!((core.cpl(), core.rip, core.gpr(Gpr::Rsp)), (3, USER_CODE, USER_STACK));
        assert_eq!(core.rflags.bits(), 0x3202, "ring 0 may load IF and IOPL");
        assert!(core.segments.ds.rights.is_unusable(), "ring-0 data segments are lost (SDM 3A 5.8.6)");
        assert_eq!(machine.exception(), (vector, error));
        assert_eq!(machine.core.cpl(), 0);
        assert_eq!((machine.core.segments.ss.selector, machine.core.segments.ss.rights.is_unusable()), (0, true));
        let pushed = 5 + u64::from(error.is_some());
        let top = harness::RING0_STACK - 8 * pushed;
        assert_eq!(machine.gpr(Gpr::Rsp), top);
        assert_eq!(machine.quad(harness::RING0_STACK - 40), USER_CODE + advance);
        assert_eq!(machine.quad(harness::RING0_STACK - 16), USER_STACK);
        assert_eq!(machine.quad(harness::RING0_STACK - 8), u64::from(harness::USER_DATA));
        assert!(!machine.core.rflags.contains(Rflags::IF), "an interrupt gate clears IF");
        if vector == PageFault {
            assert_eq!(machine.core.cr2, Gva(0x20_3000));
        }
        // The handler returns to user code.
        machine.assemble(64, machine.core.rip, |a| {
            if error.is_some() {
                a.add(rsp, 8)?;
            }
            a.iretq()
        });
        machine.retire(pushed as usize - 4);
        assert_eq!((machine.core.cpl(), machine.core.rip), (3, USER_CODE + advance));
    }
}

/// Ring 3 of 32-bit protected mode and back, with SS0:ESP0 (SDM 3A 6.12.1).
#[test]
fn user_and_back_in_32_bits() {
    let mut machine = Machine::flat32();
    machine.code32(|a| {
        a.push(i32::from(harness::USER_DATA))?;
        a.push(0x20_2000)?;
        a.push(2)?;
        a.push(i32::from(harness::USER_CODE32))?;
        a.push(0xa000)?;
        a.iretd()
    });
    machine.assemble(32, 0xa000, |a| {
        a.nop()?;
        a.hlt()
    });
    machine.retire(7);
    assert_eq!((machine.core.cpl(), machine.gpr(Gpr::Rsp)), (3, 0x20_2000));
    assert_eq!(machine.exception(), (GeneralProtection, Some(0)));
    let frame = [0, 1, 2, 3, 4, 5].map(|index| machine.dword(harness::RING0_STACK - 24 + 4 * index));
    let flags = Rflags::RF.union(Rflags::FIXED).bits() as u32;
    let (code, stack) = (u32::from(harness::USER_CODE32), u32::from(harness::USER_DATA));
    assert_eq!(frame, [0, 0xa001, code, flags, 0x20_2000, stack]);
    assert_eq!(machine.core.segments.ss.selector, harness::DATA0);
}

/// From compatibility mode into a 64-bit handler and back by IRETQ (SDM 3A 6.14.3).
#[test]
fn compatibility_mode_and_back() {
    let mut machine = Machine::long64();
    machine.drop_to_user32();
    machine.set(Gpr::Rsp, 0x20_2000);
    machine.code32(CodeAssembler::int3);
    assert_eq!(machine.exception(), (Breakpoint, None));
    assert_eq!((machine.core.cpl(), machine.core.bitness()), (0, Bitness::Bits64));
    machine.assemble(64, machine.core.rip, CodeAssembler::iretq);
    machine.retire(1);
    assert_eq!((machine.core.cpl(), machine.core.bitness()), (3, Bitness::Bits32));
    assert_eq!((machine.core.rip, machine.gpr(Gpr::Rsp)), (harness::CODE + 1, 0x20_2000));
}

/// IST: a gate with one switches stacks at the same level too, and aligns to 16 bytes (SDM 3A 6.14.2, 6.14.5).
#[test]
fn interrupt_stack_table() {
    for (ist, expected_top) in [(0, harness::STACK - 16), (1, 0x5ff0), (7, 0x5ee0)] {
        let mut machine = Machine::long64();
        machine.set(Gpr::Rsp, harness::STACK - 3);
        machine.ground.mem.write_u64(Hpa(harness::TSS + 0x24), 0x5fff);
        machine.ground.mem.write_u64(Hpa(harness::TSS + 0x54), 0x5ee8);
        let gate = Hpa(harness::IDT + 16 * 6);
        let low = machine.ground.mem.read_u64(gate);
        machine.ground.mem.write_u64(gate, low | ist << 32);
        machine.code64(CodeAssembler::ud2);
        machine.exception();
        assert_eq!(machine.gpr(Gpr::Rsp), expected_top - 40, "IST {ist}");
        assert_eq!(machine.quad(expected_top - 16), harness::STACK - 3);
        assert_eq!(machine.core.segments.ss.selector, harness::DATA0);
    }
}

/// What a delivery can meet, and the exception that becomes of it (SDM 3A 6.13, 6.15; SDM 2 INT).
#[test]
fn faults_of_delivery() {
    let gate = |vector: u64| Hpa(harness::IDT + 16 * vector);
    // #UD is benign: what its delivery meets is delivered instead, with EXT = 1.
    type Damage = fn(&mut Machine, Hpa);
    let rows: [(&str, Damage, Vector, u32); 7] = [
        ("gate not present", |m, at| clear(m, at, 1 << 47), SegmentNotPresent, 6 * 8 + 3),
        ("not a gate", |m, at| clear(m, at, 0xf << 40), GeneralProtection, 6 * 8 + 3),
        ("null handler segment", |m, at| clear(m, at, 0xffff << 16), GeneralProtection, 1),
        ("32-bit handler", |m, at| selector(m, at, harness::CODE32), GeneralProtection, 0x08 + 1),
        ("absent handler segment", |m, at| selector(m, at, harness::ABSENT_CODE), SegmentNotPresent, 0x48 + 1),
        ("non-canonical handler", |m, at| m.ground.mem.write_u64(at.offset(8), 0x8000), GeneralProtection, 1),
        ("IST beyond the TSS", short_tss, InvalidTss, 0x18 + 1),
    ];
    for (name, damage, vector, error) in rows {
        let mut machine = Machine::long64();
        machine.code64(CodeAssembler::ud2);
        damage(&mut machine, gate(6));
        assert_eq!(machine.exception(), (vector, Some(error)), "{name}");
        let asked: Vec<_> = machine.virt.asked.iter().map(|(trap, _)| *trap).collect();
        let is = |trap: &Trap, expected: Vector| matches!(trap, Trap::Exception(e) if e.vector == expected);
        assert!(asked.len() == 2 && is(&asked[0], InvalidOpcode) && is(&asked[1], vector), "{name}: {asked:?}");
    }
}

fn clear(machine: &mut Machine, at: Hpa, bits: u64) {
    let old = machine.ground.mem.read_u64(at);
    machine.ground.mem.write_u64(at, old & !bits);
}

fn selector(machine: &mut Machine, at: Hpa, selector: u16) {
    clear(machine, at, 0xffff << 16);
    let old = machine.ground.mem.read_u64(at);
    machine.ground.mem.write_u64(at, old | u64::from(selector) << 16);
}

fn short_tss(machine: &mut Machine, at: Hpa) {
    machine.core.segments.tr.limit = 0x20;
    let old = machine.ground.mem.read_u64(at);
    machine.ground.mem.write_u64(at, old | 1 << 32);
}

/// Contributory in contributory and page fault in page fault are #DF; a fault in #DF is shutdown (SDM 3A 6.15).
#[test]
fn double_and_triple_faults() {
    // #GP whose gate is gone: #GP in #GP.
    let mut machine = Machine::long64();
    machine.code64(|a| a.mov(ds, eax));
    machine.set(Gpr::Rax, 0x100);
    clear(&mut machine, Hpa(harness::IDT + 16 * 13), 1 << 47);
    assert_eq!(machine.exception(), (DoubleFault, Some(0)));
    assert_eq!(machine.core.rip, harness::HANDLERS + 16 * 8);

    // #PF whose handler's stack is absent: #PF in #PF, CR2 from the second.
    let mut machine = Machine::long64();
    absent_page(&mut machine);
    machine.set_page(4, 0);
    machine.set(Gpr::Rsp, harness::DATA + 0x5000);
    machine.ground.mem.write_u64(Hpa(harness::TSS + 0x24), harness::RING0_STACK);
    let gate = Hpa(harness::IDT + 16 * 8);
    let low = machine.ground.mem.read_u64(gate);
    machine.ground.mem.write_u64(gate, low | 1 << 32);
    machine.code64(|a| a.mov(rax, qword_ptr(rbx)));
    assert_eq!(machine.exception(), (DoubleFault, Some(0)));
    assert_eq!(machine.core.cr2, Gva(harness::DATA + 0x4ff8));

    // No IDT at all.
    let mut machine = Machine::long64();
    machine.core.idtr = TableRegister::default();
    machine.code64(CodeAssembler::ud2);
    assert_eq!(machine.step(), Ok(Outcome::Shutdown));
    let asked: Vec<_> = machine.virt.asked.iter().map(|(trap, _)| *trap).collect();
    let vectors: Vec<_> = asked
        .iter()
        .filter_map(|trap| if let Trap::Exception(exception) = trap { Some(exception.vector) } else { None })
        .collect();
    assert_eq!(vectors, [InvalidOpcode, GeneralProtection, GeneralProtection, DoubleFault, GeneralProtection]);
    assert_eq!(asked.last(), Some(&Trap::TripleFault));
}

/// A store that crosses into an absent page writes nothing, not even its first part (SDM 3A 4.7).
#[test]
fn a_crossing_store_is_all_or_nothing() {
    let mut machine = Machine::long64();
    machine.set_page(3, 0);
    machine.set(Gpr::Rax, u64::MAX);
    machine.code64(|a| a.mov(qword_ptr(0x20_2ffd), rax));
    assert_eq!(machine.exception(), (PageFault, Some(2)));
    assert_eq!(machine.core.cr2, Gva(0x20_3000));
    assert_eq!(machine.quad(0x20_2ff8), 0);
}

/// An instruction that crosses into an absent page faults on the second page, and one that ends before it does not.
#[test]
fn fetch_touches_only_what_it_needs() {
    for (nops, bytes, faults) in [(4, 5, true), (5, 5, false)] {
        let mut machine = Machine::long64();
        machine.set_page(3, 0);
        let at = harness::DATA + 0x3000 - nops;
        machine.assemble(64, at, |a| a.mov(eax, 0x1234));
        machine.core.rip = at;
        let outcome = machine.step();
        assert_eq!(outcome == Ok(Outcome::Delivered), faults, "{bytes} bytes, {nops} before the page");
        if faults {
            assert_eq!(machine.last_exception(), Some((PageFault, Some(0x10))));
            assert_eq!(machine.core.cr2, Gva(harness::DATA + 0x3000));
        }
    }
}
