//! The checks that VM-entry makes before it loads guest state (SDM 3C 26.2 and 26.3.1), each a row of a table: what
//! must hold, the clause of the manual, and the predicate.
//!
//! Controls that [`crate::capability`] refuses have no rows of their own beyond the refusal.

pub mod controls;
pub mod guest;
pub mod host;

use crate::capability::Capabilities;
use crate::controls::{EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use crate::vmcs::segment::SegmentName;
use crate::vmcs::{Field, Region};
use cpu::Core;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Segment;
use sim_core::{Ground, Gva, Hpa};

/// One rule that a VMCS must keep.
pub struct Check {
    /// What must hold.
    pub name: &'static str,
    /// Where the manual says so (SDM 3C).
    pub clause: &'static str,
    /// The exit qualification if the check fails on guest state (SDM 3C 26.8).
    pub qualification: u64,
    /// Whether the rule is kept.
    pub holds: fn(&View<'_>) -> bool,
}

const fn check(name: &'static str, clause: &'static str, holds: fn(&View<'_>) -> bool) -> Check {
    Check { name, clause, qualification: 0, holds }
}

/// The first rule of a table that is broken.
#[must_use]
pub fn first_broken(table: &'static [Check], view: &View<'_>) -> Option<&'static Check> {
    table.iter().find(|check| !(check.holds)(view))
}

/// What a check can see: the VMCS, the processor before the entry, and what the processor can do.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Memory, where the VMCS is.
    pub ground: &'a Ground,
    /// The current VMCS.
    pub region: Region,
    /// What the processor can do.
    pub capabilities: &'a Capabilities,
    /// The processor, still in root operation.
    pub core: &'a Core,
}

impl View<'_> {
    /// One field.
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        self.region.get(self.ground, field)
    }

    /// The pin-based controls.
    #[must_use]
    pub fn pin(&self) -> PinBased {
        PinBased::from_bits_retain(self.get(Field::PinBasedControls) as u32)
    }

    /// The primary processor-based controls.
    #[must_use]
    pub fn primary(&self) -> PrimaryProc {
        PrimaryProc::from_bits_retain(self.get(Field::PrimaryControls) as u32)
    }

    /// The secondary processor-based controls: all 0 unless the primary ones activate them (SDM 3C 24.6.2).
    #[must_use]
    pub fn secondary(&self) -> SecondaryProc {
        match self.primary().contains(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS) {
            true => SecondaryProc::from_bits_retain(self.get(Field::SecondaryControls) as u32),
            false => SecondaryProc::empty(),
        }
    }

    /// The VM-exit controls.
    #[must_use]
    pub fn exit(&self) -> ExitControls {
        ExitControls::from_bits_retain(self.get(Field::ExitControls) as u32)
    }

    /// The VM-entry controls.
    #[must_use]
    pub fn entry(&self) -> EntryControls {
        EntryControls::from_bits_retain(self.get(Field::EntryControls) as u32)
    }

    /// Whether the guest is to run in IA-32e mode.
    #[must_use]
    pub fn ia32e(&self) -> bool {
        self.entry().contains(EntryControls::IA32E_MODE_GUEST)
    }

    /// Whether the guest may run without protection or paging.
    #[must_use]
    pub fn unrestricted(&self) -> bool {
        self.secondary().contains(SecondaryProc::UNRESTRICTED_GUEST)
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
        name.load(self.region, self.ground)
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

    /// Whether a linear address is canonical for the widest linear addresses that the processor has: these checks do
    /// not ask CR4.LA57 (SDM 3C 26.2.2, 26.3.1).
    #[must_use]
    pub const fn is_canonical(&self, address: u64) -> bool {
        let widest = if self.capabilities.cr4_fixed.1 & Cr4::LA57.bits() != 0 { 57 } else { 48 };
        Gva(address).is_canonical(widest)
    }

    /// Whether an EPTP is valid (SDM 3C 26.2.1.1, 24.6.11).
    #[must_use]
    pub const fn is_eptp(&self, eptp: u64) -> bool {
        use crate::capability::ept_vpid;
        let offered = self.capabilities.ept_vpid;
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
        type_ok && walk_ok && flags_ok && eptp & 0xf80 == 0 && self.within_width(eptp)
    }

    /// Whether a number of MSR-area entries fits at an address (SDM 3C 26.2.1.2, 26.2.1.3).
    fn is_msr_area(&self, count: Field, address: Field) -> bool {
        let (count, address) = (self.get(count), self.get(address));
        let last = address.wrapping_add(count.wrapping_mul(16)).wrapping_sub(1);
        count == 0 || (address & 0xf == 0 && self.within_width(address) && self.within_width(last))
    }
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

/// Whether a register has every bit that VMX operation fixes (SDM 3D A.7, A.8).
const fn keeps_fixed(value: u64, (must, may): (u64, u64)) -> bool {
    value & must == must && value & !may == 0
}

/// The link pointer of a VMCS that links nothing.
pub(crate) const NO_LINK: Hpa = Hpa(u64::MAX);
