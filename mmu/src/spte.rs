//! Shadow PTEs: the entries that L0 writes and hardware walks, in the paging format (shadow paging, nested paging) or
//! the EPT format, with KVM's software bits (KVM v5.17 spte.h).
//!
//! Left out until they are modelled: access tracking, MMIO entries and their generations (an address without a slot is
//! never given an entry), huge pages, host-writable pages that become read-only.

use crate::role::{ACCESS_EXEC, ACCESS_USER, ACCESS_WRITE};
use crate::state::TdpMode;
use sim_core::addr::{ENTRY_FRAME_MASK, Hfn, Hpa};

/// KVM's "present in the MMU's sense" marker, bit 11.
pub const MMU_PRESENT: u64 = 1 << 11;

/// Which hardware format an entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// SDM 3A table 4-20; APM2 5.4.
    Paging,
    /// SDM 3C table 28-6.
    Ept,
}

impl TdpMode {
    /// The format of every entry that L0 writes in this mode.
    #[must_use]
    pub const fn spte_format(self) -> Format {
        match self {
            Self::Ept => Format::Ept,
            Self::Off | Self::Npt => Format::Paging,
        }
    }
}

/// Bits that have one meaning and two places.
#[derive(Clone, Copy, Debug)]
struct Bits {
    write: u64,
    accessed: u64,
    dirty: u64,
    host_writable: u64,
    mmu_writable: u64,
}

impl Format {
    const fn bits(self) -> Bits {
        match self {
            Self::Paging => {
                Bits { write: 1 << 1, accessed: 1 << 5, dirty: 1 << 6, host_writable: 1 << 9, mmu_writable: 1 << 10 }
            }
            Self::Ept => {
                Bits { write: 1 << 1, accessed: 1 << 8, dirty: 1 << 9, host_writable: 1 << 57, mmu_writable: 1 << 58 }
            }
        }
    }

    /// Permission bits for an access mask: P/W/U/NX, or R/W/X (where user has no bit).
    fn permission(self, access: u32) -> u64 {
        let bit = |mask: u32, shift: u32| u64::from(access & mask != 0) << shift;
        match self {
            Self::Paging => 1 | bit(ACCESS_WRITE, 1) | bit(ACCESS_USER, 2) | (bit(ACCESS_EXEC, 63) ^ 1 << 63),
            // EPT has no user bit: KVM lets "user" stand for readable there.
            Self::Ept => bit(ACCESS_USER, 0) | bit(ACCESS_WRITE, 1) | bit(ACCESS_EXEC, 2),
        }
    }

    /// An entry that points to a table, all permissions granted: the leaves restrict (`make_nonleaf_spte`).
    #[must_use]
    pub const fn non_leaf(self, table: Hpa, ad_disabled: bool) -> u64 {
        table.0 | MMU_PRESENT | 0x7 | if ad_disabled { 0 } else { self.bits().accessed }
    }

    /// A 4 KiB leaf (`make_spte`). `write` says whether the entry may be writable now; the access mask says whether the
    /// guest and the slot would let it be.
    #[must_use]
    pub fn leaf(self, frame: Hfn, access: u32, write: Writable, ad_disabled: bool) -> u64 {
        let bits = self.bits();
        let memory_type = match self {
            Self::Paging => 0,
            Self::Ept => 6 << 3 | 1 << 6,
        };
        let granted = match write {
            Writable::Yes => access,
            Writable::No => access & !ACCESS_WRITE,
        };
        let software = match write {
            Writable::Yes if access & ACCESS_WRITE != 0 => bits.host_writable | bits.mmu_writable,
            _ => bits.host_writable,
        };
        let accessed = if ad_disabled { 0 } else { bits.accessed };
        let dirty = if ad_disabled || granted & ACCESS_WRITE == 0 { 0 } else { bits.dirty };
        frame.base().0 | self.permission(granted) | memory_type | software | accessed | dirty | MMU_PRESENT
    }

    /// Whether hardware may write through the entry.
    #[must_use]
    pub const fn is_writable(self, spte: u64) -> bool {
        spte & self.bits().write != 0
    }

    /// The entry without write permission, and without KVM's promise that it could be given back.
    #[must_use]
    pub const fn write_protected(self, spte: u64) -> u64 {
        spte & !(self.bits().write | self.bits().mmu_writable)
    }
}

/// Whether a new leaf may be writable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    /// If the access mask has it.
    Yes,
    /// Not even then: a shadowed table lives there.
    No,
}

/// `is_shadow_present_pte`.
#[must_use]
pub const fn is_present(spte: u64) -> bool {
    spte & MMU_PRESENT != 0
}

/// The frame that an entry names.
#[must_use]
pub const fn frame(spte: u64) -> Hfn {
    Hpa(spte & ENTRY_FRAME_MASK).frame()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3A table 4-20 and 3C table 28-6: what hardware sees in each entry.
    #[test]
    fn hardware_bits_follow_the_access_mask() {
        for access in 0..8 {
            let has = |bit: u32| u64::from(access & bit != 0);
            let paging = Format::Paging.leaf(Hfn(0x5), access, Writable::Yes, false);
            assert_eq!(paging & 7, 1 | has(ACCESS_WRITE) << 1 | has(ACCESS_USER) << 2);
            assert_eq!(paging >> 63, 1 - has(ACCESS_EXEC));
            let ept = Format::Ept.leaf(Hfn(0x5), access, Writable::Yes, false);
            assert_eq!(ept & 7, has(ACCESS_USER) | has(ACCESS_WRITE) << 1 | has(ACCESS_EXEC) << 2);
            assert_eq!((frame(paging), frame(ept)), (Hfn(5), Hfn(5)));
        }
    }

    /// kvm-mmu.md A.7.7: the legal combinations of host-writable, MMU-writable and W.
    #[test]
    fn writable_bits_are_legal() {
        for format in [Format::Paging, Format::Ept] {
            let bits = format.bits();
            let triple = |spte: u64| [bits.host_writable, bits.mmu_writable, bits.write].map(|bit| spte & bit != 0);
            assert_eq!(triple(format.leaf(Hfn(1), 7, Writable::Yes, false)), [true, true, true]);
            assert_eq!(triple(format.leaf(Hfn(1), 7, Writable::No, false)), [true, false, false]);
            let protected = format.write_protected(format.leaf(Hfn(1), 7, Writable::Yes, false));
            assert_eq!(triple(protected), [true, false, false]);
        }
    }
}
