//! What L1 puts in its VMCS or VMCB for a nested guest: sane defaults, the scenario's wishes on top, and one thing made
//! bad where the scenario asks for it.

use crate::file::{Action, Actor, Break, ControlRegister, Flags, Guest, GuestChange, Mode, RunConfig, Scenario};
use crate::image::Image;
use crate::image::descriptors;
use crate::image::layout::{self, Seat};
use crate::image::tables::NestedFormat;
use crate::snippet;
use hypervisor::Sregs;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::memory::PhysMem;
use sim_core::{Hpa, SimError};
use std::collections::BTreeMap;
use svm::vmcb;
use vmx::Capabilities;
use vmx::controls::{EntryControls, ExitControls, PrimaryProc, SecondaryProc};

/// RFLAGS of a nested guest: IOPL 3, so that ring 3 may use the gates, and the bit that is always 1.
const GUEST_RFLAGS: u64 = 0x2;

/// The registers of code in a mode: what the mode needs, and write protection, no-execute and the extension on.
#[must_use]
pub fn registers(mode: Mode, vendor: crate::file::Vendor) -> (Cr0, Cr4, Efer) {
    let (cr0, cr4, efer) = mode.registers();
    match vendor {
        crate::file::Vendor::Intel => (cr0 | Cr0::NE | Cr0::WP, cr4 | Cr4::VMXE, efer | Efer::NXE),
        crate::file::Vendor::Amd => (cr0 | Cr0::NE | Cr0::WP, cr4, efer | Efer::NXE | Efer::SVME),
    }
}

/// A nested guest with every change so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The guest as the file and the steps so far describe it.
    pub guest: Guest,
    /// The address space in guest CR3 by a change, which need not be the guest's own.
    pub cr3: Option<String>,
}

impl Wanted {
    /// The guest as the file describes it.
    #[must_use]
    pub fn new(guest: &Guest) -> Self {
        Self { guest: guest.clone(), cr3: None }
    }

    /// Takes a step's changes over; they stay for later entries.
    pub fn change(&mut self, changes: &[GuestChange]) {
        for change in changes {
            let host = self.guest.host.clone().unwrap_or_else(no_host_changes);
            match change {
                GuestChange::Cr3(space) => self.cr3 = Some(space.clone()),
                GuestChange::HostCr3(space) => {
                    self.guest.host = Some(crate::file::HostState { space: Some(space.clone()), ..host });
                }
                GuestChange::Register(flags) => {
                    let register = match flags.register {
                        ControlRegister::Cr0 => &mut self.guest.cr0,
                        ControlRegister::Cr4 => &mut self.guest.cr4,
                        ControlRegister::Efer => &mut self.guest.efer,
                    };
                    *register = merged(*register, *flags);
                }
                GuestChange::HostRegister(flags) => {
                    let mut host = host;
                    let register = match flags.register {
                        ControlRegister::Cr0 => &mut host.cr0,
                        ControlRegister::Cr4 => &mut host.cr4,
                        ControlRegister::Efer => &mut host.efer,
                    };
                    *register = merged(*register, *flags);
                    self.guest.host = Some(host);
                }
                GuestChange::Vpid(vpid) => self.guest.vpid = (*vpid != 0).then_some(*vpid),
                GuestChange::Asid(asid) => self.guest.asid = *asid,
                GuestChange::TlbControl(control) => self.guest.tlb_control = *control,
                GuestChange::Nested(tables) => self.guest.nested.clone_from(tables),
                GuestChange::Break(what) => self.guest.broken = Some(*what),
            }
        }
    }
}

fn no_host_changes() -> crate::file::HostState {
    crate::file::HostState {
        space: None,
        cr0: Flags::none(ControlRegister::Cr0),
        cr4: Flags::none(ControlRegister::Cr4),
        efer: Flags::none(ControlRegister::Efer),
    }
}

/// Later flags win bit by bit.
fn merged(earlier: Flags, later: Flags) -> Flags {
    Flags {
        set: (earlier.set & !later.clear) | later.set,
        clear: (earlier.clear & !later.set) | later.clear,
        ..earlier
    }
}

/// What both vendors' guest state is made from.
pub struct Context<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The run.
    pub run: &'a RunConfig,
    /// Its image.
    pub image: &'a Image,
    /// The vCPU.
    pub vcpu: u8,
    /// L1's registers as they are at the entry.
    pub l1: &'a Sregs,
    /// L1's mode.
    pub l1_mode: Mode,
}

