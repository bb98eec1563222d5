//! What a vendor does for the vCPU loop (`kvm_x86_ops`): a closed enum of two, dispatched here and nowhere else.

pub mod svm;
pub mod svm_tlb;
pub mod vmx;
mod vmx_controls;
pub mod vmx_pml;
pub mod vmx_shadow;
pub mod vmx_tlb;

use crate::exits::{Exit, Handled};
use crate::machine::{Ext, LogicalProcessor, Machine, Setup};
use crate::pause::Pause;
use crate::run::Run;
use crate::signals::Signals;
use crate::vcpu::{NestedRun, Vcpu, VendorState};
use ::mmu::cpuid::GuestCpuid;
use ::mmu::plant::Plant;
use ::mmu::state::{Nesting, Smm};
use ::mmu::{VcpuMmu, Vm};
use cpu::core::Segments;
use cpu::step::{Outcome, StopOn};
use sim_core::arch::exception::Exception;
use sim_core::arch::extension::Extension;
use sim_core::arch::segment::TableRegister;
use sim_core::{Ground, SimError};

/// How an attempt to enter the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareEntry {
    /// The guest ran and left again.
    Exited,
    /// Hardware refused the VMCS (VMfail): nothing ran.
    Refused,
}

/// Makes a processor with its extension switched on (`hardware_enable`).
///
/// # Errors
/// If hardware refuses VMXON, or host memory runs out.
pub fn create_processor(ground: &mut Ground, vm: &mut Vm, setup: &Setup) -> Result<LogicalProcessor, SimError> {
    let features = crate::machine::features(setup.extension);
    let core = cpu::Core { features, ..host_core(setup) };
    match setup.extension {
        Extension::Vmx => vmx::create_processor(core, ground, vm, setup),
        Extension::Svm => svm::create_processor(core, ground, vm, setup),
    }
}

/// Adds a vCPU to a machine, in flat 32-bit mode at address 0.
///
/// # Errors
/// If hardware refuses what L0 sets up, or host memory runs out.
pub fn create_vcpu(machine: &mut Machine, setup: &Setup, id: u8) -> Result<(), SimError> {
    let guest = cpu::Core::flat32(setup.module.maxphyaddr);
    let thread_on = id % setup.processors;
    let LogicalProcessor { core, ext } = &mut machine.processors[usize::from(thread_on)];
    let vendor = match ext {
        Ext::Vmx(unit) => vmx::create(unit, core, &mut machine.ground, &mut machine.vm, &mut machine.host, setup)?,
        Ext::Svm(_) => svm::create(core, &mut machine.ground, &mut machine.vm, setup)?,
    };
    machine.vcpus.push(Vcpu {
        id,
        cpu: None,
        thread_on,
        resident: None,
        gprs: [0; 16],
        rip: 0,
        rflags: guest.rflags,
        cr0: guest.cr0,
        cr2: 0,
        cr3: 0,
        cr4: guest.cr4,
        cr8: 0,
        efer: guest.efer,
        pdptes: [0; 4],
        pdptes_wait: false,
        nesting: Nesting::L1,
        nested_run: NestedRun::Settled,
        smm: Smm::Outside,
        smbase: 0x3_0000,
        signals: Signals::empty(),
        sipi: None,
        last_retry: None,
        mmu: VcpuMmu::new(GuestCpuid::of_host(&setup.module)),
        last_entry: None,
        pending: None,
        interrupted: None,
        pause: Pause::default(),
        nested_pgd: 0,
        vendor,
    });
    machine.on_vcpu(id, |run| {
        run.set_guest_segments(&guest.segments, guest.gdtr, guest.idtr);
        run.write_controls();
        run.mmu(|ctx, vcpu, view| ctx.init_mmu(vcpu, view));
        Ok(())
    })
}

/// The processor as L0's own code finds it: 64-bit mode, flat segments. L0's linear space is not modelled, so its
/// CR3 only has to be legal.
fn host_core(setup: &Setup) -> cpu::Core {
    use sim_core::arch::control::{Cr0, Cr4, Efer};
    use sim_core::arch::segment::{Rights, Segment};
    let module = &setup.module;
    let mut core = cpu::Core { tlb: cpu::tlb::Tlb::new(setup.tlb), ..cpu::Core::flat32(module.maxphyaddr) };
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr4 = Cr4::PAE;
    core.cr4.set(Cr4::LA57, module.tdp_level == 5);
    core.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
    core.segments.cs = Segment::flat(0x08, Rights::CODE64);
    core
}

