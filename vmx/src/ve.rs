//! Virtualization exceptions (SDM 3C 25.5.7): a convertible EPT violation becomes #VE in the guest, with its information in
//! a page that the hypervisor named.

use crate::controls::SecondaryProc;
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::unit::Vmx;
use crate::vmcs::{Field, Region};
use cpu::Core;
use cpu::virt::{StageFault, StageFaultKind};
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::{Ground, Hpa};

/// The doubleword that a handler clears when it has read the information.
const BUSY: u64 = 4;

impl Vmx {
    /// Whether an EPT violation becomes #VE instead of a VM-exit (SDM 3C 25.5.7.1).
    pub(crate) fn converts(&self, core: &Core, ground: &Ground, region: Region, fault: &StageFault) -> bool {
        let area = Hpa(region.get(ground, Field::VeInformationAddress));
        self.guest.secondary.contains(SecondaryProc::EPT_VIOLATION_VE)
            && matches!(fault.kind, StageFaultKind::EptViolation { .. })
            && fault.convertible
            && core.cr0.contains(Cr0::PE)
            && core.delivering.is_none()
            && ground.mem.read_u32(area.offset(BUSY)) == 0
    }

    /// Writes the information that the VM-exit would have given, and marks the area busy (SDM 3C table 25-1).
    pub(crate) fn convert(&self, ground: &mut Ground, region: Region, exit: &Exit) -> Exception {
        let area = Hpa(region.get(ground, Field::VeInformationAddress));
        let index = region.get(ground, Field::EptpIndex);
        ground.mem.write_u32(area, ExitReason::EptViolation.number().into());
        ground.mem.write_u32(area.offset(BUSY), u32::MAX);
        ground.mem.write_u64(area.offset(8), exit.qualification);
        ground.mem.write_u64(area.offset(16), exit.linear.map_or(0, |gva| gva.0));
        ground.mem.write_u64(area.offset(24), exit.guest_physical.map_or(0, |gpa| gpa.0));
        ground.mem.write(area.offset(32), index, 2);
        Exception::plain(Vector::Virtualization)
    }
}
