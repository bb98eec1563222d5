//! The processor's copies of VMCBs (APM2 15.15.1), one for each address at which it executed VMRUN lately.
//!
//! A processor may keep as little as it likes. The model keeps what it can, so that software that forgets to clear a
//! clean bit gets the old value and not, by luck, the new one.

use super::clean::CleanBits;
use super::{Field, Image};
use serde::{Deserialize, Serialize};
use sim_core::Hpa;
use sim_core::memory::PhysMem;

/// How many VMCBs are kept; the one used longest ago makes room.
const ENTRIES_MAX: usize = 16;

/// The copies, the latest used last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct VmcbCache {
    entries: Vec<(Hpa, Image)>,
}

impl VmcbCache {
    /// The copy of a VMCB, if there is one.
    pub(crate) fn get(&self, vmcb: Hpa) -> Option<&Image> {
        self.entries.iter().find(|(at, _)| *at == vmcb).map(|(_, image)| image)
    }

    /// What VMRUN sees: memory, except that groups with their clean bit set come from the copy.
    pub(crate) fn view(&self, mem: &PhysMem, vmcb: Hpa, clean: CleanBits) -> Image {
        let mut image = Image::read(mem, vmcb);
        if let Some(copy) = self.get(vmcb) {
            image.overlay(copy, clean);
        }
        image
    }

    /// Keeps what VMRUN loaded.
    pub(crate) fn insert(&mut self, vmcb: Hpa, image: Image) {
        self.forget(vmcb);
        if self.entries.len() >= ENTRIES_MAX {
            self.entries.remove(0);
        }
        self.entries.push((vmcb, image));
    }

    /// #VMEXIT wrote this field, to memory and to the copy.
    pub(crate) fn update(&mut self, vmcb: Hpa, field: Field, value: u64) {
        if let Some((_, image)) = self.entries.iter_mut().find(|(at, _)| *at == vmcb) {
            image.set(field, value);
        }
    }

    /// #VMEXIT wrote these groups whole.
    pub(crate) fn refresh(&mut self, mem: &PhysMem, vmcb: Hpa, groups: CleanBits) {
        if let Some((_, image)) = self.entries.iter_mut().find(|(at, _)| *at == vmcb) {
            image.overlay(&Image::read(mem, vmcb), groups);
        }
    }

    /// Drops the copy of a VMCB.
    pub(crate) fn forget(&mut self, vmcb: Hpa) {
        self.entries.retain(|(at, _)| *at != vmcb);
    }
}
