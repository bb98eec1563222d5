//! The permitted set against a brute-force oracle, and the modelled TLB against the permitted set (SDM 3A 4.10).
//!
//! The oracle is a cache without bounds that loads, after everything that happens, all that it could: since nothing that
//! is cached keeps anything else from being cached, what it holds is what any processor could hold. It shares no code with
//! the silicon. Histories are random: writes to entries of two address spaces, every kind of invalidation, changes of
//! CR3 with and without a flush, and accesses. ROLECALL_CASES multiplies the number of histories.

use cpu::paging::entry::Rights;
use cpu::paging::translate::translate;
use cpu::profile::TlbProfile;
use cpu::tlb::permitted::{is_permitted, is_table_permitted, permitted};
use cpu::tlb::{Mapping, Tlb, TlbPolicy, note};
use cpu::{Core, Regime};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::event::FlushScope;
use sim_core::{Ground, Gva, Hpa};
use std::cell::Cell;
use std::collections::BTreeSet;

/// Two addresses in one page table, one in another, one under another page-directory pointer.
const ADDRESSES: [u64; 4] = [0x1000, 0x2000, 0x20_1000, 0x4000_1000];
/// Tables of each level, from 4 down to 1: two of each.
const TABLES: [[u64; 2]; 4] = [[0x1000, 0x2000], [0x3000, 0x4000], [0x5000, 0x6000], [0x7000, 0x8000]];
const SHIFTS: [u32; 4] = [39, 30, 21, 12];
const PRESENT: u64 = 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;

/// Something that happens.
#[derive(Clone, Debug)]
enum Happening {
    /// An entry is written: depth, table, address whose entry it is, which table or page it names, flags.
    Write(usize, usize, usize, usize, u64),
    /// CR3 gets this root and PCID; whether the PCID is flushed.
    Load(usize, u16, bool),
    Invlpg(usize),
    /// INVPCID of a type, for a PCID and an address.
    Invpcid(u8, u16, usize),
    /// CR4.PGE is toggled twice, or everything goes.
    Everything,
    /// An access to an address.
    Access(usize, bool),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let flags = prop_oneof![
        6 => (0_u64..0x80).prop_map(|flags| flags & 0x46 | PRESENT | ACCESSED),
        2 => (0_u64..0x200).prop_map(|flags| flags & 0x166 | PRESENT),
        1 => Just(0_u64),
    ];
    let one = prop_oneof![
        10 => (0_usize..4, 0_usize..2, 0_usize..4, 0_usize..2, flags, any::<bool>()).prop_map(|(depth, table, at, to, flags, large)| {
            let large = if depth == 2 && large { LARGE } else { 0 };
            let global = if depth == 3 || large != 0 { flags } else { flags & !GLOBAL };
            Happening::Write(depth, table, at, to, global | large)
        }),
        3 => (0_usize..2, 1_u16..3, any::<bool>()).prop_map(|(root, pcid, flush)| Happening::Load(root, pcid, flush)),
        2 => (0_usize..4).prop_map(Happening::Invlpg),
        2 => (0_u8..4, 1_u16..3, 0_usize..4).prop_map(|(kind, pcid, at)| Happening::Invpcid(kind, pcid, at)),
        1 => Just(Happening::Everything),
        5 => (0_usize..4, any::<bool>()).prop_map(|(at, write)| Happening::Access(at, write)),
    ];
    prop::collection::vec(one, 1..30)
}

/// A translation as the oracle knows it: physical page, log2 of its size, W, U and X, global, dirty.
type Page = (u64, u32, [bool; 3], bool, bool);

/// A processor that caches all that it may.
#[derive(Default)]
struct Oracle {
    root: u64,
    pcid: u16,
    /// PCID, depth of the table that the walk goes on with, block number, table, rights.
    tables: BTreeSet<(u16, usize, u64, u64, [bool; 3])>,
    /// PCID, linear address of the page, page.
    pages: BTreeSet<(u16, u64, Page)>,
}

fn granted(above: [bool; 3], raw: u64) -> [bool; 3] {
    [above[0] && raw & 2 != 0, above[1] && raw & 4 != 0, above[2] && raw >> 63 == 0]
}

