//! The VMX capability MSRs, 480H to 491H (SDM 3D appendix A).

use super::offered::default1;
use super::{Allowed, Capabilities};
use crate::controls::{PrimaryProc, SecondaryProc};
use crate::vmcs::Field;

impl Allowed {
    /// The allowed 0-settings in the low half, the allowed 1-settings in the high half (SDM 3D A.2).
    const fn msr(self, must: u32) -> u64 {
        (self.may as u64) << 32 | must as u64
    }
}

impl Capabilities {
    /// The value of a VMX capability MSR; none if the processor does not have it (SDM 3D appendix A).
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        let has_secondary = self.offers(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS);
        let has_ept_or_vpid = self.offers(SecondaryProc::ENABLE_EPT) || self.offers(SecondaryProc::ENABLE_VPID);
        Some(match index {
            0x480 => self.basic | u64::from(self.revision),
            0x481 => self.pin.msr(default1::PIN.0 & self.pin.may),
            0x482 => self.primary.msr(default1::PRIMARY.0 & self.primary.may),
            0x483 => self.exit.msr(default1::EXIT.0 & self.exit.may),
            0x484 => self.entry.msr(default1::ENTRY.0 & self.entry.may),
            0x485 => self.misc,
            0x486 => self.cr0_fixed.0,
            0x487 => self.cr0_fixed.1,
            0x488 => self.cr4_fixed.0,
            0x489 => self.cr4_fixed.1,
            0x48a => self.highest_index() << 1,
            0x48b if has_secondary => self.secondary.msr(self.secondary.must),
            0x48c if has_ept_or_vpid => self.ept_vpid,
            0x48d => self.pin.msr(self.pin.must),
            0x48e => self.primary.msr(self.primary.must),
            0x48f => self.exit.msr(self.exit.must),
            0x490 => self.entry.msr(self.entry.must),
            0x491 if self.offers(SecondaryProc::ENABLE_VM_FUNCTIONS) => self.functions,
            _ => return None,
        })
    }

    /// The highest index of any field that the processor has (SDM 3D A.9).
    fn highest_index(&self) -> u64 {
        let fields = Field::ALL.iter().filter(|field| self.has_field(**field));
        fields.map(|field| u64::from(field.encoding() >> 1 & 0x1ff)).max().unwrap_or(0)
    }
}
