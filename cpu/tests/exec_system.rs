//! System calls, descriptor probes, and what features show in CPUID, CR4 and MSRs (SDM 2, each instruction's page; SDM 3A
//! 5.8.7, 5.8.8, 5.10; SDM 4 chapter 2).

mod harness;

use cpu::Gpr;
use cpu::profile::Features;
use harness::{CODE, GDT, Machine};
use iced_x86::code_asm::*;
use sim_core::Hpa;
use sim_core::arch::control::{Cr4, Efer};
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;

const UD: (Vector, Option<u32>) = (Vector::InvalidOpcode, None);
const GP0: (Vector, Option<u32>) = (Vector::GeneralProtection, Some(0));
const TARGET: u64 = 0x9_0000;

fn caller() -> Machine {
    let mut machine = Machine::long64();
    machine.core.efer |= Efer::SCE;
    machine.core.msrs.star = 0x0030_0028_0000_0000;
    machine.core.msrs.lstar = TARGET;
    machine.core.msrs.fmask = 0x700;
    machine
}

#[test]
fn syscall_and_sysret() {
    let mut machine = caller();
    machine.drop_to_user();
    machine.core.rflags |= Rflags::IF | Rflags::CF;
    machine.code64(CodeAssembler::syscall);
    machine.retire(1);
    let core = &machine.core;
    assert_eq!((core.rip, core.gpr(Gpr::Rcx), core.gpr(Gpr::R11)), (TARGET, CODE + 2, 0x203));
    assert_eq!((core.cpl(), core.segments.cs.selector, core.segments.ss.selector), (0, 0x28, 0x30));
    assert_eq!((core.rflags.bits(), core.segments.cs.rights.is_long()), (3, true));
    machine.assemble(64, TARGET, CodeAssembler::sysretq);
    machine.retire(1);
    let core = &machine.core;
    assert_eq!((core.rip, core.rflags.bits(), core.cpl()), (CODE + 2, 0x203, 3));
    assert_eq!((core.segments.cs.selector, core.segments.ss.selector), (0x43, 0x3b));
}

#[test]
fn system_calls_refused() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    type Row = (&'static str, Emit, fn(&mut Machine), (Vector, Option<u32>));
    let rows: [Row; 7] = [
        ("SYSCALL without SCE", |a| a.syscall(), |m| m.core.efer.remove(Efer::SCE), UD),
        ("SYSRET without SCE", |a| a.sysretq(), |m| m.core.efer.remove(Efer::SCE), UD),
        ("SYSRET by a user", |a| a.sysretq(), |m| m.drop_to_user(), GP0),
        ("SYSRET to a non-canonical address", |a| a.sysretq(), |m| m.set(Gpr::Rcx, 1 << 47), GP0),
        ("SYSENTER with a null selector", |a| a.sysenter(), |m| m.core.msrs.sysenter_cs = 3, GP0),
        (
            "SYSEXIT by a user",
            |a| a.sysexitq(),
            |m| {
                m.core.msrs.sysenter_cs = 8;
                m.drop_to_user();
            },
            GP0,
        ),
        ("SYSEXIT with a null selector", |a| a.sysexitq(), |m| m.core.msrs.sysenter_cs = 0, GP0),
    ];
    for (name, emit, set, expected) in rows {
        let mut machine = caller();
        set(&mut machine);
        machine.code64(emit);
        assert_eq!(machine.exception(), expected, "{name}");
    }
}

#[test]
fn sysenter_and_sysexit() {
    let mut machine = Machine::long64();
    machine.core.msrs.sysenter_cs = 0x28;
    machine.core.msrs.sysenter_eip = TARGET;
    machine.core.msrs.sysenter_esp = 0x6800;
    machine.core.rflags |= Rflags::IF;
    machine.code64(CodeAssembler::sysenter);
    machine.retire(1);
    let core = &machine.core;
    assert_eq!(
        (core.rip, core.gpr(Gpr::Rsp), core.rflags.bits(), core.segments.ss.selector),
        (TARGET, 0x6800, 2, 0x30)
    );
    machine.set(Gpr::Rdx, CODE);
    machine.set(Gpr::Rcx, 0x7777);
    machine.assemble(64, TARGET, CodeAssembler::sysexitq);
    machine.retire(1);
    let core = &machine.core;
    assert_eq!((core.rip, core.gpr(Gpr::Rsp), core.cpl()), (CODE, 0x7777, 3));
    assert_eq!((core.segments.cs.selector, core.segments.ss.selector), (0x4b, 0x53));
}