impl Oracle {
    /// Where walks of an address can begin or go on: depth, table, rights.
    fn starts(&self, gva: u64) -> Vec<(usize, u64, [bool; 3])> {
        let cached = self
            .tables
            .iter()
            .filter(|(pcid, depth, block, ..)| *pcid == self.pcid && gva >> SHIFTS[*depth - 1] == *block);
        let cached = cached.map(|(_, depth, _, table, rights)| (*depth, *table, *rights));
        cached.chain([(0, self.root, [true; 3])]).collect()
    }

    /// One step of a walk: another table, or a page.
    fn step(ground: &Ground, gva: u64, (depth, table, rights): (usize, u64, [bool; 3]), demand: bool) -> Step {
        let shift = SHIFTS[depth];
        let raw = ground.mem.read_u64(Hpa(table + 8 * ((gva >> shift) & 511)));
        let may_be_cached = demand || raw & ACCESSED != 0;
        if raw & PRESENT == 0 || !may_be_cached {
            return Step::Nothing;
        }
        let rights = granted(rights, raw);
        let frame = raw & 0x000f_ffff_ffff_f000;
        if depth == 3 || raw & LARGE != 0 {
            Step::Page(gva >> shift << shift, (frame, shift, rights, raw & GLOBAL != 0, raw & DIRTY != 0))
        } else {
            Step::Table((depth + 1, frame, rights))
        }
    }

    /// Loads everything that can be loaded now.
    fn load(&mut self, ground: &Ground) {
        for gva in ADDRESSES {
            let mut starts = self.starts(gva);
            while let Some(start) = starts.pop() {
                match Self::step(ground, gva, start, false) {
                    Step::Nothing => {}
                    Step::Page(base, page) => {
                        self.pages.insert((self.pcid, base, page));
                    }
                    Step::Table(next) => {
                        self.tables.insert((self.pcid, next.0, gva >> SHIFTS[next.0 - 1], next.1, next.2));
                        starts.push(next);
                    }
                }
            }
        }
    }

    /// What an access may use: what is cached, and what a walk now finds, which may set accessed flags.
    fn answers(&self, ground: &Ground, gva: u64) -> BTreeSet<Page> {
        let serves =
            |pcid: u16, base: u64, page: &Page| gva >> page.1 == base >> page.1 && (pcid == self.pcid || page.3);
        let cached = self.pages.iter().filter(|(pcid, base, page)| serves(*pcid, *base, page));
        let mut answers: BTreeSet<Page> = cached.map(|(.., page)| *page).collect();
        let mut starts = self.starts(gva);
        while let Some(start) = starts.pop() {
            match Self::step(ground, gva, start, true) {
                Step::Nothing => {}
                Step::Page(_, page) => {
                    answers.insert(page);
                }
                Step::Table(next) => starts.push(next),
            }
        }
        answers
    }

    /// SDM 3A 4.10.4.1, in the manual's words.
    fn invalidate(&mut self, what: &Happening) {
        let current = self.pcid;
        let is_on_page = |gva: u64, base: u64, page: &Page| gva >> page.1 == base >> page.1;
        match *what {
            Happening::Load(_, pcid, true) => {
                self.tables.retain(|entry| entry.0 != pcid);
                self.pages.retain(|(tag, _, page)| *tag != pcid || page.3);
            }
            Happening::Invlpg(at) => {
                self.tables.retain(|entry| entry.0 != current);
                let is_gone = |pcid: u16, base: u64, page: &Page| {
                    is_on_page(ADDRESSES[at], base, page) && (pcid == current || page.3)
                };
                self.pages.retain(|(pcid, base, page)| !is_gone(*pcid, *base, page));
            }
            Happening::Invpcid(0, pcid, at) => {
                let gva = ADDRESSES[at];
                self.tables.retain(|entry| entry.0 != pcid || gva >> SHIFTS[entry.1 - 1] != entry.2);
                self.pages.retain(|(tag, base, page)| *tag != pcid || page.3 || !is_on_page(gva, *base, page));
            }
            Happening::Invpcid(1, pcid, _) => {
                self.tables.retain(|entry| entry.0 != pcid);
                self.pages.retain(|(tag, _, page)| *tag != pcid || page.3);
            }
            Happening::Invpcid(2, ..) | Happening::Everything => {
                *self = Self { root: self.root, pcid: current, ..Self::default() }
            }
            Happening::Invpcid(..) => {
                self.tables.clear();
                self.pages.retain(|(.., page)| page.3);
            }
            Happening::Write(..) | Happening::Load(..) | Happening::Access(..) => {}
        }
    }

