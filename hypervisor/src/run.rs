//! The vCPU loop (`vcpu_enter_guest`): service requests, inject, make sure that there is a root, enter hardware, handle
//! the exit. Between the root and the entry is checkpoint E, where the audits look.

use crate::exits::Handled;
use crate::machine::LogicalProcessor;
use crate::migrate::{Host, Others};
use crate::pause::Point;
use crate::vcpu::{NestedRun, Vcpu};
use crate::vendor::HardwareEntry;
use mmu::audit::{self, Finding};
use mmu::request::{Effects, Requests};
use mmu::state::{Ctx, View, Warned};
use mmu::{VcpuMmu, Vm};
use sim_core::event::Event;
use sim_core::{Ground, SimError};

/// Why a vCPU came back to userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The guest wrote a gate port.
    Gate {
        /// The port.
        port: u16,
        /// The value written.
        value: u32,
    },
    /// The guest shut down (a triple fault that L1 does not intercept).
    Shutdown,
    /// The guest halted.
    Halted,
    /// The vCPU waits where it holds no lock of the MMU.
    Paused(Point),
}

/// Ports that always come back to userspace, whoever runs.
pub const GATE_PORTS: std::ops::RangeInclusive<u16> = 0xe0..=0xef;

/// Entries of one run after which something is clearly wrong.
const ENTRIES_MAX: u32 = 10_000;
/// Guest instructions of one entry after which something is clearly wrong.
const INSTRUCTIONS_MAX: u64 = 200_000;

/// L0 code running for one vCPU.
pub struct Run<'a> {
    /// Memory, time, events.
    pub ground: &'a mut Ground,
    /// The processor it runs on.
    pub processor: &'a mut LogicalProcessor,
    /// The other processors.
    pub others: Others<'a>,
    /// The number of the one it runs on.
    pub cpu: u8,
    /// What L0 keeps outside of any VM.
    pub host: &'a mut Host,
    /// The VM's part of the MMU.
    pub vm: &'a mut Vm,
    /// The vCPU.
    pub vcpu: &'a mut Vcpu,
    /// Requests that the other vCPUs must get.
    pub owed: Requests,
    /// Where findings go.
    pub findings: &'a mut Vec<Finding>,
    /// The scenario step under way.
    pub step: u32,
    /// How much the audits look at.
    pub audits: audit::Extent,
    /// Whether MMU code ran, so that pages and entries must be looked at.
    pub touched: bool,
}

impl Run<'_> {
    /// Calls MMU code with the vCPU's registers as they are now, then hands out the requests it made for everyone.
    pub fn mmu<R>(&mut self, work: impl FnOnce(&mut Ctx<'_>, &mut VcpuMmu, &View) -> R) -> R {
        self.touched = true;
        let view = self.vcpu.view();
        let result = work(&mut Ctx { vm: self.vm, ground: self.ground }, &mut self.vcpu.mmu, &view);
        let everyone = std::mem::take(&mut self.vm.broadcast);
        self.owed |= everyone;
        self.vcpu.mmu.requests.post(self.ground, everyone);
        self.report_warnings();
        result
    }

    /// KVM's own warnings are findings too.
    fn report_warnings(&mut self) {
        for Warned { what, known } in std::mem::take(&mut self.vm.warned) {
            let mut finding = Finding::new(audit::Audit::KernelWarning, &self.subject(), what);
            (finding.moment, finding.known) = (audit::Moment::Rest, known);
            self.findings.push(finding);
        }
    }

    pub(crate) fn subject(&self) -> audit::Subject<'_> {
        audit::Subject {
            vm: self.vm,
            mem: &self.ground.mem,
            vcpu: &self.vcpu.mmu,
            id: self.vcpu.id,
            step: self.step,
            view: self.vcpu.view(),
            nested_regs: self.nested_paging_regs(),
            hardware: self.hardware_root(),
            log: &self.ground.log,
        }
    }

    /// Makes requests of this vCPU pending.
    pub fn request(&mut self, requests: Requests) {
        self.vcpu.mmu.requests.post(self.ground, requests);
    }

    /// `kvm_arch_vcpu_ioctl_run`.
    ///
    /// # Errors
    /// If the guest or L0 needs something that is not modelled.
    pub fn run(&mut self) -> Result<Stop, SimError> {
        if let Handled::Stop(stop) = self.resume_fault()? {
            return Ok(stop);
        }
        for _ in 0..ENTRIES_MAX {
            if let Handled::Stop(stop) = self.enter_guest()? {
                return Ok(stop);
            }
        }
        Err(SimError::Runaway { budget: u64::from(ENTRIES_MAX), rip: self.vcpu.rip })
    }

    /// `vcpu_enter_guest`.
    fn enter_guest(&mut self) -> Result<Handled, SimError> {
        if let Handled::Stop(stop) = self.service_requests()? {
            return Ok(Handled::Stop(stop));
        }
        self.take_signals()?;
        self.inject_pending()?;
        let effects = self.mmu(|ctx, vcpu, view| ctx.reload(vcpu, view))?;
        self.perform(effects)?;
        if !self.vcpu.mmu.requests.is_empty() {
            return Ok(Handled::Resume);
        }
        self.checkpoint();
        self.write_registers();
        self.vcpu.last_entry = Some(self.cpu);
        match self.hardware_enter(INSTRUCTIONS_MAX)? {
            HardwareEntry::Exited => {
                self.drain_dirty_log();
                if self.audits == audit::Extent::Everything {
                    self.audit_translations();
                }
            }
            HardwareEntry::Refused => {
                self.vcpu.nested_run = NestedRun::Settled;
                return self.late_entry_failure();
            }
        }
        self.read_registers();
        self.vcpu.interrupted = self.interrupted_event()?;
        self.handle_exit()
    }

    /// What the MMU asked the vendor to do at once.
    ///
    /// # Errors
    /// If hardware refuses.
    pub fn perform(&mut self, effects: Effects) -> Result<(), SimError> {
        if effects.contains(Effects::LOAD_PGD) && !self.vm.plants.has(mmu::plant::Plant::NoPgdWrite) {
            self.load_pgd();
        }
        if effects.contains(Effects::FLUSH_CURRENT) {
            self.judge_flush("RELOAD");
            self.flush_current()?;
        }
        Ok(())
    }

    /// Checkpoint E.
    fn checkpoint(&mut self) {
        let mmu = self.vcpu.mmu.active();
        let (id, role, root) = (mmu.id, mmu.root_role.word(), self.vm.root_view(mmu.root));
        self.ground.record(Event::Checkpoint { mmu: id, role, root });
        if self.audits == audit::Extent::Nothing {
            return;
        }
        let findings = audit::at_entry(&self.subject());
        for finding in findings {
            self.ground.record(Event::Finding { audit: finding.audit.name(), text: finding.to_string() });
            self.findings.push(finding);
        }
    }
}
