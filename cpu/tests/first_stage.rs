//! The first-stage walker against the literal specification in `spec` (SDM 3A 4.3 to 4.8): whole spaces of permission
//! bits, control bits and accesses, then every single bit of every entry, which covers the reserved ones.
//!
//! Every comparison is of the physical address or error code, of CR2, and of all entries afterwards, so that accessed
//! and dirty flags are judged everywhere.

mod spec;

use cpu::paging::translate::translate;
use cpu::tlb::Tlb;
use cpu::{Core, Fault, Regime};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::{Ground, Gva, Hpa};
use spec::{Answer, Mode, Registers, What, Who, specify};

const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
/// P, R/W, U/S and XD: the bits that decide.
const DECIDING: [u64; 4] = [1, 2, 4, NX];
/// P, R/W and U/S, for formats without XD.
const DECIDING_32: [u64; 3] = [1, 2, 4];
/// An entry that allows everything.
const OPEN: u64 = 7;
/// The table of each depth, from the root; in PAE paging that of the PDPTEs stays unused.
const TABLES: [u64; 5] = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000];
/// A page's address that every page size allows.
const PAGE: u64 = 0x8000_0000;

const WHO: [Who; 3] = [Who::User, Who::Supervisor, Who::Implicit];
const WHAT: [What; 3] = [What::Read, What::Write, What::Fetch];

/// All sums of some of the bits.
fn combinations(bits: &[u64]) -> Vec<u64> {
    bits.iter().fold(vec![0], |sums, bit| sums.iter().flat_map(|sum| [*sum, sum | bit]).collect())
}

/// Every setting of WP, SMEP, SMAP, AC and NXE.
fn settings(mode: Mode) -> Vec<Registers> {
    let flag = |number: u32, bit: u32| number >> bit & 1 == 1;
    let setting = |number: u32| Registers {
        mode,
        cr3: TABLES[0],
        pdptes: [0; 4],
        wp: flag(number, 0),
        smep: flag(number, 1),
        smap: flag(number, 2),
        ac: flag(number, 3),
        nxe: flag(number, 4),
        pse: true,
        maxphyaddr: 46,
    };
    (0..32).map(setting).collect()
}

fn access(who: Who, what: What) -> Access {
    let kind = match what {
        What::Read => AccessKind::Read,
        What::Write => AccessKind::Write,
        What::Fetch => AccessKind::Fetch,
    };
    match who {
        Who::User => Access::new(kind, Privilege::User),
        Who::Supervisor => Access::new(kind, Privilege::Supervisor),
        Who::Implicit => Access::implicit(kind),
    }
}

fn core(registers: &Registers) -> Core {
    let mut core = Core::flat32(registers.maxphyaddr);
    core.cr0 |= Cr0::PG;
    core.cr0.set(Cr0::WP, registers.wp);
    core.cr3 = registers.cr3;
    core.pdptes = registers.pdptes;
    core.cr4.set(Cr4::PAE, registers.mode != Mode::Bits32);
    core.cr4.set(Cr4::PSE, registers.pse);
    core.cr4.set(Cr4::SMEP, registers.smep);
    core.cr4.set(Cr4::SMAP, registers.smap);
    core.rflags.set(Rflags::AC, registers.ac);
    core.efer.set(Efer::NXE, registers.nxe);
    core.cr4.set(Cr4::LA57, registers.mode == Mode::FiveLevel);
    core.efer.set(Efer::LMA | Efer::LME, matches!(registers.mode, Mode::FourLevel | Mode::FiveLevel));
    core
}

/// The entries of one walk, root first: where each is, and what it holds.
#[derive(Clone, Debug)]
struct Tables {
    mode: Mode,
    linear: u64,
    entries: Vec<(u64, u64)>,
}

