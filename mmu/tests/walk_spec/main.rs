//! The software walk of a guest's tables against a second statement of the manual ([`manual`]): random entries, of which
//! most are well-formed, random accesses, control bits and CPUIDs, in every format that a guest's tables may have.

#[expect(dead_code, reason = "each test uses its part of the machine")]
#[path = "../support/mod.rs"]
mod support;

mod manual;

use manual::{Manual, Reached, Told};
use mmu::cpuid::{GuestCpuid, GuestFeatures};
use mmu::entry_rules::{EntryRules, ExecuteOnly, UpperGlobal};
use mmu::guest_walk::GuestWalk;
use mmu::permission::Attempt;
use mmu::state::{RoleRegs, TdpMode};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::PageFaultError as Error;
use support::{F, Guest, Machine, R, U, W, at, mode};

/// The guest frame of the topmost table; those below follow it.
const TOP: u64 = 0x100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Bits32,
    Pae,
    Four,
    Five,
    Ept,
}

/// One guest entry, before it is encoded.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Bits 2:0.
    low: u64,
    large: bool,
    /// Accessed, dirty and XD from the lowest bit up.
    flags: u64,
    memory_type: u64,
    /// A frame that is not that of the next table.
    stray: Option<u64>,
    flip: Option<u32>,
}

#[derive(Clone, Debug)]
struct Case {
    format: Format,
    regs: RoleRegs,
    rules: EntryRules,
    cpuid: GuestCpuid,
    /// Bit 6 of the EPTP.
    ept_ad: bool,
    address: u64,
    attempt: Attempt,
    /// From level 1 up.
    shapes: [Shape; 5],
}

fn shape() -> impl Strategy<Value = Shape> {
    let low = prop_oneof![6 => Just(7u64), 4 => 0..8u64];
    let flags = prop_oneof![4 => 0..4u64, 1 => 0..8u64];
    let memory_type = prop_oneof![8 => Just(6u64), 2 => 0..8u64];
    let stray = prop::option::weighted(0.04, 0..0x2_0000u64);
    let flip = prop::option::weighted(0.12, prop_oneof![0..64u32, 12..22u32]);
    (low, prop::bool::weighted(0.35), flags, memory_type, stray, flip)
        .prop_map(|(low, large, flags, memory_type, stray, flip)| Shape { low, large, flags, memory_type, stray, flip })
}

/// What every vCPU of a format has, and the bits of CR0, CR4 and EFER that matter to a walk as they come.
fn regs(format: Format, [wp, nxe, smep, smap, pse]: [bool; 5]) -> RoleRegs {
    let mut regs = match format {
        Format::Bits32 => mode::legacy(),
        Format::Pae => mode::pae(),
        Format::Four | Format::Five | Format::Ept => mode::long(),
    };
    regs.cr0.set(Cr0::WP, wp);
    regs.efer.set(Efer::NXE, nxe);
    regs.cr4.set(Cr4::SMEP, smep);
    regs.cr4.set(Cr4::SMAP, smap);
    regs.cr4.set(Cr4::PSE, pse);
    regs.cr4.set(Cr4::LA57, format == Format::Five);
    regs
}

fn limits() -> impl Strategy<Value = (EntryRules, GuestCpuid)> {
    let upper_global = prop::sample::select(vec![UpperGlobal::Ignored, UpperGlobal::Reserved]);
    let execute_only = prop::sample::select(vec![ExecuteOnly::Offered, ExecuteOnly::Reserved]);
    let features = prop::sample::select(vec![GuestFeatures::all(), GuestFeatures::all() - GuestFeatures::PAGE_1G]);
    (upper_global, execute_only, features, 36..=46u32).prop_map(|(upper_global, execute_only, features, maxphyaddr)| {
        (EntryRules { upper_global, execute_only }, GuestCpuid { maxphyaddr, features })
    })
}