/// The registers that L2 starts with.
struct GuestRegisters {
    mode: Mode,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

impl Context<'_> {
    fn seat(&self, level: Actor) -> Seat {
        Seat { vcpu: self.vcpu, level }
    }

    fn root(&self, space: &str) -> u64 {
        self.image.roots.get(space).copied().unwrap_or(0)
    }

    /// The mode of an address space.
    #[must_use]
    pub fn mode(&self, space: &str) -> Mode {
        self.scenario.spaces.get(space).map_or(Mode::Flat32, |space| space.mode)
    }

    fn guest_registers(&self, wanted: &Wanted) -> GuestRegisters {
        let guest = &wanted.guest;
        let mode = self.mode(&guest.space);
        let (cr0, cr4, efer) = registers(mode, self.run.vendor);
        let root = self.root(wanted.cr3.as_deref().unwrap_or(&guest.space));
        let cr3 = match guest.broken {
            Some(Break::Cr3) => root | 1 << 51,
            Some(Break::Pdptes) => layout::BAD_PDPTES.0,
            _ => root,
        };
        GuestRegisters {
            mode,
            cr0: guest.cr0.apply(cr0.bits()),
            cr3,
            cr4: guest.cr4.apply(cr4.bits()),
            efer: guest.efer.apply(efer.bits()),
        }
    }

    /// Every VMCS field that L1 writes for a guest.
    ///
    /// # Errors
    /// If a silicon feature has no name that is known.
    pub fn vmcs(&self, wanted: &Wanted) -> Result<BTreeMap<vmx::Field, u64>, SimError> {
        let mut fields = BTreeMap::new();
        self.vmcs_controls(wanted, &mut fields)?;
        self.vmcs_guest(wanted, &mut fields);
        self.vmcs_host(wanted, &mut fields);
        Ok(fields)
    }

    fn vmcs_controls(&self, wanted: &Wanted, fields: &mut BTreeMap<vmx::Field, u64>) -> Result<(), SimError> {
        use vmx::Field;
        let offered = Capabilities::default();
        let guest = &wanted.guest;
        let vpid = guest.vpid.filter(|_| self.run.vpid);
        let long = self.mode(&guest.space).is_long();
        let mut secondary = lacking(self.scenario)?;
        secondary.set(SecondaryProc::ENABLE_VPID, vpid.is_some());
        secondary.set(SecondaryProc::ENABLE_EPT, self.run.nested_tdp);
        secondary.set(SecondaryProc::UNRESTRICTED_GUEST, self.run.nested_tdp);
        secondary.set(SecondaryProc::ENABLE_INVPCID, uses_invpcid(self.scenario));
        let mut exit = ExitControls::SAVE_EFER | ExitControls::LOAD_EFER;
        exit.set(ExitControls::HOST_ADDRESS_SPACE_SIZE, self.l1_mode.is_long());
        let mut entry = EntryControls::LOAD_EFER;
        entry.set(EntryControls::IA32E_MODE_GUEST, long);
        let primary = PrimaryProc::ACTIVATE_SECONDARY_CONTROLS | PrimaryProc::USE_MSR_BITMAPS;
        let accessed_dirty = u64::from(guest.ept_ad) << 6;
        let bad = |what: Break, value: u64| if guest.broken == Some(what) { value } else { 0 };
        fields.extend([
            (Field::PinBasedControls, u64::from(offered.pin.adjust(0)) | bad(Break::Control, 1 << 31)),
            (Field::PrimaryControls, u64::from(offered.primary.adjust(primary.bits()))),
            (Field::SecondaryControls, u64::from(secondary.bits())),
            (Field::ExitControls, u64::from(offered.exit.adjust(exit.bits()))),
            (Field::EntryControls, u64::from(offered.entry.adjust(entry.bits()))),
            (Field::EntryMsrLoadCount, bad(Break::MsrLoad, 1)),
            (Field::EntryMsrLoadAddress, bad(Break::MsrLoad, layout::MSR_AREA.0)),
            (Field::MsrBitmaps, 0),
        ]);
        if let Some(vpid) = vpid {
            fields.insert(Field::Vpid, u64::from(vpid));
        }
        if let Some(root) = self.image.nested_root(&guest.nested, NestedFormat::Ept) {
            let eptp = root.0 | 6 | 3 << 3 | accessed_dirty | bad(Break::NestedRoot, 1);
            fields.insert(Field::EptPointer, eptp);
        }
        Ok(())
    }

