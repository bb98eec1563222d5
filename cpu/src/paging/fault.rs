//! Page faults: from what a walk found to the error code (SDM 3A 4.7; APM2 8.4.2). The flags of HLAT (7), SGX (15) and
//! SEV-SNP (31) are never set.

use super::context::PagingContext;
use super::entry::Rights;
use super::permission::key_permits;
use sim_core::Gva;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr4, Efer};
use sim_core::arch::exception::{Exception, PageFaultError};

/// Why there is no usable translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// An entry is not present.
    NotPresent,
    /// A present entry has a reserved bit set.
    Reserved,
    /// The translation is valid, and its rights or its key forbid the access.
    Forbidden(Rights, u8),
}

/// The page fault that an access takes. PK tells whether the key alone would have refused it; SS describes the access,
/// not the page.
pub(super) fn page_fault(context: &PagingContext, gva: Gva, access: Access, cause: Cause) -> Exception {
    let mut error = match cause {
        Cause::NotPresent => PageFaultError::empty(),
        Cause::Reserved => PageFaultError::P | PageFaultError::RSVD,
        Cause::Forbidden(rights, key) if key_permits(context, rights, key, access) => PageFaultError::P,
        Cause::Forbidden(..) => PageFaultError::P | PageFaultError::PK,
    };
    error.set(PageFaultError::W, access.kind == AccessKind::Write);
    error.set(PageFaultError::U, access.privilege == Privilege::User);
    error.set(PageFaultError::F, access.kind == AccessKind::Fetch && tells_fetches(context));
    error.set(PageFaultError::SS, access.shadow_stack);
    Exception::page_fault(gva, error)
}

/// Whether the error code tells instruction fetches: CR4.SMEP = 1, or CR4.PAE = 1 and IA32_EFER.NXE = 1.
const fn tells_fetches(context: &PagingContext) -> bool {
    context.cr4.contains(Cr4::SMEP) || (context.cr4.contains(Cr4::PAE) && context.efer.contains(Efer::NXE))
}
