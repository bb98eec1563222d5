//! What task switches check (SDM 3A table 7-1; SDM 2 CALL, JMP, INT, IRET; SDM 3C 25.4.2): in the old task, then in the
//! new one.

mod harness;

use cpu::Gpr;
use cpu::virt::Trap;
use harness::tasks::*;
use harness::{ABSENT_CODE, ABSENT_DATA, CODE, CODE32, DATA0, GDT, IDT, Machine, READ_ONLY, TSS, USER_DATA};
use sim_core::Hpa;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::Vector;
use sim_core::arch::segment::{Rights, Segment};

type Edit = fn(&mut Machine);

/// SDM 3A table 7-1, the rows that are checked in the old task: nothing has changed yet.
#[test]
fn faults_of_the_old_task() {
    let tss = |limit, rights| tss_descriptor(NEW_TSS, limit, rights);
    for start in STARTS {
        let returns = start == Start::Iret;
        let invalid = if returns { ts } else { gp };
        let busy = if returns { 2 } else { 0 };
        let rows: [(&str, u64, Raised); 8] = [
            ("not a system segment", tss(0x67, 0x93), invalid(NEW)),
            ("an LDT", tss(0x67, 0x82), invalid(NEW)),
            ("the wrong busy flag, 32-bit", tss(0x67, 0x8b ^ busy), invalid(NEW)),
            ("the wrong busy flag, 16-bit", tss(0x67, 0x83 ^ busy), invalid(NEW)),
            ("not present", tss(0x67, 0x09 | busy), np(NEW)),
            ("limit of a 32-bit TSS", tss(0x66, 0x89 | busy), ts(NEW)),
            ("limit of a 16-bit TSS", tss(0x2a, 0x81 | busy), ts(NEW)),
            ("not present and too small", tss(0, 0x09 | busy), np(NEW)),
        ];
        for (name, raw, (vector, error)) in rows {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            set_descriptor(&mut machine, NEW, raw);
            let expected = (vector, error.map(|error| error | u32::from(start.ext())));
            assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?}: {name}");
            assert_eq!(machine.core.segments.tr.selector, OLD, "{start:?}: {name}");
            assert!(!machine.virt.asked.iter().any(|(trap, _)| matches!(trap, Trap::TaskSwitch { .. })), "{name}");
        }
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        machine.core.segments.tr.limit = 0x66;
        assert_eq!(fault_of(&mut machine, start), Some(ts(OLD | start.ext())), "{start:?}: the old TSS is too small");
    }
}

/// Selectors in the LDT, null ones and ones beyond the GDT (SDM 2 CALL, INT, IRET; SDM 3A table 7-1).
#[test]
fn selectors_of_tasks() {
    for (selector, error) in [(0_u16, 0_u16), (3, 0), (NEW | 4, NEW | 4), (0x100, 0x100)] {
        for start in [Start::CallGate, Start::JmpGate, Start::Int, Start::Exception, Start::Iret] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            machine.core.segments.ldtr = Segment { base: GDT, limit: 0xff, rights: Rights(0x82), selector: LDT };
            let raw = 0xe500_0000_0000 | u64::from(selector) << 16;
            set_descriptor(&mut machine, TASK_GATE, raw);
            machine.ground.mem.write_u64(Hpa(IDT + 8 * 0x10), raw);
            machine.ground.mem.write_u64(Hpa(IDT + 8 * 6), raw);
            machine.ground.mem.write(Hpa(TSS), u64::from(selector), 2);
            let invalid = if start == Start::Iret { ts } else { gp };
            let expected = invalid(error | start.ext());
            assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?} {selector:#x}");
        }
    }
}

/// RPL and DPL of the gate and of the TSS.
#[test]
fn privilege_rules() {
    let mut cases = 0;
    for case in 0..0x80_u64 {
        let (rpl, gate_dpl, tss_dpl) = (case & 3, case >> 2 & 3, case >> 4 & 3);
        let user = case & 0x40 != 0;
        let cpl = if user { 3 } else { 0 };
        for start in [Start::CallTss, Start::JmpTss, Start::CallGate, Start::JmpGate, Start::Int, Start::Exception] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            if user {
                machine.drop_to_user32();
            }
            set_descriptor(&mut machine, NEW, tss_descriptor(NEW_TSS, 0x67, 0x89 | tss_dpl << 5));
            let gate = 0x8500_0000_0000 | gate_dpl << 45 | u64::from(NEW) << 16;
            set_descriptor(&mut machine, TASK_GATE, gate);
            for vector in [6, 0x10] {
                machine.ground.mem.write_u64(Hpa(IDT + 8 * vector), gate);
            }
            let named = machine.ground.mem.read(Hpa(CODE + 5), 2);
            if matches!(start, Start::CallTss | Start::JmpTss | Start::CallGate | Start::JmpGate) {
                machine.ground.mem.write(Hpa(CODE + 5), named | rpl, 2);
            }
            let (fits, fault) = match start {
                Start::CallTss | Start::JmpTss => (cpl.max(rpl) <= tss_dpl, gp(NEW)),
                Start::CallGate | Start::JmpGate => (cpl.max(rpl) <= gate_dpl, gp(TASK_GATE)),
                Start::Int => (cpl <= gate_dpl, gp(0x10 << 3 | 2)),
                _ => (true, gp(0)),
            };
            let found = fault_of(&mut machine, start);
            assert_eq!(found, (!fits).then_some(fault), "{start:?} {case:#x}");
            cases += 1;
        }
    }
    println!("task privilege cases: {cases}");
}

