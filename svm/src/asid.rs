//! Address-space identifiers: TLB_CONTROL at VMRUN (APM2 15.16) and INVLPGA (APM2 15.16).
//!
//! VMRUN and #VMEXIT flush nothing by themselves: entries of the host carry ASID 0, those of a guest its own.

use crate::capability::{Capabilities, Features};
use sim_core::addr::Gva;
use sim_core::event::FlushScope;

/// What VMRUN flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlbControl {
    /// 0: nothing.
    Nothing,
    /// 1: the entire TLB, all ASIDs.
    Everything,
    /// 3: the guest's entries.
    Guest,
    /// 7: the guest's non-global entries.
    GuestNonGlobal,
}

impl TlbControl {
    /// The meaning of the field on this processor; none if the encoding is reserved.
    #[must_use]
    pub const fn decode(field: u64, capabilities: &Capabilities) -> Option<Self> {
        let by_asid = capabilities.has(Features::FLUSH_BY_ASID);
        match field {
            0 => Some(Self::Nothing),
            1 => Some(Self::Everything),
            3 if by_asid => Some(Self::Guest),
            7 if by_asid => Some(Self::GuestNonGlobal),
            _ => None,
        }
    }

    /// What that means for the TLB, when the guest has this ASID.
    #[must_use]
    pub const fn scope(self, asid: u32) -> Option<FlushScope> {
        match self {
            Self::Nothing => None,
            Self::Everything => Some(FlushScope::All),
            Self::Guest => Some(FlushScope::Context(asid)),
            Self::GuestNonGlobal => Some(FlushScope::ContextNonGlobal(asid)),
        }
    }
}

/// The scope of INVLPGA. The instruction names no PCID, so the page goes under every one of the ASID's (APM3 INVLPGA).
#[must_use]
pub(crate) const fn invlpga_scope(address: Gva, asid: u32) -> FlushScope {
    FlushScope::AddressEveryPcid { context: asid, gva: address }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// APM2 15.16: the whole byte, with and without flush-by-ASID.
    #[test]
    fn tlb_control_table() {
        let with = Capabilities::default();
        let without = Capabilities { features: Features::all() - Features::FLUSH_BY_ASID, ..with };
        for field in 0..=0xff_u64 {
            let (scope, old) = match field {
                0 => (Some(None), Some(None)),
                1 => (Some(Some(FlushScope::All)), Some(Some(FlushScope::All))),
                3 => (Some(Some(FlushScope::Context(5))), None),
                7 => (Some(Some(FlushScope::ContextNonGlobal(5))), None),
                _ => (None, None),
            };
            assert_eq!(TlbControl::decode(field, &with).map(|control| control.scope(5)), scope, "{field}");
            assert_eq!(TlbControl::decode(field, &without).map(|control| control.scope(5)), old, "{field}");
        }
        println!("256 values of TLB_CONTROL, on 2 processors");
    }
}
