//! Segment registers with their hidden parts (SDM 3A 3.4.3), and descriptor-table registers.

use serde::{Deserialize, Serialize};

/// Segment access rights in the layout of the VMCS fields (SDM 3C 24.4.1): type in 3:0, S 4, DPL 6:5, P 7, AVL 12,
/// L 13, D/B 14, G 15, unusable 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rights(pub u32);

impl Rights {
    /// The segment can't be used.
    pub const UNUSABLE: Self = Self(1 << 16);
    /// A flat 64-bit ring-0 code segment, accessed.
    pub const CODE64: Self = Self(0xa09b);
    /// A flat 32-bit ring-0 code segment, accessed.
    pub const CODE32: Self = Self(0xc09b);
    /// A flat 32-bit ring-0 writable data segment, accessed.
    pub const DATA: Self = Self(0xc093);
    /// A busy 32- or 64-bit task-state segment.
    pub const BUSY_TSS: Self = Self(0x8b);

    /// The descriptor's type, bits 3:0.
    #[must_use]
    pub const fn kind(self) -> u32 {
        self.0 & 0xf
    }

    /// Whether the descriptor is for code or data (S = 1).
    #[must_use]
    pub const fn is_code_or_data(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// The descriptor privilege level, 0 to 3.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        ((self.0 >> 5) & 3) as u8
    }

    /// Whether the descriptor is present.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// Whether it is a 64-bit code segment (L = 1).
    #[must_use]
    pub const fn is_long(self) -> bool {
        self.0 & (1 << 13) != 0
    }

    /// Whether the default size is 32 bits (D/B = 1).
    #[must_use]
    pub const fn is_big(self) -> bool {
        self.0 & (1 << 14) != 0
    }

    /// Whether the limit counts 4 KiB units (G = 1).
    #[must_use]
    pub const fn is_granular(self) -> bool {
        self.0 & (1 << 15) != 0
    }

    /// Whether the segment is unusable.
    #[must_use]
    pub const fn is_unusable(self) -> bool {
        self.0 & (1 << 16) != 0
    }
}

/// A segment register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// The first byte, a linear address.
    pub base: u64,
    /// The last offset that may be used, in bytes.
    pub limit: u32,
    /// The access rights.
    pub rights: Rights,
}

impl Segment {
    /// A flat segment over the whole 4 GiB.
    #[must_use]
    pub const fn flat(selector: u16, rights: Rights) -> Self {
        Self { selector, base: 0, limit: 0xffff_ffff, rights }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableRegister {
    /// The table's first byte, a linear address.
    pub base: u64,
    /// The last byte's offset.
    pub limit: u16,
}
