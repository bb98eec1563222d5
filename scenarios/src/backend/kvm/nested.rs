//! Nested guests on a real KVM: what L1's firmware and kernel did long before a scenario begins, and nested state as userspace
//! saves and restores it (`KVM_GET_NESTED_STATE`, Documentation/virt/kvm/api.rst 4.114).

use super::raw::failed;
use super::{Kvm, Seat};
use crate::file::Vendor;
use crate::image::layout;
use hypervisor::Sregs;
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{KVM_STATE_NESTED_GUEST_MODE, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use mmu::state::Nesting;
use sim_core::SimError;
use std::fmt;

/// IA32_FEATURE_CONTROL: locked, with VMXON allowed outside SMX (SDM 3C 23.7).
const FEATURE_CONTROL: (u32, u64) = (0x3a, 1 | 1 << 2);
/// IA32_VMX_BASIC, whose bits 30:0 are the VMCS revision identifier (SDM 3D A.1).
const VMX_BASIC: u32 = 0x480;
/// VM_HSAVE_PA (APM2 15.30.4).
const HSAVE: u32 = 0xc001_0117;
/// The MSR by which userspace sets SMBASE (KVM `MSR_IA32_SMBASE`).
const SMBASE: u32 = 0x9e;

/// A vCPU as userspace saved it.
#[derive(Clone)]
pub struct Saved {
    sregs: Sregs,
    nested: KvmNestedStateBuffer,
}

impl fmt::Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saved").field("sregs", &self.sregs).field("flags", &self.nested.flags).finish_non_exhaustive()
    }
}

impl Saved {
    /// Its registers.
    #[must_use]
    pub const fn sregs(&self) -> &Sregs {
        &self.sregs
    }

    /// Whether L1 or L2 ran when it was saved.
    #[must_use]
    pub const fn nesting(&self) -> Nesting {
        if self.nested.flags & KVM_STATE_NESTED_GUEST_MODE as u16 == 0 { Nesting::L1 } else { Nesting::L2 }
    }
}

fn set_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<(), SimError> {
    let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|error| failed("KVM_SET_MSRS", &format!("{error:?}")))?;
    match fd.set_msrs(&msrs).map_err(|error| failed("KVM_SET_MSRS", &error))? {
        1 => Ok(()),
        _ => Err(SimError::unmodelled(format!("KVM_SET_MSRS of MSR {index:#x}, which this KVM refuses"))),
    }
}

/// Lets L1 use its extension.
pub(super) fn permit(fd: &VcpuFd, vendor: Vendor, vcpu: u8) -> Result<(), SimError> {
    match vendor {
        Vendor::Intel => set_msr(fd, FEATURE_CONTROL.0, FEATURE_CONTROL.1),
        Vendor::Amd => set_msr(fd, HSAVE, layout::host_save(vcpu).0),
    }
}

/// Says where a vCPU's SMM code is.
pub(super) fn place_smm(fd: &VcpuFd, vcpu: u8) -> Result<(), SimError> {
    set_msr(fd, SMBASE, layout::smbase(vcpu))
}

impl Seat {
    fn nested_state(&self) -> Result<KvmNestedStateBuffer, SimError> {
        let mut state = KvmNestedStateBuffer::empty();
        self.fd.nested_state(&mut state).map_err(|error| failed("KVM_GET_NESTED_STATE", &error))?;
        Ok(state)
    }

    fn set_nested_state(&self, state: &KvmNestedStateBuffer) -> Result<(), SimError> {
        self.fd.set_nested_state(state).map_err(|error| failed("KVM_SET_NESTED_STATE", &error))
    }
}

impl Kvm {
    /// The revision identifier that L1 gives its VMCSs.
    ///
    /// # Errors
    /// If guests have no VMX.
    pub fn vmcs_revision(&self) -> Result<u32, SimError> {
        let entry = kvm_msr_entry { index: VMX_BASIC, ..kvm_msr_entry::default() };
        let mut msrs = Msrs::from_entries(&[entry]).map_err(|error| failed("KVM_GET_MSRS", &format!("{error:?}")))?;
        match self.seat(0)?.fd.get_msrs(&mut msrs).map_err(|error| failed("KVM_GET_MSRS", &error))? {
            1 => Ok(msrs.as_slice().first().map_or(0, |entry| entry.data as u32 & 0x7fff_ffff)),
            _ => Err(SimError::unmodelled("VMX for guests on this KVM")),
        }
    }

    /// Saves registers and nested state.
    ///
    /// # Errors
    /// If there is no such vCPU, or this KVM has no nested state.
    pub fn save(&mut self, vcpu: u8) -> Result<Saved, SimError> {
        self.call("get sregs and nested state");
        Ok(Saved { sregs: self.sregs(vcpu)?, nested: self.seat(vcpu)?.nested_state()? })
    }

    /// Sets saved nested state.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn set_nested_state(&mut self, vcpu: u8, saved: &Saved) -> Result<(), SimError> {
        self.call("set nested state");
        self.seat(vcpu)?.set_nested_state(&saved.nested)?;
        self.look_inside();
        Ok(())
    }

    /// Forces a vCPU out of L2: its own nested state is set, but for the mode.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn leave_nested(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.call("leave nested");
        let mut state = self.seat(vcpu)?.nested_state()?;
        state.flags &= !(KVM_STATE_NESTED_GUEST_MODE as u16);
        self.seat(vcpu)?.set_nested_state(&state)?;
        self.look_inside();
        Ok(())
    }
}