    /// What a page fault drops.
    fn fault(&mut self, gva: u64) {
        let pcid = self.pcid;
        self.tables.retain(|entry| entry.0 != pcid || gva >> SHIFTS[entry.1 - 1] != entry.2);
        self.pages.retain(|(tag, base, page)| *tag != pcid || gva >> page.1 != *base >> page.1);
    }
}

enum Step {
    Nothing,
    Page(u64, Page),
    Table((usize, u64, [bool; 3])),
}

/// The silicon and the oracle.
struct Pair {
    core: Core,
    ground: Ground,
    oracle: Oracle,
}

fn pair(profile: TlbProfile, policy: TlbPolicy) -> Pair {
    let mut ground = Ground::new(64);
    for (depth, tables) in TABLES.iter().enumerate() {
        for (table, at) in tables.iter().enumerate() {
            let names = TABLES.get(depth + 1).map_or(0x10_000 + 0x1000 * table as u64, |below| below[table]);
            for gva in ADDRESSES {
                ground.mem.write_u64(Hpa(at + 8 * ((gva >> SHIFTS[depth]) & 511)), names | 0x67);
            }
        }
    }
    let mut core = Core::flat32(46);
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr4 |= Cr4::PAE | Cr4::PGE | Cr4::PCIDE;
    core.efer |= Efer::LME | Efer::LMA | Efer::NXE;
    core.cr3 = TABLES[0][0] | 1;
    core.tlb = Tlb::new(profile);
    core.tlb.set_policy(&mut ground, policy);
    core.tlb.watch(&mut ground);
    note(&mut core, &Regime::default(), &mut ground);
    let mut oracle = Oracle { root: TABLES[0][0], pcid: 1, ..Oracle::default() };
    oracle.load(&ground);
    Pair { core, ground, oracle }
}

impl Pair {
    fn happen(&mut self, what: &Happening) {
        self.oracle.invalidate(what);
        match *what {
            Happening::Write(depth, table, at, to, flags) => {
                let entry = TABLES[depth][table] + 8 * ((ADDRESSES[at] >> SHIFTS[depth]) & 511);
                let page = if flags & LARGE != 0 { 0x20_0000 * (to as u64 + 1) } else { 0x10_000 + 0x1000 * to as u64 };
                let names = if depth == 3 || flags & LARGE != 0 { page } else { TABLES[depth + 1][to] };
                let value = if flags & PRESENT == 0 { 0 } else { names | flags };
                self.ground.mem.write_u64(Hpa(entry), value);
            }
            Happening::Load(root, pcid, flush) => {
                self.core.cr3 = TABLES[0][root] | u64::from(pcid);
                (self.oracle.root, self.oracle.pcid) = (TABLES[0][root], pcid);
                if flush {
                    self.core.tlb.flush(&mut self.ground, FlushScope::Pcid(0, pcid));
                }
            }
            Happening::Invlpg(at) => {
                let (pcid, gva) = (self.core.pcid(), Gva(ADDRESSES[at]));
                self.core.tlb.flush(&mut self.ground, FlushScope::Address { context: 0, pcid, gva });
            }
            Happening::Invpcid(kind, pcid, at) => {
                let scope = match kind {
                    0 => FlushScope::AddressNonGlobal { context: 0, pcid, gva: Gva(ADDRESSES[at]) },
                    1 => FlushScope::Pcid(0, pcid),
                    2 => FlushScope::Context(0),
                    _ => FlushScope::ContextNonGlobal(0),
                };
                self.core.tlb.flush(&mut self.ground, scope);
            }
            Happening::Everything => self.core.tlb.flush(&mut self.ground, FlushScope::All),
            Happening::Access(at, write) => {
                // A write sets accessed flags before the dirty flag, and the oracle looks in between.
                self.access(Gva(ADDRESSES[at]), AccessKind::Read);
                if write {
                    self.access(Gva(ADDRESSES[at]), AccessKind::Write);
                }
            }
        }
        // As after every instruction.
        note(&mut self.core, &Regime::default(), &mut self.ground);
        self.oracle.load(&self.ground);
    }

