//! Page faults that need no lock (`fast_page_fault`, KVM v5.17): an entry that lacks only what access tracking or dirty
//! logging took away is mended with one compare-and-exchange.
//!
//! Left out: the race that the compare-and-exchange is for, and its four retries; no one else runs meanwhile.

use crate::change::Change;
use crate::permission::Attempt;
use crate::plant::Plant;
use crate::role::{ACCESS_EXEC, ACCESS_USER, ACCESS_WRITE};
use crate::spte::{self, Format};
use crate::state::{AccessedDirty, Ctx, Mmu};
use crate::stats::Stat;
use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::arch::exception::PageFaultError;
use sim_core::event::{Event, FastOutcome};

/// The leaf that a fault ran into.
#[derive(Clone, Copy, Debug)]
struct Found {
    sptep: Hpa,
    level: Level,
    spte: u64,
}

impl Ctx<'_> {
    /// Tries to mend the entry of a fault. True if the guest may go on.
    pub(crate) fn fast_page_fault(&mut self, mmu: &Mmu, address: u64, attempt: Attempt) -> bool {
        if !self.may_be_fast(attempt.error) {
            return false;
        }
        let Some(found) = self.leaf_of(mmu, address) else { return false };
        let (outcome, new) = self.decide_fast(found, attempt.error);
        if outcome == FastOutcome::Fixed {
            self.apply_fast(found, new);
        }
        self.ground.record(Event::FastPageFault {
            vcpu: self.ground.log.processor(),
            address,
            error: u64::from(attempt.error.bits()),
            sptep: found.sptep,
            old: found.spte,
            new,
            outcome,
        });
        let counted: &[Stat] = match outcome {
            FastOutcome::Fixed => &[Stat::PfFast, Stat::PfFixed],
            FastOutcome::Spurious => &[Stat::PfFast, Stat::PfSpurious],
            FastOutcome::Slow => &[],
        };
        counted.iter().for_each(|stat| self.vm.stats.count(*stat));
        outcome != FastOutcome::Slow
    }

    /// `page_fault_can_be_fast`: a write to what is there, or any access where access is tracked. An instruction fetch
    /// that faults on a present page is a large page that may not be executable.
    fn may_be_fast(&self, error: PageFaultError) -> bool {
        if error.contains(PageFaultError::RSVD) || error.contains(PageFaultError::F | PageFaultError::P) {
            return false;
        }
        let tracks = self.vm.config.accessed_dirty == AccessedDirty::Tracked;
        tracks || error.contains(PageFaultError::W | PageFaultError::P)
    }

    /// The last entry on the way down, if it is a present leaf.
    fn leaf_of(&self, mmu: &Mmu, address: u64) -> Option<Found> {
        let (mut level, mut table) = self.shadow_start(mmu, address)?;
        loop {
            let sptep = table.offset(level.index(address) * 8);
            let spte = self.ground.mem.read_u64(sptep);
            if !spte::is_present(spte) {
                return None;
            }
            if spte::is_leaf(spte, level) {
                return Some(Found { sptep, level, spte });
            }
            (level, table) = (level.down()?, spte::frame(spte).base());
        }
    }

    /// What can be done, and the entry afterwards.
    fn decide_fast(&self, found: Found, error: PageFaultError) -> (FastOutcome, u64) {
        let format = self.vm.config.tdp.spte_format();
        let old = found.spte;
        if allows(format, old, error) {
            return (FastOutcome::Spurious, old);
        }
        let mut new = if format.is_tracked(old) { format.restored(old) } else { old };
        // As long as MMU-writable could outlive host-writable, both were asked for.
        let host = old & format.bits().host_writable != 0 || self.vm.changes.has(Change::ChangePteTakesPromise);
        let promised = (host && format.is_mmu_writable(old)) || self.vm.plants.has(Plant::FastIgnoresPromise);
        if error.contains(PageFaultError::W) && promised {
            // A large page of a slot that logs must be mapped small first.
            if found.level > Level::L1 && self.is_logged(found) {
                return (FastOutcome::Slow, old);
            }
            new |= format.bits().write;
        }
        if new == old || !allows(format, new, error) { (FastOutcome::Slow, old) } else { (FastOutcome::Fixed, new) }
    }

    fn apply_fast(&mut self, found: Found, new: u64) {
        let format = self.vm.config.tdp.spte_format();
        self.ground.mem.write_u64(found.sptep, new);
        let became_writable = format.is_writable(new) && !format.is_writable(found.spte);
        if became_writable
            && !self.vm.plants.has(Plant::FastForgetsDirty)
            && let Some((space, gfn)) = self.gfn_of(found.sptep)
        {
            self.mark_dirty(space, gfn);
        }
    }

    fn is_logged(&self, found: Found) -> bool {
        let slot = self.gfn_of(found.sptep).and_then(|(space, gfn)| self.vm.slots.find(space, gfn));
        slot.is_some_and(|slot| slot.logging == crate::memslot::DirtyLogging::On)
    }

    /// The first guest frame that an entry maps, and its address space.
    #[must_use]
    pub fn gfn_of(&self, sptep: Hpa) -> Option<(crate::memslot::AddressSpace, Gfn)> {
        let page = self.vm.pages.at(sptep.page_base())?;
        let index = sptep.page_offset() / 8;
        let gfn = if page.is_indirect() {
            page.shadowed.get(&(index as u16)).map(|shadowed| shadowed.gfn)
        } else {
            page.direct_gfn(index)
        };
        Some((crate::memslot::AddressSpace::of_role(page.role), gfn?))
    }
}

/// `is_access_allowed`.
fn allows(format: Format, spte: u64, error: PageFaultError) -> bool {
    let granted = format.granted(spte);
    let has = |bit: u32| granted & bit != 0;
    if error.contains(PageFaultError::F) {
        return has(ACCESS_EXEC);
    }
    if error.contains(PageFaultError::W) {
        return has(ACCESS_WRITE);
    }
    match format {
        Format::Paging => spte & 1 != 0,
        Format::Ept => has(ACCESS_USER),
    }
}