fn attempt(format: Format) -> impl Strategy<Value = Attempt> {
    let errors = prop::sample::select(vec![R, W, F, U, U | W, U | F]);
    (errors, any::<bool>()).prop_map(move |(error, suppressed)| Attempt {
        // A read of EPT is told as a user's.
        error: if format == Format::Ept && error == R { U } else { error },
        // SMAP is suppressed by EFLAGS.AC, for explicit supervisor accesses to data.
        smap_suppressed: suppressed && error & (U | F) == R,
    })
}

fn case(format: Format) -> impl Strategy<Value = Case> {
    let bits = any::<[bool; 5]>();
    let shapes = prop::array::uniform5(shape());
    (bits, limits(), any::<bool>(), any::<u64>(), attempt(format), shapes).prop_map(
        move |(bits, (rules, cpuid), ept_ad, address, attempt, shapes)| {
            let regs = regs(format, bits);
            let address = if regs.efer.contains(Efer::LMA) { address } else { address & 0xffff_ffff };
            Case { format, regs, rules, cpuid, ept_ad, address, attempt, shapes }
        },
    )
}

impl Case {
    /// The entries that the walk could read, from level 1 up.
    fn levels(&self) -> u32 {
        match self.format {
            Format::Bits32 | Format::Pae => 2,
            Format::Four | Format::Ept => 4,
            Format::Five => 5,
        }
    }

    const fn bytes(&self) -> usize {
        if matches!(self.format, Format::Bits32) { 4 } else { 8 }
    }

    fn has_large(&self, level: u32) -> bool {
        match self.format {
            Format::Bits32 => level == 2 && self.regs.cr4.contains(Cr4::PSE),
            _ => level == 2 || level == 3,
        }
    }

    fn table(&self, level: u32) -> u64 {
        (TOP + u64::from(self.levels() - level)) << 12
    }

    /// Where the entry of a level lies: SDM 3A figures 4-2 to 4-11.
    fn entry_at(&self, table: u64, level: u32) -> u64 {
        let (width, mask) = if self.format == Format::Bits32 { (10, 0x3ff) } else { (9, 0x1ff) };
        table + (self.address >> (12 + width * (level - 1)) & mask) * self.bytes() as u64
    }

    fn encode(&self, level: u32) -> u64 {
        let shape = self.shapes[level as usize - 1];
        let large = shape.large && self.has_large(level);
        let leaf = level == 1 || large;
        let size = if self.format == Format::Bits32 && level == 2 { 22 } else { 12 + 9 * (level - 1) };
        let next = if leaf { 0x5000 } else { self.table(level - 1) >> 12 };
        let frame = shape.stray.unwrap_or(next) << 12;
        let frame = if large { frame >> size << size } else { frame };
        let [accessed_dirty, no_execute] = [shape.flags & 3, shape.flags >> 2];
        let flags = if self.format == Format::Ept {
            accessed_dirty << 8 | if leaf { shape.memory_type << 3 } else { 0 }
        } else {
            accessed_dirty << 5 | no_execute << 63
        };
        let entry = (shape.low | frame | flags | u64::from(large) << 7) ^ shape.flip.map_or(0, |bit| 1 << bit);
        if self.bytes() == 4 { entry & 0xffff_ffff } else { entry }
    }
}

/// A machine whose active MMU walks the tables of the case.
fn machine(case: &Case) -> Machine {
    let tdp = if case.format == Format::Ept { TdpMode::Ept } else { TdpMode::Off };
    let mut machine = Machine::new(at("v6.14"), tdp, case.regs, TOP << 12, 1);
    machine.vm.config.rules = case.rules;
    machine.cpus[0].mmu.cpuid = case.cpuid;
    if case.format == Format::Pae {
        // Only the register that the address uses is present.
        machine.cpus[0].pdptes[(case.address >> 30 & 3) as usize] = case.table(2) | 1;
    }
    machine.mmu(0, |ctx, vcpu, view| ctx.after_set_cpuid(vcpu, view));
    if case.format == Format::Ept {
        let eptp = TOP << 12 | 3 << 3 | u64::from(case.ept_ad) << 6 | 6;
        machine.enter(0, Guest { regs: case.regs, cr3: 0, nested: Some(eptp) });
    }
    for level in 1..=case.levels() {
        let at = case.entry_at(case.table(level), level);
        machine.write(at, case.encode(level), case.bytes());
    }
    machine
}

