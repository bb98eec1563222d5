//! The processor's view of memory: a linear address and an access give a physical address or a fault (SDM 3A 4.2,
//! 4.10; SDM 3C 28.3; APM2 5.5).
//!
//! Without paging the linear address is the guest-physical address. The TLB then keeps no combined mappings, only
//! guest-physical ones, so that turning paging on needs no flush.

use super::context::PagingContext;
use super::fault::{Cause, page_fault};
use super::permission;
use super::second::{self, Request, UNPAGED, Walker, first_stage};
use super::walk::{Translation, walk};
use crate::core::Core;
use crate::exec::Fault;
use crate::tlb::permitted::permitted;
use crate::tlb::{Mapping, Space, Tlb, TlbPolicy, note};
use crate::virt::{Regime, SecondStage, StageFaultKind, StagePurpose};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::control::PagingMode;
use sim_core::choice::ChoicePoint;
use sim_core::clock::{Cost, Cycles};
use sim_core::event::{Event, FlushScope};
use sim_core::{Gpa, Ground, Gva, Hpa};

/// Translates one linear address for one access, through the TLB, charging time and setting A/D bits. The address must
/// be canonical, and of 32 bits outside long mode.
///
/// # Errors
/// The page fault or the second-stage fault of the access.
pub fn translate(
    core: &mut Core,
    regime: &Regime,
    ground: &mut Ground,
    gva: Gva,
    access: Access,
) -> Result<Hpa, Fault> {
    let context = PagingContext::of(core);
    note(core, regime, ground);
    let result = choose(core, regime, ground, &context, (gva, access));
    if let Err(fault) = &result {
        forget(core, regime, ground, gva, fault);
    }
    result
}

/// Translates by whatever the mode and the policy say.
fn choose(
    core: &mut Core,
    regime: &Regime,
    ground: &mut Ground,
    context: &PagingContext,
    (gva, access): (Gva, Access),
) -> Result<Hpa, Fault> {
    match (context.mode(), regime.second) {
        (PagingMode::Off, SecondStage::None) => Ok(Hpa(gva.0)),
        _ if core.tlb.policy() == TlbPolicy::Adversarial => adversarial(core, regime, ground, context, (gva, access)),
        (PagingMode::Off, _) => unpaged(core, regime, ground, gva, access),
        _ => {
            let space = Space { context: regime.tag.context, ept_root: regime.tag.ept_root, pcid: core.pcid() };
            match look_up(&mut core.tlb, context, regime, &space, (gva, access)) {
                Some(hpa) => {
                    ground.charge(Cost::TlbHit);
                    Ok(hpa)
                }
                None => walk_and_fill(core, regime, ground, context, &space, (gva, access)),
            }
        }
    }
}

/// A fault drops what the translation used, so that it does not recur out of caches alone (SDM 3A 4.10.4.1, 4.10.4.3;
/// SDM 3C 28.3.3.1).
fn forget(core: &mut Core, regime: &Regime, ground: &mut Ground, gva: Gva, fault: &Fault) {
    let (context, pcid) = (regime.tag.context, core.pcid());
    let scope = match fault {
        Fault::Exception(_) => FlushScope::PageFault { context, pcid, gva },
        Fault::Stage(fault) => match (fault.kind, regime.tag.ept_root) {
            (StageFaultKind::EptViolation { .. }, Some(root)) => {
                FlushScope::EptViolation { root, gpa: fault.gpa, linear: Some((context, pcid, gva)) }
            }
            _ => return,
        },
        Fault::Exited | Fault::Sim(_) => return,
    };
    core.tlb.invalidate(ground, &scope);
}

/// Asks which of the permitted translations to use; alternative 0 walks anew. A stale translation that forbids the
/// access faults, as a processor may (SDM 3A 4.10.4.3); one that allows it but would need a dirty flag set, or that the
/// second stage forbids, is no alternative.
fn adversarial(
    core: &mut Core,
    regime: &Regime,
    ground: &mut Ground,
    context: &PagingContext,
    (gva, access): (Gva, Access),
) -> Result<Hpa, Fault> {
    let set = permitted(core, regime, ground, gva)?;
    let is_write = access.kind == AccessKind::Write;
    let forbids = |mapping: &Mapping| !permission::permits(context, mapping.rights, mapping.key, access);
    let is_usable = |mapping: &&Mapping| {
        forbids(mapping) || (stage_permits(regime, mapping, access) && (mapping.is_dirty || !is_write))
    };
    let stale: Vec<_> = set.stale().filter(is_usable).collect();
    let alternatives = stale.len() as u32 + 1;
    let taken = match alternatives {
        1 => 0,
        _ => ground.choices.choose(ChoicePoint::Translation, alternatives),
    };
    let space = context.space(&regime.tag);
    let Some(mapping) = (taken as usize).checked_sub(1).and_then(|index| stale.get(index)) else {
        return match context.mode() {
            PagingMode::Off => unpaged(core, regime, ground, gva, access),
            _ => walk_and_fill(core, regime, ground, context, &space, (gva, access)),
        };
    };
    ground.charge(Cost::TlbHit);
    if context.mode() == PagingMode::Off || permission::permits(context, mapping.rights, mapping.key, access) {
        return Ok(mapping.translate(gva));
    }
    Err(page_fault(context, gva, access, Cause::Forbidden(mapping.rights, mapping.key)).into())
}

