//! Checks on the guest's non-register state and its PDPTEs (SDM 3C 26.3.1.5, 26.3.1.6).

use super::{QUALIFICATION_LINK, QUALIFICATION_PDPTE};
use crate::capability::offered::misc;
use crate::checks::event::{event, injects, kind};
use crate::checks::{Check, Draft, NO_LINK, View};
use crate::controls::{EntryControls, PinBased, SecondaryProc};
use crate::vmcs::segment::SegmentName as Seg;
use crate::vmcs::{Field, Region};
use sim_core::Hpa;

/// Activity states (SDM 3C 24.4.2).
mod activity {
    pub(super) const ACTIVE: u64 = 0;
    pub(super) const HLT: u64 = 1;
    pub(super) const SHUTDOWN: u64 = 2;
    pub(super) const WAIT_FOR_SIPI: u64 = 3;
}

const BY_STI: u64 = 1 << 0;
const BY_MOV_SS: u64 = 1 << 1;
const BY_SMI: u64 = 1 << 2;
const BY_NMI: u64 = 1 << 3;
const ENCLAVE: u64 = 1 << 4;
/// Pending debug exceptions: BS, and RTM.
const BS: u64 = 1 << 14;
const RTM: u64 = 1 << 16;

fn blocked(v: &View<'_>, by: u64) -> bool {
    v.get(Field::GuestInterruptibility) & by != 0
}

fn is(v: &View<'_>, state: u64) -> bool {
    v.get(Field::GuestActivity) == state
}

fn is_supported(v: &View<'_>) -> bool {
    let needed = match v.get(Field::GuestActivity) {
        activity::ACTIVE => return true,
        activity::HLT => misc::HLT,
        activity::SHUTDOWN => misc::SHUTDOWN,
        activity::WAIT_FOR_SIPI => misc::WAIT_FOR_SIPI,
        _ => return false,
    };
    v.capabilities.misc & needed != 0
}

/// The events that can be delivered in each activity state.
fn event_fits_activity(v: &View<'_>) -> bool {
    const DEBUG: u8 = 1;
    const MACHINE_CHECK: u8 = 18;
    event(v).is_none_or(|event| {
        matches!(
            (v.get(Field::GuestActivity), event.kind, event.vector),
            (activity::ACTIVE, ..)
                | (activity::HLT, kind::EXTERNAL | kind::NMI | kind::OTHER, _)
                | (activity::HLT, kind::HARDWARE_EXCEPTION, DEBUG | MACHINE_CHECK)
                | (activity::SHUTDOWN, kind::NMI, _)
                | (activity::SHUTDOWN, kind::HARDWARE_EXCEPTION, MACHINE_CHECK)
        )
    })
}

/// Whether a single-step trap is due: RFLAGS.TF without IA32_DEBUGCTL.BTF.
fn steps(v: &View<'_>) -> bool {
    v.get(Field::GuestRflags) & 1 << 8 != 0 && v.get(Field::GuestDebugctl) & 1 << 1 == 0
}

/// Whether the step could not have been delivered before.
fn holds_debug(v: &View<'_>) -> bool {
    blocked(v, BY_STI | BY_MOV_SS) || is(v, activity::HLT)
}

