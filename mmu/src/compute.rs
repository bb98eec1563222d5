//! Role computation: registers in, roles out (KVM v5.17 `kvm_calc_*_role`, v5.19 `kvm_calc_cpu_role`).
//!
//! Pure. Every function gives the CPU role and the root role; up to v5.18 the second is the first's base.

use crate::change::{Change, ChangeSet};
use crate::role::{ACCESS_ALL, CpuRole, ExtRole, PageRole};
use crate::state::{AccessedDirty, Config, Nesting, RoleRegs, Smm, TdpMode, View};
use sim_core::arch::control::{Cr0, Cr4, Efer};

/// The CPU role and the root role of one MMU.
pub type Roles = (CpuRole, PageRole);

/// Bits that every role of a vCPU starts from: access, SMM and guest mode.
fn common(view: &View) -> PageRole {
    PageRole(0)
        .with_access(ACCESS_ALL)
        .with_smm(u32::from(view.smm == Smm::Inside))
        .with_guest_mode(u32::from(view.nesting == Nesting::L2))
}

/// What a root's role tells at a point of history: a field that a later commit brought is 0.
fn told(changes: ChangeSet, role: PageRole) -> PageRole {
    type Clear = fn(PageRole) -> PageRole;
    let fields: [(Change, Clear); 4] = [
        (Change::EferNxInRole, |role| role.with_efer_nx(0)),
        (Change::SmepAndnotWp, |role| role.with_smep_andnot_wp(0)),
        (Change::SmapAndnotWp, |role| role.with_smap_andnot_wp(0)),
        (Change::GuestModeInRole, |role| role.with_guest_mode(0)),
    ];
    let missing = fields.into_iter().filter(|(change, _)| !changes.has(*change));
    missing.fold(role, |role, (_, clear)| clear(role))
}

/// Whether a role tells of bits that matter to paging alone. Up to v5.13 it did while paging is off too.
fn tells_paging(changes: ChangeSet, regs: RoleRegs) -> bool {
    regs.cr0.contains(Cr0::PG) || !changes.has(Change::PagingBitsIfPaging)
}

/// `kvm_calc_mmu_role_common`: with EFER.NX and CR0.WP, which count only while paging is on.
fn common_paging(changes: ChangeSet, regs: RoleRegs, view: &View) -> PageRole {
    let role = common(view);
    if !tells_paging(changes, regs) {
        return role;
    }
    role.with_efer_nx(u32::from(regs.efer.contains(Efer::NXE))).with_cr0_wp(u32::from(regs.cr0.contains(Cr0::WP)))
}

/// `kvm_calc_mmu_role_ext`.
fn extended(changes: ChangeSet, regs: RoleRegs) -> ExtRole {
    let mut ext = ExtRole::VALID;
    if tells_paging(changes, regs) {
        let long = regs.efer.contains(Efer::LMA);
        let long_bits = long || !changes.has(Change::LongBitsIfLong);
        for (bit, on) in [
            (ExtRole::CR0_PG, regs.cr0.contains(Cr0::PG)),
            (ExtRole::CR4_PAE, regs.cr4.contains(Cr4::PAE)),
            (ExtRole::CR4_PSE, regs.cr4.contains(Cr4::PSE)),
            (ExtRole::CR4_SMEP, regs.cr4.contains(Cr4::SMEP)),
            (ExtRole::CR4_SMAP, regs.cr4.contains(Cr4::SMAP)),
            (ExtRole::CR4_PKE, long_bits && regs.cr4.contains(Cr4::PKE)),
            (ExtRole::CR4_LA57, long_bits && regs.cr4.contains(Cr4::LA57)),
            (ExtRole::EFER_LMA, long),
        ] {
            ext.set(bit, on);
        }
    }
    ext
}

/// `smep_andnot_wp`, `smap_andnot_wp` and `has_4_byte_gpte` on top of a common role. `ext` is what the andnot bits are
/// taken from, as in KVM: a caller that leaves it empty never gets them.
fn shadow_bits(role: PageRole, regs: RoleRegs, ext: ExtRole) -> PageRole {
    let no_wp = !regs.cr0.contains(Cr0::WP);
    role.with_smep_andnot_wp(u32::from(no_wp && ext.contains(ExtRole::CR4_SMEP)))
        .with_smap_andnot_wp(u32::from(no_wp && ext.contains(ExtRole::CR4_SMAP)))
        .with_has_4_byte_gpte(u32::from(regs.cr0.contains(Cr0::PG) && !regs.cr4.contains(Cr4::PAE)))
}

