//! The paging formats as constant data: which address bits index which table, which bits of an entry mean what, which
//! levels may map pages and which bits must be zero.
//!
//! SDM 3A 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level and 5-level); SDM 3C 28.2.2 (EPT); APM2 5.2, 5.3. Nested paging uses
//! the ordinary formats (APM2 15.25.5). What a processor may lack is in [`Offers`]. AMD differs in one rule: bit 8 of
//! PML5Es, PML4Es and of PDPTEs that refer to a table is reserved there. Left out: processors without PAT or PSE-36,
//! and HLAT's bits 11 and 57 to 58 of entries.

use super::entry::Rights;
use crate::profile::Features;
use crate::virt::EptFlags;
use bitflags::bitflags;
use sim_core::Level;
use sim_core::arch::control::{Cr4, PagingMode};

/// A paging format: its tables from the root down to the smallest pages.
#[derive(Debug, PartialEq, Eq)]
pub struct Format {
    /// The format's name.
    pub name: &'static str,
    /// Bytes of one entry: 4 or 8.
    pub entry_bytes: usize,
    /// The tables, root first.
    pub levels: &'static [LevelFormat],
}

impl Format {
    /// How many low bits of an address the tables translate.
    #[must_use]
    pub const fn address_bits(&self) -> u32 {
        self.levels[0].shift + self.levels[0].index_bits
    }
}

/// One level of a format.
#[derive(Debug, PartialEq, Eq)]
pub struct LevelFormat {
    /// The level.
    pub level: Level,
    /// The lowest address bit of the index, and log2 of the bytes that an entry maps.
    pub shift: u32,
    /// Bits of the index.
    pub index_bits: u32,
    /// What an entry may map.
    pub maps: Maps,
    /// Where an entry keeps its flags.
    pub layout: &'static Layout,
    /// What makes an entry that refers to a table malformed.
    pub table: &'static [Reserved],
    /// What makes an entry that maps a page malformed.
    pub page: &'static [Reserved],
    /// Where an entry that maps a page keeps the page's address.
    pub frame: PageFrame,
}

impl LevelFormat {
    /// The index into a table of this level for an address.
    #[must_use]
    pub const fn index(&self, address: u64) -> u64 {
        (address >> self.shift) & ((1 << self.index_bits) - 1)
    }

    /// The index into IA32_PAT that an ordinary entry gives the page it maps: PAT, PCD, PWT (SDM 3A 4.9.2).
    #[must_use]
    pub const fn pat_index(&self, entry: u64) -> u8 {
        let pat = match self.maps {
            Maps::Page => entry >> 7,
            Maps::Table | Maps::Either => entry >> 12,
        };
        ((pat & 1) << 2 | (entry >> 3) & 3) as u8
    }

    /// The protection key in an entry that maps a page, 0 in formats without keys (SDM 3A 4.6.2).
    #[must_use]
    pub const fn key(&self, entry: u64) -> u8 {
        match self.layout.key {
            Some(low) => ((entry >> low) & 0xf) as u8,
            None => 0,
        }
    }
}

/// What an entry of a level may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maps {
    /// Only a further table.
    Table,
    /// Only a page.
    Page,
    /// A page if bit 7 (PS) is set, else a table.
    Either,
}

/// Where a page's address is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFrame {
    /// In the address's own bits.
    InPlace,
    /// Bits 31:22 in place, bits 39:32 in bits 20:13 (PSE-36, SDM 3A table 4-4).
    Pse36,
}

/// Where an entry keeps its flags. A mask of 0 means that there is no such flag.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// The entry is present if any of these bits is set.
    pub present: u64,
    /// Rights that every entry gives.
    pub implied: Rights,
    /// Rights that depend on a bit.
    pub grants: &'static [Grant],
    /// The accessed flag.
    pub accessed: u64,
    /// The dirty flag, in entries that map a page.
    pub dirty: u64,
    /// The global flag, in entries that map a page.
    pub global: u64,
    /// The lowest bit of the protection key, in entries that map a page.
    pub key: Option<u32>,
    /// What makes a page a shadow stack, below tables that are all writable.
    pub shadow_stack: Marker,
}

/// Bits of an entry that maps a page, and the value that they must have. A mask of 0 means that no page is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Which bits.
    pub mask: u64,
    /// Their value.
    pub value: u64,
}

