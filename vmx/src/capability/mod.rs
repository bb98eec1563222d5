//! What this processor's VMX can do (SDM 3D appendix A): [`offered`] makes a processor, [`msr`] tells it to software.
//!
//! A control bit may be set only if the model acts on it.

mod msr;
pub mod offered;

pub use offered::ept_vpid;

use crate::controls::{Control, EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use crate::vmcs::field::Field;
use serde::{Deserialize, Serialize};

/// What one control group allows (SDM 3D A.2): a bit in `must` may not be 0, a bit outside `may` may not be 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Allowed {
    /// Bits that must be 1 (the allowed 0-settings of the TRUE capability MSR).
    pub must: u32,
    /// Bits that may be 1 (the allowed 1-settings).
    pub may: u32,
}

impl Allowed {
    /// Whether the word is allowed.
    #[must_use]
    pub const fn permits(self, word: u32) -> bool {
        word & self.must == self.must && word & !self.may == 0
    }

    /// Moves a wanted word to the nearest allowed one, as hypervisors do with these MSRs.
    #[must_use]
    pub const fn adjust(self, wanted: u32) -> u32 {
        (wanted | self.must) & self.may
    }

    /// A group with the bits of `must`, and those that may be 1 beside them.
    const fn new(must: u32, beside: u32) -> Self {
        Self { must, may: must | beside }
    }
}

/// What a processor's VMX can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capabilities {
    /// The VMCS revision identifier, 31 bits (SDM 3D A.1).
    pub revision: u32,
    /// Pin-based VM-execution controls.
    pub pin: Allowed,
    /// Primary processor-based VM-execution controls.
    pub primary: Allowed,
    /// Secondary processor-based VM-execution controls.
    pub secondary: Allowed,
    /// VM-exit controls.
    pub exit: Allowed,
    /// VM-entry controls.
    pub entry: Allowed,
    /// CR0 bits that must be 1 and that may be 1 in VMX operation (SDM 3D A.7).
    pub cr0_fixed: (u64, u64),
    /// CR4 bits that must be 1 and that may be 1 in VMX operation (SDM 3D A.8).
    pub cr4_fixed: (u64, u64),
    /// IA32_VMX_EPT_VPID_CAP (SDM 3D A.10).
    pub ept_vpid: u64,
    /// What IA32_VMX_BASIC says beside the revision identifier (SDM 3D A.1).
    pub basic: u64,
    /// IA32_VMX_MISC (SDM 3D A.6).
    pub misc: u64,
    /// VM functions: the bits that the VM-function controls may have (SDM 3D A.11).
    pub functions: u64,
}

impl Capabilities {
    /// The same processor with a page-walk length of 5 for EPT too (SDM 3D A.10, bit 7).
    #[must_use]
    pub const fn with_five_level_ept(mut self) -> Self {
        self.ept_vpid |= ept_vpid::WALK_5;
        self
    }

    /// The same processor with VMCS shadowing too (SDM 3D A.3.3, bit 14).
    #[must_use]
    pub const fn with_vmcs_shadowing(mut self) -> Self {
        self.secondary.may |= SecondaryProc::VMCS_SHADOWING.bits();
        self
    }

    /// The same processor without some controls: an entry that sets one of them fails with VM-instruction error 7.
    /// Controls that depend on a missing one are taken away with it (SDM 3C 26.2.1.1: unrestricted guest needs EPT;
    /// the secondary controls need their activation).
    #[must_use]
    pub fn without(mut self, controls: impl Into<Control>) -> Self {
        let control = controls.into();
        let allowed = match control {
            Control::Pin(_) => &mut self.pin,
            Control::Primary(_) => &mut self.primary,
            Control::Secondary(_) => &mut self.secondary,
            Control::Exit(_) => &mut self.exit,
            Control::Entry(_) => &mut self.entry,
        };
        allowed.may &= !control.bits() | allowed.must;
        if !self.offers(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS) {
            self.secondary.may = 0;
        }
        if !self.offers(SecondaryProc::ENABLE_EPT) {
            self.secondary.may &= !offered::NEEDS_EPT.bits();
        }
        self
    }

    /// The same processor with page-modification logging (SDM 3C 28.2.5), if it has EPT.
    #[must_use]
    pub fn with_page_modification_log(mut self) -> Self {
        if self.offers(SecondaryProc::ENABLE_EPT) {
            self.secondary.may |= SecondaryProc::ENABLE_PML.bits();
        }
        self
    }

    /// What the group of `controls` allows.
    #[must_use]
    pub fn allowed(&self, controls: impl Into<Control>) -> Allowed {
        match controls.into() {
            Control::Pin(_) => self.pin,
            Control::Primary(_) => self.primary,
            Control::Secondary(_) => self.secondary,
            Control::Exit(_) => self.exit,
            Control::Entry(_) => self.entry,
        }
    }

