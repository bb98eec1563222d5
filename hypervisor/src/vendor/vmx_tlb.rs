//! TLB tags and flushes on VMX, and the VMCS of a vCPU on the processor that it runs on (KVM v5.17 vmx.c:
//! `vmx_flush_tlb_*`, `vpid_sync_*`, `vmx_vcpu_load_vmcs`, `__loaded_vmcs_clear`).

use crate::machine::{Ext, LogicalProcessor};
use crate::nested::vmx_enter::Edge;
use crate::run::Run;
use crate::translations::Tags;
use ::mmu::Change;
use ::mmu::plant::Plant;
use ::mmu::request::Requests;
use ::mmu::state::Nesting;
use serde::{Deserialize, Serialize};
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::{Gva, Hpa, SimError};
use vmx::controls::SecondaryProc;
use vmx::{Field, InveptScope, InvvpidScope};

/// The processors on which the two VMCSs of a vCPU are active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmcsHomes {
    /// vmcs01's.
    pub vmcs01: Option<u8>,
    /// vmcs02's.
    pub vmcs02: Option<u8>,
}

impl Run<'_> {
    /// Makes a VMCS of this vCPU current here (`vmx_vcpu_load_vmcs`). If it was active elsewhere, or nowhere, everything
    /// is flushed: this processor may hold translations of an earlier stay.
    pub(crate) fn vmptrld(&mut self, region: Hpa) -> Result<(), SimError> {
        let here = self.cpu;
        let home = self.vmcs_home(region).replace(here);
        if let Some(there) = home.filter(|there| *there != here) {
            self.vmclear_on(there, region)?;
        }
        self.vmx_state_mut().loaded = region;
        let (unit, _, ground) = self.vmx_parts();
        if unit.current() != Some(region) {
            unit.vmptrld(ground, region).map_err(|fail| SimError::internal(format!("VMPTRLD of {region}: {fail}")))?;
        }
        if home != Some(here) && !self.vm.plants.has(Plant::NoFlushAfterMigration) {
            self.request(Requests::TLB_FLUSH);
        }
        Ok(())
    }

    /// `vmx_vcpu_load`.
    pub(crate) fn vmx_vcpu_load(&mut self) -> Result<(), SimError> {
        self.vmptrld(self.vmx_state().loaded)
    }

    fn vmcs_home(&mut self, region: Hpa) -> &mut Option<u8> {
        let state = self.vmx_state_mut();
        if region == state.vmcs02 { &mut state.active_on.vmcs02 } else { &mut state.active_on.vmcs01 }
    }

    /// `__loaded_vmcs_clear`, by an inter-processor interrupt.
    fn vmclear_on(&mut self, cpu: u8, region: Hpa) -> Result<(), SimError> {
        let Some(LogicalProcessor { ext: Ext::Vmx(unit), .. }) = self.others.get_mut(cpu) else {
            return Err(SimError::internal(format!("a VMCS active on processor {cpu}, which is none")));
        };
        unit.vmclear(self.ground, region).map_err(|fail| SimError::internal(format!("VMCLEAR of {region}: {fail}")))
    }

    /// vpid02 as VMX operation of L1 begins or ends (`enter_vmx_operation`, `free_nested`). vmcs02 is a new one then, which
    /// is active nowhere.
    pub(crate) fn renew_vpid02(&mut self) -> Result<(), SimError> {
        let old = self.vmx_state().vpid02;
        self.host.vpids.free(old);
        let vpid02 = if self.vmx_state().nested.is_on() { self.host.vpids.allocate() } else { 0 };
        self.vmx_state_mut().vpid02 = vpid02;
        let vmcs02 = self.vmx_state().vmcs02;
        match self.vmcs_home(vmcs02).take() {
            Some(cpu) if cpu == self.cpu => {
                let (unit, _, ground) = self.vmx_parts();
                unit.vmclear(ground, vmcs02).map_err(|fail| SimError::internal(format!("VMCLEAR of vmcs02: {fail}")))
            }
            Some(cpu) => self.vmclear_on(cpu, vmcs02),
            None => Ok(()),
        }
    }

    /// The tags of the guest that has just run; without a VPID the exit has dropped everything but what EPT alone gave.
    pub(crate) fn vmx_tags(&self) -> Tags {
        let controls = SecondaryProc::from_bits_retain(self.vmread(Field::SecondaryControls) as u32);
        let vpid = controls.contains(SecondaryProc::ENABLE_VPID).then(|| self.vmread(Field::Vpid) as u32);
        let root = Hpa(self.vmread(Field::EptPointer) & ENTRY_FRAME_MASK);
        Tags { context: vpid, ept_root: controls.contains(SecondaryProc::ENABLE_EPT).then_some(root) }
    }

    /// The VPID that flushes go to (`vmx_get_current_vpid`). Up to v6.12 an L2 without a VPID of L1's runs on vpid01 while
    /// its flushes go to vpid02 (C-14).
    fn current_vpid(&self) -> u16 {
        let state = self.vmx_state();
        let own = !self.vm.changes.has(Change::CurrentVpid) || state.nested.uses_vpid();
        if self.vcpu.nesting == Nesting::L2 && own { state.nested_vpid02() } else { state.vpid01 }
    }

    /// The VPID of a flush that the guest is owed: up to v5.15 L1's, whoever runs (C-34).
    fn guest_vpid(&self) -> u16 {
        if self.vm.changes.has(Change::FlushCurrentContext) { self.current_vpid() } else { self.vmx_state().vpid01 }
    }

    /// `nested_vmx_transition_tlb_flush`. L0's EPT, or a VPID of L2's own, is a tag that keeps L2's translations apart. Without
    /// one the flush of a transition serves a new VPID of L1's as well, up to v5.15; later the guest's flush comes first.
    ///
    /// # Errors
    /// If hardware refuses an invalidation.
    pub(crate) fn vmx_transition_flush(&mut self, edge: Edge) -> Result<(), SimError> {
        if self.vm.plants.has(Plant::TransitionFlushMissing) {
            return Ok(());
        }
        let vmcs12 = self.vmcs12();
        let (has_vpid, vpid12) = (vmcs12.has_vpid(), vmcs12.get(Field::Vpid) as u16);
        let state = self.vmx_state();
        let has_tag = self.tdp() || (has_vpid && state.vpid02 != 0);
        let untagged = !has_tag && !self.vm.plants.has(Plant::NoFlushWithoutVpid02);
        let new_vpid12 = edge == Edge::Enter && vpid12 != state.nested.last_vpid;
        if !has_vpid && self.vm.changes.has(Change::SyncAllPgds) {
            self.request(Requests::TLB_FLUSH_GUEST);
        } else if !has_vpid {
            // The root in use was synchronised, and no other (KVM 07ffaf343e34).
            self.request(Requests::MMU_SYNC | Requests::TLB_FLUSH_CURRENT);
        } else if untagged && !(new_vpid12 && self.vm.changes.has(Change::NewVpidFlushes)) {
            self.request(Requests::TLB_FLUSH_CURRENT);
        } else if new_vpid12 {
            self.vmx_state_mut().nested.last_vpid = vpid12;
            self.flush_new_vpid12()?;
        }
        Ok(())
    }

    /// L1 gives L2 a VPID that the last L2 did not have. All of them are vpid02; up to v5.15 L0 flushed only what hardware
    /// had cached for it (C-38).
    fn flush_new_vpid12(&mut self) -> Result<(), SimError> {
        if self.vm.changes.has(Change::NewVpidFlushes) {
            self.request(Requests::TLB_FLUSH_GUEST);
            return Ok(());
        }
        self.invvpid(InvvpidScope::Single(self.vmx_state().nested_vpid02()))
    }

    /// INVVPID of one VPID or one of its addresses. A context without a VPID has nothing that outlives an exit.
    pub(crate) fn invvpid(&mut self, scope: InvvpidScope) -> Result<(), SimError> {
        if matches!(scope, InvvpidScope::Single(0) | InvvpidScope::Address(0, _)) {
            return Ok(());
        }
        let (unit, core, ground) = self.vmx_parts();
        unit.invvpid(core, ground, scope).map_err(|fail| SimError::internal(format!("L0's INVVPID: {fail}")))
    }

    fn invept(&mut self, scope: InveptScope) {
        let (unit, core, ground) = self.vmx_parts();
        unit.invept(core, ground, scope);
    }

    /// `vmx_flush_tlb_all`. Up to v5.7 it reached the EPT of the root in use, or without EPT L1's VPID (C-81).
    pub(crate) fn vmx_flush_all(&mut self) -> Result<(), SimError> {
        if !self.vm.changes.has(Change::RemoteFlushAll) {
            let vpid01 = self.vmx_state().vpid01;
            return if self.tdp() { self.vmx_flush_current() } else { self.invvpid(InvvpidScope::Single(vpid01)) };
        }
        if self.tdp() {
            self.invept(InveptScope::Global);
            return Ok(());
        }
        self.invvpid(InvvpidScope::All)
    }

    /// `vmx_flush_tlb_current`: nothing without a root, for a new root flushes by itself.
    pub(crate) fn vmx_flush_current(&mut self) -> Result<(), SimError> {
        let root = self.vcpu.mmu.active().root.hpa;
        if !root.is_valid() {
            return Ok(());
        }
        if self.tdp() {
            self.invept(InveptScope::Single(root));
            return Ok(());
        }
        self.invvpid(InvvpidScope::Single(self.current_vpid()))
    }

    /// `vmx_flush_tlb_guest`.
    pub(crate) fn vmx_flush_guest(&mut self) -> Result<(), SimError> {
        self.invvpid(InvvpidScope::Single(self.guest_vpid()))
    }

    pub(crate) fn vmx_flush_gva(&mut self, address: u64) -> Result<(), SimError> {
        self.invvpid(InvvpidScope::Address(self.guest_vpid(), Gva(address)))
    }
}
