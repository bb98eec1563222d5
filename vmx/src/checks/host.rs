//! Checks on the host-state area (SDM 3C 26.2.2 to 26.2.4).

use super::draft::{NOT_CANONICAL, TOO_WIDE};
use super::view::{is_cet, is_efer, is_pat, is_perf_global_ctrl, keeps_fixed};
use super::{Check, View, table};
use crate::controls::{EntryControls, ExitControls};
use crate::vmcs::Field;
use sim_core::arch::control::{Cr0, Cr4, Efer};

const SELECTORS: [Field; 7] = [
    Field::HostEsSelector,
    Field::HostCsSelector,
    Field::HostSsSelector,
    Field::HostDsSelector,
    Field::HostFsSelector,
    Field::HostGsSelector,
    Field::HostTrSelector,
];

/// Whether a rule holds, if a VM-exit control that needs it is 1.
fn with(v: &View<'_>, control: ExitControls, rule: impl FnOnce() -> bool) -> bool {
    !v.exit().contains(control) || rule()
}

/// The long-mode bits of the host's EFER.
fn host_efer(v: &View<'_>, bit: Efer) -> bool {
    Efer::from_bits_retain(v.get(Field::HostEfer)).contains(bit)
}

/// Control registers and MSRs.
pub static REGISTERS: &[Check] = table! { "26.2.2":
    "host CR0 has the bits fixed in VMX operation",
        |v| keeps_fixed(v.get(Field::HostCr0), v.capabilities.cr0_fixed),
        |d| d.change(Field::HostCr0, 0, Cr0::PG.bits());
    "host CR4 has the bits fixed in VMX operation",
        |v| keeps_fixed(v.get(Field::HostCr4), v.capabilities.cr4_fixed),
        |d| d.change(Field::HostCr4, 0, Cr4::VMXE.bits());
    "host CR4.CET only with CR0.WP",
        |v| v.get(Field::HostCr4) & Cr4::CET.bits() == 0 || v.get(Field::HostCr0) & Cr0::WP.bits() != 0,
        |d| d.change(Field::HostCr4, Cr4::CET.bits(), 0);
    "host CR3 within the physical-address width", |v| v.is_cr3(v.get(Field::HostCr3)),
        |d| d.set(Field::HostCr3, 1 << d.core.maxphyaddr);
    "host SYSENTER_ESP canonical", |v| v.is_canonical(v.get(Field::HostSysenterEsp)),
        |d| d.set(Field::HostSysenterEsp, NOT_CANONICAL);
    "host SYSENTER_EIP canonical", |v| v.is_canonical(v.get(Field::HostSysenterEip)),
        |d| d.set(Field::HostSysenterEip, NOT_CANONICAL);
    "host S_CET without reserved bits",
        |v| with(v, ExitControls::LOAD_CET_STATE, || is_cet(v.get(Field::HostSCet), 57)),
        |d| d.set(Field::HostSCet, 1 << 6);
    "host interrupt-SSP table canonical",
        |v| with(v, ExitControls::LOAD_CET_STATE, || v.is_canonical(v.get(Field::HostInterruptSspTable))),
        |d| d.set(Field::HostInterruptSspTable, NOT_CANONICAL);
    "host PERF_GLOBAL_CTRL without reserved bits",
        |v| with(v, ExitControls::LOAD_PERF_GLOBAL_CTRL, || is_perf_global_ctrl(v.get(Field::HostPerfGlobalCtrl))),
        |d| {
            d.exit(ExitControls::LOAD_PERF_GLOBAL_CTRL);
            d.set(Field::HostPerfGlobalCtrl, TOO_WIDE);
        };
    "host PAT of defined memory types", |v| with(v, ExitControls::LOAD_PAT, || is_pat(v.get(Field::HostPat))),
        |d| d.set(Field::HostPat, 0x02);
    "host EFER without reserved bits", |v| with(v, ExitControls::LOAD_EFER, || is_efer(v.get(Field::HostEfer))),
        |d| d.change(Field::HostEfer, Efer::SVME.bits(), 0);
    "host EFER.LMA equal to host address-space size",
        |v| with(v, ExitControls::LOAD_EFER, || host_efer(v, Efer::LMA) == v.host64()),
        |d| d.change(Field::HostEfer, 0, Efer::LMA.bits());
    "host EFER.LME equal to host address-space size",
        |v| with(v, ExitControls::LOAD_EFER, || host_efer(v, Efer::LME) == v.host64()),
        |d| d.change(Field::HostEfer, 0, Efer::LME.bits());
    "host PKRS bits 63:32 zero", |v| with(v, ExitControls::LOAD_PKRS, || v.get(Field::HostPkrs) >> 32 == 0),
        |d| d.set(Field::HostPkrs, 1 << 32);
};

