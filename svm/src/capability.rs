//! What this processor's SVM can do: CPUID Fn8000_000A (APM3 appendix E.4.9).
//!
//! Left out: every feature whose behaviour the model lacks (last-branch records, AVIC, IBS and PMC virtualization, SEV,
//! bus-lock threshold). A processor of the model never reports them, and a VMCB that asks for one is refused by name.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// Optional features, at their positions in CPUID Fn8000_000A EDX.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Features: u32 {
        /// Nested paging (APM2 15.25).
        const NESTED_PAGING = 1 << 0;
        /// VM_CR can be locked, and SVM_KEY unlocks it (APM2 15.31).
        const SVM_LOCK = 1 << 2;
        /// The next instruction's rIP is saved on #VMEXIT (APM2 15.7.1).
        const NRIP_SAVE = 1 << 3;
        /// TSC_RATIO (APM2 15.30.5).
        const TSC_RATIO = 1 << 4;
        /// VMCB clean bits (APM2 15.15).
        const VMCB_CLEAN = 1 << 5;
        /// TLB_CONTROL can flush one ASID (APM2 15.16).
        const FLUSH_BY_ASID = 1 << 6;
        /// Decode assists (APM2 15.8).
        const DECODE_ASSISTS = 1 << 7;
        /// The PAUSE filter counts (APM2 15.14.4).
        const PAUSE_FILTER = 1 << 10;
        /// The PAUSE filter has a threshold (APM2 15.14.4).
        const PAUSE_THRESHOLD = 1 << 12;
        /// Virtualized VMLOAD and VMSAVE (APM2 15.33.1).
        const VIRTUAL_VMLOAD = 1 << 15;
        /// Virtualized GIF (APM2 15.33.2).
        const VIRTUAL_GIF = 1 << 16;
        /// Guest mode execute trap (APM2 15.25.13).
        const GMET = 1 << 17;
        /// Supervisor shadow-stack check (APM2 15.25.14).
        const SUPERVISOR_SHADOW_STACK = 1 << 19;
        /// INVLPGB and TLBSYNC can be given to guests (APM2 15.16).
        const TLB_ICTL = 1 << 24;
        /// Virtual NMI (APM2 15.21.10).
        const VIRTUAL_NMI = 1 << 25;
        /// The HLT intercept that a pending virtual event lifts (APM2 15.9).
        const IDLE_HLT = 1 << 30;
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
    /// SVM revision 1, the only one there is (EAX bits 7:0).
    const REVISION: u32 = 1;

    /// Whether the processor has all of these features.
    #[must_use]
    pub const fn has(&self, features: Features) -> bool {
        self.features.contains(features)
    }

    /// CPUID Fn8000_000A: EAX, EBX, ECX and EDX.
    #[must_use]
    pub const fn leaf(&self) -> [u32; 4] {
        [Self::REVISION, self.nasid, 0, self.features.bits()]
    }
}

impl Default for Capabilities {
    /// Everything that the model knows, with the 32768 ASIDs of Zen processors.
    fn default() -> Self {
        Self { nasid: 0x8000, features: Features::all() }
    }
}
