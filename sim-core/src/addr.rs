//! Addresses and frames, one type a space, so that a host-physical address can never be used as a guest-physical one.
//!
//! The silicon knows three spaces: linear ([`Gva`]), guest-physical ([`Gpa`], what a second-stage table translates)
//! and host-physical ([`Hpa`], what the memory bus sees). Without a second stage the last two coincide and the walker
//! converts explicitly. The hypervisor adds L2's guest-physical space ([`Ngpa`]).

use serde::{Deserialize, Serialize};
use std::fmt;

/// log2 of the smallest page, in bytes.
pub const PAGE_SHIFT: u32 = 12;
/// The smallest page, in bytes.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// Bits of a byte's offset in the smallest page.
pub const PAGE_OFFSET_MASK: u64 = PAGE_BYTES - 1;
/// Bits 51:12, where every long paging entry keeps its frame (SDM 3A 4.5; APM2 5.3).
pub const ENTRY_FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The byte's offset inside its 4 KiB page.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & PAGE_OFFSET_MASK
            }

            /// The address `bytes` further on, wrapping at 2^64.
            #[must_use]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The first byte of the 4 KiB page.
            #[must_use]
            pub const fn page_base(self) -> Self {
                Self(self.0 & !PAGE_OFFSET_MASK)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

macro_rules! frame {
    ($(#[$doc:meta])* $name:ident of $addr:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The first byte of the frame.
            #[must_use]
            pub const fn base(self) -> $addr {
                $addr(self.0 << PAGE_SHIFT)
            }

            /// The frame `frames` further on, wrapping at 2^64.
            #[must_use]
            pub const fn offset(self, frames: u64) -> Self {
                Self(self.0.wrapping_add(frames))
            }
        }

        impl $addr {
            /// The 4 KiB frame that holds the byte.
            #[must_use]
            pub const fn frame(self) -> $name {
                $name(self.0 >> PAGE_SHIFT)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A linear address, as an instruction forms it after segmentation.
    Gva
);
address!(
    /// A guest-physical address: what first-stage paging gives, and a second stage (EPT, NPT) translates. For the
    /// hypervisor this is L1's physical space.
    Gpa
);
address!(
    /// L2's guest-physical address, translated by L1's nested tables (EPT12, nested CR3).
    Ngpa
);
address!(
    /// A host-physical address: what the memory bus sees.
    Hpa
);
frame!(
    /// A 4 KiB frame of guest-physical space.
    Gfn of Gpa
);
frame!(
    /// A 4 KiB frame of host-physical memory (KVM's `kvm_pfn_t`).
    Hfn of Hpa
);

impl Gva {
    /// Sign-extends bit `width - 1`, the canonical form for a `width`-bit linear address (SDM 1 3.3.7.1).
    #[must_use]
    pub const fn canonical(self, width: u32) -> Self {
        let unused = 64 - width;
        Self((((self.0 << unused) as i64) >> unused) as u64)
    }

    /// Whether the address is canonical for `width` bits (48, or 57 with 5-level paging).
    #[must_use]
    pub const fn is_canonical(self, width: u32) -> bool {
        self.canonical(width).0 == self.0
    }
}

impl Gpa {
    /// The same number in host-physical space: what a machine without a second stage does.
    #[must_use]
    pub const fn as_hpa(self) -> Hpa {
        Hpa(self.0)
    }
}

impl Hpa {
    /// No address: KVM's `INVALID_PAGE`.
    pub const INVALID: Self = Self(u64::MAX);

    /// Whether this is a real address and not [`Hpa::INVALID`].
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != u64::MAX
    }
}

/// A level of a paging structure, named by the table that holds the entry: level 1 holds 4 KiB leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Level {
    /// The page table (PTEs).
    L1 = 1,
    /// The page directory (PDEs).
    L2 = 2,
    /// The page-directory-pointer table (PDPTEs).
    L3 = 3,
    /// The PML4 table.
    L4 = 4,
    /// The PML5 table.
    L5 = 5,
}

impl Level {
    /// Every level, from the leaves up.
    pub const ALL: [Self; 5] = [Self::L1, Self::L2, Self::L3, Self::L4, Self::L5];

    /// The level with this number, if it is one of 1 to 5.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::L1),
            2 => Some(Self::L2),
            3 => Some(Self::L3),
            4 => Some(Self::L4),
            5 => Some(Self::L5),
            _ => None,
        }
    }

    /// 1 to 5.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The level below, none under the page table.
    #[must_use]
    pub const fn down(self) -> Option<Self> {
        Self::from_number(self as u8 - 1)
    }

    /// log2 of the bytes that one 8-byte entry of this level maps.
    #[must_use]
    pub const fn shift(self) -> u32 {
        PAGE_SHIFT + 9 * (self as u32 - 1)
    }

    /// The bytes that one 8-byte entry of this level maps.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The 4 KiB frames that one 8-byte entry of this level maps.
    #[must_use]
    pub const fn frames(self) -> u64 {
        1 << (self.shift() - PAGE_SHIFT)
    }

    /// The index into a 512-entry table of this level for an address.
    #[must_use]
    pub const fn index(self, address: u64) -> u64 {
        (address >> self.shift()) & 0x1ff
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3A figures 4-8 to 4-10: which linear-address bits index which table.
    #[test]
    fn level_geometry() {
        for (level, shift) in Level::ALL.into_iter().zip([12, 21, 30, 39, 48]) {
            assert_eq!(level.shift(), shift);
            assert_eq!(level.index(0x1ff << shift), 0x1ff);
            assert_eq!(level.index(!(0x1ff << shift)), 0);
        }
    }

    /// SDM 1 3.3.7.1: canonical means that bits 63 to width-1 are equal.
    #[test]
    fn canonical_form() {
        for (address, width, ok) in [
            (0x0000_7fff_ffff_ffff, 48, true),
            (0x0000_8000_0000_0000, 48, false),
            (0xffff_8000_0000_0000, 48, true),
            (0x0000_8000_0000_0000, 57, true),
            (0xff00_0000_0000_0000, 57, true),
            (0x0100_0000_0000_0000, 57, false),
        ] {
            assert_eq!(Gva(address).is_canonical(width), ok, "{address:#x} at {width} bits");
        }
    }
}
