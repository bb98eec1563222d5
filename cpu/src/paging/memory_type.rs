//! Memory types as an attribute of translations: PAT and MTRRs (SDM 3A 11.5.2.2, 11.11, 11.12), EPT's memory type and
//! "ignore PAT" (SDM 3C 28.2.6.2), and the guest's and the host's PAT with nested paging (APM2 15.25.8).
//!
//! Nothing in the model caches data, so a type changes no access; it is told. Left out: the types of references to
//! paging structures (SDM 3A 4.9.1), AMD's extended MTRR fields, and the types that AMD calls CD and WC+, for which UC
//! and WC stand.

use serde::{Deserialize, Serialize};
use sim_core::Hpa;

/// A memory type, with its encoding in PAT, MTRRs and EPT entries (SDM 3A tables 11-8 and 11-10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable.
    Uncacheable = 0,
    /// Write-combining.
    WriteCombining = 1,
    /// Write-through.
    WriteThrough = 4,
    /// Write-protected.
    WriteProtected = 5,
    /// Write-back.
    #[default]
    WriteBack = 6,
    /// UC-: uncacheable unless an MTRR says write-combining. Only in PAT.
    UncacheableMinus = 7,
}

use MemoryType::{Uncacheable, UncacheableMinus, WriteBack, WriteCombining, WriteProtected, WriteThrough};

impl MemoryType {
    /// Every type, in the order of the columns of SDM 3A table 11-7.
    pub const ALL: [Self; 6] = [Uncacheable, UncacheableMinus, WriteCombining, WriteThrough, WriteBack, WriteProtected];

    /// The type with this encoding, if there is one.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Uncacheable),
            1 => Some(WriteCombining),
            4 => Some(WriteThrough),
            5 => Some(WriteProtected),
            6 => Some(WriteBack),
            7 => Some(UncacheableMinus),
            _ => None,
        }
    }

    /// The type with this encoding in a register that lets no other be written; UC for one that can't be there.
    const fn of(bits: u64) -> Self {
        match Self::from_bits(bits) {
            Some(kind) => kind,
            None => Uncacheable,
        }
    }
}

/// The type that entry `index` (0 to 7) of IA32_PAT holds (SDM 3A 11.12.2).
#[must_use]
pub const fn pat_entry(pat: u64, index: u8) -> MemoryType {
    MemoryType::of((pat >> (8 * (index & 7) as u32)) & 7)
}

/// SDM 3A table 11-7: the type that an MTRR type (which is never UC-) and a PAT type give together.
#[must_use]
pub const fn effective(mtrr: MemoryType, pat: MemoryType) -> MemoryType {
    match (mtrr, pat) {
        (_, WriteCombining) | (WriteCombining, UncacheableMinus | WriteBack) | (WriteProtected, UncacheableMinus) => {
            WriteCombining
        }
        (Uncacheable | UncacheableMinus, _)
        | (_, Uncacheable | UncacheableMinus)
        | (WriteCombining, WriteThrough | WriteProtected) => Uncacheable,
        (WriteThrough, WriteBack) | (_, WriteThrough) => WriteThrough,
        (WriteProtected, WriteBack) | (_, WriteProtected) => WriteProtected,
        (WriteBack, WriteBack) => WriteBack,
    }
}

/// APM2 15.25.8: the PAT type that the guest's and the host's give together, which MTRRs then qualify as usual.
#[must_use]
pub const fn nested(guest: MemoryType, host: MemoryType) -> MemoryType {
    match (guest, host) {
        (WriteCombining, _) | (UncacheableMinus | WriteBack, WriteCombining) => WriteCombining,
        (UncacheableMinus, WriteBack | UncacheableMinus) | (WriteBack, UncacheableMinus) => UncacheableMinus,
        (WriteBack, host) => host,
        (WriteThrough, WriteThrough | WriteBack) => WriteThrough,
        (WriteProtected, WriteProtected | WriteBack) => WriteProtected,
        _ => Uncacheable,
    }
}

/// What a second stage says of memory types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StageType {
    /// Nothing: MTRRs and PAT decide.
    #[default]
    Mtrr,
    /// EPT's type takes the place of the MTRRs (SDM 3C 28.2.6.2).
    Ept(MemoryType),
    /// EPT's type alone, the entry's "ignore PAT" bit being set.
    EptAlone(MemoryType),
    /// The host's PAT type, to be combined with the guest's.
    Nested(MemoryType),
}