impl Marker {
    const NONE: Self = Self { mask: 0, value: 0 };
    /// Not writable and dirty (SDM 3A 4.6).
    const READ_ONLY_DIRTY: Self = Self { mask: 0b10 | 1 << 6, value: 1 << 6 };
    /// EPT's bit for supervisor shadow stacks.
    const EPT: Self = Self { mask: EPT_SHADOW_STACK, value: EPT_SHADOW_STACK };

    /// Whether an entry is marked.
    #[must_use]
    pub const fn marks(self, entry: u64) -> bool {
        self.mask != 0 && entry & self.mask == self.value
    }
}

/// Bit 60 of EPT entries that map a page: supervisor shadow stack, while EPTP bit 7 is 1.
pub const EPT_SHADOW_STACK: u64 = 1 << 60;

/// A right that depends on one bit of an entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    /// The right.
    pub right: Rights,
    /// The bit.
    pub bit: u32,
    /// What the bit says when it is set.
    pub sense: Sense,
}

/// What a set bit says about a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    /// It gives the right.
    Allows,
    /// It takes the right away.
    Forbids,
}

/// A rule that makes an entry malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// One of the bits `high:low` is set.
    Bits {
        /// The highest of the bits.
        high: u32,
        /// The lowest of the bits.
        low: u32,
    },
    /// One of the bits from MAXPHYADDR up to this one is set.
    PhysicalTo(u32),
    /// Bit 63 is set while IA32_EFER.NXE is 0.
    NoExecute,
    /// One of the bits 21:(M-19) is set, M being the smaller of 40 and MAXPHYADDR (SDM 3A table 4-4).
    Pse36,
    /// The bits under the mask have exactly this value.
    Pattern {
        /// Which bits.
        mask: u64,
        /// The forbidden value.
        value: u64,
    },
    /// The bits under the mask have exactly this value, which takes something that isn't offered.
    Unoffered {
        /// What it takes.
        offer: Offers,
        /// Which bits.
        mask: u64,
        /// The value.
        value: u64,
    },
    /// The three bits from `low` up have one of the values in the set, a bit each.
    Values {
        /// The lowest of the bits.
        low: u32,
        /// The forbidden values.
        set: u8,
    },
}

bitflags! {
    /// What a processor offers that the validity of entries depends on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Offers: u8 {
        /// PDPTEs that map 1 GiB pages.
        const PAGE_1G = 1 << 0;
        /// EPT PDEs that map 2 MiB pages.
        const PAGE_2M = 1 << 1;
        /// EPT entries that allow nothing but fetches.
        const EXECUTE_ONLY = 1 << 2;
        /// The same by bit 10; also while that bit is ignored.
        const USER_EXECUTE_ONLY = 1 << 3;
        /// Bit 8 of entries that refer to a table is ignored at every level.
        const UPPER_GLOBAL = 1 << 4;
    }
}

impl Offers {
    /// What ordinary tables may use.
    #[must_use]
    pub fn ordinary(features: Features) -> Self {
        let mut offers = Self::all();
        offers.set(Self::PAGE_1G, features.contains(Features::PAGE_1G));
        offers.set(Self::UPPER_GLOBAL, !features.contains(Features::UPPER_GLOBAL_RESERVED));
        offers
    }

    /// What EPT tables may use.
    #[must_use]
    pub fn ept(flags: EptFlags) -> Self {
        let mut offers = Self::all();
        let execute_only = !flags.contains(EptFlags::NO_EXECUTE_ONLY);
        offers.set(Self::PAGE_1G, !flags.contains(EptFlags::NO_PAGE_1G));
        offers.set(Self::PAGE_2M, !flags.contains(EptFlags::NO_PAGE_2M));
        offers.set(Self::EXECUTE_ONLY, execute_only);
        offers.set(Self::USER_EXECUTE_ONLY, execute_only || !flags.contains(EptFlags::MODE_BASED_EXECUTE));
        offers
    }
}

/// What the reserved bits depend on beyond the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// MAXPHYADDR, in bits.
    pub maxphyaddr: u32,
    /// What bit 63 means.
    pub no_execute: NoExecute,
    /// What may be used.
    pub offers: Offers,
}

