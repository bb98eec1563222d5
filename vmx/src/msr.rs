//! MSRs as VM-entry and VM-exit load and store them (SDM 3C 24.7.2, 24.8.2, 26.4, 27.4, 27.6): each entry of an area is 16
//! bytes, the index in bits 31:0 and the value in bits 127:64.
//!
//! What RDMSR and WRMSR would do at privilege level 0 is repeated here for the MSRs that only hold a value, and for EFER.
//! IA32_TIME_STAMP_COUNTER can be stored and not loaded.

use crate::checks::view::is_cet;
use crate::checks::{is_efer, is_pat};
use cpu::{Blocking, Core};
use sim_core::arch::control::{Efer, PagingMode};
use sim_core::arch::msr;
use sim_core::{Ground, Gva, Hpa};

const TIME_STAMP_COUNTER: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const BIOS_UPDT_TRIG: u32 = 0x79;
const BIOS_SIGN_ID: u32 = 0x8b;
const SMM_MONITOR_CTL: u32 = 0x9b;
const SMBASE: u32 = 0x9e;
const DEBUGCTL: u32 = 0x1d9;
const U_CET: u32 = 0x6a0;
const S_CET: u32 = 0x6a2;
const PL0_SSP: u32 = 0x6a4;
const PL3_SSP: u32 = 0x6a7;
const INTERRUPT_SSP_TABLE: u32 = 0x6a8;
const PKRS: u32 = 0x6e1;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;
const XSS: u32 = 0xda0;
const TSC_AUX: u32 = 0xc000_0103;

/// One entry of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrEntry {
    /// The first quadword: the index in bits 31:0, the rest reserved.
    pub index: u64,
    /// The value.
    pub value: u64,
}

impl MsrEntry {
    /// The MSR.
    #[must_use]
    pub const fn msr(&self) -> u32 {
        self.index as u32
    }

    fn read(ground: &Ground, area: Hpa, number: u64) -> Self {
        let at = area.offset(number.wrapping_mul(16));
        Self { index: ground.mem.read_u64(at), value: ground.mem.read_u64(at.offset(8)) }
    }
}

/// A rule that an entry must keep to be loaded or stored.
pub struct MsrRule {
    /// What must hold.
    pub name: &'static str,
    /// Where the manual says so (SDM 3C).
    pub clause: &'static str,
    /// Whether an entry keeps it.
    pub holds: fn(&Core, &MsrEntry) -> bool,
    /// An entry that breaks this rule and none before.
    pub broken: MsrEntry,
}

const fn rule(
    name: &'static str,
    clause: &'static str,
    holds: fn(&Core, &MsrEntry) -> bool,
    (index, value): (u64, u64),
) -> MsrRule {
    MsrRule { name, clause, holds, broken: MsrEntry { index, value } }
}

/// What VM-entry demands of an MSR to load, beside that WRMSR would succeed. The first broken rule is VM-entry failure
/// with exit reason 34.
pub static ENTRY_LOAD: &[MsrRule] = &[
    rule(
        "loaded MSR neither FS nor GS base",
        "26.4",
        |_, e| !matches!(e.msr(), msr::FS_BASE | msr::GS_BASE),
        (0xc000_0100, 0),
    ),
    rule("loaded MSR not of the x2APIC", "26.4", |_, e| !is_x2apic(e.msr()), (0x80f, 0)),
    rule(
        "loaded MSR not of SMM outside SMM",
        "26.4",
        |core, e| e.msr() != SMM_MONITOR_CTL || core.blocking.contains(Blocking::SMI),
        (SMM_MONITOR_CTL as u64, 0),
    ),
    rule(
        "loaded MSR not of the microcode update",
        "26.4",
        |_, e| !matches!(e.msr(), BIOS_UPDT_TRIG | BIOS_SIGN_ID),
        (BIOS_UPDT_TRIG as u64, 0),
    ),
    rule("loaded MSR entry without reserved bits", "26.4", |_, e| e.index >> 32 == 0, (1 << 32 | 0x174, 8)),
    rule("loaded MSR accepts the value", "26.4", accepts, (msr::LSTAR as u64, 1 << 60)),
];

/// What VM-exit demands of an MSR to load, beside that WRMSR would succeed; a broken rule is a VMX abort.
pub static EXIT_LOAD: &[MsrRule] = ENTRY_LOAD;

/// What VM-exit demands of an MSR to store; a broken rule is a VMX abort.
pub static EXIT_STORE: &[MsrRule] = &[
    rule("stored MSR not of the x2APIC", "27.4", |_, e| !is_x2apic(e.msr()), (0x80f, 0)),
    rule(
        "stored MSR not of SMM outside SMM",
        "27.4",
        |core, e| e.msr() != SMBASE || core.blocking.contains(Blocking::SMI),
        (SMBASE as u64, 0),
    ),
    rule("stored MSR entry without reserved bits", "27.4", |_, e| e.index >> 32 == 0, (1 << 32 | 0x174, 8)),
    rule("stored MSR can be read", "27.4", |core, e| can_read(core, e.msr()), (0x9999, 0)),
];

const fn is_x2apic(index: u32) -> bool {
    matches!(index, X2APIC_FIRST..=X2APIC_LAST)
}

/// Loads `count` entries of an area; the number of the first that breaks a rule, from 1. Those before stay loaded.
pub(crate) fn load(rules: &[MsrRule], core: &mut Core, ground: &Ground, area: Hpa, count: u64) -> Option<u64> {
    (1..=count).find(|number| {
        let entry = MsrEntry::read(ground, area, number - 1);
        let keeps = rules.iter().all(|rule| (rule.holds)(core, &entry));
        if keeps {
            write(core, &entry);
        }
        !keeps
    })
}

