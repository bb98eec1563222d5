//! Task switches (SDM 3A chapter 7; SDM 2 CALL, JMP, INT, IRET; SDM 3C 25.4.2): every source, between 16-bit and 32-bit
//! task-state segments.

mod harness;

use cpu::virt::Trap;
use cpu::{Gpr, Outcome};
use harness::tasks::*;
use harness::{CODE, CODE32, DATA0, GDT, Machine, TSS, USER_CODE32, USER_DATA};
use sim_core::Hpa;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;

fn begin(machine: &mut Machine, start: Start) {
    let delivered = matches!(start, Start::Int | Start::Exception | Start::WithError);
    let expected = if delivered { Outcome::Delivered } else { Outcome::Retired };
    assert_eq!(machine.step(), Ok(expected), "{start:?}");
}

/// SDM 3A 7.3 and table 7-2: what is saved, loaded, linked and marked busy, for each source and pair of formats.
#[test]
fn every_source_between_every_pair_of_formats() {
    let mut cases = 0;
    for start in STARTS {
        for (old, new) in [(Size::Bits16, Size::Bits16), (Size::Bits16, Size::Bits32)]
            .into_iter()
            .chain([(Size::Bits32, Size::Bits16), (Size::Bits32, Size::Bits32)])
        {
            let mut machine = machine(start, old, new);
            let before = machine.core.clone();
            begin(&mut machine, start);
            saved(&machine, &before, start, old);
            loaded(&machine, start, new);
            let name = format!("{start:?} {old:?} {new:?}");
            let old_kind = old.kind() | if start.nests() { 2 } else { 0 };
            assert_eq!((rights(&machine, OLD), rights(&machine, NEW)), (0x80 | old_kind, 0x82 | new.kind()), "{name}");
            let link = machine.ground.mem.read(Hpa(NEW_TSS), 2);
            assert_eq!(link, if start.nests() { u64::from(OLD) } else { 0 }, "{name}");
            let asked = machine.virt.asked.iter().filter_map(|(trap, _)| match trap {
                Trap::TaskSwitch { selector, source, error } => Some((*selector, *source, *error)),
                _ => None,
            });
            let error = (start == Start::WithError).then_some(0xabc);
            assert_eq!(asked.collect::<Vec<_>>(), [(NEW, start.source(), error)], "{name}");
            cases += 1;
        }
    }
    println!("task switches: {cases}");
}

fn saved(machine: &Machine, before: &cpu::Core, start: Start, old: Size) {
    // Faults save RF (SDM 3B 17.3.1.1); IRET saves NT as 0.
    let resume = if start.ext() == 1 { 0x1_0000 } else { 0 };
    let flags = (before.rflags.bits() & !Rflags::NT.bits()) | resume;
    let registers = [start.next(), flags].into_iter().chain(before.gprs[..8].iter().copied());
    // TSS slots follow the encoding's order: EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    let mask = if old == Size::Bits16 { 0xffff } else { 0xffff_ffff };
    for (offset, value) in old.registers().into_iter().zip(registers) {
        assert_eq!(machine.ground.mem.read(Hpa(TSS + offset), old.bytes()), value & mask, "{start:?} {offset:#x}");
    }
    let selectors = [DATA0, CODE32, DATA0, DATA0, DATA0, 3];
    for (offset, selector) in old.selectors().into_iter().zip(selectors) {
        if let Some(offset) = offset {
            let found = machine.ground.mem.read(Hpa(TSS + offset), 2);
            assert_eq!(found, u64::from(selector), "{start:?} {offset:#x}");
        }
    }
}

fn loaded(machine: &Machine, start: Start, new: Size) {
    let core = &machine.core;
    let nested = if start.nests() { Rflags::NT.bits() } else { 0 };
    assert_eq!((core.rip, core.rflags.bits()), (NEW_CODE, 2 | nested), "{start:?}");
    let pushed = if start == Start::WithError { new.bytes() as u64 } else { 0 };
    for (index, value) in VALUES.into_iter().enumerate() {
        let value = if index == 4 { value - pushed } else { value };
        let mask = if new == Size::Bits16 && index != 4 { 0xffff } else { 0xffff_ffff };
        let found = core.gprs[index] & mask;
        assert_eq!(found, value | if index == 4 && new == Size::Bits16 { found & 0xffff_0000 } else { 0 }, "{start:?}");
    }
    if start == Start::WithError {
        let top = Hpa((NEW_STACK - pushed) & 0xffff);
        if new == Size::Bits32 {
            assert_eq!(machine.ground.mem.read(top, 4), 0xabc);
        }
    }
    let s = &core.segments;
    let visible = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldtr].map(|segment| segment.selector);
    let mut expected = SELECTORS;
    if new == Size::Bits16 {
        expected[5] = 0;
    }
    assert_eq!(visible, expected, "{start:?}");
    assert_eq!((s.ldtr.base, s.ldtr.limit, s.ds.rights.dpl(), s.fs.rights.is_unusable()), (0x2800, 0x17, 3, true));
    assert_eq!((s.tr.selector, s.tr.base, s.tr.limit), (NEW, NEW_TSS, new.limit() as u32), "{start:?}");
    assert_eq!(u64::from(s.tr.rights.0), 0x82 | new.kind(), "{start:?}");
    assert!(core.cr0.contains(Cr0::TS), "{start:?}");
}

