//! VMCB clean bits (APM2 15.15.3): which of its groups of fields software says it left alone since the last VMRUN.
//!
//! Which field belongs to which group is a column of the one table of fields. Fields of no group are loaded by every
//! VMRUN: TLB_CONTROL, INTERRUPT_SHADOW, EVENTINJ, RFLAGS, RIP, RSP, RAX, and the enables at 090h and 0B8h.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// The field at 0C0h.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct CleanBits: u32 {
        /// Intercepts, TSC offset, PAUSE filter.
        const I = 1 << 0;
        /// The I/O and MSR permission maps' addresses.
        const IOPM = 1 << 1;
        /// The ASID.
        const ASID = 1 << 2;
        /// Virtual interrupt control, 060h to 067h.
        const TPR = 1 << 3;
        /// Nested CR3 and G_PAT.
        const NP = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CRX = 1 << 5;
        /// DR6, DR7.
        const DRX = 1 << 6;
        /// GDTR and IDTR.
        const DT = 1 << 7;
        /// CS, DS, SS, ES and CPL.
        const SEG = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Last-branch records and DBGCTL.
        const LBR = 1 << 10;
        /// AVIC's addresses.
        const AVIC = 1 << 11;
        /// S_CET, SSP, ISST_ADDR.
        const CET = 1 << 12;
        /// No group: every VMRUN loads the field.
        const ALWAYS = 0;
    }
}
