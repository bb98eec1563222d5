//! Checks on the guest-state area (SDM 3C 26.3.1). A broken one is a VM-entry failure with exit reason 33.
//!
//! PDPTEs that come from memory (no EPT) are checked where they are loaded, in [`crate::entry`].

use super::{Check, NO_LINK, View, check, controls, is_efer, is_pat, keeps_fixed};
use crate::controls::{EntryControls, SecondaryProc};
use crate::vmcs::Field;
use crate::vmcs::segment::SegmentName as Seg;
use crate::vmcs::{Region, segment};
use sim_core::Hpa;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Segment;

/// The exit qualification of a PDPTE that can't be loaded (SDM 3C 26.8).
pub const QUALIFICATION_PDPTE: u64 = 2;
/// The exit qualification of a bad VMCS link pointer (SDM 3C 26.8).
pub const QUALIFICATION_LINK: u64 = 4;

const DATA: [Seg; 4] = [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs];
const VISIBLE: [Seg; 6] = [Seg::Cs, Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs];

/// Every check, in the manual's order.
pub static TABLE: &[Check] = &[
    check("CR0 has the bits fixed in VMX operation", "26.3.1.1", |v| {
        let (must, may) = v.capabilities.cr0_fixed;
        let relaxed = if v.unrestricted() { Cr0::PE.union(Cr0::PG).bits() } else { 0 };
        keeps_fixed(v.get(Field::GuestCr0), (must & !relaxed, may))
    }),
    check("CR0.PG only with CR0.PE", "26.3.1.1", |v| {
        !v.guest_cr0().contains(Cr0::PG) || v.guest_cr0().contains(Cr0::PE)
    }),
    check("CR4 has the bits fixed in VMX operation", "26.3.1.1", |v| {
        keeps_fixed(v.get(Field::GuestCr4), v.capabilities.cr4_fixed)
    }),
    check("IA32_DEBUGCTL without reserved bits", "26.3.1.1", |v| {
        !v.entry().contains(EntryControls::LOAD_DEBUG_CONTROLS) || v.get(Field::GuestDebugctl) & !0xffc3 == 0
    }),
    check("IA-32e mode guest with CR0.PG and CR4.PAE", "26.3.1.1", |v| {
        !v.ia32e() || (v.guest_cr0().contains(Cr0::PG) && v.guest_cr4().contains(Cr4::PAE))
    }),
    check("CR4.PCIDE only in an IA-32e mode guest", "26.3.1.1", |v| v.ia32e() || !v.guest_cr4().contains(Cr4::PCIDE)),
    check("CR3 within the physical-address width", "26.3.1.1", |v| v.within_width(v.get(Field::GuestCr3))),
    check("DR7 bits 63:32 zero", "26.3.1.1", |v| {
        !v.entry().contains(EntryControls::LOAD_DEBUG_CONTROLS) || v.get(Field::GuestDr7) >> 32 == 0
    }),
    check("SYSENTER_ESP and SYSENTER_EIP canonical", "26.3.1.1", |v| {
        [Field::GuestSysenterEsp, Field::GuestSysenterEip].into_iter().all(|field| v.is_canonical(v.get(field)))
    }),
    check("PAT of defined memory types", "26.3.1.1", |v| {
        !v.entry().contains(EntryControls::LOAD_PAT) || is_pat(v.get(Field::GuestPat))
    }),
    check("EFER without reserved bits", "26.3.1.1", |v| {
        !v.entry().contains(EntryControls::LOAD_EFER) || is_efer(v.get(Field::GuestEfer))
    }),
    check("EFER.LMA equal to IA-32e mode guest", "26.3.1.1", |v| {
        !v.entry().contains(EntryControls::LOAD_EFER) || efer(v).contains(Efer::LMA) == v.ia32e()
    }),
    check("EFER.LMA equal to EFER.LME under paging", "26.3.1.1", |v| {
        !v.entry().contains(EntryControls::LOAD_EFER)
            || !v.guest_cr0().contains(Cr0::PG)
            || efer(v).contains(Efer::LMA) == efer(v).contains(Efer::LME)
    }),
    check("TR and LDTR selectors with TI 0", "26.3.1.2", |v| {
        v.segment(Seg::Tr).selector & 4 == 0 && usable(v, Seg::Ldtr).is_none_or(|ldtr| ldtr.selector & 4 == 0)
    }),
    check("SS.RPL equal to CS.RPL", "26.3.1.2", |v| {
        v.virtual_8086() || v.unrestricted() || v.segment(Seg::Ss).selector & 3 == v.segment(Seg::Cs).selector & 3
    }),
    check("segment bases of virtual-8086 mode 16 times the selector", "26.3.1.2", |v| {
        !v.virtual_8086() || visible(v).all(|segment| segment.base == u64::from(segment.selector) << 4)
    }),
    check("TR, FS, GS and LDTR bases canonical", "26.3.1.2", |v| {
        [Seg::Tr, Seg::Fs, Seg::Gs].into_iter().all(|name| v.is_canonical(v.segment(name).base))
            && usable(v, Seg::Ldtr).is_none_or(|ldtr| v.is_canonical(ldtr.base))
    }),
    check("CS base below 4 GiB", "26.3.1.2", |v| v.segment(Seg::Cs).base >> 32 == 0),
    check("SS, DS and ES bases below 4 GiB", "26.3.1.2", |v| {
        [Seg::Ss, Seg::Ds, Seg::Es].into_iter().all(|name| usable(v, name).is_none_or(|s| s.base >> 32 == 0))
    }),
    check("segment limits of virtual-8086 mode 64 KiB", "26.3.1.2", |v| {
        !v.virtual_8086() || visible(v).all(|segment| segment.limit == 0xffff)
    }),
    check("segment rights of virtual-8086 mode F3H", "26.3.1.2", |v| {
        !v.virtual_8086() || visible(v).all(|segment| segment.rights.0 == 0xf3)
    }),
    check("CS type accessed code", "26.3.1.2", |v| {
        v.virtual_8086()
            || matches!(v.segment(Seg::Cs).rights.kind(), 9 | 11 | 13 | 15)
            || (v.unrestricted() && v.segment(Seg::Cs).rights.kind() == 3)
    }),
    check("SS type accessed writable data", "26.3.1.2", |v| {
        v.virtual_8086() || usable(v, Seg::Ss).is_none_or(|ss| matches!(ss.rights.kind(), 3 | 7))
    }),
    check("DS, ES, FS and GS types accessed, readable", "26.3.1.2", |v| {
        v.virtual_8086() || data(v).all(|s| s.rights.kind() & 1 != 0 && s.rights.kind() & 0b1010 != 0b1000)
    }),
    check("CS.S and S of usable segments 1", "26.3.1.2", |v| {
        v.virtual_8086() || checked(v).all(|segment| segment.rights.is_code_or_data())
    }),
    check("CS.DPL consistent with its type and SS.DPL", "26.3.1.2", |v| v.virtual_8086() || cs_dpl(v)),
    check("SS.DPL consistent with SS.RPL, CS type and CR0.PE", "26.3.1.2", |v| v.virtual_8086() || ss_dpl(v)),
    check("DS, ES, FS and GS DPL not below RPL", "26.3.1.2", |v| {
        let conforming_or_equal = |s: &Segment| s.rights.kind() > 11 || u16::from(s.rights.dpl()) >= s.selector & 3;
        v.virtual_8086() || v.unrestricted() || data(v).all(|segment| conforming_or_equal(&segment))
    }),
    check("CS.P and P of usable segments 1", "26.3.1.2", |v| {
        v.virtual_8086() || checked(v).all(|segment| segment.rights.is_present())
    }),
    check("reserved access-rights bits 0", "26.3.1.2", |v| {
        v.virtual_8086() || checked(v).all(|segment| segment.rights.0 & 0xfffe_0f00 == 0)
    }),
    check("CS.D 0 with CS.L in an IA-32e mode guest", "26.3.1.2", |v| {
        let cs = v.segment(Seg::Cs).rights;
        v.virtual_8086() || !v.ia32e() || !cs.is_long() || !cs.is_big()
    }),
    check("G consistent with the limit", "26.3.1.2", |v| {
        v.virtual_8086() || checked(v).all(|segment| granularity(&segment))
    }),
    check("TR busy task-state segment", "26.3.1.2", |v| match v.segment(Seg::Tr).rights.kind() {
        11 => true,
        3 => !v.ia32e(),
        _ => false,
    }),
    check("TR usable, present, a system segment, without reserved bits", "26.3.1.2", |v| {
        let tr = v.segment(Seg::Tr);
        system(&tr) && granularity(&tr) && !tr.rights.is_unusable()
    }),
    check("LDTR of type LDT, present, a system segment, without reserved bits", "26.3.1.2", |v| {
        usable(v, Seg::Ldtr).is_none_or(|ldtr| ldtr.rights.kind() == 2 && system(&ldtr) && granularity(&ldtr))
    }),
    check("GDTR and IDTR bases canonical", "26.3.1.3", |v| {
        [Field::GuestGdtrBase, Field::GuestIdtrBase].into_iter().all(|field| v.is_canonical(v.get(field)))
    }),
    check("GDTR and IDTR limits 16 bits", "26.3.1.3", |v| {
        [Field::GuestGdtrLimit, Field::GuestIdtrLimit].into_iter().all(|field| v.get(field) >> 16 == 0)
    }),
    check("RIP within the code segment's width", "26.3.1.4", |v| {
        match v.ia32e() && v.segment(Seg::Cs).rights.is_long() {
            true => v.is_canonical(v.get(Field::GuestRip)),
            false => v.get(Field::GuestRip) >> 32 == 0,
        }
    }),
    check("RFLAGS reserved bits", "26.3.1.4", |v| v.get(Field::GuestRflags) & 0xffff_ffff_ffc0_802a == 2),
    check("RFLAGS.VM 0 in an IA-32e mode guest or without CR0.PE", "26.3.1.4", |v| {
        !v.virtual_8086() || (!v.ia32e() && v.guest_cr0().contains(Cr0::PE))
    }),
    check("RFLAGS.IF 1 for an injected external interrupt", "26.3.1.4", |v| {
        !injects_external(v) || v.get(Field::GuestRflags) & 1 << 9 != 0
    }),
    check("activity state supported", "26.3.1.5", |v| v.get(Field::GuestActivity) <= 1),
    check("activity state HLT only at SS.DPL 0", "26.3.1.5", |v| {
        v.get(Field::GuestActivity) != 1 || v.segment(Seg::Ss).rights.dpl() == 0
    }),
    check("activity state active under blocking by STI or MOV SS", "26.3.1.5", |v| {
        v.get(Field::GuestInterruptibility) & 3 == 0 || v.get(Field::GuestActivity) == 0
    }),
    check("interruptibility state without reserved bits", "26.3.1.5", |v| {
        v.get(Field::GuestInterruptibility) & !0xf == 0
    }),
    check("not blocked by STI and MOV SS at once", "26.3.1.5", |v| v.get(Field::GuestInterruptibility) & 3 != 3),
    check("blocking by STI only with RFLAGS.IF", "26.3.1.5", |v| {
        v.get(Field::GuestInterruptibility) & 1 == 0 || v.get(Field::GuestRflags) & 1 << 9 != 0
    }),
    check("no external interrupt injected under blocking", "26.3.1.5", |v| {
        !injects_external(v) || v.get(Field::GuestInterruptibility) & 3 == 0
    }),
    check("no blocking by SMI outside SMM", "26.3.1.5", |v| v.get(Field::GuestInterruptibility) & 4 == 0),
    check("pending debug exceptions without reserved bits", "26.3.1.5", |v| {
        v.get(Field::GuestPendingDebug) & 0xffff_ffff_fffe_aff0 == 0
    }),
    Check {
        name: "VMCS link pointer all ones or a VMCS region",
        clause: "26.3.1.5",
        qualification: QUALIFICATION_LINK,
        holds: link_pointer,
    },
    Check {
        name: "PDPTE fields without reserved bits",
        clause: "26.3.1.6",
        qualification: QUALIFICATION_PDPTE,
        holds: |v| {
            !v.guest_pae()
                || !v.secondary().contains(SecondaryProc::ENABLE_EPT)
                || Field::PDPTES.into_iter().all(|field| is_pdpte(v.get(field), v.core.maxphyaddr))
        },
    },
];

