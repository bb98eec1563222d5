//! What the checks look at: the fields of a VMCB, and the host's side of VMRUN.

use crate::capability::{Capabilities, Features};
use crate::inject::EventInjection;
use crate::intercept::Intercepts;
use crate::interrupts::VirtualInterrupts;
use crate::vmcb::{Field, Image, SegmentField};
use cpu::{Core, profile};
use sim_core::Hpa;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Rights;
use sim_core::memory::PhysMem;

/// Where CR3 of PAE paging has the table's address: bits 31:5.
const PAE_CR3_MASK: u64 = 0xffff_ffe0;
/// NP_ENABLE in the nested-control field (APM2 table B-1, 090h).
const NP_ENABLE: u64 = 1 << 0;

/// Whether nested paging is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NestedPaging {
    /// The guest's tables translate to host-physical addresses.
    Off,
    /// N_CR3 translates.
    On,
}

impl NestedPaging {
    /// NP_ENABLE of a VMCB; a processor without nested paging ignores it (APM2 15.25.1).
    #[must_use]
    pub fn of(image: &Image, capabilities: &Capabilities) -> Self {
        let enabled = image.field(Field::NestedControl) & NP_ENABLE != 0;
        if enabled && capabilities.has(Features::NESTED_PAGING) { Self::On } else { Self::Off }
    }
}

/// Everything that a rule can depend on. Register fields are raw, so that reserved bits show.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the fields' of the VMCB")]
pub struct View {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub cs: Rights,
    pub intercepts: Intercepts,
    pub iopm: u64,
    pub msrpm: u64,
    pub asid: u64,
    pub tlb_control: u64,
    pub injection: EventInjection,
    pub nested: NestedPaging,
    pub ncr3: u64,
    pub pat: u64,
    pub s_cet: u64,
    pub virtual_interrupts: VirtualInterrupts,
    /// The PDPTEs that CR3 points to, where VMRUN loads them: a PAE guest without nested paging (APM2 15.25.10).
    pub pdptes: Option<[u64; 4]>,
    /// CR0 of the host.
    pub host_cr0: Cr0,
    /// What the processor offers.
    pub features: profile::Features,
    /// The processor's MAXPHYADDR.
    pub maxphyaddr: u32,
    /// The processor's capabilities.
    pub capabilities: Capabilities,
}

impl View {
    /// Everything, from a VMCB as VMRUN sees it.
    #[must_use]
    pub fn of(image: &Image, mem: &PhysMem, core: &Core, capabilities: &Capabilities) -> Self {
        let field = |field| image.field(field);
        let mut view = Self {
            cr0: field(Field::Cr0),
            cr3: field(Field::Cr3),
            cr4: field(Field::Cr4),
            efer: field(Field::Efer),
            dr6: field(Field::Dr6),
            dr7: field(Field::Dr7),
            cs: image.segment(SegmentField::Cs).rights,
            intercepts: Intercepts::of(image),
            iopm: field(Field::IopmBase),
            msrpm: field(Field::MsrpmBase),
            asid: field(Field::Asid),
            tlb_control: field(Field::TlbControl),
            injection: EventInjection(field(Field::EventInjection)),
            nested: NestedPaging::of(image, capabilities),
            ncr3: field(Field::NestedCr3),
            pat: field(Field::GuestPat),
            s_cet: field(Field::SCet),
            virtual_interrupts: VirtualInterrupts::load(field(Field::VirtualInterrupt), capabilities),
            pdptes: None,
            host_cr0: core.cr0,
            features: core.features,
            maxphyaddr: core.maxphyaddr,
            capabilities: *capabilities,
        };
        if view.is_pae() && view.nested == NestedPaging::Off {
            let table = Hpa(view.cr3 & PAE_CR3_MASK);
            view.pdptes = Some([0, 1, 2, 3].map(|index| mem.read_u64(table.offset(8 * index))));
        }
        view
    }

    /// Whether the guest would use PAE paging outside long mode.
    const fn is_pae(&self) -> bool {
        self.has_cr0(Cr0::PG) && self.has_cr4(Cr4::PAE) && !self.is_long()
    }

    /// Whether all these bits of CR0 are set.
    #[must_use]
    pub const fn has_cr0(&self, bits: Cr0) -> bool {
        self.cr0 & bits.bits() == bits.bits()
    }

    /// Whether all these bits of CR4 are set.
    #[must_use]
    pub const fn has_cr4(&self, bits: Cr4) -> bool {
        self.cr4 & bits.bits() == bits.bits()
    }

    /// Whether all these bits of EFER are set.
    #[must_use]
    pub const fn has_efer(&self, bits: Efer) -> bool {
        self.efer & bits.bits() == bits.bits()
    }

    /// Whether the guest would run in long mode: EFER.LME and CR0.PG.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.has_efer(Efer::LME) && self.has_cr0(Cr0::PG)
    }

    /// Whether a physical address needs bits at or above MAXPHYADDR.
    #[must_use]
    pub const fn is_beyond(&self, address: u64) -> bool {
        self.maxphyaddr < 64 && address >> self.maxphyaddr != 0
    }
}