/// Whether bit 63 of an entry is the no-execute flag or reserved (IA32_EFER.NXE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoExecute {
    /// NXE is 1.
    Enabled,
    /// NXE is 0.
    Reserved,
}

impl Reserved {
    /// Whether the entry breaks this rule.
    #[must_use]
    pub const fn is_broken_by(self, entry: u64, limits: Limits) -> bool {
        match self {
            Self::Bits { high, low } => entry & bits(high, low) != 0,
            Self::PhysicalTo(high) => entry & bits(high, limits.maxphyaddr) != 0,
            Self::NoExecute => matches!(limits.no_execute, NoExecute::Reserved) && entry & bits(63, 63) != 0,
            Self::Pse36 => entry & bits(21, pse36_width(limits.maxphyaddr) - 19) != 0,
            Self::Pattern { mask, value } => entry & mask == value,
            Self::Unoffered { offer, mask, value } => entry & mask == value && !limits.offers.contains(offer),
            Self::Values { low, set } => set >> ((entry >> low) & 7) & 1 == 1,
        }
    }
}

/// The bits `high:low`, none if `low` is above `high`.
const fn bits(high: u32, low: u32) -> u64 {
    if low > high { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}

/// Physical-address bits that a 4 MiB page can reach: 32 without PSE-36, 40 at most.
const fn pse36_width(maxphyaddr: u32) -> u32 {
    match maxphyaddr {
        ..32 => 32,
        32..40 => maxphyaddr,
        _ => 40,
    }
}

/// The page-size flag of entries that may map either.
pub const PAGE_SIZE: u64 = 1 << 7;

const WRITE: Grant = Grant { right: Rights::WRITE, bit: 1, sense: Sense::Allows };
const USER: Grant = Grant { right: Rights::USER, bit: 2, sense: Sense::Allows };
const NO_EXECUTE: Grant = Grant { right: Rights::EXECUTE, bit: 63, sense: Sense::Forbids };

/// Eight-byte entries of 4-level and 5-level paging (SDM 3A figure 4-11).
static LONG: Layout = Layout {
    present: 1,
    implied: Rights::READ,
    grants: &[WRITE, USER, NO_EXECUTE],
    accessed: 1 << 5,
    dirty: 1 << 6,
    global: 1 << 8,
    key: Some(59),
    shadow_stack: Marker::READ_ONLY_DIRTY,
};

/// Eight-byte entries of PAE paging (SDM 3A figure 4-7).
static PAE_ENTRY: Layout = Layout {
    present: 1,
    implied: Rights::READ,
    grants: &[WRITE, USER, NO_EXECUTE],
    accessed: 1 << 5,
    dirty: 1 << 6,
    global: 1 << 8,
    key: None,
    shadow_stack: Marker::READ_ONLY_DIRTY,
};

/// Four-byte entries of 32-bit paging (SDM 3A figure 4-4).
static SHORT: Layout = Layout {
    present: 1,
    implied: Rights::READ.union(Rights::EXECUTE),
    grants: &[WRITE, USER],
    accessed: 1 << 5,
    dirty: 1 << 6,
    global: 1 << 8,
    key: None,
    shadow_stack: Marker::READ_ONLY_DIRTY,
};

/// PDPTEs of PAE paging: a present flag and an address, nothing else (SDM 3A table 4-8).
static PDPTE_OF_PAE: Layout = Layout {
    present: 1,
    implied: Rights::all(),
    grants: &[],
    accessed: 0,
    dirty: 0,
    global: 0,
    key: None,
    shadow_stack: Marker::NONE,
};

const EPT_READ: Grant = Grant { right: Rights::READ, bit: 0, sense: Sense::Allows };
const EPT_WRITE: Grant = Grant { right: Rights::WRITE, bit: 1, sense: Sense::Allows };
const EPT_EXECUTE: Grant = Grant { right: Rights::EXECUTE.union(Rights::USER_EXECUTE), bit: 2, sense: Sense::Allows };
const EPT_SUPERVISOR_EXECUTE: Grant = Grant { right: Rights::EXECUTE, bit: 2, sense: Sense::Allows };
const EPT_USER_EXECUTE: Grant = Grant { right: Rights::USER_EXECUTE, bit: 10, sense: Sense::Allows };

/// EPT entries while EPTP bit 6 is 0 (SDM 3C 28.2.2).
const EPT_PLAIN: Layout = Layout {
    present: 0b111,
    implied: Rights::USER,
    grants: &[EPT_READ, EPT_WRITE, EPT_EXECUTE],
    accessed: 0,
    dirty: 0,
    global: 0,
    key: None,
    shadow_stack: Marker::EPT,
};

/// The same with mode-based execute control, where bit 10 counts among what makes an entry present.
const EPT_MODES: Layout = Layout {
    present: 0b111 | 1 << 10,
    grants: &[EPT_READ, EPT_WRITE, EPT_SUPERVISOR_EXECUTE, EPT_USER_EXECUTE],
    ..EPT_PLAIN
};

/// By EPTP bit 6 (SDM 3C 28.2.4), then by mode-based execute control.
static EPT_LAYOUTS: [Layout; 4] = [
    EPT_PLAIN,
    Layout { accessed: 1 << 8, dirty: 1 << 9, ..EPT_PLAIN },
    EPT_MODES,
    Layout { accessed: 1 << 8, dirty: 1 << 9, ..EPT_MODES },
];

/// A level of 9 index bits, which every format with eight-byte entries has.
const fn nine(
    level: Level,
    maps: Maps,
    layout: &'static Layout,
    table: &'static [Reserved],
    page: &'static [Reserved],
) -> LevelFormat {
    LevelFormat { level, shift: level.shift(), index_bits: 9, maps, layout, table, page, frame: PageFrame::InPlace }
}

const PHYSICAL: Reserved = Reserved::PhysicalTo(51);
const NX: Reserved = Reserved::NoExecute;

/// A rule about bits `high:low`.
const fn zero(high: u32, low: u32) -> Reserved {
    Reserved::Bits { high, low }
}

/// Bit 8, where AMD reserves it: in PML4 and PML5 entries only (APM2 5.3.3; KVM 5ecad245de2a says that older manuals
/// named PDPEs too, which ignore it).
const UPPER_GLOBAL: Reserved = Reserved::Unoffered { offer: Offers::UPPER_GLOBAL, mask: 1 << 8, value: 1 << 8 };
/// A page of a size that isn't offered.
const GIANT: Reserved = Reserved::Unoffered { offer: Offers::PAGE_1G, mask: PAGE_SIZE, value: PAGE_SIZE };
const LARGE: Reserved = Reserved::Unoffered { offer: Offers::PAGE_2M, mask: PAGE_SIZE, value: PAGE_SIZE };

// SDM 3A tables 4-14 to 4-20.
const ABOVE_PDPTE: &[Reserved] = &[PHYSICAL, NX, zero(7, 7), UPPER_GLOBAL];
const PML5E: LevelFormat = nine(Level::L5, Maps::Table, &LONG, ABOVE_PDPTE, &[]);
const PML4E: LevelFormat = nine(Level::L4, Maps::Table, &LONG, ABOVE_PDPTE, &[]);
const PDPTE: LevelFormat = nine(Level::L3, Maps::Either, &LONG, &[PHYSICAL, NX], &[PHYSICAL, NX, zero(29, 13), GIANT]);
const PDE: LevelFormat = nine(Level::L2, Maps::Either, &LONG, &[PHYSICAL, NX], &[PHYSICAL, NX, zero(20, 13)]);
const PTE: LevelFormat = nine(Level::L1, Maps::Page, &LONG, &[], &[PHYSICAL, NX]);

/// 5-level paging.
pub static LONG5: Format = Format { name: "5-level", entry_bytes: 8, levels: &[PML5E, PML4E, PDPTE, PDE, PTE] };

/// 4-level paging.
pub static LONG4: Format = Format { name: "4-level", entry_bytes: 8, levels: &[PML4E, PDPTE, PDE, PTE] };

// SDM 3A tables 4-8 to 4-11: other than in long mode, bits 62:52 are reserved too.
const PAE_PHYSICAL: Reserved = Reserved::PhysicalTo(62);
const PAE_PDPTE: LevelFormat = LevelFormat {
    level: Level::L3,
    shift: 30,
    index_bits: 2,
    maps: Maps::Table,
    layout: &PDPTE_OF_PAE,
    table: &[Reserved::PhysicalTo(63), zero(2, 1), zero(8, 5)],
    page: &[],
    frame: PageFrame::InPlace,
};
const PAE_PDE: LevelFormat =
    nine(Level::L2, Maps::Either, &PAE_ENTRY, &[PAE_PHYSICAL, NX], &[PAE_PHYSICAL, NX, zero(20, 13)]);
const PAE_PTE: LevelFormat = nine(Level::L1, Maps::Page, &PAE_ENTRY, &[], &[PAE_PHYSICAL, NX]);

/// PAE paging. A walk begins in the PDPTE registers, or, with nested paging, in memory.
pub static PAE: Format = Format { name: "PAE", entry_bytes: 8, levels: &[PAE_PDPTE, PAE_PDE, PAE_PTE] };

/// A level of 32-bit paging (SDM 3A tables 4-4 to 4-6).
const fn short(level: Level, shift: u32, maps: Maps, page: &'static [Reserved], frame: PageFrame) -> LevelFormat {
    LevelFormat { level, shift, index_bits: 10, maps, layout: &SHORT, table: &[], page, frame }
}

const SHORT_PTE: LevelFormat = short(Level::L1, 12, Maps::Page, &[], PageFrame::InPlace);

/// 32-bit paging while CR4.PSE is 0: bit 7 of a PDE is ignored.
pub static LEGACY: Format = Format {
    name: "32-bit",
    entry_bytes: 4,
    levels: &[short(Level::L2, 22, Maps::Table, &[], PageFrame::InPlace), SHORT_PTE],
};

/// 32-bit paging with 4 MiB pages (CR4.PSE).
pub static LEGACY_PSE: Format = Format {
    name: "32-bit with 4 MiB pages",
    entry_bytes: 4,
    levels: &[short(Level::L2, 22, Maps::Either, &[Reserved::Pse36], PageFrame::Pse36), SHORT_PTE],
};

/// Writable but not readable is a misconfiguration (SDM 3C 28.2.3.1).
const UNREADABLE: Reserved = Reserved::Pattern { mask: 0b11, value: 0b10 };
/// So is executable but not readable, on some processors.
const EXECUTE_ONLY: Reserved = Reserved::Unoffered { offer: Offers::EXECUTE_ONLY, mask: 0b101, value: 0b100 };
const USER_EXECUTE_ONLY: Reserved =
    Reserved::Unoffered { offer: Offers::USER_EXECUTE_ONLY, mask: 1 << 10 | 1, value: 1 << 10 };
/// Memory types that don't exist: 2, 3 and 7 (SDM 3C 28.2.3.1).
const MEMORY_TYPE: Reserved = Reserved::Values { low: 3, set: 0b1000_1100 };

/// The levels of EPT, root first (SDM 3C tables 28-1 to 28-6).
const fn ept_levels(layout: &'static Layout) -> [LevelFormat; 5] {
    const ROOT: &[Reserved] = &[PHYSICAL, UNREADABLE, EXECUTE_ONLY, USER_EXECUTE_ONLY, zero(7, 3)];
    const TABLE: &[Reserved] = &[PHYSICAL, UNREADABLE, EXECUTE_ONLY, USER_EXECUTE_ONLY, zero(6, 3)];
    const PAGE_1G: &[Reserved] =
        &[PHYSICAL, UNREADABLE, EXECUTE_ONLY, USER_EXECUTE_ONLY, MEMORY_TYPE, zero(29, 12), GIANT];
    const PAGE_2M: &[Reserved] =
        &[PHYSICAL, UNREADABLE, EXECUTE_ONLY, USER_EXECUTE_ONLY, MEMORY_TYPE, zero(20, 12), LARGE];
    const PAGE_4K: &[Reserved] = &[PHYSICAL, UNREADABLE, EXECUTE_ONLY, USER_EXECUTE_ONLY, MEMORY_TYPE];
    [
        nine(Level::L5, Maps::Table, layout, ROOT, &[]),
        nine(Level::L4, Maps::Table, layout, ROOT, &[]),
        nine(Level::L3, Maps::Either, layout, TABLE, PAGE_1G),
        nine(Level::L2, Maps::Either, layout, TABLE, PAGE_2M),
        nine(Level::L1, Maps::Page, layout, &[], PAGE_4K),
    ]
}

static EPT_LEVELS: [[LevelFormat; 5]; 4] = [
    ept_levels(&EPT_LAYOUTS[0]),
    ept_levels(&EPT_LAYOUTS[1]),
    ept_levels(&EPT_LAYOUTS[2]),
    ept_levels(&EPT_LAYOUTS[3]),
];

const fn ept4(layout: usize) -> Format {
    Format { name: "4-level EPT", entry_bytes: 8, levels: EPT_LEVELS[layout].split_at(1).1 }
}

const fn ept5(layout: usize) -> Format {
    Format { name: "5-level EPT", entry_bytes: 8, levels: &EPT_LEVELS[layout] }
}

static EPT4: [Format; 4] = [ept4(0), ept4(1), ept4(2), ept4(3)];
static EPT5: [Format; 4] = [ept5(0), ept5(1), ept5(2), ept5(3)];

/// EPTP bit 6: enable accessed and dirty flags.
pub const EPTP_MARKS: u64 = 1 << 6;

/// The EPT format that an EPTP and the controls select, none for a page-walk length other than 4 and 5 (SDM 3C
/// 24.6.11).
#[must_use]
pub fn ept(eptp: u64, flags: EptFlags) -> Option<&'static Format> {
    let marks = usize::from(eptp & EPTP_MARKS != 0);
    let modes = usize::from(flags.contains(EptFlags::MODE_BASED_EXECUTE));
    let formats = match (eptp >> 3) & 7 {
        3 => &EPT4,
        4 => &EPT5,
        _ => return None,
    };
    formats.get(marks + 2 * modes)
}

