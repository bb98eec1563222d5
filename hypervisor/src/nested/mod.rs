//! Nested virtualization: L0 emulates VMX or SVM for L1 and runs L2 on its behalf. The two vendors mirror each other;
//! what they share is [`transition`], the loading of a CR3 at either edge.

pub mod smm;
pub mod svm;
pub mod svm_owner;
pub mod svm_transition;
pub mod transition;
pub mod vmcs12;
pub mod vmx;
pub mod vmx_enter;
pub mod vmx_exit;
pub mod vmx_owner;

use crate::exits::Exit;
use crate::run::Run;
use crate::vcpu::VendorState;
use ::mmu::guest_walk::WalkFault;
use ::mmu::state::{NestedTdp, Nesting, RoleRegs};
use cpu::Gpr;
use cpu::virt::{ControlRegister, VirtInstruction};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::arch::exception::Exception;
use sim_core::event::Event;

/// Nested state as userspace saves it (`struct kvm_nested_state`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SavedNested {
    /// Intel: VMXON and current pointers, and every vmcs12.
    Vmx(Box<vmx::NestedVmx>),
    /// AMD: L1's state in vmcb01, and the controls of vmcb12.
    Svm(Box<svm::SavedSvm>),
}

/// What is restored, and onto what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Who ran when the state was saved.
    pub nesting: Nesting,
    /// Who ran on the vCPU until now.
    pub was: Nesting,
    /// The EPTP or nested CR3 that L1 had given L2.
    pub nested_pgd: u64,
}

impl Run<'_> {
    /// An instruction of the extension, executed by L1.
    ///
    /// # Errors
    /// If it needs something that is not modelled.
    pub fn nested_instruction(&mut self, instruction: &VirtInstruction) -> Result<(), SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.nested_vmx_instruction(instruction),
            VendorState::Svm(_) => self.nested_svm_instruction(instruction),
        }
    }

    /// A hypercall to L0 (`kvm_emulate_hypercall`): none is offered, and only the kernel may ask.
    pub(crate) fn hypercall(&mut self) {
        const KVM_EPERM: u64 = 1;
        const KVM_ENOSYS: u64 = 1000;
        let (segments, _, _) = self.guest_segments();
        let error = if segments.ss.rights.dpl() == 0 { KVM_ENOSYS } else { KVM_EPERM };
        let result = error.wrapping_neg();
        let wide = self.code_position().1 == 64;
        self.ground.record(Event::Handled { what: "hypercall", detail: format!("error {error}") });
        self.vcpu.gprs[Gpr::Rax as usize] = if wide { result } else { result & 0xffff_ffff };
        self.skip_instruction();
    }

    /// Whether an exit of L2 is L1's to handle.
    ///
    /// # Errors
    /// If that depends on something that is not modelled.
    pub fn l1_wants(&self, exit: &Exit) -> Result<bool, SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_l1_wants(exit),
            VendorState::Svm(_) => Ok(self.svm_l1_wants(exit)),
        }
    }

    /// Gives an exit of L2 to L1 as hardware reported it.
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn reflect_exit(&mut self, exit: &Exit) -> Result<(), SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_reflect(exit),
            VendorState::Svm(_) => self.svm_reflect(exit),
        }
    }

    /// Whether L1 intercepts an exception that L2 is about to get.
    #[must_use]
    pub fn l1_intercepts_exception(&self, exception: &Exception) -> bool {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_l1_intercepts(exception),
            VendorState::Svm(_) => self.svm_l1_intercepts(exception),
        }
    }

    /// Gives L1 an exit for an exception of L2.
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn nested_exception_exit(&mut self, exception: &Exception) -> Result<(), SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_exception_exit(exception),
            VendorState::Svm(_) => self.svm_exception_exit(exception),
        }
    }

    /// Gives L1 an exit for a triple fault of L2.
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn nested_triple_fault(&mut self) -> Result<(), SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_triple_fault(),
            VendorState::Svm(_) => self.svm_triple_fault(),
        }
    }

    /// Gives L1 an exit for a fault of its own nested tables.
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn reflect_stage_fault(&mut self, address: u64, fault: WalkFault) -> Result<(), SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_stage_exit(address, fault),
            VendorState::Svm(_) => self.svm_stage_exit(address, fault),
        }
    }

    /// The value that MOV to a control register gives L2, whose L1 may own some of its bits.
    #[must_use]
    pub fn l2_cr_value(&self, register: ControlRegister, operand: u64) -> u64 {
        match self.vcpu.vendor {
            VendorState::Vmx(_) if self.vcpu.nesting == Nesting::L2 => self.vmx_l2_cr_value(register, operand),
            VendorState::Vmx(_) | VendorState::Svm(_) => operand,
        }
    }

    /// Whether the guest is in VMX operation, where CR4.VMXE must stay 1.
    #[must_use]
    pub fn vmx_is_on(&self) -> bool {
        match &self.vcpu.vendor {
            VendorState::Vmx(state) => state.nested.is_on(),
            VendorState::Svm(_) => false,
        }
    }

    /// The registers that nested paging takes from L1 (`vmcb01`), while `guest_mmu` shadows nested NPT tables.
    #[must_use]
    pub fn nested_paging_regs(&self) -> Option<RoleRegs> {
        match (&self.vcpu.vendor, self.vcpu.mmu.nested_tdp) {
            (VendorState::Svm(_), NestedTdp::Active) => Some(self.svm_l1_regs()),
            _ => None,
        }
    }

    /// Forces the vCPU out of L2 without telling L1 (`kvm_leave_nested`).
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn leave_nested(&mut self) -> Result<(), SimError> {
        if self.vcpu.nesting == Nesting::L1 {
            return Ok(());
        }
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_leave_nested(),
            VendorState::Svm(_) => {
                self.svm_leave_nested();
                Ok(())
            }
        }
    }

    /// `KVM_GET_NESTED_STATE`.
    ///
    /// # Errors
    /// If hardware refuses the shadow VMCS.
    pub fn save_nested(&mut self) -> Result<SavedNested, SimError> {
        Ok(match self.vcpu.vendor {
            VendorState::Vmx(_) => SavedNested::Vmx(Box::new(self.vmx_save_nested()?)),
            VendorState::Svm(_) => SavedNested::Svm(Box::new(self.svm_save_nested())),
        })
    }

    /// `KVM_SET_NESTED_STATE`, after [`Run::leave_nested`].
    ///
    /// # Errors
    /// If the state is the other vendor's, or can't be entered.
    pub fn restore_nested(&mut self, saved: &SavedNested, how: Restored) -> Result<(), SimError> {
        self.vcpu.nested_pgd = how.nested_pgd;
        match saved {
            SavedNested::Vmx(saved) => self.vmx_restore_nested(saved, how.nesting),
            SavedNested::Svm(saved) => self.svm_restore_nested(saved, how),
        }
    }
}
