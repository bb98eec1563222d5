//! System-management mode of a vCPU (x86.c `enter_smm`, emulate.c `em_rsm`, v5.17; smm.c since v6.2).
//!
//! L0 saves the vCPU's state in the guest's memory, as a processor would, and takes it from there again when SMM code
//! executes RSM. That is an undefined opcode on a processor that is not in SMM itself, and L0 intercepts those. What runs
//! in SMM sees memory slots of its own and has roots of its own (`role.smm`), so the MMU is reset at both edges.
//!
//! What an SMI means to L2 is in [`crate::nested::smm`]. Left out: 32-bit save states, a halted vCPU, the interrupt shadow
//! (kept since v6.2, fb28875fd7da), and NMI masking.

use crate::control_regs::Initiator;
use crate::machine::Machine;
use crate::run::Run;
use crate::signals::Signals;
use cpu::smm::{self, SAVE_STATE, SAVE_STATE_BYTES, SaveState};
use mmu::Change;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{Nesting, Smm};
use sim_core::SimError;
use sim_core::addr::{Gpa, PAGE_BYTES};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::event::Event;

impl Machine {
    /// `KVM_SET_MSRS` of SMBASE, which only userspace may write.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_smbase(&mut self, id: u8, smbase: u64) -> Result<(), SimError> {
        self.on_vcpu(id, |run| {
            run.vcpu.smbase = smbase;
            Ok(())
        })
    }

    /// `KVM_SET_MSRS` of VM_HSAVE_PA (AMD).
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_hsave(&mut self, id: u8, area: Gpa) -> Result<(), SimError> {
        self.on_vcpu(id, |run| {
            run.svm_state_mut().nested.hsave = area.0;
            Ok(())
        })
    }

    /// `KVM_SET_VCPU_EVENTS` with another `smi.smm`. Up to v5.16 a vCPU that is in L2 stays there. Which level runs afterwards.
    ///
    /// # Errors
    /// If there is no such vCPU, or L1's state can't be loaded.
    pub fn set_smm(&mut self, id: u8, smm: Smm) -> Result<Nesting, SimError> {
        self.host_call(format!("set vCPU events: {smm:?} SMM"));
        self.on_vcpu(id, |run| {
            if run.vcpu.smm != smm {
                if run.vm.changes.has(Change::SmmLeavesNested) {
                    run.leave_nested()?;
                }
                run.smm_changed(smm);
            }
            Ok(run.vcpu.nesting)
        })
    }

    /// `KVM_SMI`.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn smi(&mut self, id: u8) -> Result<(), SimError> {
        self.host_call("SMI");
        self.on_vcpu(id, |run| {
            run.vcpu.signals.insert(Signals::SMI);
            Ok(())
        })
    }
}

