//! Where KVM is known to show a guest something else than bare silicon does, to this day: named, not hidden.
//!
//! | name | what KVM does |
//! |---|---|
//! | `fetch-bit-without-pae` | a fetch's error code has the fetch bit under 32-bit paging without SMEP |
//! | `shadow-ignores-nxe` | a page with XD set, mapped while EFER.NXE was 1, is no reserved-bit fault while it is 0 |
//! | `failed-entry-takes-flush` | a VM entry with a new VPID that fails leaves the flush for the next one undone |
//! | `fault-keeps-stale` | a fault on an absent or reserved entry leaves a stale shadow translation in use |
//! | `restored-pdptes` | restoring nested state reads the PDPTEs of a PAE guest from memory anew |
//! | `late-vmfail-keeps-wp` | a VM entry that hardware refuses late gives L1 the CR0.WP of its last exit for CR0 |
//! | `late-vmfail-keeps-pge` | the same, CR4.PGE of its last exit for CR4 |
//! | `restored-efer` | nested state that is set while L2 runs leaves it the EFER of its L1, on VMX |
//! | `vmcs12-cr3` | without EPT, what L2 loads into CR3 is not saved at its exit, and lost where its L1 goes on with it |
//! | `svm-exit-cr4` | without nested paging, an exit gives L1 the CR4 of its L2 where just one of them has paging on |
//! | `vmx-unpaged-smep` | without EPT, MOV to CR0 that switches paging leaves SMEP and SMAP as they are in hardware's CR4 |
//! | `no-vpid-for-l2` | an L2 with a VPID can't be entered on a vCPU that got no VPID itself |

use super::Shown;
use crate::file::{Action, Actor, Flush, HostStep, Mode, Observation, RunConfig, Scenario, Step, Vendor};
use mmu::Change;
use sim_core::addr::PAGE_BYTES;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::{Exception, Vector};
use std::collections::BTreeSet;
use vmx::InstructionError;

/// A step that shows something else on bare silicon.
pub(super) struct Situation<'a> {
    /// The scenario.
    pub(super) scenario: &'a Scenario,
    /// The run.
    pub(super) run: &'a RunConfig,
    /// The steps before, and what they showed.
    pub(super) before: &'a [Shown],
    /// The step.
    pub(super) step: &'a Step,
    /// The mode of the code that took the step.
    pub(super) mode: Mode,
    /// What it showed.
    pub(super) seen: &'a Observation,
    /// What it shows on bare silicon.
    pub(super) bare: &'a Observation,
}

/// What becomes of the comparison behind a known difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The machines are in the same state, and it goes on.
    GoesOn,
    /// They are not, and it ends.
    Ends,
}

