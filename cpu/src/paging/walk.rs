//! The first stage: from a linear address to a page, every reference through the second stage (SDM 3A 4.3 to 4.9;
//! APM2 5.2, 5.3).
//!
//! Non-canonical addresses are the caller's to refuse.

use super::context::PagingContext;
use super::descent::{Path, Root, Step, Stop, Structure, Tables, Update, descend, mark_used, until_undisturbed};
use super::entry::Rights;
use super::fault::{Cause, page_fault};
use super::format;
use super::memory_type::{self, MemoryType};
use super::permission::permits;
use super::second::{Request, Staged, Start, Walker, first_stage};
use crate::core::Core;
use crate::exec::Fault;
use crate::profile::Habits;
use crate::tlb::{self, Tlb};
use crate::virt::{Regime, SecondStage, StagePurpose};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::control::{Cr0, Cr4, PagingMode};
use sim_core::{Gpa, Ground, Gva, Hpa, SimError};

/// What both stages together made of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The host-physical address.
    pub hpa: Hpa,
    /// What the first stage allows.
    pub rights: Rights,
    /// What the second stage allows.
    pub stage_rights: Rights,
    /// The protection key, 0 where there is none.
    pub key: u8,
    /// The memory type that both stages and the MTRRs give.
    pub memory_type: MemoryType,
    /// log2 of the bytes over which this translation holds: the smaller page of the two stages.
    pub shift: u32,
    /// log2 of the bytes of the first stage's page.
    pub page_shift: u32,
    /// Whether the page is global.
    pub is_global: bool,
    /// Whether a write needs no further flag to be set in either stage.
    pub is_dirty: bool,
}

/// Translates a linear address for one access by the tables alone, with no cached translation used or made, while paging
/// is on. Sets flags as the access would.
///
/// # Errors
/// The page fault or the second-stage fault of the access.
pub fn uncached(
    core: &Core,
    regime: &Regime,
    ground: &mut Ground,
    gva: Gva,
    access: Access,
) -> Result<Translation, Fault> {
    let context = PagingContext::of(core);
    let mut tlb = Tlb::default();
    let detached = Walker::detached(core.maxphyaddr, &mut tlb, regime, ground);
    let mut walker = Walker { offers: context.offers, mtrrs: &core.mtrrs, ..detached };
    walk(&mut walker, &context, gva, access)
}

/// Walks both stages for one access: finds the page, checks the access, sets accessed and dirty flags, and translates
/// the final address. An entry that changes in between makes it start again.
pub(super) fn walk(
    walker: &mut Walker<'_>,
    context: &PagingContext,
    gva: Gva,
    access: Access,
) -> Result<Translation, Fault> {
    let tables = tlb::Tables::Linear(context.space(&walker.regime.tag));
    walker.through_caches(&tables, gva.0, |walker, start| walk_from(walker, context, (&tables, start), gva, access))
}

fn walk_from(
    walker: &mut Walker<'_>,
    context: &PagingContext,
    (tables, start): (&tlb::Tables, Start),
    gva: Gva,
    access: Access,
) -> Result<Translation, Fault> {
    until_undisturbed(|| {
        let structure = walker.start(structure(context, &walker.regime.second, gva)?, tables, gva.0, start);
        let mut path = find_page(walker, &structure, context, gva, access)?;
        let key = path.leaf.level.key(path.leaf.value);
        if !permits(context, path.rights, key, access) {
            return Err(page_fault(context, gva, access, Cause::Forbidden(path.rights, key)).into());
        }
        if mark_used(&mut GuestTables { walker, gva }, &mut path, access.kind)? == Update::Changed {
            return Ok(None);
        }
        walker.cache(&structure, &path, *tables, gva.0);
        let first = Some(first_stage(path.rights));
        let request = Request { gpa: Gpa(path.address), gva: Some(gva), access, purpose: StagePurpose::Final, first };
        let staged = walker.second_stage(&request)?;
        Ok(Some(translation(walker, context, &path, &staged)))
    })
}

