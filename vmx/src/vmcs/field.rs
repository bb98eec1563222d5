//! The fields of the VMCS as one table (SDM 3C appendix B): type, width and index of each; the encoding is computed
//! (SDM 3C 24.11.2).
//!
//! Fields that exist only for a control that is not modelled are not in the table: to this processor they are
//! unsupported VMCS components (VM-instruction error 12).

use crate::controls::{Control, EntryControls, ExitControls, PrimaryProc, SecondaryProc};
use serde::{Deserialize, Serialize};

/// What kind of field it is: bits 11:10 of the encoding (SDM 3C table 24-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A VM-execution, VM-exit or VM-entry control field.
    Control = 0,
    /// A VM-exit information field; read-only to VMWRITE.
    Information = 1,
    /// Guest state.
    Guest = 2,
    /// Host state.
    Host = 3,
}

/// How wide a field is: bits 14:13 of the encoding (SDM 3C table 24-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 16 bits.
    W16 = 0,
    /// 64 bits, in two halves for 32-bit software.
    W64 = 1,
    /// 32 bits.
    W32 = 2,
    /// The width of the processor's registers: 64 bits here.
    Natural = 3,
}

impl Width {
    /// The bits that a field of this width has.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::W16 => 0xffff,
            Self::W32 => 0xffff_ffff,
            Self::W64 | Self::Natural => u64::MAX,
        }
    }
}

/// Which half of a field an encoding names: bit 0 (SDM 3C table 24-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// The whole field.
    Full,
    /// Bits 63:32 of a 64-bit field.
    High,
}

struct Row {
    name: &'static str,
    kind: Kind,
    width: Width,
    index: u32,
    needs: Option<Control>,
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

