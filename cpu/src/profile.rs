//! What a processor offers: the features that CPUID and the capability MSRs show, and that reserved bits, #UD and #GP
//! depend on (SDM 2 CPUID; APM3 appendix E); and the geometry of its translation caches.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// Features that software can find missing. What every processor with long mode has is not here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Features: u64 {
        /// Process-context identifiers.
        const PCID = 1 << 0;
        /// INVPCID.
        const INVPCID = 1 << 1;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 2;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 3;
        /// User-mode instruction prevention.
        const UMIP = 1 << 4;
        /// 5-level paging.
        const LA57 = 1 << 5;
        /// Protection keys for user pages.
        const PKU = 1 << 6;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 7;
        /// Shadow stacks.
        const CET_SS = 1 << 8;
        /// Indirect-branch tracking.
        const CET_IBT = 1 << 9;
        /// Linear-address masking.
        const LAM = 1 << 10;
        /// RDFSBASE and its relatives.
        const FSGSBASE = 1 << 11;
        /// 1 GiB pages.
        const PAGE_1G = 1 << 12;
        /// The NX bit.
        const NX = 1 << 13;
        /// RDTSCP and IA32_TSC_AUX.
        const RDTSCP = 1 << 14;
        /// RDPID.
        const RDPID = 1 << 15;
        /// XSAVE and its relatives, XCR0.
        const XSAVE = 1 << 16;
        /// SSE and SSE2.
        const SSE2 = 1 << 17;
        /// x2APIC.
        const X2APIC = 1 << 18;
        /// INVLPGB and TLBSYNC.
        const INVLPGB = 1 << 19;
        /// POPCNT, and with it SSE4.2.
        const POPCNT = 1 << 20;
        /// BMI1, BMI2 and LZCNT.
        const BMI = 1 << 21;
        /// MOVBE.
        const MOVBE = 1 << 22;
        /// RDRAND and RDSEED.
        const RDRAND = 1 << 23;
        /// CLFLUSHOPT and CLWB.
        const CLFLUSHOPT = 1 << 24;
        /// ADCX and ADOX.
        const ADX = 1 << 26;
        /// RDPRU.
        const RDPRU = 1 << 27;
        /// MONITOR and MWAIT.
        const MONITOR = 1 << 28;
        /// Bit 8 of entries that refer to a table is reserved at levels 4 and 5, as on AMD's processors, instead of ignored
        /// (APM2 5.3.3).
        const UPPER_GLOBAL_RESERVED = 1 << 25;

        /// What a processor has that nothing more was said about.
        const BASE = Self::PCID.bits() | Self::INVPCID.bits() | Self::SMEP.bits() | Self::SMAP.bits()
            | Self::UMIP.bits() | Self::LA57.bits() | Self::PKU.bits() | Self::FSGSBASE.bits()
            | Self::PAGE_1G.bits() | Self::NX.bits();
    }
}

bitflags! {
    /// What a processor does with its translations beyond what the manuals ask of it. To invalidate more is its right (SDM 3A
    /// 4.10.4); the last three are no processor's.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Habits: u8 {
        /// MOV to CR3 invalidates even where bit 63 of its operand would keep what there is.
        const CR3_ALWAYS_FLUSHES = 1 << 0;
        /// VM entries and exits invalidate everything, whatever its tag.
        const TRANSITIONS_FLUSH = 1 << 1;
        /// Changes of CR0.PE, CR0.WP, and of CR4.SMEP, SMAP, PKE and PCIDE invalidate everything.
        const PERMISSIONS_FLUSH = 1 << 2;
        /// INVPCID of an address or of a PCID invalidates all that is not global.
        const INVPCID_IS_COARSE = 1 << 3;
        /// MOV to CR0 loads PDPTEs whatever it changes.
        const CR0_ALWAYS_LOADS_PDPTES = 1 << 4;
        /// A change of CR4.SMAP, PKE or PCIDE loads PDPTEs.
        const PERMISSIONS_LOAD_PDPTES = 1 << 5;
        /// Accessed and dirty flags of the guest's tables are written wherever the tables were read, though EPT may not allow it.
        const FLAGS_PASS_EPT = 1 << 6;
    }
}