/// The type of an access to `hpa` whose first stage says `pat`.
#[must_use]
pub const fn combine(mtrrs: &Mtrrs, hpa: Hpa, pat: MemoryType, stage: StageType) -> MemoryType {
    match stage {
        StageType::Mtrr => effective(mtrrs.of(hpa), pat),
        StageType::Ept(kind) => effective(kind, pat),
        StageType::EptAlone(kind) => kind,
        StageType::Nested(host) => effective(mtrrs.of(hpa), nested(pat, host)),
    }
}

/// How many variable ranges there are (IA32_MTRRCAP bits 7:0).
pub const VARIABLE_RANGES: usize = 8;

/// The memory-type range registers, raw (SDM 3A 11.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mtrrs {
    /// IA32_MTRR_DEF_TYPE: type 7:0, FE 10, E 11.
    pub default_type: u64,
    /// IA32_MTRR_FIX64K_00000, FIX16K_80000 and _A0000, FIX4K_C0000 to _F8000, in the order of their addresses.
    pub fixed: [u64; 11],
    /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn.
    pub variable: [(u64, u64); VARIABLE_RANGES],
}

/// All memory is write-back: what firmware leaves.
impl Default for Mtrrs {
    fn default() -> Self {
        Self::WRITE_BACK
    }
}

impl Mtrrs {
    /// All memory is write-back.
    pub const WRITE_BACK: Self =
        Self { default_type: Self::ENABLE | 6, fixed: [0; 11], variable: [(0, 0); VARIABLE_RANGES] };
    /// IA32_MTRR_DEF_TYPE.E.
    pub const ENABLE: u64 = 1 << 11;
    /// IA32_MTRR_DEF_TYPE.FE.
    pub const FIXED_ENABLE: u64 = 1 << 10;
    /// IA32_MTRR_PHYSMASKn.V.
    pub const VALID: u64 = 1 << 11;

    /// The type of a physical address (SDM 3A 11.11.4.1). Where ranges overlap, UC goes before all and WT before WB;
    /// of other overlaps, which the manual leaves undefined, UC is made.
    #[must_use]
    pub const fn of(&self, hpa: Hpa) -> MemoryType {
        if self.default_type & Self::ENABLE == 0 {
            return Uncacheable;
        }
        if hpa.0 < 0x10_0000 && self.default_type & Self::FIXED_ENABLE != 0 {
            return self.fixed_type(hpa.0);
        }
        let mut found: Option<MemoryType> = None;
        let mut range = 0;
        while range < VARIABLE_RANGES {
            let (base, mask) = self.variable[range];
            if mask & Self::VALID != 0 && (hpa.0 ^ base) & mask & !0xfff == 0 {
                found = Some(overlap(found, MemoryType::of(base & 0xff)));
            }
            range += 1;
        }
        match found {
            Some(kind) => kind,
            None => MemoryType::of(self.default_type & 0xff),
        }
    }

    /// SDM 3A table 11-9: eight ranges of 64 KiB, sixteen of 16 KiB, sixty-four of 4 KiB, a byte each.
    const fn fixed_type(&self, address: u64) -> MemoryType {
        let (register, range) = match address {
            ..0x8_0000 => (0, address >> 16),
            0x8_0000..0xc_0000 => (1 + ((address - 0x8_0000) >> 17), (address >> 14) & 7),
            _ => (3 + ((address - 0xc_0000) >> 15), (address >> 12) & 7),
        };
        MemoryType::of((self.fixed[register as usize] >> (8 * range)) & 0xff)
    }
}