impl Tables {
    /// A walk through entries with these flags; the last one maps [`PAGE`].
    fn new(mode: Mode, flags: &[u64]) -> Self {
        let (indices, shifts): (&[u64], &[u32]) = match mode {
            Mode::Bits32 => (&[3, 5], &[22, 12]),
            Mode::Pae => (&[3, 5], &[21, 12]),
            Mode::FourLevel => (&[1, 2, 3, 5], &[39, 30, 21, 12]),
            Mode::FiveLevel => (&[4, 1, 2, 3, 5], &[48, 39, 30, 21, 12]),
        };
        let linear: u64 = indices.iter().zip(shifts).map(|(index, shift)| index << shift).sum();
        let entry_at = |depth: usize| TABLES[depth] + indices[depth] * if mode == Mode::Bits32 { 4 } else { 8 };
        let target = |depth: usize| if depth + 1 == flags.len() { PAGE } else { TABLES[depth + 1] };
        let entries = flags.iter().enumerate().map(|(depth, flags)| (entry_at(depth), flags | target(depth))).collect();
        Self { mode, linear: linear + 0x678, entries }
    }

    fn bytes(&self) -> usize {
        if self.mode == Mode::Bits32 { 4 } else { 8 }
    }

    fn install(&self, ground: &mut Ground) {
        for (at, value) in &self.entries {
            ground.mem.write(Hpa(*at), *value, self.bytes());
        }
    }
}

/// Judges one access. The tables are put into memory before.
fn judge(ground: &mut Ground, core: &mut Core, registers: &Registers, tables: &Tables, (who, what): (Who, What)) {
    tables.install(ground);
    core.tlb = Tlb::default();
    let expected = specify(&|at, bytes| ground.mem.read(Hpa(at), bytes), registers, tables.linear, who, what);
    let result = match translate(core, &Regime::default(), ground, Gva(tables.linear), access(who, what)) {
        Ok(hpa) => Ok(hpa.0),
        Err(Fault::Exception(fault)) => {
            assert_eq!((fault.vector, fault.cr2), (Vector::PageFault, Some(Gva(tables.linear))));
            Err(fault.error.expect("a page fault has an error code"))
        }
        Err(other) => panic!("{other:?}"),
    };
    let after = |at: u64| ground.mem.read(Hpa(at), tables.bytes());
    let entries = expected.entries.iter().map(|(at, _)| (*at, after(*at))).collect();
    assert_eq!(Answer { result, entries }, expected, "{who:?} {what:?} {registers:x?} {tables:x?}");
}

/// Judges every access under every setting, and counts.
fn judge_all(registers: &[Registers], tables: &[Tables]) -> usize {
    let mut ground = Ground::new(16);
    let mut count = 0;
    for registers in registers {
        let mut core = core(registers);
        for tables in tables {
            for (who, what) in WHO.into_iter().flat_map(|who| WHAT.map(|what| (who, what))) {
                judge(&mut ground, &mut core, registers, tables, (who, what));
                count += 1;
            }
        }
    }
    count
}

/// Walks of `depth` entries: all combinations of the bits in the last entry and in one other, `leaf` added to the last.
fn pairs(mode: Mode, depth: usize, bits: &[u64], leaf: u64) -> Vec<Tables> {
    let mut all = Vec::new();
    for upper in 0..depth - 1 {
        for at_upper in combinations(bits) {
            for at_leaf in combinations(bits) {
                let mut flags = vec![OPEN; depth];
                flags[upper] = at_upper;
                flags[depth - 1] = at_leaf | leaf;
                all.push(Tables::new(mode, &flags));
            }
        }
    }
    all
}

/// 4-level and 5-level paging, pages of 4 KiB, 2 MiB and 1 GiB.
#[test]
fn long_mode_permissions() {
    for (mode, root) in [(Mode::FourLevel, 0), (Mode::FiveLevel, 1)] {
        let mut tables = pairs(mode, 4 + root, &DECIDING, 0);
        tables.extend(pairs(mode, 3 + root, &DECIDING, PS));
        tables.extend(pairs(mode, 2 + root, &DECIDING, PS));
        let count = judge_all(&settings(mode), &tables);
        println!("walker cases: {count}");
        assert_eq!(count, (3 + 2 + 1 + 3 * root) * 16 * 16 * 32 * 9);
    }
}

/// PAE paging, pages of 4 KiB and 2 MiB, PDPTE present and not.
#[test]
fn pae_permissions() {
    let mut tables = pairs(Mode::Pae, 2, &DECIDING, 0);
    tables.extend(combinations(&DECIDING).iter().map(|flags| Tables::new(Mode::Pae, &[flags | PS])));
    let mut registers = Vec::new();
    for pdpte in [TABLES[0], TABLES[0] | 1] {
        let with = |registers| Registers { pdptes: [pdpte, 0, 0, 0], ..registers };
        registers.extend(settings(Mode::Pae).into_iter().map(with));
    }
    let count = judge_all(&registers, &tables);
    println!("walker cases: {count}");
    assert_eq!(count, (16 * 16 + 16) * 2 * 32 * 9);
}

