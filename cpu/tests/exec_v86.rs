//! Virtual-8086 mode: the ways in and out, what its instructions may do at each IOPL, and its segments (SDM 3A 20.2; SDM 2
//! IRET, INT, CLI, STI, PUSHF, POPF, IN).

mod harness;

use cpu::virt::{Delivery, EventKind};
use cpu::{Core, Gpr, Outcome};
use harness::{CODE, CODE32, DATA0, GDT, HANDLERS, IDT, Machine, RING0_STACK, STACK, TSS, flat_descriptor};
use sim_core::Hpa;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

type Raised = (Vector, Option<u32>);

const GP0: Raised = (Vector::GeneralProtection, Some(0));
const UD: Raised = (Vector::InvalidOpcode, None);
const VM: u64 = Rflags::VM.bits();

/// CS:IP 0700:1000 is [`CODE`].
const CS: u16 = 0x700;
const IP: u64 = 0x1000;
const SP: u64 = 0x800;

const fn paragraphs(selector: u16) -> Segment {
    Segment { selector, base: (selector as u64) << 4, limit: 0xffff, rights: Rights(0xf3) }
}

/// A task of virtual-8086 mode with this IOPL.
fn v86(iopl: u64) -> Machine {
    let mut machine = Machine::flat32();
    let core = &mut machine.core;
    core.rflags = Rflags::from_bits_truncate(2 | VM | iopl << 12);
    let segments = &mut core.segments;
    (segments.cs, segments.ss) = (paragraphs(CS), paragraphs(0x500));
    (segments.es, segments.ds) = (paragraphs(0x1001), paragraphs(0x1002));
    (segments.fs, segments.gs) = (paragraphs(0x1003), paragraphs(0x1004));
    core.rip = IP;
    core.set_gpr(Gpr::Rsp, SP);
    machine
}

fn dwords<const N: usize>(machine: &Machine, at: u64) -> [u32; N] {
    std::array::from_fn(|index| machine.dword(at + 4 * index as u64))
}

/// IRETD of ring 0 with VM in the image takes nine doublewords; a ring above 0 ignores VM (SDM 2 IRET).
#[test]
fn the_way_in() {
    let image = 0x2 | VM as u32 | 0x3202;
    let frame = [IP as u32, 0xffff_0700, image, 0xdead_0800, 0x500, 0x1001, 0x1002, 0x1003, 0x1004];
    let enter = |eip: u32| {
        let mut machine = Machine::flat32();
        machine.ground.mem.write_bytes(Hpa(CODE), &[0xcf]);
        for (index, value) in frame.into_iter().enumerate() {
            machine.ground.mem.write_u32(Hpa(STACK + 4 * index as u64), if index == 0 { eip } else { value });
        }
        machine
    };
    let mut machine = enter(frame[0]);
    machine.retire(1);
    let core = &machine.core;
    let s = &core.segments;
    let found = [s.cs, s.ss, s.es, s.ds, s.fs, s.gs];
    assert_eq!(found, [CS, 0x500, 0x1001, 0x1002, 0x1003, 0x1004].map(paragraphs));
    assert_eq!((core.rip, core.gpr(Gpr::Rsp), core.rflags.bits()), (IP, 0xdead_0800, image.into()));
    assert_eq!(core.cpl(), 3);
    assert_eq!(enter(0x1_0000).exception(), GP0, "EIP beyond the segment");
}