/// The ordinary format that control registers select, none without paging.
#[must_use]
pub const fn ordinary(mode: PagingMode, cr4: Cr4) -> Option<&'static Format> {
    match mode {
        PagingMode::Off => None,
        PagingMode::Legacy if cr4.contains(Cr4::PSE) => Some(&LEGACY_PSE),
        PagingMode::Legacy => Some(&LEGACY),
        PagingMode::Pae => Some(&PAE),
        PagingMode::Long4 => Some(&LONG4),
        PagingMode::Long5 => Some(&LONG5),
    }
}

/// The bits of CR3 (or nested CR3) that hold the root table's address (SDM 3A tables 4-3, 4-7, 4-12).
#[must_use]
pub const fn root_mask(mode: PagingMode) -> u64 {
    match mode {
        PagingMode::Off => 0,
        PagingMode::Legacy => bits(31, 12),
        PagingMode::Pae => bits(31, 5),
        PagingMode::Long4 | PagingMode::Long5 => bits(51, 12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [&Format; 7] = [&LEGACY, &LEGACY_PSE, &PAE, &LONG4, &LONG5, &EPT4[0], &EPT5[3]];

    /// Each level's index begins where the level below ends, and the levels end at 4 KiB pages.
    #[test]
    fn levels_tile_the_address() {
        for format in FORMATS {
            let mut shift = format.address_bits();
            for level in format.levels {
                shift -= level.index_bits;
                assert_eq!(level.shift, shift, "{} {}", format.name, level.level);
            }
            assert_eq!(shift, 12, "{}", format.name);
            assert_eq!(format.levels.last().map(|level| level.maps), Some(Maps::Page), "{}", format.name);
        }
    }

    /// SDM 3A 4.1.1 and 4.5: widths of the linear (or guest-physical) address.
    #[test]
    fn address_widths() {
        assert_eq!(FORMATS.map(Format::address_bits), [32, 32, 32, 48, 57, 48, 57]);
    }

    /// SDM 3A table 4-4: bits 21:(M-19) of a 4 MiB PDE are reserved, M = min(40, MAXPHYADDR).
    #[test]
    fn pse36_reserved_bits() {
        for (maxphyaddr, mask) in [(32, 0x3f_e000), (36, 0x3e_0000), (39, 0x30_0000), (40, 0x20_0000), (52, 0x20_0000)]
        {
            for bit in 0..32 {
                let offers = Offers::all();
                let limits = Limits { maxphyaddr, no_execute: NoExecute::Reserved, offers };
                assert_eq!(Reserved::Pse36.is_broken_by(1 << bit, limits), mask >> bit & 1 == 1, "{maxphyaddr} {bit}");
            }
        }
    }
}
