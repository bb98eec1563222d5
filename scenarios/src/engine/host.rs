//! Steps of the host that change registers, slots and pages ([`HostStep`]).

use super::Engine;
use crate::file::{Actor, HostStep, Observation, RegisterChange};
use mmu::state::Nesting;
use sim_core::SimError;
use sim_core::arch::control::{Cr0, Cr4, Efer};

impl Engine<'_> {
    pub(super) fn host(&mut self, vcpu: u8, step: &HostStep) -> Result<Observation, SimError> {
        match step {
            HostStep::SetRegisters(changes) => {
                self.set_registers(vcpu, changes)?;
                Ok(Observation::Ok)
            }
            HostStep::SetEfer(flags) => {
                let value = flags.apply(self.backend.sregs(vcpu)?.efer.bits());
                self.backend.set_efer(vcpu, value)?;
                Ok(Observation::Ok)
            }
            HostStep::SetCpuid(change) => {
                self.backend.set_cpuid(vcpu, change)?;
                Ok(Observation::Ok)
            }
            HostStep::SetSmm(smm) => {
                if self.backend.set_smm(vcpu, *smm)? == Nesting::L1 {
                    self.chairs[usize::from(vcpu)].level = Actor::L1;
                }
                Ok(Observation::Ok)
            }
            HostStep::GuestFlush => {
                if self.chairs[usize::from(vcpu)].level != Actor::L1 {
                    return Err(SimError::unmodelled("a flush that L1 asks for while its L2 runs"));
                }
                self.backend.guest_flush(vcpu)?;
                Ok(Observation::Ok)
            }
            HostStep::Smi => {
                self.backend.smi(vcpu)?;
                self.host_run(vcpu)
            }
            HostStep::InitVcpu => {
                self.backend.init(vcpu)?;
                self.host_run(vcpu)
            }
            HostStep::PauseAt { gfn, point } => {
                self.backend.pause_at(vcpu, *gfn, *point)?;
                self.chairs[usize::from(vcpu)].pauses = true;
                Ok(Observation::Ok)
            }
            HostStep::PreFault(gfn) => {
                self.backend.pre_fault(vcpu, *gfn)?;
                Ok(Observation::Ok)
            }
            other => self.backend.host(other),
        }
    }

    fn set_registers(&mut self, vcpu: u8, changes: &[RegisterChange]) -> Result<(), SimError> {
        use crate::file::ControlRegister as Register;
        let mut sregs = self.backend.sregs(vcpu)?;
        for change in changes {
            match change {
                RegisterChange::Cr3(space) => {
                    sregs.cr3 = self.image.roots.get(space).copied().unwrap_or(0);
                }
                RegisterChange::Flags(flags) => match flags.register {
                    Register::Cr0 => sregs.cr0 = Cr0::from_bits_retain(flags.apply(sregs.cr0.bits())),
                    Register::Cr4 => sregs.cr4 = Cr4::from_bits_retain(flags.apply(sregs.cr4.bits())),
                    Register::Efer => sregs.efer = Efer::from_bits_retain(flags.apply(sregs.efer.bits())),
                },
            }
        }
        // Userspace gives what a processor can have: LMA says that long mode is active.
        sregs.efer.set(Efer::LMA, sregs.efer.contains(Efer::LME) && sregs.cr0.contains(Cr0::PG));
        if !sregs.are_legal() {
            return Err(SimError::unmodelled("KVM_SET_SREGS of registers that no processor can have"));
        }
        self.backend.set_sregs(vcpu, &sregs)
    }
}