fn translation(walker: &Walker<'_>, context: &PagingContext, path: &Path, staged: &Staged) -> Translation {
    Translation {
        hpa: staged.hpa,
        rights: path.rights,
        stage_rights: staged.rights,
        key: path.leaf.level.key(path.leaf.value),
        memory_type: memory_type(walker, context, path, staged),
        shift: path.shift.min(staged.shift),
        page_shift: path.shift,
        is_global: path.is_global() && context.cr4.contains(Cr4::PGE),
        is_dirty: path.is_dirty() && staged.is_dirty,
    }
}

/// SDM 3A 4.9.2, 11.5.2; with CR0.CD nothing is cached.
fn memory_type(walker: &Walker<'_>, context: &PagingContext, path: &Path, staged: &Staged) -> MemoryType {
    if context.cr0.contains(Cr0::CD) {
        return MemoryType::Uncacheable;
    }
    let pat = memory_type::pat_entry(context.pat, path.leaf.level.pat_index(path.leaf.value));
    memory_type::combine(walker.mtrrs, staged.hpa, pat, staged.stage_type)
}

fn find_page(
    walker: &mut Walker<'_>,
    structure: &Structure,
    context: &PagingContext,
    gva: Gva,
    access: Access,
) -> Result<Path, Fault> {
    descend(&mut GuestTables { walker, gva }, structure, gva.0).map_err(|stop| match stop {
        Stop::NotPresent(_) => page_fault(context, gva, access, Cause::NotPresent).into(),
        Stop::Malformed => page_fault(context, gva, access, Cause::Reserved).into(),
        Stop::Reference(fault) => fault,
    })
}

/// The tables that control registers select for an address.
pub(crate) fn structure(context: &PagingContext, second: &SecondStage, gva: Gva) -> Result<Structure, SimError> {
    let mode = context.mode();
    let format =
        format::ordinary(mode, context.cr4).ok_or_else(|| SimError::internal("a page walk while CR0.PG is 0"))?;
    let root = match (mode, second) {
        // With nested paging a guest's PDPTEs are read on demand as any other entry (APM2 15.25.10).
        (PagingMode::Pae, SecondStage::None | SecondStage::Ept { .. }) => {
            Root::Register(context.pdptes[format.levels[0].index(gva.0) as usize])
        }
        _ => Root::Table(context.cr3 & format::root_mask(mode)),
    };
    Ok(Structure { format, root, limits: context.limits() })
}

/// The tables of the first stage: in guest-physical memory.
struct GuestTables<'a, 'b> {
    walker: &'a mut Walker<'b>,
    gva: Gva,
}

impl GuestTables<'_, '_> {
    fn locate(&mut self, at: u64, kind: AccessKind) -> Result<Hpa, Fault> {
        let access = Access::implicit(kind);
        let request = Request { gpa: Gpa(at), gva: Some(self.gva), access, purpose: StagePurpose::Table, first: None };
        Ok(self.walker.second_stage(&request)?.hpa)
    }
}

impl Tables for GuestTables<'_, '_> {
    type Error = Fault;

    fn read(&mut self, at: u64, bytes: usize) -> Result<(Hpa, u64), Fault> {
        let hpa = self.locate(at, self.walker.table_read())?;
        Ok((hpa, self.walker.read(hpa, bytes)))
    }

    /// A second stage that saw the read as a read has yet to allow the write.
    fn update(&mut self, step: &Step, value: u64) -> Result<Update, Fault> {
        let hpa = match self.walker.table_read() {
            AccessKind::Write => step.hpa,
            AccessKind::Read | AccessKind::Fetch if self.walker.tlb.profile().has(Habits::FLAGS_PASS_EPT) => step.hpa,
            AccessKind::Read | AccessKind::Fetch => self.locate(step.at, AccessKind::Write)?,
        };
        Ok(self.walker.update(hpa, step.value, value, step.bytes))
    }
}