    fn access(&mut self, gva: Gva, kind: AccessKind) {
        let access = Access::new(kind, Privilege::User);
        if translate(&mut self.core, &Regime::default(), &mut self.ground, gva, access).is_err() {
            self.oracle.load(&self.ground);
            self.oracle.fault(gva.0);
        }
        self.oracle.load(&self.ground);
    }

    fn permitted(&self, gva: u64) -> BTreeSet<Page> {
        let set = permitted(&self.core, &Regime::default(), &self.ground, Gva(gva)).expect("modelled tables");
        set.all.iter().map(page).collect()
    }
}

fn page(mapping: &Mapping) -> Page {
    let rights = [Rights::WRITE, Rights::USER, Rights::EXECUTE].map(|right| mapping.rights.contains(right));
    (mapping.hpa.0, mapping.shift, rights, mapping.is_global, mapping.is_dirty)
}

fn cases(usual: u32) -> u32 {
    let factor = std::env::var("ROLECALL_CASES").ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(1);
    usual.saturating_mul(factor)
}

fn runner(usual: u32) -> TestRunner {
    TestRunner::new(ProptestConfig { cases: cases(usual), failure_persistence: None, ..ProptestConfig::default() })
}

/// Exactness: after everything that happens, the set of every address is the oracle's.
#[test]
fn the_set_is_exact() {
    let (queries, stale) = (Cell::new(0_u64), Cell::new(0_u64));
    let result = runner(1500).run(&happenings(), |history| {
        let mut pair = pair(TlbProfile::Unbounded, TlbPolicy::Concrete);
        for what in &history {
            pair.happen(what);
            for gva in ADDRESSES {
                let expected = pair.oracle.answers(&pair.ground, gva);
                queries.set(queries.get() + 1);
                stale.set(stale.get() + expected.len().saturating_sub(1) as u64);
                prop_assert_eq!(pair.permitted(gva), expected, "{:#x} after {:?}", gva, what);
            }
        }
        Ok(())
    });
    println!("permitted sets compared: {}, stale translations in them: {}", queries.get(), stale.get());
    result.unwrap();
}

/// Soundness: whatever the modelled caches hold is permitted, and so is what a walk finds now.
#[test]
fn the_modelled_tlb_holds_what_is_permitted() {
    let entries = Cell::new(0_u64);
    let regime = Regime::default();
    for profile in TlbProfile::ALL {
        let result = runner(300).run(&happenings(), |history| {
            let mut pair = pair(profile, TlbPolicy::Concrete);
            for what in &history {
                pair.happen(what);
                for mapping in pair.core.tlb.mappings() {
                    let is_permitted = is_permitted(&pair.core, &regime, &pair.ground, &mapping).unwrap();
                    prop_assert!(is_permitted, "{:?} after {:?}", mapping, what);
                    entries.set(entries.get() + 1);
                }
                for entry in pair.core.tlb.cached_tables() {
                    let is_permitted = is_table_permitted(&pair.core, &regime, &pair.ground, &entry).unwrap();
                    prop_assert!(is_permitted, "{:?} after {:?}", entry, what);
                    entries.set(entries.get() + 1);
                }
                for gva in ADDRESSES {
                    let set = permitted(&pair.core, &regime, &pair.ground, Gva(gva)).unwrap();
                    prop_assert!(set.freshest.is_none_or(|freshest| set.all.contains(&freshest)));
                }
            }
            Ok(())
        });
        result.unwrap();
    }
    println!("cached entries found permitted: {}", entries.get());
}

/// An adversary that answers by alternative 0 sees what a processor without caches sees.
#[test]
fn alternative_0_is_the_freshest() {
    let result = runner(300).run(&happenings(), |history| {
        let mut adversarial = pair(TlbProfile::Base, TlbPolicy::Adversarial);
        let mut fresh = pair(TlbProfile::Base, TlbPolicy::Freshest);
        for what in &history {
            adversarial.happen(what);
            fresh.happen(what);
            prop_assert!(adversarial.ground.mem.written_frames().eq(fresh.ground.mem.written_frames()));
        }
        Ok(())
    });
    result.unwrap();
}
