//! The paging formats as constant data: which address bits index which table, which bits of an entry mean what, which
//! levels may map pages and which bits must be zero.
//!
//! SDM 3A 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level and 5-level); SDM 3C 28.2.2 (EPT); APM2 5.2, 5.3. Nested paging uses
//! the ordinary formats (APM2 15.25.5). Left out: AMD's reserved bit 8 in PML4 entries, protection keys, bit 10 of EPT
//! entries (mode-based execute control), and processors without 1 GiB pages, PAT or PSE-36.

use super::entry::Rights;
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
}

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
}

/// What the reserved bits depend on beyond the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// MAXPHYADDR, in bits.
    pub maxphyaddr: u32,
    /// What bit 63 means.
    pub no_execute: NoExecute,
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

/// Eight-byte entries of PAE, 4-level and 5-level paging (SDM 3A figures 4-7, 4-11).
static LONG: Layout = Layout {
    present: 1,
    implied: Rights::READ,
    grants: &[WRITE, USER, NO_EXECUTE],
    accessed: 1 << 5,
    dirty: 1 << 6,
    global: 1 << 8,
};

/// Four-byte entries of 32-bit paging (SDM 3A figure 4-4).
static SHORT: Layout = Layout {
    present: 1,
    implied: Rights::READ.union(Rights::EXECUTE),
    grants: &[WRITE, USER],
    accessed: 1 << 5,
    dirty: 1 << 6,
    global: 1 << 8,
};

/// PDPTEs of PAE paging: a present flag and an address, nothing else (SDM 3A table 4-8).
static PDPTE_OF_PAE: Layout =
    Layout { present: 1, implied: Rights::all(), grants: &[], accessed: 0, dirty: 0, global: 0 };

const EPT_GRANTS: &[Grant] = &[
    Grant { right: Rights::READ, bit: 0, sense: Sense::Allows },
    Grant { right: Rights::WRITE, bit: 1, sense: Sense::Allows },
    Grant { right: Rights::EXECUTE, bit: 2, sense: Sense::Allows },
];

/// EPT entries while EPTP bit 6 is 0 (SDM 3C 28.2.2).
static EPT_PLAIN: Layout =
    Layout { present: 0b111, implied: Rights::USER, grants: EPT_GRANTS, accessed: 0, dirty: 0, global: 0 };

/// EPT entries while EPTP bit 6 is 1 (SDM 3C 28.2.4).
static EPT_MARKED: Layout =
    Layout { present: 0b111, implied: Rights::USER, grants: EPT_GRANTS, accessed: 1 << 8, dirty: 1 << 9, global: 0 };

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

// SDM 3A tables 4-14 to 4-20.
const PML5E: LevelFormat = nine(Level::L5, Maps::Table, &LONG, &[PHYSICAL, NX, zero(7, 7)], &[]);
const PML4E: LevelFormat = nine(Level::L4, Maps::Table, &LONG, &[PHYSICAL, NX, zero(7, 7)], &[]);
const PDPTE: LevelFormat = nine(Level::L3, Maps::Either, &LONG, &[PHYSICAL, NX], &[PHYSICAL, NX, zero(29, 13)]);
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
    nine(Level::L2, Maps::Either, &LONG, &[PAE_PHYSICAL, NX], &[PAE_PHYSICAL, NX, zero(20, 13)]);
const PAE_PTE: LevelFormat = nine(Level::L1, Maps::Page, &LONG, &[], &[PAE_PHYSICAL, NX]);

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

/// Writable but not readable is a misconfiguration (SDM 3C 28.2.3.1); execute-only is taken as supported.
const UNREADABLE: Reserved = Reserved::Pattern { mask: 0b11, value: 0b10 };
/// Memory types that don't exist (SDM 3C 28.2.3.1).
const MEMORY_TYPE: u64 = 0b111 << 3;
const TYPE_2: Reserved = Reserved::Pattern { mask: MEMORY_TYPE, value: 2 << 3 };
const TYPE_3: Reserved = Reserved::Pattern { mask: MEMORY_TYPE, value: 3 << 3 };
const TYPE_7: Reserved = Reserved::Pattern { mask: MEMORY_TYPE, value: 7 << 3 };

/// The levels of EPT (SDM 3C tables 28-1 to 28-6).
const fn ept_levels(layout: &'static Layout) -> [LevelFormat; 4] {
    const ROOT: &[Reserved] = &[PHYSICAL, UNREADABLE, zero(7, 3)];
    const TABLE: &[Reserved] = &[PHYSICAL, UNREADABLE, zero(6, 3)];
    const GIANT: &[Reserved] = &[PHYSICAL, UNREADABLE, TYPE_2, TYPE_3, TYPE_7, zero(29, 12)];
    const LARGE: &[Reserved] = &[PHYSICAL, UNREADABLE, TYPE_2, TYPE_3, TYPE_7, zero(20, 12)];
    const SMALL: &[Reserved] = &[PHYSICAL, UNREADABLE, TYPE_2, TYPE_3, TYPE_7];
    [
        nine(Level::L4, Maps::Table, layout, ROOT, &[]),
        nine(Level::L3, Maps::Either, layout, TABLE, GIANT),
        nine(Level::L2, Maps::Either, layout, TABLE, LARGE),
        nine(Level::L1, Maps::Page, layout, &[], SMALL),
    ]
}

static EPT_LEVELS: [LevelFormat; 4] = ept_levels(&EPT_PLAIN);
static EPT_MARKED_LEVELS: [LevelFormat; 4] = ept_levels(&EPT_MARKED);

/// EPT without accessed and dirty flags.
pub static EPT: Format = Format { name: "EPT", entry_bytes: 8, levels: &EPT_LEVELS };

/// EPT with accessed and dirty flags (EPTP bit 6).
pub static EPT_AD: Format = Format { name: "EPT with A/D flags", entry_bytes: 8, levels: &EPT_MARKED_LEVELS };

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

    const FORMATS: [&Format; 7] = [&LEGACY, &LEGACY_PSE, &PAE, &LONG4, &LONG5, &EPT, &EPT_AD];

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
        assert_eq!(FORMATS.map(Format::address_bits), [32, 32, 32, 48, 57, 48, 48]);
    }

    /// SDM 3A table 4-4: bits 21:(M-19) of a 4 MiB PDE are reserved, M = min(40, MAXPHYADDR).
    #[test]
    fn pse36_reserved_bits() {
        for (maxphyaddr, mask) in [(32, 0x3f_e000), (36, 0x3e_0000), (39, 0x30_0000), (40, 0x20_0000), (52, 0x20_0000)]
        {
            for bit in 0..32 {
                let limits = Limits { maxphyaddr, no_execute: NoExecute::Reserved };
                assert_eq!(Reserved::Pse36.is_broken_by(1 << bit, limits), mask >> bit & 1 == 1, "{maxphyaddr} {bit}");
            }
        }
    }
}
