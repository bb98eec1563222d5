//! Memslots from userspace (`KVM_SET_USER_MEMORY_REGION`, `kvm_set_memslot`; v5.17): created, deleted and moved. Whoever
//! deletes or moves a slot zaps every shadow page, and each update begins a generation, which makes cached MMIO stale.
//!
//! A slot that is not SMM's alone is in both address spaces, as userspace makes it.

use crate::machine::Machine;
use mmu::Vm;
use mmu::memslot::{AddressSpace, HostMemory, Memslot, Protection, Visibility};
use mmu::plant::Plant;
use sim_core::SimError;
use sim_core::addr::{Gfn, Level};

/// The slot that is a VM's memory.
pub const MEMORY_SLOT: &str = "memory";

/// A slot that userspace wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSlot<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its first guest frame.
    pub gfn: Gfn,
    /// Its size in 4 KiB frames.
    pub frames: u64,
    /// Who sees it.
    pub visibility: Visibility,
    /// Whether the guest may write it.
    pub protection: Protection,
    /// What the host has behind it.
    pub memory: HostMemory,
    /// The address spaces that it is in.
    pub spaces: &'a [AddressSpace],
}

/// Gives a VM its memory from guest-physical 0.
///
/// # Errors
/// If the host has not that much.
pub fn add_memory(vm: &mut Vm, frames: u64) -> Result<(), SimError> {
    add(
        vm,
        &NewSlot {
            name: MEMORY_SLOT,
            gfn: Gfn(0),
            frames,
            visibility: Visibility::Public,
            protection: Protection::ReadWrite,
            memory: HostMemory::Pages,
            spaces: &AddressSpace::ALL,
        },
    )
}

/// Adds a slot over fresh host frames.
fn add(vm: &mut Vm, new: &NewSlot<'_>) -> Result<(), SimError> {
    let hfn = vm.frames.take_aligned_run(new.frames, alignment(new.frames))?;
    for space in new.spaces {
        let mut slot = Memslot::new(new.name, new.gfn, new.frames, hfn);
        slot.visibility = new.visibility;
        slot.protection = new.protection;
        slot.memory = new.memory;
        vm.slots.add(*space, slot).map_err(|overlap| SimError::unmodelled(overlap.to_string()))?;
    }
    Ok(())
}

/// Host frames of a slot are aligned as far as the largest page that could map all of it at once, so that large pages
/// are possible wherever guest addresses allow them.
#[must_use]
pub fn alignment(frames: u64) -> u64 {
    let fits = |level: &Level| level.frames() <= frames;
    [Level::L3, Level::L2].into_iter().find(fits).map_or(1, Level::frames)
}

impl Machine {
    /// Adds a slot over fresh host frames.
    ///
    /// # Errors
    /// If the host has not that much memory, or the slot overlaps another.
    pub fn add_slot(&mut self, new: &NewSlot<'_>) -> Result<(), SimError> {
        self.host_call(format!("add slot {}", new.name));
        self.change_slot(new.name, |machine| add(&mut machine.vm, new))
    }

    /// Deletes a slot, from every address space that has it.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn delete_slot(&mut self, name: &str) -> Result<(), SimError> {
        self.host_call(format!("delete slot {name}"));
        self.change_slot(name, |machine| {
            let slots = &mut machine.vm.slots;
            let removed = AddressSpace::ALL.into_iter().filter_map(|space| slots.remove(space, name)).count();
            if removed == 0 { Err(no_slot("deletion", name)) } else { machine.flush_slot() }
        })
    }

    /// Moves a slot, with the host frames behind it, to other guest frames (`KVM_MR_MOVE`). It loses its dirty bitmap.
    ///
    /// # Errors
    /// If there is no such slot, or it overlaps another where it goes.
    pub fn move_slot(&mut self, name: &str, gfn: Gfn) -> Result<(), SimError> {
        self.host_call(format!("move slot {name} to gfn {gfn}"));
        self.change_slot(name, |machine| machine.move_in_every_space(name, gfn))
    }

    fn move_in_every_space(&mut self, name: &str, gfn: Gfn) -> Result<(), SimError> {
        let old: Vec<_> = AddressSpace::ALL
            .into_iter()
            .filter_map(|space| self.vm.slots.remove(space, name).map(|slot| (space, slot)))
            .collect();
        if old.is_empty() {
            return Err(no_slot("a move", name));
        }
        self.flush_slot()?;
        for (space, slot) in old {
            let moved = slot.moved.iter().map(|(at, page)| (Gfn(at.0 - slot.gfn.0 + gfn.0), *page)).collect();
            let slot = Memslot {
                visibility: slot.visibility,
                protection: slot.protection,
                memory: slot.memory,
                logging: slot.logging,
                moved,
                ..Memslot::new(name, gfn, slot.frames, slot.hfn)
            };
            self.vm.slots.add(space, slot).map_err(|overlap| SimError::unmodelled(overlap.to_string()))?;
        }
        Ok(())
    }

    /// `kvm_arch_flush_shadow_memslot`.
    fn flush_slot(&mut self) -> Result<(), SimError> {
        if self.vm.plants.has(Plant::NoZapAfterSlotMove) { Ok(()) } else { self.zap_all() }
    }

    /// One update of the slots, in the address spaces that have or had this one: a generation, after which MMIO that was
    /// cached is stale. It waits for invalidations that are under way (`mn_active_invalidate_count`), and here nobody would
    /// end them.
    pub(crate) fn change_slot(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Self) -> Result<(), SimError>,
    ) -> Result<(), SimError> {
        if self.vm.notifier.under_way != 0 {
            return Err(SimError::unmodelled("a memslot update that waits for the end of an invalidation"));
        }
        let has = |machine: &Self| AddressSpace::ALL.map(|space| machine.vm.slots.named(space, name).is_some());
        let before = has(self);
        let logged = self.vm.slots.logging();
        self.vm.slots.begin_update();
        let done = work(self);
        let after = has(self);
        let mut spaces = AddressSpace::ALL.to_vec();
        spaces.retain(|space| before[*space as usize] || after[*space as usize]);
        self.vm.slots.end_update(&spaces);
        let log_changed = self.vm.slots.logging() != logged;
        self.on_vcpu(0, |run| {
            run.mmu(|ctx, _, _| {
                ctx.invalidate_mmio(&spaces);
                if log_changed {
                    ctx.update_cpu_dirty_logging();
                }
            });
            Ok(())
        })?;
        done
    }
}

fn no_slot(what: &str, name: &str) -> SimError {
    SimError::unmodelled(format!("{what} of slot {name}, which does not exist"))
}
