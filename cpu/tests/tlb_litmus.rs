//! Litmus tests of cached translations: for each rule a short history, and exactly the pages that an access may reach
//! after it (SDM 3A 4.10; SDM 3C 28.3; APM2 5.5, 15.16). What is listed beside the fresh page may be stale, what is not
//! listed must not be used.
//!
//! Each history runs three times: the permitted set must be what is listed; an adversarial TLB must be able to reach
//! each of them and nothing else; and caches that keep everything must stay within it.

use cpu::paging::translate::translate;
use cpu::profile::TlbProfile;
use cpu::tlb::permitted::{is_guest_physical_permitted, is_permitted, is_table_permitted, permitted};
use cpu::tlb::{Tlb, TlbPolicy, note};
use cpu::virt::{EptControls, HostPaging, NptControls};
use cpu::{Core, Regime, SecondStage, Tag};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::choice::Choices;
use sim_core::event::{Broadcast, BroadcastReach, FlushScope};
use sim_core::{Gpa, Ground, Gva, Hpa};
use std::collections::BTreeSet;

/// The address that is asked about, one beside it in the same page table, and one under another PDE.
const HERE: Gva = Gva(0x5678);
const BESIDE: Gva = Gva(0x6678);
const FAR: Gva = Gva(0x20_5678);
const PML4E: Hpa = Hpa(0x1000);
const PDPTE: Hpa = Hpa(0x2000);
const PDE: Hpa = Hpa(0x3000);
const PTE: Hpa = Hpa(0x4000 + 8 * 5);
/// The PTE of [`HERE`] in another page table, which no PDE refers to at first.
const OTHER_PTE: Hpa = Hpa(0x7000 + 8 * 5);
/// P, R/W, U/S, A and D; with G; and without A and D.
const OPEN: u64 = 0x67;
const GLOBAL: u64 = 0x167;
const UNUSED: u64 = 0x7;
const LARGE: u64 = 1 << 7;
/// Pages, as their frames.
const A: u64 = 0x50_000;
const B: u64 = 0x51_000;
const C: u64 = 0x52_000;
/// A large page's frame, and [`HERE`]'s part of it.
const BIG: u64 = 0x20_0000;
const PART: u64 = BIG + 0x5000;
const EPT: Hpa = Hpa(0x10_000);
const VPID: u32 = 1;

/// A processor and its tables.
struct Bench {
    core: Core,
    ground: Ground,
    regime: Regime,
}

impl Bench {
    /// Tables of 4 levels in frames 1 to 4 that map [`HERE`] to [`A`], and a second page-map level 4 table in frame 8.
    fn new(policy: TlbPolicy, profile: TlbProfile) -> Self {
        let mut ground = Ground::new(0x1000);
        for table in 1..4 {
            ground.mem.write_u64(Hpa(table << 12), (table + 1) << 12 | OPEN);
        }
        ground.mem.write_u64(Hpa(0x3000 + 8), 0x6000 | OPEN);
        ground.mem.write_u64(Hpa(0x6000 + 8 * 5), C | OPEN);
        ground.mem.write_u64(PTE, A | OPEN);
        ground.mem.write_u64(Hpa(0x4000 + 8 * 6), C | OPEN);
        ground.mem.write_u64(OTHER_PTE, B | OPEN);
        ground.mem.write_u64(Hpa(0x8000), 0x9000 | OPEN);
        ground.mem.write_u64(Hpa(0x9000), 0xa000 | OPEN);
        ground.mem.write_u64(Hpa(0xa000), 0x7000 | OPEN);
        let mut core = Core::flat32(46);
        core.cr0 |= Cr0::PG | Cr0::WP;
        core.cr4 |= Cr4::PAE | Cr4::PGE | Cr4::PCIDE;
        core.efer |= Efer::LME | Efer::LMA | Efer::NXE;
        core.cr3 = 0x1000 | 1;
        core.tlb = Tlb::new(profile);
        core.tlb.set_policy(&mut ground, policy);
        let regime = Regime { tag: Tag { context: VPID, ept_root: None }, second: SecondStage::None };
        let mut bench = Self { core, ground, regime };
        bench.ept_tables(EPT);
        bench.ept_tables(Hpa(EPT.0 + 0x10_000));
        bench.nested_tables(0x30_000);
        bench.nested_tables(0x38_000);
        bench.core.tlb.watch(&mut bench.ground);
        bench.note();
        bench
    }

