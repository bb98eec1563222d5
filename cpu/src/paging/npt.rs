//! Nested paging (APM2 15.25): ordinary tables in the host's paging mode at VMRUN, walked for guest-physical addresses.
//!
//! Every nested access is a user access, whatever the guest's privilege; host CR0.WP, SMEP and SMAP have no say
//! (15.25.5). References to guest tables count as data writes (15.25.6). Host PDPTEs are read from memory, not from
//! registers (15.25.10). Left out: the guest-mode execute trap and supervisor shadow stacks.

use super::context::no_execute;
use super::descent::{Path, Root, Stop, Structure, descend, mark_used};
use super::format::{self, Limits};
use super::second::{HostTables, Request, Staged, Walker, permits};
use crate::exec::Fault;
use crate::virt::{HostPaging, StageFaultKind};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::PagingMode;
use sim_core::{Hpa, SimError};

/// How nested tables see the walker reading a guest paging-structure entry (APM2 15.25.6).
pub(super) const TABLE_READ: AccessKind = AccessKind::Write;

/// Translates a guest-physical address.
pub(super) fn translate(
    walker: &mut Walker<'_>,
    ncr3: u64,
    host: &HostPaging,
    request: &Request,
) -> Result<Staged, Fault> {
    let kind = request.access.kind;
    let request = Request { access: Access::new(kind, Privilege::User), ..*request };
    let structure = structure(walker.maxphyaddr, ncr3, host)?;
    let mut path = find_page(walker, &structure, &request)?;
    if !permits(path.rights, kind) {
        return Err(nested_page_fault(&request, true, false));
    }
    let Ok(()) = mark_used(&mut HostTables(walker), &mut path, kind);
    let is_dirty = path.is_dirty();
    Ok(Staged { hpa: Hpa(path.address), rights: path.rights, shift: path.shift, is_dirty })
}

/// The nested tables: the host's mode gives the format (APM2 15.25.3).
pub(super) fn structure(maxphyaddr: u32, ncr3: u64, host: &HostPaging) -> Result<Structure, SimError> {
    let mode = PagingMode::of(host.cr0, host.cr4, host.efer);
    let format = format::ordinary(mode, host.cr4)
        .ok_or_else(|| SimError::internal("nested paging in force while the host's CR0.PG is 0"))?;
    let root = Root::Table(ncr3 & format::root_mask(mode));
    Ok(Structure { format, root, limits: Limits { maxphyaddr, no_execute: no_execute(host.efer) } })
}

fn find_page(walker: &mut Walker<'_>, structure: &Structure, request: &Request) -> Result<Path, Fault> {
    if request.gpa.0 >> structure.format.address_bits() != 0 {
        return Err(SimError::unmodelled("guest-physical address beyond the reach of the host's paging mode").into());
    }
    descend(&mut HostTables(walker), structure, request.gpa.0).map_err(|stop| match stop {
        Stop::NotPresent => nested_page_fault(request, false, false),
        Stop::Malformed => nested_page_fault(request, true, true),
        Stop::Reference(never) => match never {},
    })
}

fn nested_page_fault(request: &Request, present: bool, reserved: bool) -> Fault {
    request.fault(StageFaultKind::NestedPageFault { present, reserved }).into()
}
