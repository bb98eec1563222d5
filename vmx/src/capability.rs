//! What this processor's VMX can do, and the MSRs that tell it (SDM 3D appendix A).
//!
//! A control bit may be set only if the model acts on it. Two are vacuous here, because the model has no interrupts:
//! "external-interrupt exiting" and "NMI exiting", and with them "acknowledge interrupt on exit".

use crate::controls::{Control, EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use crate::vmcs::field::Field;
use serde::{Deserialize, Serialize};
use sim_core::arch::control::{Cr0, Cr4};

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

    const fn new(must: u32, modelled: u32) -> Self {
        Self { must, may: must | modelled }
    }

    const fn msr(self, must: u32) -> u64 {
        (self.may as u64) << 32 | must as u64
    }
}

/// Default1 bits of the control groups (SDM 3D A.2): what the capability MSRs report as "must be 1" for software that
/// does not know the TRUE MSRs. The second word is the smaller set that really must be 1.
mod default1 {
    pub(super) const PIN: (u32, u32) = (0x16, 0x16);
    pub(super) const PRIMARY: (u32, u32) = (0x0401_e172, 0x0400_6172);
    pub(super) const EXIT: (u32, u32) = (0x0003_6dff, 0x0003_6dfb);
    pub(super) const ENTRY: (u32, u32) = (0x0000_11ff, 0x0000_11fb);
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

/// CR4 bits that VMX operation does not allow: features that the processor lacks.
const CR4_ABSENT: Cr4 = Cr4::SMXE.union(Cr4::OSXSAVE).union(Cr4::CET).union(Cr4::PKS);

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
}

impl Default for Capabilities {
    /// All that is modelled.
    fn default() -> Self {
        Self {
            revision: 0x0726_f001,
            pin: Allowed::new(default1::PIN.1, PIN.bits()),
            primary: Allowed::new(default1::PRIMARY.1, PRIMARY.bits()),
            secondary: Allowed::new(0, SECONDARY.bits()),
            exit: Allowed::new(default1::EXIT.1, EXIT.bits()),
            entry: Allowed::new(default1::ENTRY.1, ENTRY.bits()),
            cr0_fixed: (Cr0::PE.union(Cr0::NE).union(Cr0::PG).bits(), 0xffff_ffff),
            cr4_fixed: (Cr4::VMXE.bits(), Cr4::all().difference(CR4_ABSENT).bits()),
            ept_vpid: ept_vpid::MODELLED,
        }
    }
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

impl Capabilities {
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
            self.secondary.may &= !SecondaryProc::UNRESTRICTED_GUEST.bits();
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

    /// The value of a VMX capability MSR; none if the processor does not have it (SDM 3D appendix A).
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        /// Bits 44:32 region size, 53:50 memory type write-back, 55 TRUE MSRs (SDM 3D A.1).
        const BASIC: u64 = 4096 << 32 | 6 << 50 | 1 << 55;
        /// Bit 5 IA-32e mode guest stored on exit, bit 6 activity state HLT, 24:16 CR3-target values (SDM 3D A.6).
        const MISC: u64 = 1 << 5 | 1 << 6 | 4 << 16;
        let has_secondary = self.offers(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS);
        let has_ept_or_vpid = self.offers(SecondaryProc::ENABLE_EPT) || self.offers(SecondaryProc::ENABLE_VPID);
        Some(match index {
            0x480 => BASIC | u64::from(self.revision),
            0x481 => self.pin.msr(default1::PIN.0 & self.pin.may),
            0x482 => self.primary.msr(default1::PRIMARY.0 & self.primary.may),
            0x483 => self.exit.msr(default1::EXIT.0 & self.exit.may),
            0x484 => self.entry.msr(default1::ENTRY.0 & self.entry.may),
            0x485 => MISC,
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
            _ => return None,
        })
    }

    /// The highest index of any field that the processor has (SDM 3D A.9).
    fn highest_index(&self) -> u64 {
        let fields = Field::ALL.iter().filter(|field| self.has_field(**field));
        fields.map(|field| u64::from(field.encoding() >> 1 & 0x1ff)).max().unwrap_or(0)
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
        assert_eq!(lean.refused(SecondaryProc::ENABLE_EPT | SecondaryProc::ENABLE_VPID), ["ENABLE_EPT"]);
        let none = Capabilities::default().without(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS);
        assert_eq!((none.secondary.may, none.msr(0x48b), none.msr(0x48c)), (0, None, None));
    }
}