    /// An EPT that maps the first 4 MiB one to one, the first 2 in small pages.
    fn ept_tables(&mut self, root: Hpa) {
        for table in 0..3 {
            self.ground.mem.write_u64(Hpa(root.0 + (table << 12)), (root.0 + ((table + 1) << 12)) | 7);
        }
        self.ground.mem.write_u64(Hpa(root.0 + 0x2008), 0x20_0000 | 6 << 3 | 7 | LARGE);
        for frame in 0..512 {
            self.ground.mem.write_u64(Hpa(root.0 + 0x3000 + 8 * frame), frame << 12 | 6 << 3 | 7);
        }
    }

    /// Nested tables that map the first 2 MiB one to one.
    fn nested_tables(&mut self, root: u64) {
        for table in 0..3 {
            self.ground.mem.write_u64(Hpa(root + (table << 12)), (root + ((table + 1) << 12)) | OPEN);
        }
        for frame in 0..512 {
            self.ground.mem.write_u64(Hpa(root + 0x3000 + 8 * frame), frame << 12 | OPEN);
        }
    }

    /// As after every instruction.
    fn note(&mut self) {
        note(&mut self.core, &self.regime, &mut self.ground);
    }

    fn write(&mut self, at: Hpa, value: u64) {
        self.ground.mem.write_u64(at, value);
        self.note();
    }

    /// Maps a page of the EPT elsewhere.
    fn ept_maps(&mut self, page: u64, to: u64) {
        self.write(Hpa(EPT.0 + 0x3000 + 8 * (page >> 12)), to | 6 << 3 | 7);
    }

    fn flush(&mut self, scope: FlushScope) {
        self.core.tlb.flush(&mut self.ground, scope);
        self.note();
    }

    fn load(&mut self, root: u64, pcid: u64) {
        self.core.cr3 = root | pcid;
        self.note();
    }

    fn load_and_flush(&mut self, root: u64, pcid: u16) {
        self.core.cr3 = root | u64::from(pcid);
        self.flush(FlushScope::Pcid(self.regime.tag.context, pcid));
    }

    fn enter(&mut self, context: u32, ept_root: Option<Hpa>) {
        let second = match ept_root {
            None => SecondStage::None,
            Some(root) => SecondStage::Ept { eptp: root.0 | 3 << 3 | 6, controls: EptControls::default() },
        };
        self.regime = Regime { tag: Tag { context, ept_root }, second };
        self.note();
    }

    /// Nested paging.
    fn nest(&mut self, ncr3: u64) {
        let host =
            HostPaging { cr0: Cr0::PE | Cr0::PG, cr4: Cr4::PAE, efer: Efer::LME | Efer::LMA, ..Default::default() };
        let second = SecondStage::Npt { ncr3, host, controls: NptControls::default() };
        self.regime = Regime { tag: Tag { context: VPID, ept_root: None }, second };
        self.note();
    }

    fn touch(&mut self, gva: Gva, kind: AccessKind) -> Option<u64> {
        let access = Access::new(kind, Privilege::User);
        let done = translate(&mut self.core, &self.regime, &mut self.ground, gva, access);
        self.note();
        done.ok().map(|hpa| hpa.0 & !0xfff)
    }

    fn read(&mut self, gva: Gva) -> Option<u64> {
        self.touch(gva, AccessKind::Read)
    }

    /// The pages that an access to [`HERE`] may reach.
    fn pages(&self) -> BTreeSet<u64> {
        let set = permitted(&self.core, &self.regime, &self.ground, HERE).expect("modelled tables");
        set.all.iter().map(|mapping| mapping.translate(HERE).0 & !0xfff).collect()
    }

    /// That whatever the modelled caches hold is permitted.
    fn check_entries(&self, about: &str) {
        for entry in self.core.tlb.mappings() {
            assert!(
                is_permitted(&self.core, &self.regime, &self.ground, &entry).expect("modelled tables"),
                "{about}: {entry:?}"
            );
        }
        for entry in self.core.tlb.guest_physical_mappings() {
            let is_permitted = is_guest_physical_permitted(&self.core, &self.regime, &self.ground, &entry);
            assert!(is_permitted.expect("modelled tables"), "{about}: {entry:?}");
        }
        for entry in self.core.tlb.cached_tables() {
            assert!(
                is_table_permitted(&self.core, &self.regime, &self.ground, &entry).expect("modelled tables"),
                "{about}: {entry:?}"
            );
        }
    }
}

