//! What the host does to the pages behind a slot, and how the VM hears of it (`kvm_mmu_notifier_*`; v5.17): invalidations
//! that begin and end, pages that move, `change_pte`.
//!
//! Between the two ends of an invalidation nothing may map the frames: page faults compare [`mmu::state::Notifier`]
//! with what it was before they looked the host page up.

use crate::machine::Machine;
use crate::run::Run;
use mmu::Vm;
use mmu::memslot::{AddressSpace, HostAccess, HostPage};
use mmu::plant::Plant;
use sim_core::addr::{Gfn, PAGE_BYTES};
use sim_core::{Ground, SimError};

impl Machine {
    /// `kvm_mmu_notifier_invalidate_range_start`: what maps the frames is zapped, and nothing maps them until the end.
    ///
    /// # Errors
    /// Never for vCPU 0, which every machine has.
    pub fn invalidate_begin(&mut self, first: Gfn, count: u64) -> Result<(), SimError> {
        self.host_call(format!("invalidation of {count} frames from gfn {first} begins"));
        self.vm.notifier.begin(first, first.offset(count));
        if self.vm.plants.has(Plant::NoZapAtInvalidation) {
            return Ok(());
        }
        self.on_vcpu(0, |run| {
            run.mmu(|ctx, _, _| (0..count).for_each(|offset| ctx.zap_gfn(first.offset(offset))));
            Ok(())
        })
    }

    /// `kvm_mmu_notifier_invalidate_range_end`.
    ///
    /// # Errors
    /// If none is under way.
    pub fn invalidate_end(&mut self, first: Gfn, count: u64) -> Result<(), SimError> {
        self.host_call(format!("invalidation of {count} frames from gfn {first} ends"));
        if self.vm.notifier.end() {
            Ok(())
        } else {
            Err(SimError::unmodelled("the end of an invalidation that never began"))
        }
    }

    /// The host moves a page to another frame: compaction, migration, swapping out and in again.
    ///
    /// # Errors
    /// If the host has no frame left, or no slot has the page.
    pub fn move_page(&mut self, gfn: Gfn) -> Result<(), SimError> {
        self.invalidate_begin(gfn, 1)?;
        replace(&mut self.vm, &mut self.ground, gfn, HostAccess::Writable)?;
        self.invalidate_end(gfn, 1)
    }

    /// The host replaces a page by another with the same content and says so afterwards (`kvm_mmu_notifier_change_pte`):
    /// KSM merges it, or a copy is made for a writer. Inside an invalidation, as callers of `change_pte` must be; here it
    /// is one of no frame, since the kernel's own would leave `change_pte` nothing to change.
    ///
    /// # Errors
    /// If the host has no frame left, or no slot has the page.
    pub fn change_page(&mut self, gfn: Gfn, access: HostAccess) -> Result<(), SimError> {
        self.host_call(format!("change page of gfn {gfn}"));
        self.vm.notifier.begin(gfn, gfn);
        let page = replace(&mut self.vm, &mut self.ground, gfn, access)?;
        self.on_vcpu(0, |run| {
            run.mmu(|ctx, _, _| ctx.change_page(gfn, page));
            Ok(())
        })?;
        self.vm.notifier.end();
        Ok(())
    }

    /// `kvm_mmu_notifier_clear_flush_young`: whether a page was used since it was last asked, and forgets it.
    ///
    /// # Errors
    /// Never for vCPU 0, which every machine has.
    pub fn age_page(&mut self, gfn: Gfn) -> Result<bool, SimError> {
        self.host_call(format!("age gfn {gfn}"));
        self.on_vcpu(0, |run| Ok(run.mmu(|ctx, _, _| ctx.age(gfn))))
    }

    /// `kvm_mmu_notifier_test_young`.
    ///
    /// # Errors
    /// Never for vCPU 0, which every machine has.
    pub fn test_age(&mut self, gfn: Gfn) -> Result<bool, SimError> {
        self.host_call(format!("test age of gfn {gfn}"));
        self.on_vcpu(0, |run| Ok(run.mmu(|ctx, _, _| ctx.was_accessed(gfn))))
    }
}

impl Run<'_> {
    /// A guest writes to a page that the host shares: the host makes a copy for it (`hva_to_pfn` with a write fault), which
    /// invalidates the shared one, and the guest faults anew.
    ///
    /// # Errors
    /// If the host has no frame left.
    pub(crate) fn break_sharing(&mut self, gfn: Gfn) -> Result<(), SimError> {
        self.vm.notifier.begin(gfn, gfn.offset(1));
        self.mmu(|ctx, _, _| ctx.zap_gfn(gfn));
        replace(self.vm, self.ground, gfn, HostAccess::Writable)?;
        self.vm.notifier.end();
        Ok(())
    }
}

/// Another host frame with the same content backs the page from now on. The old frame goes back to the host.
fn replace(vm: &mut Vm, ground: &mut Ground, gfn: Gfn, access: HostAccess) -> Result<HostPage, SimError> {
    let backed = |space| vm.slots.find(space, gfn).and_then(|slot| slot.page(gfn)).map(|page| (space, page));
    let pages: Vec<_> = AddressSpace::ALL.into_iter().filter_map(backed).collect();
    let Some((_, old)) = pages.first().copied() else {
        return Err(SimError::unmodelled(format!("a host page behind gfn {gfn}, where no slot is")));
    };
    let new = vm.frames.take(ground)?;
    let mut content = vec![0; PAGE_BYTES as usize];
    ground.mem.read_bytes(old.hfn.base(), &mut content);
    ground.mem.write_bytes(new.base(), &content);
    for (space, page) in pages {
        if page.hfn == old.hfn
            && let Some(slot) = vm.slots.find_mut(space, gfn)
        {
            slot.moved.insert(gfn, HostPage { hfn: new, access });
        }
    }
    // What the guest may still reach through a stale translation is no longer its own.
    ground.mem.write_bytes(old.hfn.base(), &vec![FREED; PAGE_BYTES as usize]);
    Ok(HostPage { hfn: new, access })
}

/// What the host fills a frame with that it has taken back: the pattern shows in any read through a stale translation.
const FREED: u8 = 0xcc;