/// An absent task gate is #NP with its own selector, in the IDT with its vector (SDM 2 CALL, INT).
#[test]
fn absent_task_gates() {
    for (start, expected) in [
        (Start::CallGate, np(TASK_GATE)),
        (Start::JmpGate, np(TASK_GATE)),
        (Start::Int, np(0x82)),
        (Start::Exception, np(0x33)),
    ] {
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        let raw = 0x6500_0000_0000 | u64::from(NEW) << 16;
        set_descriptor(&mut machine, TASK_GATE, raw);
        for vector in [6, 0x10] {
            machine.ground.mem.write_u64(Hpa(IDT + 8 * vector), raw);
        }
        assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?}");
    }
}

/// SDM 3A table 7-1, the rows that are checked in the new task: TR, EIP and the registers are already its own.
#[test]
fn faults_of_the_new_task() {
    let rows: [(&str, Edit, Raised); 18] = [
        ("LDT beyond the GDT", |m| put(m, 0x60, 0x100, 2), ts(0x100)),
        ("LDT in an LDT", |m| put(m, 0x60, u64::from(LDT | 4), 2), ts(LDT | 4)),
        ("LDT is a TSS", |m| put(m, 0x60, u64::from(OLD), 2), ts(OLD)),
        ("LDT not present", |m| set_descriptor(m, LDT, tss_descriptor(0x2800, 0x17, 0x02)), ts(LDT)),
        ("null CS", |m| put(m, 0x4c, 0, 2), ts(0)),
        ("CS is data", |m| put(m, 0x4c, u64::from(DATA0), 2), ts(DATA0)),
        ("CS with another RPL", |m| put(m, 0x4c, u64::from(CODE32 | 1), 2), ts(CODE32)),
        ("CS not present", |m| put(m, 0x4c, u64::from(ABSENT_CODE), 2), np(ABSENT_CODE)),
        ("null SS", |m| put(m, 0x50, 0, 2), ts(0)),
        ("SS is code", |m| put(m, 0x50, u64::from(CODE32), 2), ts(CODE32)),
        ("SS is read-only", |m| put(m, 0x50, u64::from(READ_ONLY), 2), ts(READ_ONLY)),
        ("SS with another RPL", |m| put(m, 0x50, u64::from(DATA0 | 1), 2), ts(DATA0)),
        ("SS of a user", |m| put(m, 0x50, u64::from(USER_DATA), 2), ts(USER_DATA & !3)),
        ("SS not present", |m| put(m, 0x50, u64::from(ABSENT_DATA), 2), raised(Vector::StackFault, ABSENT_DATA)),
        ("DS beyond the GDT", |m| put(m, 0x54, 0x100, 2), ts(0x100)),
        ("FS not readable", |m| put(m, 0x58, u64::from(NEW), 2), ts(NEW)),
        ("GS not present", |m| put(m, 0x5c, u64::from(ABSENT_DATA), 2), np(ABSENT_DATA)),
        ("ES of ring 0 with RPL 3", |m| put(m, 0x48, u64::from(DATA0 | 3), 2), ts(DATA0)),
    ];
    for (name, edit, (vector, error)) in rows {
        for start in STARTS {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            edit(&mut machine);
            let expected = (vector, error.map(|error| error | u32::from(start.ext())));
            assert_eq!(fault_of(&mut machine, start), Some(expected), "{start:?}: {name}");
            assert_eq!(machine.core.segments.tr.selector, NEW, "{start:?}: {name}");
            assert_eq!(machine.gpr(Gpr::Rax), VALUES[0], "{start:?}: {name}");
        }
    }
    for start in STARTS {
        let mut machine = machine(start, Size::Bits32, Size::Bits32);
        set_descriptor(&mut machine, CODE32, 0x0040_9b00_0000_0fff);
        assert_eq!(fault_of(&mut machine, start), Some(gp(start.ext())), "{start:?}: EIP beyond CS");
    }
}

/// Pages of both TSSs are touched before anything changes (SDM 3A 7.3 step 5): a fault is the old task's.
#[test]
fn page_faults_come_first() {
    use harness::{DATA, PAE_PDPT, PD};
    for start in STARTS {
        for (link, page) in [(true, 6), (false, 6), (false, 5)] {
            let mut machine = machine(start, Size::Bits32, Size::Bits32);
            machine.paging64();
            let core = &mut machine.core;
            core.cr3 = PAE_PDPT;
            core.cr4 = Cr4::PAE;
            core.cr0 |= Cr0::PG | Cr0::WP;
            core.pdptes = [PD | 1, 0, 0, 0];
            // The new TSS lies across pages 5 and 6 of the small pages.
            let base = DATA + 0x5fe0;
            for index in 0..0x68 {
                let byte = machine.ground.mem.read(Hpa(NEW_TSS + index), 1);
                machine.ground.mem.write(Hpa(base + index), byte, 1);
            }
            let busy = if start == Start::Iret { 2 } else { 0 };
            set_descriptor(&mut machine, NEW, tss_descriptor(base, 0x67, 0x89 | busy));
            machine.ground.mem.write_u32(Hpa(base + 0x1c), PAE_PDPT as u32);
            // Read-only pages stop the link alone.
            let entry = if link { (DATA + 0x5000) | 1 } else { 0 };
            machine.set_page(if link { 5 } else { page }, entry);
            let fault = fault_of(&mut machine, start);
            if link && !start.nests() {
                assert_eq!(fault, None, "{start:?}");
                continue;
            }
            assert_eq!(fault.map(|(vector, _)| vector), Some(Vector::PageFault), "{start:?}");
            assert_eq!((machine.core.segments.tr.selector, rights(&machine, OLD)), (OLD, 0x8b), "{start:?}");
            assert_eq!(machine.dword(TSS + 0x20), 0, "{start:?}");
        }
    }
}
