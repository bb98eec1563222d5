//! A VMCS and a processor in the making: the valid ones that every check holds on, and the hands to spoil them with.

use crate::capability::Capabilities;
use crate::controls::{EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use crate::vmcs::segment::SegmentName;
use crate::vmcs::{Field, Region};
use cpu::Core;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Rights;
use sim_core::{Ground, Hpa};

/// The power-on value of IA32_PAT.
const PAT: u64 = 0x0007_0406_0007_0406;
/// A linear address that is canonical for no width.
pub(super) const NOT_CANONICAL: u64 = 1 << 60;
/// A physical address beyond any width.
pub(super) const TOO_WIDE: u64 = 1 << 60;

/// A VMCS to be written, and the processor that will enter it.
pub struct Draft<'a> {
    /// The processor.
    pub core: &'a mut Core,
    /// Memory.
    pub ground: &'a mut Ground,
    /// The VMCS.
    pub region: Region,
    /// A page that the VMCS may point to, with the revision identifier in front.
    pub page: Hpa,
}

impl Draft<'_> {
    /// One field.
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        self.region.get(self.ground, field)
    }

    /// Writes a field.
    pub fn set(&mut self, field: Field, value: u64) {
        self.region.set(self.ground, field, value);
    }

    /// Writes fields.
    pub fn set_all(&mut self, values: &[(Field, u64)]) {
        for (field, value) in values {
            self.set(*field, *value);
        }
    }

    /// Sets and clears bits of a field.
    pub fn change(&mut self, field: Field, set: u64, clear: u64) {
        let value = self.get(field) & !clear | set;
        self.set(field, value);
    }

    /// Sets a pin-based control.
    pub fn pin(&mut self, bits: PinBased) {
        self.change(Field::PinBasedControls, bits.bits().into(), 0);
    }

    /// Sets a primary control.
    pub fn primary(&mut self, bits: PrimaryProc) {
        self.change(Field::PrimaryControls, bits.bits().into(), 0);
    }

    /// Sets a secondary control.
    pub fn secondary(&mut self, bits: SecondaryProc) {
        self.change(Field::SecondaryControls, bits.bits().into(), 0);
    }

    /// Clears a secondary control.
    pub fn without(&mut self, bits: SecondaryProc) {
        self.change(Field::SecondaryControls, 0, bits.bits().into());
    }

    /// Sets a VM-exit control.
    pub fn exit(&mut self, bits: ExitControls) {
        self.change(Field::ExitControls, bits.bits().into(), 0);
    }

    /// Sets a VM-entry control.
    pub fn entry(&mut self, bits: EntryControls) {
        self.change(Field::EntryControls, bits.bits().into(), 0);
    }

    /// Asks for an event.
    pub fn inject(&mut self, word: u64) {
        self.set(Field::EntryInterruptionInformation, word);
    }

    /// Uses the TPR shadow, with a virtual-APIC page.
    pub fn tpr_shadow(&mut self) {
        self.primary(PrimaryProc::USE_TPR_SHADOW);
        self.set(Field::VirtualApicAddress, self.page.0);
    }

    /// A VMCS without anything that could fail: a 64-bit guest under EPT with a VPID, and a 64-bit host like the processor
    /// itself.
    pub fn write_valid(&mut self, capabilities: &Capabilities) {
        let secondary = SecondaryProc::ENABLE_EPT | SecondaryProc::ENABLE_VPID;
        let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE
            | ExitControls::SAVE_DEBUG_CONTROLS
            | ExitControls::SAVE_PAT
            | ExitControls::LOAD_PAT
            | ExitControls::SAVE_EFER
            | ExitControls::LOAD_EFER
            | ExitControls::LOAD_CET_STATE
            | ExitControls::LOAD_PKRS;
        let entry = EntryControls::IA32E_MODE_GUEST
            | EntryControls::LOAD_DEBUG_CONTROLS
            | EntryControls::LOAD_PAT
            | EntryControls::LOAD_EFER
            | EntryControls::LOAD_CET_STATE
            | EntryControls::LOAD_PKRS;
        let primary = capabilities.primary.adjust(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS.bits());
        self.set_all(&[
            (Field::PinBasedControls, capabilities.pin.adjust(0).into()),
            (Field::PrimaryControls, primary.into()),
            (Field::SecondaryControls, capabilities.secondary.adjust(secondary.bits()).into()),
            (Field::ExitControls, capabilities.exit.adjust(exit.bits()).into()),
            (Field::EntryControls, capabilities.entry.adjust(entry.bits()).into()),
            (Field::Vpid, 7),
            (Field::EptPointer, self.page.0 | 0x5e),
            (Field::VmcsLinkPointer, u64::MAX),
        ]);
        self.write_host();
        self.write_guest();
    }

    fn write_host(&mut self) {
        self.set_all(&[
            (Field::HostCr0, self.core.cr0.bits()),
            (Field::HostCr3, 0x1_2000),
            (Field::HostCr4, self.core.cr4.bits()),
            (Field::HostEfer, self.core.efer.bits()),
            (Field::HostPat, PAT),
            (Field::HostCsSelector, 0x8),
            (Field::HostSsSelector, 0x10),
            (Field::HostTrSelector, 0x18),
            (Field::HostTrBase, 0xffff_8000_0000_3000),
            (Field::HostGdtrBase, 0xffff_8000_0000_1000),
            (Field::HostIdtrBase, 0xffff_8000_0000_2000),
            (Field::HostFsBase, 0x1111_0000),
            (Field::HostGsBase, 0x2222_0000),
            (Field::HostRsp, 0xffff_8000_0001_0000),
            (Field::HostRip, 0xffff_8000_0000_4000),
        ]);
    }

    fn write_guest(&mut self) {
        self.set_all(&[
            (Field::GuestCr0, (Cr0::PE | Cr0::NE | Cr0::PG | Cr0::ET | Cr0::WP).bits()),
            (Field::GuestCr3, 0xa000),
            (Field::GuestCr4, (Cr4::PAE | Cr4::VMXE | Cr4::PGE).bits()),
            (Field::GuestEfer, (Efer::LMA | Efer::LME | Efer::NXE).bits()),
            (Field::GuestPat, PAT),
            (Field::GuestDr7, 0x400),
            (Field::GuestRflags, 0x202),
            (Field::GuestRip, 0x40_0000),
            (Field::GuestRsp, 0x7fff_0000),
            (Field::GuestGdtrBase, 0x5000),
            (Field::GuestGdtrLimit, 0x7f),
            (Field::GuestIdtrBase, 0x6000),
            (Field::GuestIdtrLimit, 0xfff),
            (Field::GuestSysenterCs, 0x33),
            (Field::GuestSysenterEsp, 0x1234),
            (Field::GuestSysenterEip, 0x5678),
        ]);
        for name in SegmentName::ALL {
            let (selector, limit, rights) = match name {
                SegmentName::Cs => (0x8, 0xffff_ffff, Rights::CODE64),
                SegmentName::Ldtr => (0, 0, Rights::UNUSABLE),
                SegmentName::Tr => (0x18, 0x67, Rights::BUSY_TSS),
                _ => (0x10, 0xffff_ffff, Rights::DATA),
            };
            self.segment(*name, selector, 0, limit, rights.0);
        }
    }

    /// Writes a guest segment register.
    pub fn segment(&mut self, name: SegmentName, selector: u64, base: u64, limit: u64, rights: u32) {
        let values = [selector, base, limit, rights.into()];
        for (field, value) in name.fields().into_iter().zip(values) {
            self.set(field, value);
        }
    }

    /// A usable LDT.
    pub fn ldt(&mut self) {
        self.segment(SegmentName::Ldtr, 0x20, 0x7000, 0xfff, 0x82);
    }

    /// The same guest in PAE paging.
    pub fn guest_pae(&mut self) {
        self.change(Field::EntryControls, 0, EntryControls::IA32E_MODE_GUEST.bits().into());
        self.set(Field::GuestEfer, Efer::NXE.bits());
        self.set(Field::GuestCsRights, Rights::CODE32.0.into());
        self.set(Field::GuestCr3, 0x8000);
    }

    /// A virtual-8086 guest in PAE paging.
    pub fn guest_v86(&mut self) {
        self.guest_pae();
        self.change(Field::GuestRflags, 1 << 17, 0);
        use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
        for name in [Es, Cs, Ss, Ds, Fs, Gs] {
            self.segment(name, 0x100, 0x1000, 0xffff, 0xf3);
        }
    }

    /// An unrestricted guest in real-address mode.
    pub fn guest_real(&mut self) {
        self.guest_pae();
        self.secondary(SecondaryProc::UNRESTRICTED_GUEST);
        self.set(Field::GuestCr0, (Cr0::NE | Cr0::ET).bits());
        for name in SegmentName::ALL {
            match name {
                SegmentName::Ldtr | SegmentName::Tr => {}
                SegmentName::Cs => self.segment(*name, 0xf000, 0xf_0000, 0xffff, 0x9b),
                _ => self.segment(*name, 0, 0, 0xffff, 0x93),
            }
        }
    }

    /// A 64-bit guest at privilege level 3.
    pub fn guest_user(&mut self) {
        self.set_all(&[(Field::GuestCsSelector, 0xb), (Field::GuestCsRights, 0xa0fb)]);
        self.set_all(&[(Field::GuestSsSelector, 0x13), (Field::GuestSsRights, 0xc0f3)]);
    }

    /// A 32-bit host without paging extensions, and the PAE guest.
    pub fn host32(&mut self) {
        self.guest_pae();
        self.core.efer = Efer::empty();
        self.core.cr4.remove(Cr4::PAE);
        self.core.segments.cs.rights = Rights::CODE32;
        self.change(Field::ExitControls, 0, ExitControls::HOST_ADDRESS_SPACE_SIZE.bits().into());
        self.set(Field::HostEfer, 0);
        self.set(Field::HostCr4, Cr4::VMXE.bits());
        self.set(Field::HostRip, 0x10_0000);
    }
}
