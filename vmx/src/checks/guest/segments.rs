//! Checks on CS, SS, DS, ES, FS and GS of the guest (SDM 3C 26.3.1.2).

use crate::checks::draft::NOT_CANONICAL;
use crate::checks::{Check, View, table};
use crate::vmcs::Field;
use crate::vmcs::segment::SegmentName as Seg;
use sim_core::arch::control::Cr0;
use sim_core::arch::segment::Segment;

const DATA: [Seg; 4] = [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs];
const VISIBLE: [Seg; 6] = [Seg::Cs, Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs];
/// Access-rights bits 31:17 and 11:8.
pub(super) const RESERVED_RIGHTS: u32 = 0xfffe_0f00;

/// A segment register, if usable.
pub(super) fn usable(v: &View<'_>, name: Seg) -> Option<Segment> {
    let segment = v.segment(name);
    (!segment.rights.is_unusable()).then_some(segment)
}

/// Whether a rule holds of every segment register in virtual-8086 mode.
fn v86(v: &View<'_>, rule: fn(&Segment) -> bool) -> bool {
    !v.virtual_8086() || VISIBLE.into_iter().all(|name| rule(&v.segment(name)))
}

/// Whether a rule holds outside virtual-8086 mode of DS, ES, FS and GS, as far as usable.
fn data(v: &View<'_>, rule: fn(&Segment) -> bool) -> bool {
    v.virtual_8086() || DATA.into_iter().all(|name| usable(v, name).is_none_or(|segment| rule(&segment)))
}

/// Whether a rule holds outside virtual-8086 mode of CS, and of the others as far as usable.
fn checked(v: &View<'_>, rule: fn(&Segment) -> bool) -> bool {
    let applies = |name: Seg| name == Seg::Cs || usable(v, name).is_some();
    v.virtual_8086() || VISIBLE.into_iter().all(|name| !applies(name) || rule(&v.segment(name)))
}

/// Whether the base of a register is below 4 GiB, if the register is usable.
fn low_base(v: &View<'_>, name: Seg) -> bool {
    usable(v, name).is_none_or(|segment| segment.base >> 32 == 0)
}

fn cs_dpl(v: &View<'_>) -> bool {
    let (cs, ss) = (v.segment(Seg::Cs).rights, v.segment(Seg::Ss).rights);
    match cs.kind() {
        3 => cs.dpl() == 0,
        9 | 11 => cs.dpl() == ss.dpl(),
        13 | 15 => cs.dpl() <= ss.dpl(),
        _ => true,
    }
}

/// G must be 0 if limit bits 11:0 are not all ones, and 1 if limit bits 31:20 are not all zeroes.
pub(super) const fn granularity(segment: &Segment) -> bool {
    if segment.rights.is_granular() { segment.limit & 0xfff == 0xfff } else { segment.limit >> 20 == 0 }
}

