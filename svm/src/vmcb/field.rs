//! The one table of VMCB fields: offset, width and clean group of each (APM2 tables B-1, B-2 and 15.15.3).
//!
//! Segment and table registers are in [`super::SegmentField`] and [`super::TableField`], the guest instruction bytes at
//! 0D1h in [`super::write_instruction`]. Left out: the save area of SEV-ES guests (table B-4), the LBR stack and IBS.

use super::clean::CleanBits;

macro_rules! fields {
    ($($name:ident $offset:literal $bytes:literal $clean:ident $text:literal)*) => {
        /// A field of the VMCB.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Field {
            $(#[doc = $text] $name,)*
        }

        impl Field {
            /// Every field, in the order of the layout.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The first byte's offset in the VMCB.
            #[must_use]
            pub const fn offset(self) -> u32 {
                match self {
                    $(Self::$name => $offset,)*
                }
            }

            /// The width in bytes.
            #[must_use]
            pub const fn bytes(self) -> usize {
                match self {
                    $(Self::$name => $bytes,)*
                }
            }

            /// The clean bit under which VMRUN may take the field from its cache; none if it never may.
            #[must_use]
            pub const fn clean(self) -> CleanBits {
                match self {
                    $(Self::$name => CleanBits::$clean,)*
                }
            }

            /// The name in the manual's words.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

fields! {
    InterceptCrReads      0x000 2 I      "intercept reads of CR0-CR15"
    InterceptCrWrites     0x002 2 I      "intercept writes of CR0-CR15"
    InterceptDrReads      0x004 2 I      "intercept reads of DR0-DR15"
    InterceptDrWrites     0x006 2 I      "intercept writes of DR0-DR15"
    InterceptExceptions   0x008 4 I      "intercept exception vectors 0-31"
    InterceptWord3        0x00c 4 I      "intercept word at 00Ch"
    InterceptWord4        0x010 4 I      "intercept word at 010h"
    InterceptWord5        0x014 4 I      "intercept word at 014h"
    PauseFilterThreshold  0x03c 2 I      "PAUSE filter threshold"
    PauseFilterCount      0x03e 2 I      "PAUSE filter count"
    IopmBase              0x040 8 IOPM   "IOPM_BASE_PA"
    MsrpmBase             0x048 8 IOPM   "MSRPM_BASE_PA"
    TscOffset             0x050 8 I      "TSC_OFFSET"
    Asid                  0x058 4 ASID   "guest ASID"
    TlbControl            0x05c 1 ALWAYS "TLB_CONTROL"
    ReturnAddressControl  0x05d 1 ALWAYS "ALLOW_LARGER_RAP and CLEAR_RAP"
    VirtualInterrupt      0x060 8 TPR    "V_TPR, V_IRQ, VGIF, V_INTR and AVIC enable"
    InterruptShadow       0x068 8 ALWAYS "INTERRUPT_SHADOW"
    ExitCode              0x070 8 ALWAYS "EXITCODE"
    ExitInfo1             0x078 8 ALWAYS "EXITINFO1"
    ExitInfo2             0x080 8 ALWAYS "EXITINFO2"
    ExitIntInfo           0x088 8 ALWAYS "EXITINTINFO"
    NestedControl         0x090 8 ALWAYS "NP_ENABLE and SEV enables"
    AvicApicBar           0x098 8 AVIC   "AVIC APIC_BAR"
    GhcbGpa               0x0a0 8 ALWAYS "guest physical address of GHCB"
    EventInjection        0x0a8 8 ALWAYS "EVENTINJ"
    NestedCr3             0x0b0 8 NP     "N_CR3"
    VirtualExtensions     0x0b8 8 ALWAYS "LBR_VIRTUALIZATION_ENABLE and virtual VMSAVE/VMLOAD"
    CleanBits             0x0c0 4 ALWAYS "VMCB clean bits"
    NextRip               0x0c8 8 ALWAYS "nRIP"
    BytesFetched          0x0d0 1 ALWAYS "number of bytes fetched"
    AvicBackingPage       0x0e0 8 AVIC   "AVIC APIC_BACKING_PAGE pointer"
    AvicLogicalTable      0x0f0 8 AVIC   "AVIC LOGICAL_TABLE pointer"
    AvicPhysicalTable     0x0f8 8 AVIC   "AVIC PHYSICAL_TABLE pointer"
    VmsaPointer           0x108 8 ALWAYS "VMSA pointer"
    VmgexitRax            0x110 8 ALWAYS "VMGEXIT_RAX"
    VmgexitCpl            0x118 1 ALWAYS "VMGEXIT_CPL"
    BusLockThreshold      0x120 2 ALWAYS "bus lock threshold counter"
    UpdateIrr             0x134 4 ALWAYS "UPDATE_IRR"
    AllowedSevFeatures    0x138 8 ALWAYS "ALLOWED_SEV_FEATURES"
    GuestSevFeatures      0x140 8 ALWAYS "GUEST_SEV_FEATURES"
    RequestedIrr0         0x150 8 ALWAYS "REQUESTED_IRR, vectors 0-63"
    RequestedIrr1         0x158 8 ALWAYS "REQUESTED_IRR, vectors 64-127"
    RequestedIrr2         0x160 8 ALWAYS "REQUESTED_IRR, vectors 128-191"
    RequestedIrr3         0x168 8 ALWAYS "REQUESTED_IRR, vectors 192-255"
    Cpl                   0x4cb 1 SEG    "CPL"
    Efer                  0x4d0 8 CRX    "EFER"
    PerfCtl0              0x4e0 8 ALWAYS "PERF_CTL0"
    PerfCtr0              0x4e8 8 ALWAYS "PERF_CTR0"
    PerfCtl1              0x4f0 8 ALWAYS "PERF_CTL1"
    PerfCtr1              0x4f8 8 ALWAYS "PERF_CTR1"
    PerfCtl2              0x500 8 ALWAYS "PERF_CTL2"
    PerfCtr2              0x508 8 ALWAYS "PERF_CTR2"
    PerfCtl3              0x510 8 ALWAYS "PERF_CTL3"
    PerfCtr3              0x518 8 ALWAYS "PERF_CTR3"
    PerfCtl4              0x520 8 ALWAYS "PERF_CTL4"
    PerfCtr4              0x528 8 ALWAYS "PERF_CTR4"
    PerfCtl5              0x530 8 ALWAYS "PERF_CTL5"
    PerfCtr5              0x538 8 ALWAYS "PERF_CTR5"
    Cr4                   0x548 8 CRX    "CR4"
    Cr3                   0x550 8 CRX    "CR3"
    Cr0                   0x558 8 CRX    "CR0"
    Dr7                   0x560 8 DRX    "DR7"
    Dr6                   0x568 8 DRX    "DR6"
    Rflags                0x570 8 ALWAYS "RFLAGS"
    Rip                   0x578 8 ALWAYS "RIP"
    InstrRetired          0x5c0 8 ALWAYS "INSTR_RETIRED_CTR"
    PerfGlobalStatus      0x5c8 8 ALWAYS "PERF_CTR_GLOBAL_STS"
    PerfGlobalControl     0x5d0 8 ALWAYS "PERF_CTR_GLOBAL_CTL"
    Rsp                   0x5d8 8 ALWAYS "RSP"
    SCet                  0x5e0 8 CET    "S_CET"
    Ssp                   0x5e8 8 CET    "SSP"
    IsstAddress           0x5f0 8 CET    "ISST_ADDR"
    Rax                   0x5f8 8 ALWAYS "RAX"
    Star                  0x600 8 ALWAYS "STAR"
    Lstar                 0x608 8 ALWAYS "LSTAR"
    Cstar                 0x610 8 ALWAYS "CSTAR"
    Sfmask                0x618 8 ALWAYS "SFMASK"
    KernelGsBase          0x620 8 ALWAYS "KernelGsBase"
    SysenterCs            0x628 8 ALWAYS "SYSENTER_CS"
    SysenterEsp           0x630 8 ALWAYS "SYSENTER_ESP"
    SysenterEip           0x638 8 ALWAYS "SYSENTER_EIP"
    Cr2                   0x640 8 CR2    "CR2"
    GuestPat              0x668 8 NP     "G_PAT"
    DebugControl          0x670 8 LBR    "DBGCTL"
    LastBranchFrom        0x678 8 LBR    "BR_FROM"
    LastBranchTo          0x680 8 LBR    "BR_TO"
    LastExceptionFrom     0x688 8 LBR    "LASTEXCPFROM"
    LastExceptionTo       0x690 8 LBR    "LASTEXCPTO"
    DebugExtension        0x698 8 ALWAYS "DBGEXTNCFG"
    SpecCtrl              0x6e0 8 ALWAYS "SPEC_CTRL"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmcb::{SegmentField, TableField};

    /// APM2 tables B-1 and B-2; the save area starts at 400h, so its offsets are 400h more than table B-2 prints.
    #[test]
    fn offsets_match_the_manual() {
        let samples = [
            (Field::InterceptExceptions, 0x008, 4),
            (Field::IopmBase, 0x040, 8),
            (Field::MsrpmBase, 0x048, 8),
            (Field::TscOffset, 0x050, 8),
            (Field::Asid, 0x058, 4),
            (Field::TlbControl, 0x05c, 1),
            (Field::ExitCode, 0x070, 8),
            (Field::ExitInfo1, 0x078, 8),
            (Field::NestedControl, 0x090, 8),
            (Field::EventInjection, 0x0a8, 8),
            (Field::NestedCr3, 0x0b0, 8),
            (Field::NextRip, 0x0c8, 8),
            (Field::Cpl, 0x400 + 0xcb, 1),
            (Field::Efer, 0x400 + 0xd0, 8),
            (Field::Cr4, 0x400 + 0x148, 8),
            (Field::Rip, 0x400 + 0x178, 8),
            (Field::Rsp, 0x400 + 0x1d8, 8),
            (Field::Rax, 0x400 + 0x1f8, 8),
            (Field::KernelGsBase, 0x400 + 0x220, 8),
            (Field::Cr2, 0x400 + 0x240, 8),
            (Field::GuestPat, 0x400 + 0x268, 8),
        ];
        for (field, offset, bytes) in samples {
            assert_eq!((field.offset(), field.bytes()), (offset, bytes), "{}", field.name());
        }
        println!("{} of {} field offsets checked against APM2", samples.len(), Field::ALL.len());
    }

    /// No two fields, segment registers included, share a byte.
    #[test]
    fn fields_do_not_overlap() {
        let plain = Field::ALL.iter().map(|field| (field.offset(), field.bytes() as u32));
        let segments = SegmentField::ALL.iter().map(|field| (field.offset(), 16));
        let tables = TableField::ALL.iter().map(|field| (field.offset(), 16));
        let mut spans: Vec<_> = plain.chain(segments).chain(tables).collect();
        spans.sort_unstable();
        for pair in spans.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert!(spans.iter().all(|(offset, bytes)| offset + bytes <= 0x1000));
    }
}