const fn invlpg(gva: Gva) -> FlushScope {
    FlushScope::Address { context: VPID, pcid: 1, gva }
}

const fn invpcid0(pcid: u16, gva: Gva) -> FlushScope {
    FlushScope::AddressNonGlobal { context: VPID, pcid, gva }
}

const fn broadcast(asid: Option<u32>, gva: Option<Gva>, more: u16, reach: BroadcastReach) -> FlushScope {
    FlushScope::Broadcast(Broadcast { asid, pcid: None, gva, more, stride: 12, reach })
}

/// Where it is from, what it says, a history, and the pages that may be reached.
type Litmus = (&'static str, &'static str, fn(&mut Bench), &'static [u64]);

const LINEAR: &[Litmus] = &[
    ("4.10.2.2", "what is not invalidated may stay, even unused", |b| b.write(PTE, B | OPEN), &[A, B]),
    (
        "4.10.2.2",
        "every value in between may be cached",
        |b| {
            b.write(PTE, B | OPEN);
            b.write(PTE, C | OPEN);
        },
        &[A, B, C],
    ),
    ("4.10.2.2", "a translation may outlive its entry", |b| b.write(PTE, 0), &[A]),
    (
        "4.10.2.3",
        "nothing is cached with the accessed flag clear",
        |b| {
            b.write(PTE, 0);
            b.flush(invlpg(HERE));
            b.write(PTE, B | UNUSED);
            b.write(PTE, C | OPEN);
        },
        &[C],
    ),
    (
        "4.10.2.3",
        "an entry that is not present is not cached",
        |b| {
            b.write(PTE, 0);
            b.flush(invlpg(HERE));
            b.write(PTE, B | OPEN);
        },
        &[B],
    ),
    (
        "4.10.2.3",
        "an entry with a reserved bit is not cached",
        |b| {
            b.write(PTE, 0);
            b.flush(invlpg(HERE));
            b.write(PTE, A | OPEN | 1 << 50);
            b.write(PTE, B | OPEN);
        },
        &[B],
    ),
    ("4.10.2.3", "after a change of page size either may be used", |b| b.write(PDE, BIG | OPEN | LARGE), &[A, PART]),
    (
        "4.10.2.4",
        "a global page serves another PCID",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.load(0x1000, 2);
        },
        &[A, B],
    ),
    (
        "4.10.2.4",
        "a page that is not global does not",
        |b| {
            b.write(PTE, B | OPEN);
            b.load(0x1000, 2);
        },
        &[B],
    ),
    (
        "4.10.2.4",
        "without CR4.PGE no page is global",
        |b| {
            b.core.cr4.remove(Cr4::PGE);
            b.flush(FlushScope::Context(VPID));
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.load(0x1000, 2);
        },
        &[B],
    ),
    ("4.10.3.2", "a walk may go on from a stale PDE", |b| b.write(PDE, 0x7000 | OPEN), &[A, B]),
    (
        "4.10.3.2",
        "a stale PDE leads to what its table holds by now",
        |b| {
            b.write(PDE, 0x7000 | OPEN);
            b.write(PTE, C | OPEN);
        },
        &[A, B, C],
    ),
    ("4.10.3.2", "a stale PDPTE", |b| b.write(PDPTE, 0xa000 | OPEN), &[A, B]),
    ("4.10.3.2", "a stale PML4E", |b| b.write(PML4E, 0x9000 | OPEN), &[A, B]),
    (
        "4.10.3.2",
        "cached steps serve whatever CR3 says",
        |b| {
            b.load(0x8000, 1);
            b.flush(invpcid0(1, FAR));
        },
        &[A, B],
    ),
    ("4.10.3.2", "and belong to their PCID", |b| b.load(0x8000, 2), &[B]),
    (
        "4.10.3.1",
        "a step with its accessed flag clear is not cached",
        |b| {
            b.write(PDE, 0);
            b.flush(invlpg(HERE));
            b.write(PDE, 0x4000 | UNUSED);
            b.write(PDE, 0x7000 | OPEN);
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVLPG drops the page",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(invlpg(HERE));
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVLPG of another page does not",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(invlpg(BESIDE));
        },
        &[A, B],
    ),
    (
        "4.10.4.1",
        "INVLPG drops a global page of another PCID",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.load(0x1000, 2);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Address { context: VPID, pcid: 2, gva: HERE });
            b.load(0x1000, 1);
            b.flush(FlushScope::Pcid(VPID, 1));
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVLPG drops every cached step, whatever its address",
        |b| {
            b.write(PTE, 0);
            b.flush(invlpg(HERE));
            b.write(PDE, 0x7000 | OPEN);
            b.flush(invlpg(FAR));
            b.write(PTE, C | OPEN);
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 0 drops only the address's steps",
        |b| {
            b.write(PTE, 0);
            b.flush(invlpg(HERE));
            b.write(PDE, 0x7000 | OPEN);
            b.flush(invpcid0(1, FAR));
            b.write(PTE, C | OPEN);
        },
        &[B, C],
    ),
    (
        "4.10.4.1",
        "INVPCID type 0 drops the address's steps",
        |b| {
            b.write(PTE, 0);
            b.flush(invlpg(HERE));
            b.write(PDE, 0x7000 | OPEN);
            b.flush(invpcid0(1, HERE));
            b.write(PTE, C | OPEN);
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 0 spares global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(invpcid0(1, HERE));
        },
        &[A, B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 0 spares other PCIDs",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(invpcid0(2, HERE));
        },
        &[A, B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 1 drops a PCID",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Pcid(VPID, 1));
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 1 spares global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Pcid(VPID, 1));
        },
        &[A, B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 2 drops global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Context(VPID));
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 3 spares global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::ContextNonGlobal(VPID));
        },
        &[A, B],
    ),
    (
        "4.10.4.1",
        "INVPCID type 3 drops the rest, of every PCID",
        |b| {
            b.write(PTE, B | OPEN);
            b.load(0x1000, 2);
            b.flush(FlushScope::ContextNonGlobal(VPID));
            b.load(0x1000, 1);
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "MOV to CR3 drops the new PCID",
        |b| {
            b.write(PTE, B | OPEN);
            b.load_and_flush(0x1000, 1);
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "MOV to CR3 spares the old PCID",
        |b| {
            b.write(PTE, B | OPEN);
            b.load_and_flush(0x1000, 2);
            b.load(0x1000, 1);
        },
        &[A, B],
    ),
    ("4.10.4.1", "MOV to CR3 lets nothing of the old root follow", |b| b.load_and_flush(0x8000, 1), &[B]),
    ("4.10.4.1", "MOV to CR3 with bit 63 does", |b| b.load(0x8000, 1), &[A, B]),
    (
        "4.10.4.1",
        "MOV to CR4 for one PCID drops its global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::PcidWithGlobals(VPID, 1));
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "MOV to CR4 for one PCID spares another's",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.load(0x1000, 2);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::PcidWithGlobals(VPID, 2));
        },
        &[A, B],
    ),
    (
        "4.10.4.1",
        "a page fault drops what its address used",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::PageFault { context: VPID, pcid: 1, gva: HERE });
        },
        &[B],
    ),
    (
        "4.10.4.1",
        "INVLPG of any part drops a large page",
        |b| {
            b.write(PDE, BIG | OPEN | LARGE);
            b.flush(invlpg(HERE));
            b.write(PDE, 0x7000 | OPEN);
            b.flush(invlpg(Gva(0x1f_f000)));
        },
        &[B],
    ),
    (
        "4.10.4.2",
        "a step given another table needs an invalidation of each address below",
        |b| {
            b.write(PDE, 0x7000 | OPEN);
            b.flush(invlpg(BESIDE));
        },
        &[A, B],
    ),
    (
        "4.10.4.3",
        "rights that grow need none, and may be seen late",
        |b| {
            b.write(PTE, A | 0x65);
            b.flush(invlpg(HERE));
            b.write(PTE, A | OPEN);
        },
        &[A],
    ),
];

