//! Whether a valid first-stage translation allows an access (SDM 3A 4.6.1; APM2 5.6). A pure function: the walker asks
//! it about the rights that it found, the TLB about the rights that it cached.
//!
//! Left out: protection keys (SDM 3A 4.6.2) and shadow stacks (4.6.1).

use super::context::PagingContext;
use super::entry::Rights;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::rflags::Rflags;

/// Whether first-stage rights allow the access.
#[must_use]
pub const fn permits(context: &PagingContext, rights: Rights, access: Access) -> bool {
    match access.privilege {
        Privilege::User => rights.contains(Rights::USER) && user_permits(rights, access.kind),
        Privilege::Supervisor => supervisor_permits(context, rights, access),
    }
}

/// A user-mode access to a user-mode address: every right counts.
const fn user_permits(rights: Rights, kind: AccessKind) -> bool {
    match kind {
        AccessKind::Read => true,
        AccessKind::Write => rights.contains(Rights::WRITE),
        AccessKind::Fetch => rights.contains(Rights::EXECUTE),
    }
}

/// A supervisor-mode access: CR0.WP decides whether R/W counts, SMAP and SMEP whether a user-mode address may be used.
const fn supervisor_permits(context: &PagingContext, rights: Rights, access: Access) -> bool {
    let is_user_address = rights.contains(Rights::USER);
    match access.kind {
        AccessKind::Read => !is_user_address || data_reaches_user_pages(context, access),
        AccessKind::Write => {
            let is_writable = rights.contains(Rights::WRITE) || !context.cr0.contains(Cr0::WP);
            is_writable && (!is_user_address || data_reaches_user_pages(context, access))
        }
        AccessKind::Fetch => rights.contains(Rights::EXECUTE) && !(is_user_address && context.cr4.contains(Cr4::SMEP)),
    }
}

/// SMAP: supervisor data accesses reach user-mode addresses only while EFLAGS.AC is 1, and implicit ones never.
const fn data_reaches_user_pages(context: &PagingContext, access: Access) -> bool {
    !context.cr4.contains(Cr4::SMAP) || (context.rflags.contains(Rflags::AC) && !access.implicit)
}
