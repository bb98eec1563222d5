//! The VMCS that L1 built for L2, as L0 keeps it (`struct vmcs12`): in a form of L0's own, since a VMCS region's layout
//! belongs to the processor, and here L0 is the processor. L1 sees it only through VMREAD and VMWRITE.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmx::Field;
use vmx::controls::{EntryControls, ExitControls, PrimaryProc, SecondaryProc};
use vmx::vmcs::LaunchState;

/// One vmcs12.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vmcs12 {
    /// Whether VMLAUNCH or VMRESUME is the right instruction.
    pub launch: LaunchState,
    fields: BTreeMap<Field, u64>,
}

impl Default for Vmcs12 {
    fn default() -> Self {
        Self { launch: LaunchState::Clear, fields: BTreeMap::new() }
    }
}

impl Vmcs12 {
    /// A field's value; one never written reads as zero.
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        self.fields.get(&field).copied().unwrap_or(0)
    }

    /// Writes a field; bits beyond its width are dropped.
    pub fn set(&mut self, field: Field, value: u64) {
        self.fields.insert(field, value & field.width().mask());
    }

    /// The primary processor-based controls.
    #[must_use]
    pub fn primary(&self) -> PrimaryProc {
        PrimaryProc::from_bits_retain(self.get(Field::PrimaryControls) as u32)
    }

    /// The secondary controls, none if they are not activated (`nested_cpu_has2`).
    #[must_use]
    pub fn secondary(&self) -> SecondaryProc {
        if self.primary().contains(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS) {
            SecondaryProc::from_bits_retain(self.get(Field::SecondaryControls) as u32)
        } else {
            SecondaryProc::empty()
        }
    }

    /// The VM-entry controls.
    #[must_use]
    pub fn entry(&self) -> EntryControls {
        EntryControls::from_bits_retain(self.get(Field::EntryControls) as u32)
    }

    /// The VM-exit controls.
    #[must_use]
    pub fn exit(&self) -> ExitControls {
        ExitControls::from_bits_retain(self.get(Field::ExitControls) as u32)
    }

    /// Whether L2 has EPT tables of L1's.
    #[must_use]
    pub fn has_ept(&self) -> bool {
        self.secondary().contains(SecondaryProc::ENABLE_EPT)
    }

    /// Whether L2 has a VPID of L1's.
    #[must_use]
    pub fn has_vpid(&self) -> bool {
        self.secondary().contains(SecondaryProc::ENABLE_VPID)
    }
}