macro_rules! vendor {
    ($self:ident, $vmx:expr, $svm:expr) => {
        match $self.vcpu.vendor {
            VendorState::Vmx(_) => $vmx,
            VendorState::Svm(_) => $svm,
        }
    };
}

impl Run<'_> {
    /// Runs the guest from entry to exit.
    ///
    /// # Errors
    /// If the guest needs something that is not modelled, or does not exit within the budget.
    pub fn hardware_enter(&mut self, budget: u64) -> Result<HardwareEntry, SimError> {
        let entered = vendor!(self, self.vmx_enter()?, self.svm_enter()?);
        if let Some(outcome) = entered {
            return Ok(outcome);
        }
        let LogicalProcessor { core, ext } = &mut *self.processor;
        let outcome = match ext {
            Ext::Vmx(unit) => cpu::step::run(core, &mut **unit, self.ground, StopOn::Exit, budget)?,
            Ext::Svm(unit) => cpu::step::run(core, &mut **unit, self.ground, StopOn::Exit, budget)?,
        };
        match outcome {
            Outcome::Moved(cpu::virt::Movement::Exited) => Ok(HardwareEntry::Exited),
            other => Err(SimError::internal(format!("the guest ended with {other:?} and not with an exit"))),
        }
    }

    /// Writes CR0, CR4 and EFER as hardware must have them for the guest's values.
    pub fn write_controls(&mut self) {
        vendor!(self, self.vmx_write_controls(), self.svm_write_controls());
    }

    /// The same for MOV to CR0 and WRMSR to EFER, with which CR4 does not change.
    pub(crate) fn write_cr0_and_efer(&mut self) {
        vendor!(self, self.vmx_write_cr0_and_efer(), self.svm_write_controls());
    }

    /// Writes the guest's CR3 where hardware uses it as it is (TDP).
    pub fn write_guest_cr3(&mut self) {
        vendor!(self, self.vmx_write_guest_cr3(), self.svm_write_guest_cr3());
    }

    /// Whether the guest's CR3 gets to hardware with the next root, and not at a nested entry alone (C-57).
    pub(crate) fn load_writes_cr3(&self) -> bool {
        let changes = self.vm.changes;
        let of_l2 = vendor!(self, changes.vmx_load_writes_l2_cr3(), changes.svm_load_writes_l2_cr3());
        self.vcpu.nesting == Nesting::L1 || of_l2
    }

    /// `kvm_x86_load_mmu_pgd`: makes hardware use the active MMU's root.
    pub fn load_pgd(&mut self) {
        vendor!(self, self.vmx_load_pgd(), self.svm_load_pgd());
    }

    /// The pointer that hardware will walk from, raw: EPTP, nested CR3, or CR3.
    #[must_use]
    pub fn hardware_root(&self) -> u64 {
        vendor!(self, self.vmx_hardware_root(), self.svm_hardware_root())
    }

    /// `kvm_x86_update_cpu_dirty_logging`: SVM has no page-modification log, and never gets the request.
    pub fn update_dirty_logging(&mut self) {
        vendor!(self, self.vmx_update_dirty_logging(), ());
    }

    /// What hardware has logged goes to the slots' logs.
    pub fn drain_dirty_log(&mut self) {
        vendor!(self, self.vmx_flush_pml_buffer(), ());
    }

    /// `kvm_x86_flush_tlb_all`.
    ///
    /// # Errors
    /// If hardware refuses the invalidation.
    pub fn flush_all(&mut self) -> Result<(), SimError> {
        vendor!(self, self.vmx_flush_all(), self.svm_flush_asid())
    }

    /// `kvm_x86_flush_tlb_current`.
    ///
    /// # Errors
    /// If hardware refuses the invalidation.
    pub fn flush_current(&mut self) -> Result<(), SimError> {
        vendor!(self, self.vmx_flush_current(), self.svm_flush_asid())
    }

    /// `kvm_x86_flush_tlb_guest`.
    ///
    /// # Errors
    /// If hardware refuses the invalidation.
    pub fn flush_guest(&mut self) -> Result<(), SimError> {
        vendor!(self, self.vmx_flush_guest(), self.svm_flush_asid())
    }

    /// `kvm_x86_flush_tlb_gva`.
    ///
    /// # Errors
    /// If hardware refuses the invalidation.
    pub fn flush_gva(&mut self, address: u64) -> Result<(), SimError> {
        vendor!(self, self.vmx_flush_gva(address), self.svm_flush_gva(address))
    }

    /// Gives the general registers, rip, flags and the task priority to hardware.
    pub fn write_registers(&mut self) {
        if !self.vm.plants.has(Plant::Cr8OfTheProcessor) {
            self.processor.core.cr8 = self.vcpu.cr8;
        }
        vendor!(self, self.vmx_write_registers(), self.svm_write_registers());
    }

    /// Takes the general registers, rip, flags and what the guest may change without an exit back from hardware.
    pub fn read_registers(&mut self) {
        self.vcpu.cr8 = self.processor.core.cr8;
        vendor!(self, self.vmx_read_registers(), self.svm_read_registers());
    }

    /// The exit that has just happened, in words that both vendors share.
    ///
    /// # Errors
    /// If the exit reason is none that L0 knows.
    pub fn decode_exit(&mut self) -> Result<Exit, SimError> {
        vendor!(self, self.vmx_decode_exit(), self.svm_decode_exit())
    }

    /// Moves rip behind the instruction that exited.
    pub fn skip_instruction(&mut self) {
        vendor!(self, self.vmx_skip(), self.svm_skip());
    }

    /// Makes hardware deliver an exception at the next entry.
    pub fn hardware_inject(&mut self, exception: &Exception) {
        vendor!(self, self.vmx_inject(exception), self.svm_inject(exception));
    }

    /// The exception whose delivery the exit interrupted (`vmx_complete_interrupts`, `svm_complete_interrupts`).
    ///
    /// # Errors
    /// If it is an event that is not modelled.
    pub fn interrupted_event(&self) -> Result<Option<Exception>, SimError> {
        vendor!(self, self.vmx_interrupted_event(), self.svm_interrupted_event())
    }

    /// The guest's segment and descriptor-table registers.
    #[must_use]
    pub fn guest_segments(&self) -> (Segments, TableRegister, TableRegister) {
        vendor!(self, self.vmx_segments(), self.svm_segments())
    }

    /// Sets the guest's segment and descriptor-table registers.
    pub fn set_guest_segments(&mut self, segments: &Segments, gdtr: TableRegister, idtr: TableRegister) {
        vendor!(self, self.vmx_set_segments(segments, gdtr, idtr), self.svm_set_segments(segments, gdtr, idtr));
    }

    /// An MSR of the vendor's.
    ///
    /// # Errors
    /// If the MSR is not modelled.
    pub fn vendor_rdmsr(&mut self, index: u32) -> Result<u64, SimError> {
        vendor!(self, self.vmx_rdmsr(index), self.svm_rdmsr(index))
    }

    /// Writes an MSR of the vendor's; the inner error is the guest's.
    ///
    /// # Errors
    /// If the MSR is not modelled.
    pub fn vendor_wrmsr(&mut self, index: u32, value: u64) -> Result<Result<(), Exception>, SimError> {
        vendor!(self, self.vmx_wrmsr(index, value), self.svm_wrmsr(index, value))
    }

    /// Where the current instruction is, and in which bitness.
    #[must_use]
    pub fn code_position(&self) -> (u64, u32) {
        use sim_core::arch::control::Efer;
        let (segments, _, _) = self.guest_segments();
        let cs = segments.cs;
        if self.vcpu.efer.contains(Efer::LMA) && cs.rights.is_long() {
            (self.vcpu.rip, 64)
        } else {
            (cs.base.wrapping_add(self.vcpu.rip) & 0xffff_ffff, if cs.rights.is_big() { 32 } else { 16 })
        }
    }

    /// Hardware refused a VMCS that L0 built: only a nested entry can get there.
    ///
    /// # Errors
    /// If it was L1's own VMCS.
    pub fn late_entry_failure(&mut self) -> Result<Handled, SimError> {
        vendor!(self, self.nested_vmx_late_fail(), Err(SimError::internal("SVM has no VMfail")))
    }
}
