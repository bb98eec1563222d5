//! Segment registers in the VMCB: where they are, and their 12-bit packed attributes (APM2 15.5.1, table B-2).
//!
//! The packed attributes are bits 47:40 and 55:52 of a descriptor, concatenated: type 3:0, S 4, DPL 6:5, P 7, AVL 8,
//! L 9, D/B 10, G 11. There is no bit for "unusable": a register loaded with a null selector has P = 0, so the model
//! takes P = 0 for unusable and stores an unusable register with P = 0.

use super::clean::CleanBits;
use sim_core::arch::segment::Rights;

/// Attribute bits that both layouts keep in 7:0.
const LOW: u32 = 0xff;
/// P, in both layouts.
const PRESENT: u32 = 1 << 7;
/// AVL, L, D/B and G in the layout of [`Rights`].
const HIGH: u32 = 0xf000;

/// A segment register of the VMCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum SegmentField {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegmentField {
    /// Every segment register.
    pub const ALL: [Self; 8] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];

    /// The offset of the selector; attributes, limit and base follow.
    #[must_use]
    pub const fn offset(self) -> u32 {
        match self {
            Self::Es => 0x400,
            Self::Cs => 0x410,
            Self::Ss => 0x420,
            Self::Ds => 0x430,
            Self::Fs => 0x440,
            Self::Gs => 0x450,
            Self::Ldtr => 0x470,
            Self::Tr => 0x490,
        }
    }

    /// The clean bit under which VMRUN may take the register from its cache; none if VMRUN does not load it.
    #[must_use]
    pub const fn clean(self) -> CleanBits {
        match self {
            Self::Es | Self::Cs | Self::Ss | Self::Ds => CleanBits::SEG,
            Self::Fs | Self::Gs | Self::Ldtr | Self::Tr => CleanBits::ALWAYS,
        }
    }
}

/// A descriptor-table register of the VMCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum TableField {
    Gdtr,
    Idtr,
}

impl TableField {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Gdtr, Self::Idtr];

    /// The offset of the reserved selector; the limit is 4 bytes on, the base 8.
    #[must_use]
    pub const fn offset(self) -> u32 {
        match self {
            Self::Gdtr => 0x460,
            Self::Idtr => 0x480,
        }
    }
}

/// The rights that 12 bits of packed attributes stand for. Bits 15:12 are reserved and ignored.
#[must_use]
pub const fn unpack(attributes: u16) -> Rights {
    let packed = attributes as u32;
    let rights = (packed & LOW) | ((packed << 4) & HIGH);
    let unusable = if packed & PRESENT == 0 { Rights::UNUSABLE.0 } else { 0 };
    Rights(rights | unusable)
}

/// The packed attributes of these rights.
#[must_use]
pub const fn pack(rights: Rights) -> u16 {
    let packed = (rights.0 & LOW) | ((rights.0 & HIGH) >> 4);
    (if rights.is_unusable() { packed & !PRESENT } else { packed }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole space of packed attributes, each bit by its meaning (APM2 15.5.1).
    #[test]
    fn attributes_round_trip() {
        for attributes in 0..0x1000_u16 {
            let rights = unpack(attributes);
            assert_eq!(pack(rights), attributes);
            assert_eq!(u16::from(rights.dpl()), (attributes >> 5) & 3);
            assert_eq!(rights.kind(), u32::from(attributes & 0xf));
            assert_eq!(rights.is_code_or_data(), attributes & (1 << 4) != 0);
            assert_eq!(rights.is_present(), attributes & (1 << 7) != 0);
            assert_eq!(rights.is_long(), attributes & (1 << 9) != 0);
            assert_eq!(rights.is_big(), attributes & (1 << 10) != 0);
            assert_eq!(rights.is_granular(), attributes & (1 << 11) != 0);
            assert_eq!(rights.is_unusable(), !rights.is_present());
            assert_eq!(unpack(attributes | 0xf000), rights, "reserved bits are ignored");
        }
        println!("4096 packed attributes");
    }

    #[test]
    fn known_segments() {
        assert_eq!(pack(Rights::CODE64), 0xa9b);
        assert_eq!(pack(Rights::CODE32), 0xc9b);
        assert_eq!(pack(Rights::DATA), 0xc93);
        assert_eq!(pack(Rights::BUSY_TSS), 0x08b);
        assert_eq!(pack(Rights::UNUSABLE), 0);
        assert_eq!(pack(Rights(Rights::UNUSABLE.0 | Rights::DATA.0)), 0xc13, "unusable is stored as not present");
    }
}