/// Translates one guest-physical address through the second stage, without the TLB. `purpose` says whether a table of
/// the first stage is read or written, or memory itself.
///
/// # Errors
/// The second-stage fault of the access.
pub fn translate_physical(
    maxphyaddr: u32,
    regime: &Regime,
    ground: &mut Ground,
    gpa: Gpa,
    access: Access,
    purpose: StagePurpose,
) -> Result<Hpa, Fault> {
    let mut tlb = Tlb::default();
    let mut walker = Walker::detached(maxphyaddr, &mut tlb, regime, ground);
    Ok(walker.second_stage(&Request { gpa, gva: None, access, purpose, first: None })?.hpa)
}

/// Linear is guest-physical.
fn unpaged(core: &mut Core, regime: &Regime, ground: &mut Ground, gva: Gva, access: Access) -> Result<Hpa, Fault> {
    let start = ground.clock.now();
    let mut walker = Walker::of(core, regime, ground);
    let first = Some(UNPAGED);
    let request = Request { gpa: Gpa(gva.0), gva: Some(gva), access, purpose: StagePurpose::Final, first };
    let result = walker.second_stage(&request).map(|staged| staged.hpa);
    tell(&mut walker, start, gva, result.as_ref().ok().copied());
    result
}

/// What [`translate`] would answer without a walk and without any effect but its cost: a TLB hit, or no paging at all.
/// None says nothing about the access. The answer holds while [`Tlb::generation`], the regime, the paging registers,
/// CPL and RFLAGS.AC stay as they are.
#[must_use]
pub fn cached(core: &Core, regime: &Regime, gva: Gva, access: Access) -> Option<Cached> {
    let context = PagingContext::of(core);
    match (context.mode(), regime.second) {
        (PagingMode::Off, SecondStage::None) => Some(Cached { hpa: Hpa(gva.0), cost: None }),
        (PagingMode::Off, _) => None,
        _ => {
            let space = Space { context: regime.tag.context, ept_root: regime.tag.ept_root, pcid: core.pcid() };
            let mapping = core.tlb.look_up_for(&space, gva, access.kind)?;
            let hpa = serves(mapping, &context, regime, access).then(|| mapping.translate(gva))?;
            Some(Cached { hpa, cost: Some(Cost::TlbHit) })
        }
    }
}

/// A translation that needs no walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Where the address is.
    pub hpa: Hpa,
    /// What finding it costs.
    pub cost: Option<Cost>,
}

/// Whether a cached mapping allows the access and leaves no dirty flag to set. What is cached are rights, not
/// verdicts: CPL, CR0.WP, SMEP, SMAP and EFLAGS.AC are those of this access.
fn serves(mapping: &Mapping, context: &PagingContext, regime: &Regime, access: Access) -> bool {
    let is_clean_write = access.kind == AccessKind::Write && !mapping.is_dirty;
    !is_clean_write
        && permission::permits(context, mapping.rights, mapping.key, access)
        && stage_permits(regime, mapping, access)
}

/// The cached translation, if it serves. A mapping that doesn't is dropped and walked again, so that a stale mapping
/// never causes a fault by itself (SDM 3A 4.10.4.1, 4.10.4.3; SDM 3C 28.3.3.1).
fn look_up(
    tlb: &mut Tlb,
    context: &PagingContext,
    regime: &Regime,
    space: &Space,
    (gva, access): (Gva, Access),
) -> Option<Hpa> {
    let mapping = tlb.look_up_for(space, gva, access.kind)?;
    if serves(mapping, context, regime, access) {
        return Some(mapping.translate(gva));
    }
    tlb.drop_mapping(space, gva);
    None
}

/// Whether what is cached of the second stage allows an access.
fn stage_permits(regime: &Regime, mapping: &Mapping, access: Access) -> bool {
    second::permits(&regime.second, mapping.stage_rights, access, Some(first_stage(mapping.rights)))
}

fn walk_and_fill(
    core: &mut Core,
    regime: &Regime,
    ground: &mut Ground,
    context: &PagingContext,
    space: &Space,
    (gva, access): (Gva, Access),
) -> Result<Hpa, Fault> {
    let start = ground.clock.now();
    let mut walker = Walker::of(core, regime, ground);
    let result = walk(&mut walker, context, gva, access);
    tell(&mut walker, start, gva, result.as_ref().ok().map(|translation| translation.hpa));
    let translation = result?;
    core.tlb.insert_for(ground, mapping(*space, gva, &translation), access.kind);
    Ok(translation.hpa)
}

/// Records the end of a walk.
fn tell(walker: &mut Walker<'_>, start: Cycles, gva: Gva, result: Option<Hpa>) {
    let end = walker.ground.clock.now();
    walker.ground.log.push(start, end, Event::Walk { gva, references: walker.references, result });
}

fn mapping(space: Space, gva: Gva, translation: &Translation) -> Mapping {
    let offset = (1 << translation.shift) - 1;
    Mapping {
        space,
        gva: Gva(gva.0 & !offset),
        hpa: Hpa(translation.hpa.0 & !offset),
        shift: translation.shift,
        page_shift: translation.page_shift,
        rights: translation.rights,
        stage_rights: translation.stage_rights,
        key: translation.key,
        memory_type: translation.memory_type,
        is_global: translation.is_global,
        is_dirty: translation.is_dirty,
    }
}