/// Stores `count` entries of an area; the number of the first that breaks a rule, from 1.
pub(crate) fn store(core: &mut Core, ground: &mut Ground, area: Hpa, count: u64) -> Option<u64> {
    (1..=count).find(|number| {
        let entry = MsrEntry::read(ground, area, number - 1);
        if !EXIT_STORE.iter().all(|rule| (rule.holds)(core, &entry)) {
            return true;
        }
        let now = ground.clock.now().0;
        let value = match entry.msr() {
            msr::EFER => core.efer.bits(),
            TIME_STAMP_COUNTER => now,
            index => holder(core, index).map_or(0, |held| *held),
        };
        ground.mem.write_u64(area.offset((number - 1).wrapping_mul(16)).offset(8), value);
        false
    })
}

/// The MSRs that only hold a value, and where.
fn holder(core: &mut Core, index: u32) -> Option<&mut u64> {
    let msrs = &mut core.msrs;
    Some(match index {
        TSC_ADJUST => &mut msrs.tsc_adjust,
        msr::SYSENTER_CS => &mut msrs.sysenter_cs,
        msr::SYSENTER_ESP => &mut msrs.sysenter_esp,
        msr::SYSENTER_EIP => &mut msrs.sysenter_eip,
        DEBUGCTL => &mut msrs.debugctl,
        msr::PAT => &mut msrs.pat,
        U_CET => &mut msrs.u_cet,
        S_CET => &mut msrs.s_cet,
        PL0_SSP..=PL3_SSP => &mut msrs.pl_ssp[(index - PL0_SSP) as usize],
        INTERRUPT_SSP_TABLE => &mut msrs.interrupt_ssp_table,
        PKRS => &mut msrs.pkrs,
        XSS => &mut msrs.xss,
        msr::STAR => &mut msrs.star,
        msr::LSTAR => &mut msrs.lstar,
        msr::CSTAR => &mut msrs.cstar,
        msr::FMASK => &mut msrs.fmask,
        msr::KERNEL_GS_BASE => &mut msrs.kernel_gs_base,
        TSC_AUX => &mut msrs.tsc_aux,
        msr::FS_BASE => &mut core.segments.fs.base,
        msr::GS_BASE => &mut core.segments.gs.base,
        _ => return None,
    })
}

/// Whether [`holder`] has the MSR.
const fn is_held(index: u32) -> bool {
    matches!(
        index,
        TSC_ADJUST
            | msr::SYSENTER_CS..=msr::SYSENTER_EIP
            | DEBUGCTL
            | msr::PAT
            | U_CET
            | S_CET
            | PL0_SSP..=INTERRUPT_SSP_TABLE
            | PKRS
            | XSS
            | msr::STAR..=msr::FMASK
            | msr::FS_BASE..=TSC_AUX
    )
}

/// Whether this processor has the MSR and RDMSR would succeed.
fn can_read(core: &Core, index: u32) -> bool {
    matches!(index, msr::EFER | TIME_STAMP_COUNTER) || (is_held(index) && has(core, index))
}

/// Whether the features of the processor bring an MSR.
fn has(core: &Core, index: u32) -> bool {
    use cpu::profile::Features;
    let needs = match index {
        U_CET | S_CET => Features::CET_SS.union(Features::CET_IBT),
        PL0_SSP..=PL3_SSP | INTERRUPT_SSP_TABLE => Features::CET_SS,
        PKRS => Features::PKS,
        XSS => Features::XSAVE,
        TSC_AUX => Features::RDTSCP.union(Features::RDPID),
        _ => return true,
    };
    core.features.intersects(needs)
}

/// Whether WRMSR would succeed at privilege level 0.
fn accepts(core: &Core, entry: &MsrEntry) -> bool {
    let (value, width) = (entry.value, core.linear_width());
    let canonical = Gva(value).is_canonical(width);
    if !has(core, entry.msr()) {
        return false;
    }
    match entry.msr() {
        msr::EFER => accepts_efer(core, value),
        msr::PAT => is_pat(value),
        msr::SYSENTER_CS | msr::STAR | TSC_ADJUST => true,
        msr::LSTAR | msr::CSTAR | msr::KERNEL_GS_BASE | msr::SYSENTER_ESP | msr::SYSENTER_EIP => canonical,
        INTERRUPT_SSP_TABLE => canonical,
        PL0_SSP..=PL3_SSP => canonical && value & 3 == 0,
        U_CET | S_CET => is_cet(value, width),
        msr::FMASK | PKRS | TSC_AUX => value >> 32 == 0,
        DEBUGCTL => value & !crate::checks::guest::registers::DEBUGCTL == 0,
        XSS => value == 0,
        _ => false,
    }
}

/// WRMSR of EFER faults on reserved bits and on a change of LME under paging (SDM 3A 9.8.5).
fn accepts_efer(core: &Core, value: u64) -> bool {
    let changes_lme = (Efer::from_bits_retain(value) ^ core.efer).contains(Efer::LME);
    is_efer(value) && (core.paging_mode() == PagingMode::Off || !changes_lme)
}

/// Writes an MSR that accepts the value; EFER keeps LMA.
fn write(core: &mut Core, entry: &MsrEntry) {
    if entry.msr() == msr::EFER {
        let new = Efer::from_bits_retain(entry.value);
        core.efer = new.difference(Efer::LMA) | core.efer.intersection(Efer::LMA);
    } else if let Some(held) = holder(core, entry.msr()) {
        *held = entry.value;
    }
}
