//! A small machine for the unit tests: a 64-bit host with SVM enabled, and a VMCB that VMRUN accepts.

use crate::capability::Capabilities;
use crate::intercept::Intercepts;
use crate::unit::Svm;
use crate::vmcb::{self, Field, SegmentField, TableField};
use cpu::{Core, Gpr};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::{Ground, Hpa};

pub(crate) const VMCB: Hpa = Hpa(0x1_0000);
pub(crate) const HSAVE: Hpa = Hpa(0x1_1000);
pub(crate) const IOPM: Hpa = Hpa(0x1_2000);
pub(crate) const MSRPM: Hpa = Hpa(0x1_5000);
pub(crate) const ASID: u32 = 5;
pub(crate) const GUEST_RIP: u64 = 0xffff_8000_0000_1000;

/// A unit with everything, its host save area set.
pub(crate) fn unit() -> Svm {
    let mut svm = Svm::new(Capabilities::default());
    svm.set_hsave(HSAVE);
    svm
}

/// A 64-bit host and a valid VMCB without nested paging.
pub(crate) fn machine() -> (Core, Ground) {
    let mut core = Core::flat32(48);
    core.segments.cs.rights = Rights::CODE64;
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr3 = 0x8000;
    core.cr4 = Cr4::PAE | Cr4::PGE;
    core.efer = Efer::SVME | Efer::LME | Efer::LMA | Efer::NXE;
    core.rip = 0x40_0000;
    core.gdtr = TableRegister { base: 0x9000, limit: 0x7f };
    core.idtr = TableRegister { base: 0xa000, limit: 0xfff };
    core.gprs = std::array::from_fn(|index| 0x1111 * index as u64);
    core.set_gpr(Gpr::Rax, VMCB.0);
    let mut ground = Ground::new(0x40);
    build(&mut ground, VMCB);
    (core, ground)
}

fn build(ground: &mut Ground, vmcb: Hpa) {
    let mem = &mut ground.mem;
    Intercepts::VMRUN.write(mem, vmcb);
    for (field, value) in [
        (Field::IopmBase, IOPM.0),
        (Field::MsrpmBase, MSRPM.0),
        (Field::Asid, u64::from(ASID)),
        (Field::Efer, (Efer::SVME | Efer::LME | Efer::LMA).bits()),
        (Field::Cr0, (Cr0::PE | Cr0::PG | Cr0::ET).bits()),
        (Field::Cr3, 0xb000),
        (Field::Cr4, Cr4::PAE.bits()),
        (Field::Cr2, 0x1234),
        (Field::Dr6, 0xffff_0ff0),
        (Field::Dr7, 0x400),
        (Field::Rflags, 0x202),
        (Field::Rip, GUEST_RIP),
        (Field::Rsp, 0x7000),
        (Field::Rax, 0xabcd),
        (Field::GuestPat, 0x0007_0406_0007_0406),
    ] {
        vmcb::write(mem, vmcb, field, value);
    }
    let segment = |selector, rights| Segment::flat(selector, rights);
    vmcb::write_segment(mem, vmcb, SegmentField::Cs, &segment(0x38, Rights::CODE64));
    for field in [SegmentField::Es, SegmentField::Ss, SegmentField::Ds, SegmentField::Fs, SegmentField::Gs] {
        vmcb::write_segment(mem, vmcb, field, &segment(0x40, Rights::DATA));
    }
    let task = Segment { selector: 0x48, base: 0xc000, limit: 0x67, rights: Rights::BUSY_TSS };
    vmcb::write_segment(mem, vmcb, SegmentField::Tr, &task);
    vmcb::write_table(mem, vmcb, TableField::Gdtr, TableRegister { base: 0xd000, limit: 0x3f });
    vmcb::write_table(mem, vmcb, TableField::Idtr, TableRegister { base: 0xe000, limit: 0x1ff });
}

/// Turns nested paging on in the VMCB.
pub(crate) fn enable_nested_paging(ground: &mut Ground) {
    vmcb::write(&mut ground.mem, VMCB, Field::NestedControl, 1);
    vmcb::write(&mut ground.mem, VMCB, Field::NestedCr3, 0xf000);
}
