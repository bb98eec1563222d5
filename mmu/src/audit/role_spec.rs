//! I5: the MMU's stored role against a second statement of what it should be, one rule a field, from the registers in
//! force. Nothing here is shared with role computation.

use crate::audit::{Audit, Finding, Subject};
use crate::change::{Change, ChangeSet};
use crate::role::PageRole;
use crate::state::{AccessedDirty, RoleRegs, TdpMode};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::event::MmuId;
use std::collections::BTreeSet;

/// What a root is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Shadow,
    Tdp,
    NestedEpt,
    NestedNpt,
}

/// What the rules may look at.
struct Facts {
    purpose: Purpose,
    regs: RoleRegs,
    changes: ChangeSet,
    tdp_level: u32,
    eptp: u64,
    tracked: bool,
}

impl Facts {
    fn paging(&self) -> bool {
        self.regs.cr0.contains(Cr0::PG)
    }

    fn cr4(&self, bit: Cr4) -> bool {
        self.paging() && self.regs.cr4.contains(bit)
    }

    /// Bits about CR0.WP = 0 exist only where L0 converts permissions in its own tables.
    fn without_wp(&self, bit: Cr4) -> bool {
        match self.purpose {
            Purpose::Shadow => self.cr4(bit) && !self.regs.cr0.contains(Cr0::WP),
            Purpose::NestedNpt => self.cr4(bit),
            Purpose::Tdp | Purpose::NestedEpt => false,
        }
    }
}