    fn vmcs_guest(&self, wanted: &Wanted, fields: &mut BTreeMap<vmx::Field, u64>) {
        use vmx::Field;
        let registers = self.guest_registers(wanted);
        let seat = self.seat(Actor::L2);
        let broken = wanted.guest.broken;
        let no_ne = if broken == Some(Break::GuestState) { Cr0::NE.bits() } else { 0 };
        let segments = descriptors::segments(seat, registers.mode);
        for name in vmx::vmcs::SegmentName::ALL {
            let segment = name.of(&segments);
            let values =
                [u64::from(segment.selector), segment.base, u64::from(segment.limit), u64::from(segment.rights.0)];
            fields.extend(name.fields().into_iter().zip(values));
        }
        if broken == Some(Break::GuestSegments) {
            fields.insert(Field::GuestSsSelector, u64::from(descriptors::DATA | 3));
        }
        if registers.mode == Mode::Pae && self.run.nested_tdp {
            // With EPT the PDPTEs are VMCS fields that L1 fills in (SDM 3C 26.3.2.4).
            fields.extend(Field::PDPTES.into_iter().zip(self.image.pdptes(registers.cr3)));
        }
        let (gdtr, idtr) = (descriptors::gdtr(), descriptors::idtr(seat, registers.mode));
        fields.extend([
            (Field::GuestCr0, registers.cr0 & !no_ne),
            (Field::GuestCr3, registers.cr3),
            (Field::GuestCr4, registers.cr4),
            (Field::GuestEfer, registers.efer),
            (Field::GuestGdtrBase, gdtr.base),
            (Field::GuestGdtrLimit, u64::from(gdtr.limit)),
            (Field::GuestIdtrBase, idtr.base),
            (Field::GuestIdtrLimit, u64::from(idtr.limit)),
            (Field::GuestRsp, seat.stack().0),
            (Field::GuestRip, seat.slot().0),
            (Field::GuestRflags, GUEST_RFLAGS),
            (Field::GuestDr7, 0x400),
            (Field::VmcsLinkPointer, u64::MAX),
        ]);
    }

    fn vmcs_host(&self, wanted: &Wanted, fields: &mut BTreeMap<vmx::Field, u64>) {
        use vmx::Field;
        let host = wanted.guest.host.clone().unwrap_or_else(no_host_changes);
        let seat = self.seat(Actor::L1);
        let mode = host.space.as_deref().map_or(self.l1_mode, |space| self.mode(space));
        let bad_selector = if wanted.guest.broken == Some(Break::HostState) { 3 } else { 0 };
        let segments = descriptors::segments(seat, mode);
        fields.extend([
            (Field::HostCr0, host.cr0.apply(self.l1.cr0.bits())),
            (Field::HostCr3, host.space.as_deref().map_or(self.l1.cr3, |space| self.root(space))),
            (Field::HostCr4, host.cr4.apply(self.l1.cr4.bits())),
            (Field::HostEfer, host.efer.apply(self.l1.efer.bits())),
            (Field::HostCsSelector, u64::from(segments.cs.selector) | bad_selector),
            (Field::HostSsSelector, u64::from(descriptors::DATA)),
            (Field::HostDsSelector, u64::from(descriptors::DATA)),
            (Field::HostEsSelector, u64::from(descriptors::DATA)),
            (Field::HostTrSelector, u64::from(descriptors::TSS)),
            (Field::HostTrBase, segments.tr.base),
            (Field::HostGdtrBase, descriptors::gdtr().base),
            (Field::HostIdtrBase, descriptors::idtr(seat, mode).base),
            (Field::HostRsp, seat.stack().0),
            (Field::HostRip, snippet::landing(seat, mode).0),
        ]);
    }

