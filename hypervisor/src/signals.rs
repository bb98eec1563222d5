//! SMI, INIT and start-up IPI to a vCPU (lapic.c `kvm_apic_accept_events`, x86.c `kvm_vcpu_reset`, v5.17), taken where the
//! loop looks for events, before it enters the guest.
//!
//! Every vCPU is an application processor: after an INIT it waits for a start-up IPI, and one that comes at another time
//! is lost. Left out: the local APIC that other vCPUs would send them by, RESET, and an event that L1 injects with an entry that
//! a signal ends.

use crate::machine::Machine;
use crate::nested::smm::InitOfL2;
use crate::run::Run;
use crate::vcpu::NestedRun;
use bitflags::bitflags;
use mmu::Change;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{Nesting, Smm};
use mmu::stats::Stat;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::arch::control::Cr0;
use sim_core::event::Event;

bitflags! {
    /// Signals that wait for a vCPU.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Signals: u8 {
        /// SMI (`arch.smi_pending`).
        const SMI = 1 << 0;
        /// INIT (`KVM_APIC_INIT`).
        const INIT = 1 << 1;
    }
}

impl Machine {
    /// An INIT and a start-up IPI with a vector, as another processor sends them to start this one.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn init_and_start(&mut self, id: u8, vector: u8) -> Result<(), SimError> {
        self.host_call("INIT, SIPI");
        self.on_vcpu(id, |run| {
            run.vcpu.signals.insert(Signals::INIT);
            run.vcpu.sipi = Some(vector);
            Ok(())
        })
    }
}

impl Run<'_> {
    /// `kvm_apic_accept_events`, and the part of `inject_pending_event` that is about SMIs.
    ///
    /// # Errors
    /// If a nested exit fails, or something is not modelled.
    pub(crate) fn take_signals(&mut self) -> Result<(), SimError> {
        if self.vcpu.signals.is_empty() {
            return Ok(());
        }
        self.enter_for_nothing();
        if self.vcpu.signals.contains(Signals::INIT) {
            self.accept_init()?;
        }
        let busy = self.vcpu.pending.is_some() || self.vcpu.interrupted.is_some();
        if self.vcpu.signals.contains(Signals::SMI) && !busy && self.vcpu.smm == Smm::Outside {
            self.accept_smi()?;
        }
        Ok(())
    }

    /// A nested entry that hardware has yet to do comes first, and exits at once (`nested_run_pending`,
    /// `req_immediate_exit`): nothing of L2 runs, and only the counter tells.
    fn enter_for_nothing(&mut self) {
        if std::mem::take(&mut self.vcpu.nested_run) == NestedRun::Pending {
            self.vm.stats.count(Stat::NestedRun);
        }
    }

    fn accept_smi(&mut self) -> Result<(), SimError> {
        if self.vcpu.nesting == Nesting::L2 && self.l1_intercepts_smi() {
            return self.nested_smi_exit();
        }
        if !self.gif_is_clear() {
            self.vcpu.signals.remove(Signals::SMI);
            self.enter_smm()?;
        }
        Ok(())
    }

    fn accept_init(&mut self) -> Result<(), SimError> {
        let sipi = self.vcpu.sipi.take();
        if self.vcpu.nesting == Nesting::L2 && self.nested_init()? == InitOfL2::IsAnExit {
            return Ok(());
        }
        // `kvm_vcpu_latch_init`, `vmx_apic_init_signal_blocked`, `svm_apic_init_signal_blocked`.
        if self.vcpu.smm == Smm::Inside || self.vmx_is_on() || self.gif_is_clear() {
            return Ok(());
        }
        self.vcpu.signals.remove(Signals::INIT);
        let Some(vector) = sipi else {
            return Err(SimError::unmodelled("a vCPU that waits for a start-up IPI"));
        };
        self.leave_nested_at_reset()?;
        self.init_vcpu(vector);
        Ok(())
    }

    /// `kvm_vcpu_reset` for an INIT, and `kvm_vcpu_deliver_sipi_vector`.
    fn init_vcpu(&mut self, vector: u8) {
        self.ground.record(Event::Handled { what: "INIT", detail: format!("start-up vector {vector:#x}") });
        let was_paged = self.vcpu.cr0.contains(Cr0::PG);
        let mut core = self.as_processor();
        cpu::reset::init(&mut core);
        cpu::reset::start_up(&mut core, vector);
        let vcpu = &mut self.vcpu;
        (vcpu.gprs, vcpu.rip, vcpu.rflags) = (core.gprs, core.rip, core.rflags);
        (vcpu.cr0, vcpu.cr2, vcpu.cr3, vcpu.cr4, vcpu.efer) = (core.cr0, 0, core.cr3, core.cr4, core.efer);
        vcpu.pdptes = [0; 4];
        vcpu.cr8 = 0;
        (vcpu.pending, vcpu.interrupted) = (None, None);
        self.set_guest_segments(&core.segments, core.gdtr, core.idtr);
        self.write_controls();
        self.write_guest_cr3();
        self.reset_nested();
        // Of the bits that a role depends on, only PG can have been set without being irrelevant (0aa1837533e5).
        let resets = self.vm.changes.has(Change::InitResetsMmu) && !self.vm.plants.has(Plant::InitKeepsMmu);
        if was_paged && resets {
            self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
        }
        if self.vm.changes.has(Change::InitFlushes) && !self.vm.plants.has(Plant::InitKeepsTlb) {
            self.request(Requests::TLB_FLUSH_GUEST);
        }
    }
}