/// Every event out: GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP and an error code on the stack of ring 0, null data segments,
/// VM clear (SDM 3A 20.3.1.1, figure 20-4).
#[test]
fn the_way_out() {
    type Row = (&'static str, &'static [u8], u64, u64, Option<u32>, u32);
    let rows: [Row; 5] = [
        ("INT n", &[0xcd, 0x10], 0x10, 2, None, 0),
        ("INT3", &[0xcc], 3, 1, None, 0),
        ("#UD", &[0x0f, 0x0b], 6, 0, None, 0x1_0000),
        ("#GP of HLT", &[0xf4], 13, 0, Some(0), 0x1_0000),
        ("#GP of CLTS", &[0x0f, 0x06], 13, 0, Some(0), 0x1_0000),
    ];
    for (name, bytes, vector, length, error, resume) in rows {
        let mut machine = v86(3);
        machine.ground.mem.write_bytes(Hpa(CODE), bytes);
        let offset = HANDLERS + 16 * vector;
        let gate = offset | u64::from(CODE32) << 16 | 0xee00 << 32;
        machine.ground.mem.write_u64(Hpa(IDT + 8 * vector), gate);
        assert_eq!(machine.step(), Ok(Outcome::Delivered), "{name}");
        let core = &machine.core;
        assert_eq!((core.rip, core.segments.cs.selector, core.segments.ss.selector), (offset, CODE32, DATA0), "{name}");
        assert_eq!((core.cpl(), core.rflags.contains(Rflags::VM)), (0, false), "{name}");
        let s = &core.segments;
        for segment in [s.es, s.ds, s.fs, s.gs] {
            assert_eq!((segment.selector, segment.rights.is_unusable()), (0, true), "{name}");
        }
        let top = RING0_STACK - 36 - if error.is_some() { 4 } else { 0 };
        assert_eq!(core.gpr(Gpr::Rsp), top, "{name}");
        if let Some(error) = error {
            assert_eq!(machine.dword(top), error, "{name}");
        }
        let flags = 0x2 | VM as u32 | 0x3000 | resume;
        let frame = [(IP + length) as u32, CS.into(), flags, SP as u32, 0x500, 0x1001, 0x1002, 0x1003, 0x1004];
        assert_eq!(dwords::<9>(&machine, RING0_STACK - 36), frame, "{name}");
    }
}

/// Out and in again by IRETD, nothing is lost.
#[test]
fn there_and_back() {
    let mut machine = v86(3);
    machine.ground.mem.write_bytes(Hpa(CODE), &[0xcc]);
    machine.ground.mem.write_bytes(Hpa(HANDLERS + 0x30), &[0xcf]);
    let before = machine.core.clone();
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    machine.retire(1);
    let core = &machine.core;
    assert_eq!((core.segments, core.gprs, core.rflags), (before.segments, before.gprs, before.rflags));
    assert_eq!(core.rip, IP + 1);
}

/// The handler's code must be nonconforming and of ring 0 (SDM 2 INT).
#[test]
fn handlers_refused() {
    for (name, rights, fits) in [
        ("ring 0", 0xc09b, true),
        ("ring 1", 0xc0bb, false),
        ("ring 3", 0xc0fb, false),
        ("conforming, ring 0", 0xc09f, false),
        ("conforming, ring 3", 0xc0ff, false),
    ] {
        let mut machine = v86(3);
        machine.core.gdtr.limit = 0xff;
        machine.ground.mem.write_u64(Hpa(GDT + 0x60), flat_descriptor(rights));
        machine.ground.mem.write_u64(Hpa(IDT + 8 * 0x10), ((HANDLERS + 0x100) & 0xffff) | 0x60 << 16 | 0xee00 << 32);
        machine.ground.mem.write_bytes(Hpa(CODE), &[0xcd, 0x10]);
        assert_eq!(machine.step(), Ok(Outcome::Delivered), "{name}");
        let general = machine.last_exception().filter(|(vector, _)| *vector == Vector::GeneralProtection);
        assert_eq!(general, (!fits).then_some((Vector::GeneralProtection, Some(0x60))), "{name}");
    }
}

/// What each instruction does at each IOPL: those on IF need 3, I/O looks at the bitmap alone, system instructions are
/// #UD or #GP (SDM 3A 20.2.7, 20.2.8; each instruction's page).
#[test]
fn instructions_at_each_iopl() {
    let rows: [(&str, &[u8], bool, Option<Raised>); 17] = [
        ("CLI", &[0xfa], true, None),
        ("STI", &[0xfb], true, None),
        ("PUSHF", &[0x9c], true, None),
        ("PUSHFD", &[0x66, 0x9c], true, None),
        ("POPF", &[0x9d], true, None),
        ("POPFD", &[0x66, 0x9d], true, None),
        ("IRET", &[0xcf], true, None),
        ("IN, port forbidden", &[0xe4, 0x42], false, Some(GP0)),
        ("IN, port allowed", &[0xe4, 0x40], false, None),
        ("SLDT", &[0x0f, 0x00, 0xc0], false, Some(UD)),
        ("STR", &[0x0f, 0x00, 0xc8], false, Some(UD)),
        ("LTR", &[0x0f, 0x00, 0xd8], false, Some(UD)),
        ("LAR", &[0x0f, 0x02, 0xc0], false, Some(UD)),
        ("ARPL", &[0x63, 0xc0], false, Some(UD)),
        ("LGDT", &[0x0f, 0x01, 0x16, 0, 0], false, Some(GP0)),
        ("MOV CR0", &[0x0f, 0x22, 0xc0], false, Some(GP0)),
        ("SMSW", &[0x0f, 0x01, 0xe0], false, None),
    ];
    for (name, bytes, sensitive, fault) in rows {
        for iopl in 0..4 {
            let mut machine = v86(iopl);
            machine.ground.mem.write_bytes(Hpa(CODE), bytes);
            machine.core.segments.tr.limit = 0x80;
            machine.ground.mem.write(Hpa(TSS + 0x68 + 8), 0b100, 1);
            let expected = if sensitive && iopl < 3 { Some(GP0) } else { fault };
            match expected {
                Some(expected) => assert_eq!(machine.exception(), expected, "{name} {iopl}"),
                None => machine.retire(1),
            }
        }
    }
}

