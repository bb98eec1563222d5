//! VM-entry of L2 on VMX (`nested_vmx_run`, `nested_vmx_enter_non_root_mode`, `prepare_vmcs02`).

use super::transition::{LoadCr3Error, Pdptes};
use super::vmx::{Done, NestedVmx};
use crate::exits::Handled;
use crate::run::Run;
use crate::vcpu::NestedRun;
use crate::vendor::vmx::UNDEFINED_OPCODE;
use crate::vendor::vmx_shadow::Contents;
use cpu::Gpr;
use mmu::Change;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{AccessedDirty, NestedTdp, Nesting};
use sim_core::SimError;
use sim_core::addr::Gpa;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::msr;
use sim_core::arch::rflags::Rflags;
use sim_core::event::NestedEdge;
use vmx::controls::{EntryControls, ExitControls, PinBased, PrimaryProc, SecondaryProc};
use vmx::vmcs::LaunchState;
use vmx::vmcs::field::Kind;
use vmx::{ExitReason, Field, InstructionError};

/// What starts L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// VMLAUNCH or VMRESUME.
    VmEntry,
    /// `KVM_SET_NESTED_STATE`, or RSM.
    Restore,
}

/// A VM-entry that failed with an exit (SDM 3C 26.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryFailure {
    reason: ExitReason,
    qualification: u64,
}

const GUEST_STATE: EntryFailure = EntryFailure { reason: ExitReason::EntryGuestState, qualification: 0 };
/// SDM 3C table 26-3: the PDPTEs were the reason.
const PDPTES: EntryFailure = EntryFailure { reason: ExitReason::EntryGuestState, qualification: 2 };

