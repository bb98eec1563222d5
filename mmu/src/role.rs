//! Roles: what a shadow page is for, as `union kvm_mmu_page_role` packs it into 32 bits, and what the guest's paging
//! looks like, as `union kvm_mmu_extended_role` adds to it (kvm_host.h, v5.17 and v5.19).
//!
//! Left out: `is_mirror` (TDX). `smm` is modelled with the one value that KVM gives it.

use serde::{Deserialize, Serialize};
use sim_core::addr::Level;
use sim_core::event::RoleWord;
use std::fmt;

/// `ACC_ALL`: execute, write and user.
pub const ACCESS_ALL: u32 = 7;
/// `ACC_EXEC_MASK`.
pub const ACCESS_EXEC: u32 = 1;
/// `ACC_WRITE_MASK`.
pub const ACCESS_WRITE: u32 = 2;
/// `ACC_USER_MASK`.
pub const ACCESS_USER: u32 = 4;

macro_rules! role_bits {
    ($($(#[$doc:meta])* $name:ident / $setter:ident = $shift:literal + $width:literal,)*) => {
        /// `union kvm_mmu_page_role`.
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct PageRole(pub u32);

        impl PageRole {
            /// Every field: name, lowest bit, width.
            pub const FIELDS: &[(&str, u32, u32)] = &[$((stringify!($name), $shift, $width),)*];

            $($(#[$doc])*
            #[must_use]
            pub const fn $name(self) -> u32 {
                self.0 >> $shift & ((1 << $width) - 1)
            }

            #[doc = concat!("The role with another `", stringify!($name), "`, truncated to the field's width.")]
            #[must_use]
            pub const fn $setter(self, value: u32) -> Self {
                let mask = ((1 << $width) - 1) << $shift;
                Self(self.0 & !mask | (value << $shift) & mask)
            })*
        }
    };
}

role_bits! {
    /// The shadow page's level, 1 for a table of 4 KiB leaves; 0 in a CPU role without paging.
    level / with_level = 0 + 4,
    /// The shadowed table has 32-bit entries.
    has_4_byte_gpte / with_has_4_byte_gpte = 4 + 1,
    /// Which part of a table of 32-bit entries is shadowed.
    quadrant / with_quadrant = 5 + 2,
    /// No guest table is shadowed.
    direct / with_direct = 7 + 1,
    /// The AND of the parents' permissions: [`ACCESS_EXEC`], [`ACCESS_WRITE`], [`ACCESS_USER`].
    access / with_access = 8 + 3,
    /// The page is zapped; only its use as a root keeps it alive.
    invalid / with_invalid = 11 + 1,
    /// EFER.NX.
    efer_nx / with_efer_nx = 12 + 1,
    /// CR0.WP.
    cr0_wp / with_cr0_wp = 13 + 1,
    /// CR4.SMEP and not CR0.WP.
    smep_andnot_wp / with_smep_andnot_wp = 14 + 1,
    /// CR4.SMAP and not CR0.WP.
    smap_andnot_wp / with_smap_andnot_wp = 15 + 1,
    /// Entries below may not use hardware accessed and dirty bits.
    ad_disabled / with_ad_disabled = 16 + 1,
    /// The page belongs to L2.
    guest_mode / with_guest_mode = 17 + 1,
    /// A level-5 page whose only entry leads to the shadow of a level-4 table (v5.19).
    passthrough / with_passthrough = 18 + 1,
    /// The vCPU is in SMM; also the memslot address space.
    smm / with_smm = 24 + 8,
}

impl PageRole {
    /// The fields in which a child may differ from its root without being incoherent (kvm-mmu.md A.12 I11).
    pub const PER_PAGE: Self = Self(
        Self(0).with_level(0xf).with_access(7).with_quadrant(3).with_direct(1).with_invalid(1).with_passthrough(1).0,
    );

    /// The fields that KVM's own text of a page shows ([`Self::kvm_text`]).
    pub const IN_KVM_TEXT: Self = Self(
        Self(0)
            .with_level(0xf)
            .with_has_4_byte_gpte(1)
            .with_quadrant(3)
            .with_direct(1)
            .with_access(7)
            .with_invalid(1)
            .with_efer_nx(1)
            .with_ad_disabled(1)
            .0,
    );

    /// The role's level as a paging level, if it is one.
    #[must_use]
    pub const fn page_level(self) -> Option<Level> {
        Level::from_number(self.level() as u8)
    }

    /// Whether the entries of such a page stand for entries of a guest table (`sp_has_gptes`).
    #[must_use]
    pub const fn has_gptes(self) -> bool {
        self.direct() == 0 && self.passthrough() == 0
    }

    /// The word, as events carry it.
    #[must_use]
    pub const fn word(self) -> RoleWord {
        RoleWord(self.0)
    }

    /// The names of the fields in which two roles differ, lowest bit first.
    #[must_use]
    pub fn difference(self, other: Self) -> Vec<&'static str> {
        let xor = self.0 ^ other.0;
        let differs = |&&(_, shift, width): &&(&str, u32, u32)| xor >> shift & ((1u64 << width) - 1) as u32 != 0;
        Self::FIELDS.iter().filter(differs).map(|(name, _, _)| *name).collect()
    }

    /// The set bits as a person reads them, such as `level=4 access=wux efer_nx cr0_wp guest_mode`.
    #[must_use]
    pub fn describe(self) -> String {
        let mut parts = vec![format!("level={}", self.level()), format!("access={}", access_text(self.access()))];
        for (name, shift, width) in Self::FIELDS {
            let value = self.0 >> shift & ((1u64 << width) - 1) as u32;
            match *name {
                "level" | "access" => {}
                "quadrant" if self.has_4_byte_gpte() == 1 => parts.push(format!("quadrant={value}")),
                _ if value != 0 => parts.push((*name).to_owned()),
                _ => {}
            }
        }
        parts.join(" ")
    }

    /// The role as KVM's `kvm_mmu_get_page` trace event prints it: `l4 8-byte q0 direct wux nxe ad` (v6.x formats).
    #[must_use]
    pub fn kvm_text(self) -> String {
        format!(
            "l{} {}-byte q{}{} {}{} {}nxe {}ad",
            self.level(),
            if self.has_4_byte_gpte() == 1 { 4 } else { 8 },
            self.quadrant(),
            if self.direct() == 1 { " direct" } else { "" },
            access_text(self.access()),
            if self.invalid() == 1 { " invalid" } else { "" },
            if self.efer_nx() == 1 { "" } else { "!" },
            if self.ad_disabled() == 1 { "!" } else { "" },
        )
    }
}

/// Access bits as KVM prints them.
#[must_use]
pub const fn access_text(access: u32) -> &'static str {
    ["---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux"][(access & 7) as usize]
}

impl fmt::Debug for PageRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageRole({:#x}: {})", self.0, self.describe())
    }
}

impl fmt::Display for PageRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

bitflags::bitflags! {
    /// `union kvm_mmu_extended_role`, with the field order of v5.17. v5.19 drops `CR0_PG` and `CR4_PAE`; the model
    /// keeps one layout, since no outside interface shows the word.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    pub struct ExtRole: u32 {
        /// The role has been computed: an all-zero role never compares equal.
        const VALID = 1 << 0;
        /// Nested EPT may map execute-only.
        const EXECONLY = 1 << 1;
        /// CR0.PG.
        const CR0_PG = 1 << 2;
        /// CR4.PAE.
        const CR4_PAE = 1 << 3;
        /// CR4.PSE.
        const CR4_PSE = 1 << 4;
        /// CR4.PKE, in long mode.
        const CR4_PKE = 1 << 5;
        /// CR4.SMAP.
        const CR4_SMAP = 1 << 6;
        /// CR4.SMEP.
        const CR4_SMEP = 1 << 7;
        /// CR4.LA57, in long mode.
        const CR4_LA57 = 1 << 8;
        /// EFER.LMA.
        const EFER_LMA = 1 << 9;
    }
}