fn efer(view: &View<'_>) -> Efer {
    Efer::from_bits_retain(view.get(Field::GuestEfer))
}

fn usable(view: &View<'_>, name: segment::SegmentName) -> Option<Segment> {
    let segment = view.segment(name);
    (!segment.rights.is_unusable()).then_some(segment)
}

fn visible<'a>(view: &'a View<'_>) -> impl Iterator<Item = Segment> + 'a {
    VISIBLE.into_iter().map(|name| view.segment(name))
}

/// DS, ES, FS and GS, as far as usable.
fn data<'a>(view: &'a View<'_>) -> impl Iterator<Item = Segment> + 'a {
    DATA.into_iter().filter_map(|name| usable(view, name))
}

/// CS, and the other segments as far as usable.
fn checked<'a>(view: &'a View<'_>) -> impl Iterator<Item = Segment> + 'a {
    VISIBLE.into_iter().filter(|name| *name == Seg::Cs || usable(view, *name).is_some()).map(|name| view.segment(name))
}

fn cs_dpl(view: &View<'_>) -> bool {
    let (cs, ss) = (view.segment(Seg::Cs).rights, view.segment(Seg::Ss).rights);
    match cs.kind() {
        3 => cs.dpl() == 0,
        9 | 11 => cs.dpl() == ss.dpl(),
        13 | 15 => cs.dpl() <= ss.dpl(),
        _ => true,
    }
}