/// Every descriptor type, DPL, CPL and RPL, in and outside IA-32e mode, against the tables of SDM 2.
#[test]
fn descriptor_probes() {
    let mut cases = 0;
    for long in [false, true] {
        for kind in 0..32u64 {
            for dpl in 0..4u64 {
                for (user, rpl) in [(false, 0u64), (false, 2), (true, 3)] {
                    let mut machine = if long { Machine::long64() } else { Machine::flat32() };
                    let raw = 0x00cf_0000_0000_ffff | kind << 40 | dpl << 45 | 1 << 47;
                    machine.ground.mem.write_u64(Hpa(GDT + 0x58), raw);
                    match (long, user) {
                        (true, true) => machine.drop_to_user(),
                        (false, true) => machine.drop_to_user32(),
                        _ => {}
                    }
                    machine.set(Gpr::Rcx, 0x58 | rpl);
                    machine.set(Gpr::Rax, 0);
                    machine.set(Gpr::Rbx, 0);
                    let bitness = if long { 64 } else { 32 };
                    machine.assemble(bitness, CODE, |a| {
                        a.lar(eax, ecx)?;
                        a.setz(dl)?;
                        a.lsl(ebx, ecx)?;
                        a.setz(dh)?;
                        a.verr(cx)?;
                        a.setz(cl)?;
                        a.mov(ch, 0)
                    });
                    let code = kind >= 0x18;
                    let visible = (code && kind & 4 != 0) || dpl >= rpl;
                    let lar: &[u64] = if long { &[2, 9, 11, 12] } else { &[1, 2, 3, 4, 5, 9, 11, 12] };
                    let lsl: &[u64] = if long { &[2, 9, 11] } else { &[1, 2, 3, 9, 11] };
                    let readable = kind >= 0x10 && (!code || kind & 2 != 0);
                    machine.retire(6);
                    let shown = [
                        machine.gpr(Gpr::Rdx) & 0xff,
                        (machine.gpr(Gpr::Rdx) >> 8) & 0xff,
                        machine.gpr(Gpr::Rcx) & 0xff,
                    ];
                    let expected = [
                        visible && (kind >= 0x10 || lar.contains(&kind)),
                        visible && (kind >= 0x10 || lsl.contains(&kind)),
                        visible && readable,
                    ];
                    assert_eq!(shown, expected.map(u64::from), "long {long} type {kind:#x} dpl {dpl} rpl {rpl}");
                    assert_eq!(machine.gpr(Gpr::Rax), if expected[0] { (raw >> 32) & 0xf0_ff00 } else { 0 });
                    assert_eq!(machine.gpr(Gpr::Rbx), if expected[1] { 0xffff_ffff } else { 0 });
                    cases += 1;
                }
            }
        }
    }
    println!("descriptor probe cases: {cases}");
}

/// ARPL raises only.
#[test]
fn arpl_over_all_levels() {
    for to in 0..4u64 {
        for from in 0..4u64 {
            let mut machine = Machine::flat32();
            machine.set(Gpr::Rax, 0x40 | to);
            machine.set(Gpr::Rbx, from);
            machine.code32(|a| a.arpl(ax, bx));
            machine.retire(1);
            assert_eq!(machine.gpr(Gpr::Rax), 0x40 | to.max(from));
            assert_eq!(machine.status().contains(Rflags::ZF), to < from);
        }
    }
}

/// A feature brings its bit of CR4, and without it the bit is reserved.
#[test]
fn cr4_bits_of_features() {
    for (feature, bit) in [
        (Features::UMIP, Cr4::UMIP),
        (Features::FSGSBASE, Cr4::FSGSBASE),
        (Features::XSAVE, Cr4::OSXSAVE),
        (Features::SMEP, Cr4::SMEP),
        (Features::SMAP, Cr4::SMAP),
        (Features::PKU, Cr4::PKE),
        (Features::PKS, Cr4::PKS),
        (Features::PCID, Cr4::PCIDE),
    ] {
        for there in [false, true] {
            let mut machine = Machine::long64();
            machine.core.features = if there { feature } else { Features::all().difference(feature) };
            machine.set(Gpr::Rax, (Cr4::PAE | bit).bits());
            machine.code64(|a| a.mov(cr4, rax));
            if there {
                machine.retire(1);
            } else {
                assert_eq!(machine.exception(), GP0, "{bit:?}");
            }
        }
    }
}

/// MSRs that a feature brings: what may be written.
#[test]
fn msrs_of_features() {
    for (index, feature, good, bad) in [
        (0xc000_0103u64, Features::RDTSCP, 0xffff_ffffu64, 1 << 32),
        (0x1b, Features::X2APIC, 0xfee0_0d00, 0xfee0_0500),
        (0x6e1, Features::PKS, 0x1234, 1 << 32),
        (0xda0, Features::XSAVE, 0, 1),
        (0x1d9, Features::empty(), 3, 4),
    ] {
        for (features, value, allowed) in
            [(Features::all(), good, true), (Features::all(), bad, false), (Features::BASE, good, feature.is_empty())]
        {
            let mut machine = Machine::long64();
            machine.core.features = features;
            machine.set(Gpr::Rcx, index);
            machine.set(Gpr::Rax, value);
            machine.set(Gpr::Rdx, value >> 32);
            machine.code64(|a| {
                a.wrmsr()?;
                a.rdmsr()
            });
            if allowed {
                machine.retire(2);
                assert_eq!(machine.gpr(Gpr::Rdx) << 32 | machine.gpr(Gpr::Rax), value, "{index:#x}");
            } else {
                assert_eq!(machine.exception(), GP0, "{index:#x} {value:#x}");
            }
        }
    }
    // Writing the time-stamp counter moves it.
    let mut machine = Machine::long64();
    machine.set(Gpr::Rcx, 0x10);
    machine.set(Gpr::Rdx, 0x1000);
    machine.code64(|a| {
        a.wrmsr()?;
        a.rdtsc()
    });
    machine.retire(2);
    assert_eq!(machine.gpr(Gpr::Rdx), 0x1000);
}