/// The section up to the link pointer.
pub static TABLE: &[Check] = &[
    row("activity state supported", is_supported, |d| d.set(Field::GuestActivity, 4)),
    row(
        "activity state HLT only at SS.DPL 0",
        |v| !is(v, activity::HLT) || v.segment(Seg::Ss).rights.dpl() == 0,
        |d| {
            d.guest_user();
            d.set(Field::GuestActivity, activity::HLT);
        },
    ),
    row(
        "activity state active under blocking by STI or MOV SS",
        |v| !blocked(v, BY_STI | BY_MOV_SS) || is(v, activity::ACTIVE),
        |d| d.set_all(&[(Field::GuestActivity, activity::HLT), (Field::GuestInterruptibility, BY_STI)]),
    ),
    row("injected event deliverable in the activity state", event_fits_activity, |d| {
        d.set(Field::GuestActivity, activity::HLT);
        d.inject(0x8000_0306);
    }),
    row(
        "no activity state wait-for-SIPI on entry to SMM",
        |v| !v.entry().contains(EntryControls::ENTRY_TO_SMM) || !is(v, activity::WAIT_FOR_SIPI),
        |d| {
            d.core.blocking.insert(cpu::Blocking::SMI);
            d.entry(EntryControls::ENTRY_TO_SMM);
            d.set(Field::GuestActivity, activity::WAIT_FOR_SIPI);
        },
    ),
    row(
        "interruptibility state without reserved bits",
        |v| v.get(Field::GuestInterruptibility) & !0x1f == 0,
        |d| d.set(Field::GuestInterruptibility, 1 << 5),
    ),
    row(
        "not blocked by STI and MOV SS at once",
        |v| !(blocked(v, BY_STI) && blocked(v, BY_MOV_SS)),
        |d| d.set(Field::GuestInterruptibility, BY_STI | BY_MOV_SS),
    ),
    row(
        "blocking by STI only with RFLAGS.IF",
        |v| !blocked(v, BY_STI) || v.get(Field::GuestRflags) & 1 << 9 != 0,
        |d| d.set_all(&[(Field::GuestInterruptibility, BY_STI), (Field::GuestRflags, 2)]),
    ),
    row(
        "no external interrupt injected under blocking by STI or MOV SS",
        |v| !injects(v, kind::EXTERNAL) || !blocked(v, BY_STI | BY_MOV_SS),
        |d| {
            d.inject(0x8000_0020);
            d.set(Field::GuestInterruptibility, BY_MOV_SS);
        },
    ),
    row(
        "no NMI injected under blocking by MOV SS",
        |v| !injects(v, kind::NMI) || !blocked(v, BY_MOV_SS),
        |d| {
            d.inject(0x8000_0202);
            d.set(Field::GuestInterruptibility, BY_MOV_SS);
        },
    ),
    row(
        "no blocking by SMI outside SMM",
        |v| v.in_smm() || !blocked(v, BY_SMI),
        |d| {
            d.set(Field::GuestInterruptibility, BY_SMI);
        },
    ),
    row(
        "blocking by SMI on entry to SMM",
        |v| !v.entry().contains(EntryControls::ENTRY_TO_SMM) || blocked(v, BY_SMI),
        |d| {
            d.core.blocking.insert(cpu::Blocking::SMI);
            d.entry(EntryControls::ENTRY_TO_SMM);
        },
    ),
    row(
        "no virtual NMI injected under virtual-NMI blocking",
        |v| !v.pin().contains(PinBased::VIRTUAL_NMIS) || !injects(v, kind::NMI) || !blocked(v, BY_NMI),
        |d| {
            d.pin(PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS);
            d.inject(0x8000_0202);
            d.set(Field::GuestInterruptibility, BY_NMI);
        },
    ),
    row(
        "no enclave interruption on a processor without SGX",
        |v| !blocked(v, ENCLAVE),
        |d| {
            d.set(Field::GuestInterruptibility, ENCLAVE);
        },
    ),
    row(
        "pending debug exceptions without reserved bits",
        |v| v.get(Field::GuestPendingDebug) & 0xffff_ffff_fffe_aff0 == 0,
        |d| d.set(Field::GuestPendingDebug, 1 << 4),
    ),
    row(
        "single step pending under blocking where RFLAGS.TF asks for it",
        |v| !(holds_debug(v) && steps(v)) || v.get(Field::GuestPendingDebug) & BS != 0,
        |d| d.set_all(&[(Field::GuestInterruptibility, BY_STI), (Field::GuestRflags, 0x302)]),
    ),
    row(
        "no single step pending under blocking without RFLAGS.TF",
        |v| !holds_debug(v) || steps(v) || v.get(Field::GuestPendingDebug) & BS == 0,
        |d| d.set_all(&[(Field::GuestInterruptibility, BY_STI), (Field::GuestPendingDebug, BS)]),
    ),
    row(
        "no debug exception of a transactional region on a processor without RTM",
        |v| v.get(Field::GuestPendingDebug) & RTM == 0,
        |d| d.set(Field::GuestPendingDebug, RTM),
    ),
];

