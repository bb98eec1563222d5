//! What a VMCS field is: its type, its width, and the encoding by which VMREAD and VMWRITE name it, computed from the
//! table (SDM 3C 24.11.2).

use super::table::{ROWS, Row};
use crate::controls::Control;

pub use super::table::Field;

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

    /// Fields and their encodings in appendix B.
    const SAMPLES: &[(Field, u32)] = &[
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
        (Field::PostedInterruptVector, 0x0002),
        (Field::EptpIndex, 0x0004),
        (Field::GuestInterruptStatus, 0x0810),
        (Field::PmlIndex, 0x0812),
        (Field::PmlAddress, 0x200e),
        (Field::VirtualApicAddress, 0x2012),
        (Field::ApicAccessAddress, 0x2014),
        (Field::PostedInterruptDescriptor, 0x2016),
        (Field::VmFunctionControls, 0x2018),
        (Field::EoiExitBitmap0, 0x201c),
        (Field::EoiExitBitmap3, 0x2022),
        (Field::EptpListAddress, 0x2024),
        (Field::VmreadBitmap, 0x2026),
        (Field::VmwriteBitmap, 0x2028),
        (Field::VeInformationAddress, 0x202a),
        (Field::XssExitingBitmap, 0x202c),
        (Field::SubPagePermissionTable, 0x2030),
        (Field::TscMultiplier, 0x2032),
        (Field::TertiaryControls, 0x2034),
        (Field::GuestPerfGlobalCtrl, 0x2808),
        (Field::GuestBndcfgs, 0x2812),
        (Field::GuestRtitCtl, 0x2814),
        (Field::GuestLbrCtl, 0x2816),
        (Field::GuestPkrs, 0x2818),
        (Field::HostPerfGlobalCtrl, 0x2c04),
        (Field::HostPkrs, 0x2c06),
        (Field::TprThreshold, 0x401c),
        (Field::PleGap, 0x4020),
        (Field::PleWindow, 0x4022),
        (Field::PreemptionTimer, 0x482e),
        (Field::GuestSCet, 0x6828),
        (Field::GuestSsp, 0x682a),
        (Field::GuestInterruptSspTable, 0x682c),
        (Field::HostSCet, 0x6c18),
        (Field::HostSsp, 0x6c1a),
        (Field::HostInterruptSspTable, 0x6c1c),
    ];

    /// SDM 3C appendix B, tables B-1 to B-17.
    #[test]
    fn encodings_are_the_manuals() {
        for (field, encoding) in SAMPLES {
            assert_eq!(field.encoding(), *encoding, "{}", field.name());
        }
        println!("{} of {} encodings compared with appendix B", SAMPLES.len(), Field::ALL.len());
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
