//! INVEPT and INVVPID (SDM 3C 28.4.3, 30.3).

use crate::controls::{PrimaryProc, SecondaryProc};
use crate::error::{InstructionError, VmFail};
use crate::unit::Vmx;
use crate::vmcs::{Field, Region};
use cpu::Core;
use cpu::profile::Habits;
use serde::{Deserialize, Serialize};
use sim_core::event::FlushScope;
use sim_core::{Ground, Gva, Hpa};

/// What INVEPT invalidates (SDM 3C 30.3 INVEPT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InveptScope {
    /// Type 1: guest-physical and combined mappings of the EPT root at bits 51:12 of an EPTP.
    Single(Hpa),
    /// Type 2: of every EPT root.
    Global,
}

/// What INVVPID invalidates (SDM 3C 30.3 INVVPID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InvvpidScope {
    /// Type 0: one linear address of a VPID.
    Address(u16, Gva),
    /// Type 1: a VPID.
    Single(u16),
    /// Type 2: every VPID but 0.
    All,
    /// Type 3: a VPID, except its global translations.
    SingleRetainingGlobals(u16),
}

impl Vmx {
    /// INVEPT.
    pub fn invept(&mut self, core: &mut Core, ground: &mut Ground, scope: InveptScope) {
        let scope = match scope {
            InveptScope::Single(root) => FlushScope::EptRoot(Hpa(root.0 & sim_core::addr::ENTRY_FRAME_MASK)),
            InveptScope::Global => FlushScope::AllEpt,
        };
        core.tlb.flush(ground, scope);
    }

    /// INVVPID.
    ///
    /// # Errors
    /// VMfail(28) for VPID 0 or an address that is not canonical.
    pub fn invvpid(&mut self, core: &mut Core, ground: &mut Ground, scope: InvvpidScope) -> Result<(), VmFail> {
        let vpid = match scope {
            InvvpidScope::Address(vpid, gva) if gva.is_canonical(core.linear_width()) => Some(vpid),
            InvvpidScope::Address(..) => Some(0),
            InvvpidScope::Single(vpid) | InvvpidScope::SingleRetainingGlobals(vpid) => Some(vpid),
            InvvpidScope::All => None,
        };
        if vpid == Some(0) {
            return Err(self.vmfail(ground, InstructionError::InvalidationOperand));
        }
        core.tlb.flush(ground, flush(scope));
        Ok(())
    }

    /// INVEPT or INVVPID from the operands of the instruction.
    pub(crate) fn invept_operands(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        kind: u64,
        [eptp, reserved]: [u64; 2],
        is_eptp: bool,
    ) -> Result<(), VmFail> {
        let scope = match kind {
            1 if is_eptp && reserved == 0 => InveptScope::Single(Hpa(eptp)),
            2 if reserved == 0 => InveptScope::Global,
            _ => return Err(self.vmfail(ground, InstructionError::InvalidationOperand)),
        };
        self.invept(core, ground, scope);
        Ok(())
    }

    /// INVVPID from the operands of the instruction: VPID in bits 15:0 of the descriptor, the address in 127:64.
    pub(crate) fn invvpid_operands(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        kind: u64,
        [low, address]: [u64; 2],
    ) -> Result<(), VmFail> {
        let vpid = u16::try_from(low).map_err(|_| self.vmfail(ground, InstructionError::InvalidationOperand))?;
        let scope = match kind {
            0 => InvvpidScope::Address(vpid, Gva(address)),
            1 => InvvpidScope::Single(vpid),
            2 => InvvpidScope::All,
            3 => InvvpidScope::SingleRetainingGlobals(vpid),
            _ => return Err(self.vmfail(ground, InstructionError::InvalidationOperand)),
        };
        self.invvpid(core, ground, scope)
    }
}

/// Without VPIDs, VM-entry and VM-exit invalidate the linear and combined mappings of VPID 0000H (SDM 3C 28.4.3.1); a processor may
/// have the habit to invalidate everything.
pub(crate) fn flush_untagged(core: &mut Core, ground: &mut Ground, region: Region) {
    if core.tlb.profile().has(Habits::TRANSITIONS_FLUSH) {
        core.tlb.flush(ground, FlushScope::All);
        return;
    }
    let word = |field| region.get(ground, field) as u32;
    let primary = PrimaryProc::from_bits_retain(word(Field::PrimaryControls));
    let secondary = SecondaryProc::from_bits_retain(word(Field::SecondaryControls));
    let has_secondary = primary.contains(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS);
    if !(has_secondary && secondary.contains(SecondaryProc::ENABLE_VPID)) {
        core.tlb.flush(ground, FlushScope::Context(0));
    }
}

/// The flush that carries out an INVVPID.
fn flush(scope: InvvpidScope) -> FlushScope {
    match scope {
        InvvpidScope::Address(vpid, gva) => FlushScope::AddressEveryPcid { context: vpid.into(), gva },
        InvvpidScope::Single(vpid) => FlushScope::Context(vpid.into()),
        InvvpidScope::SingleRetainingGlobals(vpid) => FlushScope::ContextNonGlobal(vpid.into()),
        InvvpidScope::All => FlushScope::Guests,
    }
}
