//! Dirty logging as userspace asks for it (`KVM_MEM_LOG_DIRTY_PAGES`, `KVM_GET_DIRTY_LOG`, `KVM_CLEAR_DIRTY_LOG`; v5.17
//! `kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect`). A slot in both address spaces is one slot of userspace's, so
//! the logs of both are given together.
//!
//! With `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` the log is read without being cleared, and cleared frame by frame. The dirty
//! ring and `KVM_DIRTY_LOG_INITIALLY_SET` are left out.

use crate::machine::Machine;
use mmu::memslot::{AddressSpace, DirtyLogging, Memslot};
use sim_core::SimError;
use sim_core::addr::Gfn;
use std::collections::BTreeSet;

/// What reading the log does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReading {
    /// It is empty, and the frames are watched again.
    Cleared,
    /// It stays, for `KVM_CLEAR_DIRTY_LOG` to clear.
    Kept,
}

impl Machine {
    /// Switches a slot's dirty logging on or off.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn set_dirty_logging(&mut self, name: &str, logging: DirtyLogging) -> Result<(), SimError> {
        let word = if logging == DirtyLogging::On { "on" } else { "off" };
        self.host_call(format!("dirty logging of slot {name} {word}"));
        let mut slots = AddressSpace::ALL.into_iter().filter_map(|space| self.vm.slots.named(space, name)).peekable();
        if slots.peek().is_some() && slots.all(|slot| slot.logging == logging) {
            // Flags that a slot has already are no update (`__kvm_set_memory_region`).
            return Ok(());
        }
        self.change_slot(name, |machine| {
            machine.each_slot(name, |machine, space| {
                let Some(slot) = machine.slot_mut(space, name) else { return Ok(()) };
                if slot.logging == logging {
                    return Ok(());
                }
                slot.logging = logging;
                slot.dirty.clear();
                machine.on_vcpu(0, |run| {
                    run.mmu(|ctx, _, _| match logging {
                        DirtyLogging::On => ctx.start_dirty_log(space, name),
                        DirtyLogging::Off => ctx.stop_dirty_log(space, name),
                    });
                    Ok(())
                })
            })
        })
    }

    /// `KVM_GET_DIRTY_LOG`: the frames written since they were last cleared.
    ///
    /// # Errors
    /// If there is no such slot, or it does not log.
    pub fn dirty_log(&mut self, name: &str, after: AfterReading) -> Result<Vec<Gfn>, SimError> {
        self.host_call(format!("dirty log of slot {name}"));
        let mut all = BTreeSet::new();
        self.each_slot(name, |machine, space| {
            let Some(slot) = machine.slot_mut(space, name) else { return Ok(()) };
            if slot.logging == DirtyLogging::Off {
                return Err(SimError::unmodelled(format!("the dirty log of slot {name}, which does not log")));
            }
            all.extend(slot.dirty.iter().copied());
            match after {
                AfterReading::Kept => Ok(()),
                AfterReading::Cleared => {
                    let cleared = std::mem::take(&mut slot.dirty);
                    machine.watch(space, &cleared)
                }
            }
        })?;
        Ok(all.into_iter().collect())
    }

    /// `KVM_CLEAR_DIRTY_LOG`: frames that are in the log leave it and are watched again.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn clear_dirty_log(&mut self, name: &str, first: Gfn, count: u64) -> Result<(), SimError> {
        self.host_call(format!("clear {count} frames from gfn {first} in the dirty log of slot {name}"));
        self.each_slot(name, |machine, space| {
            let Some(slot) = machine.slot_mut(space, name) else { return Ok(()) };
            let end = Gfn(first.0.saturating_add(count));
            let cleared: BTreeSet<_> = slot.dirty.range(first..end).copied().collect();
            slot.dirty.retain(|gfn| !cleared.contains(gfn));
            machine.watch(space, &cleared)
        })
    }

    fn watch(&mut self, space: AddressSpace, frames: &BTreeSet<Gfn>) -> Result<(), SimError> {
        let frames: Vec<_> = frames.iter().copied().collect();
        self.on_vcpu(0, |run| {
            run.mmu(|ctx, _, _| ctx.watch_dirty(space, &frames));
            Ok(())
        })
    }

    /// Does something in each address space; at least one must have the slot.
    fn each_slot(
        &mut self,
        name: &str,
        mut work: impl FnMut(&mut Self, AddressSpace) -> Result<(), SimError>,
    ) -> Result<(), SimError> {
        let has = |machine: &Self, space| machine.vm.slots.named(space, name).is_some();
        if !AddressSpace::ALL.into_iter().any(|space| has(self, space)) {
            return Err(SimError::unmodelled(format!("slot {name}, which does not exist")));
        }
        AddressSpace::ALL.into_iter().try_for_each(|space| work(self, space))
    }

    fn slot_mut(&mut self, space: AddressSpace, name: &str) -> Option<&mut Memslot> {
        self.vm.slots.all_mut(space).iter_mut().find(|slot| slot.name == name)
    }
}
