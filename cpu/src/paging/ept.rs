//! Extended page tables (SDM 3C 28.2): tables with their own rights, flags and faults, and the guest-physical mappings
//! that a processor caches from them (28.3.1).
//!
//! Sub-page write permission (bit 61), HLAT's bits 57 and 58 and the controls behind them are left out; the VMCS checks
//! refuse those controls, and without them the bits are ignored.

use super::descent::{Path, Root, Stop, Structure, Update, descend, mark_used, until_undisturbed};
use super::entry::{Rights, ept_type};
use super::format::{self, EPT_SHADOW_STACK, EPTP_MARKS, Limits, NoExecute, Offers};
use super::second::{HostTables, Request, Staged, Start, Walker};
use crate::exec::Fault;
use crate::tlb::{self, GuestPhysical, StageTag};
use crate::virt::{EptControls, EptFlags, FirstStage, PageModificationLog, StageFault, StageFaultKind};
use sim_core::addr::{ENTRY_FRAME_MASK, PAGE_OFFSET_MASK};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::clock::Cost;
use sim_core::{Gpa, Hpa, SimError};

/// EPTP bit 7: supervisor shadow-stack control.
const EPTP_SHADOW_STACK: u64 = 1 << 7;
/// Bit 63 of an entry: suppress #VE.
const SUPPRESS_VE: u64 = 1 << 63;
/// Guest-physical addresses that a page-modification log holds.
const LOG_ENTRIES: u64 = 512;

/// The EPT in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ept {
    /// The EPT pointer.
    pub(super) eptp: u64,
    /// The controls.
    pub(super) controls: EptControls,
}

impl Ept {
    const fn root(&self) -> Hpa {
        Hpa(self.eptp & ENTRY_FRAME_MASK)
    }

    const fn has(&self, flags: EptFlags) -> bool {
        self.controls.flags.contains(flags)
    }

    const fn controls_shadow_stacks(&self) -> bool {
        self.eptp & EPTP_SHADOW_STACK != 0
    }
}

/// How EPT sees the walker reading a guest paging-structure entry: as a write if its own accessed and dirty flags are
/// on (SDM 3C 28.2.4).
pub(crate) const fn table_read(eptp: u64) -> AccessKind {
    if eptp & EPTP_MARKS == 0 { AccessKind::Read } else { AccessKind::Write }
}

/// Whether rights allow an access (SDM 3C 28.2.3.2). With mode-based execute control it is the first stage's U/S that
/// tells which right a fetch needs; where there was no first stage, the access's own privilege stands for it.
pub(super) const fn permits(ept: &Ept, rights: Rights, access: Access, first: Option<FirstStage>) -> bool {
    let is_supervisor = matches!(access.privilege, Privilege::Supervisor);
    if access.shadow_stack && is_supervisor && ept.controls_shadow_stacks() {
        return rights.contains(Rights::READ.union(Rights::SHADOW_STACK));
    }
    let is_user_address = match first {
        Some(first) => first.contains(FirstStage::USER),
        None => !is_supervisor,
    };
    rights.contains(match access.kind {
        AccessKind::Read => Rights::READ,
        AccessKind::Write => Rights::WRITE,
        AccessKind::Fetch if is_user_address => Rights::USER_EXECUTE,
        AccessKind::Fetch => Rights::EXECUTE,
    })
}

/// Translates a guest-physical address, from the cached guest-physical mappings if one allows the access.
pub(super) fn translate(walker: &mut Walker<'_>, ept: &Ept, request: &Request) -> Result<Staged, Fault> {
    if let Some(staged) = look_up(walker, ept, request) {
        return Ok(staged);
    }
    let staged = walk(walker, ept, request)?;
    walker.tlb.insert_guest_physical(walker.ground, mapping(ept.root(), request.gpa, &staged));
    Ok(staged)
}

const fn mapping(ept_root: Hpa, gpa: Gpa, staged: &Staged) -> GuestPhysical {
    let offset = (1 << staged.shift) - 1;
    GuestPhysical {
        ept_root,
        gpa: Gpa(gpa.0 & !offset),
        hpa: Hpa(staged.hpa.0 & !offset),
        shift: staged.shift,
        rights: staged.rights,
        stage_type: staged.stage_type,
        is_dirty: staged.is_dirty,
    }
}

/// The cached mapping, if it allows the access and no dirty flag is left to set; one that doesn't is dropped, as an
/// EPT violation would (SDM 3C 28.3.3.1).
fn look_up(walker: &mut Walker<'_>, ept: &Ept, request: &Request) -> Option<Staged> {
    let cached = *walker.tlb.guest_physical(ept.root(), request.gpa)?;
    let is_clean_write = request.access.kind == AccessKind::Write && !cached.is_dirty;
    if is_clean_write || !permits(ept, cached.rights, request.access, request.first) {
        walker.tlb.drop_guest_physical(ept.root(), request.gpa);
        return None;
    }
    walker.ground.charge(Cost::TlbHit);
    Some(Staged {
        hpa: cached.translate(request.gpa),
        rights: cached.rights,
        shift: cached.shift,
        is_dirty: cached.is_dirty,
        stage_type: cached.stage_type,
    })
}

fn walk(walker: &mut Walker<'_>, ept: &Ept, request: &Request) -> Result<Staged, Fault> {
    let tables = tlb::Tables::Stage(StageTag::Ept(ept.root()));
    walker.through_caches(&tables, request.gpa.0, |walker, start| walk_from(walker, ept, (&tables, start), request))
}

