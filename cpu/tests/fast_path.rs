//! Blocks against steps: a program run at either pace gives the same processor, memory, time, choices, events and
//! questions to the extension, after any number of instructions.
//!
//! `ROLECALL_CASES` multiplies the number of programs (default 1). A failing case names its seed; `ROLECALL_SEED` runs
//! that one alone.

mod harness;

use cpu::{Outcome, Pace, StopOn};
use harness::{CODE, DATA, GDT, Machine, PT, STACK};
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::rflags::Rflags;
use sim_core::hash::digest;
use sim_core::{Hpa, SimError};

/// Programs by default.
const PROGRAMS: u64 = 6000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Opcodes with a ModRM byte and so many bytes of immediate (9: as wide as the operand, 4 at most).
const MODRM: &[(&[u8], u8)] = &[
    (&[0x00], 0),
    (&[0x01], 0),
    (&[0x02], 0),
    (&[0x03], 0),
    (&[0x09], 0),
    (&[0x0b], 0),
    (&[0x11], 0),
    (&[0x13], 0),
    (&[0x19], 0),
    (&[0x1b], 0),
    (&[0x21], 0),
    (&[0x23], 0),
    (&[0x29], 0),
    (&[0x2a], 0),
    (&[0x2b], 0),
    (&[0x31], 0),
    (&[0x33], 0),
    (&[0x38], 0),
    (&[0x39], 0),
    (&[0x3a], 0),
    (&[0x3b], 0),
    (&[0x63], 0),
    (&[0x69], 9),
    (&[0x6b], 1),
    (&[0x80], 1),
    (&[0x81], 9),
    (&[0x83], 1),
    (&[0x84], 0),
    (&[0x85], 0),
    (&[0x87], 0),
    (&[0x88], 0),
    (&[0x89], 0),
    (&[0x8a], 0),
    (&[0x8b], 0),
    (&[0x8b], 0),
    (&[0x89], 0),
    (&[0x8d], 0),
    (&[0x8f], 0),
    (&[0xc0], 1),
    (&[0xc1], 1),
    (&[0xc6], 1),
    (&[0xc7], 9),
    (&[0xd1], 0),
    (&[0xd3], 0),
    (&[0xf6], 0),
    (&[0xf7], 0),
    (&[0xfe], 0),
    (&[0xff], 0),
    (&[0x0f, 0x1f], 0),
    (&[0x0f, 0xaf], 0),
    (&[0x0f, 0xb6], 0),
    (&[0x0f, 0xb7], 0),
    (&[0x0f, 0xbe], 0),
    (&[0x0f, 0xbf], 0),
    (&[0x0f, 0xb1], 0),
    (&[0x0f, 0xc1], 0),
    (&[0x0f, 0xab], 0),
];

/// Whole instructions.
const PLAIN: &[&[u8]] = &[
    &[0x90],
    &[0x98],
    &[0x99],
    &[0x48, 0x98],
    &[0x48, 0x99],
    &[0xc3],
    &[0xc9],
    &[0xc2, 8, 0],
    &[0x9c],
    &[0x9d],
    &[0xf8],
    &[0xf9],
    &[0xf5],
    &[0xfc],
    &[0xf3, 0x90],
    &[0x0f, 0x01, 0xcb],
    &[0x0f, 0x01, 0xca],
    &[0x0f, 0x01, 0x3e],
    &[0x0f, 0x01, 0x3b],
    &[0x0f, 0x20, 0xd8],
    &[0x0f, 0x22, 0xd8],
    &[0xa4],
    &[0xf3, 0xaa],
    &[0xfb],
    &[0xfa],
    &[0xcc],
    &[0xcd, 0x80],
    &[0x0f, 0x31],
    &[0x64, 0x8b, 0x03],
    &[0x65, 0x48, 0x8b, 0x06],
    &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
    &[0x67, 0x8b, 0x03],
    &[0xff, 0xe0],
    &[0xff, 0xd0],
    &[0xf0, 0x01, 0x03],
    &[0x48, 0x81, 0xc6, 0, 0x10, 0, 0],
    &[0x48, 0x81, 0xc3, 0, 0x10, 0, 0],
];