/// POPF and IRET change neither VM nor IOPL (SDM 3A 20.2.7).
#[test]
fn vm_and_iopl_stay() {
    for (bytes, frame) in [
        (&[0x9d][..], &[0_u16, 0][..]),
        (&[0x66, 0x9d], &[0, 0]),
        (&[0xcf], &[0x1234, CS, 0]),
        (&[0x66, 0xcf], &[0x1234, 0, CS, 0, 0, 0]),
    ] {
        let mut machine = v86(3);
        machine.core.rflags |= Rflags::IF | Rflags::CF;
        machine.ground.mem.write_bytes(Hpa(CODE), bytes);
        for (index, value) in frame.iter().enumerate() {
            machine.ground.mem.write(Hpa(0x5000 + SP + 2 * index as u64), u64::from(*value), 2);
        }
        machine.retire(1);
        assert_eq!(machine.core.rflags.bits(), 2 | VM | 0x3000, "{bytes:x?}");
        if bytes.ends_with(&[0xcf]) {
            assert_eq!((machine.core.rip, machine.core.segments.cs), (0x1234, paragraphs(CS)), "{bytes:x?}");
        }
    }
}

/// INT n needs IOPL 3, INT3 does not; the gate must be open to ring 3 as for any user (SDM 3A 20.3.3).
#[test]
fn software_interrupts() {
    let int = |iopl: u64, dpl: u64| {
        let mut machine = v86(iopl);
        machine
            .ground
            .mem
            .write_u64(Hpa(IDT + 8 * 0x10), 0x9100 | u64::from(CODE32) << 16 | (0x8e00 | dpl << 13) << 32);
        machine.ground.mem.write_bytes(Hpa(CODE), &[0xcd, 0x10]);
        machine.exception()
    };
    for iopl in 0..3 {
        assert_eq!(int(iopl, 3), GP0);
    }
    assert_eq!(int(3, 0), (Vector::GeneralProtection, Some(0x82)));
    for iopl in 0..4 {
        let mut machine = v86(iopl);
        machine.ground.mem.write_bytes(Hpa(CODE), &[0xcc]);
        assert_eq!(machine.exception(), (Vector::Breakpoint, None));
    }
}

/// An injected software interrupt does not look at IOPL (SDM 3C 26.6.1.1); with CR4.VME the redirection bitmap is named.
#[test]
fn injected_software_interrupts() {
    let event = Delivery::software(3, EventKind::SoftwareInterrupt, 2);
    let inject = |machine: &mut Machine| {
        cpu::exception::inject(&mut machine.core, &mut machine.virt, &mut machine.ground, event)
    };
    for iopl in 0..4 {
        let mut machine = v86(iopl);
        assert_eq!(inject(&mut machine), Ok(Outcome::Delivered));
        assert_eq!((machine.core.rip, machine.core.cpl()), (HANDLERS + 0x30, 0));
        assert_eq!(u64::from(machine.dword(RING0_STACK - 36)), IP + 2);
        machine = v86(iopl);
        machine.core.cr4 |= Cr4::VME;
        assert!(inject(&mut machine).is_err());
    }
}

