//! Runs cases in the simulator: the same mappings, at CPL 3.

use crate::record::{self, BASE16, CODE, Case, DATA, DATA_BYTES, Ended, LIMIT16, Mode, READ_ONLY};
use cpu::profile::Features;
use cpu::virt::{At, ControlRegister, Movement, Trap, Verdict, VirtDone, VirtInstruction};
use cpu::{Core, Fault, Outcome, Regime, StopOn, Virt};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::event::{Detail, EventLog};
use sim_core::{Ground, Gva, Hpa, SimError};

/// An extension that catches the first exception.
#[derive(Default)]
struct Catcher {
    caught: Option<Exception>,
}

impl Virt for Catcher {
    fn regime(&self, _core: &Core) -> Regime {
        Regime::default()
    }

    fn trap(&mut self, _core: &mut Core, _ground: &mut Ground, trap: &Trap, _at: At) -> Result<Verdict, SimError> {
        let Trap::Exception(exception) = trap else { return Ok(Verdict::Continue) };
        self.caught.get_or_insert(*exception);
        Ok(Verdict::Exited)
    }

    fn instruction(
        &mut self,
        _core: &mut Core,
        _ground: &mut Ground,
        _instruction: &VirtInstruction,
        _at: At,
    ) -> Result<VirtDone, Fault> {
        Err(Exception::ud().into())
    }

    fn cr_read(&self, _ground: &Ground, _register: ControlRegister, actual: u64) -> u64 {
        actual
    }

    fn cr_write(&self, _ground: &Ground, _register: ControlRegister, _current: u64, operand: u64) -> u64 {
        operand
    }

    fn cr_fixed(&self, _register: ControlRegister) -> (u64, u64) {
        (0, 0)
    }

    fn rdmsr(&self, _core: &Core, _index: u32) -> Option<Result<u64, Exception>> {
        None
    }

    fn wrmsr(&mut self, _core: &mut Core, _index: u32, _value: u64) -> Option<Result<(), Exception>> {
        None
    }
}

/// How instructions are run: both must end alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// One by one.
    Step,
    /// Many, by whatever short cut there is.
    Run,
}

/// A processor in user mode with the mappings of the native program, ready for any case.
pub(crate) struct Simulated {
    core: Core,
    ground: Ground,
}

const PML4: u64 = 0x1000;
const GDT: u64 = 0x1_0000;
const LDT: u64 = 0x1_1000;
/// Where descriptor tables are mapped: in the upper half, where users meet faults anyway.
const TABLES: u64 = 0xffff_fe00_0000_0000;
const PHYSICAL_CODE: u64 = 0x2_0000;
const PHYSICAL_DATA: u64 = 0x2_2000;
const PHYSICAL_READ_ONLY: u64 = 0x2_4000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;

/// Maps one page; every table is one frame after the one above it, and tables for one level are made once.
fn map(ground: &mut Ground, next: &mut u64, linear: u64, physical: u64, rights: u64) {
    let mut table = PML4;
    for level in (1..4).rev() {
        let at = Hpa(table + 8 * ((linear >> (12 + 9 * level)) & 0x1ff));
        let entry = ground.mem.read_u64(at);
        table = if entry & PRESENT != 0 {
            entry & 0x000f_ffff_ffff_f000
        } else {
            let made = *next;
            *next += 0x1000;
            ground.mem.write_u64(at, made | PRESENT | WRITABLE | USER);
            made
        };
    }
    let at = Hpa(table + 8 * ((linear >> 12) & 0x1ff));
    ground.mem.write_u64(at, physical | PRESENT | USER | rights);
}

/// A segment descriptor.
fn descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    let limit = if rights & 0x8000 != 0 { limit >> 12 } else { limit };
    (limit & 0xffff) | (base & 0xff_ffff) << 16 | rights << 40 | (limit & 0xf_0000) << 32 | (base >> 24) << 56
}

const DATA3: u64 = 0xc0f3;
const CODE32: u64 = 0xc0fb;
const CODE64: u64 = 0xa0fb;

fn tables(core: &mut Core, ground: &mut Ground) {
    // The kernel's GDT, as far as a user can load from it or meet its faults.
    let flat = u64::from(u32::MAX);
    let entries = [
        (1, descriptor(0, flat, 0xc09b)),
        (2, descriptor(0, flat, 0xa09b)),
        (3, descriptor(0, flat, 0xc093)),
        (4, descriptor(0, flat, CODE32)),
        (5, descriptor(0, flat, DATA3)),
        (6, descriptor(0, flat, CODE64)),
        (8, descriptor(0, 0x206f, 0x008b)),
        (10, descriptor(0, 15, 0x0082)),
        (15, descriptor(0, 0, 0x40f5)),
    ];
    for (index, raw) in entries {
        ground.mem.write_u64(Hpa(GDT + 8 * index), raw);
    }
    ground.mem.write_u64(Hpa(LDT), descriptor(CODE, LIMIT16.into(), 0x00fb));
    ground.mem.write_u64(Hpa(LDT + 8), descriptor(BASE16, LIMIT16.into(), 0x00f3));
    core.gdtr = TableRegister { base: TABLES + GDT, limit: 127 };
    // No I/O permission bitmap: its base is beyond the limit.
    ground.mem.write(Hpa(GDT + 0x800 + 0x66), 0x8000, 2);
    core.segments.tr.base = TABLES + GDT + 0x800;
    core.segments.ldtr = Segment { selector: 0x50, base: TABLES + LDT, limit: 15, rights: Rights(0x82) };
}

