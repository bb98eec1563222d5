//! Checks on the host-state area (SDM 3C 26.2.2 to 26.2.4). A broken one is VMfailValid(8).

use super::{Check, check, is_efer, is_pat, keeps_fixed};
use crate::controls::ExitControls;
use crate::vmcs::Field;
use sim_core::arch::control::{Cr4, Efer};

const SELECTORS: [Field; 7] = [
    Field::HostEsSelector,
    Field::HostCsSelector,
    Field::HostSsSelector,
    Field::HostDsSelector,
    Field::HostFsSelector,
    Field::HostGsSelector,
    Field::HostTrSelector,
];
const BASES: [Field; 5] =
    [Field::HostFsBase, Field::HostGsBase, Field::HostTrBase, Field::HostGdtrBase, Field::HostIdtrBase];

/// Every check, in the manual's order.
pub static TABLE: &[Check] = &[
    check("host CR0 has the bits fixed in VMX operation", "26.2.2", |v| {
        keeps_fixed(v.get(Field::HostCr0), v.capabilities.cr0_fixed)
    }),
    check("host CR4 has the bits fixed in VMX operation", "26.2.2", |v| {
        keeps_fixed(v.get(Field::HostCr4), v.capabilities.cr4_fixed)
    }),
    check("host CR3 within the physical-address width", "26.2.2", |v| v.within_width(v.get(Field::HostCr3))),
    check("host SYSENTER_ESP and SYSENTER_EIP canonical", "26.2.2", |v| {
        [Field::HostSysenterEsp, Field::HostSysenterEip].into_iter().all(|field| v.is_canonical(v.get(field)))
    }),
    check("host PAT of defined memory types", "26.2.2", |v| {
        !v.exit().contains(ExitControls::LOAD_PAT) || is_pat(v.get(Field::HostPat))
    }),
    check("host EFER without reserved bits", "26.2.2", |v| {
        !v.exit().contains(ExitControls::LOAD_EFER) || is_efer(v.get(Field::HostEfer))
    }),
    check("host EFER.LMA and LME equal to host address-space size", "26.2.2", |v| {
        let long = Efer::LMA.union(Efer::LME);
        let expected = if v.host64() { long } else { Efer::empty() };
        !v.exit().contains(ExitControls::LOAD_EFER)
            || Efer::from_bits_retain(v.get(Field::HostEfer)).intersection(long) == expected
    }),
    check("host selectors with RPL and TI 0", "26.2.3", |v| SELECTORS.into_iter().all(|field| v.get(field) & 7 == 0)),
    check("host CS and TR selectors not null", "26.2.3", |v| {
        v.get(Field::HostCsSelector) != 0 && v.get(Field::HostTrSelector) != 0
    }),
    check("host SS selector not null in a 32-bit host", "26.2.3", |v| v.host64() || v.get(Field::HostSsSelector) != 0),
    check("host FS, GS, TR, GDTR and IDTR bases canonical", "26.2.3", |v| {
        BASES.into_iter().all(|field| v.is_canonical(v.get(field)))
    }),
    check("host address-space size equal to EFER.LMA", "26.2.4", |v| v.host64() == v.core.efer.contains(Efer::LMA)),
    check("IA-32e mode guest only under a 64-bit host", "26.2.4", |v| v.host64() || !v.ia32e()),
    check("32-bit host without CR4.PCIDE, RIP below 4 GiB", "26.2.4", |v| {
        v.host64() || (v.get(Field::HostCr4) & Cr4::PCIDE.bits() == 0 && v.get(Field::HostRip) >> 32 == 0)
    }),
    check("64-bit host with CR4.PAE", "26.2.4", |v| !v.host64() || v.get(Field::HostCr4) & Cr4::PAE.bits() != 0),
    check("64-bit host with canonical RIP", "26.2.4", |v| !v.host64() || v.is_canonical(v.get(Field::HostRip))),
];