        static ROWS: &[Row] = &[$($(Row {
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

fields! {
    Control W16 {
        Vpid = 0, "virtual-processor identifier (VPID)", VPID;
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
        TscOffset = 8, "TSC offset";
        EptPointer = 13, "EPT pointer (EPTP)", EPT;
    }
    Information W64 {
        GuestPhysicalAddress = 0, "guest-physical address", EPT;
    }
    Guest W64 {
        VmcsLinkPointer = 0, "VMCS link pointer";
        GuestDebugctl = 1, "guest IA32_DEBUGCTL";
        GuestPat = 2, "guest IA32_PAT", GUEST_PAT;
        GuestEfer = 3, "guest IA32_EFER", GUEST_EFER;
        GuestPdpte0 = 5, "guest PDPTE0", EPT;
        GuestPdpte1 = 6, "guest PDPTE1", EPT;
        GuestPdpte2 = 7, "guest PDPTE2", EPT;
        GuestPdpte3 = 8, "guest PDPTE3", EPT;
    }
    Host W64 {
        HostPat = 0, "host IA32_PAT", HOST_PAT;
        HostEfer = 1, "host IA32_EFER", HOST_EFER;
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
        SecondaryControls = 15, "secondary processor-based VM-execution controls", SECONDARY;
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
    }
}

// 16 bytes of header and 8 bytes a field: the region is one 4 KiB page (SDM 3C 24.2).
const _: () = assert!(16 + 8 * Field::ALL.len() <= 4096);

impl Field {
    /// The four PDPTE fields.
    pub const PDPTES: [Self; 4] = [Self::GuestPdpte0, Self::GuestPdpte1, Self::GuestPdpte2, Self::GuestPdpte3];
    /// The four CR3-target values.
    pub const CR3_TARGETS: [Self; 4] = [Self::Cr3Target0, Self::Cr3Target1, Self::Cr3Target2, Self::Cr3Target3];

    const fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// The field's number in the table, from 0.
    pub(crate) const fn position(self) -> usize {
        self as usize
    }

    /// The field's name in the manual.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Control, exit information, guest or host.
    #[must_use]
    pub const fn kind(self) -> Kind {
        self.row().kind
    }

    /// The field's width.
    #[must_use]
    pub const fn width(self) -> Width {
        self.row().width
    }

    /// The control without whose 1-setting a processor does not have the field; none if every processor has it.
    #[must_use]
    pub const fn needs(self) -> Option<Control> {
        self.row().needs
    }

    /// The encoding that VMREAD and VMWRITE use, with full access (SDM 3C 24.11.2).
    #[must_use]
    pub const fn encoding(self) -> u32 {
        let row = self.row();
        (row.width as u32) << 13 | (row.kind as u32) << 10 | row.index << 1
    }

    /// The field with this encoding (full access).
    #[must_use]
    pub fn from_encoding(encoding: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.encoding() == encoding)
    }

    /// The field and the half that an operand of VMREAD or VMWRITE names. Only 64-bit fields have a high half.
    #[must_use]
    pub fn from_operand(operand: u64) -> Option<(Self, Half)> {
        let encoding = u32::try_from(operand).ok()?;
        let field = Self::from_encoding(encoding & !1)?;
        match encoding & 1 {
            0 => Some((field, Half::Full)),
            _ if field.width() == Width::W64 => Some((field, Half::High)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3C appendix B, tables B-1 to B-17.
    #[test]
    fn encodings_are_the_manuals() {
        let samples = [
            (Field::Vpid, 0x0000),
            (Field::GuestEsSelector, 0x0800),
            (Field::GuestTrSelector, 0x080e),
            (Field::HostEsSelector, 0x0c00),
            (Field::HostTrSelector, 0x0c0c),
            (Field::IoBitmapA, 0x2000),
            (Field::MsrBitmaps, 0x2004),
            (Field::EntryMsrLoadAddress, 0x200a),
            (Field::TscOffset, 0x2010),
            (Field::EptPointer, 0x201a),
            (Field::GuestPhysicalAddress, 0x2400),
            (Field::VmcsLinkPointer, 0x2800),
            (Field::GuestPat, 0x2804),
            (Field::GuestEfer, 0x2806),
            (Field::GuestPdpte0, 0x280a),
            (Field::GuestPdpte3, 0x2810),
            (Field::HostPat, 0x2c00),
            (Field::HostEfer, 0x2c02),
            (Field::PinBasedControls, 0x4000),
            (Field::ExceptionBitmap, 0x4004),
            (Field::ExitControls, 0x400c),
            (Field::EntryControls, 0x4012),
            (Field::EntryInterruptionInformation, 0x4016),
            (Field::SecondaryControls, 0x401e),
            (Field::InstructionError, 0x4400),
            (Field::ExitReason, 0x4402),
            (Field::ExitInstructionLength, 0x440c),
            (Field::ExitInstructionInformation, 0x440e),
            (Field::GuestGdtrLimit, 0x4810),
            (Field::GuestEsRights, 0x4814),
            (Field::GuestInterruptibility, 0x4824),
            (Field::GuestActivity, 0x4826),
            (Field::GuestSysenterCs, 0x482a),
            (Field::HostSysenterCs, 0x4c00),
            (Field::Cr0GuestHostMask, 0x6000),
            (Field::Cr4ReadShadow, 0x6006),
            (Field::Cr3Target3, 0x600e),
            (Field::ExitQualification, 0x6400),
            (Field::GuestLinearAddress, 0x640a),
            (Field::GuestCr0, 0x6800),
            (Field::GuestCr3, 0x6802),
            (Field::GuestGdtrBase, 0x6816),
            (Field::GuestDr7, 0x681a),
            (Field::GuestRsp, 0x681c),
            (Field::GuestRip, 0x681e),
            (Field::GuestRflags, 0x6820),
            (Field::GuestSysenterEip, 0x6826),
            (Field::HostCr0, 0x6c00),
            (Field::HostCr4, 0x6c04),
            (Field::HostRsp, 0x6c14),
            (Field::HostRip, 0x6c16),
        ];
        for (field, encoding) in samples {
            assert_eq!(field.encoding(), encoding, "{}", field.name());
        }
        println!("{} of {} encodings compared with appendix B", samples.len(), Field::ALL.len());
    }

    #[test]
    fn encodings_are_unique_and_decode() {
        for (position, field) in Field::ALL.iter().enumerate() {
            assert_eq!(field.position(), position);
            assert_eq!(Field::from_encoding(field.encoding()), Some(*field));
            assert_eq!(Field::from_operand(field.encoding().into()), Some((*field, Half::Full)));
            let high = (field.width() == Width::W64).then_some((*field, Half::High));
            assert_eq!(Field::from_operand(u64::from(field.encoding() | 1)), high);
        }
        for operand in [0x2006_0000_0000_u64, 0x8000, 0x4026] {
            assert_eq!(Field::from_operand(operand), None, "{operand:#x}");
        }
    }
}