const fn overlap(found: Option<MemoryType>, kind: MemoryType) -> MemoryType {
    match (found, kind) {
        (None, kind) => kind,
        (Some(WriteThrough | WriteBack), WriteThrough) | (Some(WriteThrough), WriteBack) => WriteThrough,
        (Some(WriteBack), WriteBack) => WriteBack,
        (Some(WriteCombining), WriteCombining) => WriteCombining,
        (Some(WriteProtected), WriteProtected) => WriteProtected,
        _ => Uncacheable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(kind: MemoryType) -> &'static str {
        match kind {
            Uncacheable => "UC",
            UncacheableMinus => "UC-",
            WriteCombining => "WC",
            WriteThrough => "WT",
            WriteBack => "WB",
            WriteProtected => "WP",
        }
    }

    /// SDM 3A table 11-7, whole; columns as in [`MemoryType::ALL`].
    #[test]
    fn table_11_7() {
        for (mtrr, row) in [
            (Uncacheable, "UC UC WC UC UC UC"),
            (WriteCombining, "UC WC WC UC WC UC"),
            (WriteThrough, "UC UC WC WT WT WP"),
            (WriteProtected, "UC WC WC WT WP WP"),
            (WriteBack, "UC UC WC WT WB WP"),
        ] {
            let made: Vec<_> = MemoryType::ALL.into_iter().map(|pat| letters(effective(mtrr, pat))).collect();
            assert_eq!(made.join(" "), row, "{mtrr:?}");
        }
    }

    /// APM2 15.25.8: one row a guest type, columns the host's; write-back on one side leaves the other's type.
    #[test]
    fn guest_and_host_pat() {
        for (guest, row) in [
            (Uncacheable, "UC UC UC UC UC UC"),
            (UncacheableMinus, "UC UC- WC UC UC- UC"),
            (WriteCombining, "WC WC WC WC WC WC"),
            (WriteThrough, "UC UC UC WT WT UC"),
            (WriteBack, "UC UC- WC WT WB WP"),
            (WriteProtected, "UC UC UC UC WP WP"),
        ] {
            let made: Vec<_> = MemoryType::ALL.into_iter().map(|host| letters(nested(guest, host))).collect();
            assert_eq!(made.join(" "), row, "{guest:?}");
        }
    }

    /// SDM 3A 11.12.4: the reset value of IA32_PAT.
    #[test]
    fn pat_at_reset() {
        let entries: Vec<_> = (0..8).map(|index| letters(pat_entry(0x0007_0406_0007_0406, index))).collect();
        assert_eq!(entries.join(" "), "WB WT UC- UC WB WT UC- UC");
    }

    /// SDM 3A 11.11.2.1 and 11.11.4.1: enables, fixed ranges, variable ranges and their overlaps.
    #[test]
    fn mtrrs_by_address() {
        let mut fixed = [0x0606_0606_0606_0606; 11];
        fixed[0] = 0x0000_0000_0000_0400;
        fixed[2] = 0x0100_0000_0000_0000;
        fixed[10] = 0x0500_0000_0000_0006;
        let mut variable = [(0, 0); VARIABLE_RANGES];
        let mask = |bytes: u64| !(bytes - 1) & 0xf_ffff_f000 | Mtrrs::VALID;
        variable[0] = (0x8000_0000, mask(0x1000_0000));
        variable[1] = (0x8000_0000 | 6, mask(0x2000_0000));
        variable[3] = (0xc000_0000 | 6, mask(0x1000_0000));
        variable[4] = (0xc000_0000 | 4, mask(0x10_0000));
        variable[5] = (0xd000_0000 | 1, mask(0x1000_0000) & !Mtrrs::VALID);
        let mtrrs = Mtrrs { default_type: Mtrrs::ENABLE | Mtrrs::FIXED_ENABLE | 5, fixed, variable };
        for (address, kind) in [
            (0x0_0000, Uncacheable),
            (0x1_ffff, WriteThrough),
            (0x8_0000, WriteBack),
            (0xb_ffff, WriteCombining),
            (0xf_8000, WriteBack),
            (0xf_ffff, WriteProtected),
            (0x10_0000, WriteProtected),
            (0x8000_0000, Uncacheable),
            (0x9000_0000, WriteBack),
            (0xc000_0000, WriteThrough),
            (0xc010_0000, WriteBack),
            (0xd000_0000, WriteProtected),
        ] {
            assert_eq!(mtrrs.of(Hpa(address)), kind, "{address:#x}");
        }
        let off = Mtrrs { default_type: 6, ..mtrrs };
        assert_eq!(off.of(Hpa(0x9000_0000)), Uncacheable);
        let no_fixed = Mtrrs { default_type: Mtrrs::ENABLE | 6, ..mtrrs };
        assert_eq!(no_fixed.of(Hpa(0)), WriteBack);
    }
}
