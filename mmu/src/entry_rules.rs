//! Reserved bits of a guest's entries (KVM v5.17 `__reset_rsvds_bits_mask`, `__reset_rsvds_bits_mask_ept`): decided at each
//! look from the MMU's stored role, the limits of the CPUID stored beside it, and what does not change while a VM lives.
//!
//! Left out: EPT pages of 1 GiB that the host does not offer, which is a capability of its own.

use crate::cpuid::{EntryLimits, GiantPages};
use crate::role::ExtRole;
use crate::state::{Mmu, Paging};
use serde::{Deserialize, Serialize};
use sim_core::addr::{ENTRY_FRAME_MASK, Level};

const LARGE: u64 = 1 << 7;
/// The global flag of a leaf.
const GLOBAL: u64 = 1 << 8;

/// Bit 8 of level-4 and level-5 entries, by the guest's CPUID vendor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UpperGlobal {
    /// Intel ignores it (SDM 3A table 4-14).
    #[default]
    Ignored,
    /// AMD reserves it there, and ignores it in the PDPEs and PDEs below (APM2 5.3.3, KVM 5ecad245de2a).
    Reserved,
}

/// EPT entries that allow only execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExecuteOnly {
    /// L1's IA32_VMX_EPT_VPID_CAP offers them.
    #[default]
    Offered,
    /// It does not: they are a misconfiguration.
    Reserved,
}

/// What a guest's entries may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EntryRules {
    /// See [`UpperGlobal`].
    pub upper_global: UpperGlobal,
    /// See [`ExecuteOnly`].
    pub execute_only: ExecuteOnly,
}

impl EntryRules {
    /// Those of an Intel guest, whose L1 is offered everything.
    pub const INTEL: Self = Self { upper_global: UpperGlobal::Ignored, execute_only: ExecuteOnly::Offered };
}

/// Whether an entry has a bit set that must not be (kvm-mmu.md A.2.1, A.2.2).
pub(crate) fn reserved(rules: EntryRules, mmu: &Mmu, level: Level, entry: u64) -> bool {
    let large = entry & LARGE != 0 && level > Level::L1;
    match mmu.paging {
        Paging::Ept => ept_bits(mmu.limits, level, large) & entry != 0 || is_misconfigured(rules, level, large, entry),
        // Bits 16:13 of a 4 MiB entry are address bits 35:32; KVM always assumes PSE-36.
        Paging::Paging32 => {
            let pse = mmu.cpu_role.ext.contains(ExtRole::CR4_PSE);
            pse && large && level == Level::L2 && entry & 0x003e_0000 != 0
        }
        _ => long_bits(rules, mmu, level, large) & entry != 0,
    }
}

/// Bits from MAXPHYADDR up to `top`.
const fn above(limits: EntryLimits, top: u32) -> u64 {
    ((1 << top) - 1) & !((1 << limits.maxphyaddr) - 1)
}

const fn misalignment(level: Level) -> u64 {
    (level.bytes() - 1) & ENTRY_FRAME_MASK
}

fn ept_bits(limits: EntryLimits, level: Level, large: bool) -> u64 {
    let shape = match (level, large) {
        (Level::L5 | Level::L4, _) => 0xf8,
        (Level::L3 | Level::L2, false) => 0x78,
        (Level::L3 | Level::L2, true) => misalignment(level),
        _ => 0,
    };
    above(limits, 52) | shape
}

/// Writable and not readable, a memory type that does not exist, or only executable where that is not offered.
fn is_misconfigured(rules: EntryRules, level: Level, large: bool, entry: u64) -> bool {
    let leaf = level == Level::L1 || (large && level <= Level::L3);
    let execute_only = rules.execute_only == ExecuteOnly::Reserved && entry & 7 == 4;
    matches!(entry & 7, 2 | 6) || execute_only || (leaf && matches!(entry >> 3 & 7, 2 | 3 | 7))
}

