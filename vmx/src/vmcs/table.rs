//! The table of VMCS fields (SDM 3C appendix B): one line a field, from which its encoding is computed.
//!
//! A field that exists only with some control names it; where either of two controls brings a field, the table names the
//! one that loads it. Left out, and so unsupported VMCS components (VM-instruction error 12): the fields of PASID
//! translation, user-interrupt virtualization, FRED, instruction time-out and TDX.

use super::field::{Kind, Width};
use crate::controls::{Control, EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use serde::{Deserialize, Serialize};

/// One line.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) width: Width,
    pub(super) index: u32,
    pub(super) needs: Option<Control>,
}

macro_rules! fields {
    ($($kind:ident $width:ident { $($name:ident = $index:literal, $text:literal $(, $needs:path)?;)* })*) => {
        /// A VMCS field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Field {
            $($(#[doc = $text] $name,)*)*
        }

        impl Field {
            /// Every field, in the order of the table.
            pub const ALL: &[Self] = &[$($(Self::$name,)*)*];
        }

        pub(super) static ROWS: &[Row] = &[$($(Row {
            name: $text,
            kind: Kind::$kind,
            width: Width::$width,
            index: $index,
            needs: fields!(@needs $($needs)?),
        },)*)*];
    };
    (@needs) => { None };
    (@needs $needs:path) => { Some($needs) };
}

const VPID: Control = Control::Secondary(SecondaryProc::ENABLE_VPID);
const EPT: Control = Control::Secondary(SecondaryProc::ENABLE_EPT);
const SECONDARY: Control = Control::Primary(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS);
const MSR_BITMAPS: Control = Control::Primary(PrimaryProc::USE_MSR_BITMAPS);
const GUEST_PAT: Control = Control::Entry(EntryControls::LOAD_PAT);
const GUEST_EFER: Control = Control::Entry(EntryControls::LOAD_EFER);
const HOST_PAT: Control = Control::Exit(ExitControls::LOAD_PAT);
const HOST_EFER: Control = Control::Exit(ExitControls::LOAD_EFER);
const POSTED: Control = Control::Pin(PinBased::PROCESS_POSTED_INTERRUPTS);
const TIMER: Control = Control::Pin(PinBased::ACTIVATE_PREEMPTION_TIMER);
const TERTIARY: Control = Control::Primary(PrimaryProc::ACTIVATE_TERTIARY_CONTROLS);
const TPR_SHADOW: Control = Control::Primary(PrimaryProc::USE_TPR_SHADOW);
const APIC_ACCESSES: Control = Control::Secondary(SecondaryProc::VIRTUALIZE_APIC_ACCESSES);
const VIRTUAL_INTERRUPTS: Control = Control::Secondary(SecondaryProc::VIRTUAL_INTERRUPT_DELIVERY);
const PAUSE_LOOP: Control = Control::Secondary(SecondaryProc::PAUSE_LOOP_EXITING);
const FUNCTIONS: Control = Control::Secondary(SecondaryProc::ENABLE_VM_FUNCTIONS);
const SHADOWING: Control = Control::Secondary(SecondaryProc::VMCS_SHADOWING);
const ENCLS: Control = Control::Secondary(SecondaryProc::ENABLE_ENCLS_EXITING);
const ENCLV: Control = Control::Secondary(SecondaryProc::ENABLE_ENCLV_EXITING);
const PML: Control = Control::Secondary(SecondaryProc::ENABLE_PML);
const VE: Control = Control::Secondary(SecondaryProc::EPT_VIOLATION_VE);
const XSAVES: Control = Control::Secondary(SecondaryProc::ENABLE_XSAVES_XRSTORS);
const SUB_PAGE: Control = Control::Secondary(SecondaryProc::SUB_PAGE_WRITE_PERMISSIONS);
const SCALING: Control = Control::Secondary(SecondaryProc::USE_TSC_SCALING);
const PCONFIG: Control = Control::Secondary(SecondaryProc::ENABLE_PCONFIG);
const SECONDARY_EXIT: Control = Control::Exit(ExitControls::ACTIVATE_SECONDARY_CONTROLS);
const GUEST_PERF: Control = Control::Entry(EntryControls::LOAD_PERF_GLOBAL_CTRL);
const GUEST_BNDCFGS: Control = Control::Entry(EntryControls::LOAD_BNDCFGS);
const GUEST_RTIT: Control = Control::Entry(EntryControls::LOAD_RTIT_CTL);
const GUEST_LBR: Control = Control::Entry(EntryControls::LOAD_LBR_CTL);
const GUEST_CET: Control = Control::Entry(EntryControls::LOAD_CET_STATE);
const GUEST_PKRS: Control = Control::Entry(EntryControls::LOAD_PKRS);
const HOST_PERF: Control = Control::Exit(ExitControls::LOAD_PERF_GLOBAL_CTRL);
const HOST_CET: Control = Control::Exit(ExitControls::LOAD_CET_STATE);
const HOST_PKRS: Control = Control::Exit(ExitControls::LOAD_PKRS);

fields! {
    Control W16 {
        Vpid = 0, "virtual-processor identifier (VPID)", VPID;
        PostedInterruptVector = 1, "posted-interrupt notification vector", POSTED;
        EptpIndex = 2, "EPTP index", VE;
        HlatPrefixSize = 3, "HLAT prefix size", TERTIARY;
    }
    Guest W16 {
        GuestEsSelector = 0, "guest ES selector";
        GuestCsSelector = 1, "guest CS selector";
        GuestSsSelector = 2, "guest SS selector";
        GuestDsSelector = 3, "guest DS selector";
        GuestFsSelector = 4, "guest FS selector";
        GuestGsSelector = 5, "guest GS selector";
        GuestLdtrSelector = 6, "guest LDTR selector";
        GuestTrSelector = 7, "guest TR selector";
        GuestInterruptStatus = 8, "guest interrupt status", VIRTUAL_INTERRUPTS;
        PmlIndex = 9, "PML index", PML;
    }
    Host W16 {
        HostEsSelector = 0, "host ES selector";
        HostCsSelector = 1, "host CS selector";
        HostSsSelector = 2, "host SS selector";
        HostDsSelector = 3, "host DS selector";
        HostFsSelector = 4, "host FS selector";
        HostGsSelector = 5, "host GS selector";
        HostTrSelector = 6, "host TR selector";
    }
    Control W64 {
        IoBitmapA = 0, "address of I/O bitmap A";
        IoBitmapB = 1, "address of I/O bitmap B";
        MsrBitmaps = 2, "address of MSR bitmaps", MSR_BITMAPS;
        ExitMsrStoreAddress = 3, "VM-exit MSR-store address";
        ExitMsrLoadAddress = 4, "VM-exit MSR-load address";
        EntryMsrLoadAddress = 5, "VM-entry MSR-load address";
        ExecutiveVmcsPointer = 6, "executive-VMCS pointer";
        PmlAddress = 7, "PML address", PML;
        TscOffset = 8, "TSC offset";
        VirtualApicAddress = 9, "virtual-APIC address", TPR_SHADOW;
        ApicAccessAddress = 10, "APIC-access address", APIC_ACCESSES;
        PostedInterruptDescriptor = 11, "posted-interrupt descriptor address", POSTED;
        VmFunctionControls = 12, "VM-function controls", FUNCTIONS;
        EptPointer = 13, "EPT pointer (EPTP)", EPT;
        EoiExitBitmap0 = 14, "EOI-exit bitmap 0", VIRTUAL_INTERRUPTS;
        EoiExitBitmap1 = 15, "EOI-exit bitmap 1", VIRTUAL_INTERRUPTS;
        EoiExitBitmap2 = 16, "EOI-exit bitmap 2", VIRTUAL_INTERRUPTS;
        EoiExitBitmap3 = 17, "EOI-exit bitmap 3", VIRTUAL_INTERRUPTS;
        EptpListAddress = 18, "EPTP-list address", FUNCTIONS;
        VmreadBitmap = 19, "VMREAD-bitmap address", SHADOWING;
        VmwriteBitmap = 20, "VMWRITE-bitmap address", SHADOWING;
        VeInformationAddress = 21, "virtualization-exception information address", VE;
        XssExitingBitmap = 22, "XSS-exiting bitmap", XSAVES;
        EnclsExitingBitmap = 23, "ENCLS-exiting bitmap", ENCLS;
        SubPagePermissionTable = 24, "sub-page-permission-table pointer", SUB_PAGE;
        TscMultiplier = 25, "TSC multiplier", SCALING;
        TertiaryControls = 26, "tertiary processor-based VM-execution controls", TERTIARY;
        EnclvExitingBitmap = 27, "ENCLV-exiting bitmap", ENCLV;
        PconfigExitingBitmap = 31, "PCONFIG-exiting bitmap", PCONFIG;
        HlatPointer = 32, "hypervisor-managed linear-address translation pointer", TERTIARY;
        SecondaryExitControls = 34, "secondary VM-exit controls", SECONDARY_EXIT;
    }
    Information W64 {
        GuestPhysicalAddress = 0, "guest-physical address", EPT;
    }
    Guest W64 {
        VmcsLinkPointer = 0, "VMCS link pointer";
        GuestDebugctl = 1, "guest IA32_DEBUGCTL";
        GuestPat = 2, "guest IA32_PAT", GUEST_PAT;
        GuestEfer = 3, "guest IA32_EFER", GUEST_EFER;
        GuestPerfGlobalCtrl = 4, "guest IA32_PERF_GLOBAL_CTRL", GUEST_PERF;
        GuestPdpte0 = 5, "guest PDPTE0", EPT;
        GuestPdpte1 = 6, "guest PDPTE1", EPT;
        GuestPdpte2 = 7, "guest PDPTE2", EPT;
        GuestPdpte3 = 8, "guest PDPTE3", EPT;
        GuestBndcfgs = 9, "guest IA32_BNDCFGS", GUEST_BNDCFGS;
        GuestRtitCtl = 10, "guest IA32_RTIT_CTL", GUEST_RTIT;
        GuestLbrCtl = 11, "guest IA32_LBR_CTL", GUEST_LBR;
        GuestPkrs = 12, "guest IA32_PKRS", GUEST_PKRS;
    }
    Host W64 {
        HostPat = 0, "host IA32_PAT", HOST_PAT;
        HostEfer = 1, "host IA32_EFER", HOST_EFER;
        HostPerfGlobalCtrl = 2, "host IA32_PERF_GLOBAL_CTRL", HOST_PERF;
        HostPkrs = 3, "host IA32_PKRS", HOST_PKRS;
    }
    Control W32 {
        PinBasedControls = 0, "pin-based VM-execution controls";
        PrimaryControls = 1, "primary processor-based VM-execution controls";
        ExceptionBitmap = 2, "exception bitmap";
        PageFaultErrorMask = 3, "page-fault error-code mask";
        PageFaultErrorMatch = 4, "page-fault error-code match";
        Cr3TargetCount = 5, "CR3-target count";
        ExitControls = 6, "primary VM-exit controls";
        ExitMsrStoreCount = 7, "VM-exit MSR-store count";
        ExitMsrLoadCount = 8, "VM-exit MSR-load count";
        EntryControls = 9, "VM-entry controls";
        EntryMsrLoadCount = 10, "VM-entry MSR-load count";
        EntryInterruptionInformation = 11, "VM-entry interruption-information field";
        EntryExceptionErrorCode = 12, "VM-entry exception error code";
        EntryInstructionLength = 13, "VM-entry instruction length";
        TprThreshold = 14, "TPR threshold", TPR_SHADOW;
        SecondaryControls = 15, "secondary processor-based VM-execution controls", SECONDARY;
        PleGap = 16, "PLE_Gap", PAUSE_LOOP;
        PleWindow = 17, "PLE_Window", PAUSE_LOOP;
    }
    Information W32 {
        InstructionError = 0, "VM-instruction error";
        ExitReason = 1, "exit reason";
        ExitInterruptionInformation = 2, "VM-exit interruption information";
        ExitInterruptionErrorCode = 3, "VM-exit interruption error code";
        IdtVectoringInformation = 4, "IDT-vectoring information field";
        IdtVectoringErrorCode = 5, "IDT-vectoring error code";
        ExitInstructionLength = 6, "VM-exit instruction length";
        ExitInstructionInformation = 7, "VM-exit instruction information";
    }
    Guest W32 {
        GuestEsLimit = 0, "guest ES limit";
        GuestCsLimit = 1, "guest CS limit";
        GuestSsLimit = 2, "guest SS limit";
        GuestDsLimit = 3, "guest DS limit";
        GuestFsLimit = 4, "guest FS limit";
        GuestGsLimit = 5, "guest GS limit";
        GuestLdtrLimit = 6, "guest LDTR limit";
        GuestTrLimit = 7, "guest TR limit";
        GuestGdtrLimit = 8, "guest GDTR limit";
        GuestIdtrLimit = 9, "guest IDTR limit";
        GuestEsRights = 10, "guest ES access rights";
        GuestCsRights = 11, "guest CS access rights";
        GuestSsRights = 12, "guest SS access rights";
        GuestDsRights = 13, "guest DS access rights";
        GuestFsRights = 14, "guest FS access rights";
        GuestGsRights = 15, "guest GS access rights";
        GuestLdtrRights = 16, "guest LDTR access rights";
        GuestTrRights = 17, "guest TR access rights";
        GuestInterruptibility = 18, "guest interruptibility state";
        GuestActivity = 19, "guest activity state";
        GuestSmbase = 20, "guest SMBASE";
        GuestSysenterCs = 21, "guest IA32_SYSENTER_CS";
        PreemptionTimer = 23, "VMX-preemption timer value", TIMER;
    }
    Host W32 {
        HostSysenterCs = 0, "host IA32_SYSENTER_CS";
    }
    Control Natural {
        Cr0GuestHostMask = 0, "CR0 guest/host mask";
        Cr4GuestHostMask = 1, "CR4 guest/host mask";
        Cr0ReadShadow = 2, "CR0 read shadow";
        Cr4ReadShadow = 3, "CR4 read shadow";
        Cr3Target0 = 4, "CR3-target value 0";
        Cr3Target1 = 5, "CR3-target value 1";
        Cr3Target2 = 6, "CR3-target value 2";
        Cr3Target3 = 7, "CR3-target value 3";
    }
    Information Natural {
        ExitQualification = 0, "exit qualification";
        IoRcx = 1, "I/O RCX";
        IoRsi = 2, "I/O RSI";
        IoRdi = 3, "I/O RDI";
        IoRip = 4, "I/O RIP";
        GuestLinearAddress = 5, "guest-linear address";
    }
    Guest Natural {
        GuestCr0 = 0, "guest CR0";
        GuestCr3 = 1, "guest CR3";
        GuestCr4 = 2, "guest CR4";
        GuestEsBase = 3, "guest ES base";
        GuestCsBase = 4, "guest CS base";
        GuestSsBase = 5, "guest SS base";
        GuestDsBase = 6, "guest DS base";
        GuestFsBase = 7, "guest FS base";
        GuestGsBase = 8, "guest GS base";
        GuestLdtrBase = 9, "guest LDTR base";
        GuestTrBase = 10, "guest TR base";
        GuestGdtrBase = 11, "guest GDTR base";
        GuestIdtrBase = 12, "guest IDTR base";
        GuestDr7 = 13, "guest DR7";
        GuestRsp = 14, "guest RSP";
        GuestRip = 15, "guest RIP";
        GuestRflags = 16, "guest RFLAGS";
        GuestPendingDebug = 17, "guest pending debug exceptions";
        GuestSysenterEsp = 18, "guest IA32_SYSENTER_ESP";
        GuestSysenterEip = 19, "guest IA32_SYSENTER_EIP";
        GuestSCet = 20, "guest IA32_S_CET", GUEST_CET;
        GuestSsp = 21, "guest SSP", GUEST_CET;
        GuestInterruptSspTable = 22, "guest IA32_INTERRUPT_SSP_TABLE_ADDR", GUEST_CET;
    }
    Host Natural {
        HostCr0 = 0, "host CR0";
        HostCr3 = 1, "host CR3";
        HostCr4 = 2, "host CR4";
        HostFsBase = 3, "host FS base";
        HostGsBase = 4, "host GS base";
        HostTrBase = 5, "host TR base";
        HostGdtrBase = 6, "host GDTR base";
        HostIdtrBase = 7, "host IDTR base";
        HostSysenterEsp = 8, "host IA32_SYSENTER_ESP";
        HostSysenterEip = 9, "host IA32_SYSENTER_EIP";
        HostRsp = 10, "host RSP";
        HostRip = 11, "host RIP";
        HostSCet = 12, "host IA32_S_CET", HOST_CET;
        HostSsp = 13, "host SSP", HOST_CET;
        HostInterruptSspTable = 14, "host IA32_INTERRUPT_SSP_TABLE_ADDR", HOST_CET;
    }
}