fn walk_from(
    walker: &mut Walker<'_>,
    ept: &Ept,
    (tables, start): (&tlb::Tables, Start),
    request: &Request,
) -> Result<Staged, Fault> {
    let structure = structure(walker.maxphyaddr, ept)?;
    until_undisturbed(|| {
        let structure = walker.start(structure, tables, request.gpa.0, start);
        let mut path = find_page(walker, ept, &structure, request)?;
        if !permits(ept, path.rights, request.access, request.first) {
            return Err(violation(ept, request, Some(&path)));
        }
        let update = mark(walker, ept, request, &mut path)?;
        if update == Update::Changed {
            return Ok(None);
        }
        walker.cache(&structure, &path, *tables, request.gpa.0);
        Ok(Some(staged(&path)))
    })
}

const fn staged(path: &Path) -> Staged {
    Staged {
        hpa: Hpa(path.address),
        rights: path.rights,
        shift: path.shift,
        is_dirty: path.is_dirty(),
        stage_type: ept_type(path.leaf.value),
    }
}

/// The tables behind an EPTP (SDM 3C 24.6.11).
pub(super) fn structure(maxphyaddr: u32, ept: &Ept) -> Result<Structure, SimError> {
    let flags = ept.controls.flags;
    let format = format::ept(ept.eptp, flags)
        .ok_or_else(|| SimError::internal("EPT in force with a page-walk length that VM entry refuses"))?;
    // Bit 63 of an EPT entry is never reserved (it suppresses #VE).
    let limits = Limits { maxphyaddr, no_execute: NoExecute::Enabled, offers: Offers::ept(flags) };
    Ok(Structure { format, root: Root::Table(ept.root().0), limits })
}

fn find_page(walker: &mut Walker<'_>, ept: &Ept, structure: &Structure, request: &Request) -> Result<Path, Fault> {
    // A guest-physical address that 4-level EPT can't reach is an EPT violation (SDM 3C 28.2.2).
    if request.gpa.0 >> structure.format.address_bits() != 0 {
        return Err(violation(ept, request, None));
    }
    descend(&mut HostTables(walker), structure, request.gpa.0).map_err(|stop| match stop {
        Stop::NotPresent(entry) => convertible(ept, entry, request.fault(StageFaultKind::EptViolation { allowed: 0 })),
        Stop::Malformed => request.fault(StageFaultKind::EptMisconfiguration).into(),
        Stop::Reference(never) => match never {},
    })
}

/// The violation of an access that the page found does not allow, or that no entry was read for.
fn violation(ept: &Ept, request: &Request, path: Option<&Path>) -> Fault {
    let Some(path) = path else {
        return request.fault(StageFaultKind::EptViolation { allowed: 0 }).into();
    };
    let allowed = allowed(ept, path);
    convertible(ept, path.leaf.value, request.fault(StageFaultKind::EptViolation { allowed }))
}

/// Bits 6:3 and 14 of the exit qualification, as [`StageFaultKind::EptViolation`] has them.
fn allowed(ept: &Ept, path: &Path) -> u8 {
    let mut allowed = (path.rights & (Rights::READ | Rights::WRITE | Rights::EXECUTE)).bits();
    if ept.has(EptFlags::MODE_BASED_EXECUTE) && path.rights.contains(Rights::USER_EXECUTE) {
        allowed |= 1 << 3;
    }
    if ept.controls_shadow_stacks() && path.leaf.value & EPT_SHADOW_STACK != 0 {
        allowed |= 1 << 4;
    }
    allowed
}

/// The entry that decides is the one that maps the page or is not present; others' bit 63 is ignored (SDM 3C 25.5.7.1).
fn convertible(ept: &Ept, entry: u64, fault: StageFault) -> Fault {
    let convertible = ept.has(EptFlags::VIOLATION_VE) && entry & SUPPRESS_VE == 0;
    StageFault { convertible, ..fault }.into()
}

/// Sets flags. With a page-modification log, any flag to be set needs room in the log, and a page that becomes dirty is
/// logged after that (SDM 3C 28.2.5).
fn mark(walker: &mut Walker<'_>, ept: &Ept, request: &Request, path: &mut Path) -> Result<Update, Fault> {
    let kind = request.access.kind;
    if !path.lacks_marks(kind) {
        return Ok(Update::Done);
    }
    let log = ept.controls.log.map(|log| (log, walker.ground.mem.read(log.index, 2)));
    if log.is_some_and(|(_, index)| index >= LOG_ENTRIES) {
        return Err(request.fault(StageFaultKind::LogFull).into());
    }
    let was_dirty = path.is_dirty();
    let Ok(update) = mark_used(&mut HostTables(walker), path, kind);
    if let Some((log, index)) = log.filter(|_| update == Update::Done && !was_dirty && path.is_dirty()) {
        append(walker, log, index, request.gpa);
    }
    Ok(update)
}

fn append(walker: &mut Walker<'_>, log: PageModificationLog, index: u64, gpa: Gpa) {
    walker.ground.charge(Cost::WalkUpdate);
    walker.ground.mem.write_u64(log.log.offset(8 * index), gpa.0 & !PAGE_OFFSET_MASK);
    walker.ground.mem.write(log.index, index.wrapping_sub(1) & 0xffff, 2);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3C table 27-7: bits 5:3 of the exit qualification are readable, writable, executable, in this order.
    #[test]
    fn rights_have_the_bits_of_the_exit_qualification() {
        assert_eq!([Rights::READ, Rights::WRITE, Rights::EXECUTE].map(|right| right.bits()), [1, 2, 4]);
    }
}
