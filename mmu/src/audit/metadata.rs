//! I19: what an MMU remembers of the guest's paging against what the guest's registers and CPUID say now: the limits of
//! entries, and the verdict on every access to every kind of page (`permissions[]` in KVM, decided from the stored role
//! here).
//!
//! Looked at where L0 walks tables itself: the active MMU, if it shadows any, and the one that walks the guest's own tables
//! for emulation. The verdicts are stated once more, from the registers alone (SDM 3A 4.6.1; SDM 3C 28.2.3; APM2 15.25.5).
//! Left out: protection keys; and the reserved bits that follow from the stored role, which I5 compares.

use crate::audit::{Audit, Finding, Subject};
use crate::permission::{Attempt, faults};
use crate::role::CpuRole;
use crate::state::{Mmu, NestedTdp, Paging, RoleRegs, TdpMode};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::PageFaultError;
use sim_core::event::MmuId;

/// Execute, write and user, or read in EPT: the bits of an access mask, stated once more.
const EXECUTE: u32 = 1;
const WRITE: u32 = 2;
const USER: u32 = 4;

/// I19.
pub(super) fn metadata(subject: &Subject<'_>) -> Option<Finding> {
    let (active, walking) = (subject.vcpu.active(), walking(subject));
    let own = (active.id != walking.id).then_some(active);
    std::iter::once(walking).chain(own).find_map(|mmu| limits(subject, mmu).or_else(|| verdicts(subject, mmu)))
}

/// `walk_mmu`.
fn walking<'a>(subject: &Subject<'a>) -> &'a Mmu {
    match subject.vcpu.nested_tdp {
        NestedTdp::Inactive => &subject.vcpu.root_mmu,
        NestedTdp::Active => &subject.vcpu.nested_mmu,
    }
}

fn limits(subject: &Subject<'_>, mmu: &Mmu) -> Option<Finding> {
    let now = subject.vcpu.cpuid.limits();
    (mmu.limits != now).then(|| {
        let what = format!("{} knows the limits {:?}, the guest's CPUID says {now:?}", mmu.id, mmu.limits);
        finding(subject, mmu, what)
    })
}

fn verdicts(subject: &Subject<'_>, mmu: &Mmu) -> Option<Finding> {
    let regs = match (mmu.id, subject.nested_regs) {
        // Nested tables have neither WP = 0 nor protection keys.
        (MmuId::Guest, Some(l1)) => RoleRegs { cr0: Cr0::PG, ..l1 },
        _ => subject.view.regs,
    };
    let paging = if mmu.id == MmuId::Guest && subject.nested_regs.is_none() { Paging::Ept } else { Paging::Paging64 };
    if paging != Paging::Ept && !regs.cr0.contains(Cr0::PG) {
        return None;
    }
    let (access, attempt) = every_access().find(|&(access, attempt)| {
        let expected =
            if paging == Paging::Ept { ept_refuses(access, attempt) } else { refuses(regs, access, attempt) };
        faults(paging, walked_by(subject, mmu), access, attempt) != expected
    })?;
    let what = format!(
        "{} judges an access {:?} to a page of access {access:#b} otherwise than the registers in force",
        mmu.id, attempt.error
    );
    Some(finding(subject, mmu, what))
}

/// The role that L0's next walk of the guest's tables goes by: the stored one, with the CR0.WP of now where the guest owns that
/// bit and L0 looks at it before each walk (KVM cf9f4c0eb169). That L0 does look is for the guest to see, not for this audit.
fn walked_by(subject: &Subject<'_>, mmu: &Mmu) -> CpuRole {
    let looks = subject.vm.config.tdp == TdpMode::Ept && subject.vm.changes.refreshes_owned_wp();
    if !looks || mmu.id == MmuId::Guest {
        return mmu.cpu_role;
    }
    let wp = u32::from(subject.view.regs.cr0.contains(Cr0::WP));
    CpuRole { base: mmu.cpu_role.base.with_cr0_wp(wp), ..mmu.cpu_role }
}

fn finding(subject: &Subject<'_>, mmu: &Mmu, what: String) -> Finding {
    let mut finding = Finding::new(Audit::Metadata, subject, what);
    finding.mmu = mmu.id;
    finding
}

/// Every access to every kind of page: reads, writes and fetches, of users and supervisors, past SMAP and not.
fn every_access() -> impl Iterator<Item = (u32, Attempt)> {
    let kinds = [PageFaultError::empty(), PageFaultError::W, PageFaultError::F];
    let errors = kinds.into_iter().flat_map(|kind| [kind, kind | PageFaultError::U]);
    let attempts = errors.flat_map(|error| [false, true].map(|smap_suppressed| Attempt { error, smap_suppressed }));
    attempts.flat_map(|attempt| (0..8).map(move |access| (access, attempt)))
}

/// SDM 3A 4.6.1, from registers.
fn refuses(regs: RoleRegs, access: u32, Attempt { error, smap_suppressed }: Attempt) -> bool {
    let has = |bit: u32| access & bit != 0;
    let (cr0, cr4) = (|bit| regs.cr0.contains(bit), |bit| regs.cr4.contains(bit));
    let user = error.contains(PageFaultError::U);
    let user_page_by_supervisor = !user && has(USER);
    if user && !has(USER) {
        return true;
    }
    if error.contains(PageFaultError::F) {
        let smep = cr4(Cr4::SMEP) && user_page_by_supervisor;
        return smep || (regs.efer.contains(Efer::NXE) && !has(EXECUTE));
    }
    let smap = cr4(Cr4::SMAP) && user_page_by_supervisor && !smap_suppressed;
    let protected = error.contains(PageFaultError::W) && !has(WRITE);
    smap || (protected && (user || cr0(Cr0::WP)))
}

/// SDM 3C 28.2.3.2: "user" stands for a read here, and for readable.
fn ept_refuses(access: u32, Attempt { error, .. }: Attempt) -> bool {
    let needs = [(PageFaultError::U, USER), (PageFaultError::W, WRITE), (PageFaultError::F, EXECUTE)];
    needs.into_iter().any(|(kind, right)| error.contains(kind) && access & right == 0)
}
