//! Exceptions and the page-fault error code (SDM 3A 6.3, 6.15; APM2 8.2).

use crate::addr::Gva;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// An exception vector that the model can raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Vector {
    /// #DE, divide error.
    Divide = 0,
    /// #DB, debug.
    Debug = 1,
    /// #BP, breakpoint.
    Breakpoint = 3,
    /// #OF, overflow.
    Overflow = 4,
    /// #BR, BOUND range exceeded.
    BoundRange = 5,
    /// #UD, invalid opcode.
    InvalidOpcode = 6,
    /// #NM, device not available.
    DeviceNotAvailable = 7,
    /// #DF, double fault.
    DoubleFault = 8,
    /// #TS, invalid TSS.
    InvalidTss = 10,
    /// #NP, segment not present.
    SegmentNotPresent = 11,
    /// #SS, stack fault.
    StackFault = 12,
    /// #GP, general protection.
    GeneralProtection = 13,
    /// #PF, page fault.
    PageFault = 14,
    /// #MF, x87 floating-point error.
    FloatingPoint = 16,
    /// #AC, alignment check.
    AlignmentCheck = 17,
    /// #XM, SIMD floating-point exception.
    SimdFloatingPoint = 19,
    /// #VE, virtualization exception (SDM 3C 25.5.7).
    Virtualization = 20,
    /// #CP, control protection.
    ControlProtection = 21,
    /// #SX, security exception: an INIT redirected (APM2 8.2.21, 15.28).
    Security = 30,
}

impl Vector {
    /// Every vector of the model.
    pub const ALL: [Self; 19] = [
        Self::Divide,
        Self::Debug,
        Self::Breakpoint,
        Self::Overflow,
        Self::BoundRange,
        Self::InvalidOpcode,
        Self::DeviceNotAvailable,
        Self::DoubleFault,
        Self::InvalidTss,
        Self::SegmentNotPresent,
        Self::StackFault,
        Self::GeneralProtection,
        Self::PageFault,
        Self::FloatingPoint,
        Self::AlignmentCheck,
        Self::SimdFloatingPoint,
        Self::Virtualization,
        Self::ControlProtection,
        Self::Security,
    ];

    /// The vector with this number, if the model has it.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|vector| *vector as u8 == number)
    }

    /// 0 to 31.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The manual's mnemonic, such as `#PF`.
    #[must_use]
    pub const fn mnemonic(self) -> &'static str {
        match self {
            Self::Divide => "#DE",
            Self::Debug => "#DB",
            Self::Breakpoint => "#BP",
            Self::Overflow => "#OF",
            Self::BoundRange => "#BR",
            Self::InvalidOpcode => "#UD",
            Self::DeviceNotAvailable => "#NM",
            Self::DoubleFault => "#DF",
            Self::InvalidTss => "#TS",
            Self::SegmentNotPresent => "#NP",
            Self::StackFault => "#SS",
            Self::GeneralProtection => "#GP",
            Self::PageFault => "#PF",
            Self::FloatingPoint => "#MF",
            Self::AlignmentCheck => "#AC",
            Self::SimdFloatingPoint => "#XM",
            Self::Virtualization => "#VE",
            Self::ControlProtection => "#CP",
            Self::Security => "#SX",
        }
    }

    /// Whether delivery pushes an error code (SDM 3A table 6-1).
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Self::DoubleFault
                | Self::InvalidTss
                | Self::SegmentNotPresent
                | Self::StackFault
                | Self::GeneralProtection
                | Self::PageFault
                | Self::AlignmentCheck
                | Self::ControlProtection
                | Self::Security
        )
    }
}

/// An exception about to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exception {
    /// The vector.
    pub vector: Vector,
    /// The error code, for vectors that have one.
    pub error: Option<u32>,
    /// What CR2 becomes, for a page fault.
    pub cr2: Option<Gva>,
}

impl Exception {
    /// An exception without an error code.
    #[must_use]
    pub const fn plain(vector: Vector) -> Self {
        Self { vector, error: None, cr2: None }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn with_error(vector: Vector, error: u32) -> Self {
        Self { vector, error: Some(error), cr2: None }
    }

    /// #UD.
    #[must_use]
    pub const fn ud() -> Self {
        Self::plain(Vector::InvalidOpcode)
    }

    /// #GP(0).
    #[must_use]
    pub const fn gp0() -> Self {
        Self::with_error(Vector::GeneralProtection, 0)
    }

    /// A page fault.
    #[must_use]
    pub const fn page_fault(address: Gva, error: PageFaultError) -> Self {
        Self { vector: Vector::PageFault, error: Some(error.bits()), cr2: Some(address) }
    }
}

bitflags! {
    /// The page-fault error code (SDM 3A figure 4-12; APM2 8.4.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    pub struct PageFaultError: u32 {
        /// The translation was present: a protection violation.
        const P = 1 << 0;
        /// A write.
        const W = 1 << 1;
        /// A user-mode access.
        const U = 1 << 2;
        /// A reserved bit was set in an entry.
        const RSVD = 1 << 3;
        /// An instruction fetch.
        const F = 1 << 4;
        /// A protection key forbade it.
        const PK = 1 << 5;
        /// A shadow-stack access.
        const SS = 1 << 6;
    }
}
