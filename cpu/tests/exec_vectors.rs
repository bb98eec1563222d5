//! XMM registers, save areas and what processors may lack: availability, and the moves of XSAVE's data (SDM 1 chapter
//! 13; SDM 3A table 13-1). The arithmetic itself is compared with the host's in `native`.

mod harness;

use cpu::Gpr;
use cpu::profile::Features;
use harness::{DATA, Machine};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::Vector;
use sim_core::{Hpa, SimError};

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const ALL: Features = Features::all();

/// A processor with everything, and its operating system's consent.
fn machine() -> Machine {
    let mut machine = Machine::long64();
    machine.core.features = ALL;
    machine.core.cr4 |= Cr4::OSFXSR | Cr4::OSXSAVE;
    machine.core.xcr0 = 3;
    machine.set(Gpr::Rbx, DATA);
    for (index, register) in machine.core.vectors.xmm.iter_mut().enumerate() {
        *register = 0x0101_0101_0101_0101_0101_0101_0101_0101 * (index as u128 + 1);
    }
    machine
}

/// What each instruction needs of the processor.
const FEATURES: &[(&str, Emit, Features)] = &[
    ("movdqa", |a| a.movdqa(xmm1, xmm2), Features::SSE2),
    ("pxor", |a| a.pxor(xmm1, xmm2), Features::SSE2),
    ("movnti", |a| a.movnti(dword_ptr(rbx), ecx), Features::SSE2),
    ("ldmxcsr", |a| a.stmxcsr(dword_ptr(rbx)), Features::SSE2),
    ("fxsave", |a| a.fxsave(ptr(rbx)), Features::SSE2),
    ("clflush", |a| a.clflush(byte_ptr(rbx)), Features::SSE2),
    ("clflushopt", |a| a.clflushopt(byte_ptr(rbx)), Features::CLFLUSHOPT),
    ("clwb", |a| a.clwb(byte_ptr(rbx)), Features::CLFLUSHOPT),
    ("popcnt", |a| a.popcnt(eax, ecx), Features::POPCNT),
    ("crc32", |a| a.crc32(eax, cl), Features::POPCNT),
    ("movbe", |a| a.movbe(eax, dword_ptr(rbx)), Features::MOVBE),
    ("andn", |a| a.andn(eax, ecx, edx), Features::BMI),
    ("bextr", |a| a.bextr(eax, ecx, edx), Features::BMI),
    ("pdep", |a| a.pdep(eax, ecx, edx), Features::BMI),
    ("mulx", |a| a.mulx(eax, ecx, edx), Features::BMI),
    ("rorx", |a| a.rorx(eax, ecx, 3), Features::BMI),
    ("adcx", |a| a.adcx(eax, ecx), Features::ADX),
    ("xgetbv", CodeAssembler::xgetbv, Features::XSAVE),
    ("xsave", |a| a.xsave(ptr(rbx)), Features::XSAVE),
    ("xrstor", |a| a.xrstor(ptr(rbx)), Features::XSAVE),
];

/// With everything it retires; without its own feature alone it is #UD.
#[test]
fn features() {
    for (name, emit, feature) in FEATURES {
        for has in [true, false] {
            let mut machine = machine();
            machine.core.features = if has { ALL } else { ALL.difference(*feature) };
            machine.code64(emit);
            if has {
                assert_eq!(machine.step(), Ok(cpu::Outcome::Retired), "{name}");
            } else {
                assert_eq!(machine.exception(), (Vector::InvalidOpcode, None), "{name}");
            }
        }
    }
}

/// SDM 2 LZCNT and TZCNT: where they do not exist the prefix means nothing.
#[test]
fn counts_of_zeroes_are_scans_without_bmi() {
    for (features, leading, trailing) in [(ALL, 19, 2), (ALL.difference(Features::BMI), 12, 2)] {
        let mut machine = machine();
        machine.core.features = features;
        machine.set(Gpr::Rcx, 0x1234);
        machine.code64(|a| {
            a.lzcnt(eax, ecx)?;
            a.tzcnt(edx, ecx)
        });
        machine.retire(2);
        assert_eq!((machine.gpr(Gpr::Rax), machine.gpr(Gpr::Rdx)), (leading, trailing));
    }
}

