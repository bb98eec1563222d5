//! VM-exit of L2 to L1 on VMX (`nested_vmx_vmexit`, `load_vmcs12_host_state`).

use super::transition::{LoadCr3Error, Pdptes};
use super::vmx_enter::{Edge, with_long_mode};
use crate::exits::Exit;
use crate::inject::Faulted;
use crate::run::Run;
use cpu::Gpr;
use cpu::core::Segments;
use mmu::Change;
use mmu::guest_walk::WalkFault;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{NestedTdp, Nesting};
use sim_core::SimError;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::event::NestedEdge;
use vmx::controls::{EntryControls, ExitControls};
use vmx::exit::reason::ENTRY_FAILURE;
use vmx::vmcs::LaunchState;
use vmx::vmcs::field::Kind;
use vmx::{ExitReason, Field};

/// The CR3 of a guest is lost at its exit.
const CR3_LOST: &str = "L2's CR3 is not saved into vmcs12 (sync_vmcs02_to_vmcs12 without EPT)";

/// What L1 is told about an exit, beside the guest state.
struct Told {
    reason: ExitReason,
    /// The bit that says that the entry failed, or 0.
    failed: u32,
    fields: Vec<(Field, u64)>,
}

impl Run<'_> {
    /// Gives L1 the exit that hardware reported.
    pub(crate) fn vmx_reflect(&mut self, _exit: &Exit) -> Result<(), SimError> {
        let word = self.vmread(Field::ExitReason);
        let reason = ExitReason::from_word(word).ok_or_else(|| SimError::internal("unknown exit reason reflected"))?;
        let copied = |field: &&Field| field.kind() == Kind::Information && **field != Field::InstructionError;
        let fields = Field::ALL.iter().filter(copied).map(|field| (*field, self.vmread(*field))).collect();
        let failed = word as u32 & ENTRY_FAILURE;
        self.nested_vmx_exit(&Told { reason, failed, fields })
    }

    pub(crate) fn vmx_exception_exit(&mut self, exception: &Exception) -> Result<(), SimError> {
        let (information, error) = interruption_fields(exception);
        let fields = vec![
            (Field::ExitInterruptionInformation, information),
            (Field::ExitInterruptionErrorCode, error),
            (Field::ExitQualification, exception.cr2.map_or(0, |address| address.0)),
        ];
        self.nested_vmx_exit(&Told { reason: ExitReason::ExceptionOrNmi, failed: 0, fields })
    }

    pub(crate) fn vmx_triple_fault(&mut self) -> Result<(), SimError> {
        self.nested_vmx_exit(&Told { reason: ExitReason::TripleFault, failed: 0, fields: Vec::new() })
    }

    /// `nested_ept_inject_page_fault`: an EPT violation or misconfiguration of L1's own tables.
    pub(crate) fn vmx_stage_exit(&mut self, address: u64, fault: WalkFault) -> Result<(), SimError> {
        self.drop_faulted(Faulted::Nested(address))?;
        let linear = self.vmread(Field::GuestLinearAddress);
        let (reason, qualification) = match fault {
            WalkFault::EptViolation(violation) => {
                (ExitReason::EptViolation, violation.qualification() | self.linear_address_bits())
            }
            WalkFault::EptMisconfiguration => (ExitReason::EptMisconfiguration, 0),
            WalkFault::Page(_) => return Err(SimError::internal("a page fault of nested EPT tables")),
        };
        let fields = vec![
            (Field::ExitQualification, qualification),
            (Field::GuestPhysicalAddress, address),
            (Field::GuestLinearAddress, linear),
        ];
        self.nested_vmx_exit(&Told { reason, failed: 0, fields })
    }

    /// Bits 8:7 of an EPT violation that L1 gets: whether there was a linear address, and whether it was translated by
    /// then. They are a hardware exit's, even where L0's emulator met the fault behind some other exit.
    fn linear_address_bits(&self) -> u64 {
        const LINEAR_ADDRESS: u64 = 0x180;
        let qualification = if self.vm.changes.has(Change::NeptQualification) {
            self.vmread(Field::ExitQualification)
        } else {
            self.vmx_state().last_ept_violation
        };
        qualification & LINEAR_ADDRESS
    }

    /// `nested_vmx_vmexit`.
    fn nested_vmx_exit(&mut self, told: &Told) -> Result<(), SimError> {
        self.leave_l2(Some(told))?;
        self.tell_nested(NestedEdge::Exit, told.reason.name());
        self.load_host_state()
    }

    pub(crate) fn vmx_init_exit(&mut self) -> Result<(), SimError> {
        self.nested_vmx_exit(&Told { reason: ExitReason::Init, failed: 0, fields: Vec::new() })
    }

    /// The exit without a reason that takes L2 out for an SMI.
    pub(crate) fn vmx_smi_exit(&mut self) -> Result<(), SimError> {
        self.leave_l2(None)?;
        self.tell_nested(NestedEdge::Exit, "SMI");
        self.load_host_state()
    }

    /// `vmx_leave_nested`: a nested exit with no reason, whose host state is loaded all the same.
    pub(crate) fn vmx_leave_nested(&mut self) -> Result<(), SimError> {
        self.leave_l2(None)?;
        self.tell_nested(NestedEdge::Leave, "");
        self.load_host_state()?;
        self.free_nested()
    }

    fn leave_l2(&mut self, told: Option<&Told>) -> Result<(), SimError> {
        if !self.vm.plants.has(Plant::RequestsCrossContexts) {
            self.service_before_switch()?;
        }
        self.sync_vmcs12();
        self.switch_context(Nesting::L1);
        if let Some(told) = told {
            self.clear_exit_information();
            for (field, value) in &told.fields {
                self.vmcs12_set(*field, *value);
            }
            self.vmcs12_set(Field::ExitReason, u64::from(told.reason.number()) | u64::from(told.failed));
            if told.failed == 0 {
                self.vmcs12_launched();
            }
        }
        self.vmcs12_set(Field::EntryInterruptionInformation, 0);
        // A triple fault ends the delivery that it came of (SDM 3C 27.2.4).
        let ends = told.as_ref().is_some_and(|told| told.reason == ExitReason::TripleFault);
        let interrupted = self.vcpu.interrupted.take().filter(|_| !ends);
        let interrupted = interrupted.map_or((0, 0), |exception| interruption_fields(&exception));
        self.vmcs12_set(Field::IdtVectoringInformation, interrupted.0);
        self.vmcs12_set(Field::IdtVectoringErrorCode, interrupted.1);
        let vmcs01 = self.vmx_state().vmcs01;
        self.vmptrld(vmcs01)?;
        self.vmx_shadow_is_stale();
        self.vmx_settle_dirty_logging();
        Ok(())
    }

    /// The VM-entry controls as an exit leaves them: IA-32e mode guest says what L2 was in (SDM 3C 27.2).
    fn entry_controls_seen(&self) -> u64 {
        let mut entry = self.vmcs12().entry();
        entry.set(EntryControls::IA32E_MODE_GUEST, self.vcpu.efer.contains(Efer::LMA));
        u64::from(entry.bits())
    }

    fn clear_exit_information(&mut self) {
        let cleared = |field: &&Field| field.kind() == Kind::Information && **field != Field::InstructionError;
        for field in Field::ALL.iter().filter(cleared) {
            self.vmcs12_set(*field, 0);
        }
    }

    /// An entry counts as a launch when L2 comes back from it: one that hardware refused late leaves vmcs12 clear.
    fn vmcs12_launched(&mut self) {
        let nested = &mut self.vmx_state_mut().nested;
        if let Some(vmcs12) = nested.current.and_then(|gpa| nested.vmcs12s.get_mut(&gpa)) {
            vmcs12.launch = LaunchState::Launched;
        }
    }

    /// `sync_vmcs02_to_vmcs12`: L2's state as L1 will read it.
    pub(crate) fn sync_vmcs12(&mut self) {
        let hidden = |field: &Field| {
            matches!(field, Field::GuestCr0 | Field::GuestCr3 | Field::GuestCr4 | Field::GuestEfer)
                || *field == Field::VmcsLinkPointer
        };
        let values: Vec<_> = Field::ALL
            .iter()
            .filter(|field| field.kind() == Kind::Guest && !hidden(field))
            .map(|field| (*field, self.vmread(*field)))
            .collect();
        let cr3 = self.cr3_for_vmcs12();
        let vcpu = &self.vcpu;
        let own = [
            (Field::GuestCr0, vcpu.cr0.bits()),
            (Field::GuestCr3, cr3),
            (Field::GuestCr4, vcpu.cr4.bits()),
            (Field::GuestEfer, vcpu.efer.bits()),
            (Field::GuestRsp, vcpu.gprs[Gpr::Rsp as usize]),
            (Field::GuestRip, vcpu.rip),
            (Field::GuestRflags, vcpu.rflags.bits()),
            (Field::EntryControls, self.entry_controls_seen()),
        ];
        for (field, value) in values.into_iter().chain(own) {
            self.vmcs12_set(field, value);
        }
    }

    /// L2's CR3 as L1 will read it. KVM saves that of vmcs02, which is L2's with EPT alone, and nothing otherwise: what L2 has
    /// loaded is lost, where L1 does not intercept MOV to CR3 (against SDM 3C 28.3.1).
    fn cr3_for_vmcs12(&mut self) -> u64 {
        let entered = self.vmcs12().get(Field::GuestCr3);
        let loses = !self.tdp() && self.vm.changes.has(Change::Vmcs12KeepsCr3);
        if !loses || entered == self.vcpu.cr3 {
            return self.vcpu.cr3;
        }
        self.mmu(|ctx, _, _| ctx.warn_of(CR3_LOST, Some("vmcs12-cr3")));
        entered
    }

    /// `load_vmcs12_host_state`: the vCPU takes L1's registers as vmcs12 has them, and its CR3 when CR0, CR4 and EFER
    /// are L1's already.
    pub(crate) fn load_host_state(&mut self) -> Result<(), SimError> {
        let vmcs12 = self.vmcs12().clone();
        let get = |field| vmcs12.get(field);
        let exit = vmcs12.exit();
        let long = exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        self.vcpu.efer = if exit.contains(ExitControls::LOAD_EFER) {
            Efer::from_bits_retain(get(Field::HostEfer))
        } else {
            with_long_mode(self.vcpu.efer, long)
        };
        self.vcpu.gprs[Gpr::Rsp as usize] = get(Field::HostRsp);
        self.vcpu.rip = get(Field::HostRip);
        self.vcpu.rflags = Rflags::FIXED;
        self.vcpu.cr0 = Cr0::from_bits_retain(get(Field::HostCr0)) | Cr0::ET;
        if !self.vm.plants.has(Plant::HostStateKeepsCr4) {
            self.vcpu.cr4 = Cr4::from_bits_retain(get(Field::HostCr4));
        }
        self.write_controls();
        self.mmu(|ctx, vcpu, _| ctx.leave_nested_tdp(vcpu));
        let loaded = self.nested_load_cr3(get(Field::HostCr3), NestedTdp::Inactive, Pdptes::Reload);
        if loaded == Err(LoadCr3Error::Pdptes) {
            // VMX abort 2 puts the processor into shutdown (SDM 3C 27.7; `nested_vmx_abort`).
            self.request(Requests::TRIPLE_FAULT);
        }
        self.vmx_transition_flush(Edge::Exit)?;
        let (segments, gdtr, idtr) = host_segments(&get, long);
        self.set_guest_segments(&segments, gdtr, idtr);
        Ok(())
    }
}

