//! Page faults: from what a walk found to the error code (SDM 3A 4.7; APM2 8.4.2).

use super::context::PagingContext;
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
    /// The translation is valid and forbids the access.
    Forbidden,
}

/// The page fault that an access takes.
pub(super) fn page_fault(context: &PagingContext, gva: Gva, access: Access, cause: Cause) -> Exception {
    let mut error = match cause {
        Cause::NotPresent => PageFaultError::empty(),
        Cause::Reserved => PageFaultError::P | PageFaultError::RSVD,
        Cause::Forbidden => PageFaultError::P,
    };
    error.set(PageFaultError::W, access.kind == AccessKind::Write);
    error.set(PageFaultError::U, access.privilege == Privilege::User);
    error.set(PageFaultError::F, access.kind == AccessKind::Fetch && tells_fetches(context));
    Exception::page_fault(gva, error)
}

/// Whether the error code tells instruction fetches: CR4.SMEP = 1, or CR4.PAE = 1 and IA32_EFER.NXE = 1.
const fn tells_fetches(context: &PagingContext) -> bool {
    context.cr4.contains(Cr4::SMEP) || (context.cr4.contains(Cr4::PAE) && context.efer.contains(Efer::NXE))
}