/// SDM 3C 25.4.2: an exit leaves both TSSs, both descriptors, NT and TR as they were.
#[test]
fn an_exit_comes_before_any_change() {
    for start in STARTS {
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        machine.virt.intercepts = |trap| matches!(trap, Trap::TaskSwitch { .. });
        let tables = |machine: &Machine| {
            (0..0x20)
                .map(|index| machine.quad(GDT + 8 * index))
                .chain((0..16).map(|index| machine.quad(TSS + 8 * index)))
                .chain((0..16).map(|index| machine.quad(NEW_TSS + 8 * index)))
                .collect::<Vec<_>>()
        };
        let (before, memory) = (machine.core.clone(), tables(&machine));
        machine.step().expect("an exit");
        assert_eq!(tables(&machine), memory, "{start:?}");
        let core = &machine.core;
        assert_eq!((core.segments, core.gprs, core.rip), (before.segments, before.gprs, before.rip), "{start:?}");
        assert_eq!((core.rflags, core.cr0), (before.rflags, before.cr0), "{start:?}");
    }
}

/// Privilege: of the task gate where there is one, else of the TSS descriptor (SDM 3C 25.4.2); whole over CPL 0 and 3,
/// Into ring 3 and back: a user's task calls nothing of its own, IRET returns to the first (SDM 3A 7.4).
#[test]
fn call_a_user_task_and_return() {
    let mut machine = machine(Start::CallTss, Size::Bits32, Size::Bits32);
    for (offset, selector) in [(0x4c, USER_CODE32), (0x50, USER_DATA), (0x48, 0), (0x5c, 0)] {
        put(&mut machine, offset, u64::from(selector), 2);
    }
    machine.ground.mem.write_bytes(Hpa(NEW_CODE), &[0xcf]);
    let before = machine.core.clone();
    machine.retire(1);
    assert_eq!((machine.core.cpl(), machine.core.segments.cs.selector), (3, USER_CODE32));
    machine.retire(1);
    let core = &machine.core;
    assert_eq!((core.rip, core.cpl(), core.gprs), (CODE + 7, 0, before.gprs));
    assert_eq!((core.segments.tr, core.rflags), (before.segments.tr, before.rflags));
    assert_eq!((rights(&machine, OLD), rights(&machine, NEW)), (0x8b, 0x89));
    // The task that returned goes on behind its IRET, with NT saved as 0.
    assert_eq!((machine.dword(NEW_TSS + 0x20), machine.dword(NEW_TSS + 0x24)), (NEW_CODE as u32 + 1, 2));
}

/// The T flag raises #DB with BT before the new task's first instruction; L0 to L3 go (SDM 3B 17.2.4, 17.3.1.5).
#[test]
fn debug_trap() {
    for start in STARTS {
        for trap in [0, 1] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            put(&mut machine, 0x64, trap, 2);
            machine.ground.mem.write_bytes(Hpa(NEW_CODE), &[0x90]);
            machine.core.dr = [0xffff_0000; 4];
            machine.core.dr7 = 0x7ff;
            begin(&mut machine, start);
            assert_eq!(machine.core.dr7, 0x6aa, "{start:?}");
            if trap == 0 {
                machine.retire(1);
                continue;
            }
            assert_eq!(machine.step(), Ok(Outcome::Delivered), "{start:?}");
            assert_eq!(machine.last_exception(), Some((Vector::Debug, None)), "{start:?}");
            assert_eq!(machine.core.dr6 & 0xe00f, 0x8000, "{start:?}");
            let rip = machine.dword(machine.gpr(Gpr::Rsp));
            assert_eq!(u64::from(rip), NEW_CODE, "{start:?}");
        }
    }
}

/// CR3 comes from the new TSS only with paging; a change drops the TLB, reloads PDPTEs and checks them (SDM 3A 4.4.1,
/// 4.10.4.1, 7.2.1).
#[test]
fn address_spaces() {
    use harness::{PAE_PDPT, PD};
    const SECOND: u64 = 0x1_5000;
    let mut plain = machine(Start::JmpTss, Size::Bits32, Size::Bits32);
    put(&mut plain, 0x1c, SECOND, 4);
    plain.retire(1);
    assert_eq!(plain.core.cr3, 0, "without paging");
    for (entry, cr3, expected) in [(PD | 1, SECOND, None), (PD | 3, SECOND, Some(gp(0))), (0, PAE_PDPT, None)] {
        let mut machine = machine(Start::JmpTss, Size::Bits32, Size::Bits32);
        machine.paging64();
        machine.ground.mem.write_u64(Hpa(SECOND), entry);
        let core = &mut machine.core;
        core.cr3 = PAE_PDPT;
        core.cr4 = Cr4::PAE;
        core.cr0 |= Cr0::PG;
        core.pdptes = [PD | 1, 0, 0, 0];
        put(&mut machine, 0x1c, cr3, 4);
        assert_eq!(fault_of(&mut machine, Start::JmpTss), expected);
        let flushes = machine
            .ground
            .log
            .records()
            .iter()
            .filter(|record| matches!(record.event, sim_core::event::Event::TlbFlush { .. }));
        let flushed = flushes.count() > 0;
        assert_eq!(flushed, cr3 == SECOND && expected.is_none());
        let reached = if expected.is_some() { PAE_PDPT } else { cr3 };
        assert_eq!((machine.core.cr3, machine.core.segments.tr.selector), (reached, NEW));
    }
}

/// IRET with NT in IA-32e mode is #GP (SDM 3C 25.4.2, case g).
#[test]
fn no_tasks_in_long_mode() {
    let mut machine = Machine::long64();
    machine.core.rflags |= Rflags::NT;
    machine.ground.mem.write_bytes(Hpa(CODE), &[0x48, 0xcf]);
    assert_eq!(machine.exception(), gp(0));
}
