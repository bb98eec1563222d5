//! INIT and start-up IPIs on a real KVM (lapic.c `__apic_accept_irq`, `kvm_apic_accept_events`): they come through the kernel's own
//! local APICs, which a VM has only where the scenario asks for them (KVM_CAP_SPLIT_IRQCHIP), and are sent as messages by userspace
//! (KVM_SIGNAL_MSI), so that no guest code is needed. Both wait until the vCPU runs next.
//!
//! With a local APIC a halted vCPU waits inside the kernel, where nobody wakes it; no step of a scenario halts.

use super::Kvm;
use super::raw::failed;
use crate::image::layout;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MP_STATE_RUNNABLE, kvm_enable_cap, kvm_mp_state, kvm_msi};
use kvm_ioctls::{VcpuFd, VmFd};
use sim_core::SimError;

/// Where messages to local APICs go; bits 19:12 are the identifier of one (SDM 3A 11.11.1).
const MESSAGES: u32 = 0xfee0_0000;
/// Delivery modes (SDM 3A 11.11.2), with the level bit set as for an assertion.
const INIT: u32 = 5 << 8 | 1 << 14;
const START_UP: u32 = 6 << 8 | 1 << 14;

/// Who sends INITs to a run's vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apics {
    /// Nobody: the vCPUs have no local APICs.
    None,
    /// Userspace, through the kernel's local APICs.
    Kernel,
}

impl Apics {
    /// Gives a VM what it needs before it has vCPUs.
    pub(super) fn prepare(self, vm: &VmFd) -> Result<(), SimError> {
        match self {
            Self::None => Ok(()),
            Self::Kernel => {
                let cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
                vm.enable_cap(&cap).map_err(|error| failed("KVM_CAP_SPLIT_IRQCHIP", &error))
            }
        }
    }

    /// The kernel's number of a vCPU. Number 0 is the bootstrap processor's, which would go on at the reset vector.
    pub(super) const fn number(self, vcpu: u8) -> u8 {
        match self {
            Self::None => vcpu,
            Self::Kernel => vcpu + 1,
        }
    }

    /// Lets a new vCPU run: with a local APIC it would wait to be started. Its APIC is set to what it is, which puts it on the map by
    /// which the kernel finds the receivers of messages: as the vCPU is made, that is drawn without it.
    pub(super) fn start(self, fd: &VcpuFd) -> Result<(), SimError> {
        if self == Self::None {
            return Ok(());
        }
        let apic = fd.get_lapic().map_err(|error| failed("KVM_GET_LAPIC", &error))?;
        fd.set_lapic(&apic).map_err(|error| failed("KVM_SET_LAPIC", &error))?;
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        fd.set_mp_state(runnable).map_err(|error| failed("KVM_SET_MP_STATE", &error))
    }
}

impl Kvm {
    /// Sends a vCPU an INIT, and a start-up IPI that is lost unless it waits for one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn init(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.call("INIT, SIPI");
        let address_lo = MESSAGES | u32::from(self.apics.number(vcpu)) << 12;
        for data in [INIT, START_UP | u32::from(layout::start_up_vector(vcpu))] {
            let message = kvm_msi { address_lo, data, ..kvm_msi::default() };
            let taken_by = self.vm.signal_msi(message).map_err(|error| failed("KVM_SIGNAL_MSI", &error))?;
            if taken_by == 0 {
                return Err(SimError::unmodelled("an INIT that no local APIC takes on this KVM"));
            }
        }
        Ok(())
    }
}