fn modrm(random: &mut Random, code: &mut Vec<u8>) {
    match random.below(8) {
        0..=2 => code.push(0xc0 | random.below(64) as u8),
        3 => code.push((random.below(8) << 3) as u8 | random.pick(&[3, 6, 7])),
        4 => code.extend([0x40 | (random.below(8) << 3) as u8 | random.pick(&[3, 5, 6, 7]), random.next() as u8]),
        5 => {
            code.push(0x80 | (random.below(8) << 3) as u8 | random.pick(&[3, 6, 7]));
            code.extend((random.below(0x3000) as u32).to_le_bytes());
        }
        6 => {
            // Relative to RIP: near the code itself.
            code.push((random.below(8) << 3) as u8 | 5);
            code.extend((random.below(0x200) as i32 - 0x80).to_le_bytes());
        }
        _ => code.extend([0x44 | (random.below(8) << 3) as u8, random.next() as u8, random.next() as u8]),
    }
}

fn instruction(random: &mut Random, code: &mut Vec<u8>) {
    let word = random.one_in(8);
    match random.below(20) {
        0..=10 => {
            if word {
                code.push(0x66);
            }
            if random.one_in(2) {
                code.push(0x40 | random.pick(&[0, 8, 8, 8, 9, 12, 4, 1]));
            }
            let (opcode, immediate) = random.pick(MODRM);
            code.extend(opcode);
            modrm(random, code);
            let bytes = if immediate == 9 { if word { 2 } else { 4 } } else { immediate };
            let value = if random.one_in(2) { random.below(16) } else { random.next() };
            code.extend(&value.to_le_bytes()[..usize::from(bytes)]);
        }
        11 | 12 => code.extend([0x70 | random.below(16) as u8, random.below(24) as u8]),
        13 => code.extend([0x70 | random.below(16) as u8, random.below(40) as u8 | 0xd0]),
        14 => code.extend([0x0f, random.pick(&[0x40, 0x90]) | random.below(16) as u8, 0xc0 | random.below(64) as u8]),
        15 => code.push(random.pick(&[0x50, 0x58]) | random.below(8) as u8),
        16 => {
            code.push(0x48);
            code.push(0xb8 | random.below(8) as u8);
            code.extend(pointer(random).to_le_bytes());
        }
        17 => {
            code.push(random.pick(&[0xe8, 0xe9]));
            code.extend((random.below(0x60) as i32 - 0x20).to_le_bytes());
        }
        18 => code.extend(random.pick(PLAIN)),
        _ => code.extend(&random.next().to_le_bytes()[..1 + random.below(4) as usize]),
    }
}

/// An address that something may happen at, or any number.
fn pointer(random: &mut Random) -> u64 {
    let near = random.below(64);
    match random.below(16) {
        0..=6 => DATA + (random.below(16) << 12) + random.below(0x1000),
        7 => DATA + (random.below(512) << 12) + 0xff0 + random.below(16),
        8 => CODE + near,
        9 => STACK - 0x100 + 8 * near,
        10 => PT + 8 * random.below(32),
        11 => 0x40_0000 + random.below(0x1f_0000),
        12 => GDT + near,
        13 => random.pick(&[0x7fff_ffff_fff8, 0x8000_0000_0000, 0xff_f000, 0x100_0000]) + near,
        14 => random.below(64),
        _ => random.next(),
    }
}

/// Rights of 4-KByte pages: all, read-only, supervisor, absent, not executable, not accessed yet.
const ENTRY_BITS: [u64; 6] = [7, 5, 3, 0, (1 << 63) | 7, 0x67];

