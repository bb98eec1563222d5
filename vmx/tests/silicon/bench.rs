//! A processor in VMX root operation with a valid current VMCS: 64-bit host, 64-bit guest under EPT with a VPID, every
//! control of the full profile that does not exclude another.

use cpu::Core;
use cpu::profile::Features;
use cpu::virt::{At, ControlRegister, Trap, Verdict, Virt};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Rights;
use sim_core::{Ground, Hpa};
use vmx::checks::Draft;
use vmx::controls::{EntryControls, ExitControls, PrimaryProc, SecondaryProc};
use vmx::vmcs::Region;
use vmx::vmcs::segment::SegmentName;
use vmx::{Capabilities, Entered, Entry, Field, Vmx};

pub(crate) const VMXON: Hpa = Hpa(0x1000);
pub(crate) const VMCS: Hpa = Hpa(0x2000);
pub(crate) const OTHER: Hpa = Hpa(0x3000);
pub(crate) const IO_A: Hpa = Hpa(0x4000);
pub(crate) const IO_B: Hpa = Hpa(0x5000);
pub(crate) const MSR_BITMAPS: Hpa = Hpa(0x6000);
pub(crate) const MSR_AREA: Hpa = Hpa(0x7000);
pub(crate) const PDPT: Hpa = Hpa(0x8000);
pub(crate) const EPT: Hpa = Hpa(0x9000);
pub(crate) const AT: At = At::of(3);
const PAT: u64 = 0x0007_0406_0007_0406;

#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) ground: Ground,
    pub(crate) vmx: Vmx,
}

pub(crate) fn host_core() -> Core {
    let mut core = Core::flat32(46);
    core.cr0.insert(Cr0::PG);
    core.cr4 = Cr4::PAE | Cr4::VMXE;
    core.efer = Efer::LMA | Efer::LME;
    core.segments.cs.rights = Rights::CODE64;
    core
}

/// A processor outside VMX operation, with revision identifiers in three regions.
pub(crate) fn off() -> Bench {
    let capabilities = Capabilities::default();
    let mut ground = Ground::new(64);
    for region in [VMXON, VMCS, OTHER] {
        ground.mem.write_u32(region, capabilities.revision);
    }
    Bench { core: host_core(), ground, vmx: Vmx::new(capabilities) }
}

/// Root operation with a current, clear, otherwise zero VMCS.
pub(crate) fn root() -> Bench {
    let mut bench = off();
    bench.vmx.vmxon(&mut bench.core, &mut bench.ground, VMXON).unwrap();
    bench.vmx.vmclear(&mut bench.ground, VMCS).unwrap();
    bench.vmx.vmptrld(&mut bench.ground, VMCS).unwrap();
    bench
}

/// Root operation with a valid VMCS.
pub(crate) fn ready() -> Bench {
    let mut bench = root();
    bench.write_controls();
    bench.write_host();
    bench.write_guest();
    bench
}

/// Root operation on another processor, with the valid VMCS of the checks.
pub(crate) fn drafted(capabilities: Capabilities, features: Features) -> Bench {
    let mut bench = root_of(capabilities);
    bench.core.features = features;
    bench.draft(|draft| draft.write_valid(&capabilities));
    bench
}

/// All that is modelled, on a processor with every feature.
pub(crate) fn whole() -> Bench {
    drafted(Capabilities::whole(Features::all()), Features::all())
}

/// Root operation with a current, clear, otherwise zero VMCS on another processor.
fn root_of(capabilities: Capabilities) -> Bench {
    let mut bench = off();
    bench.vmx = Vmx::new(capabilities);
    bench.vmx.vmxon(&mut bench.core, &mut bench.ground, VMXON).unwrap();
    bench.vmx.vmclear(&mut bench.ground, VMCS).unwrap();
    bench.vmx.vmptrld(&mut bench.ground, VMCS).unwrap();
    bench
}

/// Non-root operation.
pub(crate) fn running() -> Bench {
    let mut bench = ready();
    bench.launch();
    bench
}