impl Run<'_> {
    /// `nested_vmx_run`.
    pub(crate) fn nested_vmx_run(&mut self, needs: LaunchState) -> Result<Done, SimError> {
        let Some(vmcs12) = self.vmx_state().nested.vmcs12() else {
            return Ok(Done::FailInvalid);
        };
        if vmcs12.launch != needs {
            return Ok(Done::FailValid(match needs {
                LaunchState::Clear => InstructionError::VmlaunchNotClear,
                LaunchState::Launched => InstructionError::VmresumeNotLaunched,
            }));
        }
        if !self.controls_are_legal() {
            return Ok(Done::FailValid(InstructionError::EntryControls));
        }
        if !self.host_state_is_legal() {
            return Ok(Done::FailValid(InstructionError::EntryHostState));
        }
        self.vmx_state_mut().nested.entry_efer = self.vcpu.efer;
        // A late VMfail goes on behind this instruction, in L1's VMCS.
        self.write_registers();
        if let Err(failure) = self.enter_non_root(From::VmEntry)? {
            self.fail_entry(failure)?;
            return Ok(Done::Moved);
        }
        self.vcpu.nested_run = NestedRun::Pending;
        self.tell_nested(NestedEdge::Enter, "");
        Ok(Done::Moved)
    }

    /// `nested_vmx_check_controls`: L0 offers what its own processor's profile has, whatever this processor lacks.
    fn controls_are_legal(&self) -> bool {
        let (nested, vmcs12) = (&self.vmx_state().nested, self.vmcs12());
        let offered = nested.capabilities();
        let word = |field| vmcs12.get(field) as u32;
        let ept = !vmcs12.has_ept() || (self.tdp() && self.eptp_is_legal(vmcs12.get(Field::EptPointer)));
        offered.pin.permits(word(Field::PinBasedControls))
            && offered.primary.permits(word(Field::PrimaryControls))
            && offered.secondary.permits(vmcs12.secondary().bits())
            && offered.exit.permits(word(Field::ExitControls))
            && offered.entry.permits(word(Field::EntryControls))
            && (!vmcs12.has_vpid() || vmcs12.get(Field::Vpid) != 0)
            && vmcs12.get(Field::Cr3TargetCount) <= 4
            && ept
    }

    /// `nested_vmx_check_eptp`: write-back or uncacheable, 4 levels, accessed and dirty flags only if L0 uses them itself
    /// (`enable_ept_ad_bits`), no reserved bits.
    pub(crate) fn eptp_is_legal(&self, eptp: u64) -> bool {
        let flags_offered = self.vm.config.accessed_dirty == AccessedDirty::Hardware;
        (eptp & 1 << 6 == 0 || flags_offered)
            && matches!(eptp & 7, 0 | 6)
            && eptp >> 3 & 7 == 3
            && eptp & 0xf80 == 0
            && eptp & !self.legal_gpa_mask() == 0
    }

    /// `nested_vmx_check_host_state`.
    fn host_state_is_legal(&self) -> bool {
        let vmcs12 = self.vmcs12();
        let cr0 = Cr0::from_bits_retain(vmcs12.get(Field::HostCr0));
        let cr4 = Cr4::from_bits_retain(vmcs12.get(Field::HostCr4));
        let long = vmcs12.exit().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        let efer = Efer::from_bits_retain(vmcs12.get(Field::HostEfer));
        let loads_efer = vmcs12.exit().contains(ExitControls::LOAD_EFER);
        let canonical = |field| sim_core::Gva(vmcs12.get(field)).is_canonical(48);
        let ia32e_guest = vmcs12.entry().contains(EntryControls::IA32E_MODE_GUEST);
        (!loads_efer || long_mode_agrees(efer, long))
            && self.cr4_offered().contains(cr4)
            && HOST_ADDRESSES.into_iter().all(canonical)
            && cr0.contains(Cr0::PE | Cr0::PG | Cr0::NE)
            && cr4.contains(Cr4::VMXE)
            && vmcs12.get(Field::HostCr3) & !self.legal_gpa_mask() == 0
            && vmcs12.get(Field::HostCsSelector) & 7 == 0
            && vmcs12.get(Field::HostCsSelector) != 0
            && vmcs12.get(Field::HostTrSelector) != 0
            && long == self.vcpu.efer.contains(Efer::LMA)
            && (if long { cr4.contains(Cr4::PAE) } else { !cr4.contains(Cr4::PCIDE) && !ia32e_guest })
    }

    /// `nested_vmx_check_guest_state`: what is checked before the vCPU counts as being in L2.
    fn guest_state_is_legal(&self) -> bool {
        let vmcs12 = self.vmcs12();
        let cr0 = Cr0::from_bits_retain(vmcs12.get(Field::GuestCr0));
        let cr4 = Cr4::from_bits_retain(vmcs12.get(Field::GuestCr4));
        let unrestricted = vmcs12.secondary().contains(SecondaryProc::UNRESTRICTED_GUEST);
        let paged = unrestricted || cr0.contains(Cr0::PE | Cr0::PG);
        let long = vmcs12.entry().contains(EntryControls::IA32E_MODE_GUEST);
        let efer = Efer::from_bits_retain(vmcs12.get(Field::GuestEfer));
        let loads_efer = vmcs12.entry().contains(EntryControls::LOAD_EFER);
        let efer_agrees = efer.contains(Efer::LMA) == long && (!cr0.contains(Cr0::PG) || long_mode_agrees(efer, long));
        paged
            && (!loads_efer || efer_agrees)
            && self.cr4_offered().contains(cr4)
            && cr0.contains(Cr0::NE)
            && cr4.contains(Cr4::VMXE)
            && (!long || (cr4.contains(Cr4::PAE) && cr0.contains(Cr0::PG)))
    }

    /// `nested_vmx_enter_non_root_mode`. The inner error is an entry that failed with an exit; the vCPU is back on
    /// vmcs01 then, and L1's host state is not loaded yet.
    pub(crate) fn enter_non_root(&mut self, from: From) -> Result<Result<(), EntryFailure>, SimError> {
        self.service_before_switch()?;
        if !self.tdp() && self.vm.changes.has(Change::VmfailKeepsCr3) {
            // What L1 must get back if hardware refuses the entry (KVM f087a02941fe).
            self.vmwrite(Field::GuestCr3, self.vcpu.cr3);
        }
        let (vmcs01, vmcs02) = (self.vmx_state().vmcs01, self.vmx_state().vmcs02);
        self.vmptrld(vmcs02)?;
        self.merge_controls();
        if from == From::VmEntry && !self.guest_state_is_legal() {
            self.vmptrld(vmcs01)?;
            self.vmx_shadow_is_stale();
            return Ok(Err(GUEST_STATE));
        }
        self.switch_context(Nesting::L2);
        self.vmx_transition_flush(Edge::Enter)?;
        let prepared = self.prepare_vmcs02(from);
        let loaded = match (prepared, from) {
            (Ok(()), From::VmEntry) => self.load_entry_msrs(),
            (other, _) => other,
        };
        if let Err(failure) = loaded {
            self.take_back_entry();
            self.vmptrld(vmcs01)?;
            self.vmx_shadow_is_stale();
            return Ok(Err(failure));
        }
        if from == From::Restore {
            self.request(Requests::GET_NESTED_STATE_PAGES);
        }
        Ok(Ok(()))
    }

    /// A VM-entry that failed: L1 gets an exit with its host state, without a nested exit having happened.
    fn fail_entry(&mut self, failure: EntryFailure) -> Result<(), SimError> {
        self.tell_nested(NestedEdge::EntryFailed, failure.reason.name());
        self.load_host_state()?;
        let reason = u64::from(failure.reason.number()) | u64::from(vmx::exit::reason::ENTRY_FAILURE);
        self.vmcs12_set(Field::ExitReason, reason);
        self.vmcs12_set(Field::ExitQualification, failure.qualification);
        Ok(())
    }

    /// `prepare_vmcs02_early`: the controls of L0 and L1 together.
    fn merge_controls(&mut self) {
        let (vmcs12, state) = (self.vmcs12(), self.vmx_state());
        let offered = *state.nested.capabilities();
        let own = self.own_controls();
        let pin = PinBased::from_bits_retain(vmcs12.get(Field::PinBasedControls) as u32) | own.0;
        let kept = PrimaryProc::USE_MSR_BITMAPS | PrimaryProc::USE_IO_BITMAPS | PrimaryProc::USE_TSC_OFFSETTING;
        let primary = (PrimaryProc::from_bits_retain(vmcs12.get(Field::PrimaryControls) as u32) - kept) | own.1;
        let mine = SecondaryProc::ENABLE_EPT | SecondaryProc::UNRESTRICTED_GUEST;
        // L2 has INVPCID only if L1 enables it too, and never a page-modification log.
        let only_l1s = SecondaryProc::ENABLE_INVPCID | SecondaryProc::ENABLE_PML;
        let secondary = (vmcs12.secondary() - mine) | (own.2 - only_l1s);
        // With shadow tables every page fault is L0's first; with EPT L1's filter holds (`prepare_vmcs02_rare`).
        let filtered = !self.vm.plants.has(Plant::PfFilterNotMerged);
        let (page_fault, mask, matched) = if self.tdp() && filtered {
            (0, vmcs12.get(Field::PageFaultErrorMask), vmcs12.get(Field::PageFaultErrorMatch))
        } else {
            (u64::from(!self.tdp()) << 14, 0, 0)
        };
        let exceptions = vmcs12.get(Field::ExceptionBitmap) | page_fault | UNDEFINED_OPCODE;
        let vpid = if vmcs12.has_vpid() { state.nested_vpid02() } else { state.vpid01 };
        for (field, value) in [
            (Field::PinBasedControls, u64::from(offered.pin.adjust(pin.bits()))),
            (Field::PrimaryControls, u64::from(offered.primary.adjust(primary.bits()))),
            (Field::SecondaryControls, u64::from(secondary.bits())),
            (Field::ExceptionBitmap, exceptions),
            (Field::PageFaultErrorMask, mask),
            (Field::PageFaultErrorMatch, matched),
            (Field::Vpid, u64::from(vpid)),
        ] {
            self.vmwrite(field, value);
        }
    }

    /// L0's own controls, as vmcs01 has them.
    fn own_controls(&self) -> (PinBased, PrimaryProc, SecondaryProc) {
        let vmcs01 = vmx::vmcs::Region(self.vmx_state().vmcs01);
        let word = |field| vmcs01.get(self.ground, field) as u32;
        (
            PinBased::from_bits_retain(word(Field::PinBasedControls)),
            PrimaryProc::from_bits_retain(word(Field::PrimaryControls)),
            SecondaryProc::from_bits_retain(word(Field::SecondaryControls)),
        )
    }

    /// `prepare_vmcs02`: the vCPU takes L2's registers, and its CR3 last.
    fn prepare_vmcs02(&mut self, from: From) -> Result<(), EntryFailure> {
        self.copy_guest_state();
        if self.vmcs12().has_ept() {
            let eptp = self.vmcs12().get(Field::EptPointer);
            self.nested_ept_init(eptp);
        }
        let vmcs12 = self.vmcs12();
        let (cr0, cr4) = (vmcs12.get(Field::GuestCr0), vmcs12.get(Field::GuestCr4));
        let (entry, efer) = (vmcs12.entry(), vmcs12.get(Field::GuestEfer));
        let cr3 = vmcs12.get(Field::GuestCr3);
        let nested_tdp = self.vcpu.mmu.nested_tdp;
        self.vcpu.cr0 = Cr0::from_bits_retain(cr0);
        self.vcpu.cr4 = Cr4::from_bits_retain(cr4);
        // Without an entry under way EFER is what userspace has set, but for the mode (`nested_vmx_calc_efer`).
        self.vcpu.efer = if entry.contains(EntryControls::LOAD_EFER) && from == From::VmEntry {
            Efer::from_bits_retain(efer)
        } else {
            with_long_mode(self.vcpu.efer, entry.contains(EntryControls::IA32E_MODE_GUEST))
        };
        self.write_controls();
        if from == From::VmEntry && !self.l2_segments_are_legal() {
            return Err(GUEST_STATE);
        }
        let pdptes = if from == From::VmEntry { Pdptes::Reload } else { Pdptes::Keep };
        self.nested_load_cr3(cr3, nested_tdp, pdptes).map_err(|error| match error {
            LoadCr3Error::Address => GUEST_STATE,
            LoadCr3Error::Pdptes => PDPTES,
        })?;
        if nested_tdp == NestedTdp::Active && self.vcpu.is_pae() {
            self.vcpu.pdptes = Field::PDPTES.map(|field| self.vmcs12().get(field));
        }
        self.take_l2_registers();
        Ok(())
    }

    /// Every guest-state field that L0 passes on as it is, and the event to inject.
    fn copy_guest_state(&mut self) {
        let passed = |field: &Field| field.kind() == Kind::Guest;
        let values: Vec<_> =
            Field::ALL.iter().filter(|field| passed(field)).map(|field| (*field, self.vmcs12().get(*field))).collect();
        for (field, value) in values {
            self.vmwrite(field, value);
        }
        for field in
            [Field::EntryInterruptionInformation, Field::EntryExceptionErrorCode, Field::EntryInstructionLength]
        {
            let value = self.vmcs12().get(field);
            self.vmwrite(field, value);
        }
        self.vmwrite(Field::VmcsLinkPointer, u64::MAX);
        self.vmwrite(Field::GuestPat, 0x0007_0406_0007_0406);
    }

    fn take_l2_registers(&mut self) {
        self.vcpu.gprs[Gpr::Rsp as usize] = self.vmcs12().get(Field::GuestRsp);
        self.vcpu.rip = self.vmcs12().get(Field::GuestRip);
        self.vcpu.rflags = Rflags::from_bits_retain(self.vmcs12().get(Field::GuestRflags));
    }

    /// The part of `vmx_guest_state_valid` that a nested entry can fail late: RPL of CS and SS agree.
    fn l2_segments_are_legal(&self) -> bool {
        let vmcs12 = self.vmcs12();
        let unrestricted = vmcs12.secondary().contains(SecondaryProc::UNRESTRICTED_GUEST);
        unrestricted || (vmcs12.get(Field::GuestCsSelector) ^ vmcs12.get(Field::GuestSsSelector)) & 3 == 0
    }

    /// The VM-entry MSR-load area. Entries that L0 can't load fail the entry, as reserved ones do on hardware.
    fn load_entry_msrs(&mut self) -> Result<(), EntryFailure> {
        let count = self.vmcs12().get(Field::EntryMsrLoadCount);
        let area = Gpa(self.vmcs12().get(Field::EntryMsrLoadAddress));
        for index in 0..count {
            let failure = EntryFailure { reason: ExitReason::EntryMsrLoading, qualification: index + 1 };
            let at = area.offset(index * 16);
            let (head, value) = (self.read_gpa(at), self.read_gpa(at.offset(8)));
            let (Some(head), Some(value)) = (head, value) else { return Err(failure) };
            if head != u64::from(msr::PAT) {
                return Err(failure);
            }
            self.vmwrite(Field::GuestPat, value);
        }
        Ok(())
    }

    /// `nested_ept_init_mmu_context`.
    fn nested_ept_init(&mut self, eptp: u64) {
        self.vcpu.nested_pgd = eptp;
        self.vcpu.mmu.nested_tdp = NestedTdp::Active;
        self.mmu(|ctx, vcpu, view| ctx.init_nested_ept(vcpu, view, eptp));
    }

    /// Hardware refused vmcs02 (`vmx->fail`): L1 goes on behind its VMLAUNCH with VMfail, and with its own state
    /// (`nested_vmx_restore_host_state`). Of a bit that L1 owns the read shadow may be out of date: CR0.WP since
    /// v6.4, and CR4's all along (`guest_owned_cr4`).
    pub(crate) fn nested_vmx_late_fail(&mut self) -> Result<Handled, SimError> {
        if self.vcpu.nesting == Nesting::L1 {
            return Err(SimError::internal("hardware refused the VMCS that L0 built for L1"));
        }
        self.tell_nested(NestedEdge::LateFail, "VMfail");
        self.service_before_switch()?;
        self.switch_context(Nesting::L1);
        let vmcs01 = self.vmx_state().vmcs01;
        self.vmptrld(vmcs01)?;
        self.vmx_settle_dirty_logging();
        self.vcpu.cr0 = Cr0::from_bits_retain(self.vmread(Field::Cr0ReadShadow));
        self.vcpu.cr4 = Cr4::from_bits_retain(self.vmread(Field::Cr4ReadShadow));
        self.vcpu.efer = self.l1_efer();
        self.write_controls();
        self.mmu(|ctx, vcpu, _| ctx.leave_nested_tdp(vcpu));
        self.vcpu.cr3 = self.vmread(Field::GuestCr3);
        if self.tdp() && self.vcpu.is_pae() {
            self.vcpu.pdptes = Field::PDPTES.map(|field| self.vmread(field));
        }
        self.vcpu.rip = self.vmread(Field::GuestRip);
        self.vcpu.gprs[Gpr::Rsp as usize] = self.vmread(Field::GuestRsp);
        self.vcpu.rflags = Rflags::from_bits_retain(self.vmread(Field::GuestRflags));
        self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
        self.end_vmx(Done::FailValid(InstructionError::EntryControls));
        Ok(Handled::Resume)
    }

    /// L1's EFER as the guest set it: vmcs01 has NX forced on without EPT.
    fn l1_efer(&self) -> Efer {
        let hardware = Efer::from_bits_retain(self.vmread(Field::GuestEfer));
        if self.tdp() {
            return hardware;
        }
        let nxe = self.vmx_state().nested.entry_efer & Efer::NXE;
        (hardware - Efer::NXE) | nxe
    }

    pub(crate) fn vmx_save_nested(&mut self) -> Result<NestedVmx, SimError> {
        if self.vcpu.nesting == Nesting::L2 {
            self.sync_vmcs12();
        }
        self.vmx_copy_shadow()?;
        Ok(self.vmx_state().nested.clone())
    }

    pub(crate) fn vmx_restore_nested(&mut self, saved: &NestedVmx, nesting: Nesting) -> Result<(), SimError> {
        self.free_nested()?;
        self.vmx_state_mut().nested = saved.clone();
        self.renew_vpid02()?;
        let current = self.vmx_state().nested.current;
        self.vmx_use_shadow(if current.is_some() { Contents::Stale } else { Contents::Unused });
        if nesting == Nesting::L1 {
            return Ok(());
        }
        match self.enter_non_root(From::Restore)? {
            Ok(()) => {
                self.tell_nested(NestedEdge::Restore, "");
                Ok(())
            }
            Err(failure) => {
                Err(SimError::unmodelled(format!("nested state that fails with {}", failure.reason.name())))
            }
        }
    }
}

/// Host-state fields that must hold canonical addresses (SDM 3C 26.2.3).
const HOST_ADDRESSES: [Field; 6] =
    [Field::HostFsBase, Field::HostGsBase, Field::HostTrBase, Field::HostGdtrBase, Field::HostIdtrBase, Field::HostRip];

/// Whether LMA and LME both say what a control says (SDM 3C 26.2.2, 26.3.1.1).
const fn long_mode_agrees(efer: Efer, long: bool) -> bool {
    efer.contains(Efer::LMA) == long && efer.contains(Efer::LME) == long
}

/// Which way a nested transition goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    Enter,
    Exit,
}

/// EFER with LME and LMA as a control says.
pub(crate) const fn with_long_mode(efer: Efer, on: bool) -> Efer {
    let bits = Efer::LME.union(Efer::LMA);
    if on { efer.union(bits) } else { efer.difference(bits) }
}
