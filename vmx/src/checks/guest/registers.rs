//! Checks on guest control registers, debug registers and MSRs (SDM 3C 26.3.1.1).

use crate::checks::draft::{NOT_CANONICAL, TOO_WIDE};
use crate::checks::view::{is_cet, is_efer, is_pat, is_perf_global_ctrl, keeps_fixed};
use crate::checks::{Check, View, table};
use crate::controls::EntryControls;
use crate::vmcs::Field;
use sim_core::arch::control::{Cr0, Cr4, Efer};

/// IA32_DEBUGCTL bits that are defined: LBR, BTF, BLD, TR to FREEZE_WHILE_SMM, RTM (SDM 3B 17.4.1); BLD and RTM are not
/// offered.
pub(crate) const DEBUGCTL: u64 = 0xffc3;

/// Whether a rule holds, if a VM-entry control that needs it is 1.
fn with(v: &View<'_>, control: EntryControls, rule: impl FnOnce() -> bool) -> bool {
    !v.entry().contains(control) || rule()
}

/// The section.
pub static TABLE: &[Check] = table! { "26.3.1.1":
    "CR0 has the bits fixed in VMX operation",
        |v| {
            let (must, may) = v.capabilities.cr0_fixed;
            let relaxed = if v.unrestricted() { Cr0::PE.union(Cr0::PG).bits() } else { 0 };
            keeps_fixed(v.get(Field::GuestCr0), (must & !relaxed, may))
        },
        |d| d.change(Field::GuestCr0, 0, Cr0::NE.bits());
    "CR0.PG only with CR0.PE", |v| !v.guest_cr0().contains(Cr0::PG) || v.guest_cr0().contains(Cr0::PE),
        |d| {
            d.guest_real();
            d.change(Field::GuestCr0, Cr0::PG.bits(), 0);
        };
    "CR4 has the bits fixed in VMX operation", |v| keeps_fixed(v.get(Field::GuestCr4), v.capabilities.cr4_fixed),
        |d| d.change(Field::GuestCr4, Cr4::SMXE.bits(), 0);
    "CR4.CET only with CR0.WP", |v| !v.guest_cr4().contains(Cr4::CET) || v.guest_cr0().contains(Cr0::WP),
        |d| {
            d.change(Field::GuestCr4, Cr4::CET.bits(), 0);
            d.change(Field::GuestCr0, 0, Cr0::WP.bits());
        };
    "IA32_DEBUGCTL without reserved bits",
        |v| with(v, EntryControls::LOAD_DEBUG_CONTROLS, || v.get(Field::GuestDebugctl) & !DEBUGCTL == 0),
        |d| d.set(Field::GuestDebugctl, 1 << 3);
    "IA-32e mode guest with CR0.PG", |v| !v.ia32e() || v.guest_cr0().contains(Cr0::PG),
        |d| {
            d.guest_real();
            d.entry(EntryControls::IA32E_MODE_GUEST);
        };
    "IA-32e mode guest with CR4.PAE", |v| !v.ia32e() || v.guest_cr4().contains(Cr4::PAE),
        |d| d.change(Field::GuestCr4, 0, Cr4::PAE.bits());
    "CR4.PCIDE only in an IA-32e mode guest", |v| v.ia32e() || !v.guest_cr4().contains(Cr4::PCIDE),
        |d| {
            d.guest_pae();
            d.change(Field::GuestCr4, Cr4::PCIDE.bits(), 0);
        };
    "CR3 within the physical-address width", |v| v.is_cr3(v.get(Field::GuestCr3)),
        |d| d.set(Field::GuestCr3, 1 << d.core.maxphyaddr);
    "DR7 bits 63:32 zero", |v| with(v, EntryControls::LOAD_DEBUG_CONTROLS, || v.get(Field::GuestDr7) >> 32 == 0),
        |d| d.set(Field::GuestDr7, 1 << 32);
    "SYSENTER_ESP canonical", |v| v.is_canonical(v.get(Field::GuestSysenterEsp)),
        |d| d.set(Field::GuestSysenterEsp, NOT_CANONICAL);
    "SYSENTER_EIP canonical", |v| v.is_canonical(v.get(Field::GuestSysenterEip)),
        |d| d.set(Field::GuestSysenterEip, NOT_CANONICAL);
    "S_CET without reserved bits",
        |v| with(v, EntryControls::LOAD_CET_STATE, || is_cet(v.get(Field::GuestSCet), 57)),
        |d| d.set(Field::GuestSCet, 0xc00);
    "interrupt-SSP table canonical",
        |v| with(v, EntryControls::LOAD_CET_STATE, || v.is_canonical(v.get(Field::GuestInterruptSspTable))),
        |d| d.set(Field::GuestInterruptSspTable, NOT_CANONICAL);
    "PERF_GLOBAL_CTRL without reserved bits",
        |v| with(v, EntryControls::LOAD_PERF_GLOBAL_CTRL, || {
            is_perf_global_ctrl(v.get(Field::GuestPerfGlobalCtrl))
        }),
        |d| {
            d.entry(EntryControls::LOAD_PERF_GLOBAL_CTRL);
            d.set(Field::GuestPerfGlobalCtrl, TOO_WIDE);
        };
    "PAT of defined memory types", |v| with(v, EntryControls::LOAD_PAT, || is_pat(v.get(Field::GuestPat))),
        |d| d.set(Field::GuestPat, 0x0300);
    "EFER without reserved bits", |v| with(v, EntryControls::LOAD_EFER, || is_efer(v.get(Field::GuestEfer))),
        |d| d.change(Field::GuestEfer, 1 << 2, 0);
    "EFER.LMA equal to IA-32e mode guest",
        |v| with(v, EntryControls::LOAD_EFER, || v.guest_efer().contains(Efer::LMA) == v.ia32e()),
        |d| d.set(Field::GuestEfer, 0);
    "EFER.LMA equal to EFER.LME under paging",
        |v| with(v, EntryControls::LOAD_EFER, || {
            let efer = v.guest_efer();
            !v.guest_cr0().contains(Cr0::PG) || efer.contains(Efer::LMA) == efer.contains(Efer::LME)
        }),
        |d| d.change(Field::GuestEfer, 0, Efer::LME.bits());
    "BNDCFGS without reserved bits, its directory canonical",
        |v| with(v, EntryControls::LOAD_BNDCFGS, || {
            let value = v.get(Field::GuestBndcfgs);
            value & 0xffc == 0 && v.is_canonical(value & !0xfff)
        }),
        |d| {
            d.entry(EntryControls::LOAD_BNDCFGS);
            d.set(Field::GuestBndcfgs, 4);
        };
    "PKRS bits 63:32 zero", |v| with(v, EntryControls::LOAD_PKRS, || v.get(Field::GuestPkrs) >> 32 == 0),
        |d| d.set(Field::GuestPkrs, 1 << 32);
};
