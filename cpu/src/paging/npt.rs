//! Nested paging (APM2 15.25): ordinary tables in the host's paging mode at VMRUN, walked for guest-physical addresses.
//!
//! Every nested access is a user access, whatever the guest's privilege; host CR0.WP, SMEP and SMAP have no say
//! (15.25.5). References to guest tables count as data writes (15.25.6). Host PDPTEs are read from memory, not from
//! registers (15.25.10). With the guest-mode execute trap, U/S says instead who may fetch: users from user pages,
//! supervisors from the others; data reaches both (15.25.13). Left out: what becomes of guest-physical addresses beyond
//! the reach of the host's mode.

use super::context::no_execute;
use super::descent::{Path, Root, Stop, Structure, Update, descend, mark_used, until_undisturbed};
use super::entry::Rights;
use super::format::{self, Limits, Offers};
use super::memory_type::{StageType, pat_entry};
use super::second::{HostTables, Request, Staged, Walker};
use crate::exec::Fault;
use crate::virt::{HostPaging, NptControls, StageFaultKind};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::PagingMode;
use sim_core::{Hpa, SimError};

/// How nested tables see the walker reading a guest paging-structure entry (APM2 15.25.6).
pub(super) const TABLE_READ: AccessKind = AccessKind::Write;

/// The nested paging in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Npt {
    /// Nested CR3.
    pub(super) ncr3: u64,
    /// The host's registers.
    pub(super) host: HostPaging,
    /// The controls.
    pub(super) controls: NptControls,
}

/// Whether rights allow an access.
pub(super) const fn permits(controls: NptControls, rights: Rights, access: Access) -> bool {
    let is_user_page = rights.contains(Rights::USER);
    let traps_execution = controls.contains(NptControls::GUEST_MODE_EXECUTE_TRAP);
    match access.kind {
        _ if needs_shadow_stack(controls, access) => {
            rights.contains(Rights::SHADOW_STACK) && (is_user_page || traps_execution)
        }
        AccessKind::Read => is_user_page || traps_execution,
        AccessKind::Write => rights.contains(Rights::WRITE) && (is_user_page || traps_execution),
        AccessKind::Fetch if traps_execution => {
            rights.contains(Rights::EXECUTE) && is_user_page == matches!(access.privilege, Privilege::User)
        }
        AccessKind::Fetch => rights.contains(Rights::EXECUTE) && is_user_page,
    }
}

/// With supervisor shadow-stack checks, supervisor shadow-stack accesses reach only pages that the nested tables mark as
/// the guest's do: not writable and dirty, below writable tables (APM2 15.25.14).
const fn needs_shadow_stack(controls: NptControls, access: Access) -> bool {
    access.shadow_stack
        && matches!(access.privilege, Privilege::Supervisor)
        && controls.contains(NptControls::SUPERVISOR_SHADOW_STACK)
}

/// Translates a guest-physical address.
pub(super) fn translate(walker: &mut Walker<'_>, npt: &Npt, request: &Request) -> Result<Staged, Fault> {
    let access = request.access;
    let told = Request { access: Access { privilege: Privilege::User, implicit: false, ..access }, ..*request };
    let structure = structure(walker.maxphyaddr, walker.offers, npt)?;
    until_undisturbed(|| {
        let mut path = find_page(walker, &structure, &told)?;
        if !permits(npt.controls, path.rights, access) {
            return Err(told.fault(forbidden(npt.controls, path.rights, access)).into());
        }
        let Ok(update) = mark_used(&mut HostTables(walker), &mut path, access.kind);
        Ok((update == Update::Done).then(|| staged(npt, &path)))
    })
}

const fn staged(npt: &Npt, path: &Path) -> Staged {
    let leaf = &path.leaf;
    Staged {
        hpa: Hpa(path.address),
        rights: path.rights,
        shift: path.shift,
        is_dirty: path.is_dirty(),
        stage_type: StageType::Nested(pat_entry(npt.host.pat, leaf.level.pat_index(leaf.value))),
    }
}

/// The nested tables: the host's mode gives the format (APM2 15.25.3).
pub(super) fn structure(maxphyaddr: u32, offers: Offers, npt: &Npt) -> Result<Structure, SimError> {
    let host = &npt.host;
    let mode = PagingMode::of(host.cr0, host.cr4, host.efer);
    let format = format::ordinary(mode, host.cr4)
        .ok_or_else(|| SimError::internal("nested paging in force while the host's CR0.PG is 0"))?;
    let root = Root::Table(npt.ncr3 & format::root_mask(mode));
    Ok(Structure { format, root, limits: Limits { maxphyaddr, no_execute: no_execute(host.efer), offers } })
}

fn find_page(walker: &mut Walker<'_>, structure: &Structure, request: &Request) -> Result<Path, Fault> {
    if request.gpa.0 >> structure.format.address_bits() != 0 {
        return Err(SimError::unmodelled("guest-physical address beyond the reach of the host's paging mode").into());
    }
    descend(&mut HostTables(walker), structure, request.gpa.0).map_err(|stop| {
        let (present, reserved) = match stop {
            Stop::NotPresent(_) => (false, false),
            Stop::Malformed => (true, true),
            Stop::Reference(never) => match never {},
        };
        request.fault(StageFaultKind::NestedPageFault { present, reserved }).into()
    })
}

const fn forbidden(controls: NptControls, rights: Rights, access: Access) -> StageFaultKind {
    if needs_shadow_stack(controls, access) && !rights.contains(Rights::SHADOW_STACK) {
        StageFaultKind::NestedShadowStack
    } else {
        StageFaultKind::NestedPageFault { present: true, reserved: false }
    }
}