/// Levels of the tables that shadow this guest: never less than 3, since L0 is a 64-bit kernel.
const fn shadow_level(regs: RoleRegs) -> u32 {
    if !regs.efer.contains(Efer::LMA) {
        3
    } else if regs.cr4.contains(Cr4::LA57) {
        5
    } else {
        4
    }
}

/// `init_kvm_tdp_mmu`'s roles.
#[must_use]
pub fn tdp(config: &Config, changes: ChangeSet, regs: RoleRegs, view: &View) -> Roles {
    let level = u32::from(config.tdp_root_level());
    let base = common_paging(changes, regs, view);
    let tracked = config.tdp == TdpMode::Ept && config.accessed_dirty == AccessedDirty::Tracked;
    let guest = base.with_level(level).with_direct(1).with_ad_disabled(u32::from(tracked));
    let root = if changes.has(Change::TdpRoleConstant) { guest.with_efer_nx(1).with_cr0_wp(1) } else { guest };
    let cpu = if changes.has(Change::CpuRoleSplit) { split_cpu_role(changes, regs, view).base } else { guest };
    let mut ext = extended(changes, regs);
    // Shadow paging has these in the levels and the format of its tables; here nothing else tells them.
    ext.set(ExtRole::CR4_PAE, ext.contains(ExtRole::CR4_PAE) && changes.tdp_role_tells_pae());
    ext.set(ExtRole::CR4_LA57, ext.contains(ExtRole::CR4_LA57) && changes.tdp_role_tells_la57());
    (CpuRole { base: cpu, ext }, told(changes, root))
}

/// `init_kvm_softmmu`'s roles.
#[must_use]
pub fn shadow(changes: ChangeSet, regs: RoleRegs, view: &View) -> Roles {
    let ext = extended(changes, regs);
    let root = shadow_bits(common_paging(changes, regs, view), regs, ext)
        .with_direct(u32::from(!regs.cr0.contains(Cr0::PG)))
        .with_level(shadow_level(regs));
    if !changes.has(Change::CpuRoleSplit) {
        return (CpuRole { base: root, ext }, told(changes, root));
    }
    let root = if changes.has(Change::ShadowRoleNx) { root.with_efer_nx(1) } else { root };
    (split_cpu_role(changes, regs, view), told(changes, root))
}

/// `kvm_init_shadow_npt_mmu`'s roles; `regs` are L1's as vmcb01 has them, CR0 reduced to PG and CR4 without PKE.
#[must_use]
pub fn nested_npt(config: &Config, changes: ChangeSet, regs: RoleRegs, view: &View) -> Roles {
    let ext = extended(changes, regs);
    let level = config.tdp_root_level();
    let root = shadow_bits(common_paging(changes, regs, view), regs, ext).with_level(u32::from(level));
    // The level-5 page only leads to the shadow of L1's level-4 table, and must not be taken for one of a level-5 table.
    let passes = level == 5 && regs.root_level() == 4 && changes.has(Change::PassthroughRoots);
    let root = root.with_passthrough(u32::from(passes));
    let split = changes.has(Change::CpuRoleSplit);
    let cpu = if split { split_cpu_role(changes, regs, view) } else { CpuRole { base: root, ext } };
    (cpu, told(changes, root))
}

/// What L1's EPTP says of its tables (SDM 3C table 24-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EptpBits {
    /// Page-walk length, 4 or 5.
    pub level: u8,
    /// Bit 6: accessed and dirty flags enabled.
    pub accessed_dirty: bool,
}

impl EptpBits {
    /// The fields of a raw EPTP.
    #[must_use]
    pub const fn of(eptp: u64) -> Self {
        Self { level: ((eptp >> 3 & 7) + 1) as u8, accessed_dirty: eptp >> 6 & 1 == 1 }
    }
}