fn ss_dpl(view: &View<'_>) -> bool {
    let (cs, ss) = (view.segment(Seg::Cs), view.segment(Seg::Ss));
    let ring0 = cs.rights.kind() == 3 || !view.guest_cr0().contains(Cr0::PE);
    let equals_rpl = view.unrestricted() || u16::from(ss.rights.dpl()) == ss.selector & 3;
    equals_rpl && (!ring0 || ss.rights.dpl() == 0)
}

/// G must be 0 if limit bits 11:0 are not all ones, and 1 if limit bits 31:20 are not all zeroes.
const fn granularity(segment: &Segment) -> bool {
    if segment.rights.is_granular() { segment.limit & 0xfff == 0xfff } else { segment.limit >> 20 == 0 }
}

const fn system(segment: &Segment) -> bool {
    !segment.rights.is_code_or_data() && segment.rights.is_present() && segment.rights.0 & 0xfffe_0f00 == 0
}

fn injects_external(view: &View<'_>) -> bool {
    controls::event(view).is_some_and(|event| event.kind == controls::kind::EXTERNAL)
}

/// A present PDPTE has reserved bits 2:1, 8:5 and those beyond the physical-address width (SDM 3A 4.4.1).
const fn is_pdpte(entry: u64, maxphyaddr: u32) -> bool {
    entry & 1 == 0 || (entry & 0x1e6 == 0 && entry >> maxphyaddr == 0)
}

fn link_pointer(view: &View<'_>) -> bool {
    let link = view.get(Field::VmcsLinkPointer);
    let region = Region(Hpa(link));
    link == NO_LINK.0
        || (view.is_page(link)
            && link != view.region.0.0
            && region.revision_word(view.ground) == view.capabilities.revision)
}
