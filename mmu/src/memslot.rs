//! Memslots: which guest frames are backed by which host frames (`struct kvm_memory_slot`).
//!
//! Left out until dirty logging and several address spaces are modelled: dirty bitmaps, slot generations, SMM's second
//! address space. Userspace addresses do not exist; a slot names host frames directly.

use serde::{Deserialize, Serialize};
use sim_core::addr::{Gfn, Gpa, Hfn, Hpa};

/// Who may see a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Visibility {
    /// Made by userspace: L1 and L2 see it.
    Public,
    /// Internal to KVM (the APIC-access page, the TSS and identity-map pages): never visible to L2
    /// (KVM 3a2936dedd20).
    Private,
}

/// Whether the guest may write a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protection {
    /// Readable and writable.
    ReadWrite,
    /// `KVM_MEM_READONLY`: writes exit as MMIO.
    ReadOnly,
}

/// One memslot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memslot {
    /// Its name in the scenario.
    pub name: String,
    /// Its first guest frame.
    pub gfn: Gfn,
    /// Its size in 4 KiB frames.
    pub frames: u64,
    /// The host frame behind the first guest frame; the rest follow.
    pub hfn: Hfn,
    /// Who may see it.
    pub visibility: Visibility,
    /// Whether the guest may write it.
    pub protection: Protection,
}

impl Memslot {
    /// The host frame behind a guest frame, if the slot has it.
    #[must_use]
    pub const fn translate(&self, gfn: Gfn) -> Option<Hfn> {
        match gfn.0.checked_sub(self.gfn.0) {
            Some(offset) if offset < self.frames => Some(self.hfn.offset(offset)),
            _ => None,
        }
    }
}

/// A VM's memslots, none overlapping, by first guest frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memslots {
    slots: Vec<Memslot>,
}

impl Memslots {
    /// Every slot, by first guest frame.
    #[must_use]
    pub fn all(&self) -> &[Memslot] {
        &self.slots
    }

    /// The slot that holds a guest frame.
    #[must_use]
    pub fn find(&self, gfn: Gfn) -> Option<&Memslot> {
        self.slots.iter().find(|slot| slot.translate(gfn).is_some())
    }

    /// The slot with this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Memslot> {
        self.slots.iter().find(|slot| slot.name == name)
    }

    /// Adds a slot, or gives it back if it overlaps another.
    ///
    /// # Errors
    /// The slot itself, unchanged.
    pub fn add(&mut self, slot: Memslot) -> Result<(), Memslot> {
        let end = |slot: &Memslot| slot.gfn.0.saturating_add(slot.frames);
        if self.slots.iter().any(|other| other.gfn.0 < end(&slot) && slot.gfn.0 < end(other)) {
            return Err(slot);
        }
        let at = self.slots.partition_point(|other| other.gfn < slot.gfn);
        self.slots.insert(at, slot);
        Ok(())
    }

    /// Removes the slot with this name.
    pub fn remove(&mut self, name: &str) -> Option<Memslot> {
        let at = self.slots.iter().position(|slot| slot.name == name)?;
        Some(self.slots.remove(at))
    }

    /// The host address of a guest address, if a slot backs it.
    #[must_use]
    pub fn host(&self, gpa: Gpa) -> Option<Hpa> {
        let frame = self.find(gpa.frame())?.translate(gpa.frame())?;
        Some(frame.base().offset(gpa.page_offset()))
    }
}
