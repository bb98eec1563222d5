//! SMIs, RSM and INIT where L1 uses the extension (`vmx_enter_smm`, `svm_enter_smm` and their counterparts, v5.17).
//!
//! On VMX an SMI takes L2 out by a VM-exit that L1 never hears of, and RSM enters it again, as restored state is: KVM
//! itself notes that this is not what hardware does. On SVM the exit is one that L1's VMCB shows (SVM_EXIT_SW), the save
//! state names the VMCB, and L1's own registers wait in its host save area, because vmcb01 runs the SMM code.

use super::svm::Loaded;
use super::vmx_enter::From;
use crate::run::Run;
use crate::vcpu::{NestedRun, VendorState};
use cpu::smm::SaveState;
use mmu::Change;
use mmu::plant::Plant;
use mmu::state::Nesting;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{Gpa, Hpa};
use sim_core::arch::control::Efer;
use sim_core::event::NestedEdge;
use svm::vmcb::{self, Field};
use svm::{Gif, Intercepts};

/// What VMX operation was when an SMI came (`nested.smm`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interrupted {
    /// Whether L2 ran.
    pub nesting: Nesting,
    /// L1's VMXON region.
    pub vmxon: Option<Gpa>,
}

/// What an INIT does to a vCPU that runs L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitOfL2 {
    /// L1 is told by an exit.
    IsAnExit,
    /// L1 does not intercept it, and it resets the vCPU.
    ResetsL1,
}

/// Why RSM can't go on with what an SMI interrupted: a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotResumed;

/// Registers of vmcb01 that go to the host save area (`svm_copy_vmrun_state`), beside segments and tables.
const VMRUN_FIELDS: [Field; 9] =
    [Field::Rflags, Field::Efer, Field::Cr0, Field::Cr3, Field::Cr4, Field::Rax, Field::Rsp, Field::Rip, Field::Cpl];

