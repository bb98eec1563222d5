//! Control registers and EFER (SDM 3A 2.5; APM2 3.1). Every architectural bit has its name; unnamed bits are reserved.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type; always 1.
        const ET = 1 << 4;
        /// Numeric error.
        const NE = 1 << 5;
        /// Write protect.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }

    /// CR4.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// Time-stamp disable.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// Page-size extensions.
        const PSE = 1 << 4;
        /// Physical-address extension.
        const PAE = 1 << 5;
        /// Machine-check enable.
        const MCE = 1 << 6;
        /// Page-global enable.
        const PGE = 1 << 7;
        /// Performance-counter enable.
        const PCE = 1 << 8;
        /// OS support for FXSAVE.
        const OSFXSR = 1 << 9;
        /// OS support for unmasked SIMD exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// 57-bit linear addresses (5-level paging).
        const LA57 = 1 << 12;
        /// VMX enable.
        const VMXE = 1 << 13;
        /// SMX enable.
        const SMXE = 1 << 14;
        /// FSGSBASE enable.
        const FSGSBASE = 1 << 16;
        /// PCID enable.
        const PCIDE = 1 << 17;
        /// XSAVE enable.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 24;
        /// User interrupts.
        const UINTR = 1 << 25;
        /// Linear-address masking for supervisor pointers.
        const LAM_SUP = 1 << 28;
    }

    /// IA32_EFER (SDM 3A 2.2.1; APM2 3.1.7).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Efer: u64 {
        /// SYSCALL enable.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
        /// Secure virtual machine enable.
        const SVME = 1 << 12;
    }
}

/// CR3 bit 63 in the operand of MOV to CR3 with CR4.PCIDE = 1: do not invalidate (SDM 3A 4.10.4.1).
pub const CR3_NO_FLUSH: u64 = 1 << 63;
/// The PCID in CR3 when CR4.PCIDE = 1.
pub const CR3_PCID_MASK: u64 = 0xfff;

/// The paging mode that control registers select (SDM 3A 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PagingMode {
    /// CR0.PG = 0.
    Off,
    /// 32-bit paging: two levels of 4-byte entries.
    Legacy,
    /// PAE paging: four PDPTE registers and two levels of 8-byte entries.
    Pae,
    /// 4-level paging.
    Long4,
    /// 5-level paging.
    Long5,
}

impl PagingMode {
    /// The mode that these registers select.
    #[must_use]
    pub const fn of(cr0: Cr0, cr4: Cr4, efer: Efer) -> Self {
        if !cr0.contains(Cr0::PG) {
            Self::Off
        } else if !cr4.contains(Cr4::PAE) {
            Self::Legacy
        } else if !efer.contains(Efer::LMA) {
            Self::Pae
        } else if cr4.contains(Cr4::LA57) {
            Self::Long5
        } else {
            Self::Long4
        }
    }
}