/// `kvm_init_shadow_ept_mmu`'s roles. The base starts from zero: CR0, CR4 and EFER play no part in it. Up to v5.13 `regs`,
/// the vCPU's, were in the extended role.
#[must_use]
pub fn nested_ept(changes: ChangeSet, eptp: u64, root_mmu_smm: u32, regs: RoleRegs) -> Roles {
    let eptp = EptpBits::of(eptp);
    let smm = if changes.has(Change::NeptRoleNoSmm) { 0 } else { root_mmu_smm };
    let root = PageRole(0)
        .with_smm(smm)
        .with_level(u32::from(eptp.level))
        .with_ad_disabled(u32::from(!eptp.accessed_dirty))
        .with_guest_mode(1)
        .with_access(ACCESS_ALL);
    let ext = if changes.has(Change::NeptIgnoresRegs) { ExtRole::VALID } else { extended(changes, regs) };
    (CpuRole { base: root, ext: ext | ExtRole::EXECONLY }, told(changes, root))
}

/// `init_kvm_nested_mmu`'s roles: only for walking L2's own tables.
#[must_use]
pub fn nested_walk(changes: ChangeSet, regs: RoleRegs, view: &View) -> Roles {
    if changes.has(Change::CpuRoleSplit) {
        return (split_cpu_role(changes, regs, view), PageRole(0));
    }
    let ext = extended(changes, regs);
    let base = shadow_bits(common_paging(changes, regs, view), regs, ext);
    let base = base.with_direct(1).with_level(u32::from(regs.root_level()));
    (CpuRole { base, ext }, base)
}

/// `kvm_mmu_calc_root_page_role` (up to v5.17): what `kvm_mmu_new_pgd` looks up, from the registers as they are now.
/// It computes only the base, so the extended role is empty and the andnot bits are never set: C-1.
#[must_use]
pub fn lookup(config: &Config, changes: ChangeSet, view: &View) -> PageRole {
    let regs = view.regs;
    if config.tdp != TdpMode::Off {
        return tdp(config, changes, regs, view).1;
    }
    let role = shadow_bits(common_paging(changes, regs, view), regs, ExtRole::empty())
        .with_direct(u32::from(!regs.cr0.contains(Cr0::PG)))
        .with_level(shadow_level(regs));
    told(changes, if changes.has(Change::ShadowRoleNx) { role.with_efer_nx(1) } else { role })
}