/// What an array of a TLB is looked up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Serves {
    /// Instruction fetches.
    Fetches,
    /// Reads and writes.
    Data,
    /// Both.
    All,
}

/// One array of translations.
#[derive(Debug, PartialEq, Eq)]
pub struct CacheGeometry {
    /// The vendor's name for it.
    pub name: &'static str,
    /// What it is looked up for.
    pub serves: Serves,
    /// 1 for those that walks fill, 2 for those that keep what level 1 gave up.
    pub level: u8,
    /// log2 of the blocks that it holds: page sizes, or what an entry of a paging structure translates.
    pub shifts: &'static [u32],
    /// Sets, a power of two.
    pub sets: u32,
    /// Entries a set; `u32::MAX` is no limit.
    pub ways: u32,
    /// Whether it is a choice which entry a full set gives up; if not, it is the oldest.
    pub is_replacement_open: bool,
}

/// The translation caches of a processor. Sizes are facts of a model, never of the architecture (SDM 3A 4.10.2.2).
#[derive(Debug, PartialEq, Eq)]
pub struct TlbGeometry {
    /// Its name.
    pub name: &'static str,
    /// Where the figures are from.
    pub source: &'static str,
    /// The TLB's arrays, those of level 1 first.
    pub pages: &'static [CacheGeometry],
    /// Guest-physical mappings.
    pub guest_physical: CacheGeometry,
    /// Paging-structure caches, one a level, the first stage's.
    pub tables: &'static [CacheGeometry],
    /// Paging-structure caches of EPT.
    pub stage_tables: &'static [CacheGeometry],
    /// What the processor does beyond what it must.
    pub habits: Habits,
}

/// Whose geometry and habits a processor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TlbProfile {
    /// One array of 64 entries for everything, and no paging-structure caches: what a processor has of which nothing
    /// more was said.
    #[default]
    Base,
    /// Intel Skylake.
    Skylake,
    /// AMD Zen 4.
    Zen4,
    /// Everything is kept until it is invalidated.
    Unbounded,
    /// The emulator Bochs 2.7.
    Bochs,
}

const fn cache(
    name: &'static str,
    serves: Serves,
    level: u8,
    shifts: &'static [u32],
    (sets, ways): (u32, u32),
) -> CacheGeometry {
    CacheGeometry { name, serves, level, shifts, sets, ways, is_replacement_open: false }
}

const fn open(name: &'static str, shifts: &'static [u32], ways: u32) -> CacheGeometry {
    CacheGeometry { name, serves: Serves::All, level: 1, shifts, sets: 1, ways, is_replacement_open: true }
}

const SMALL: &[u32] = &[12];
const LARGE: &[u32] = &[21, 22];
const GIANT: &[u32] = &[30];
const TO_LARGE: &[u32] = &[12, 21, 22];
const EVERY: &[u32] = &[12, 21, 22, 30, 39];

static BASE: TlbGeometry = TlbGeometry {
    name: "base",
    source: "none: round numbers",
    pages: &[open("TLB", EVERY, 64)],
    guest_physical: open("guest-physical", EVERY, 32),
    tables: &[],
    stage_tables: &[],
    habits: Habits::empty(),
};