/// The words of the tables that are not zero.
fn tables(machine: &Machine) -> Vec<(u64, u64)> {
    let words = (TOP << 12..(TOP + 5) << 12).step_by(8);
    words.map(|at| (at, machine.read(at, 8))).filter(|(_, word)| *word != 0).collect()
}

fn reached(walk: &GuestWalk, written: Vec<(u64, u64)>) -> Reached {
    let granted = |bit: u32| walk.access & bit != 0;
    Reached {
        gfn: walk.gfn.0,
        level: u32::from(walk.level.number()),
        write: granted(mmu::role::ACCESS_WRITE),
        user: granted(mmu::role::ACCESS_USER),
        execute: granted(mmu::role::ACCESS_EXEC),
        written,
    }
}

fn agrees(case: &Case) -> Result<Told, u32> {
    let mut machine = machine(case);
    let expected = Manual { case, machine: &machine }.walk();
    let mut memory = machine.clone();
    for (at, entry) in expected.iter().flat_map(|reached| &reached.written) {
        memory.write(*at, *entry, case.bytes());
    }
    let mmu = machine.cpus[0].mmu.active().clone();
    let found = machine.mmu(0, |ctx, _, view| ctx.walk_guest(&mmu, view, case.address, case.attempt));
    let written = expected.as_ref().map(|reached| reached.written.clone()).unwrap_or_default();
    let found = found.map(|walk| reached(&walk, written)).map_err(Told::from);
    assert_eq!(found, expected, "{case:x?}");
    assert_eq!(tables(&machine), tables(&memory), "{case:x?}");
    found.map_or_else(Ok, |reached| Err(reached.level))
}

/// The same cases in every run; each way for a walk to end is among them.
fn walks_agree(format: Format, told: &[fn(Told) -> bool], levels: &[u32]) {
    let config = Config { rng_seed: RngSeed::Fixed(7), failure_persistence: None, cases: 1500, ..Config::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let ends = std::cell::RefCell::new(Vec::new());
    let outcome = runner.run(&case(format), |case| {
        ends.borrow_mut().push(agrees(&case));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{format:?}: {failure}"));
    let ends = ends.into_inner();
    for (index, told) in told.iter().enumerate() {
        assert!(ends.iter().filter(|end| end.is_ok_and(told)).count() > 4, "{format:?}: end {index} is rare");
    }
    for level in levels {
        assert!(ends.iter().filter(|end| **end == Err(*level)).count() > 4, "{format:?}: level {level} is rare");
    }
}

/// Page faults for a page that is not present, for a right, for a reserved bit.
const PAGE_FAULTS: &[fn(Told) -> bool] = &[
    |told| matches!(told, Told::Page(error) if !error.contains(Error::P)),
    |told| matches!(told, Told::Page(error) if error.contains(Error::P) && !error.contains(Error::RSVD)),
    |told| matches!(told, Told::Page(error) if error.contains(Error::RSVD)),
];

#[test]
fn tables_of_4_byte_entries() {
    walks_agree(Format::Bits32, PAGE_FAULTS, &[1, 2]);
}

#[test]
fn pae_tables() {
    walks_agree(Format::Pae, PAGE_FAULTS, &[1, 2]);
}

#[test]
fn four_levels() {
    walks_agree(Format::Four, PAGE_FAULTS, &[1, 2, 3]);
}

#[test]
fn five_levels() {
    walks_agree(Format::Five, PAGE_FAULTS, &[1, 2, 3]);
}

#[test]
fn ept_tables() {
    let told: &[fn(Told) -> bool] = &[|told| matches!(told, Told::Violation(_)), |told| told == Told::Misconfiguration];
    walks_agree(Format::Ept, told, &[1, 2, 3]);
}
