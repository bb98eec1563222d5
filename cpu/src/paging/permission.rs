//! Whether a valid first-stage translation allows an access (SDM 3A 4.6; APM2 5.6). A pure function: the walker asks it
//! about the rights that it found, the TLB about the rights that it cached.

use super::context::PagingContext;
use super::entry::Rights;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::rflags::Rflags;

/// Whether first-stage rights and the page's protection key allow the access.
#[must_use]
pub const fn permits(context: &PagingContext, rights: Rights, key: u8, access: Access) -> bool {
    let by_rights = match access.privilege {
        _ if access.shadow_stack => shadow_stack_permits(rights, access.privilege),
        Privilege::User => rights.contains(Rights::USER) && user_permits(rights, access.kind),
        Privilege::Supervisor => supervisor_permits(context, rights, access),
    };
    by_rights && key_permits(context, rights, key, access)
}

/// Shadow-stack accesses reach only shadow stacks of their own mode, whatever CR0.WP and SMAP say (SDM 3A 4.6.1).
const fn shadow_stack_permits(rights: Rights, privilege: Privilege) -> bool {
    let is_user_access = matches!(privilege, Privilege::User);
    rights.contains(Rights::SHADOW_STACK) && rights.contains(Rights::USER) == is_user_access
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

/// Whether the protection key allows the access (SDM 3A 4.6.2). User-mode addresses go by PKRU, the others by
/// IA32_PKRS; AD refuses data accesses, WD refuses writes, those of supervisors only with CR0.WP. Fetches don't look at
/// keys.
#[must_use]
pub const fn key_permits(context: &PagingContext, rights: Rights, key: u8, access: Access) -> bool {
    let is_user_address = rights.contains(Rights::USER);
    let (enable, register) = if is_user_address { (Cr4::PKE, context.pkru) } else { (Cr4::PKS, context.pkrs) };
    if !context.cr4.contains(enable) || !context.efer.contains(Efer::LMA) {
        return true;
    }
    let field = register >> (2 * (key & 0xf) as u32);
    let refuses_access = field & 1 != 0;
    let is_of_user = is_user_address && matches!(access.privilege, Privilege::User);
    let refuses_write = field & 2 != 0 && (is_of_user || context.cr0.contains(Cr0::WP));
    match access.kind {
        AccessKind::Fetch => true,
        AccessKind::Read => !refuses_access,
        AccessKind::Write => !refuses_access && !refuses_write,
    }
}