/// SDM 3A table 13-1 and SDM 2's exception tables: what CR0 and CR4 forbid.
#[test]
fn availability() {
    let sse: Emit = |a| a.paddb(xmm1, xmm2);
    let fxsave: Emit = |a| a.fxsave(ptr(rbx));
    let xsave: Emit = |a| a.xsave(ptr(rbx));
    let fninit: Emit = CodeAssembler::fninit;
    let emms: Emit = CodeAssembler::emms;
    let wait: Emit = CodeAssembler::wait;
    let (ud, nm) = (Some(Vector::InvalidOpcode), Some(Vector::DeviceNotAvailable));
    // CR0.EM, CR0.TS, CR0.TS with MP, no OSFXSR, no OSXSAVE.
    let rows = [
        ("paddb", sse, [ud, nm, nm, ud, None]),
        ("fxsave", fxsave, [nm, nm, nm, None, None]),
        ("xsave", xsave, [None, nm, nm, None, ud]),
        ("fninit", fninit, [nm, nm, nm, None, None]),
        ("emms", emms, [ud, nm, nm, None, None]),
        ("fwait", wait, [None, None, nm, None, None]),
    ];
    let states: [fn(&mut Machine); 5] = [
        |machine| machine.core.cr0 |= Cr0::EM,
        |machine| machine.core.cr0 |= Cr0::TS,
        |machine| machine.core.cr0 |= Cr0::TS | Cr0::MP,
        |machine| machine.core.cr4 -= Cr4::OSFXSR,
        |machine| machine.core.cr4 -= Cr4::OSXSAVE,
    ];
    for (name, emit, expected) in rows {
        for (index, (state, expected)) in states.iter().zip(expected).enumerate() {
            let mut machine = machine();
            state(&mut machine);
            machine.code64(emit);
            match expected {
                None => machine.retire(1),
                Some(vector) => assert_eq!(machine.exception(), (vector, None), "{name} in state {index}"),
            }
        }
    }
}

/// SDM 1 10.5.1: where FXSAVE puts what, and FXRSTOR's way back; 32-bit code reaches eight registers.
#[test]
fn fxsave_and_fxrstor() {
    let mut machine = machine();
    machine.core.vectors.mxcsr = 0x9f80;
    machine.ground.mem.write_bytes(Hpa(DATA), &[0xee; 512]);
    machine.code64(|a| a.fxsave(ptr(rbx)));
    machine.retire(1);
    assert_eq!(machine.quad(DATA), 0x37f);
    assert_eq!(machine.quad(DATA + 24), 0x0000_ffff_0000_9f80);
    for index in 0..16 {
        assert_eq!(machine.quad(DATA + 160 + 16 * index), 0x0101_0101_0101_0101 * (index + 1));
    }
    assert_eq!(machine.quad(DATA + 416), 0xeeee_eeee_eeee_eeee, "FXSAVE leaves the end of the area alone");
    let saved = machine.core.vectors;
    machine.core.vectors = Default::default();
    machine.core.rip = harness::CODE;
    machine.code64(|a| a.fxrstor(ptr(rbx)));
    machine.retire(1);
    assert_eq!(machine.core.vectors, saved);

    for (at, value, expected) in [(24, 0x1_0000, Vector::GeneralProtection), (24, u64::MAX, Vector::GeneralProtection)]
    {
        let mut broken = self::machine();
        broken.ground.mem.write_u64(Hpa(DATA), 0x37f);
        broken.ground.mem.write_u64(Hpa(DATA + at), value);
        broken.code64(|a| a.fxrstor(ptr(rbx)));
        assert_eq!(broken.exception(), (expected, Some(0)));
    }
    let mut unaligned = self::machine();
    unaligned.code64(|a| a.fxsave(ptr(rbx + 8)));
    assert_eq!(unaligned.exception(), (Vector::GeneralProtection, Some(0)));
}

/// An x87 state that the model can't hold is named.
#[test]
fn x87_state_is_named() {
    for (name, emit) in [("control word", (|a| a.fldcw(word_ptr(rbx))) as Emit), ("state", |a| a.fxrstor(ptr(rbx)))] {
        let mut machine = machine();
        machine.ground.mem.write_u64(Hpa(DATA), 0x27f);
        machine.code64(emit);
        let error = machine.step().unwrap_err();
        assert!(matches!(&error, SimError::Unmodelled { what } if what.contains("x87")), "{name}: {error}");
    }
}

