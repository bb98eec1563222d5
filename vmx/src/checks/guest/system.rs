//! Checks on the guest's TR, LDTR, GDTR, IDTR, RIP, SSP and RFLAGS (SDM 3C 26.3.1.2 to 26.3.1.4).

use super::segments::{RESERVED_RIGHTS, granularity, usable};
use crate::checks::draft::NOT_CANONICAL;
use crate::checks::event::{injects, kind};
use crate::checks::{Check, View, table};
use crate::controls::{EntryControls, SecondaryProc};
use crate::vmcs::Field;
use crate::vmcs::segment::SegmentName as Seg;
use sim_core::arch::control::Cr0;
use sim_core::arch::segment::Segment;

fn tr(v: &View<'_>) -> Segment {
    v.segment(Seg::Tr)
}

/// Whether a rule holds of LDTR, if usable.
fn ldtr(v: &View<'_>, rule: impl FnOnce(&Segment) -> bool) -> bool {
    usable(v, Seg::Ldtr).is_none_or(|segment| rule(&segment))
}

/// Whether RIP and SSP are 64 bits wide.
fn is_64bit(v: &View<'_>) -> bool {
    v.ia32e() && v.segment(Seg::Cs).rights.is_long()
}

/// The access rights and limits of TR and LDTR.
pub static TABLE: &[Check] = table! { "26.3.1.2":
    "TR of type busy task-state segment",
        |v| match tr(v).rights.kind() {
            11 => true,
            3 => !v.ia32e(),
            _ => false,
        },
        |d| d.set(Field::GuestTrRights, 0x83);
    "TR.S 0", |v| !tr(v).rights.is_code_or_data(), |d| d.set(Field::GuestTrRights, 0x9b);
    "TR.P 1", |v| tr(v).rights.is_present(), |d| d.set(Field::GuestTrRights, 0x0b);
    "TR.G consistent with the limit", |v| granularity(&tr(v)), |d| d.set(Field::GuestTrLimit, 0x10_0067);
    "TR usable", |v| !tr(v).rights.is_unusable(), |d| d.set(Field::GuestTrRights, 0x1_008b);
    "TR access-rights bits 31:17 and 11:8 zero", |v| tr(v).rights.0 & RESERVED_RIGHTS == 0,
        |d| d.set(Field::GuestTrRights, 0x18b);
    "LDTR of type LDT", |v| ldtr(v, |segment| segment.rights.kind() == 2),
        |d| d.set(Field::GuestLdtrRights, 0x83);
    "LDTR.S 0", |v| ldtr(v, |segment| !segment.rights.is_code_or_data()),
        |d| d.set(Field::GuestLdtrRights, 0x92);
    "LDTR.P 1", |v| ldtr(v, |segment| segment.rights.is_present()), |d| d.set(Field::GuestLdtrRights, 0x02);
    "LDTR.G consistent with the limit", |v| ldtr(v, granularity),
        |d| {
            d.ldt();
            d.set(Field::GuestLdtrLimit, 0x10_0fff);
        };
    "LDTR access-rights bits 31:17 and 11:8 zero",
        |v| ldtr(v, |segment| segment.rights.0 & RESERVED_RIGHTS == 0),
        |d| d.set(Field::GuestLdtrRights, 0x2_0082);
};

/// GDTR and IDTR.
pub static TABLE_REGISTERS: &[Check] = table! { "26.3.1.3":
    "GDTR base canonical", |v| v.is_canonical(v.get(Field::GuestGdtrBase)),
        |d| d.set(Field::GuestGdtrBase, NOT_CANONICAL);
    "IDTR base canonical", |v| v.is_canonical(v.get(Field::GuestIdtrBase)),
        |d| d.set(Field::GuestIdtrBase, NOT_CANONICAL);
    "GDTR limit 16 bits", |v| v.get(Field::GuestGdtrLimit) >> 16 == 0, |d| d.set(Field::GuestGdtrLimit, 0x1_0000);
    "IDTR limit 16 bits", |v| v.get(Field::GuestIdtrLimit) >> 16 == 0, |d| d.set(Field::GuestIdtrLimit, 0x1_0000);
};

/// RIP, SSP and RFLAGS.
pub static RIP_AND_FLAGS: &[Check] = table! { "26.3.1.4":
    "RIP bits 63:32 zero outside 64-bit mode", |v| is_64bit(v) || v.get(Field::GuestRip) >> 32 == 0,
        |d| {
            d.guest_pae();
            d.set(Field::GuestRip, 1 << 32);
        };
    "RIP bits beyond the linear-address width identical in 64-bit mode",
        |v| !is_64bit(v) || v.has_identical_top(v.get(Field::GuestRip)),
        |d| d.set(Field::GuestRip, NOT_CANONICAL);
    "SSP 4-byte aligned",
        |v| !v.entry().contains(EntryControls::LOAD_CET_STATE) || v.get(Field::GuestSsp) & 3 == 0,
        |d| d.set(Field::GuestSsp, 2);
    "SSP within the address space",
        |v| {
            let ssp = v.get(Field::GuestSsp);
            let fits = if is_64bit(v) { v.has_identical_top(ssp) } else { ssp >> 32 == 0 };
            !v.entry().contains(EntryControls::LOAD_CET_STATE) || fits
        },
        |d| d.set(Field::GuestSsp, NOT_CANONICAL);
    "RFLAGS reserved bits", |v| v.get(Field::GuestRflags) & 0xffff_ffff_ffc0_802a == 2,
        |d| d.set(Field::GuestRflags, 0);
    "RFLAGS.VM 0 in an IA-32e mode guest or without CR0.PE",
        |v| !v.virtual_8086() || (!v.ia32e() && v.guest_cr0().contains(Cr0::PE)),
        |d| {
            d.guest_v86();
            d.secondary(SecondaryProc::UNRESTRICTED_GUEST);
            d.change(Field::GuestCr0, 0, (Cr0::PG | Cr0::PE).bits());
        };
    "RFLAGS.IF 1 for an injected external interrupt",
        |v| !injects(v, kind::EXTERNAL) || v.get(Field::GuestRflags) & 1 << 9 != 0,
        |d| {
            d.inject(0x8000_0020);
            d.set(Field::GuestRflags, 2);
        };
};