impl Run<'_> {
    /// `enter_smm`.
    ///
    /// # Errors
    /// If the save state is not in memory, or L1's state can't be loaded.
    pub(crate) fn enter_smm(&mut self) -> Result<(), SimError> {
        self.ground.record(Event::Handled { what: "SMI", detail: format!("SMBASE {:#x}", self.vcpu.smbase) });
        let mut state = SaveState::of(&self.as_processor());
        if !self.vm.plants.has(Plant::SmiKeepsGuestMode) {
            self.suspend_guest(&mut state)?;
        }
        self.smm_changed(Smm::Inside);
        self.save_state_memory(|memory, host, at, room| memory.write_bytes(host, &state.0[at..at + room]))?;
        let (segments, gdtr, mut idtr) = self.guest_segments();
        idtr.base = 0;
        idtr.limit = 0;
        self.set_guest_segments(&smm::segments(self.vcpu.smbase, &segments), gdtr, idtr);
        let vcpu = &mut self.vcpu;
        vcpu.rip = smm::ENTRY;
        vcpu.rflags = Rflags::FIXED;
        vcpu.cr0 -= smm::CLEARED;
        vcpu.cr4 = Cr4::empty();
        vcpu.efer = Efer::empty();
        self.write_controls();
        self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
        Ok(())
    }

    /// An undefined opcode: RSM of SMM code, which hardware knows nothing of (`handle_ud`).
    pub(crate) fn undefined_opcode(&mut self) -> Result<(), SimError> {
        let is_rsm = |instruction: iced_x86::Instruction| instruction.mnemonic() == iced_x86::Mnemonic::Rsm;
        if self.vcpu.smm == Smm::Inside && self.fetch_instruction().is_ok_and(is_rsm) {
            return self.rsm();
        }
        self.queue(Exception::ud());
        Ok(())
    }

    /// `em_rsm`: a save state that no processor can have shuts the guest down.
    fn rsm(&mut self) -> Result<(), SimError> {
        let mut state = SaveState([0; SAVE_STATE_BYTES]);
        self.save_state_memory(|memory, host, at, room| memory.read_bytes(host, &mut state.0[at..at + room]))?;
        self.ground.record(Event::Handled { what: "RSM", detail: format!("SMBASE {:#x}", self.vcpu.smbase) });
        self.smm_changed(Smm::Outside);
        // Back to real mode, where every register can take its value.
        self.vcpu.cr0 -= Cr0::PG | Cr0::PE;
        self.vcpu.cr4 = Cr4::empty();
        self.vcpu.efer = Efer::empty();
        self.write_controls();
        let Some(saved) = state.restored(&self.as_processor()) else {
            self.request(Requests::TRIPLE_FAULT);
            return Ok(());
        };
        if self.resume_guest(&state)?.is_err() || self.load_saved(&saved).is_err() {
            self.request(Requests::TRIPLE_FAULT);
        }
        Ok(())
    }

    /// `rsm_load_state_64` and `rsm_enter_protected_mode`: by the functions that a guest's own writes take, in the order
    /// in which none of them is refused.
    fn load_saved(&mut self, saved: &cpu::Core) -> Result<(), Exception> {
        self.vcpu.gprs = saved.gprs;
        self.vcpu.rip = saved.rip;
        self.vcpu.rflags = saved.rflags;
        self.vcpu.smbase = saved.msrs.smbase;
        self.set_efer((saved.efer - Efer::LMA).bits(), Initiator::Host)?;
        let pcid = if saved.cr4.contains(Cr4::PCIDE) { saved.cr3 & 0xfff } else { 0 };
        self.set_cr3(saved.cr3 & !pcid)?;
        self.set_cr4(saved.cr4 - Cr4::PCIDE)?;
        self.set_cr0(saved.cr0)?;
        if saved.cr4.contains(Cr4::PCIDE) {
            self.set_cr4(saved.cr4)?;
            self.set_cr3(saved.cr3)?;
        }
        self.set_guest_segments(&saved.segments, saved.gdtr, saved.idtr);
        Ok(())
    }

    /// `kvm_smm_changed`.
    fn smm_changed(&mut self, smm: Smm) {
        self.vcpu.smm = smm;
        if !self.vm.plants.has(Plant::SmmChangedWithoutReset) {
            self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
        }
    }

    /// The vCPU as a processor, as far as the save state goes.
    pub(crate) fn as_processor(&self) -> cpu::Core {
        let mut core = cpu::Core::flat32(self.vcpu.mmu.cpuid.maxphyaddr);
        let vcpu = &self.vcpu;
        (core.segments, core.gdtr, core.idtr) = self.guest_segments();
        (core.gprs, core.rip, core.rflags) = (vcpu.gprs, vcpu.rip, vcpu.rflags);
        (core.cr0, core.cr3, core.cr4, core.efer) = (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer);
        core.msrs.smbase = vcpu.smbase;
        core
    }

    /// Every piece of the save state that lies in one page of guest memory, as (host address, offset, bytes).
    fn save_state_memory(
        &mut self,
        mut access: impl FnMut(&mut sim_core::memory::PhysMem, sim_core::Hpa, usize, usize),
    ) -> Result<(), SimError> {
        let start = self.vcpu.smbase.wrapping_add(SAVE_STATE) & 0xffff_ffff;
        let mut done = 0;
        while done < SAVE_STATE_BYTES {
            let at = Gpa(start).offset(done as u64);
            let room = ((PAGE_BYTES - at.page_offset()) as usize).min(SAVE_STATE_BYTES - done);
            let host = self.vm.slots.host(self.space(), at);
            let host =
                host.ok_or_else(|| SimError::unmodelled(format!("a save state of SMM at {at}, without memory")))?;
            access(&mut self.ground.mem, host, done, room);
            done += room;
        }
        Ok(())
    }
}
