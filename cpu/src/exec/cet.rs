//! Control-flow enforcement: what its registers say, and the causes of #CP (SDM 1 17.1, 17.2.2, 17.3.2; SDM 3A 6.15,
//! interrupt 21; SDM 4 table 2-2; APM2 18).
//!
//! IA32_U_CET rules at CPL 3, IA32_S_CET below it. Left out: XSAVES of this state, and task switches.

use crate::core::Core;
use crate::profile::Features;
use sim_core::addr::Gva;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;

/// IA32_U_CET, IA32_S_CET, IA32_PL0_SSP to IA32_PL3_SSP and IA32_INTERRUPT_SSP_TABLE_ADDR.
pub(crate) const U_CET: u32 = 0x6a0;
pub(crate) const S_CET: u32 = 0x6a2;
pub(crate) const PL0_SSP: u32 = 0x6a4;
pub(crate) const PL3_SSP: u32 = 0x6a7;
pub(crate) const INTERRUPT_SSP_TABLE: u32 = 0x6a8;

/// Bits of IA32_U_CET and IA32_S_CET.
pub(crate) mod bit {
    /// Shadow stacks are on.
    pub(crate) const SH_STK_EN: u64 = 1 << 0;
    /// WRSS is on.
    pub(crate) const WR_SHSTK_EN: u64 = 1 << 1;
    /// Indirect-branch tracking is on.
    pub(crate) const ENDBR_EN: u64 = 1 << 2;
    /// The legacy code-page bitmap is on.
    pub(crate) const LEG_IW_EN: u64 = 1 << 3;
    /// The no-track prefix is on.
    pub(crate) const NO_TRACK_EN: u64 = 1 << 4;
    /// Legacy code does not suppress tracking.
    pub(crate) const SUPPRESS_DIS: u64 = 1 << 5;
    /// Tracking is suppressed.
    pub(crate) const SUPPRESS: u64 = 1 << 10;
    /// The tracker waits for an ENDBRANCH.
    pub(crate) const TRACKER: u64 = 1 << 11;
    /// The address of the legacy code-page bitmap.
    pub(crate) const BITMAP: u64 = !0xfff;
}

/// What broke the control flow: the error code of #CP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    NearReturn = 1,
    FarReturn = 2,
    EndBranch = 3,
    RestoreShadowStack = 4,
    SetBusy = 5,
}

/// #CP.
pub(crate) const fn control_protection(cause: Cause) -> Exception {
    Exception::with_error(Vector::ControlProtection, cause as u32)
}

/// The control register of a privilege level.
pub(crate) const fn control(core: &Core, cpl: u8) -> u64 {
    if cpl == 3 { core.msrs.u_cet } else { core.msrs.s_cet }
}

/// The control register of a privilege level, to be written.
pub(crate) const fn control_mut(core: &mut Core, cpl: u8) -> &mut u64 {
    if cpl == 3 { &mut core.msrs.u_cet } else { &mut core.msrs.s_cet }
}

/// Whether control-flow enforcement works at all at a privilege level. Virtual-8086 mode, always at CPL 3, has none; the
/// levels that it is left for have.
pub(crate) const fn is_on(core: &Core, cpl: u8) -> bool {
    let virtual_8086 = cpl == 3 && core.rflags.contains(Rflags::VM);
    core.cr4.contains(Cr4::CET) && core.cr0.contains(Cr0::PE) && !virtual_8086
}

/// Whether shadow stacks are enabled at a privilege level.
pub(crate) const fn has_shadow_stack(core: &Core, cpl: u8) -> bool {
    is_on(core, cpl) && control(core, cpl) & bit::SH_STK_EN != 0
}

/// Whether indirect branches are tracked at a privilege level.
pub(crate) const fn has_tracking(core: &Core, cpl: u8) -> bool {
    is_on(core, cpl) && control(core, cpl) & bit::ENDBR_EN != 0
}

/// The bits of IA32_U_CET and IA32_S_CET that a processor has.
pub(crate) const fn control_bits(features: Features) -> u64 {
    let shadow = bit::SH_STK_EN | bit::WR_SHSTK_EN;
    let tracking = bit::ENDBR_EN
        | bit::LEG_IW_EN
        | bit::NO_TRACK_EN
        | bit::SUPPRESS_DIS
        | bit::SUPPRESS
        | bit::TRACKER
        | bit::BITMAP;
    (if features.contains(Features::CET_SS) { shadow } else { 0 })
        | (if features.contains(Features::CET_IBT) { tracking } else { 0 })
}

/// Whether WRMSR takes a value of IA32_U_CET or IA32_S_CET: no bit that does not exist, a canonical bitmap, and a tracker
/// that does not wait while it is suppressed.
pub(crate) const fn is_control(value: u64, bits: u64, linear_width: u32) -> bool {
    let both = bit::SUPPRESS | bit::TRACKER;
    value & !bits == 0 && value & both != both && Gva(value & bit::BITMAP).is_canonical(linear_width)
}