/// 32-bit paging with CR4.PSE on and off, pages of 4 KiB and (PS set) 4 MiB.
#[test]
fn legacy_permissions() {
    let mut tables = pairs(Mode::Bits32, 2, &DECIDING_32, 0);
    tables.extend(combinations(&DECIDING_32).iter().map(|flags| Tables::new(Mode::Bits32, &[flags | PS])));
    let mut registers = settings(Mode::Bits32);
    registers.extend(settings(Mode::Bits32).into_iter().map(|registers| Registers { pse: false, ..registers }));
    let count = judge_all(&registers, &tables);
    println!("walker cases: {count}");
    assert_eq!(count, (8 * 8 + 8) * 2 * 32 * 9);
}

/// Every bit from 3 up of every entry of a walk, alone on top of an open walk: reserved bits fault, all others leave
/// the access alone or move an address.
#[test]
fn every_bit_of_every_entry() {
    let mut count = 0;
    for maxphyaddr in [36, 40, 46, 52] {
        for (mode, depth, leaf) in [
            (Mode::FourLevel, 4, 0),
            (Mode::FourLevel, 3, PS),
            (Mode::FourLevel, 2, PS),
            (Mode::FiveLevel, 5, 0),
            (Mode::Pae, 2, 0),
            (Mode::Pae, 1, PS),
            (Mode::Bits32, 2, 0),
            (Mode::Bits32, 1, PS),
        ] {
            let with = |registers| Registers { maxphyaddr, pdptes: [TABLES[0] | 1, 0, 0, 0], ..registers };
            let registers: Vec<_> = settings(mode).into_iter().map(with).collect();
            count += judge_all(&registers, &one_bit_walks(mode, depth, leaf));
        }
    }
    println!("walker cases: {count}");
    // Per entry 61 bits, or 29 in 32-bit paging.
    assert_eq!(count, 4 * ((4 + 3 + 2 + 5 + 2 + 1) * 61 + (2 + 1) * 29) * 32 * 9);
}

/// An open walk with one more bit, for each bit of each entry. A bit that moves a table leads the walk to whatever is
/// there, or to an unclaimed bus.
fn one_bit_walks(mode: Mode, depth: usize, leaf: u64) -> Vec<Tables> {
    let bits = if mode == Mode::Bits32 { 3..32 } else { 3..64 };
    let mut open = vec![OPEN; depth];
    open[depth - 1] |= leaf;
    let walk = |(entry, bit): (usize, u32)| {
        let mut tables = Tables::new(mode, &open);
        tables.entries[entry].1 ^= 1 << bit;
        tables
    };
    (0..depth).flat_map(|entry| bits.clone().map(move |bit| (entry, bit))).map(walk).collect()
}

/// A second access finds nothing left to mark, and a write after a read marks exactly the leaf (SDM 3A 4.8).
#[test]
fn marks_only_what_changes() {
    let mut registers = settings(Mode::FourLevel)[31];
    registers.smep = false;
    registers.smap = false;
    let tables = Tables::new(Mode::FourLevel, &[OPEN; 4]);
    let mut ground = Ground::new(16);
    let mut core = core(&registers);
    tables.install(&mut ground);
    let mut read_then_write = Vec::new();
    for what in [What::Read, What::Read, What::Write, What::Read] {
        let done = translate(&mut core, &Regime::default(), &mut ground, Gva(tables.linear), access(Who::User, what));
        assert_eq!(done, Ok(Hpa(PAGE + 0x678)));
        let entry = |(at, before): &(u64, u64)| ground.mem.read_u64(Hpa(*at)) ^ before;
        read_then_write.push(tables.entries.iter().map(entry).collect::<Vec<_>>());
    }
    let (read, written) = ([0x20, 0x20, 0x20, 0x20], [0x20, 0x20, 0x20, 0x60]);
    assert_eq!(read_then_write, [read, read, written, written]);
}