    /// The VMCB that L1 has in memory for a guest before it first enters it.
    ///
    /// # Errors
    /// If host state is asked for: SVM saves and restores L1's own.
    pub fn vmcb_page(&self, wanted: &Wanted) -> Result<Vec<u8>, SimError> {
        let mut memory = PhysMem::new(1);
        let seat = self.seat(Actor::L2);
        let mode = self.mode(&wanted.guest.space);
        let mut segments = descriptors::segments(seat, mode);
        for (field, segment) in [
            (vmcb::SegmentField::Es, &mut segments.es),
            (vmcb::SegmentField::Cs, &mut segments.cs),
            (vmcb::SegmentField::Ss, &mut segments.ss),
            (vmcb::SegmentField::Ds, &mut segments.ds),
            (vmcb::SegmentField::Fs, &mut segments.fs),
            (vmcb::SegmentField::Gs, &mut segments.gs),
            (vmcb::SegmentField::Tr, &mut segments.tr),
        ] {
            vmcb::write_segment(&mut memory, Hpa(0), field, segment);
        }
        vmcb::write_table(&mut memory, Hpa(0), vmcb::TableField::Gdtr, descriptors::gdtr());
        vmcb::write_table(&mut memory, Hpa(0), vmcb::TableField::Idtr, descriptors::idtr(seat, mode));
        for (field, value) in self.vmcb(wanted)? {
            vmcb::write(&mut memory, Hpa(0), field, value);
        }
        let mut page = vec![0; sim_core::addr::PAGE_BYTES as usize];
        memory.read_bytes(Hpa(0), &mut page);
        Ok(page)
    }

    /// Every VMCB field that depends on the scenario or changes from entry to entry.
    ///
    /// # Errors
    /// If something is asked for that only VMX has.
    pub fn vmcb(&self, wanted: &Wanted) -> Result<BTreeMap<vmcb::Field, u64>, SimError> {
        use svm::Intercepts;
        use vmcb::Field;
        let guest = &wanted.guest;
        if guest.host.as_ref().is_some_and(|host| *host != no_host_changes()) {
            return Err(SimError::unmodelled("a host state of its own for VMRUN: SVM gives L1 back what it had"));
        }
        if matches!(guest.broken, Some(Break::HostState | Break::MsrLoad | Break::GuestSegments)) {
            return Err(SimError::unmodelled("an entry failure that only VMX has"));
        }
        let registers = self.guest_registers(wanted);
        let seat = self.seat(Actor::L2);
        let bad_efer = if guest.broken == Some(Break::GuestState) { Efer::SVME.bits() } else { 0 };
        let asid = if guest.broken == Some(Break::Control) { 0 } else { u64::from(guest.asid) };
        let intercepts = (Intercepts::VMRUN | Intercepts::VMMCALL | Intercepts::SHUTDOWN).bits();
        let mut fields = BTreeMap::from([
            (Field::InterceptWord3, u64::from(intercepts as u32)),
            (Field::InterceptWord4, u64::from((intercepts >> 32) as u32)),
            (Field::Asid, asid),
            (Field::TlbControl, guest.tlb_control as u64),
            (Field::Cr0, registers.cr0),
            (Field::Cr3, registers.cr3),
            (Field::Cr4, registers.cr4),
            (Field::Efer, registers.efer & !bad_efer),
            (Field::Rip, seat.slot().0),
            (Field::Rsp, seat.stack().0),
            (Field::Rflags, GUEST_RFLAGS),
            (Field::GuestPat, 0x0007_0406_0007_0406),
            (Field::Dr6, 0xffff_0ff0),
            (Field::Dr7, 0x400),
        ]);
        if self.run.nested_tdp {
            let format = NestedFormat::Paging(self.l1_mode);
            let root = self.image.nested_root(&guest.nested, format).map_or(0, |root| root.0);
            let bad = if guest.broken == Some(Break::NestedRoot) { 1 << 51 } else { 0 };
            fields.insert(Field::NestedControl, 1);
            fields.insert(Field::NestedCr3, root | bad);
        }
        Ok(fields)
    }
}

/// Whether a nested guest executes INVPCID, which without the control is an undefined opcode.
fn uses_invpcid(scenario: &Scenario) -> bool {
    let is_one = |step: &crate::file::Step| step.actor == Actor::L2 && matches!(step.action, Action::Invpcid(_));
    scenario.steps.iter().any(is_one)
}

/// Secondary controls that the silicon lacks although L0 offers them: L1 uses them, or their lack would never show.
///
/// # Errors
/// If a name is not one of a secondary control.
pub fn lacking(scenario: &Scenario) -> Result<SecondaryProc, SimError> {
    scenario.machine.silicon_without.iter().try_fold(SecondaryProc::empty(), |all, name| {
        SecondaryProc::from_name(&name.to_uppercase().replace('-', "_"))
            .map(|control| all | control)
            .ok_or_else(|| SimError::unmodelled(format!("silicon without {name:?}")))
    })
}