/// Segment loads and far transfers take any selector as a paragraph; 64 KBytes are the limit (SDM 3A 20.2.1).
#[test]
fn segments() {
    type Check = fn(&Core) -> bool;
    let rows: [(&str, &[u8], Check); 5] = [
        ("MOV DS, AX", &[0x8e, 0xd8], |core| core.segments.ds == paragraphs(0x8003)),
        ("MOV SS, AX", &[0x8e, 0xd0], |core| core.segments.ss == paragraphs(0x8003)),
        ("JMP far", &[0xea, 0x34, 0x12, 0x03, 0x80], |core| {
            (core.segments.cs, core.rip) == (paragraphs(0x8003), 0x1234)
        }),
        ("CALL far", &[0x9a, 0x34, 0x12, 0x03, 0x80], |core| {
            (core.segments.cs, core.rip, core.gprs[4]) == (paragraphs(0x8003), 0x1234, SP - 4)
        }),
        ("MOV CS:[SI], AX", &[0x2e, 0x89, 0x04], |core| core.rip == IP + 3),
    ];
    for (name, bytes, check) in rows {
        let mut machine = v86(0);
        machine.set(Gpr::Rax, 0x8003);
        machine.ground.mem.write_bytes(Hpa(CODE), bytes);
        machine.retire(1);
        assert!(check(&machine.core), "{name}: {:?}", machine.core.segments);
        assert!(machine.core.rflags.contains(Rflags::VM), "{name}");
    }
    // A word at 0xffff reaches beyond the segment: #SS through SS, #GP through others.
    for (bytes, expected) in [(&[0x36, 0x8b, 0x04][..], (Vector::StackFault, Some(0))), (&[0x8b, 0x04], GP0)] {
        let mut machine = v86(0);
        machine.set(Gpr::Rsi, 0xffff);
        machine.ground.mem.write_bytes(Hpa(CODE), bytes);
        assert_eq!(machine.exception(), expected);
    }
}

/// With CR4.VME what it would change is named, not guessed (SDM 3A 20.3.2, 20.3.3).
#[test]
fn extensions_are_named() {
    for bytes in [&[0xfa][..], &[0xfb], &[0x9c], &[0x9d], &[0xcf], &[0xcd, 0x10]] {
        let mut machine = v86(0);
        machine.core.cr4 |= Cr4::VME;
        machine.ground.mem.write_bytes(Hpa(CODE), bytes);
        let error = machine.step().expect_err("not modelled");
        assert!(error.to_string().contains("CR4.VME"), "{error}");
    }
}

/// A task whose EFLAGS have VM (SDM 3A 20.2.5): JMP to it, and IRET with NT from ring 0 back to it.
#[test]
fn tasks() {
    const NEW_TSS: u64 = 0x1_8000;
    let mut machine = Machine::flat32();
    machine.core.gdtr.limit = 0xff;
    machine.ground.mem.write_u64(Hpa(GDT + 0x60), 0x67 | NEW_TSS << 16 | 0x89 << 40);
    machine.ground.mem.write_bytes(Hpa(CODE), &[0xea, 0, 0, 0, 0, 0x60, 0]);
    let fields = [(0x20, IP), (0x24, 2 | VM), (0x38, SP), (0x48, 0x1001), (0x4c, u64::from(CS)), (0x50, 0x500)];
    for (offset, value) in fields.into_iter().chain([(0x54, 0x1002), (0x58, 0x1003), (0x5c, 0x1004)]) {
        machine.ground.mem.write_u32(Hpa(NEW_TSS + offset), value as u32);
    }
    machine.retire(1);
    let s = &machine.core.segments;
    let found = [s.cs, s.ss, s.es, s.ds, s.fs, s.gs];
    assert_eq!(found, [CS, 0x500, 0x1001, 0x1002, 0x1003, 0x1004].map(paragraphs));
    assert_eq!((machine.core.rip, machine.core.cpl(), machine.core.rflags.bits()), (IP, 3, 2 | VM));
    // Out through a task gate: the first task's TSS is idle again and takes over.
    machine.ground.mem.write_u64(Hpa(IDT + 8 * 3), 0xe500_0018_0000);
    machine.ground.mem.write_u32(Hpa(TSS + 0x20), HANDLERS as u32);
    machine.ground.mem.write_bytes(Hpa(CODE), &[0xcc]);
    machine.ground.mem.write_bytes(Hpa(HANDLERS), &[0xcf]);
    assert_eq!(machine.step(), Ok(Outcome::Delivered));
    assert_eq!((machine.core.cpl(), machine.core.rflags.contains(Rflags::VM)), (0, false));
    assert_eq!(u64::from(machine.dword(NEW_TSS + 0x24)), 2 | VM);
    machine.retire(1);
    assert_eq!(machine.core.segments.cs, paragraphs(CS));
    assert_eq!((machine.core.rip, machine.core.rflags.bits()), (IP + 1, 2 | VM));
}