const STAGED: &[Litmus] = &[
    (
        "28.3.2",
        "VPIDs keep mappings apart",
        |b| {
            b.write(PTE, B | OPEN);
            b.enter(2, None);
        },
        &[B],
    ),
    (
        "28.3.2",
        "a mapping outlives another VPID's turn",
        |b| {
            b.enter(2, None);
            b.write(PTE, B | OPEN);
            b.enter(VPID, None);
        },
        &[A, B],
    ),
    (
        "28.3.1",
        "linear mappings don't serve under EPT",
        |b| {
            b.write(PTE, B | OPEN);
            b.enter(VPID, Some(EPT));
        },
        &[B],
    ),
    (
        "28.3.1",
        "combined mappings belong to their EPT root",
        |b| {
            b.enter(VPID, Some(EPT));
            b.write(PTE, B | OPEN);
            b.enter(VPID, Some(Hpa(EPT.0 + 0x10_000)));
        },
        &[B],
    ),
    (
        "28.3.1",
        "guest-physical mappings serve every VPID",
        |b| {
            b.enter(2, Some(EPT));
            b.ept_maps(A, B);
            b.enter(VPID, Some(EPT));
        },
        &[A, B],
    ),
    (
        "28.3.1",
        "the guest's tables may be read where EPT had them",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(0x4000, 0x7000);
        },
        &[A, B],
    ),
    (
        "28.3.2",
        "without paging only guest-physical mappings serve",
        |b| {
            b.enter(VPID, Some(EPT));
            b.core.cr0.remove(Cr0::PG);
            b.core.efer.remove(Efer::LMA);
            b.flush(FlushScope::Context(VPID));
            b.ept_maps(0x5000, B);
        },
        &[0x5000, B],
    ),
    (
        "28.3.3.1",
        "INVLPG reaches combined mappings under every EPT root",
        |b| {
            b.enter(VPID, Some(EPT));
            b.write(PTE, B | OPEN);
            b.enter(VPID, None);
            b.flush(invlpg(HERE));
            b.enter(VPID, Some(EPT));
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "INVLPG does not reach guest-physical mappings",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(A, B);
            b.flush(invlpg(HERE));
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "INVVPID type 0 reaches every PCID and global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.load(0x1000, 2);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::AddressEveryPcid { context: VPID, gva: HERE });
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "INVVPID type 1 reaches one VPID",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Context(2));
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "INVVPID type 2 reaches every VPID but 0",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Guests);
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "INVVPID type 2 spares VPID 0",
        |b| {
            b.enter(0, None);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Guests);
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "INVVPID type 3 spares global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::ContextNonGlobal(VPID));
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "INVVPID leaves guest-physical mappings",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(A, B);
            b.flush(FlushScope::Context(VPID));
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "INVEPT type 1 reaches guest-physical and combined mappings",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(A, B);
            b.flush(FlushScope::EptRoot(EPT));
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "INVEPT type 1 reaches combined mappings of the guest's own changes",
        |b| {
            b.enter(VPID, Some(EPT));
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::EptRoot(EPT));
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "INVEPT of another root",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(A, B);
            b.flush(FlushScope::EptRoot(Hpa(EPT.0 + 0x10_000)));
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "INVEPT type 2 reaches every root",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(A, B);
            b.flush(FlushScope::AllEpt);
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "INVEPT does not reach linear mappings",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::AllEpt);
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "an EPT violation drops the address's mappings",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(A, B);
            b.flush(FlushScope::EptViolation { root: EPT, gpa: Gpa(A), linear: Some((VPID, 1, HERE)) });
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "an EPT violation of another address does not",
        |b| {
            b.enter(VPID, Some(EPT));
            b.ept_maps(A, B);
            b.flush(FlushScope::EptViolation { root: EPT, gpa: Gpa(C), linear: Some((VPID, 1, BESIDE)) });
        },
        &[A, B],
    ),
    (
        "28.3.3.1",
        "entry or exit without VPIDs drops VPID 0 of every PCID",
        |b| {
            b.enter(0, None);
            b.write(PTE, A | GLOBAL);
            b.load(0x1000, 2);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::Context(0));
        },
        &[B],
    ),
    (
        "28.3.3.1",
        "entry and exit with VPIDs drop nothing",
        |b| {
            b.write(PTE, B | OPEN);
            b.enter(0, None);
            b.enter(VPID, None);
        },
        &[A, B],
    ),
    (
        "APM2 15.16.1",
        "TLB_CONTROL 7 spares global pages",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(FlushScope::ContextNonGlobal(VPID));
        },
        &[A, B],
    ),
    (
        "APM2 15.16.1",
        "TLB_CONTROL 1 reaches every ASID",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.enter(2, None);
            b.flush(FlushScope::All);
            b.enter(VPID, None);
        },
        &[B],
    ),
    (
        "APM2 15.25.9",
        "another nested CR3 under one ASID needs a flush",
        |b| {
            b.nest(0x30_000);
            b.write(PTE, B | OPEN);
            b.nest(0x38_000);
        },
        &[A, B],
    ),
    (
        "APM2 15.25.9",
        "a flush of the ASID reaches nested translations",
        |b| {
            b.nest(0x30_000);
            b.write(Hpa(0x33_000 + 8 * (A >> 12)), B | OPEN);
            b.flush(FlushScope::Context(VPID));
        },
        &[B],
    ),
    (
        "APM2 15.25.9",
        "INVLPG does not",
        |b| {
            b.nest(0x30_000);
            b.write(Hpa(0x33_000 + 8 * (A >> 12)), B | OPEN);
            b.flush(invlpg(HERE));
        },
        &[A, B],
    ),
    (
        "APM3 INVLPGB",
        "by address, with the pages that follow",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(broadcast(Some(VPID), Some(Gva(0x3000)), 2, BroadcastReach::empty()));
        },
        &[B],
    ),
    (
        "APM3 INVLPGB",
        "one page too few",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(broadcast(Some(VPID), Some(Gva(0x3000)), 1, BroadcastReach::empty()));
        },
        &[A, B],
    ),
    (
        "APM3 INVLPGB",
        "spares global pages unless told",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(broadcast(Some(VPID), None, 0, BroadcastReach::empty()));
        },
        &[A, B],
    ),
    (
        "APM3 INVLPGB",
        "global pages too",
        |b| {
            b.write(PTE, A | GLOBAL);
            b.write(PTE, B | OPEN);
            b.flush(broadcast(None, None, 0, BroadcastReach::GLOBAL));
        },
        &[B],
    ),
    (
        "APM3 INVLPGB",
        "final translations only leaves the steps",
        |b| {
            b.write(PTE, 0);
            b.flush(invlpg(HERE));
            b.write(PDE, 0x7000 | OPEN);
            b.flush(broadcast(Some(VPID), Some(HERE), 0, BroadcastReach::FINAL_ONLY));
            b.write(PTE, C | OPEN);
        },
        &[B, C],
    ),
    (
        "APM3 INVLPGB",
        "another ASID",
        |b| {
            b.write(PTE, B | OPEN);
            b.flush(broadcast(Some(2), None, 0, BroadcastReach::GLOBAL));
        },
        &[A, B],
    ),
];

