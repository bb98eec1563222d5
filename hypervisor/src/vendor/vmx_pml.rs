//! L0's use of page-modification logging (SDM 3C 28.2.5; KVM v5.17 vmx.c: `vmx_update_cpu_dirty_logging`,
//! `vmx_flush_pml_buffer`, `handle_pml_full`).
//!
//! Each vCPU has one page of 512 guest-physical addresses, which hardware fills from the last one downwards. Every exit of
//! L1 empties it into the slots' logs, so that to read a log KVM only has to make running vCPUs exit
//! (`kvm_arch_sync_dirty_log`); here no guest runs while userspace does. The control is on while any slot logs, and in
//! vmcs01 alone: L2's physical addresses are not L1's (c3bb9a20834f).
//!
//! Left out: the log that L1 may use for L2 (`nested_vmx_write_pml_buffer`), for L1 is not offered the control.

use crate::run::Run;
use ::mmu::memslot::DirtyLogging;
use ::mmu::plant::Plant;
use ::mmu::state::Nesting;
use serde::{Deserialize, Serialize};
use sim_core::event::Event;
use sim_core::{Gpa, Hpa};
use vmx::controls::SecondaryProc;
use vmx::{ExitReason, Field};

/// `PML_ENTITY_NUM`: what one page holds.
const ENTRIES: u64 = 512;
/// The index of an empty log.
const EMPTY: u64 = ENTRIES - 1;

/// A vCPU's log (`vmx->pml_pg`), and whether vmcs01 says what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PmlBuffer {
    /// The page.
    pub page: Hpa,
    /// See [`Vmcs01`].
    pub vmcs01: Vmcs01,
}

/// Whether vmcs01 has the control as the slots want it (`nested.update_vmcs01_cpu_dirty_logging`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Vmcs01 {
    /// It has.
    UpToDate,
    /// Logging began or ended while L2 ran: L1's next run needs it.
    Stale,
}

impl PmlBuffer {
    /// An empty log, and what vmcs01 must say of it (`init_vmcs`).
    #[must_use]
    pub const fn new(page: Hpa) -> (Self, [(Field, u64); 2]) {
        (Self { page, vmcs01: Vmcs01::UpToDate }, [(Field::PmlAddress, page.0), (Field::PmlIndex, EMPTY)])
    }
}

/// The entries that hardware has filled. The index is that of the next one: it wraps below 0 when the log is full.
const fn filled(index: u64) -> std::ops::Range<u64> {
    if index >= ENTRIES { 0..ENTRIES } else { index + 1..ENTRIES }
}

impl Run<'_> {
    /// `vmx_update_cpu_dirty_logging`.
    pub(crate) fn vmx_update_dirty_logging(&mut self) {
        let l2 = self.vcpu.nesting == Nesting::L2;
        let Some(buffer) = self.vmx_state_mut().pml.as_mut() else { return };
        buffer.vmcs01 = if l2 { Vmcs01::Stale } else { Vmcs01::UpToDate };
        if l2 {
            return;
        }
        let mut controls = SecondaryProc::from_bits_retain(self.vmread(Field::SecondaryControls) as u32);
        controls.set(SecondaryProc::ENABLE_PML, self.vm.slots.logging() == DirtyLogging::On);
        self.vmwrite(Field::SecondaryControls, u64::from(controls.bits()));
    }

    /// vmcs01 is in use again, and gets what it missed (`nested_vmx_vmexit`).
    pub(crate) fn vmx_settle_dirty_logging(&mut self) {
        if self.vmx_state().pml.is_some_and(|buffer| buffer.vmcs01 == Vmcs01::Stale) {
            self.vmx_update_dirty_logging();
        }
    }

    /// `vmx_flush_pml_buffer`, first thing after an exit of L1.
    pub(crate) fn vmx_flush_pml_buffer(&mut self) {
        let Some(buffer) = self.vmx_state().pml else { return };
        let full = ExitReason::from_word(self.vmread(Field::ExitReason)) == Some(ExitReason::PmlFull);
        if self.vcpu.nesting == Nesting::L2 || (self.vm.plants.has(Plant::PmlNotDrained) && !full) {
            return;
        }
        let entries = filled(self.vmread(Field::PmlIndex));
        if entries.is_empty() {
            return;
        }
        let space = self.space();
        let read = |index| Gpa(self.ground.mem.read_u64(buffer.page.offset(8 * index))).frame();
        let frames: Vec<_> = entries.map(read).collect();
        self.ground.record(Event::Handled { what: "PML", detail: format!("{} frames", frames.len()) });
        self.mmu(|ctx, _, _| frames.iter().for_each(|gfn| ctx.mark_dirty(space, *gfn)));
        self.vmwrite(Field::PmlIndex, EMPTY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3C 28.2.5: from entry 511 down; after entry 0 the index is FFFFH.
    #[test]
    fn filled_entries_are_those_above_the_index() {
        for (index, expected) in [(511, 511..511), (510, 511..512), (0, 1..512), (0xffff, 0..512)] {
            let entries = filled(index);
            assert_eq!(entries.clone().count(), expected.clone().count(), "{index}");
            assert!(entries.eq(expected) || index == 511, "{index}");
        }
    }
}
