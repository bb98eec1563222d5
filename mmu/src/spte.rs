//! Shadow PTEs: the entries that L0 writes and hardware walks, in the paging format (shadow paging, nested paging) or
//! the EPT format, with KVM's software bits (KVM v5.17 spte.h, spte.c `make_spte`).
//!
//! Everything here is pure: whether a leaf may be writable now, or large, was decided before. Left out: the L1TF mask on
//! entries that are not present, memory encryption, memory types other than write-back.

use crate::memslot::HostAccess;
use crate::role::{ACCESS_EXEC, ACCESS_USER, ACCESS_WRITE, PageRole};
use crate::state::{NxHugePages, Pml, TdpMode};
use sim_core::addr::{ENTRY_FRAME_MASK, Gfn, Gpa, Hfn, Hpa, Level};

/// KVM's "present in the MMU's sense" marker, bit 11.
pub const MMU_PRESENT: u64 = 1 << 11;
/// The value that marks an entry which the TDP MMU is taking apart (`REMOVED_SPTE`): not present, and no MMIO entry.
pub const REMOVED: u64 = 0x5a0;
/// A large page.
const LARGE: u64 = 1 << 7;
/// `SPTE_TDP_AD_MASK`: how accessed and dirty bits below this entry work.
const AD_SHIFT: u32 = 52;
const AD_MASK: u64 = 3 << AD_SHIFT;
/// `SHADOW_ACC_TRACK_SAVED_BITS`: readable and executable of an entry whose access is tracked (EPT only).
const SAVED_SHIFT: u32 = 54;
const SAVED_MASK: u64 = 0x5;
const EPT_RWX: u64 = 0x7;
/// Bits of an MMIO entry's generation (`MMIO_SPTE_GEN_MASK`): 8 low ones from bit 3, 11 high ones from bit 52.
pub const MMIO_GENERATION_BITS: u32 = 19;
const MMIO_LOW: u64 = 0xff;
const MMIO_LOW_SHIFT: u32 = 3;
const MMIO_HIGH_SHIFT: u32 = 52;
/// An EPT entry that is writable and executable and not readable is a misconfiguration (SDM 3C 28.3.3.1).
const EPT_MISCONFIGURED: u64 = 0x6;

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

/// How accessed and dirty bits of an entry work (`SPTE_TDP_AD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdType {
    /// Hardware sets them.
    Enabled,
    /// Hardware does not: access is tracked by taking permissions away.
    Disabled,
    /// Hardware sets them, but writes are logged by write protection, for PML is off while L2 runs (c3bb9a20834f).
    WriteProtectOnly,
}

impl AdType {
    /// What a shadow page's entries use (`make_spte`, `kvm_mmu_page_ad_need_write_protect`).
    #[must_use]
    pub const fn of(role: PageRole, pml: Pml) -> Self {
        if role.ad_disabled() == 1 {
            Self::Disabled
        } else if matches!(pml, Pml::On) && role.guest_mode() == 1 {
            Self::WriteProtectOnly
        } else {
            Self::Enabled
        }
    }

    const fn bits(self) -> u64 {
        (match self {
            Self::Enabled => 0,
            Self::Disabled => 1,
            Self::WriteProtectOnly => 2,
        }) << AD_SHIFT
    }

    /// What an entry says.
    #[must_use]
    pub const fn of_entry(spte: u64) -> Self {
        match (spte & AD_MASK) >> AD_SHIFT {
            0 => Self::Enabled,
            1 => Self::Disabled,
            _ => Self::WriteProtectOnly,
        }
    }

    /// Whether hardware keeps accessed and dirty bits (`spte_ad_enabled`).
    #[must_use]
    pub const fn has_bits(self) -> bool {
        !matches!(self, Self::Disabled)
    }
}

/// Bits that have one meaning and two places.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    /// Hardware may write.
    pub write: u64,
    /// Accessed.
    pub accessed: u64,
    /// Dirty.
    pub dirty: u64,
    /// The host lets the page be written (`shadow_host_writable_mask`).
    pub host_writable: u64,
    /// The MMU lets the page be written; W may be off for dirty logging alone (`shadow_mmu_writable_mask`).
    pub mmu_writable: u64,
}

