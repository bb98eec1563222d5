//! What a VM-entry check can see: the VMCS, the processor before the entry, and what the processor can do.

use crate::capability::{Capabilities, ept_vpid};
use crate::controls::{EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use crate::vmcs::region::Fields;
use crate::vmcs::segment::SegmentName;
use crate::vmcs::{Field, Region};
use cpu::{Blocking, Core};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Segment;
use sim_core::{Ground, Gva};

/// A VMCS about to be entered.
pub struct View<'a> {
    /// Memory, where other structures are that checks look at.
    pub ground: &'a Ground,
    /// The current VMCS.
    pub region: Region,
    /// What the processor can do.
    pub capabilities: &'a Capabilities,
    /// The processor, still in root operation.
    pub core: &'a Core,
    fields: Fields,
}

impl<'a> View<'a> {
    /// Reads the VMCS.
    #[must_use]
    pub fn new(ground: &'a Ground, region: Region, capabilities: &'a Capabilities, core: &'a Core) -> Self {
        Self { ground, region, capabilities, core, fields: region.all(ground) }
    }

    /// One field.
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        self.fields.get(field)
    }

    /// A 32-bit field.
    #[must_use]
    pub fn word(&self, field: Field) -> u32 {
        self.get(field) as u32
    }

    /// The pin-based controls.
    #[must_use]
    pub fn pin(&self) -> PinBased {
        PinBased::from_bits_retain(self.word(Field::PinBasedControls))
    }

    /// The primary processor-based controls.
    #[must_use]
    pub fn primary(&self) -> PrimaryProc {
        PrimaryProc::from_bits_retain(self.word(Field::PrimaryControls))
    }

    /// The secondary processor-based controls: all 0 unless the primary ones activate them (SDM 3C 24.6.2).
    #[must_use]
    pub fn secondary(&self) -> SecondaryProc {
        match self.primary().contains(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS) {
            true => SecondaryProc::from_bits_retain(self.word(Field::SecondaryControls)),
            false => SecondaryProc::empty(),
        }
    }

    /// The VM-exit controls.
    #[must_use]
    pub fn exit(&self) -> ExitControls {
        ExitControls::from_bits_retain(self.word(Field::ExitControls))
    }

    /// The VM-entry controls.
    #[must_use]
    pub fn entry(&self) -> EntryControls {
        EntryControls::from_bits_retain(self.word(Field::EntryControls))
    }

    /// Whether every one of these secondary controls is 1.
    #[must_use]
    pub fn has(&self, control: SecondaryProc) -> bool {
        self.secondary().contains(control)
    }

    /// Whether the TPR shadow is used.
    #[must_use]
    pub fn tpr_shadow(&self) -> bool {
        self.primary().contains(PrimaryProc::USE_TPR_SHADOW)
    }

    /// Whether the guest is to run in IA-32e mode.
    #[must_use]
    pub fn ia32e(&self) -> bool {
        self.entry().contains(EntryControls::IA32E_MODE_GUEST)
    }

    /// Whether the guest may run without protection or paging.
    #[must_use]
    pub fn unrestricted(&self) -> bool {
        self.has(SecondaryProc::UNRESTRICTED_GUEST)
    }

    /// Whether the host is a 64-bit one.
    #[must_use]
    pub fn host64(&self) -> bool {
        self.exit().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
    }

    /// Guest CR0.
    #[must_use]
    pub fn guest_cr0(&self) -> Cr0 {
        Cr0::from_bits_retain(self.get(Field::GuestCr0))
    }

    /// Guest CR4.
    #[must_use]
    pub fn guest_cr4(&self) -> Cr4 {
        Cr4::from_bits_retain(self.get(Field::GuestCr4))
    }

    /// Guest EFER, as the VMCS has it.
    #[must_use]
    pub fn guest_efer(&self) -> Efer {
        Efer::from_bits_retain(self.get(Field::GuestEfer))
    }

    /// Whether the guest is to run in virtual-8086 mode.
    #[must_use]
    pub fn virtual_8086(&self) -> bool {
        self.get(Field::GuestRflags) & 1 << 17 != 0
    }

    /// Whether the guest is to use PAE paging (SDM 3C 26.3.1.6).
    #[must_use]
    pub fn guest_pae(&self) -> bool {
        self.guest_cr0().contains(Cr0::PG) && self.guest_cr4().contains(Cr4::PAE) && !self.ia32e()
    }

    /// One guest segment register.
    #[must_use]
    pub fn segment(&self, name: SegmentName) -> Segment {
        name.load_with(|field| self.get(field))
    }

    /// Whether the processor is in system-management mode.
    #[must_use]
    pub fn in_smm(&self) -> bool {
        self.core.blocking.contains(Blocking::SMI)
    }

    /// Whether a physical address lies within the processor's width.
    #[must_use]
    pub const fn within_width(&self, address: u64) -> bool {
        address >> self.core.maxphyaddr == 0
    }

    /// Whether a physical address is 4 KiB aligned and within the width.
    #[must_use]
    pub const fn is_page(&self, address: u64) -> bool {
        Region::is_pointer(address, self.core.maxphyaddr)
    }

    /// Whether a value can be CR3: the linear-address-masking bits 62:61 only on a processor that has them.
    #[must_use]
    pub const fn is_cr3(&self, value: u64) -> bool {
        let masking = if self.capabilities.cr4_fixed.1 & Cr4::LAM_SUP.bits() != 0 { 3 << 61 } else { 0 };
        self.within_width(value & !masking)
    }

    /// The widest linear addresses that the processor has.
    const fn widest(&self) -> u32 {
        if self.capabilities.cr4_fixed.1 & Cr4::LA57.bits() != 0 { 57 } else { 48 }
    }

    /// Whether a linear address is canonical for the widest linear addresses that the processor has: these checks do
    /// not ask CR4.LA57 (SDM 3C 26.2.2, 26.3.1).
    #[must_use]
    pub const fn is_canonical(&self, address: u64) -> bool {
        Gva(address).is_canonical(self.widest())
    }

    /// Whether bits 63:N of an address are identical, N the widest linear addresses: RIP and SSP may lie one bit
    /// outside canonical space (SDM 3C 26.3.1.4).
    #[must_use]
    pub const fn has_identical_top(&self, address: u64) -> bool {
        let top = address >> self.widest();
        top == 0 || top == u64::MAX >> self.widest()
    }

    /// Whether an EPTP is valid (SDM 3C 26.2.1.1, 24.6.11).
    #[must_use]
    pub const fn is_eptp(&self, eptp: u64) -> bool {
        is_eptp(self.capabilities, self.core.maxphyaddr, eptp)
    }

    /// Whether a number of MSR-area entries fits at an address (SDM 3C 26.2.1.2, 26.2.1.3).
    pub(super) fn is_msr_area(&self, count: Field, address: Field) -> bool {
        let (count, address) = (self.get(count), self.get(address));
        let last = address.wrapping_add(count.wrapping_mul(16)).wrapping_sub(1);
        count == 0 || (address & 0xf == 0 && self.within_width(address) && self.within_width(last))
    }
}