/// An exception as the interruption-information and error-code fields hold it (SDM 3C table 24-16).
pub(crate) fn interruption_fields(exception: &Exception) -> (u64, u64) {
    let error_valid = exception.error.map_or(0, |_| 1 << 11);
    let information = 1 << 31 | 3 << 8 | error_valid | u64::from(exception.vector.number());
    (information, u64::from(exception.error.unwrap_or(0)))
}

/// Segment registers after a VM-exit (SDM 3C 27.5.2).
fn host_segments(get: &impl Fn(Field) -> u64, long: bool) -> (Segments, TableRegister, TableRegister) {
    let data = |selector: Field| Segment::flat(get(selector) as u16, Rights::DATA);
    let code = if long { Rights::CODE64 } else { Rights::CODE32 };
    let based = |selector: Field, base: Field| Segment { base: get(base), ..data(selector) };
    let segments = Segments {
        es: data(Field::HostEsSelector),
        cs: Segment::flat(get(Field::HostCsSelector) as u16, code),
        ss: data(Field::HostSsSelector),
        ds: data(Field::HostDsSelector),
        fs: based(Field::HostFsSelector, Field::HostFsBase),
        gs: based(Field::HostGsSelector, Field::HostGsBase),
        ldtr: Segment { rights: Rights::UNUSABLE, ..Segment::default() },
        tr: Segment {
            selector: get(Field::HostTrSelector) as u16,
            base: get(Field::HostTrBase),
            limit: 0x67,
            rights: Rights::BUSY_TSS,
        },
    };
    let table = |base: Field| TableRegister { base: get(base), limit: 0xffff };
    (segments, table(Field::HostGdtrBase), table(Field::HostIdtrBase))
}
