//! The registers that first-stage paging depends on, taken out of the processor so that walkers touch nothing else
//! (SDM 3A 4.1).

use super::format::{Limits, NoExecute, Offers};
use crate::core::Core;
use crate::tlb::Space;
use crate::virt::Tag;
use sim_core::arch::control::{CR3_PCID_MASK, Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::rflags::Rflags;

/// Control registers, EFER, PDPTE registers, protection-key rights and EFLAGS.AC, as one access sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagingContext {
    /// CR0: PG, WP, CD.
    pub cr0: Cr0,
    /// CR3, raw.
    pub cr3: u64,
    /// CR4: PAE, PSE, PGE, LA57, SMEP, SMAP, PKE, PKS.
    pub cr4: Cr4,
    /// IA32_EFER: LMA, NXE.
    pub efer: Efer,
    /// RFLAGS: AC.
    pub rflags: Rflags,
    /// The PDPTE registers.
    pub pdptes: [u64; 4],
    /// PKRU.
    pub pkru: u32,
    /// IA32_PKRS.
    pub pkrs: u32,
    /// IA32_PAT.
    pub pat: u64,
    /// MAXPHYADDR, in bits.
    pub maxphyaddr: u32,
    /// What the entries may use.
    pub offers: Offers,
}

impl PagingContext {
    /// What the processor's next access sees.
    #[must_use]
    pub fn of(core: &Core) -> Self {
        Self {
            cr0: core.cr0,
            cr3: core.cr3,
            cr4: core.cr4,
            efer: core.efer,
            rflags: core.rflags,
            pdptes: core.pdptes,
            pkru: core.pkru,
            pkrs: core.msrs.pkrs as u32,
            pat: core.msrs.pat,
            maxphyaddr: core.maxphyaddr,
            offers: Offers::ordinary(core.features),
        }
    }

    /// The address space that these registers select under a tag.
    pub(crate) fn space(&self, tag: &Tag) -> Space {
        let pcid = if self.cr4.contains(Cr4::PCIDE) { (self.cr3 & CR3_PCID_MASK) as u16 } else { 0 };
        Space { context: tag.context, ept_root: tag.ept_root, pcid }
    }

    /// The paging mode in force.
    #[must_use]
    pub const fn mode(&self) -> PagingMode {
        PagingMode::of(self.cr0, self.cr4, self.efer)
    }

    /// What the reserved bits of entries depend on.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits { maxphyaddr: self.maxphyaddr, no_execute: no_execute(self.efer), offers: self.offers }
    }
}

/// What bit 63 of entries means with this EFER.
pub(crate) const fn no_execute(efer: Efer) -> NoExecute {
    if efer.contains(Efer::NXE) { NoExecute::Enabled } else { NoExecute::Reserved }
}