impl Simulated {
    pub(crate) fn new() -> Self {
        let (mut core, mut ground) = (Core::flat32(40), Ground::new(0x40));
        ground.log = EventLog::new(Detail::Nothing);
        let mut next = PML4 + 0x1000;
        map(&mut ground, &mut next, CODE, PHYSICAL_CODE, WRITABLE);
        for page in [0, 0x1000] {
            map(&mut ground, &mut next, DATA + page, PHYSICAL_DATA + page, WRITABLE | NO_EXECUTE);
        }
        map(&mut ground, &mut next, READ_ONLY, PHYSICAL_READ_ONLY, NO_EXECUTE);
        for page in [GDT, LDT] {
            map(&mut ground, &mut next, TABLES + page, page, WRITABLE);
        }
        ground.mem.write_bytes(Hpa(PHYSICAL_CODE), &[0xcc; 0x1000]);
        ground.mem.write_bytes(Hpa(PHYSICAL_READ_ONLY), &[0x5a; 0x1000]);
        tables(&mut core, &mut ground);
        core.cr0 |= Cr0::PG | Cr0::WP | Cr0::AM | Cr0::MP;
        core.cr3 = PML4;
        core.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::UMIP;
        core.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
        core.xcr0 = 3;
        core.features = Features::all();
        Self { core, ground }
    }

    fn prepare(&self, case: &Case) -> (Core, Ground) {
        let (mut core, mut ground) = (self.core.clone(), self.ground.clone());
        let flat = |selector| Segment::flat(selector, Rights(DATA3 as u32));
        let absent = Segment { rights: Rights::UNUSABLE, ..Segment::default() };
        let (cs, data) = case.mode.selectors();
        let local = |selector, base, rights| Segment { selector, base, limit: LIMIT16, rights: Rights(rights) };
        let segments = &mut core.segments;
        (segments.cs, segments.ds) = match case.mode {
            Mode::Bits64 => (Segment::flat(cs, Rights(CODE64 as u32)), absent),
            Mode::Bits32 => (Segment::flat(cs, Rights(CODE32 as u32)), flat(data)),
            Mode::Bits16 => (local(cs, CODE, 0x00fb), local(data, BASE16, 0x00f3)),
        };
        segments.es = segments.ds;
        (segments.fs, segments.gs) = (absent, absent);
        segments.ss = flat(record::SS);
        core.gprs = case.gprs;
        if case.mode != Mode::Bits64 {
            core.gprs = core.gprs.map(|value| value & 0xffff_ffff);
        }
        core.rip = case.rip();
        core.rflags = Rflags::from_bits_truncate(case.rflags) | Rflags::FIXED | Rflags::IF;
        core.vectors.xmm = case.xmm;
        core.vectors.mxcsr = case.mxcsr;
        let code = &case.code[..case.code.len().min(0x1000 - case.offset as usize)];
        ground.mem.write_bytes(Hpa(PHYSICAL_CODE + case.offset), code);
        ground.mem.write_bytes(Hpa(PHYSICAL_DATA + record::WINDOW - DATA), &case.window);
        ground.mem.write_bytes(Hpa(PHYSICAL_DATA + record::TAIL - DATA), &case.tail);
        (core, ground)
    }

    /// Runs a case until an exception; what is not modelled comes back as its name.
    pub(crate) fn run(&self, case: &Case, path: Path) -> Result<Ended, String> {
        /// A repeated string instruction takes several steps.
        const STEPS_MAX: u64 = 64;
        let (mut core, mut ground) = self.prepare(case);
        let mut virt = Catcher::default();
        let result = match path {
            Path::Step => (0..STEPS_MAX)
                .map(|_| cpu::step(&mut core, &mut virt, &mut ground))
                .find(|outcome| *outcome != Ok(Outcome::Retired))
                .unwrap_or(Ok(Outcome::Retired)),
            Path::Run => cpu::run(&mut core, &mut virt, &mut ground, StopOn::Exit, STEPS_MAX),
        };
        match result {
            Ok(Outcome::Moved(Movement::Exited)) => {}
            Ok(Outcome::Retired) | Err(SimError::Runaway { .. }) => return Err("a case without an end".to_owned()),
            Ok(outcome) => return Err(format!("{outcome:?}")),
            Err(SimError::Unmodelled { what }) => return Err(what),
            Err(error) => panic!("{:02x?}: {error}", case.code),
        }
        let exception = virt.caught.ok_or_else(|| "an exit without an exception".to_owned())?;
        Ok(ended(&core, &ground, &exception))
    }
}

fn ended(core: &Core, ground: &Ground, exception: &Exception) -> Ended {
    let mut data = vec![0; DATA_BYTES];
    ground.mem.read_bytes(Hpa(PHYSICAL_DATA), &mut data);
    let part = |at: u64, bytes: usize| &data[(at - DATA) as usize..(at - DATA) as usize + bytes];
    let segments = &core.segments;
    Ended {
        gprs: core.gprs,
        rip: core.rip,
        rflags: core.rflags.bits(),
        vector: exception.vector.number(),
        error: exception.error.unwrap_or(0),
        cr2: exception.cr2.unwrap_or(Gva(0)).0,
        mxcsr: core.vectors.mxcsr,
        selectors: [segments.ds, segments.es, segments.fs, segments.gs, segments.cs, segments.ss]
            .map(|segment| segment.selector),
        xmm: core.vectors.xmm,
        window: part(record::WINDOW, record::WINDOW_BYTES).try_into().expect("as many bytes"),
        tail: part(record::TAIL, record::TAIL_BYTES).try_into().expect("as many bytes"),
        checksum: record::checksum(&data),
    }
}