impl Run<'_> {
    /// `kvm_x86_enter_smm`: L1's side of the extension, once the state is saved.
    pub(crate) fn suspend_guest(&mut self, state: &mut SaveState) -> Result<(), SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_enter_smm(),
            VendorState::Svm(_) => self.svm_enter_smm(state),
        }
    }

    /// `kvm_x86_leave_smm`: the same before the state is loaded.
    pub(crate) fn resume_guest(&mut self, state: &SaveState) -> Result<Result<(), NotResumed>, SimError> {
        match self.vcpu.vendor {
            _ if self.vm.plants.has(Plant::RsmForgetsL2) => Ok(Ok(())),
            VendorState::Vmx(_) => self.vmx_leave_smm(),
            VendorState::Svm(_) => self.svm_leave_smm(state),
        }
    }

    fn vmx_enter_smm(&mut self) -> Result<(), SimError> {
        let nesting = self.vcpu.nesting;
        if nesting == Nesting::L2 {
            self.vmx_smi_exit()?;
        }
        let nested = &mut self.vmx_state_mut().nested;
        nested.interrupted = Interrupted { nesting, vmxon: nested.vmxon.take() };
        Ok(())
    }

    fn vmx_leave_smm(&mut self) -> Result<Result<(), NotResumed>, SimError> {
        let nested = &mut self.vmx_state_mut().nested;
        let Interrupted { nesting, vmxon } = std::mem::take(&mut nested.interrupted);
        nested.vmxon = vmxon.or(nested.vmxon);
        if nesting == Nesting::L1 {
            return Ok(Ok(()));
        }
        let entered = self.enter_non_root(From::Restore)?;
        self.vcpu.nested_run = NestedRun::Pending;
        self.tell_nested(NestedEdge::Restore, "RSM");
        Ok(entered.map_err(|_| NotResumed))
    }

    fn svm_enter_smm(&mut self, state: &mut SaveState) -> Result<(), SimError> {
        if self.vcpu.nesting == Nesting::L1 {
            return Ok(());
        }
        state.set_guest(self.svm_state().nested.vmcb12_gpa.0);
        self.svm_smi_exit()?;
        let vmcb01 = self.svm_state().vmcb01;
        let area = self.host_save_area();
        let area = area.ok_or_else(|| SimError::unmodelled("an SMI in an L2 whose L1 has no host save area"))?;
        self.copy_vmrun_state(vmcb01, area);
        Ok(())
    }

    fn svm_leave_smm(&mut self, state: &SaveState) -> Result<Result<(), NotResumed>, SimError> {
        let Some(at) = state.guest().map(Gpa) else { return Ok(Ok(())) };
        let area = self.host_save_area().filter(|_| state.efer().contains(Efer::SVME) && self.is_vmcb(at));
        let Some(area) = area else { return Ok(Err(NotResumed)) };
        let vmcb01 = self.svm_state().vmcb01;
        self.copy_vmrun_state(area, vmcb01);
        let entered = self.enter_l2_again(at);
        self.vcpu.nested_run = NestedRun::Pending;
        self.tell_nested(NestedEdge::Restore, "RSM");
        Ok(entered.map_err(|_| NotResumed))
    }

    /// L1's host save area, past what a processor may keep there.
    fn host_save_area(&self) -> Option<Hpa> {
        let area = Gpa(self.svm_state().nested.hsave);
        if area == Gpa(0) { None } else { self.vm.slots.host(self.space(), area) }
    }

    fn copy_vmrun_state(&mut self, from: Hpa, to: Hpa) {
        let mem = &mut self.ground.mem;
        for field in super::svm_transition::VMRUN_SEGMENTS {
            let segment = vmcb::read_segment(mem, from, field);
            vmcb::write_segment(mem, to, field, &segment);
        }
        for field in super::svm_transition::VMRUN_TABLES {
            let table = vmcb::read_table(mem, from, field);
            vmcb::write_table(mem, to, field, table);
        }
        for field in VMRUN_FIELDS {
            let value = vmcb::read(mem, from, field);
            vmcb::write(mem, to, field, value);
        }
    }

    /// Whether L1 wants to know of SMIs in L2. VMX has no such control.
    pub(crate) fn l1_intercepts_smi(&self) -> bool {
        matches!(self.vcpu.vendor, VendorState::Svm(_)) && self.l1_has(Intercepts::SMI)
    }

    /// `svm_check_nested_events`: the SMI itself waits on, until L1 sets GIF.
    pub(crate) fn nested_smi_exit(&mut self) -> Result<(), SimError> {
        self.svm_event_exit(svm::ExitCode::Smi)
    }

    /// An INIT to L2: on VMX it exits, and is done with; on SVM it exits if L1 asks, and waits for GIF.
    pub(crate) fn nested_init(&mut self) -> Result<InitOfL2, SimError> {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => {
                self.vcpu.signals.remove(crate::signals::Signals::INIT);
                self.vmx_init_exit()?;
            }
            VendorState::Svm(_) if self.l1_has(Intercepts::INIT) => {
                self.svm_event_exit(svm::ExitCode::Init)?;
            }
            VendorState::Svm(_) => return Ok(InitOfL2::ResetsL1),
        }
        Ok(InitOfL2::IsAnExit)
    }

    /// Whether L1 on SVM holds physical events back.
    pub(crate) fn gif_is_clear(&self) -> bool {
        match &self.vcpu.vendor {
            VendorState::Vmx(_) => false,
            VendorState::Svm(state) => state.nested.gif == Gif::Clear && self.vcpu.nesting == Nesting::L1,
        }
    }

    /// `kvm_vcpu_reset` of a vCPU that runs L2, which only SVM permits. Up to v6.0 nothing but the mode was left: what ran
    /// next ran by vmcb02, and on the MMU of L1's nested tables.
    pub(crate) fn leave_nested_at_reset(&mut self) -> Result<(), SimError> {
        if self.vcpu.nesting == Nesting::L1 {
            return Ok(());
        }
        if self.vm.changes.has(Change::ResetLeavesNested) {
            return self.leave_nested();
        }
        self.switch_context(Nesting::L1);
        Ok(())
    }

    /// What an INIT leaves of L1's use of the extension. A vCPU in VMX operation never gets here.
    pub(crate) fn reset_nested(&mut self) {
        let stays = !self.vm.changes.has(Change::ResetLeavesNested);
        if let VendorState::Svm(state) = &mut self.vcpu.vendor {
            state.nested.gif = Gif::Set;
            state.nested.vmcb12_gpa = Gpa(0);
            if !stays {
                state.nested.loaded = Loaded::Vmcb01;
            }
        }
    }
}
