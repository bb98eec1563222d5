//! What this processor's SVM can do: CPUID Fn8000_000A (APM3 appendix E.4.9).
//!
//! Left out: every feature whose behaviour the model lacks (LBR virtualization, TSC ratio, AVIC, virtual VMLOAD and
//! VMSAVE, vGIF, SEV). A processor of the model never reports them.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// Optional features, at their positions in CPUID Fn8000_000A EDX.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Features: u32 {
        /// Nested paging (APM2 15.25).
        const NESTED_PAGING = 1 << 0;
        /// The next instruction's rIP is saved on #VMEXIT (APM2 15.7.1).
        const NRIP_SAVE = 1 << 3;
        /// TLB_CONTROL can flush one ASID (APM2 15.16.2).
        const FLUSH_BY_ASID = 1 << 6;
        /// Decode assists (APM2 15.33).
        const DECODE_ASSISTS = 1 << 7;
    }
}

/// The capabilities of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capabilities {
    /// The number of address-space identifiers, the host's 0 included (EBX).
    pub nasid: u32,
    /// Optional features (EDX).
    pub features: Features,
}

impl Capabilities {
    /// Whether the processor has all of these features.
    #[must_use]
    pub const fn has(&self, features: Features) -> bool {
        self.features.contains(features)
    }
}

impl Default for Capabilities {
    /// Everything that the model knows, with the 32768 ASIDs of Zen processors.
    fn default() -> Self {
        Self { nasid: 0x8000, features: Features::all() }
    }
}
