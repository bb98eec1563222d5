//! The first stage: from a linear address to a page, every reference through the second stage (SDM 3A 4.3 to 4.8;
//! APM2 5.2, 5.3).
//!
//! Non-canonical addresses are the caller's to refuse. Left out: paging-structure caches.

use super::context::PagingContext;
use super::descent::{Path, Root, Step, Stop, Structure, Tables, descend, mark_used};
use super::entry::Rights;
use super::fault::{Cause, page_fault};
use super::format;
use super::memory_type::MemoryType;
use super::permission::permits;
use super::second::{Request, Walker};
use crate::exec::Fault;
use crate::virt::{SecondStage, StagePurpose};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::control::{Cr4, PagingMode};
use sim_core::{Gpa, Gva, Hpa, SimError};

/// What both stages together made of a linear address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Translation {
    /// The host-physical address.
    pub(super) hpa: Hpa,
    /// What the first stage allows.
    pub(super) rights: Rights,
    /// What the second stage allows.
    pub(super) stage_rights: Rights,
    /// The protection key, 0 where there is none.
    pub(super) key: u8,
    /// The memory type that both stages and the MTRRs give.
    pub(super) memory_type: MemoryType,
    /// log2 of the bytes over which this translation holds: the smaller page of the two stages.
    pub(super) shift: u32,
    /// log2 of the bytes of the first stage's page.
    pub(super) page_shift: u32,
    /// Whether the page is global.
    pub(super) is_global: bool,
    /// Whether a write needs no further flag to be set in either stage.
    pub(super) is_dirty: bool,
}

/// Walks both stages for one access: finds the page, checks the access, sets accessed and dirty flags, and translates
/// the final address.
pub(super) fn walk(
    walker: &mut Walker<'_>,
    context: &PagingContext,
    gva: Gva,
    access: Access,
) -> Result<Translation, Fault> {
    let mut path = find_page(walker, context, gva, access)?;
    if !permits(context, path.rights, access) {
        return Err(page_fault(context, gva, access, Cause::Forbidden).into());
    }
    mark_used(&mut GuestTables { walker, gva }, &mut path, access.kind)?;
    let gpa = Gpa(path.address);
    let staged = walker.second_stage(&Request { gpa, gva: Some(gva), access, purpose: StagePurpose::Final })?;
    Ok(Translation {
        hpa: staged.hpa,
        rights: path.rights,
        stage_rights: staged.rights,
        key: 0,
        memory_type: MemoryType::WriteBack,
        shift: path.shift.min(staged.shift),
        page_shift: path.shift,
        is_global: path.is_global() && context.cr4.contains(Cr4::PGE),
        is_dirty: path.is_dirty() && staged.is_dirty,
    })
}

fn find_page(walker: &mut Walker<'_>, context: &PagingContext, gva: Gva, access: Access) -> Result<Path, Fault> {
    let structure = structure(context, &walker.regime.second, gva)?;
    descend(&mut GuestTables { walker, gva }, &structure, gva.0).map_err(|stop| match stop {
        Stop::NotPresent => page_fault(context, gva, access, Cause::NotPresent).into(),
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
        let request = Request { gpa: Gpa(at), gva: Some(self.gva), access, purpose: StagePurpose::Table };
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
    fn write_back(&mut self, step: &Step, value: u64) -> Result<(), Fault> {
        let hpa = match self.walker.table_read() {
            AccessKind::Write => step.hpa,
            AccessKind::Read | AccessKind::Fetch => self.locate(step.at, AccessKind::Write)?,
        };
        self.walker.write_back(hpa, value, step.bytes);
        Ok(())
    }
}
