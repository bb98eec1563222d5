//! The MSRs of SVM: VM_CR, VM_HSAVE_PA, SVM_KEY and TSC_RATIO (APM2 15.30, 15.31). EFER.SVME belongs to the CPU, which
//! asks VM_CR for SVMDIS.
//!
//! Left out: VM_CR's DIS_A20M and DPD hold their value and do nothing; IGNNE, SMM_CTL and the AVIC doorbell are absent,
//! so that an access to them is #GP(0).

use crate::capability::Features;
use crate::unit::Svm;
use crate::vmcb;
use bitflags::bitflags;
use cpu::Core;
use serde::{Deserialize, Serialize};
use sim_core::Hpa;
use sim_core::arch::control::Efer;
use sim_core::arch::exception::Exception;
use sim_core::arch::msr;

/// TSC_RATIO (APM2 15.30.5).
pub(crate) const TSC_RATIO: u32 = 0xc000_0104;
/// SVM_KEY (APM2 15.31).
pub(crate) const SVM_KEY: u32 = 0xc001_0118;
/// A ratio of 1, in TSC_RATIO's 8.32 fixed point.
pub(crate) const TSC_RATIO_ONE: u64 = 1 << 32;
/// Bits of TSC_RATIO that exist.
const TSC_RATIO_MASK: u64 = (1 << 40) - 1;

bitflags! {
    /// VM_CR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub(crate) struct VmCr: u64 {
        /// Disable the external debug port.
        const DPD = 1 << 0;
        /// INIT becomes #SX.
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
            // The key can't be read back (APM2 15.31).
            SVM_KEY if self.capabilities.has(Features::SVM_LOCK) => Some(0),
            TSC_RATIO if self.capabilities.has(Features::TSC_RATIO) => Some(self.tsc_ratio),
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
            SVM_KEY if self.capabilities.has(Features::SVM_LOCK) => {
                self.write_key(value);
                Some(Ok(()))
            }
            TSC_RATIO if self.capabilities.has(Features::TSC_RATIO) => Some(self.write_tsc_ratio(value)),
            _ => None,
        }
    }

    /// APM2 15.31: without LOCK the key is set; with it, writing the key again clears LOCK. A key of zero opens
    /// nothing.
    const fn write_key(&mut self, value: u64) {
        if !self.vm_cr.contains(VmCr::LOCK) {
            self.key = value;
        } else if value != 0 && value == self.key {
            self.vm_cr = self.vm_cr.difference(VmCr::LOCK);
        }
    }

    fn write_tsc_ratio(&mut self, value: u64) -> Result<(), Exception> {
        if value & !TSC_RATIO_MASK != 0 {
            return Err(Exception::gp0());
        }
        self.tsc_ratio = value;
        Ok(())
    }

    /// What the time-stamp counter shows to whoever runs: guests see it scaled, then offset (APM2 15.30.5).
    pub(crate) fn scaled_tsc(&self, now: u64) -> u64 {
        self.running.as_ref().map_or(now, |running| {
            let product = u128::from(now) * u128::from(self.tsc_ratio);
            ((product >> 32) as u64).wrapping_add(running.controls.tsc_offset)
        })
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

    /// APM2 15.31: the key locks and unlocks; zero is no key, and the key can't be read.
    #[test]
    fn the_key_unlocks() {
        let (core, _) = testing::machine();
        for (key, tried, unlocks) in [(5, 5, true), (5, 6, false), (0, 0, false), (u64::MAX, u64::MAX, true)] {
            let mut svm = testing::unit();
            let mut write = |index, value| assert_eq!(svm.write_msr(&core, index, value), Some(Ok(())));
            write(SVM_KEY, key);
            write(msr::VM_CR, VmCr::LOCK.bits());
            write(SVM_KEY, tried);
            assert_eq!(svm.read_msr(SVM_KEY), Some(0));
            let lock = if unlocks { 0 } else { VmCr::LOCK.bits() };
            assert_eq!(svm.read_msr(msr::VM_CR), Some(lock), "key {key:#x}, tried {tried:#x}");
        }
    }

    /// APM2 15.30.5: bits 63:40 are reserved; MSRs of features that the processor lacks are not there.
    #[test]
    fn ratio_and_capabilities() {
        let (core, _) = testing::machine();
        let mut svm = testing::unit();
        assert_eq!(svm.read_msr(TSC_RATIO), Some(TSC_RATIO_ONE));
        for bit in 0..64 {
            let result = svm.write_msr(&core, TSC_RATIO, 1 << bit);
            assert_eq!(result, Some(if bit < 40 { Ok(()) } else { Err(Exception::gp0()) }), "bit {bit}");
        }
        svm.capabilities.features = Features::empty();
        for index in [TSC_RATIO, SVM_KEY] {
            assert_eq!((svm.read_msr(index), svm.write_msr(&core, index, 0)), (None, None));
        }
    }
}