/// Everything that an adversary reaches, over all its choices.
fn reached(history: fn(&mut Bench)) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for alternative in 0.. {
        let mut bench = Bench::new(TlbPolicy::Adversarial, TlbProfile::Base);
        history(&mut bench);
        bench.ground.choices = Choices::scripted(vec![alternative]);
        pages.extend(bench.read(HERE));
        let of = bench.ground.choices.taken().first().map_or(1, |choice| choice.of);
        if alternative + 1 >= of {
            return pages;
        }
    }
    pages
}

fn judge(litmus: &[Litmus]) {
    for (source, about, history, expected) in litmus {
        let about = format!("{source}: {about}");
        let expected: BTreeSet<u64> = expected.iter().copied().collect();
        let mut bench = Bench::new(TlbPolicy::Concrete, TlbProfile::Unbounded);
        history(&mut bench);
        assert_eq!(bench.pages(), expected, "{about}");
        bench.check_entries(&about);

        assert_eq!(reached(*history), expected, "an adversary, {about}");

        for profile in TlbProfile::ALL {
            let mut bench = Bench::new(TlbPolicy::Concrete, profile);
            for gva in [HERE, BESIDE, FAR] {
                bench.read(gva);
            }
            history(&mut bench);
            bench.check_entries(&about);
            let seen = bench.read(HERE);
            assert!(seen.is_none_or(|page| expected.contains(&page)), "{profile:?}, {about}: {seen:x?}");
        }
    }
}