const fn row(name: &'static str, holds: fn(&View<'_>) -> bool, breaks: fn(&mut Draft<'_>)) -> Check {
    Check { name, clause: "26.3.1.5", qualification: 0, holds, breaks }
}

/// The VMCS that the link pointer names, if it names one.
fn linked(v: &View<'_>) -> Option<u64> {
    Some(v.get(Field::VmcsLinkPointer)).filter(|link| *link != NO_LINK.0)
}

/// The VMCS link pointer.
pub static LINK: &[Check] = &[
    Check {
        qualification: QUALIFICATION_LINK,
        ..row(
            "VMCS link pointer 4 KiB aligned",
            |v| linked(v).is_none_or(|link| link & 0xfff == 0),
            |d| {
                d.set(Field::VmcsLinkPointer, d.page.0 | 0x10);
            },
        )
    },
    Check {
        qualification: QUALIFICATION_LINK,
        ..row(
            "VMCS link pointer within the physical-address width",
            |v| linked(v).is_none_or(|link| v.within_width(link)),
            |d| d.set(Field::VmcsLinkPointer, 1 << d.core.maxphyaddr),
        )
    },
    Check {
        qualification: QUALIFICATION_LINK,
        ..row(
            "VMCS link pointer to a region with the revision identifier",
            |v| {
                linked(v).is_none_or(|link| {
                    Region(Hpa(link)).revision_word(v.ground) & 0x7fff_ffff == v.capabilities.revision
                })
            },
            |d| d.set(Field::VmcsLinkPointer, d.page.0 + 0x1000),
        )
    },
    Check {
        qualification: QUALIFICATION_LINK,
        ..row(
            "VMCS link pointer to a shadow VMCS exactly with VMCS shadowing",
            |v| {
                let shadowing = v.has(SecondaryProc::VMCS_SHADOWING);
                linked(v).is_none_or(|link| Region(Hpa(link)).is_shadow(v.ground) == shadowing)
            },
            |d| {
                let revision = d.ground.mem.read_u32(d.page);
                d.ground.mem.write_u32(d.page, revision | 1 << 31);
                d.set(Field::VmcsLinkPointer, d.page.0);
            },
        )
    },
    Check {
        qualification: QUALIFICATION_LINK,
        ..row(
            "VMCS link pointer not to the current VMCS",
            |v| linked(v) != Some(v.region.0.0),
            |d| {
                d.set(Field::VmcsLinkPointer, d.region.0.0);
            },
        )
    },
];

/// A present PDPTE has reserved bits 2:1, 8:5 and those beyond the physical-address width (SDM 3A 4.4.1).
const fn is_pdpte(entry: u64, maxphyaddr: u32) -> bool {
    entry & 1 == 0 || (entry & 0x1e6 == 0 && entry >> maxphyaddr == 0)
}

fn pdpte(v: &View<'_>, field: Field) -> bool {
    !v.guest_pae() || !v.has(SecondaryProc::ENABLE_EPT) || is_pdpte(v.get(field), v.core.maxphyaddr)
}

macro_rules! pdptes {
    ($($name:literal $field:ident;)*) => {
        &[$(Check {
            name: $name,
            clause: "26.3.1.6",
            qualification: QUALIFICATION_PDPTE,
            holds: |v| pdpte(v, Field::$field),
            breaks: |d| {
                d.guest_pae();
                d.set(Field::$field, 0b11);
            },
        },)*]
    };
}

/// The PDPTE fields.
pub static PDPTES: &[Check] = pdptes! {
    "PDPTE0 without reserved bits" GuestPdpte0;
    "PDPTE1 without reserved bits" GuestPdpte1;
    "PDPTE2 without reserved bits" GuestPdpte2;
    "PDPTE3 without reserved bits" GuestPdpte3;
};
