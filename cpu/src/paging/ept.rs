//! Extended page tables (SDM 3C 28.2): 4-level tables with their own rights, flags and faults, and the
//! guest-physical mappings that a processor caches from them (28.3.1).
//!
//! Execute-only translations are taken as supported. Left out: 5-level EPT, mode-based execute control, sub-page
//! write permission, #VE, page-modification logging, memory types beyond their validity.

use super::descent::{Path, Root, Stop, Structure, descend, mark_used};
use super::entry::Rights;
use super::format::{self, Format, Limits, NoExecute};
use super::memory_type::StageType;
use super::second::{HostTables, Request, Staged, Walker, permits};
use crate::exec::Fault;
use crate::tlb::GuestPhysical;
use crate::virt::StageFaultKind;
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::arch::access::AccessKind;
use sim_core::clock::Cost;
use sim_core::{Gpa, Hpa, SimError};

/// EPTP bit 6: enable accessed and dirty flags.
const EPTP_AD: u64 = 1 << 6;

/// How EPT sees the walker reading a guest paging-structure entry: as a write if its own accessed and dirty flags are
/// on (SDM 3C 28.2.4).
pub(crate) const fn table_read(eptp: u64) -> AccessKind {
    if eptp & EPTP_AD == 0 { AccessKind::Read } else { AccessKind::Write }
}

/// Translates a guest-physical address, from the cached guest-physical mappings if one allows the access.
pub(super) fn translate(walker: &mut Walker<'_>, eptp: u64, request: &Request) -> Result<Staged, Fault> {
    let root = Hpa(eptp & ENTRY_FRAME_MASK);
    if let Some(staged) = look_up(walker, root, request) {
        return Ok(staged);
    }
    let staged = walk(walker, eptp, request)?;
    walker.tlb.insert_guest_physical(walker.ground, mapping(root, request.gpa, &staged));
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
        stage_type: StageType::Mtrr,
        is_dirty: staged.is_dirty,
    }
}

/// The cached mapping, if it allows the access and no dirty flag is left to set; one that doesn't is dropped, as an
/// EPT violation would (SDM 3C 28.3.3.1).
fn look_up(walker: &mut Walker<'_>, root: Hpa, request: &Request) -> Option<Staged> {
    let cached = *walker.tlb.guest_physical(root, request.gpa)?;
    let kind = request.access.kind;
    if !permits(cached.rights, kind) || (kind == AccessKind::Write && !cached.is_dirty) {
        walker.tlb.drop_guest_physical(root, request.gpa);
        return None;
    }
    walker.ground.charge(Cost::TlbHit);
    let hpa = cached.translate(request.gpa);
    Some(Staged { hpa, rights: cached.rights, shift: cached.shift, is_dirty: cached.is_dirty })
}

fn walk(walker: &mut Walker<'_>, eptp: u64, request: &Request) -> Result<Staged, Fault> {
    let structure = structure(walker.maxphyaddr, eptp)?;
    let mut path = find_page(walker, &structure, request)?;
    if !permits(path.rights, request.access.kind) {
        return Err(violation(request, path.rights));
    }
    let Ok(()) = mark_used(&mut HostTables(walker), &mut path, request.access.kind);
    let is_dirty = path.is_dirty();
    Ok(Staged { hpa: Hpa(path.address), rights: path.rights, shift: path.shift, is_dirty })
}

/// The tables behind an EPTP (SDM 3C 24.6.11).
pub(super) fn structure(maxphyaddr: u32, eptp: u64) -> Result<Structure, SimError> {
    if (eptp >> 3) & 7 != 3 {
        return Err(SimError::unmodelled("EPT page-walk length other than 4"));
    }
    let format: &'static Format = if eptp & EPTP_AD == 0 { &format::EPT } else { &format::EPT_AD };
    // Bit 63 of an EPT entry is never reserved (it suppresses #VE).
    let limits = Limits { maxphyaddr, no_execute: NoExecute::Enabled };
    Ok(Structure { format, root: Root::Table(eptp & ENTRY_FRAME_MASK), limits })
}

fn find_page(walker: &mut Walker<'_>, structure: &Structure, request: &Request) -> Result<Path, Fault> {
    // A guest-physical address that 4-level EPT can't reach is an EPT violation (SDM 3C 28.2.2).
    if request.gpa.0 >> structure.format.address_bits() != 0 {
        return Err(violation(request, Rights::empty()));
    }
    descend(&mut HostTables(walker), structure, request.gpa.0).map_err(|stop| match stop {
        Stop::NotPresent => violation(request, Rights::empty()),
        Stop::Malformed => request.fault(StageFaultKind::EptMisconfiguration).into(),
        Stop::Reference(never) => match never {},
    })
}

fn violation(request: &Request, rights: Rights) -> Fault {
    let allowed = (rights & (Rights::READ | Rights::WRITE | Rights::EXECUTE)).bits();
    request.fault(StageFaultKind::EptViolation { allowed }).into()
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