#[test]
fn linear_mappings_and_paging_structure_caches() {
    judge(LINEAR);
    println!("TLB litmus tests of SDM 3A 4.10: {}", LINEAR.len());
}

#[test]
fn second_stages_and_tags() {
    judge(STAGED);
    println!("TLB litmus tests of SDM 3C 28.3, APM2 15.16 and 15.25.9, APM3 INVLPGB: {}", STAGED.len());
}

/// One of a few, by a number.
const fn pick<const N: usize>(from: [u64; N], by: u8) -> u64 {
    from[by as usize % N]
}

impl Bench {
    /// Something that happens, by four numbers.
    fn happen(&mut self, [what, which, value, flags]: [u8; 4]) {
        let frame = pick([A, B, C, 0x4000, 0x7000], value);
        let bits = pick([OPEN, OPEN, GLOBAL, UNUSED, 0x65, 0], flags);
        match what % 10 {
            0 | 1 => self.write(Hpa(pick([PTE.0, OTHER_PTE.0, PTE.0 + 8], which)), frame | bits),
            2 => {
                let table = pick([0x4000, 0x7000, BIG | LARGE], value);
                self.write(PDE, table | bits & 0xff);
            }
            3 => self.write(
                Hpa(pick([PDPTE.0, PML4E.0, 0x8000], which)),
                pick([0x3000, 0x2000, 0x9000, 0xa000], value) | OPEN,
            ),
            4 => {
                let page = pick([A, B, 0x3000, 0x4000, 0x7000], which);
                let entry = Hpa(pick([EPT.0, 0x30_000], value) + 0x3000 + 8 * (page >> 12));
                let rights = pick([6 << 3 | OPEN, 6 << 3 | 7, OPEN, 0], flags);
                self.write(entry, frame | rights);
            }
            5 => self.write(Hpa(EPT.0 + 0x2000), (pick([EPT.0, EPT.0 + 0x10_000], value) + 0x3000) | 7),
            6 => self.drop_some(which, value),
            7 => match which % 5 {
                0 => self.nest(pick([0x30_000, 0x38_000], value)),
                1 => self.enter(u32::from(value % 3), None),
                other => self.enter(u32::from(value % 2), Some(Hpa(EPT.0 + 0x10_000 * u64::from(other % 2)))),
            },
            8 => self.load(pick([0x1000, 0x8000], which), pick([1, 2], value)),
            _ => {
                let gva = Gva(pick([HERE.0, BESIDE.0, FAR.0], which));
                self.touch(gva, AccessKind::ALL[usize::from(value % 3)]);
            }
        }
    }