/// SDM 1 13.7 to 13.10: what each form of XSAVE writes, by the components that are asked for and in use.
#[test]
fn forms_of_xsave() {
    const FILL: u64 = 0xeeee_eeee_eeee_eeee;
    let plain: Emit = |a| a.xsave(ptr(rbx));
    let optimized: Emit = |a| a.xsaveopt(ptr(rbx));
    let compacted: Emit = |a| a.xsavec(ptr(rbx));
    // The form, EAX, whether XMM registers are in use; the first quadword, that of XMM0, XSTATE_BV and XCOMP_BV.
    let low = 0x0101_0101_0101_0101;
    let rows = [
        ("xsave of all", plain, 7, true, 0x37f, low, (FILL & !3) | 2, FILL),
        ("xsave of SSE", plain, 2, true, FILL, low, FILL | 2, FILL),
        ("xsave of x87", plain, 1, true, 0x37f, FILL, FILL & !1, FILL),
        ("xsave of SSE in its initial state", plain, 2, false, FILL, 0, FILL & !2, FILL),
        ("xsaveopt of all", optimized, 7, true, FILL, low, (FILL & !3) | 2, FILL),
        ("xsaveopt of SSE in its initial state", optimized, 2, false, FILL, FILL, FILL & !2, FILL),
        ("xsavec of all", compacted, 7, true, FILL, low, 2, 3 | 1 << 63),
        ("xsavec of SSE in its initial state", compacted, 2, false, FILL, FILL, 0, 2 | 1 << 63),
    ];
    for (name, emit, wanted, used, first, second, components, layout) in rows {
        let mut machine = machine();
        if !used {
            machine.core.vectors.xmm = [0; 16];
        }
        machine.set(Gpr::Rax, wanted);
        machine.ground.mem.write_bytes(Hpa(DATA), &[0xee; 1024]);
        machine.code64(emit);
        machine.retire(1);
        let found = [0, 160, 512, 520].map(|at| machine.quad(DATA + at));
        assert_eq!(found, [first, second, components, layout], "{name}");
        assert_eq!(machine.quad(DATA + 576), FILL, "{name} writes nothing behind the header");
    }
}

/// SDM 1 13.8 and 13.12: XRSTOR loads what is there, initializes what is not, and refuses broken headers.
#[test]
fn xrstor_and_its_headers() {
    let gp = Some((Vector::GeneralProtection, Some(0)));
    // XSTATE_BV, XCOMP_BV, the quadword after it; the fault, or XMM0 as it becomes.
    let rows = [
        (2, 0, 0, None, 0x77),
        (0, 0, 0, None, 0),
        (4, 0, 0, gp, 0),
        (0, 1, 0, gp, 0),
        (0, 0, 1, gp, 0),
        (2, 3 | 1 << 63, 0, None, 0x77),
        (0, 3 | 1 << 63, 0, None, 0),
        (2, 1 | 1 << 63, 0, gp, 0),
        (2, 7 | 1 << 63, 0, gp, 0),
        (2, 3 | 1 << 63, 1, gp, 0),
    ];
    for (components, layout, reserved, fault, loaded) in rows {
        let mut machine = machine();
        machine.set(Gpr::Rax, 7);
        machine.ground.mem.write_u32(Hpa(DATA + 24), 0x1f81);
        machine.ground.mem.write_u64(Hpa(DATA + 160), 0x77);
        for (at, value) in [(512, components), (520, layout), (528, reserved)] {
            machine.ground.mem.write_u64(Hpa(DATA + at), value);
        }
        machine.code64(|a| a.xrstor(ptr(rbx)));
        match fault {
            Some(fault) => assert_eq!(machine.exception(), fault, "{components:#x} {layout:#x}"),
            None => {
                machine.retire(1);
                assert_eq!(machine.core.vectors.xmm[0], loaded);
                let initial = layout != 0 && components & 2 == 0;
                assert_eq!(machine.core.vectors.mxcsr, if initial { 0x1f80 } else { 0x1f81 });
            }
        }
    }
}

/// XGETBV: XCR0, its components in use, and nothing else.
#[test]
fn xgetbv() {
    for (index, expected) in [(0, Some(3)), (1, Some(2)), (2, None)] {
        let mut machine = machine();
        machine.set(Gpr::Rcx, index);
        machine.set(Gpr::Rdx, u64::MAX);
        machine.code64(CodeAssembler::xgetbv);
        match expected {
            Some(value) => {
                machine.retire(1);
                assert_eq!((machine.gpr(Gpr::Rax), machine.gpr(Gpr::Rdx)), (value, 0));
            }
            None => assert_eq!(machine.exception(), (Vector::GeneralProtection, Some(0))),
        }
    }
}

/// What is left out of SSE, MMX and x87 is named.
#[test]
fn left_out_by_name() {
    let rows: [(Emit, &str); 5] = [
        (|a| a.addsd(xmm1, xmm2), "SSE floating point"),
        (|a| a.cmpsd_3(xmm1, xmm2, 1), "SSE floating point"),
        (|a| a.paddb(mm1, mm2), "MMX"),
        (|a| a.pextrw(dword_ptr(rbx), xmm1, 1), "SSE4.1"),
        (CodeAssembler::fld1, "fld1"),
    ];
    for (emit, expected) in rows {
        let mut machine = machine();
        machine.code64(emit);
        let error = machine.step().unwrap_err();
        assert!(matches!(&error, SimError::Unmodelled { what } if what.contains(expected)), "{expected}: {error}");
    }
}
