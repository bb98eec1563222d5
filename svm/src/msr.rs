//! The MSRs of SVM: VM_CR and VM_HSAVE_PA (APM2 15.30.1, 15.30.4). EFER.SVME belongs to the CPU.
//!
//! Left out: VM_CR's R_INIT, DIS_A20M and DPD hold their value and do nothing; SVM_KEY and SMM_CTL are absent.

use crate::unit::Svm;
use crate::vmcb;
use bitflags::bitflags;
use cpu::Core;
use serde::{Deserialize, Serialize};
use sim_core::Hpa;
use sim_core::arch::control::Efer;
use sim_core::arch::exception::Exception;
use sim_core::arch::msr;

bitflags! {
    /// VM_CR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub(crate) struct VmCr: u64 {
        /// Disable the external debug port.
        const DPD = 1 << 0;
        /// Intercept INIT.
        const R_INIT = 1 << 1;
        /// Disable A20 masking.
        const DIS_A20M = 1 << 2;
        /// LOCK and SVMDIS are read-only.
        const LOCK = 1 << 3;
        /// EFER.SVME can't be set.
        const SVMDIS = 1 << 4;
    }
}

impl Svm {
    pub(crate) const fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            msr::VM_CR => Some(self.vm_cr.bits()),
            msr::VM_HSAVE_PA => Some(self.hsave.0),
            _ => None,
        }
    }

    pub(crate) fn write_msr(&mut self, core: &Core, index: u32, value: u64) -> Option<Result<(), Exception>> {
        match index {
            msr::VM_CR => Some(self.write_vm_cr(core, value)),
            msr::VM_HSAVE_PA if vmcb::is_valid_address(value, core.maxphyaddr) => {
                self.hsave = Hpa(value);
                Some(Ok(()))
            }
            msr::VM_HSAVE_PA => Some(Err(Exception::gp0())),
            _ => None,
        }
    }

    /// APM2 15.30.1: reserved bits fault, a set LOCK keeps LOCK and SVMDIS, and SVMDIS can't be set under
    /// EFER.SVME = 1.
    fn write_vm_cr(&mut self, core: &Core, value: u64) -> Result<(), Exception> {
        let mut new = VmCr::from_bits(value).ok_or_else(Exception::gp0)?;
        if self.vm_cr.contains(VmCr::LOCK) {
            let kept = VmCr::LOCK | VmCr::SVMDIS;
            new = (new - kept) | (self.vm_cr & kept);
        }
        let disables = new.contains(VmCr::SVMDIS) && !self.vm_cr.contains(VmCr::SVMDIS);
        if disables && core.efer.contains(Efer::SVME) {
            return Err(Exception::gp0());
        }
        self.vm_cr = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn hsave_must_be_a_page() {
        let (core, _) = testing::machine();
        let mut svm = testing::unit();
        for (value, ok) in [(0x5000, true), (0x5008, false), (1 << core.maxphyaddr, false), (0, true)] {
            assert_eq!(svm.write_msr(&core, msr::VM_HSAVE_PA, value), Some(ok.then_some(()).ok_or(Exception::gp0())));
        }
        assert_eq!(svm.read_msr(msr::VM_HSAVE_PA), Some(0));
    }

    /// Every pair of old and new value of the five bits, with EFER.SVME on and off.
    #[test]
    fn vm_cr_transitions() {
        let (mut core, _) = testing::machine();
        for svme in [true, false] {
            core.efer.set(Efer::SVME, svme);
            for (old, new) in (0..32_u64).flat_map(|old| (0..32_u64).map(move |new| (old, new))) {
                let mut svm = Svm { vm_cr: VmCr::from_bits_retain(old), ..testing::unit() };
                let locked = old & 8 != 0;
                let expected = if locked { (new & 7) | (old & 0x18) } else { new };
                let refused = svme && expected & 0x10 != 0 && old & 0x10 == 0;
                let result = svm.write_msr(&core, msr::VM_CR, new);
                assert_eq!(result, Some(if refused { Err(Exception::gp0()) } else { Ok(()) }), "{old:#x} {new:#x}");
                assert_eq!(svm.read_msr(msr::VM_CR), Some(if refused { old } else { expected }));
            }
        }
        assert_eq!(testing::unit().write_msr(&core, msr::VM_CR, 1 << 5), Some(Err(Exception::gp0())));
        println!("2048 transitions of VM_CR");
    }
}