/// Why a leaf is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The guest is accessing the page.
    Access,
    /// It may soon (`prefetch`): the entry must not claim that the page was accessed.
    Prefetch,
}

/// What becomes of MMU-writable when the host makes a page read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// It goes.
    Taken,
    /// It stays, beside a host-writable bit that is gone (before f082d86ea685).
    Kept,
}

/// Whether a new leaf may be writable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    /// If the access mask has it.
    Yes,
    /// Not even then: a shadowed table lives there.
    No,
}

/// What a leaf is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The host frame, aligned to the level.
    pub frame: Hfn,
    /// The level of the table that it is in.
    pub level: Level,
    /// What guest and slot allow.
    pub access: u32,
    /// What the host allows.
    pub host: HostAccess,
    /// Whether it may be writable now.
    pub write: Writable,
    /// How accessed and dirty bits work.
    pub ad: AdType,
    /// Whether executable large pages are forbidden.
    pub nx_huge: NxHugePages,
    /// Why it is made.
    pub purpose: Purpose,
}

impl Format {
    /// Where the bits are.
    #[must_use]
    pub const fn bits(self) -> Bits {
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

    /// The access mask that an entry grants hardware now, whatever is saved in it.
    #[must_use]
    pub fn granted(self, spte: u64) -> u32 {
        let has = |bit: u64, mask: u32| if spte & bit != 0 { mask } else { 0 };
        match self {
            Self::Paging => {
                if spte & 1 == 0 {
                    return 0;
                }
                has(2, ACCESS_WRITE) | has(4, ACCESS_USER) | if spte >> 63 == 0 { ACCESS_EXEC } else { 0 }
            }
            Self::Ept => has(1, ACCESS_USER) | has(2, ACCESS_WRITE) | has(4, ACCESS_EXEC),
        }
    }

    /// An entry that points to a table, all permissions granted: the leaves restrict (`make_nonleaf_spte`).
    #[must_use]
    pub const fn non_leaf(self, table: Hpa, ad: AdType) -> u64 {
        let kind = match ad {
            AdType::Disabled => AdType::Disabled.bits(),
            AdType::Enabled | AdType::WriteProtectOnly => self.bits().accessed,
        };
        // The paging format has no such marker: bits 52 and up are reserved in PAE tables.
        let kind = if matches!(self, Self::Paging) { kind & !AD_MASK } else { kind };
        table.0 | MMU_PRESENT | 0x7 | kind
    }

    /// A leaf (`make_spte`).
    #[must_use]
    pub fn leaf(self, leaf: &Leaf) -> u64 {
        let bits = self.bits();
        let large = leaf.level > Level::L1;
        let mut access = leaf.access;
        if large && leaf.nx_huge == NxHugePages::On {
            access &= !ACCESS_EXEC;
        }
        let may_write = access & ACCESS_WRITE != 0 && leaf.host == HostAccess::Writable && leaf.write == Writable::Yes;
        if !may_write {
            access &= !ACCESS_WRITE;
        }
        let mut spte = leaf.frame.base().0 | self.permission(access) | MMU_PRESENT;
        if self == Self::Ept {
            spte |= 6 << 3 | 1 << 6 | leaf.ad.bits();
        }
        if large {
            spte |= LARGE;
        }
        if leaf.host == HostAccess::Writable {
            spte |= bits.host_writable;
        }
        if may_write {
            spte |= bits.mmu_writable;
        }
        if leaf.ad.has_bits() {
            spte |= bits.accessed | if may_write { bits.dirty } else { 0 };
        }
        match leaf.purpose {
            Purpose::Access => spte,
            Purpose::Prefetch => self.tracked(spte),
        }
    }

    /// The entry as if its page had not been accessed (`mark_spte_for_access_track`): without the accessed bit, or, where
    /// hardware keeps none, without permissions, which are saved.
    #[must_use]
    pub const fn tracked(self, spte: u64) -> u64 {
        if AdType::of_entry(spte).has_bits() {
            return spte & !self.bits().accessed;
        }
        if self.is_tracked(spte) {
            return spte;
        }
        (spte & !EPT_RWX & !(SAVED_MASK << SAVED_SHIFT)) | (spte & SAVED_MASK) << SAVED_SHIFT
    }

    /// Whether permissions are saved because access is tracked (`is_access_track_spte`).
    #[must_use]
    pub const fn is_tracked(self, spte: u64) -> bool {
        matches!(self, Self::Ept) && !AdType::of_entry(spte).has_bits() && is_present(spte) && spte & EPT_RWX == 0
    }

    /// The entry with its saved permissions given back (`restore_acc_track_spte`). Write permission is not among them:
    /// MMU-writable says whether it may come back.
    #[must_use]
    pub const fn restored(self, spte: u64) -> u64 {
        let saved = spte >> SAVED_SHIFT & SAVED_MASK;
        spte & !EPT_RWX & !(SAVED_MASK << SAVED_SHIFT) | saved
    }

    /// Whether the page has been accessed since that was last cleared (`is_accessed_spte`).
    #[must_use]
    pub const fn is_accessed(self, spte: u64) -> bool {
        if AdType::of_entry(spte).has_bits() { spte & self.bits().accessed != 0 } else { !self.is_tracked(spte) }
    }

    /// Whether the page has been written since that was last cleared (`is_dirty_spte`): without dirty bits, whether it
    /// can be.
    #[must_use]
    pub const fn is_dirty(self, spte: u64) -> bool {
        if AdType::of_entry(spte).has_bits() { spte & self.bits().dirty != 0 } else { self.is_writable(spte) }
    }

    /// The entry without its dirty bit, if it has one.
    #[must_use]
    pub const fn clean(self, spte: u64) -> u64 {
        if AdType::of_entry(spte).has_bits() { spte & !self.bits().dirty } else { spte }
    }

    /// Whether a change of a present entry owes a flush (`mmu_spte_update`): the MMU's promise of write access is taken
    /// back, or an accessed or dirty mark is cleared, which hardware may still hold.
    #[must_use]
    pub const fn update_owes_flush(self, old: u64, new: u64) -> bool {
        if !is_present(old) {
            return false;
        }
        (self.is_mmu_writable(old) && !self.is_writable(new))
            || (self.is_accessed(old) && !self.is_accessed(new))
            || (self.is_dirty(old) && !self.is_dirty(new))
    }

    /// Whether hardware may write through the entry.
    #[must_use]
    pub const fn is_writable(self, spte: u64) -> bool {
        spte & self.bits().write != 0
    }

    /// Whether the entry may become writable without the MMU lock (`is_mmu_writable_spte`).
    #[must_use]
    pub const fn is_mmu_writable(self, spte: u64) -> bool {
        spte & self.bits().mmu_writable != 0
    }

    /// The entry without write permission (`spte_write_protect`).
    #[must_use]
    pub const fn write_protected(self, spte: u64, why: ProtectFor) -> u64 {
        let mmu_writable = match why {
            ProtectFor::ShadowedTable => self.bits().mmu_writable,
            ProtectFor::DirtyLog => 0,
        };
        spte & !(self.bits().write | mmu_writable)
    }

    /// The entry after the host made its page read-only and moved it (`kvm_mmu_changed_pte_notifier_make_spte`).
    #[must_use]
    pub const fn with_read_only_page(self, spte: u64, frame: Hfn, promise: Promise) -> u64 {
        let bits = self.bits();
        let promised = if matches!(promise, Promise::Taken) { bits.mmu_writable } else { 0 };
        let spte = spte & !ENTRY_FRAME_MASK & !(bits.write | bits.host_writable | promised);
        self.tracked(spte | frame.base().0)
    }

    /// The entry with execute permission (`make_spte_executable`).
    pub(crate) const fn executable(self, spte: u64) -> u64 {
        match self {
            Self::Paging => spte & !(1 << 63),
            Self::Ept => spte | 1 << 2,
        }
    }

    /// Whether W, MMU-writable and host-writable are a legal combination (kvm-mmu.md A.7.7;
    /// `check_spte_writable_invariants`, 5f16bcac6e28).
    #[must_use]
    pub const fn is_legal(self, spte: u64) -> bool {
        let bits = self.bits();
        let (write, mmu, host) =
            (spte & bits.write != 0, spte & bits.mmu_writable != 0, spte & bits.host_writable != 0);
        (!mmu || host) && (!write || mmu)
    }

    /// An entry for an address that no slot backs (`make_mmio_spte`), none if no such entry can be made: paging entries
    /// need a reserved bit, and with 52 physical-address bits there is none (`kvm_mmu_reset_all_pte_masks`).
    #[must_use]
    pub const fn mmio(self, gfn: Gfn, access: u32, generation: u64, maxphyaddr: u32) -> Option<u64> {
        let value = match self {
            Self::Ept => EPT_MISCONFIGURED,
            Self::Paging if maxphyaddr >= 52 => return None,
            Self::Paging => 1 << 51 | 1 | (access & (ACCESS_WRITE | ACCESS_USER)) as u64 & 0x6,
        };
        let low = (generation & MMIO_LOW) << MMIO_LOW_SHIFT;
        let high = (generation >> 8 & ((1 << (MMIO_GENERATION_BITS - 8)) - 1)) << MMIO_HIGH_SHIFT;
        Some(value | low | high | gfn.base().0)
    }

    /// Whether it is one (`is_mmio_spte`).
    #[must_use]
    pub const fn is_mmio(self, spte: u64) -> bool {
        match self {
            Self::Ept => spte & EPT_RWX == EPT_MISCONFIGURED && spte & MMU_PRESENT == 0,
            Self::Paging => spte & (1 << 51 | 1) == (1 << 51 | 1) && spte & MMU_PRESENT == 0,
        }
    }

    /// The access mask of an MMIO entry (`get_mmio_spte_access`): the EPT format has no room for one.
    #[must_use]
    pub const fn mmio_access(self, spte: u64) -> u32 {
        match self {
            Self::Ept => 0,
            Self::Paging => (spte & (ACCESS_WRITE | ACCESS_USER) as u64) as u32,
        }
    }

    /// The guest frame of an MMIO entry (`get_mmio_spte_gfn`).
    #[must_use]
    pub const fn mmio_gfn(self, spte: u64) -> Gfn {
        let marker = match self {
            Self::Ept => 0,
            Self::Paging => 1 << 51,
        };
        Gpa(spte & ENTRY_FRAME_MASK & !marker).frame()
    }
}

/// The generation of an MMIO entry (`get_mmio_spte_generation`).
#[must_use]
pub const fn mmio_generation(spte: u64) -> u64 {
    let high = spte >> MMIO_HIGH_SHIFT & ((1 << (MMIO_GENERATION_BITS - 8)) - 1);
    spte >> MMIO_LOW_SHIFT & MMIO_LOW | high << 8
}

/// Why an entry loses its write permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectFor {
    /// A shadowed table lives in the page: only L0 may give it back, so MMU-writable goes too (`pt_protect`).
    ShadowedTable,
    /// Writes are logged: the fast path may give it back.
    DirtyLog,
}