/// The section's rules on these registers, and on the selectors and bases of TR and LDTR.
pub static TABLE: &[Check] = table! { "26.3.1.2":
    "TR selector with TI 0", |v| v.segment(Seg::Tr).selector & 4 == 0, |d| d.set(Field::GuestTrSelector, 0x1c);
    "LDTR selector with TI 0", |v| usable(v, Seg::Ldtr).is_none_or(|ldtr| ldtr.selector & 4 == 0),
        |d| {
            d.ldt();
            d.set(Field::GuestLdtrSelector, 0x24);
        };
    "SS.RPL equal to CS.RPL",
        |v| {
            v.virtual_8086() || v.unrestricted() || v.segment(Seg::Ss).selector & 3 == v.segment(Seg::Cs).selector & 3
        },
        |d| d.set(Field::GuestSsSelector, 0x13);
    "segment bases of virtual-8086 mode 16 times the selector",
        |v| v86(v, |segment| segment.base == u64::from(segment.selector) << 4),
        |d| {
            d.guest_v86();
            d.set(Field::GuestDsBase, 0x1010);
        };
    "TR base canonical", |v| v.is_canonical(v.segment(Seg::Tr).base), |d| d.set(Field::GuestTrBase, NOT_CANONICAL);
    "FS base canonical", |v| v.is_canonical(v.segment(Seg::Fs).base), |d| d.set(Field::GuestFsBase, NOT_CANONICAL);
    "GS base canonical", |v| v.is_canonical(v.segment(Seg::Gs).base), |d| d.set(Field::GuestGsBase, NOT_CANONICAL);
    "LDTR base canonical", |v| usable(v, Seg::Ldtr).is_none_or(|ldtr| v.is_canonical(ldtr.base)),
        |d| {
            d.ldt();
            d.set(Field::GuestLdtrBase, NOT_CANONICAL);
        };
    "CS base below 4 GiB", |v| v.segment(Seg::Cs).base >> 32 == 0, |d| d.set(Field::GuestCsBase, 1 << 32);
    "SS base below 4 GiB", |v| low_base(v, Seg::Ss), |d| d.set(Field::GuestSsBase, 1 << 32);
    "DS base below 4 GiB", |v| low_base(v, Seg::Ds), |d| d.set(Field::GuestDsBase, 1 << 32);
    "ES base below 4 GiB", |v| low_base(v, Seg::Es), |d| d.set(Field::GuestEsBase, 1 << 32);
    "segment limits of virtual-8086 mode 64 KiB", |v| v86(v, |segment| segment.limit == 0xffff),
        |d| {
            d.guest_v86();
            d.set(Field::GuestFsLimit, 0xfffff);
        };
    "segment rights of virtual-8086 mode F3H", |v| v86(v, |segment| segment.rights.0 == 0xf3),
        |d| {
            d.guest_v86();
            d.set(Field::GuestSsRights, 0x93);
        };
    "CS type accessed code",
        |v| {
            let kind = v.segment(Seg::Cs).rights.kind();
            v.virtual_8086() || matches!(kind, 9 | 11 | 13 | 15) || (v.unrestricted() && kind == 3)
        },
        |d| d.set(Field::GuestCsRights, 0xa093);
    "SS type accessed writable data",
        |v| v.virtual_8086() || usable(v, Seg::Ss).is_none_or(|ss| matches!(ss.rights.kind(), 3 | 7)),
        |d| d.set(Field::GuestSsRights, 0xc091);
    "DS, ES, FS and GS types accessed", |v| data(v, |segment| segment.rights.kind() & 1 != 0),
        |d| d.set(Field::GuestGsRights, 0xc092);
    "DS, ES, FS and GS types readable", |v| data(v, |segment| segment.rights.kind() & 0b1010 != 0b1000),
        |d| d.set(Field::GuestFsRights, 0xc099);
    "CS.S and S of usable segments 1", |v| checked(v, |segment| segment.rights.is_code_or_data()),
        |d| d.set(Field::GuestDsRights, 0xc083);
    "CS.DPL consistent with its type and SS.DPL", |v| v.virtual_8086() || cs_dpl(v),
        |d| d.set(Field::GuestCsRights, 0xa0fb);
    "SS.DPL equal to SS.RPL",
        |v| {
            let ss = v.segment(Seg::Ss);
            v.virtual_8086() || v.unrestricted() || u16::from(ss.rights.dpl()) == ss.selector & 3
        },
        |d| d.set_all(&[(Field::GuestCsRights, 0xa0ff), (Field::GuestSsRights, 0xc0f3)]);
    "SS.DPL 0 without CR0.PE or with a data segment in CS",
        |v| {
            let level0 = v.segment(Seg::Cs).rights.kind() == 3 || !v.guest_cr0().contains(Cr0::PE);
            v.virtual_8086() || !level0 || v.segment(Seg::Ss).rights.dpl() == 0
        },
        |d| {
            d.guest_real();
            d.set_all(&[(Field::GuestCsRights, 0xfb), (Field::GuestSsRights, 0xf3)]);
        };
    "DS, ES, FS and GS DPL not below RPL",
        |v| {
            v.unrestricted()
                || data(v, |s| s.rights.kind() > 11 || u16::from(s.rights.dpl()) >= s.selector & 3)
        },
        |d| d.set(Field::GuestDsSelector, 0x13);
    "CS.P and P of usable segments 1", |v| checked(v, |segment| segment.rights.is_present()),
        |d| d.set(Field::GuestEsRights, 0xc013);
    "access-rights bits 31:17 and 11:8 zero", |v| checked(v, |segment| segment.rights.0 & RESERVED_RIGHTS == 0),
        |d| d.set(Field::GuestFsRights, 0xc193);
    "CS.D 0 with CS.L in an IA-32e mode guest",
        |v| {
            let cs = v.segment(Seg::Cs).rights;
            v.virtual_8086() || !v.ia32e() || !cs.is_long() || !cs.is_big()
        },
        |d| d.set(Field::GuestCsRights, 0xe09b);
    "G consistent with the limit", |v| checked(v, granularity), |d| d.set(Field::GuestGsLimit, 0xffff_fffe);
};
