//! The one table of VMCB fields: offset and width of each (APM2 tables B-1 and B-2).
//!
//! Left out: the fields of SEV-ES (VMSA, VMGEXIT), of the performance counters and of last-branch records.

macro_rules! fields {
    ($($name:ident $offset:literal $bytes:literal $text:literal)*) => {
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
    InterceptCrReads      0x000 2 "intercept reads of CR0-CR15"
    InterceptCrWrites     0x002 2 "intercept writes of CR0-CR15"
    InterceptDrReads      0x004 2 "intercept reads of DR0-DR15"
    InterceptDrWrites     0x006 2 "intercept writes of DR0-DR15"
    InterceptExceptions   0x008 4 "intercept exception vectors 0-31"
    InterceptWord3        0x00c 4 "intercept word at 00Ch"
    InterceptWord4        0x010 4 "intercept word at 010h"
    InterceptWord5        0x014 4 "intercept word at 014h"
    PauseFilterThreshold  0x03c 2 "PAUSE filter threshold"
    PauseFilterCount      0x03e 2 "PAUSE filter count"
    IopmBase              0x040 8 "IOPM_BASE_PA"
    MsrpmBase             0x048 8 "MSRPM_BASE_PA"
    TscOffset             0x050 8 "TSC_OFFSET"
    Asid                  0x058 4 "guest ASID"
    TlbControl            0x05c 1 "TLB_CONTROL"
    VirtualInterrupt      0x060 8 "V_TPR, V_IRQ, VGIF, V_INTR and AVIC enable"
    InterruptShadow       0x068 8 "INTERRUPT_SHADOW"
    ExitCode              0x070 8 "EXITCODE"
    ExitInfo1             0x078 8 "EXITINFO1"
    ExitInfo2             0x080 8 "EXITINFO2"
    ExitIntInfo           0x088 8 "EXITINTINFO"
    NestedControl         0x090 8 "NP_ENABLE and SEV enables"
    AvicApicBar           0x098 8 "AVIC APIC_BAR"
    GhcbGpa               0x0a0 8 "guest physical address of GHCB"
    EventInjection        0x0a8 8 "EVENTINJ"
    NestedCr3             0x0b0 8 "N_CR3"
    VirtualExtensions     0x0b8 8 "LBR_VIRTUALIZATION_ENABLE and virtual VMSAVE/VMLOAD"
    CleanBits             0x0c0 4 "VMCB clean bits"
    NextRip               0x0c8 8 "nRIP"
    BytesFetched          0x0d0 1 "number of bytes fetched"
    AvicBackingPage       0x0e0 8 "AVIC APIC_BACKING_PAGE pointer"
    AvicLogicalTable      0x0f0 8 "AVIC LOGICAL_TABLE pointer"
    AvicPhysicalTable     0x0f8 8 "AVIC PHYSICAL_TABLE pointer"
    Cpl                   0x4cb 1 "CPL"
    Efer                  0x4d0 8 "EFER"
    Cr4                   0x548 8 "CR4"
    Cr3                   0x550 8 "CR3"
    Cr0                   0x558 8 "CR0"
    Dr7                   0x560 8 "DR7"
    Dr6                   0x568 8 "DR6"
    Rflags                0x570 8 "RFLAGS"
    Rip                   0x578 8 "RIP"
    Rsp                   0x5d8 8 "RSP"
    Rax                   0x5f8 8 "RAX"
    Star                  0x600 8 "STAR"
    Lstar                 0x608 8 "LSTAR"
    Cstar                 0x610 8 "CSTAR"
    Sfmask                0x618 8 "SFMASK"
    KernelGsBase          0x620 8 "KernelGsBase"
    SysenterCs            0x628 8 "SYSENTER_CS"
    SysenterEsp           0x630 8 "SYSENTER_ESP"
    SysenterEip           0x638 8 "SYSENTER_EIP"
    Cr2                   0x640 8 "CR2"
    GuestPat              0x668 8 "G_PAT"
    DebugControl          0x670 8 "DBGCTL"
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
