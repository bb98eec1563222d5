//! Paging-structure entries: what a raw value means at a level of a format.
//!
//! SDM 3A 4.3 to 4.6, SDM 3C 28.2.2 and 28.2.3.1.

use super::format::{LevelFormat, Limits, Maps, PAGE_SIZE, PageFrame, Sense};
use super::memory_type::{MemoryType, StageType};
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use sim_core::addr::ENTRY_FRAME_MASK;

bitflags! {
    /// What a translation allows: the AND over the entries used. Formats without one of these bits imply it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    pub struct Rights: u8 {
        /// Data reads (a bit only in EPT).
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Instruction fetches.
        const EXECUTE = 1 << 2;
        /// The address is a user-mode address (SDM 3A 4.6).
        const USER = 1 << 3;
        /// Instruction fetches from user-mode linear addresses; of EPT alone, where it is EXECUTE without mode-based
        /// execute control (SDM 3C 28.2.3.2).
        const USER_EXECUTE = 1 << 4;
        /// The page is a shadow-stack page: in the first stage one of the address's own mode (SDM 3A 4.6), in the second
        /// one for supervisors.
        const SHADOW_STACK = 1 << 5;
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Not present; nothing else about it matters.
    NotPresent,
    /// Present, with a reserved bit or combination: a page fault with RSVD, or an EPT misconfiguration.
    Malformed,
    /// Refers to a table.
    Table(Target),
    /// Maps a page.
    Page(Target),
}

/// Where a well-formed entry points, and what it allows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The first byte of the table or page.
    pub base: u64,
    /// What the entry allows.
    pub rights: Rights,
}

/// Reads one raw entry as its level defines it.
#[must_use]
pub fn decode(level: &LevelFormat, raw: u64, limits: Limits) -> Decoded {
    if raw & level.layout.present == 0 {
        return Decoded::NotPresent;
    }
    let is_page = match level.maps {
        Maps::Table => false,
        Maps::Page => true,
        Maps::Either => raw & PAGE_SIZE != 0,
    };
    let rules = if is_page { level.page } else { level.table };
    if rules.iter().any(|rule| rule.is_broken_by(raw, limits)) {
        return Decoded::Malformed;
    }
    let rights = rights(level, raw);
    if is_page {
        Decoded::Page(Target { base: page_base(level, raw), rights })
    } else {
        Decoded::Table(Target { base: raw & ENTRY_FRAME_MASK, rights })
    }
}

fn rights(level: &LevelFormat, raw: u64) -> Rights {
    level.layout.grants.iter().fold(level.layout.implied, |rights, grant| {
        let is_set = raw >> grant.bit & 1 == 1;
        let is_given = match grant.sense {
            Sense::Allows => is_set,
            Sense::Forbids => !is_set,
        };
        if is_given { rights | grant.right } else { rights }
    })
}

/// What an EPT entry that maps a page says of the memory type: bits 5:3, and "ignore PAT" in bit 6 (SDM 3C 28.2.6.2).
#[must_use]
pub const fn ept_type(raw: u64) -> StageType {
    const IGNORE_PAT: u64 = 1 << 6;
    let kind = match MemoryType::from_bits((raw >> 3) & 7) {
        Some(kind) => kind,
        None => MemoryType::Uncacheable,
    };
    if raw & IGNORE_PAT == 0 { StageType::Ept(kind) } else { StageType::EptAlone(kind) }
}

fn page_base(level: &LevelFormat, raw: u64) -> u64 {
    let in_place = raw & ENTRY_FRAME_MASK & !((1 << level.shift) - 1);
    match level.frame {
        PageFrame::InPlace => in_place,
        PageFrame::Pse36 => in_place | ((raw >> 13) & 0xff) << 32,
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{self, NoExecute, Offers};
    use super::*;

    const LIMITS: Limits = Limits { maxphyaddr: 46, no_execute: NoExecute::Enabled, offers: Offers::all() };

    /// SDM 3A table 4-4: a 4 MiB page's address bits 39:32 are in bits 20:13.
    #[test]
    fn pse36_address() {
        let target = Target { base: 0xa5_1240_0000, rights: Rights::READ | Rights::EXECUTE };
        let raw = 0x1240_0000 | 0xa5 << 13 | PAGE_SIZE | 1;
        assert_eq!(decode(&format::LEGACY_PSE.levels[0], raw, LIMITS), Decoded::Page(target));
    }

    /// Without CR4.PSE the same PDE refers to a table (SDM 3A 4.3).
    #[test]
    fn page_size_is_ignored_without_pse() {
        let target = Target { base: 0x1240_0000, rights: Rights::READ | Rights::EXECUTE };
        assert_eq!(decode(&format::LEGACY.levels[0], 0x1240_0081, LIMITS), Decoded::Table(target));
    }

    /// SDM 3A 4.5: bit 12 of a large page is PAT, not address, and bits 62:52 are ignored.
    #[test]
    fn large_page_ignores_pat() {
        let target = Target { base: 0x4020_0000, rights: Rights::READ | Rights::WRITE | Rights::USER };
        let raw = 0xfff0_0000_4020_1087;
        assert_eq!(decode(&format::LONG4.levels[2], raw, LIMITS), Decoded::Page(target));
    }
}
