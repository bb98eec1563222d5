//! What a processor offers: the features that CPUID and the capability MSRs show, and that reserved bits, #UD and #GP
//! depend on (SDM 2 CPUID; APM3 appendix E).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// Features that software can find missing. What every processor with long mode has is not here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Features: u64 {
        /// Process-context identifiers.
        const PCID = 1 << 0;
        /// INVPCID.
        const INVPCID = 1 << 1;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 2;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 3;
        /// User-mode instruction prevention.
        const UMIP = 1 << 4;
        /// 5-level paging.
        const LA57 = 1 << 5;
        /// Protection keys for user pages.
        const PKU = 1 << 6;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 7;
        /// Shadow stacks.
        const CET_SS = 1 << 8;
        /// Indirect-branch tracking.
        const CET_IBT = 1 << 9;
        /// Linear-address masking.
        const LAM = 1 << 10;
        /// RDFSBASE and its relatives.
        const FSGSBASE = 1 << 11;
        /// 1 GiB pages.
        const PAGE_1G = 1 << 12;
        /// The NX bit.
        const NX = 1 << 13;
        /// RDTSCP and IA32_TSC_AUX.
        const RDTSCP = 1 << 14;
        /// RDPID.
        const RDPID = 1 << 15;
        /// XSAVE and its relatives, XCR0.
        const XSAVE = 1 << 16;
        /// SSE and SSE2.
        const SSE2 = 1 << 17;
        /// x2APIC.
        const X2APIC = 1 << 18;
        /// INVLPGB and TLBSYNC.
        const INVLPGB = 1 << 19;
        /// POPCNT, and with it SSE4.2.
        const POPCNT = 1 << 20;
        /// BMI1, BMI2 and LZCNT.
        const BMI = 1 << 21;
        /// MOVBE.
        const MOVBE = 1 << 22;
        /// RDRAND and RDSEED.
        const RDRAND = 1 << 23;
        /// CLFLUSHOPT and CLWB.
        const CLFLUSHOPT = 1 << 24;
        /// ADCX and ADOX.
        const ADX = 1 << 26;
        /// Bit 8 of entries that refer to a table is reserved above the page directory, as on AMD's processors, instead
        /// of ignored (APM2 5.3.3).
        const UPPER_GLOBAL_RESERVED = 1 << 25;

        /// What a processor has that nothing more was said about.
        const BASE = Self::PCID.bits() | Self::INVPCID.bits() | Self::SMEP.bits() | Self::SMAP.bits()
            | Self::UMIP.bits() | Self::LA57.bits() | Self::PKU.bits() | Self::FSGSBASE.bits()
            | Self::PAGE_1G.bits() | Self::NX.bits();
    }
}