fn prepare(base: &Machine, random: &mut Random) -> Machine {
    let mut machine =
        Machine { core: base.core.clone(), virt: harness::Watcher::default(), ground: base.ground.clone() };
    match random.below(8) {
        0..=3 => {}
        4..=5 => machine.drop_to_user(),
        6 => machine.core.cr4.insert(Cr4::SMAP | Cr4::SMEP),
        _ => machine.core.cr0.remove(Cr0::WP),
    }
    if random.one_in(4) {
        for page in 0..16 {
            let bits = if random.one_in(2) { 7 } else { random.pick(&ENTRY_BITS) };
            machine.set_page(page, (DATA + (random.below(16) << 12)) | bits);
        }
    }
    let mut code = Vec::new();
    for _ in 0..4 + random.below(28) {
        instruction(random, &mut code);
    }
    // Back to the start, so that the blocks run again.
    if !random.one_in(4) {
        code.push(0xe9);
        code.extend((-(code.len() as i32) - 4).to_le_bytes());
    }
    let start = match random.below(4) {
        0 => 0xa000 - random.below(code.len() as u64 + 8),
        1 => DATA + 0x1_0000 - random.below(code.len() as u64 + 8),
        _ => CODE + random.below(64),
    };
    machine.ground.mem.write_bytes(Hpa(start), &code);
    machine.core.rip = start;
    for register in 0..16 {
        machine.core.gprs[register] = pointer(random);
    }
    machine.core.gprs[4] = if random.one_in(8) { pointer(random) } else { STACK - 8 * random.below(64) };
    machine.core.gprs[1] = random.below(70);
    machine.core.segments.fs.base = pointer(random);
    machine.core.segments.gs.base = DATA;
    machine.core.rflags = Rflags::FIXED | Rflags::from_bits_truncate(random.next()) & Rflags::STATUS;
    machine
}

type Result = std::result::Result<Outcome, SimError>;

fn state(machine: &Machine) -> (u64, u64, String, usize) {
    let core = &machine.core;
    let ground = &machine.ground;
    let digest = digest(&(core, &ground.mem, &ground.clock, &ground.choices));
    (digest, ground.clock.now().0, format!("{:?}", ground.log.records().last()), machine.virt.asked.len())
}

fn at(pace: Pace, machine: &mut Machine, budget: u64) -> Result {
    cpu::run_at(pace, &mut machine.core, &mut machine.virt, &mut machine.ground, StopOn::Bus, budget)
}

/// How many instructions a case ran.
fn case(base: &Machine, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut steps = prepare(base, &mut random);
    let mut blocks =
        Machine { core: steps.core.clone(), virt: harness::Watcher::default(), ground: steps.ground.clone() };
    let mut ran = 0;
    for slice in 0..4 {
        let budget = 1 + random.below(if slice == 0 { 40 } else { 200 });
        ran += budget;
        let (slow, fast) = (at(Pace::Steps, &mut steps, budget), at(Pace::Blocks, &mut blocks, budget));
        assert_eq!(slow, fast, "seed {seed:#x} slice {slice}");
        let same = state(&steps) == state(&blocks);
        assert!(
            same,
            "seed {seed:#x} slice {slice}: {slow:?}\n{:?}\n{:?}\n{:x?}\n{:x?}\n{:?} {:?}",
            state(&steps),
            state(&blocks),
            steps.core.gprs,
            blocks.core.gprs,
            steps.core.rflags,
            blocks.core.rflags
        );
        if !matches!(slow, Err(SimError::Runaway { .. })) {
            break;
        }
    }
    ran
}

#[test]
fn blocks_are_steps() {
    let base = Machine::long64();
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = variable("ROLECALL_SEED") {
        case(&base, seed);
        return;
    }
    let programs = PROGRAMS * variable("ROLECALL_CASES").unwrap_or(1);
    let instructions: u64 = (0..programs).map(|seed| case(&base, seed)).sum();
    println!("fast path programs: {programs}, at most {instructions} instructions");
}