/// `is_shadow_present_pte`.
#[must_use]
pub const fn is_present(spte: u64) -> bool {
    spte & MMU_PRESENT != 0
}

/// Whether an entry of a table at this level maps memory (`is_last_spte`).
#[must_use]
pub const fn is_leaf(spte: u64, level: Level) -> bool {
    matches!(level, Level::L1) || spte & LARGE != 0
}

/// A large leaf's entry as one of a 4 KiB page.
pub(crate) const fn small(spte: u64) -> u64 {
    spte & !LARGE
}

/// The frame that an entry names.
#[must_use]
pub const fn frame(spte: u64) -> Hfn {
    Hpa(spte & ENTRY_FRAME_MASK).frame()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Format; 2] = [Format::Paging, Format::Ept];

    fn leaf(access: u32) -> Leaf {
        Leaf {
            frame: Hfn(0x5),
            level: Level::L1,
            access,
            host: HostAccess::Writable,
            write: Writable::Yes,
            ad: AdType::Enabled,
            nx_huge: NxHugePages::Off,
            purpose: Purpose::Access,
        }
    }

    /// SDM 3A table 4-20 and 3C table 28-6: what hardware sees in each entry.
    #[test]
    fn hardware_bits_follow_the_access_mask() {
        for access in 0..8 {
            let has = |bit: u32| u64::from(access & bit != 0);
            let paging = Format::Paging.leaf(&leaf(access));
            assert_eq!(paging & 7, 1 | has(ACCESS_WRITE) << 1 | has(ACCESS_USER) << 2);
            assert_eq!(paging >> 63, 1 - has(ACCESS_EXEC));
            let ept = Format::Ept.leaf(&leaf(access));
            assert_eq!(ept & 7, has(ACCESS_USER) | has(ACCESS_WRITE) << 1 | has(ACCESS_EXEC) << 2);
            assert_eq!((frame(paging), frame(ept)), (Hfn(5), Hfn(5)));
            assert_eq!((Format::Paging.granted(paging), Format::Ept.granted(ept)), (access, access));
        }
    }

    /// kvm-mmu.md A.7.7: the legal combinations of host-writable, MMU-writable and W, over every leaf there is.
    #[test]
    fn every_leaf_has_legal_writable_bits() {
        let mut cases = 0;
        for format in FORMATS {
            for access in 0..8 {
                for host in [HostAccess::Writable, HostAccess::ReadOnly] {
                    for write in [Writable::Yes, Writable::No] {
                        for ad in [AdType::Enabled, AdType::Disabled, AdType::WriteProtectOnly] {
                            let spte = format.leaf(&Leaf { host, write, ad, ..leaf(access) });
                            assert!(format.is_legal(spte));
                            assert!(format.is_legal(format.write_protected(spte, ProtectFor::DirtyLog)));
                            assert!(format.is_legal(format.write_protected(spte, ProtectFor::ShadowedTable)));
                            assert!(format.is_legal(format.with_read_only_page(spte, Hfn(9), Promise::Taken)));
                            cases += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(cases, 2 * 8 * 2 * 2 * 3);
        let bits = Format::Ept.bits();
        assert!(!Format::Ept.is_legal(bits.write) && !Format::Ept.is_legal(bits.mmu_writable));
    }

    /// Access tracking without accessed bits takes the permissions away and gives back all but write.
    #[test]
    fn tracked_entries_come_back() {
        for access in 0..8 {
            let spte = Format::Ept.leaf(&Leaf { ad: AdType::Disabled, ..leaf(access) });
            let tracked = Format::Ept.tracked(spte);
            assert_eq!(Format::Ept.granted(tracked), 0);
            assert!(!Format::Ept.is_accessed(tracked));
            assert_eq!(Format::Ept.tracked(tracked), tracked);
            let back = Format::Ept.restored(tracked);
            assert_eq!(Format::Ept.granted(back), access & !ACCESS_WRITE);
            assert_eq!(Format::Ept.is_mmu_writable(back), access & ACCESS_WRITE != 0);
        }
        for format in FORMATS {
            let spte = format.leaf(&Leaf { purpose: Purpose::Prefetch, ..leaf(7) });
            assert!(!format.is_accessed(spte) && format.granted(spte) == 7);
        }
    }

    /// A.8.2: an MMIO entry gives back its frame and 19 bits of generation, and hardware must fault on it.
    #[test]
    fn mmio_entries_carry_frame_and_generation() {
        for format in FORMATS {
            for generation in [0, 1, 0xff, 0x100, 0x7ffff, 0x80000] {
                let spte = format.mmio(Gfn(0xfee00), 7, generation, 40).expect("a reserved bit");
                assert!(format.is_mmio(spte) && !is_present(spte));
                assert_eq!(format.mmio_gfn(spte), Gfn(0xfee00));
                assert_eq!(mmio_generation(spte), generation & 0x7ffff);
            }
            assert!(!format.is_mmio(format.leaf(&leaf(7))) && !format.is_mmio(REMOVED) && !format.is_mmio(0));
        }
        assert_eq!(Format::Paging.mmio(Gfn(1), 7, 0, 52), None);
        assert!(Format::Ept.mmio(Gfn(1), 7, 0, 52).is_some());
    }

    /// NX huge pages: a large leaf loses execute, a small one does not (b8e8c8303ff2).
    #[test]
    fn large_leaves_lose_execute() {
        for format in FORMATS {
            for (level, nx_huge, executable) in [
                (Level::L1, NxHugePages::On, true),
                (Level::L2, NxHugePages::Off, true),
                (Level::L2, NxHugePages::On, false),
            ] {
                let spte = format.leaf(&Leaf { frame: Hfn(0x200), level, nx_huge, ..leaf(7) });
                assert_eq!(format.granted(spte) & ACCESS_EXEC != 0, executable);
                assert!(is_leaf(spte, level));
            }
        }
    }
}
