//! Processors to choose from: the one that nothing more was said about, one with all that is modelled for some processor
//! features, and one with every control of the manual (SDM 3D appendix A).

use super::{Allowed, Capabilities};
use crate::controls::{EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use cpu::profile::Features;
use sim_core::arch::control::{Cr0, Cr4};

/// This processor's VMCS revision identifier.
const REVISION: u32 = 0x0726_f001;

/// Default1 bits of the control groups (SDM 3D A.2): what the capability MSRs report as "must be 1" for software that
/// does not know the TRUE MSRs. The second word is the smaller set that really must be 1.
pub(crate) mod default1 {
    pub(crate) const PIN: (u32, u32) = (0x16, 0x16);
    pub(crate) const PRIMARY: (u32, u32) = (0x0401_e172, 0x0400_6172);
    pub(crate) const EXIT: (u32, u32) = (0x0003_6dff, 0x0003_6dfb);
    pub(crate) const ENTRY: (u32, u32) = (0x0000_11ff, 0x0000_11fb);
}

const PIN: PinBased = PinBased::EXTERNAL_INTERRUPT_EXITING.union(PinBased::NMI_EXITING);
const PRIMARY: PrimaryProc = PrimaryProc::HLT_EXITING
    .union(PrimaryProc::INVLPG_EXITING)
    .union(PrimaryProc::RDTSC_EXITING)
    .union(PrimaryProc::CR3_LOAD_EXITING)
    .union(PrimaryProc::CR3_STORE_EXITING)
    .union(PrimaryProc::CR8_LOAD_EXITING)
    .union(PrimaryProc::CR8_STORE_EXITING)
    .union(PrimaryProc::UNCONDITIONAL_IO_EXITING)
    .union(PrimaryProc::USE_IO_BITMAPS)
    .union(PrimaryProc::USE_MSR_BITMAPS)
    .union(PrimaryProc::PAUSE_EXITING)
    .union(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS);
const SECONDARY: SecondaryProc = SecondaryProc::ENABLE_EPT
    .union(SecondaryProc::ENABLE_VPID)
    .union(SecondaryProc::WBINVD_EXITING)
    .union(SecondaryProc::UNRESTRICTED_GUEST)
    .union(SecondaryProc::ENABLE_INVPCID);
const EXIT: ExitControls = ExitControls::SAVE_DEBUG_CONTROLS
    .union(ExitControls::HOST_ADDRESS_SPACE_SIZE)
    .union(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT)
    .union(ExitControls::SAVE_PAT)
    .union(ExitControls::LOAD_PAT)
    .union(ExitControls::SAVE_EFER)
    .union(ExitControls::LOAD_EFER);
const ENTRY: EntryControls = EntryControls::LOAD_DEBUG_CONTROLS
    .union(EntryControls::IA32E_MODE_GUEST)
    .union(EntryControls::LOAD_PAT)
    .union(EntryControls::LOAD_EFER);

/// CR4 bits that [`Capabilities::default`] does not allow.
const CR4_ABSENT: Cr4 = Cr4::SMXE.union(Cr4::OSXSAVE).union(Cr4::CET).union(Cr4::PKS);

/// IA32_VMX_BASIC: bits 44:32 region size, 53:50 memory type write-back, 55 TRUE MSRs (SDM 3D A.1).
const BASIC: u64 = 4096 << 32 | 6 << 50 | 1 << 55;
/// IA32_VMX_BASIC bit 54: the instruction information of INS and OUTS is reported.
const BASIC_STRING_IO: u64 = 1 << 54;
/// IA32_VMX_BASIC bit 56: hardware exceptions are injected with or without an error code.
pub(crate) const BASIC_ANY_ERROR_CODE: u64 = 1 << 56;

/// Bits of IA32_VMX_MISC (SDM 3D A.6).
pub mod misc {
    /// Bits 4:0: the preemption timer counts down by 1 whenever this bit of the TSC changes.
    pub const TIMER_RATE: u64 = 5;
    /// VM-exits store EFER.LMA into "IA-32e mode guest".
    pub const STORES_LMA: u64 = 1 << 5;
    /// Activity state HLT.
    pub const HLT: u64 = 1 << 6;
    /// Activity state shutdown.
    pub const SHUTDOWN: u64 = 1 << 7;
    /// Activity state wait-for-SIPI.
    pub const WAIT_FOR_SIPI: u64 = 1 << 8;
    /// Bits 24:16: four CR3-target values.
    pub const CR3_TARGETS: u64 = 4 << 16;
    /// VMWRITE to any supported field, also to exit information.
    pub const VMWRITE_ANY: u64 = 1 << 29;
    /// Injection of software events with instruction length 0.
    pub const ZERO_LENGTH: u64 = 1 << 30;
}

/// Secondary controls that need "enable EPT" (SDM 3C 26.2.1.1).
pub(super) const NEEDS_EPT: SecondaryProc = SecondaryProc::UNRESTRICTED_GUEST
    .union(SecondaryProc::ENABLE_PML)
    .union(SecondaryProc::MODE_BASED_EXECUTE_CONTROL)
    .union(SecondaryProc::SUB_PAGE_WRITE_PERMISSIONS)
    .union(SecondaryProc::EPT_VIOLATION_VE)
    .union(SecondaryProc::PT_USES_GUEST_PHYSICAL);

/// Controls that fail by name when a guest is entered with them: APIC virtualization beyond the TPR shadow, SGX, processor
/// trace, sub-page permissions, user waits, PCONFIG; performance counters, MPX and last-branch records.
pub(crate) mod unmodelled {
    use super::{EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};

    pub(crate) const PIN: PinBased = PinBased::PROCESS_POSTED_INTERRUPTS;
    pub(crate) const PRIMARY: PrimaryProc = PrimaryProc::ACTIVATE_TERTIARY_CONTROLS;
    pub(crate) const SECONDARY: SecondaryProc = SecondaryProc::VIRTUALIZE_APIC_ACCESSES
        .union(SecondaryProc::VIRTUALIZE_X2APIC_MODE)
        .union(SecondaryProc::APIC_REGISTER_VIRTUALIZATION)
        .union(SecondaryProc::VIRTUAL_INTERRUPT_DELIVERY)
        .union(SecondaryProc::ENABLE_ENCLS_EXITING)
        .union(SecondaryProc::CONCEAL_VMX_FROM_PT)
        .union(SecondaryProc::SUB_PAGE_WRITE_PERMISSIONS)
        .union(SecondaryProc::PT_USES_GUEST_PHYSICAL)
        .union(SecondaryProc::ENABLE_USER_WAIT_AND_PAUSE)
        .union(SecondaryProc::ENABLE_PCONFIG)
        .union(SecondaryProc::ENABLE_ENCLV_EXITING);
    pub(crate) const EXIT: ExitControls = ExitControls::LOAD_PERF_GLOBAL_CTRL
        .union(ExitControls::CLEAR_BNDCFGS)
        .union(ExitControls::CONCEAL_VMX_FROM_PT)
        .union(ExitControls::CLEAR_RTIT_CTL)
        .union(ExitControls::CLEAR_LBR_CTL)
        .union(ExitControls::SAVE_PERF_GLOBAL_CTRL)
        .union(ExitControls::ACTIVATE_SECONDARY_CONTROLS);
    pub(crate) const ENTRY: EntryControls = EntryControls::ENTRY_TO_SMM
        .union(EntryControls::DEACTIVATE_DUAL_MONITOR)
        .union(EntryControls::LOAD_PERF_GLOBAL_CTRL)
        .union(EntryControls::LOAD_BNDCFGS)
        .union(EntryControls::CONCEAL_VMX_FROM_PT)
        .union(EntryControls::LOAD_RTIT_CTL)
        .union(EntryControls::LOAD_LBR_CTL);
}

impl Default for Capabilities {
    /// The processor that nothing more was said about, as [`Features::BASE`] is: what L0 knows how to pass on to L1.
    fn default() -> Self {
        Self {
            revision: REVISION,
            pin: Allowed::new(default1::PIN.1, PIN.bits()),
            primary: Allowed::new(default1::PRIMARY.1, PRIMARY.bits()),
            secondary: Allowed::new(0, SECONDARY.bits()),
            exit: Allowed::new(default1::EXIT.1, EXIT.bits()),
            entry: Allowed::new(default1::ENTRY.1, ENTRY.bits()),
            cr0_fixed: (Cr0::PE.union(Cr0::NE).union(Cr0::PG).bits(), 0xffff_ffff),
            cr4_fixed: (Cr4::VMXE.bits(), Cr4::all().difference(CR4_ABSENT).bits()),
            ept_vpid: ept_vpid::MODELLED,
            basic: BASIC,
            misc: misc::STORES_LMA | misc::HLT | misc::CR3_TARGETS,
            functions: 0,
        }
    }
}

impl Capabilities {
    /// All that is modelled, on a processor with these features.
    #[must_use]
    pub fn whole(features: Features) -> Self {
        let every = Self::architectural();
        let lacks = |feature: Features| !features.intersects(feature);
        let mut secondary = SecondaryProc::all().difference(unmodelled::SECONDARY);
        for (feature, control) in [
            (Features::RDTSCP, SecondaryProc::ENABLE_RDTSCP),
            (Features::INVPCID, SecondaryProc::ENABLE_INVPCID),
            (Features::XSAVE, SecondaryProc::ENABLE_XSAVES_XRSTORS),
            (Features::RDRAND, SecondaryProc::RDRAND_EXITING.union(SecondaryProc::RDSEED_EXITING)),
        ] {
            if lacks(feature) {
                secondary.remove(control);
            }
        }
        let mut exit = ExitControls::all().difference(unmodelled::EXIT);
        let mut entry = EntryControls::all().difference(unmodelled::ENTRY);
        let (mut basic, mut ept_vpid) = (every.basic, every.ept_vpid);
        if lacks(Features::CET_SS.union(Features::CET_IBT)) {
            exit.remove(ExitControls::LOAD_CET_STATE);
            entry.remove(EntryControls::LOAD_CET_STATE);
            basic &= !BASIC_ANY_ERROR_CODE;
        }
        if lacks(Features::CET_SS) {
            ept_vpid &= !ept_vpid::SUPERVISOR_SHADOW_STACK;
        }
        if lacks(Features::PKS) {
            exit.remove(ExitControls::LOAD_PKRS);
            entry.remove(EntryControls::LOAD_PKRS);
        }
        Self {
            pin: Allowed::new(default1::PIN.1, PinBased::all().difference(unmodelled::PIN).bits()),
            primary: Allowed::new(default1::PRIMARY.1, PrimaryProc::all().difference(unmodelled::PRIMARY).bits()),
            secondary: Allowed::new(0, secondary.bits()),
            exit: Allowed::new(default1::EXIT.1, exit.bits()),
            entry: Allowed::new(default1::ENTRY.1, entry.bits()),
            cr4_fixed: (Cr4::VMXE.bits(), cr4_of(features).bits()),
            ept_vpid,
            basic,
            ..every
        }
    }

    /// Every control of the manual but those that lead to further control words: what the VM-entry checks are checked on.
    /// Entering a guest with one that is not modelled fails by name.
    #[must_use]
    pub fn architectural() -> Self {
        let primary = PrimaryProc::all().difference(PrimaryProc::ACTIVATE_TERTIARY_CONTROLS);
        let exit = ExitControls::all().difference(ExitControls::ACTIVATE_SECONDARY_CONTROLS);
        Self {
            pin: Allowed::new(default1::PIN.1, PinBased::all().bits()),
            primary: Allowed::new(default1::PRIMARY.1, primary.bits()),
            secondary: Allowed::new(0, SecondaryProc::all().bits()),
            exit: Allowed::new(default1::EXIT.1, exit.bits()),
            entry: Allowed::new(default1::ENTRY.1, EntryControls::all().bits()),
            cr4_fixed: (Cr4::VMXE.bits(), cr4_of(Features::all()).bits()),
            ept_vpid: ept_vpid::MODELLED
                | ept_vpid::WALK_5
                | ept_vpid::ADVANCED_INFORMATION
                | ept_vpid::SUPERVISOR_SHADOW_STACK,
            basic: BASIC | BASIC_STRING_IO | BASIC_ANY_ERROR_CODE,
            misc: misc::TIMER_RATE
                | misc::STORES_LMA
                | misc::HLT
                | misc::SHUTDOWN
                | misc::WAIT_FOR_SIPI
                | misc::CR3_TARGETS
                | misc::VMWRITE_ANY
                | misc::ZERO_LENGTH,
            functions: 1,
            ..Self::default()
        }
    }
}

/// The CR4 bits that a processor with these features has (SDM 3A 2.5).
fn cr4_of(features: Features) -> Cr4 {
    let rows = [
        (Features::UMIP, Cr4::UMIP),
        (Features::LA57, Cr4::LA57),
        (Features::FSGSBASE, Cr4::FSGSBASE),
        (Features::PCID, Cr4::PCIDE),
        (Features::XSAVE, Cr4::OSXSAVE),
        (Features::SMEP, Cr4::SMEP),
        (Features::SMAP, Cr4::SMAP),
        (Features::PKU, Cr4::PKE),
        (Features::CET_SS.union(Features::CET_IBT), Cr4::CET),
        (Features::PKS, Cr4::PKS),
        (Features::LAM, Cr4::LAM_SUP),
    ];
    let absent = rows.into_iter().filter(|(feature, _)| !features.intersects(*feature));
    absent.fold(Cr4::all().difference(Cr4::SMXE.union(Cr4::UINTR)), |all, (_, bit)| all.difference(bit))
}

/// Bits of IA32_VMX_EPT_VPID_CAP (SDM 3D A.10).
pub mod ept_vpid {
    /// Execute-only translations.
    pub const EXECUTE_ONLY: u64 = 1 << 0;
    /// Page-walk length 4.
    pub const WALK_4: u64 = 1 << 6;
    /// Page-walk length 5.
    pub const WALK_5: u64 = 1 << 7;
    /// Paging structures may be uncacheable.
    pub const UNCACHEABLE: u64 = 1 << 8;
    /// Paging structures may be write-back.
    pub const WRITE_BACK: u64 = 1 << 14;
    /// 2 MiB pages.
    pub const PAGES_2M: u64 = 1 << 16;
    /// 1 GiB pages.
    pub const PAGES_1G: u64 = 1 << 17;
    /// INVEPT.
    pub const INVEPT: u64 = 1 << 20;
    /// Accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    /// Advanced information on EPT violations: qualification bits 11:9.
    pub const ADVANCED_INFORMATION: u64 = 1 << 22;
    /// Supervisor shadow-stack control.
    pub const SUPERVISOR_SHADOW_STACK: u64 = 1 << 23;
    /// INVEPT types 1 and 2.
    pub const INVEPT_TYPES: u64 = 0b11 << 25;
    /// INVVPID.
    pub const INVVPID: u64 = 1 << 32;
    /// INVVPID types 0 to 3.
    pub const INVVPID_TYPES: u64 = 0b1111 << 40;

    pub(super) const MODELLED: u64 = EXECUTE_ONLY
        | WALK_4
        | UNCACHEABLE
        | WRITE_BACK
        | PAGES_2M
        | PAGES_1G
        | INVEPT
        | ACCESSED_DIRTY
        | INVEPT_TYPES
        | INVVPID
        | INVVPID_TYPES;
}
