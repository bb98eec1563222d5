//! The CPU's hook, answered by VMX.

use crate::intercept::VIRTUAL_TPR;
use crate::unit::{Operation, Vmx};
use crate::vmcs::{Field, Region};
use cpu::virt::{At, ControlRegister, HeldEvents, Regime, Trap, Verdict, Virt, VirtDone, VirtInstruction};
use cpu::{Core, Fault};
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::Exception;
use sim_core::arch::msr;
use sim_core::{Ground, Hpa, SimError};

/// IA32_FEATURE_CONTROL as firmware leaves it: locked, VMX enabled outside SMX (SDM 3C 23.7).
const FEATURE_CONTROL: u64 = 0b101;

impl Virt for Vmx {
    fn regime(&self, _core: &Core) -> Regime {
        self.guest.regime
    }

    fn trap(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError> {
        self.take(core, ground, trap, at)
    }

    fn instruction(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        self.execute(core, ground, instruction, at)
    }

    fn cr_read(&self, ground: &Ground, register: ControlRegister, actual: u64) -> u64 {
        if register == ControlRegister::Cr8 {
            let shadow = self.virtual_apic(ground).map(|page| ground.mem.read(page.offset(VIRTUAL_TPR), 1) >> 4);
            return shadow.unwrap_or(actual);
        }
        match self.mask_and_shadow(ground, register) {
            None => actual,
            Some((mask, shadow)) => actual & !mask | shadow & mask,
        }
    }

    /// With the TPR shadow MOV to CR8 has written the virtual TPR already, and the processor's own does not change.
    fn cr_write(&self, ground: &Ground, register: ControlRegister, current: u64, operand: u64) -> u64 {
        if register == ControlRegister::Cr8 && self.virtual_apic(ground).is_some() {
            return current;
        }
        match self.mask_and_shadow(ground, register) {
            None => operand,
            Some((mask, _)) => operand & !mask | current & mask,
        }
    }

    fn attention(&self, core: &Core) -> bool {
        self.attends(core)
    }

    fn held(&self, _core: &Core) -> HeldEvents {
        self.holds()
    }

    fn tsc(&self, ground: &Ground, now: u64) -> u64 {
        self.guest_tsc(ground, now)
    }

    fn cr_fixed(&self, register: ControlRegister) -> (u64, u64) {
        let (must, may) = match (self.operation, register) {
            (Operation::Off, _) => return (0, 0),
            (_, ControlRegister::Cr0) => self.capabilities.cr0_fixed,
            (_, ControlRegister::Cr4) => self.capabilities.cr4_fixed,
            _ => return (0, 0),
        };
        let relaxed = match register {
            ControlRegister::Cr0 if self.guest.is_unrestricted() => Cr0::PE.union(Cr0::PG).bits(),
            _ => 0,
        };
        (must & !relaxed, !may)
    }

    fn rdmsr(&self, _core: &Core, index: u32) -> Option<Result<u64, Exception>> {
        match index {
            msr::FEATURE_CONTROL => Some(Ok(FEATURE_CONTROL)),
            0x480..=0x491 => Some(self.capabilities.msr(index).ok_or(Exception::gp0())),
            _ => None,
        }
    }

    fn wrmsr(&mut self, _core: &mut Core, index: u32, _value: u64) -> Option<Result<(), Exception>> {
        match index {
            msr::FEATURE_CONTROL | 0x480..=0x491 => Some(Err(Exception::gp0())),
            _ => None,
        }
    }
}

impl Vmx {
    /// The guest/host mask and read shadow of CR0 or CR4 while a guest runs (SDM 3C 24.6.6).
    pub(crate) fn mask_and_shadow(&self, ground: &Ground, register: ControlRegister) -> Option<(u64, u64)> {
        let (mask, shadow) = match register {
            ControlRegister::Cr0 => (Field::Cr0GuestHostMask, Field::Cr0ReadShadow),
            ControlRegister::Cr4 => (Field::Cr4GuestHostMask, Field::Cr4ReadShadow),
            _ => return None,
        };
        let region = self.guest_region()?;
        Some((region.get(ground, mask), region.get(ground, shadow)))
    }

    /// The VMCS of the running guest.
    pub(crate) fn guest_region(&self) -> Option<Region> {
        let current: Option<Hpa> = self.current.filter(|_| self.operation == Operation::NonRoot);
        current.map(Region)
    }
}
