//! What a VM-entry and the VM-exit that answers it cost: `cargo bench -p vmx`.
//!
//! The smallest VMCS that passes every check: 64-bit host and guest, no EPT.

use cpu::Core;
use cpu::virt::{At, Trap, Verdict, Virt};
use divan::{Bencher, black_box};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Rights;
use sim_core::event::{Detail, EventLog};
use sim_core::{Ground, Hpa};
use vmx::controls::{EntryControls, ExitControls};
use vmx::vmcs::Region;
use vmx::{Capabilities, Entered, Entry, Field, Vmx};

const VMXON: Hpa = Hpa(0x1000);
const VMCS: Hpa = Hpa(0x2000);

fn main() {
    divan::main();
}

fn machine() -> (Core, Ground, Vmx) {
    let capabilities = Capabilities::default();
    let mut core = Core::flat32(46);
    core.cr0.insert(Cr0::PG);
    core.cr4 = Cr4::PAE | Cr4::VMXE;
    core.efer = Efer::LMA | Efer::LME;
    core.segments.cs.rights = Rights::CODE64;
    let mut ground = Ground::new(64);
    ground.log = EventLog::new(Detail::Nothing);
    for region in [VMXON, VMCS] {
        ground.mem.write_u32(region, capabilities.revision);
    }
    let mut vmx = Vmx::new(capabilities);
    vmx.vmxon(&mut core, &mut ground, VMXON).expect("VMXON");
    vmx.vmclear(&mut ground, VMCS).expect("VMCLEAR");
    vmx.vmptrld(&mut ground, VMCS).expect("VMPTRLD");
    let entry = EntryControls::IA32E_MODE_GUEST | EntryControls::LOAD_EFER;
    let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE | ExitControls::LOAD_EFER;
    let fields = [
        (Field::PinBasedControls, capabilities.pin.must.into()),
        (Field::PrimaryControls, capabilities.primary.must.into()),
        (Field::ExitControls, (capabilities.exit.must | exit.bits()).into()),
        (Field::EntryControls, (capabilities.entry.must | entry.bits()).into()),
        (Field::VmcsLinkPointer, u64::MAX),
        (Field::HostCr0, core.cr0.bits()),
        (Field::HostCr4, core.cr4.bits()),
        (Field::HostEfer, core.efer.bits()),
        (Field::HostCsSelector, 0x08),
        (Field::HostTrSelector, 0x18),
        (Field::HostRip, 0x4000),
        (Field::GuestCr0, core.cr0.bits()),
        (Field::GuestCr4, core.cr4.bits()),
        (Field::GuestEfer, core.efer.bits()),
        (Field::GuestDr7, 0x400),
        (Field::GuestRflags, 2),
        (Field::GuestRip, 0x5000),
        (Field::GuestCsSelector, 0x08),
        (Field::GuestCsLimit, 0xffff_ffff),
        (Field::GuestCsRights, Rights::CODE64.0.into()),
        (Field::GuestTrSelector, 0x18),
        (Field::GuestTrLimit, 0x67),
        (Field::GuestTrRights, Rights::BUSY_TSS.0.into()),
        (Field::GuestLdtrRights, Rights::UNUSABLE.0.into()),
        (Field::GuestSsRights, Rights::UNUSABLE.0.into()),
        (Field::GuestDsRights, Rights::UNUSABLE.0.into()),
        (Field::GuestEsRights, Rights::UNUSABLE.0.into()),
        (Field::GuestFsRights, Rights::UNUSABLE.0.into()),
        (Field::GuestGsRights, Rights::UNUSABLE.0.into()),
    ];
    for (field, value) in fields {
        Region(VMCS).set(&mut ground, field, value);
    }
    let broken = vmx.explain(&core, &ground).map(|check| check.name);
    assert_eq!(vmx.enter(&mut core, &mut ground, Entry::Launch).expect("modelled"), Entered::Guest, "{broken:?}");
    leave(&mut core, &mut ground, &mut vmx);
    (core, ground, vmx)
}

fn leave(core: &mut Core, ground: &mut Ground, vmx: &mut Vmx) {
    assert_eq!(vmx.trap(core, ground, &Trap::Cpuid, At::of(2)), Ok(Verdict::Exited));
}

/// VMRESUME with every check, and the exit of a CPUID.
#[divan::bench]
fn entry_and_exit(bencher: Bencher<'_, '_>) {
    let (mut core, mut ground, mut vmx) = machine();
    bencher.bench_local(|| {
        let entered = vmx.enter(&mut core, &mut ground, Entry::Resume).expect("modelled");
        assert_eq!(black_box(entered), Entered::Guest);
        leave(&mut core, &mut ground, &mut vmx);
    });
}