/// Segment and descriptor-table registers.
pub static SEGMENTS: &[Check] = table! { "26.2.3":
    "host selectors with RPL and TI 0", |v| SELECTORS.into_iter().all(|field| v.get(field) & 7 == 0),
        |d| d.set(Field::HostFsSelector, 0x23);
    "host CS selector not null", |v| v.get(Field::HostCsSelector) != 0, |d| d.set(Field::HostCsSelector, 0);
    "host TR selector not null", |v| v.get(Field::HostTrSelector) != 0, |d| d.set(Field::HostTrSelector, 0);
    "host SS selector not null in a 32-bit host", |v| v.host64() || v.get(Field::HostSsSelector) != 0,
        |d| {
            d.host32();
            d.set(Field::HostSsSelector, 0);
        };
    "host FS base canonical", |v| v.is_canonical(v.get(Field::HostFsBase)),
        |d| d.set(Field::HostFsBase, NOT_CANONICAL);
    "host GS base canonical", |v| v.is_canonical(v.get(Field::HostGsBase)),
        |d| d.set(Field::HostGsBase, NOT_CANONICAL);
    "host GDTR base canonical", |v| v.is_canonical(v.get(Field::HostGdtrBase)),
        |d| d.set(Field::HostGdtrBase, NOT_CANONICAL);
    "host IDTR base canonical", |v| v.is_canonical(v.get(Field::HostIdtrBase)),
        |d| d.set(Field::HostIdtrBase, NOT_CANONICAL);
    "host TR base canonical", |v| v.is_canonical(v.get(Field::HostTrBase)),
        |d| d.set(Field::HostTrBase, NOT_CANONICAL);
};

/// What the address-space size demands.
pub static ADDRESS_SPACE: &[Check] = table! { "26.2.4":
    "host address-space size equal to EFER.LMA", |v| v.host64() == v.core.efer.contains(Efer::LMA),
        |d| d.core.efer = Efer::empty();
    "IA-32e mode guest only under a 64-bit host", |v| v.host64() || !v.ia32e(),
        |d| {
            d.host32();
            d.entry(EntryControls::IA32E_MODE_GUEST);
        };
    "32-bit host without CR4.PCIDE", |v| v.host64() || v.get(Field::HostCr4) & Cr4::PCIDE.bits() == 0,
        |d| {
            d.host32();
            d.change(Field::HostCr4, Cr4::PCIDE.bits(), 0);
        };
    "32-bit host with RIP below 4 GiB", |v| v.host64() || v.get(Field::HostRip) >> 32 == 0,
        |d| {
            d.host32();
            d.set(Field::HostRip, 1 << 32);
        };
    "64-bit host with CR4.PAE", |v| !v.host64() || v.get(Field::HostCr4) & Cr4::PAE.bits() != 0,
        |d| d.change(Field::HostCr4, 0, Cr4::PAE.bits());
    "64-bit host with canonical RIP", |v| !v.host64() || v.is_canonical(v.get(Field::HostRip)),
        |d| d.set(Field::HostRip, NOT_CANONICAL);
    "host SSP 4-byte aligned", |v| with(v, ExitControls::LOAD_CET_STATE, || v.get(Field::HostSsp) & 3 == 0),
        |d| d.set(Field::HostSsp, 0x1002);
    "host SSP within the address space",
        |v| with(v, ExitControls::LOAD_CET_STATE, || {
            let ssp = v.get(Field::HostSsp);
            if v.host64() { v.is_canonical(ssp) } else { ssp >> 32 == 0 }
        }),
        |d| d.set(Field::HostSsp, NOT_CANONICAL);
};