fn long_bits(rules: EntryRules, mmu: &Mmu, level: Level, large: bool) -> u64 {
    let global = if rules.upper_global == UpperGlobal::Reserved { GLOBAL } else { 0 };
    let giant = if mmu.limits.giant == GiantPages::Reserved { LARGE } else { 0 };
    let nx = if mmu.cpu_role.base.efer_nx() == 1 { 0 } else { 1 << 63 };
    let high = above(mmu.limits, if mmu.root_level == 3 { 63 } else { 52 });
    let shape = match (level, large) {
        (Level::L5 | Level::L4, _) => LARGE | global,
        // Bit 12 of a large page is PAT.
        (Level::L3, true) => giant | misalignment(level) & !(1 << 12),
        (Level::L2, true) => misalignment(level) & !(1 << 12),
        _ => 0,
    };
    high | nx | shape
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::{CpuRole, PageRole};
    use sim_core::event::MmuId;

    const PLAIN: EntryRules = EntryRules::INTEL;
    const AMD: EntryRules = EntryRules { upper_global: UpperGlobal::Reserved, ..PLAIN };
    const READABLE: EntryRules = EntryRules { execute_only: ExecuteOnly::Reserved, ..PLAIN };
    const LIMITS: EntryLimits = EntryLimits { maxphyaddr: 40, giant: GiantPages::Exist };

    /// Bits 51:40 and 62:40.
    const HIGH: u64 = 0x000f_ff00_0000_0000;
    const HIGH_PAE: u64 = 0x7fff_ff00_0000_0000;
    const XD: u64 = 1 << 63;

    fn mmu(paging: Paging, root_level: u8, nx: bool, pse: bool) -> Mmu {
        let base = if nx { PageRole(0).with_efer_nx(1) } else { PageRole(0) };
        let ext = if pse { ExtRole::CR4_PSE } else { ExtRole::empty() };
        Mmu { paging, root_level, cpu_role: CpuRole { base, ext }, ..Mmu::new(MmuId::Root, LIMITS) }
    }

    /// Which single bits make a legal entry illegal.
    fn mask(rules: EntryRules, mmu: &Mmu, level: Level, base: u64) -> u64 {
        assert!(!reserved(rules, mmu, level, base), "{base:#x} itself");
        (0..64).map(|bit| 1 << bit).filter(|bit| base & bit == 0 && reserved(rules, mmu, level, base | bit)).sum()
    }

    /// SDM 3A tables 4-8 to 4-20, APM2 5.3.3; `__reset_rsvds_bits_mask` (v5.17), kvm-mmu.md A.2.1.
    #[test]
    fn ordinary_entries() {
        let long = mmu(Paging::Paging64, 5, true, false);
        let limits = EntryLimits { giant: GiantPages::Reserved, ..LIMITS };
        let small = Mmu { limits, ..long.clone() };
        let no_nx = mmu(Paging::Paging64, 4, false, false);
        let pae = mmu(Paging::Paging64, 3, true, false);
        let pse = mmu(Paging::Paging32, 2, false, true);
        let legacy = mmu(Paging::Paging32, 2, false, false);
        let rows = [
            (&long, PLAIN, Level::L5, 1, HIGH | 0x80),
            (&long, PLAIN, Level::L4, 1, HIGH | 0x80),
            (&long, AMD, Level::L5, 1, HIGH | 0x180),
            (&long, AMD, Level::L4, 1, HIGH | 0x180),
            (&long, AMD, Level::L3, 1, HIGH),
            (&long, AMD, Level::L2, 1, HIGH),
            (&long, AMD, Level::L3, 0x81, HIGH | 0x3fff_e000),
            (&long, PLAIN, Level::L3, 1, HIGH),
            (&small, PLAIN, Level::L3, 1, HIGH | 0x80),
            (&small, PLAIN, Level::L2, 0x81, HIGH | 0x1f_e000),
            (&long, PLAIN, Level::L2, 0x81, HIGH | 0x1f_e000),
            (&long, PLAIN, Level::L1, 1, HIGH),
            (&small, PLAIN, Level::L1, 0x81, HIGH),
            (&no_nx, PLAIN, Level::L4, 1, HIGH | 0x80 | XD),
            (&no_nx, PLAIN, Level::L1, 1, HIGH | XD),
            (&pae, AMD, Level::L2, 1, HIGH_PAE),
            (&pae, PLAIN, Level::L2, 0x81, HIGH_PAE | 0x1f_e000),
            (&pse, PLAIN, Level::L2, 0x81, 0x003e_0000),
            (&pse, PLAIN, Level::L2, 1, 0),
            (&legacy, PLAIN, Level::L2, 0x81, 0),
            (&pse, PLAIN, Level::L1, 0x81, 0),
        ];
        for (mmu, rules, level, base, expected) in rows {
            let found = mask(rules, mmu, level, base);
            assert_eq!(found, expected, "{:?} {rules:?} {level:?} {base:#x}: {found:#x}", mmu.paging);
        }
    }

    /// SDM 3C tables 28-1 to 28-6; `__reset_rsvds_bits_mask_ept` (v5.17), kvm-mmu.md A.2.2. The memory type of the large
    /// entries is write-back, 6, which bit 3 makes 7.
    #[test]
    fn ept_entries() {
        let ept = mmu(Paging::Ept, 5, false, false);
        let rows = [
            (Level::L5, 7, HIGH | 0xf8),
            (Level::L4, 7, HIGH | 0xf8),
            (Level::L3, 7, HIGH | 0x78),
            (Level::L2, 7, HIGH | 0x78),
            (Level::L3, 0xb7, HIGH | 0x3fff_f000 | 8),
            (Level::L2, 0xb7, HIGH | 0x1f_f000 | 8),
            (Level::L1, 0x37, HIGH | 8),
            (Level::L1, 0xb7, HIGH | 8),
        ];
        for (level, base, expected) in rows {
            for rules in [PLAIN, AMD, READABLE] {
                let found = mask(rules, &ept, level, base);
                assert_eq!(found, expected, "{rules:?} {level:?} {base:#x}: {found:#x}");
            }
        }
    }

    /// SDM 3C 28.2.3.1: every combination of read, write and execute permissions and of memory types.
    #[test]
    fn ept_misconfigurations() {
        let ept = mmu(Paging::Ept, 4, false, false);
        for (permissions, memory_type) in (1..8).flat_map(|permissions| (0..8).map(move |kind| (permissions, kind))) {
            for (rules, execute_only) in [(PLAIN, false), (READABLE, true)] {
                let bad = matches!(permissions, 2 | 6) || (execute_only && permissions == 4);
                let found = reserved(rules, &ept, Level::L1, permissions | memory_type << 3);
                let expected = bad || matches!(memory_type, 2 | 3 | 7);
                assert_eq!(found, expected, "{rules:?}: permissions {permissions}, type {memory_type}");
                let table = reserved(rules, &ept, Level::L2, permissions);
                assert_eq!(table, bad, "{rules:?}: permissions {permissions} of a table");
            }
        }
    }
}