/// Whether an EPTP is valid on a processor (SDM 3C 24.6.11).
#[must_use]
pub const fn is_eptp(capabilities: &Capabilities, maxphyaddr: u32, eptp: u64) -> bool {
    let offered = capabilities.ept_vpid;
    let type_ok = match eptp & 7 {
        0 => offered & ept_vpid::UNCACHEABLE != 0,
        6 => offered & ept_vpid::WRITE_BACK != 0,
        _ => false,
    };
    let walk_ok = match eptp >> 3 & 7 {
        3 => offered & ept_vpid::WALK_4 != 0,
        4 => offered & ept_vpid::WALK_5 != 0,
        _ => false,
    };
    let flags_ok = eptp & 1 << 6 == 0 || offered & ept_vpid::ACCESSED_DIRTY != 0;
    let shadow_stack_ok = eptp & 1 << 7 == 0 || offered & ept_vpid::SUPERVISOR_SHADOW_STACK != 0;
    type_ok && walk_ok && flags_ok && shadow_stack_ok && eptp & 0xf00 == 0 && eptp >> maxphyaddr == 0
}

/// Whether every byte of an IA32_PAT value is a memory type: 0, 1, 4, 5, 6 or 7 (SDM 3A table 11-10).
#[must_use]
pub fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// Whether an IA32_EFER value has no reserved bit; SVME is AMD's.
#[must_use]
pub const fn is_efer(value: u64) -> bool {
    value & !(Efer::SCE.bits() | Efer::LME.bits() | Efer::LMA.bits() | Efer::NXE.bits()) == 0
}

/// Whether an IA32_S_CET or IA32_U_CET value has no reserved bit (9:6), a canonical bitmap address, and not both SUPPRESS
/// and TRACKER (SDM 1 18.3, SDM 3C 26.2.2).
#[must_use]
pub const fn is_cet(value: u64, linear_width: u32) -> bool {
    value & 0x3c0 == 0 && value & 0xc00 != 0xc00 && Gva(value & !0xfff).is_canonical(linear_width)
}

/// Whether an IA32_PERF_GLOBAL_CTRL value has no reserved bit, on a processor with 8 general-purpose and 4 fixed counters
/// and performance metrics.
#[must_use]
pub const fn is_perf_global_ctrl(value: u64) -> bool {
    value & !(0xff | 0xf << 32 | 1 << 48) == 0
}

/// Whether a register has every bit that VMX operation fixes (SDM 3D A.7, A.8).
pub(super) const fn keeps_fixed(value: u64, (must, may): (u64, u64)) -> bool {
    value & must == must && value & !may == 0
}