    /// Whether every one of these control bits may be 1.
    #[must_use]
    pub fn offers(&self, controls: impl Into<Control>) -> bool {
        let control = controls.into();
        control.bits() & !self.allowed(control).may == 0
    }

    /// Whether the processor has the field: VMREAD and VMWRITE of others fail with VM-instruction error 12.
    #[must_use]
    pub fn has_field(&self, field: Field) -> bool {
        field.needs().is_none_or(|control| self.offers(control))
    }

    /// The control bits of a word that this processor refuses, by name; bits that should be 1 are not told.
    #[must_use]
    pub fn refused(&self, controls: impl Into<Control>) -> Vec<String> {
        let control = controls.into();
        let refused = control.bits() & !self.allowed(control).may;
        match control {
            Control::Pin(_) => Control::Pin(PinBased::from_bits_retain(refused)),
            Control::Primary(_) => Control::Primary(PrimaryProc::from_bits_retain(refused)),
            Control::Secondary(_) => Control::Secondary(SecondaryProc::from_bits_retain(refused)),
            Control::Exit(_) => Control::Exit(ExitControls::from_bits_retain(refused)),
            Control::Entry(_) => Control::Entry(EntryControls::from_bits_retain(refused)),
        }
        .names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3D A.2: a capability MSR never reports a bit as "must be 1" that may not be 1.
    #[test]
    fn every_group_is_consistent() {
        let full = Capabilities::default();
        for index in (0x481..=0x484).chain(0x48b..=0x48b).chain(0x48d..=0x490) {
            let value = full.msr(index).unwrap();
            assert_eq!(value as u32 & !(value >> 32) as u32, 0, "{index:#x}");
        }
        assert_eq!(full.msr(0x491), None, "IA32_VMX_VMFUNC without VM functions");
        assert_eq!(full.msr(0x482).unwrap() as u32, 0x0401_e172);
        assert_eq!(full.msr(0x48e).unwrap() as u32, 0x0400_6172);
    }

    #[test]
    fn a_control_taken_away_takes_its_fields_and_dependents() {
        let lean = Capabilities::default().without(SecondaryProc::ENABLE_EPT);
        assert!(!lean.offers(SecondaryProc::ENABLE_EPT));
        assert!(!lean.offers(SecondaryProc::UNRESTRICTED_GUEST));
        assert!(lean.offers(SecondaryProc::ENABLE_VPID));
        assert!(!lean.has_field(Field::EptPointer));
        assert!(lean.has_field(Field::Vpid));
        let (logs, cannot) = (Capabilities::default().with_page_modification_log(), lean.with_page_modification_log());
        assert!(logs.has_field(Field::PmlIndex) && !cannot.has_field(Field::PmlIndex));
        assert!(!Capabilities::default().offers(SecondaryProc::ENABLE_PML));
        assert_eq!(lean.refused(SecondaryProc::ENABLE_EPT | SecondaryProc::ENABLE_VPID), ["ENABLE_EPT"]);
        let none = Capabilities::default().without(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS);
        assert_eq!((none.secondary.may, none.msr(0x48b), none.msr(0x48c)), (0, None, None));
    }

    /// Every processor allows what it demands, and what is modelled is a part of the architecture.
    #[test]
    fn processors_are_ordered() {
        use cpu::profile::Features;
        let (lean, full) = (Capabilities::whole(Features::empty()), Capabilities::whole(Features::all()));
        for [less, more] in [[Capabilities::default(), full], [lean, full], [full, Capabilities::architectural()]] {
            for index in (0x481..=0x484).chain([0x48b]).chain(0x48d..=0x490) {
                let [less, more] = [less, more].map(|processor| processor.msr(index).unwrap());
                assert_eq!(less as u32 & !(less >> 32) as u32, 0, "{index:#x}");
                assert_eq!(less >> 32 & !(more >> 32), 0, "{index:#x}");
            }
        }
        assert_eq!((full.msr(0x491), full.msr(0x492)), (Some(1), None));
        assert!(!lean.offers(SecondaryProc::ENABLE_RDTSCP) && full.offers(SecondaryProc::ENABLE_RDTSCP));
        assert!(!lean.offers(EntryControls::LOAD_CET_STATE) && full.offers(EntryControls::LOAD_CET_STATE));
        assert_eq!(full.refused(SecondaryProc::VIRTUAL_INTERRUPT_DELIVERY), ["VIRTUAL_INTERRUPT_DELIVERY"]);
        assert!(full.has_field(Field::PreemptionTimer) && !full.has_field(Field::EoiExitBitmap0));
    }
}