impl Bench {
    pub(crate) fn draft(&mut self, write: impl FnOnce(&mut Draft<'_>)) {
        write(&mut Draft { core: &mut self.core, ground: &mut self.ground, region: Region(VMCS), page: OTHER });
    }

    /// A guest with some controls, running.
    pub(crate) fn run_with(mut self, write: impl FnOnce(&mut Draft<'_>)) -> Self {
        self.draft(write);
        self.launch();
        self
    }

    pub(crate) fn get(&self, field: Field) -> u64 {
        Region(VMCS).get(&self.ground, field)
    }

    pub(crate) fn set(&mut self, field: Field, value: u64) {
        Region(VMCS).set(&mut self.ground, field, value);
    }

    pub(crate) fn set_all(&mut self, values: &[(Field, u64)]) {
        for (field, value) in values {
            self.set(*field, *value);
        }
    }

    /// Sets and clears bits of a field.
    pub(crate) fn change(&mut self, field: Field, set: u64, clear: u64) {
        let value = self.get(field) & !clear | set;
        self.set(field, value);
    }

    pub(crate) fn enter(&mut self, how: Entry) -> Entered {
        self.vmx.enter(&mut self.core, &mut self.ground, how).unwrap()
    }

    pub(crate) fn launch(&mut self) {
        let broken = self.vmx.explain(&self.core, &self.ground).map(|check| check.name);
        assert_eq!(self.enter(Entry::Launch), Entered::Guest, "{broken:?}");
    }

    pub(crate) fn trap(&mut self, trap: Trap) -> Verdict {
        self.vmx.trap(&mut self.core, &mut self.ground, &trap, AT).unwrap()
    }

    /// The exit reason and qualification that a trap gives, on a copy of the bench.
    pub(crate) fn exit_of(&self, trap: Trap) -> Option<(u64, u64)> {
        let mut bench = self.clone();
        match bench.trap(trap) {
            Verdict::Continue => None,
            Verdict::Raise(exception) => panic!("raised {exception:?}"),
            Verdict::Exited => Some((bench.get(Field::ExitReason), bench.get(Field::ExitQualification))),
        }
    }

    pub(crate) fn cr_read(&self, register: ControlRegister, actual: u64) -> u64 {
        self.vmx.cr_read(&self.ground, register, actual)
    }

    pub(crate) fn write_controls(&mut self) {
        let capabilities = *self.vmx.capabilities();
        let without =
            PrimaryProc::UNCONDITIONAL_IO_EXITING | PrimaryProc::CR3_LOAD_EXITING | PrimaryProc::CR3_STORE_EXITING;
        self.set_all(&[
            (Field::PinBasedControls, capabilities.pin.may.into()),
            (Field::PrimaryControls, (capabilities.primary.may & !without.bits()).into()),
            (Field::SecondaryControls, (capabilities.secondary.may & !SecondaryProc::UNRESTRICTED_GUEST.bits()).into()),
            (Field::ExitControls, capabilities.exit.may.into()),
            (Field::EntryControls, capabilities.entry.may.into()),
            (Field::IoBitmapA, IO_A.0),
            (Field::IoBitmapB, IO_B.0),
            (Field::MsrBitmaps, MSR_BITMAPS.0),
            (Field::Vpid, 7),
            (Field::EptPointer, EPT.0 | 0x5e),
            (Field::VmcsLinkPointer, u64::MAX),
        ]);
    }

    pub(crate) fn write_host(&mut self) {
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

    pub(crate) fn write_guest(&mut self) {
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
            self.set_segment(*name, selector, 0, limit, rights.0);
        }
    }

    pub(crate) fn set_segment(&mut self, name: SegmentName, selector: u64, base: u64, limit: u64, rights: u32) {
        let values = [selector, base, limit, rights.into()];
        for (field, value) in name.fields().into_iter().zip(values) {
            self.set(field, value);
        }
    }

    /// The same guest in PAE paging.
    pub(crate) fn guest_pae(&mut self) {
        self.change(Field::EntryControls, 0, EntryControls::IA32E_MODE_GUEST.bits().into());
        self.set(Field::GuestEfer, Efer::NXE.bits());
        self.set(Field::GuestCsRights, Rights::CODE32.0.into());
        self.set(Field::GuestCr3, PDPT.0);
    }

    /// The same guest without EPT.
    pub(crate) fn without_ept(&mut self) {
        self.change(Field::SecondaryControls, 0, SecondaryProc::ENABLE_EPT.bits().into());
    }

    /// A virtual-8086 guest in PAE paging.
    pub(crate) fn guest_v86(&mut self) {
        self.guest_pae();
        self.change(Field::GuestRflags, 1 << 17, 0);
        use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
        for name in [Es, Cs, Ss, Ds, Fs, Gs] {
            self.set_segment(name, 0x100, 0x1000, 0xffff, 0xf3);
        }
    }

    /// An unrestricted guest in real-address mode.
    pub(crate) fn guest_real(&mut self) {
        self.guest_pae();
        self.change(Field::SecondaryControls, SecondaryProc::UNRESTRICTED_GUEST.bits().into(), 0);
        self.set(Field::GuestCr0, (Cr0::NE | Cr0::ET).bits());
        for name in SegmentName::ALL {
            match name {
                SegmentName::Ldtr | SegmentName::Tr => {}
                SegmentName::Cs => self.set_segment(*name, 0xf000, 0xf_0000, 0xffff, 0x9b),
                _ => self.set_segment(*name, 0, 0, 0xffff, 0x93),
            }
        }
    }

    /// A 32-bit host without paging extensions, and the PAE guest.
    pub(crate) fn host32(&mut self) {
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
