//! A VMCS region (SDM 3C 24.2): 4 KiB of memory whose first two doublewords are architectural and whose rest belongs
//! to the processor. This processor keeps everything in the region itself, in a layout of its own: launch state at +8,
//! then 8 bytes a field in the order of the table. So a cloned or checkpointed memory carries its VMCSs along.
//!
//! Software must not rely on the layout: it uses VMREAD and VMWRITE.

use crate::vmcs::field::Field;
use serde::{Deserialize, Serialize};
use sim_core::{Ground, Hpa};

/// Bytes before the first field.
const HEADER_BYTES: u64 = 16;
/// Where the VMX-abort indicator is (SDM 3C 24.2).
const ABORT: u64 = 4;
/// Where the launch state is.
const LAUNCH_STATE: u64 = 8;

impl Field {
    /// Where this processor keeps the field in a region, in bytes from its start.
    #[must_use]
    pub const fn region_offset(self) -> u64 {
        HEADER_BYTES + 8 * self.position() as u64
    }
}

/// The launch state of a VMCS (SDM 3C 24.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LaunchState {
    /// VMLAUNCH may be used.
    Clear,
    /// VMRESUME may be used.
    Launched,
}

/// A VMCS region at a host-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region(pub Hpa);

/// How many fields there are.
const FIELDS: usize = Field::ALL.len();

/// The values of every field, read at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields([u64; FIELDS]);

impl Fields {
    /// One field's value.
    pub(crate) fn get(&self, field: Field) -> u64 {
        self.0[field.position()] & field.width().mask()
    }
}

impl Region {
    /// Where the field is.
    pub(crate) fn slot(self, field: Field) -> Hpa {
        self.0.offset(field.region_offset())
    }

    /// One field's value.
    #[must_use]
    pub fn get(self, ground: &Ground, field: Field) -> u64 {
        ground.mem.read_u64(self.slot(field)) & field.width().mask()
    }

    /// Writes one field; bits beyond its width are dropped.
    pub fn set(self, ground: &mut Ground, field: Field, value: u64) {
        ground.mem.write_u64(self.slot(field), value & field.width().mask());
    }

    /// The launch state.
    #[must_use]
    pub fn launch_state(self, ground: &Ground) -> LaunchState {
        match ground.mem.read_u32(self.0.offset(LAUNCH_STATE)) {
            0 => LaunchState::Clear,
            _ => LaunchState::Launched,
        }
    }

    /// Sets the launch state.
    pub fn set_launch_state(self, ground: &mut Ground, state: LaunchState) {
        ground.mem.write_u32(self.0.offset(LAUNCH_STATE), u32::from(state == LaunchState::Launched));
    }

    /// The VMX-abort indicator.
    #[must_use]
    pub fn abort(self, ground: &Ground) -> u32 {
        ground.mem.read_u32(self.0.offset(ABORT))
    }

    /// Writes the VMX-abort indicator.
    pub(crate) fn set_abort(self, ground: &mut Ground, indicator: u32) {
        ground.mem.write_u32(self.0.offset(ABORT), indicator);
    }

    /// Every field at once.
    pub(crate) fn all(self, ground: &Ground) -> Fields {
        let mut bytes = [0; 8 * FIELDS];
        ground.mem.read_bytes(self.0.offset(HEADER_BYTES), &mut bytes);
        let mut values = [0; FIELDS];
        for (value, raw) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *value = u64::from_le_bytes(*raw);
        }
        Fields(values)
    }

    /// Whether the region is a shadow VMCS: bit 31 of the first doubleword (SDM 3C 24.10).
    #[must_use]
    pub fn is_shadow(self, ground: &Ground) -> bool {
        self.revision_word(ground) >> 31 != 0
    }

    /// The first doubleword: revision identifier in 30:0, shadow-VMCS indicator in 31 (SDM 3C 24.2).
    #[must_use]
    pub fn revision_word(self, ground: &Ground) -> u32 {
        ground.mem.read_u32(self.0)
    }

    /// Whether `address` can be a VMXON or VMCS pointer: 4 KiB aligned and within the physical-address width (SDM 3C
    /// 24.2, 24.11.5).
    #[must_use]
    pub const fn is_pointer(address: u64, maxphyaddr: u32) -> bool {
        address & 0xfff == 0 && address >> maxphyaddr == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_own_slot_within_the_region() {
        let region = Region(Hpa(0x1000));
        let mut ground = Ground::new(4);
        for (number, field) in Field::ALL.iter().enumerate() {
            region.set(&mut ground, *field, 0x5a00_0000_0000_0000 | number as u64);
            assert!(region.slot(*field).0 + 8 <= 0x2000);
        }
        for (number, field) in Field::ALL.iter().enumerate() {
            let written = 0x5a00_0000_0000_0000 | number as u64;
            assert_eq!(region.get(&ground, *field), written & field.width().mask(), "{}", field.name());
        }
        assert_eq!(region.revision_word(&ground), 0);
        assert_eq!(region.launch_state(&ground), LaunchState::Clear);
        println!("{} fields, {} of 4096 bytes", Field::ALL.len(), HEADER_BYTES + 8 * Field::ALL.len() as u64);
    }
}
