//! I1 to I4 and I6 to I9: the active MMU's root, looked at immediately before the entry.

use crate::audit::{Audit, Finding, Subject};
use crate::change::Change;
use crate::load::{PAE_ROOTS, pae_target};
use crate::role::PageRole;
use crate::state::{Nesting, Smm, TdpMode};
use sim_core::addr::{ENTRY_FRAME_MASK, Hpa};
use sim_core::event::MmuId;

/// I1.
pub(super) fn root_valid(subject: &Subject<'_>) -> Option<Finding> {
    let valid = subject.vcpu.active().root.is_valid();
    (!valid).then(|| Finding::new(Audit::RootValid, subject, "the active MMU has no root"))
}

/// I2. A root without a shadow page is I3's matter.
pub(super) fn root_role(subject: &Subject<'_>) -> Option<Finding> {
    let mmu = subject.vcpu.active();
    let page = subject.vm.pages.at(mmu.root.hpa)?;
    (page.role != mmu.root_role).then(|| {
        Finding::new(Audit::RootRole, subject, "the root's shadow page has another role than the MMU")
            .with_roles(mmu.root_role, page.role)
    })
}

/// I3.
pub(super) fn pae_root(subject: &Subject<'_>) -> Option<Finding> {
    let mmu = subject.vcpu.active();
    if !mmu.root.is_valid() {
        return None;
    }
    if subject.vm.is_dummy_root(mmu.root.hpa) {
        return None;
    }
    if subject.vm.pages.at(mmu.root.hpa).is_some() {
        let what = "the root is a shadow page, but the MMU walks from pae_root";
        return mmu.walks_pae_root().then(|| Finding::new(Audit::PaeRoot, subject, what));
    }
    let own = mmu.special_tables().any(|table| table.base() == mmu.root.hpa);
    if !own || mmu.root_level >= 4 {
        let what = "the root has no shadow page, but the MMU's guest has tables of four levels or more";
        return Some(Finding::new(Audit::PaeRoot, subject, what));
    }
    if let Some(what) = unlinked(subject) {
        return Some(Finding::new(Audit::PaeRoot, subject, what));
    }
    let table = mmu.pae_root?;
    (0..PAE_ROOTS).find_map(|index| {
        let entry = subject.mem.read_u64(table.base().offset(index * 8));
        if entry == 0 {
            return None;
        }
        let quadrant = if mmu.root_role.has_4_byte_gpte() == 1 { index as u32 } else { 0 };
        let expected = PageRole(mmu.root_role.0).with_level(2).with_quadrant(quadrant).with_access(7);
        let actual = subject.vm.pages.at(pae_target(entry)).map(|page| page.role);
        (actual != Some(expected)).then(|| {
            let what = format!("pae_root entry {index} leads to a page of another role than the MMU's");
            let mut finding =
                Finding::new(Audit::PaeRoot, subject, what).with_roles(expected, actual.unwrap_or_default());
            finding.slot = format!("pae[{index}]");
            finding
        })
    })
}

/// The tables of a special root lead from one to the next by their first entries, down to `pae_root`.
fn unlinked(subject: &Subject<'_>) -> Option<String> {
    let tables: Vec<_> = subject.vcpu.active().special_tables().collect();
    let used = tables.iter().position(|table| table.base() == subject.vcpu.active().root.hpa)?;
    tables[..=used].windows(2).find_map(|pair| {
        let leads_to = Hpa(subject.mem.read_u64(pair[1].base()) & ENTRY_FRAME_MASK);
        (leads_to != pair[0].base())
            .then(|| format!("{} leads to {leads_to}, not to {}", pair[1].base(), pair[0].base()))
    })
}

/// I4.
pub(super) fn root_pgd(subject: &Subject<'_>) -> Option<Finding> {
    let mmu = subject.vcpu.active();
    let in_force = if mmu.id == MmuId::Guest { subject.view.nested_pgd } else { subject.view.cr3 };
    let checked = mmu.root.is_valid() && mmu.root_role.direct() == 0;
    (checked && mmu.root.pgd != in_force).then(|| {
        let what = format!("the root was built for {:#x}, in force is {in_force:#x}", mmu.root.pgd);
        Finding::new(Audit::RootPgd, subject, what)
    })
}

/// I6. Up to v6.13 nested NPT roots have guest_mode = 0, an open bug of those kernels.
pub(super) fn guest_mode(subject: &Subject<'_>) -> Option<Finding> {
    let mmu = subject.vcpu.active();
    if mmu.id == MmuId::Guest && subject.view.nesting == Nesting::L1 {
        return Some(Finding::new(Audit::GuestMode, subject, "L1 runs on the MMU of its nested tables"));
    }
    let expected = u32::from(subject.view.nesting == Nesting::L2);
    if mmu.root_role.guest_mode() == expected {
        return None;
    }
    let what = format!("role.guest_mode is {}, but {:?} runs", mmu.root_role.guest_mode(), subject.view.nesting);
    let mut finding = Finding::new(Audit::GuestMode, subject, what)
        .with_roles(mmu.root_role.with_guest_mode(expected), mmu.root_role);
    let open = subject.nested_regs.is_some() && !subject.vm.changes.has(Change::NnptGuestModeFirst);
    finding.known = open.then_some("C-2");
    Some(finding)
}

/// I7.
pub(super) fn smm(subject: &Subject<'_>) -> Option<Finding> {
    if subject.view.smm == Smm::Inside && subject.view.nesting == Nesting::L2 {
        return Some(Finding::new(Audit::Smm, subject, "L2 runs in SMM"));
    }
    let role = subject.vcpu.active().root_role;
    let expected = u32::from(subject.view.smm == Smm::Inside);
    (role.smm() != expected).then(|| {
        let what = format!("role.smm is {}, but the vCPU is {:?} SMM", role.smm(), subject.view.smm);
        Finding::new(Audit::Smm, subject, what).with_roles(role.with_smm(expected), role)
    })
}

/// I8. At checkpoint E no request that would free the root can be pending any more.
pub(super) fn obsolete(subject: &Subject<'_>) -> Option<Finding> {
    let pages = &subject.vm.pages;
    let mmu = subject.vcpu.active();
    let stale = |table: Hpa| pages.at(table).is_some_and(|page| pages.is_obsolete(page));
    let below = match mmu.pae_root {
        Some(table) if mmu.special_tables().any(|own| own.base() == mmu.root.hpa) => (0..PAE_ROOTS)
            .map(|index| subject.mem.read_u64(table.base().offset(index * 8)))
            .any(|entry| entry != 0 && stale(pae_target(entry))),
        _ => false,
    };
    (stale(mmu.root.hpa) || below)
        .then(|| Finding::new(Audit::ObsoleteRoot, subject, "the root is obsolete and nothing will replace it"))
}

/// I9.
pub(super) fn hardware_root(subject: &Subject<'_>) -> Option<Finding> {
    let mmu = subject.vcpu.active();
    let points_to = Hpa(subject.hardware & ENTRY_FRAME_MASK);
    let wrong = if points_to != mmu.root.hpa {
        Some(format!("hardware points to {points_to}, the root is {}", mmu.root.hpa))
    } else if subject.vm.config.tdp == TdpMode::Ept {
        let level = (subject.hardware >> 3 & 7) + 1;
        (level != u64::from(mmu.shadow_root_level))
            .then(|| format!("the EPTP says {level} levels, the root has {}", mmu.shadow_root_level))
    } else {
        None
    };
    wrong.map(|what| Finding::new(Audit::HardwareRoot, subject, what))
}
