//! The registers that first-stage paging depends on, taken out of the processor so that walkers touch nothing else
//! (SDM 3A 4.1).

use super::format::{Limits, NoExecute};
use crate::core::Core;
use sim_core::SimError;
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::rflags::Rflags;

/// Control registers, EFER, PDPTE registers and EFLAGS.AC, as one access sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagingContext {
    /// CR0: PG, WP.
    pub cr0: Cr0,
    /// CR3, raw.
    pub cr3: u64,
    /// CR4: PAE, PSE, PGE, LA57, SMEP, SMAP.
    pub cr4: Cr4,
    /// IA32_EFER: LMA, NXE.
    pub efer: Efer,
    /// RFLAGS: AC.
    pub rflags: Rflags,
    /// The PDPTE registers.
    pub pdptes: [u64; 4],
    /// MAXPHYADDR, in bits.
    pub maxphyaddr: u32,
}

impl PagingContext {
    /// What the processor's next access sees.
    #[must_use]
    pub const fn of(core: &Core) -> Self {
        Self {
            cr0: core.cr0,
            cr3: core.cr3,
            cr4: core.cr4,
            efer: core.efer,
            rflags: core.rflags,
            pdptes: core.pdptes,
            maxphyaddr: core.maxphyaddr,
        }
    }

    /// The paging mode in force.
    #[must_use]
    pub const fn mode(&self) -> PagingMode {
        PagingMode::of(self.cr0, self.cr4, self.efer)
    }

    /// What the reserved bits of entries depend on.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits { maxphyaddr: self.maxphyaddr, no_execute: no_execute(self.efer) }
    }

    /// Refuses paging features that the walkers don't know.
    pub(crate) fn require_modelled(&self) -> Result<(), SimError> {
        if self.cr4.intersects(Cr4::PKE.union(Cr4::PKS)) {
            return Err(SimError::unmodelled("protection keys (CR4.PKE, CR4.PKS)"));
        }
        Ok(())
    }
}

/// What bit 63 of entries means with this EFER.
pub(crate) const fn no_execute(efer: Efer) -> NoExecute {
    if efer.contains(Efer::NXE) { NoExecute::Enabled } else { NoExecute::Reserved }
}
