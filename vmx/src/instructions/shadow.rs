//! VMCS shadowing (SDM 3C 24.6.15, 25.1.3, 30.3 VMREAD): a guest reads and writes fields of the VMCS that the link pointer
//! names, where the bitmaps let it.

use crate::checks::NO_LINK;
use crate::controls::SecondaryProc;
use crate::unit::{Operation, Vmx};
use crate::vmcs::{Field, Region};
use cpu::virt::VirtInstruction;
use sim_core::{Ground, Hpa};

impl Vmx {
    /// Whether the guest's VMREAD or VMWRITE stays inside; every other VMX instruction leaves it.
    pub(super) fn is_shadowed(&self, ground: &Ground, instruction: &VirtInstruction) -> bool {
        let (encoding, bitmap) = match *instruction {
            VirtInstruction::Vmread { field, .. } => (field, Field::VmreadBitmap),
            VirtInstruction::Vmwrite { field, .. } => (field, Field::VmwriteBitmap),
            _ => return false,
        };
        let Some(region) = self.guest_region() else { return false };
        self.guest.secondary.contains(SecondaryProc::VMCS_SHADOWING) && encoding >> 15 == 0 && {
            let byte = Hpa(region.get(ground, bitmap)).offset(encoding / 8);
            ground.mem.read(byte, 1) >> (encoding % 8) & 1 == 0
        }
    }

    /// The VMCS that VMREAD and VMWRITE access: the current one, or in a guest the one that the link pointer names.
    pub(super) fn accessed(&self, ground: &Ground) -> Option<Region> {
        match self.operation {
            Operation::NonRoot => {
                let link = Hpa(self.guest_region()?.get(ground, Field::VmcsLinkPointer));
                (link != NO_LINK).then_some(Region(link))
            }
            Operation::Root | Operation::Off => self.current.map(Region),
        }
    }
}