type Rule = (&'static str, fn(&Facts) -> u32);

/// One rule a field; fields that no root ever sets are 0.
const RULES: &[Rule] = &[
    ("level", |facts| match facts.purpose {
        Purpose::Shadow if !facts.regs.efer.contains(Efer::LMA) => 3,
        Purpose::Shadow => 4 + u32::from(facts.cr4(Cr4::LA57)),
        Purpose::Tdp | Purpose::NestedNpt => facts.tdp_level,
        Purpose::NestedEpt => (facts.eptp >> 3 & 7) as u32 + 1,
    }),
    ("has_4_byte_gpte", |facts| match facts.purpose {
        Purpose::Shadow | Purpose::NestedNpt => u32::from(facts.paging() && !facts.cr4(Cr4::PAE)),
        Purpose::Tdp | Purpose::NestedEpt => 0,
    }),
    ("direct", |facts| match facts.purpose {
        Purpose::Shadow => u32::from(!facts.paging()),
        Purpose::Tdp => 1,
        Purpose::NestedEpt | Purpose::NestedNpt => 0,
    }),
    ("access", |_| 7),
    ("efer_nx", |facts| {
        let guest = u32::from(facts.paging() && facts.regs.efer.contains(Efer::NXE));
        match facts.purpose {
            Purpose::Shadow if facts.changes.has(Change::ShadowRoleNx) => 1,
            Purpose::Tdp if facts.changes.has(Change::TdpRoleConstant) => 1,
            Purpose::NestedEpt => 0,
            Purpose::Shadow | Purpose::Tdp | Purpose::NestedNpt => guest,
        }
    }),
    ("cr0_wp", |facts| match facts.purpose {
        Purpose::Tdp if facts.changes.has(Change::TdpRoleConstant) => 1,
        Purpose::Shadow | Purpose::Tdp => u32::from(facts.paging() && facts.regs.cr0.contains(Cr0::WP)),
        Purpose::NestedEpt | Purpose::NestedNpt => 0,
    }),
    ("smep_andnot_wp", |facts| u32::from(facts.without_wp(Cr4::SMEP))),
    ("smap_andnot_wp", |facts| u32::from(facts.without_wp(Cr4::SMAP))),
    ("passthrough", |facts| {
        let fixed = facts.changes.has(Change::PassthroughRoots);
        u32::from(facts.purpose == Purpose::NestedNpt && fixed && facts.tdp_level == 5 && guest_levels(facts) == 4)
    }),
    ("ad_disabled", |facts| match facts.purpose {
        Purpose::NestedEpt => u32::from(facts.eptp >> 6 & 1 == 0),
        // Only EPT can be without accessed and dirty flags (SDM 3C 28.3.5); paging and nested paging always have them.
        Purpose::Tdp => u32::from(facts.tracked),
        Purpose::Shadow | Purpose::NestedNpt => 0,
    }),
];

/// Fields that other invariants judge: I6 and I7.
const ELSEWHERE: PageRole = PageRole(0).with_guest_mode(1).with_smm(0xff);

fn expected(facts: &Facts) -> PageRole {
    let field = |name: &str| RULES.iter().find(|(rule, _)| *rule == name).map_or(0, |(_, rule)| rule(facts));
    PageRole(PageRole::FIELDS.iter().fold(0, |word, (name, shift, _)| word | field(name) << shift))
}

/// Every role that some registers give to a root under these changes, but for `guest_mode` and `smm`, which I6 and I7 judge.
/// The rules speak for v5.17 and later.
#[must_use]
pub fn possible_roots(changes: ChangeSet) -> BTreeSet<PageRole> {
    let mut roles = BTreeSet::new();
    for bits in 0..1u32 << REGISTER_BITS {
        let Some(regs) = registers(bits) else { continue };
        let nested = RoleRegs { cr0: Cr0::PG, cr4: regs.cr4 - Cr4::PKE, efer: regs.efer };
        for variant in 0..1u32 << 3 {
            let bit = |n: u32| u64::from(variant >> n & 1);
            let (tdp_level, tracked) = (4 + bit(0) as u32, bit(1) == 1);
            // Page-walk length in bits 5:3, accessed and dirty flags in bit 6 (SDM 3C table 24-9).
            let eptp = (3 + bit(0)) << 3 | bit(2) << 6;
            for (purpose, regs) in [
                (Purpose::Shadow, regs),
                (Purpose::Tdp, regs),
                (Purpose::NestedNpt, nested),
                (Purpose::NestedEpt, regs),
            ] {
                roles.insert(expected(&Facts { purpose, regs, changes, tdp_level, eptp, tracked }));
            }
        }
    }
    roles
}

/// Bits of registers that roles depend on.
const REGISTER_BITS: u32 = 8;

/// The registers with some of these bits set, if a processor can have them so.
fn registers(bits: u32) -> Option<RoleRegs> {
    let bit = |n: u32| bits >> n & 1 == 1;
    let (mut cr0, mut cr4, mut efer) = (Cr0::empty(), Cr4::empty(), Efer::empty());
    cr0.set(Cr0::PG, bit(0));
    cr0.set(Cr0::WP, bit(1));
    for (n, flag) in [(2, Cr4::PAE), (3, Cr4::SMEP), (4, Cr4::SMAP), (5, Cr4::LA57)] {
        cr4.set(flag, bit(n));
    }
    efer.set(Efer::NXE, bit(6));
    efer.set(Efer::LMA, bit(7));
    // Long mode is PAE paging (SDM 3A 4.1.1), and only 64-bit code can set LA57.
    let is_possible = (!bit(7) || (bit(0) && bit(2))) && (!bit(5) || bit(7));
    is_possible.then(|| RoleRegs::new(cr0, cr4, efer))
}

/// I5.
pub(super) fn stored_role(subject: &Subject<'_>) -> Option<Finding> {
    let mmu = subject.vcpu.active();
    let (purpose, regs) = match (mmu.id, subject.nested_regs, subject.vm.config.tdp) {
        (MmuId::Guest, Some(l1), _) => {
            (Purpose::NestedNpt, RoleRegs { cr0: Cr0::PG, cr4: l1.cr4 - Cr4::PKE, efer: l1.efer })
        }
        (MmuId::Guest, None, _) => (Purpose::NestedEpt, subject.view.regs),
        (_, _, TdpMode::Off) => (Purpose::Shadow, subject.view.regs),
        (_, _, TdpMode::Ept | TdpMode::Npt) => (Purpose::Tdp, subject.view.regs),
    };
    let facts = Facts {
        purpose,
        regs,
        changes: subject.vm.changes,
        tdp_level: u32::from(subject.vm.config.tdp_root_level()),
        eptp: subject.view.nested_pgd,
        tracked: subject.vm.config.tdp == TdpMode::Ept && subject.vm.config.accessed_dirty == AccessedDirty::Tracked,
    };
    let compared = |role: PageRole| PageRole(role.0 & !ELSEWHERE.0);
    let (want, have) = (compared(expected(&facts)), compared(mmu.root_role));
    let levels_agree = match purpose {
        Purpose::NestedEpt => u32::from(mmu.root_level) == mmu.root_role.level(),
        _ => mmu.root_level == guest_levels(&facts),
    };
    if want == have && levels_agree {
        return None;
    }
    let what = if want == have {
        format!("the MMU walks {} guest levels, the registers select {}", mmu.root_level, guest_levels(&facts))
    } else {
        "the MMU's role is not what the registers in force give".to_owned()
    };
    Some(Finding::new(Audit::StoredRole, subject, what).with_roles(want, have))
}

/// Levels of the guest's own tables (SDM 3A 4.1.1).
fn guest_levels(facts: &Facts) -> u8 {
    let long = facts.regs.efer.contains(Efer::LMA);
    match (facts.paging(), long, facts.cr4(Cr4::PAE)) {
        (false, _, _) => 0,
        (true, true, _) => 4 + u8::from(facts.cr4(Cr4::LA57)),
        (true, false, true) => 3,
        (true, false, false) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::POINTS;
    use crate::compute;
    use crate::state::{Config, Nesting, View};

    /// The two statements of the rules agree over every combination of inputs, at every point of history from v5.17 on: before,
    /// roles lacked bits, or had some too many, and that was wrong.
    #[test]
    fn the_specification_agrees_with_the_computation() {
        let mut cases = 0;
        let points: Vec<_> =
            POINTS.iter().filter(|point| point.lineage().iter().any(|before| before.name == "v5.17")).collect();
        for point in &points {
            let changes = ChangeSet::at(point);
            for bits in 0..1u32 << 9 {
                let view = view(bits);
                let accessed_dirty = if bits & 2 == 0 { AccessedDirty::Hardware } else { AccessedDirty::Tracked };
                // Of one length at the even points of history, of the other at the odd.
                let (tdp_level, maxphyaddr) = (4 + (point.changes().len() % 2) as u8, 52);
                let config = Config { accessed_dirty, tdp_level, ..Config::new(TdpMode::Ept, maxphyaddr) };
                let eptp = 0x1e | u64::from(bits & 1) << 6;
                let nested = RoleRegs { cr0: Cr0::PG, ..view.regs };
                let roles = [
                    (Purpose::Shadow, view.regs, compute::shadow(changes, view.regs, &view).1),
                    (Purpose::Tdp, view.regs, compute::tdp(&config, changes, view.regs, &view).1),
                    (Purpose::NestedNpt, nested, compute::nested_npt(&config, changes, nested, &view).1),
                    (Purpose::NestedEpt, view.regs, compute::nested_ept(changes, eptp, 0, view.regs).1),
                ];
                for (purpose, regs, role) in roles {
                    let facts =
                        Facts { purpose, regs, changes, tdp_level: tdp_level.into(), eptp, tracked: bits & 2 != 0 };
                    assert_eq!(expected(&facts).0, role.0 & !ELSEWHERE.0, "{purpose:?} {regs:?} at {}", point.name);
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, points.len() * 512 * 4);
    }

    /// Words that were seen on kernels can exist, and some that no registers give can't.
    #[test]
    fn possible_roots_are_those_of_registers() {
        let all = possible_roots(ChangeSet::at(crate::change::Point::newest()));
        for word in [0x3704, 0x1704, 0xd704, 0x3784, 0x704, 0x1_0704, 0x3703, 0x3713, 0x3705] {
            assert!(all.contains(&PageRole(word)), "{word:#x}");
        }
        // SMEP's bit with WP, a direct root of 32-bit paging, a shadow root without accessed flags, no level.
        for word in [0x7704, 0x3794, 0x1_3704, 0x3700] {
            assert!(!all.contains(&PageRole(word)), "{word:#x}");
        }
    }

    fn view(bits: u32) -> View {
        let bit = |n: u32| bits >> n & 1 == 1;
        let mut cr0 = Cr0::empty();
        cr0.set(Cr0::PG, bit(0));
        cr0.set(Cr0::WP, bit(1));
        let mut cr4 = Cr4::empty();
        for (n, flag) in [(2, Cr4::PAE), (3, Cr4::SMEP), (4, Cr4::SMAP), (5, Cr4::PSE)] {
            cr4.set(flag, bit(n));
        }
        let mut efer = Efer::empty();
        efer.set(Efer::NXE, bit(6));
        efer.set(Efer::LMA, bit(7) && bit(0) && bit(2));
        let nesting = if bit(8) { Nesting::L2 } else { Nesting::L1 };
        View { regs: RoleRegs::new(cr0, cr4, efer), nesting, ..View::default() }
    }
}