static SKYLAKE: TlbGeometry = TlbGeometry {
    name: "skylake",
    source: "Intel 64 and IA-32 Architectures Optimization Reference Manual, TLB parameters of Skylake; sizes of \
             paging-structure caches are not published and are round numbers",
    pages: &[
        cache("ITLB 4K", Serves::Fetches, 1, SMALL, (16, 8)),
        cache("ITLB 2M/4M", Serves::Fetches, 1, LARGE, (1, 8)),
        cache("DTLB 4K", Serves::Data, 1, SMALL, (16, 4)),
        cache("DTLB 2M/4M", Serves::Data, 1, LARGE, (8, 4)),
        cache("DTLB 1G", Serves::Data, 1, GIANT, (1, 4)),
        cache("STLB 4K/2M/4M", Serves::All, 2, TO_LARGE, (128, 12)),
        cache("STLB 1G", Serves::All, 2, GIANT, (4, 4)),
    ],
    guest_physical: cache("guest-physical", Serves::All, 1, EVERY, (16, 4)),
    tables: &[
        cache("PDE cache", Serves::All, 1, &[21, 22], (1, 32)),
        cache("PDPTE cache", Serves::All, 1, &[30], (1, 4)),
        cache("PML4E cache", Serves::All, 1, &[39], (1, 2)),
        cache("PML5E cache", Serves::All, 1, &[48], (1, 2)),
    ],
    stage_tables: &[
        cache("EPT PDE cache", Serves::All, 1, &[21], (1, 16)),
        cache("EPT PDPTE cache", Serves::All, 1, &[30], (1, 4)),
        cache("EPT PML4E cache", Serves::All, 1, &[39], (1, 2)),
        cache("EPT PML5E cache", Serves::All, 1, &[48], (1, 2)),
    ],
    habits: Habits::empty(),
};

static ZEN4: TlbGeometry = TlbGeometry {
    name: "zen4",
    source: "Software Optimization Guide for the AMD Zen4 Microarchitecture, 2.7 and 2.12; how the page-directory cache \
             is divided is a guess",
    pages: &[
        cache("L1 ITLB", Serves::Fetches, 1, EVERY, (1, 64)),
        cache("L1 DTLB", Serves::Data, 1, EVERY, (1, 72)),
        cache("L2 ITLB", Serves::Fetches, 2, TO_LARGE, (64, 8)),
        cache("L2 DTLB", Serves::Data, 2, TO_LARGE, (128, 24)),
    ],
    guest_physical: cache("nested", Serves::All, 1, EVERY, (1, 64)),
    tables: &[
        cache("PDE cache", Serves::All, 1, &[21, 22], (1, 64)),
        cache("PDC", Serves::All, 1, &[30, 39, 48], (1, 64)),
    ],
    stage_tables: &[],
    habits: Habits::empty(),
};

static UNBOUNDED: TlbGeometry = TlbGeometry {
    name: "unbounded",
    source: "none: an idealisation",
    pages: &[open("TLB", EVERY, u32::MAX)],
    guest_physical: open("guest-physical", EVERY, u32::MAX),
    tables: &[open("paging-structure caches", &[21, 22, 30, 39, 48], u32::MAX)],
    stage_tables: &[open("EPT paging-structure caches", &[21, 30, 39, 48], u32::MAX)],
    habits: Habits::empty(),
};

static BOCHS: TlbGeometry = TlbGeometry {
    name: "bochs",
    source: "Bochs 2.7, cpu/crregs.cc, vmx.cc, svm.cc, paging.cc: what it does; it keeps pieces of 4 KiB of large pages, which these \
             arrays do not, and no guest-physical mapping, of which this keeps one",
    pages: &[cache("ITLB", Serves::Fetches, 1, EVERY, (1024, 1)), cache("DTLB", Serves::Data, 1, EVERY, (2048, 1))],
    guest_physical: cache("guest-physical", Serves::All, 1, EVERY, (1, 1)),
    tables: &[],
    stage_tables: &[],
    habits: Habits::all(),
};

impl TlbProfile {
    /// Every profile.
    pub const ALL: [Self; 5] = [Self::Base, Self::Skylake, Self::Zen4, Self::Unbounded, Self::Bochs];

    /// Whether its processor has a habit.
    #[must_use]
    pub const fn has(self, habit: Habits) -> bool {
        self.geometry().habits.contains(habit)
    }

    /// Its geometry.
    #[must_use]
    pub const fn geometry(self) -> &'static TlbGeometry {
        match self {
            Self::Base => &BASE,
            Self::Skylake => &SKYLAKE,
            Self::Zen4 => &ZEN4,
            Self::Unbounded => &UNBOUNDED,
            Self::Bochs => &BOCHS,
        }
    }
}
