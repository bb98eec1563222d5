//! What VMRUN and the #VMEXIT that answers it cost: `cargo bench -p svm`.
//!
//! A 64-bit host and guest without nested paging.

use cpu::Core;
use cpu::virt::{At, Trap, Verdict, Virt};
use divan::{Bencher, black_box};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::{Rights, Segment};
use sim_core::event::{Detail, EventLog};
use sim_core::{Ground, Hpa};
use svm::vmcb::{self, Field, SegmentField};
use svm::{Capabilities, Entered, Intercepts, Svm};

const VMCB: Hpa = Hpa(0x1000);

fn main() {
    divan::main();
}

fn machine() -> (Core, Ground, Svm) {
    let mut core = Core::flat32(48);
    core.segments.cs.rights = Rights::CODE64;
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr3 = 0x8000;
    core.cr4 = Cr4::PAE;
    core.efer = Efer::SVME | Efer::LME | Efer::LMA;
    let mut ground = Ground::new(64);
    ground.log = EventLog::new(Detail::Nothing);
    let mem = &mut ground.mem;
    for (field, value) in [
        (Field::IopmBase, 0x3000),
        (Field::MsrpmBase, 0x6000),
        (Field::Asid, 5),
        (Field::Efer, core.efer.bits()),
        (Field::Cr0, core.cr0.bits()),
        (Field::Cr3, core.cr3),
        (Field::Cr4, core.cr4.bits()),
        (Field::Dr6, 0xffff_0ff0),
        (Field::Dr7, 0x400),
        (Field::Rflags, 2),
        (Field::Rip, 0x4000),
        (Field::GuestPat, 0x0007_0406_0007_0406),
    ] {
        vmcb::write(mem, VMCB, field, value);
    }
    (Intercepts::VMRUN | Intercepts::CPUID).write(mem, VMCB);
    vmcb::write_segment(mem, VMCB, SegmentField::Cs, &Segment::flat(8, Rights::CODE64));
    vmcb::write_segment(mem, VMCB, SegmentField::Ss, &Segment::flat(0x10, Rights::DATA));
    let mut svm = Svm::new(Capabilities::default());
    svm.set_hsave(Hpa(0x2000));
    (core, ground, svm)
}

/// VMRUN with every check, and the exit of a CPUID.
#[divan::bench]
fn entry_and_exit(bencher: Bencher<'_, '_>) {
    let (mut core, mut ground, mut svm) = machine();
    bencher.bench_local(|| {
        assert_eq!(black_box(svm.enter(&mut core, &mut ground, VMCB)), Ok(Entered::Guest));
        assert_eq!(svm.trap(&mut core, &mut ground, &Trap::Cpuid, At::of(2)), Ok(Verdict::Exited));
    });
}