/// One row: the difference's name, what follows, and whether a step is a case of it.
struct Known {
    name: &'static str,
    then: Then,
    is: fn(&Situation<'_>) -> bool,
}

/// Every known difference.
const KNOWN: [Known; 8] = [
    Known { name: "fetch-bit-without-pae", then: Then::GoesOn, is: fetch_bit_without_pae },
    Known { name: "failed-entry-takes-flush", then: Then::Ends, is: failed_entry_takes_flush },
    Known { name: "fault-keeps-stale", then: Then::Ends, is: fault_keeps_stale },
    Known { name: "restored-pdptes", then: Then::Ends, is: restored_pdptes },
    Known { name: "late-vmfail-keeps-wp", then: Then::Ends, is: late_vmfail_keeps_wp },
    Known { name: "late-vmfail-keeps-pge", then: Then::Ends, is: late_vmfail_keeps_pge },
    Known { name: "restored-efer", then: Then::Ends, is: restored_efer },
    Known { name: "no-vpid-for-l2", then: Then::Ends, is: no_vpid_for_l2 },
];

/// The name of the known difference that a step is a case of.
pub(super) fn name(situation: &Situation<'_>, then: Then) -> Option<&'static str> {
    KNOWN.iter().find(|known| known.then == then && (known.is)(situation)).map(|known| known.name)
}

/// A difference that a change of the kernel brought: without the change it is gone.
pub(super) struct Cause {
    /// The difference's name.
    pub(super) name: &'static str,
    /// The change.
    pub(super) change: Change,
    /// Whether it could be at work in a run.
    pub(super) may_be: fn(&RunConfig) -> bool,
}

/// Every difference of which the change is known.
///
/// Since v5.19 every shadow page without two-dimensional paging has role.efer_nx = 1 (`kvm_init_shadow_mmu`), so that
/// vCPUs and moments with and without EFER.NXE share them, and what one maps the other does not walk again: C-12
/// (9645bb56b31a), which had given them pages of their own, is open again for pages with XD set.
///
/// Of stock kernels: `sync_vmcs02_to_vmcs12` saves L2's CR3 with EPT alone; `nested_svm_vmexit` gives L1 the CR4 of its L2 where just
/// one of them has paging on; `vmx_set_cr0` without EPT leaves SMEP and SMAP in hardware's CR4 alone.
pub(super) const CAUSES: [Cause; 4] = [
    Cause { name: "shadow-ignores-nxe", change: Change::ShadowRoleNx, may_be: |run| !run.tdp },
    Cause { name: "vmcs12-cr3", change: Change::Vmcs12KeepsCr3, may_be: |run| on_intel(run) && !run.tdp },
    Cause { name: "svm-exit-cr4", change: Change::SvmExitKeepsCr4, may_be: |run| !on_intel(run) && !run.tdp },
    Cause { name: "vmx-unpaged-smep", change: Change::VmxUnpagedKeepsSmep, may_be: |run| on_intel(run) && !run.tdp },
];

fn on_intel(run: &RunConfig) -> bool {
    run.vendor == Vendor::Intel
}

const PRESENT: u32 = 1;
const RESERVED: u32 = 1 << 3;
const FETCH: u32 = 1 << 4;

/// The error code and the address of a page fault.
fn page_fault(observed: &Observation) -> Option<(u32, u64)> {
    match observed {
        Observation::Exception(Exception { vector: Vector::PageFault, error, cr2 }) => {
            Some((error.unwrap_or_default(), cr2.map_or(0, |cr2| cr2.0)))
        }
        _ => None,
    }
}

/// `FNAME(walk_addr_generic)` sets the fetch bit of an error code if EFER.NXE or CR4.SMEP is set; processors ask for
/// CR4.PAE beside EFER.NXE (SDM 3A 4.7). v5.17 on.
fn fetch_bit_without_pae(situation: &Situation<'_>) -> bool {
    let (Some((seen, at)), Some((bare, there))) = (page_fault(situation.seen), page_fault(situation.bare)) else {
        return false;
    };
    !situation.run.tdp && situation.mode == Mode::Legacy32 && at == there && seen ^ bare == FETCH && seen & FETCH != 0
}

/// `nested_vmx_transition_tlb_flush` asks for the flush of a new VPID of L2's before the entry can still fail; after a
/// failed one the request is done for L1. v5.17 on.
fn failed_entry_takes_flush(situation: &Situation<'_>) -> bool {
    let failed = |shown: &Shown| {
        let step = situation.scenario.steps.get(shown.index);
        let enters =
            step.is_some_and(|step| step.vcpu == situation.step.vcpu && matches!(step.action, Action::Enter { .. }));
        enters && matches!(shown.observed, Observation::EntryFailed(_))
    };
    let vpids: BTreeSet<_> = situation.scenario.guests.values().filter_map(|guest| guest.vpid).collect();
    situation.run.vendor == Vendor::Intel
        && situation.step.actor == Actor::L2
        && vpids.len() > 1
        && situation.before.iter().any(failed)
}

/// A page fault drops every translation of its address (SDM 3A 4.10.4.1). `kvm_inject_emulated_page_fault` drops the
/// shadow's only if the error code says that the page is present and no reserved bit set. What the entry has become since makes no
/// difference to what is kept. v5.17 on.
fn fault_keeps_stale(situation: &Situation<'_>) -> bool {
    let Some((_, at)) = page_fault(situation.bare) else { return false };
    let page = |at: u64| at / PAGE_BYTES;
    let is_kept = |code: u32| code & (PRESENT | RESERVED) != PRESENT;
    let own = situation.before.iter().rev().filter_map(|shown| {
        let step = situation.scenario.steps.get(shown.index)?;
        (step.vcpu == situation.step.vcpu).then_some((step, &shown.observed))
    });
    let since_flush = own.take_while(|(step, observed)| **observed != Observation::Ok || !may_flush(step, at));
    let faulted = |observed: &Observation| {
        page_fault(observed).is_some_and(|(code, there)| is_kept(code) && page(there) == page(at))
    };
    !situation.run.tdp && since_flush.into_iter().any(|(_, observed)| faulted(observed))
}

/// A PAE guest that changed a PDPTE in memory and has not loaded it yet finds it loaded after its nested state was restored:
/// `svm_get_nested_state_pages` and `vmx_get_nested_state_pages` read PDPTEs anew, unless userspace gave them with
/// KVM_SET_SREGS2. v5.17 on.
fn restored_pdptes(situation: &Situation<'_>) -> bool {
    let step_of = |shown: &Shown| situation.scenario.steps.get(shown.index);
    let restored = |step: &Step| step.vcpu == situation.step.vcpu && step.action == Action::SetNestedState;
    let changes = |step: &Step| matches!(&step.action, Action::SetEntry { entry, .. } if entry.level == 3);
    let before = || situation.before.iter().filter_map(step_of);
    situation.mode == Mode::Pae && before().any(restored) && before().any(changes)
}

/// Since v6.4 a guest with EPT changes CR0.WP without an exit, and `nested_vmx_restore_host_state` takes L1's CR0 from the read
/// shadow of vmcs01, which does not follow. A supervisor's write then faults, or does not, by the WP of before.
fn late_vmfail_keeps_wp(situation: &Situation<'_>) -> bool {
    const WRITE_FORBIDDEN: u32 = PRESENT | 1 << 1;
    let changes =
        |step: &Step| matches!(&step.action, Action::MovCr0(flags) if (flags.set | flags.clear) & Cr0::WP.bits() != 0);
    let forbidden = |observed| page_fault(observed).is_some_and(|(code, _)| code & WRITE_FORBIDDEN == WRITE_FORBIDDEN);
    situation.run.tdp
        && situation.run.vendor == Vendor::Intel
        && forbidden(situation.seen) != forbidden(situation.bare)
        && is_refused_late_behind(situation, changes)
}

/// With EPT CR4.PGE is the guest's own at every point, and comes back from a read shadow in the same way: what is global then outlives
/// a MOV to CR3.
fn late_vmfail_keeps_pge(situation: &Situation<'_>) -> bool {
    let changes =
        |step: &Step| matches!(&step.action, Action::MovCr4(flags) if (flags.set | flags.clear) & Cr4::PGE.bits() != 0);
    situation.run.tdp && situation.run.vendor == Vendor::Intel && is_refused_late_behind(situation, changes)
}

/// Whether hardware refused a VM entry of the vCPU's late, behind such a step.
fn is_refused_late_behind(situation: &Situation<'_>, is_such: impl Fn(&Step) -> bool) -> bool {
    let own = situation.before.iter().filter_map(|shown| {
        let step = situation.scenario.steps.get(shown.index)?;
        (step.vcpu == situation.step.vcpu).then_some((step, &shown.observed))
    });
    let refused = Observation::VmFail(InstructionError::EntryControls as u32);
    own.skip_while(|(step, _)| !is_such(step))
        .any(|(step, observed)| matches!(step.action, Action::Enter { .. }) && *observed == refused)
}

/// "Enable VPID" of vmcs12 goes to vmcs02 whatever L0 uses itself, and `prepare_vmcs02_early_rare` gives vmcs02 the VPID of L1
/// where none is left for L2. On a vCPU for which none was left at all that is 0, which hardware refuses (SDM 3C
/// 26.2.1.1), and L1 gets the failure. `vmx_create_vcpu` takes VPIDs in the order of the vCPUs. v5.17 on.
fn no_vpid_for_l2(situation: &Situation<'_>) -> bool {
    let refused = InstructionError::EntryControls as u32;
    matches!(situation.step.action, Action::Enter { .. })
        && situation.run.vpid
        && u16::from(situation.step.vcpu) >= situation.scenario.machine.vpids
        && *situation.seen == Observation::VmFail(refused)
        && *situation.bare == Observation::Ok
}

/// KVM_SET_NESTED_STATE leaves L2 first, for L1's host state, and the entry that follows is none under way, so that EFER is not
/// taken from vmcs12 (`nested_vmx_calc_efer`): userspace has to set it, before or after. v5.17 on.
fn restored_efer(situation: &Situation<'_>) -> bool {
    let step_of = |shown: &Shown| situation.scenario.steps.get(shown.index);
    let restored = |step: &Step| step.vcpu == situation.step.vcpu && step.action == Action::SetNestedState;
    // What EFER.NXE makes of a page: its XD bit is reserved, or forbids fetches.
    let by_nxe = |observed| page_fault(observed).is_some_and(|(code, _)| code & (RESERVED | FETCH) != 0);
    situation.run.vendor == Vendor::Intel
        && situation.step.actor == Actor::L2
        && (by_nxe(situation.seen) || by_nxe(situation.bare))
        && situation.before.iter().filter_map(step_of).any(restored)
}

/// Whether a step of a guest may have dropped the translations of an address. What the host does may, but need not.
fn may_flush(step: &Step, at: u64) -> bool {
    match &step.action {
        Action::Invlpg(other) => other / PAGE_BYTES == at / PAGE_BYTES,
        Action::MovCr3 { flush, .. } => *flush == Flush::Yes,
        Action::MovCr0(flags) => (flags.set | flags.clear) & Cr0::PG.bits() != 0,
        // SMAP flushes nothing, and SMEP only when it is set (SDM 3A 4.10.4.1).
        Action::MovCr4(flags) => (flags.set & !Cr4::SMAP.bits()) | (flags.clear & !(Cr4::SMAP | Cr4::SMEP).bits()) != 0,
        Action::Invpcid(_)
        | Action::Invlpga { asid: 0, .. }
        | Action::Become { .. }
        | Action::Enter { .. }
        | Action::Exit
        | Action::Rsm
        | Action::Host(HostStep::InitVcpu) => true,
        _ => false,
    }
}
