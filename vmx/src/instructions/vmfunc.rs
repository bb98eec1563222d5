//! VMFUNC and its one function, EPTP switching (SDM 3C 25.5.6, 30.3 VMFUNC).

use super::is_eptp;
use crate::controls::SecondaryProc;
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::unit::Vmx;
use crate::vmcs::{Field, Region};
use cpu::virt::{At, Movement, VirtDone};
use cpu::{Core, Fault, Gpr};
use sim_core::arch::exception::Exception;
use sim_core::{Ground, Hpa};

/// Entries of the EPTP list.
const LIST_ENTRIES: u64 = 512;

impl Vmx {
    /// VMFUNC: #UD outside a guest that has VM functions, a VM-exit for a function that is not enabled or fails.
    pub(super) fn vmfunc(&mut self, core: &mut Core, ground: &mut Ground, at: At) -> Result<VirtDone, Fault> {
        let function = core.gpr(Gpr::Rax) & 0xffff_ffff;
        let region = self
            .guest_region()
            .filter(|_| self.guest.secondary.contains(SecondaryProc::ENABLE_VM_FUNCTIONS) && function < 64);
        let Some(region) = region else { return Err(Exception::ud().into()) };
        let is_enabled = region.get(ground, Field::VmFunctionControls) >> function & 1 != 0;
        if is_enabled && function == 0 && self.switch_eptp(core, ground, region) {
            return Ok(VirtDone::Next);
        }
        self.leave(core, ground, Exit::instruction(ExitReason::Vmfunc, at.length))?;
        Ok(VirtDone::Moved(Movement::Exited))
    }

    /// EPTP switching: ECX selects an entry of the EPTP list. Nothing is invalidated: the EPT root is a tag.
    fn switch_eptp(&mut self, core: &Core, ground: &mut Ground, region: Region) -> bool {
        let index = core.gpr(Gpr::Rcx) & 0xffff_ffff;
        if index >= LIST_ENTRIES {
            return false;
        }
        let list = Hpa(region.get(ground, Field::EptpListAddress));
        let eptp = ground.mem.read_u64(list.offset(8 * index));
        if !is_eptp(&self.capabilities, core.maxphyaddr, eptp) {
            return false;
        }
        region.set(ground, Field::EptPointer, eptp);
        if self.guest.secondary.contains(SecondaryProc::EPT_VIOLATION_VE) {
            region.set(ground, Field::EptpIndex, index);
        }
        self.guest.switch_eptp(eptp);
        true
    }
}
