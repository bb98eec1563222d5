//! VM-exits that L0 handles, in words that both vendors share.

use crate::pause::Point;
use crate::run::{GATE_PORTS, Run, Stop};
use crate::translate::Miss;
use crate::vcpu::NestedRun;
use cpu::Gpr;
use cpu::virt::{ControlRegister, VirtInstruction};
use mmu::fault::{FaultOutcome, Progress};
use mmu::guest_walk::WalkFault;
use mmu::permission::Attempt;
use mmu::state::{NestedTdp, Nesting};
use mmu::stats::Stat;
use sim_core::SimError;
use sim_core::arch::exception::{Exception, PageFaultError, Vector};
use sim_core::event::Event;

/// A VM-exit, decoded by the vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN or OUT.
    Io {
        /// The port.
        port: u16,
        /// Whether it is IN.
        input: bool,
    },
    /// MOV to a control register.
    CrWrite(ControlRegister, Gpr),
    /// MOV from a control register.
    CrRead(ControlRegister, Gpr),
    /// CLTS.
    Clts,
    /// LMSW of a value.
    Lmsw(u16),
    /// SMSW.
    Smsw,
    /// An instruction whose operand the guest's tables do not give.
    Missed(Miss),
    /// An exception that L0 intercepts for itself or for L1.
    Exception(Exception),
    /// A second-stage fault at a guest-physical address.
    Stage {
        /// The address.
        gpa: u64,
        /// The access, as a page-fault error code.
        error: PageFaultError,
    },
    /// The page-modification log has no room (`handle_pml_full`).
    LogFull,
    /// INVLPG.
    Invlpg(u64),
    /// INVPCID.
    Invpcid,
    /// INVD, WBINVD or WBNOINVD.
    Caches,
    /// HLT.
    Hlt,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// A triple fault.
    TripleFault,
    /// An instruction of the virtualization extension.
    Virt(VirtInstruction),
    /// Hardware found the guest state invalid at entry.
    EntryFailed,
    /// Anything else, by the manual's name.
    Other(&'static str),
}

/// What follows a handled exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The guest goes on.
    Resume,
    /// Userspace is next.
    Stop(Stop),
}

impl Run<'_> {
    /// Handles the exit that has just happened.
    ///
    /// # Errors
    /// If it needs something that is not modelled.
    pub fn handle_exit(&mut self) -> Result<Handled, SimError> {
        let exit = self.decode_exit()?;
        self.settle_nested_run(&exit);
        if let Exit::Io { port, input: false } = exit
            && GATE_PORTS.contains(&port)
        {
            self.skip_instruction();
            let value = self.vcpu.gprs[Gpr::Rax as usize] as u32;
            return Ok(Handled::Stop(Stop::Gate { port, value }));
        }
        if self.vcpu.nesting == Nesting::L2 && self.l1_wants(&exit)? {
            self.reflect_exit(&exit)?;
            return Ok(Handled::Resume);
        }
        match exit {
            Exit::CrWrite(register, gpr) => self.cr_write(register, gpr)?,
            Exit::CrRead(register, gpr) => self.cr_read(register, gpr),
            Exit::Clts => self.clts(),
            Exit::Lmsw(source) => self.lmsw(source),
            Exit::Smsw => self.smsw()?,
            Exit::Missed(miss) => self.tell(miss)?,
            Exit::Rdmsr => self.rdmsr()?,
            Exit::Wrmsr => self.wrmsr()?,
            Exit::Invlpg(address) => {
                self.ground.record(Event::Handled { what: "INVLPG", detail: format!("{address:#x}") });
                self.emulate_invlpg(address)?;
                self.skip_instruction();
            }
            Exit::Invpcid => self.invpcid()?,
            Exit::Exception(exception) => return self.guest_exception(&exception),
            Exit::Stage { gpa, error } => return self.memory_fault(gpa, error),
            // Emptied already, as after every exit. No NMI is ever blocked by the IRET that ran into it.
            Exit::LogFull => {}
            Exit::Virt(instruction) => self.nested_instruction(&instruction)?,
            // Without devices that do not snoop, there is nothing to write back (`kvm_emulate_wbinvd`).
            Exit::Caches => self.skip_instruction(),
            Exit::Hlt => {
                self.skip_instruction();
                return Ok(Handled::Stop(Stop::Halted));
            }
            Exit::TripleFault => return self.triple_fault(),
            Exit::EntryFailed => return Err(SimError::internal("hardware refused the guest state that L0 built")),
            Exit::Io { port, .. } => {
                return Err(SimError::unmodelled(format!("guest access to I/O port {port:#x}")));
            }
            Exit::Other(name) => return Err(SimError::unmodelled(format!("L0's handling of {name}"))),
        }
        Ok(Handled::Resume)
    }

    /// Counts an entry of L2 that came past hardware's checks (`vmx_vcpu_run`, `svm_vcpu_run`).
    fn settle_nested_run(&mut self, exit: &Exit) {
        let pending = std::mem::take(&mut self.vcpu.nested_run) == NestedRun::Pending;
        if pending && *exit != Exit::EntryFailed {
            self.vm.stats.count(Stat::NestedRun);
        }
    }

    fn guest_exception(&mut self, exception: &Exception) -> Result<Handled, SimError> {
        match (exception.cr2, exception.error) {
            (Some(address), Some(error)) => self.memory_fault(address.0, PageFaultError::from_bits_retain(error)),
            _ if exception.vector == Vector::InvalidOpcode => {
                self.undefined_opcode()?;
                Ok(Handled::Resume)
            }
            _ => {
                self.queue(*exception);
                Ok(Handled::Resume)
            }
        }
    }

    /// `kvm_mmu_page_fault`.
    fn memory_fault(&mut self, address: u64, error: PageFaultError) -> Result<Handled, SimError> {
        let smap_suppressed = !error.contains(PageFaultError::U)
            && self.vcpu.rflags.contains(sim_core::arch::rflags::Rflags::AC)
            && self.vcpu.mmu.nested_tdp == NestedTdp::Inactive;
        let attempt = Attempt { error, smap_suppressed };
        match self.mmu(|ctx, vcpu, view| ctx.walk_fault(vcpu, view, address, attempt)) {
            Progress::Done(outcome) => self.fault_outcome(address, outcome),
            Progress::Next(walked) => self.prepare_or_pause(walked),
        }
    }

    /// What follows a page fault that the MMU has handled.
    ///
    /// # Errors
    /// If it needs something that is not modelled.
    pub(crate) fn fault_outcome(&mut self, address: u64, outcome: FaultOutcome) -> Result<Handled, SimError> {
        match outcome {
            FaultOutcome::Retry if self.vm.notifier.under_way != 0 => {
                return Ok(Handled::Stop(Stop::Paused(Point::Invalidation)));
            }
            FaultOutcome::Fixed | FaultOutcome::Retry => {}
            FaultOutcome::Inject(WalkFault::Page(error)) if self.vcpu.mmu.nested_tdp == NestedTdp::Inactive => {
                self.inject_page_fault(address, error)?;
            }
            FaultOutcome::Inject(fault) => self.reflect_stage_fault(address, fault)?,
            FaultOutcome::EmulateWrite(gpa) => self.emulate_table_write(gpa)?,
            FaultOutcome::Mmio(gpa) => self.emulate_mmio(gpa)?,
        }
        Ok(Handled::Resume)
    }
}