/// `kvm_calc_cpu_role` (v5.19): the guest's configuration alone. Without paging it is direct and has level 0.
fn split_cpu_role(changes: ChangeSet, regs: RoleRegs, view: &View) -> CpuRole {
    if !regs.cr0.contains(Cr0::PG) {
        return CpuRole { base: common(view).with_direct(1), ext: ExtRole::VALID };
    }
    let ext = extended(changes, regs);
    let base = shadow_bits(common_paging(changes, regs, view), regs, ext).with_level(u32::from(regs.root_level()));
    CpuRole { base, ext: ext - (ExtRole::CR0_PG | ExtRole::CR4_PAE) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Point;

    const LONG: Efer = Efer::LME.union(Efer::LMA).union(Efer::NXE);

    fn view(cr0: Cr0, cr4: Cr4, efer: Efer, nesting: Nesting) -> View {
        View { regs: RoleRegs::new(cr0, cr4, efer), nesting, ..View::default() }
    }

    fn at(point: &str) -> ChangeSet {
        ChangeSet::at(Point::by_name(point).unwrap())
    }

    fn config(tdp: TdpMode) -> Config {
        Config::new(tdp, 40)
    }

    /// kvm-mmu.md A.1.1 worked constants, A.3, and B.2 patches 14 and 18 for v5.19.
    #[test]
    fn root_roles_by_point_of_history() {
        let paged = Cr0::PG | Cr0::WP;
        let long = |nesting| view(paged, Cr4::PAE, LONG, nesting);
        let no_wp = view(Cr0::PG, Cr4::PAE | Cr4::SMEP | Cr4::SMAP, LONG, Nesting::L1);
        let no_nx = view(paged, Cr4::PAE, LONG - Efer::NXE, Nesting::L1);
        let legacy = view(paged, Cr4::empty(), Efer::empty(), Nesting::L1);
        let off = view(Cr0::empty(), Cr4::empty(), Efer::empty(), Nesting::L1);
        for (name, view, point, shadow_word, tdp_word) in [
            ("64-bit L1", long(Nesting::L1), "v5.17", 0x3704, 0x3784),
            ("64-bit L2", long(Nesting::L2), "v5.17", 0x23704, 0x23784),
            ("WP=0 SMEP SMAP", no_wp, "v5.17", 0xd704, 0x1784),
            ("NX=0", no_nx, "v5.17", 0x2704, 0x2784),
            ("32-bit", legacy, "v5.17", 0x2713, 0x2784),
            ("unpaged", off, "v5.17", 0x783, 0x784),
            ("64-bit L1", long(Nesting::L1), "v5.19", 0x3704, 0x3784),
            ("WP=0 SMEP SMAP", no_wp, "v5.19", 0xd704, 0x3784),
            ("NX=0", no_nx, "v5.19", 0x3704, 0x3784),
            ("32-bit", legacy, "v5.19", 0x3713, 0x3784),
            ("unpaged", off, "v5.19", 0x1783, 0x3784),
        ] {
            let changes = at(point);
            let (_, shadow_root) = shadow(changes, view.regs, &view);
            assert_eq!(shadow_root.0, shadow_word, "{name} at {point}, shadow: {shadow_root:?}");
            let (_, tdp_root) = tdp(&config(TdpMode::Ept), changes, view.regs, &view);
            assert_eq!(tdp_root.0, tdp_word, "{name} at {point}, TDP: {tdp_root:?}");
        }
    }

    /// kvm-mmu.md A.1.1: nested NPT 0xd704 at v5.17 (guest mode not yet entered), 0x2d704 once it is; nested EPT.
    #[test]
    fn nested_root_roles() {
        let regs = RoleRegs::new(Cr0::PG, Cr4::PAE | Cr4::SMEP | Cr4::SMAP, LONG);
        let npt = config(TdpMode::Npt);
        for (nesting, word) in [(Nesting::L1, 0xd704), (Nesting::L2, 0x2d704)] {
            let view = View { nesting, ..View::default() };
            for point in ["v5.17", "v6.14"] {
                assert_eq!(nested_npt(&npt, at(point), regs, &view).1.0, word);
            }
        }
        for (eptp, smm, point, word) in [
            (0x5e, 0, "v5.17", 0x20704),
            (0x1e, 0, "v5.17", 0x30704),
            (0x5e, 1, "v5.17", 0x0102_0704),
            (0x5e, 1, "v5.19", 0x20704),
        ] {
            assert_eq!(nested_ept(at(point), eptp, smm, regs).1.0, word, "{eptp:#x} smm {smm} at {point}");
        }
    }

    /// kvm-mmu.md A.3.7: the look-up role equals the role that an initialisation would store, except for the andnot
    /// bits. Every combination of the bits that a role depends on.
    #[test]
    fn lookup_differs_only_in_the_andnot_bits() {
        let mut cases = 0;
        for bits in 0..1u32 << 9 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let pick = |on: bool, cr0: Cr0| if on { cr0 } else { Cr0::empty() };
            let pick4 = |on: bool, cr4: Cr4| if on { cr4 } else { Cr4::empty() };
            let cr0 = pick(bit(0), Cr0::PG) | pick(bit(1), Cr0::WP);
            let cr4 = pick4(bit(2), Cr4::PAE) | pick4(bit(3), Cr4::SMEP) | pick4(bit(4), Cr4::SMAP);
            let cr4 = cr4 | pick4(bit(5), Cr4::PSE);
            let efer = if bit(6) && bit(0) && bit(2) { LONG } else { Efer::empty() };
            let efer = if bit(7) { efer | Efer::NXE } else { efer - Efer::NXE };
            let view = view(cr0, cr4, efer, if bit(8) { Nesting::L2 } else { Nesting::L1 });
            let changes = at("v5.17");
            let andnot = PageRole(0).with_smep_andnot_wp(1).with_smap_andnot_wp(1);
            let stored = shadow(changes, view.regs, &view).1;
            let looked = lookup(&config(TdpMode::Off), changes, &view);
            assert_eq!(looked.0, stored.0 & !andnot.0, "{view:?}");
            let stored = tdp(&config(TdpMode::Ept), changes, view.regs, &view).1;
            assert_eq!(lookup(&config(TdpMode::Ept), changes, &view), stored, "{view:?}");
            cases += 1;
        }
        assert_eq!(cases, 512);
    }
}
