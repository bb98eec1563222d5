//! Linear-address masking: the metadata bits that software may keep in the pointers of its data accesses (SDM 3A 4.4 in
//! editions since 2023; SDM 1 3.3.7.1).
//!
//! It applies to data accesses in 64-bit mode, before the canonical check, and to nothing else: not to fetches and
//! branch targets, INVLPG and INVPCID, the bases in descriptor tables and MSRs, nor the processor's own accesses to system
//! structures. Bit 63 is never masked; a page fault reports the address without its metadata. AMD's upper address
//! ignore, which masks bit 63 too, is left out.

use crate::core::{Bitness, Core};
use crate::profile::Features;
use sim_core::Gva;
use sim_core::arch::control::Cr4;

/// CR3.LAM_U57: user pointers keep metadata in bits 62:57.
pub const CR3_LAM_U57: u64 = 1 << 61;
/// CR3.LAM_U48: user pointers keep metadata in bits 62:48, unless LAM_U57 is set.
pub const CR3_LAM_U48: u64 = 1 << 62;

/// CR3 without the enables, where the processor has them: what is left must be an address within MAXPHYADDR.
#[must_use]
pub const fn without_enables(features: Features, cr3: u64) -> u64 {
    if features.contains(Features::LAM) { cr3 & !(CR3_LAM_U57 | CR3_LAM_U48) } else { cr3 }
}

/// How many low bits of a pointer are its address: 57 or 48, none if it may hold no metadata. Bit 63 of the pointer says
/// whose it is, whatever the privilege level.
#[must_use]
pub const fn width(cr3: u64, cr4: Cr4, pointer: u64) -> Option<u32> {
    let is_user = pointer >> 63 == 0;
    if is_user && cr3 & CR3_LAM_U57 != 0 {
        Some(57)
    } else if is_user && cr3 & CR3_LAM_U48 != 0 {
        Some(48)
    } else if is_user || !cr4.contains(Cr4::LAM_SUP) {
        None
    } else if cr4.contains(Cr4::LA57) {
        Some(57)
    } else {
        Some(48)
    }
}

/// The address without metadata: bits 62 to `width` become copies of bit `width - 1`. The canonical check that follows
/// compares that bit with bit 63.
#[must_use]
pub const fn mask(cr3: u64, cr4: Cr4, pointer: u64) -> u64 {
    const BIT_63: u64 = 1 << 63;
    match width(cr3, cr4, pointer) {
        None => pointer,
        Some(width) => pointer & BIT_63 | Gva(pointer).canonical(width).0 & !BIT_63,
    }
}

/// What a data access makes of a linear address in the processor's current state.
#[must_use]
pub const fn data_address(core: &Core, pointer: Gva) -> Gva {
    match core.bitness() {
        Bitness::Bits64 => Gva(mask(core.cr3, core.cr4, pointer.0)),
        Bitness::Bits16 | Bitness::Bits32 => pointer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every setting against pointers of both halves with all metadata bits set, and with bit 56 or 47 unlike bit 63:
    /// what is left, and whether the check at the paging mode's own width then passes.
    #[test]
    fn settings_and_pointers() {
        const LA57: u64 = Cr4::LA57.bits();
        const SUP: u64 = Cr4::LAM_SUP.bits();
        const USER: u64 = 0x7fff_0000_1234_5678;
        const USER_56: u64 = 0x7e7f_ffff_1234_5678;
        const SUPERVISOR: u64 = 0x8000_8000_1234_5678;
        for (cr3, cr4, pointer, masked, canonical) in [
            (0, 0, USER, USER, false),
            (CR3_LAM_U48, 0, USER, 0x0000_0000_1234_5678, true),
            (CR3_LAM_U48, LA57, USER, 0x0000_0000_1234_5678, true),
            (CR3_LAM_U57, 0, USER, 0x7fff_0000_1234_5678, false),
            (CR3_LAM_U57 | CR3_LAM_U48, LA57, USER_56, 0x007f_ffff_1234_5678, true),
            (CR3_LAM_U57 | CR3_LAM_U48, 0, USER_56, 0x007f_ffff_1234_5678, false),
            (CR3_LAM_U48, 0, USER_56, 0x7fff_ffff_1234_5678, false),
            (CR3_LAM_U48, SUP, SUPERVISOR, 0xffff_8000_1234_5678, true),
            (CR3_LAM_U48, 0, SUPERVISOR, SUPERVISOR, false),
            (0, SUP | LA57, SUPERVISOR, 0x8000_8000_1234_5678, false),
            (0, SUP | LA57, 0x8100_8000_1234_5678, 0xff00_8000_1234_5678, true),
            (0, SUP, USER, USER, false),
            (0, SUP, 0x8000_0000_1234_5678, 0x8000_0000_1234_5678, false),
        ] {
            let cr4 = Cr4::from_bits_truncate(cr4);
            let width = if cr4.contains(Cr4::LA57) { 57 } else { 48 };
            let made = mask(cr3, cr4, pointer);
            assert_eq!((made, Gva(made).is_canonical(width)), (masked, canonical), "{cr3:#x} {cr4:?} {pointer:#x}");
        }
    }
}