    fn drop_some(&mut self, which: u8, value: u8) {
        let (context, pcid) = (u32::from(value % 3), 1 + u16::from(value) % 2);
        let gva = Gva(pick([HERE.0, BESIDE.0, FAR.0], value));
        self.flush(match which % 10 {
            0 => FlushScope::Context(context),
            1 => FlushScope::Pcid(context, pcid),
            2 => FlushScope::Address { context, pcid, gva },
            3 => FlushScope::AddressNonGlobal { context, pcid, gva },
            4 => FlushScope::AddressEveryPcid { context, gva },
            5 => FlushScope::ContextNonGlobal(context),
            6 => FlushScope::EptRoot(EPT),
            7 => FlushScope::AllEpt,
            8 => FlushScope::Guests,
            _ => FlushScope::All,
        });
    }
}

/// Soundness under second stages: after everything that happens, whatever the modelled caches hold is permitted, and an
/// access reaches a permitted page. ROLECALL_CASES multiplies the number of histories.
#[test]
fn the_modelled_caches_hold_what_is_permitted() {
    let factor = std::env::var("ROLECALL_CASES").ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(1);
    let config = ProptestConfig { cases: 150 * factor, failure_persistence: None, ..ProptestConfig::default() };
    let checked = std::cell::Cell::new(0_u64);
    for profile in TlbProfile::ALL {
        let histories = prop::collection::vec(any::<[u8; 4]>(), 1..40);
        let result = TestRunner::new(config.clone()).run(&histories, |history| {
            let mut bench = Bench::new(TlbPolicy::Concrete, profile);
            for happening in &history {
                bench.happen(*happening);
                bench.check_entries(&format!("{profile:?} after {happening:?}"));
                checked.set(checked.get() + 1);
            }
            let permitted = bench.pages();
            let seen = bench.read(HERE);
            prop_assert!(seen.is_none_or(|page| permitted.contains(&page)), "{seen:x?} of {permitted:x?}");
            Ok(())
        });
        result.unwrap();
    }
    println!("states whose cached entries were found permitted: {}", checked.get());
}