/// What the guest's paging looks like: `union kvm_mmu_role` up to v5.18, `union kvm_cpu_role` from v5.19.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CpuRole {
    /// The page-role part.
    pub base: PageRole,
    /// The rest.
    pub ext: ExtRole,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kvm-mmu.md A.1.1, the worked constants.
    #[test]
    fn worked_constants() {
        let shadow = PageRole(0).with_level(4).with_access(7).with_efer_nx(1).with_cr0_wp(1);
        let nept = PageRole(0).with_level(4).with_access(7).with_guest_mode(1);
        let nnpt = PageRole(0).with_level(4).with_access(7).with_efer_nx(1);
        for (role, word) in [
            (shadow, 0x3704),
            (shadow.with_guest_mode(1), 0x23704),
            (shadow.with_direct(1), 0x3784),
            (shadow.with_direct(1).with_level(5), 0x3785),
            (nept, 0x20704),
            (nept.with_ad_disabled(1), 0x30704),
            (nnpt.with_smep_andnot_wp(1).with_smap_andnot_wp(1), 0xd704),
            (PageRole(0).with_level(3).with_access(7).with_direct(1), 0x783),
        ] {
            assert_eq!(role.0, word, "{role:?}");
        }
    }

    /// Every field round-trips and touches no other, over its whole range.
    #[test]
    fn fields_are_disjoint_and_cover_what_they_say() {
        let mut seen = 0u32;
        for (name, shift, width) in PageRole::FIELDS {
            let mask = ((1u64 << width) - 1) as u32;
            assert_eq!(seen & (mask << shift), 0, "{name} overlaps");
            seen |= mask << shift;
            assert_eq!(PageRole(mask << shift).difference(PageRole(0)), [*name]);
        }
        assert_eq!(seen, 0xff07_ffff);
    }

    /// The kernel's own rendering of a word seen in a real trace: a level-4 shadow root with root count 0.
    #[test]
    fn kvm_text_matches_the_kernel() {
        assert_eq!(PageRole(0x3701).kvm_text(), "l1 8-byte q0 wux nxe ad");
        assert_eq!(PageRole(0x1782).kvm_text(), "l2 8-byte q0 direct wux nxe ad");
        assert_eq!(PageRole(0x3501).kvm_text(), "l1 8-byte q0 -ux nxe ad");
        assert_eq!(PageRole(0x0783 | 1 << 11 | 1 << 16).kvm_text(), "l3 8-byte q0 direct wux invalid !nxe !ad");
    }
}
