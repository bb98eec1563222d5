//! VMRUN of L2 and its #VMEXIT to L1 on SVM (`nested_svm_vmrun`, `enter_svm_guest_mode`, `nested_svm_vmexit`).

use super::Restored;
use super::svm::{Loaded, SAVE_AREA, SavedSvm};
use super::transition::Pdptes;
use crate::exits::Exit;
use crate::inject::Faulted;
use crate::run::Run;
use crate::vcpu::NestedRun;
use cpu::Gpr;
use mmu::Change;
use mmu::guest_walk::WalkFault;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{NestedTdp, Nesting};
use sim_core::SimError;
use sim_core::addr::{Gpa, PAGE_BYTES};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, PageFaultError};
use sim_core::arch::rflags::Rflags;
use sim_core::event::NestedEdge;
use svm::vmcb::{self, Field, SegmentField, TableField};
use svm::{EventInjection, ExitCode};

/// Segment registers that VMRUN and #VMEXIT move (APM2 15.5.1).
pub(super) const VMRUN_SEGMENTS: [SegmentField; 4] =
    [SegmentField::Es, SegmentField::Cs, SegmentField::Ss, SegmentField::Ds];
/// Descriptor tables that VMRUN and #VMEXIT move.
pub(super) const VMRUN_TABLES: [TableField; 2] = [TableField::Gdtr, TableField::Idtr];

/// Bits of DR6 that always read as 1 (SDM 3B 17.2.3).
const DR6_FIXED: u64 = 0xffff_0ff0;
/// Bits of DR7 that always read as 1 (SDM 3B 17.2.4).
const DR7_FIXED: u64 = 0x400;

/// Fields that #VMEXIT writes back as hardware left them in vmcb02 (APM2 15.6).
const SAVED_FIELDS: [Field; 10] = [
    Field::Rflags,
    Field::Rip,
    Field::Rsp,
    Field::Rax,
    Field::Cr2,
    Field::Dr6,
    Field::Dr7,
    Field::Cpl,
    Field::InterruptShadow,
    Field::VirtualInterrupt,
];

/// An exit code that hardware never uses (APM2 table C-1).
const SVM_EXIT_SW: u64 = 0xf000_0000;

/// What L1 is told about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    code: u64,
    info1: u64,
    info2: u64,
}

const CR3_REFUSED: &str = "an exit leaves L1 on the MMU of its L2 (nested_svm_vmexit where nested_svm_load_cr3 fails)";
const CR4_LOST: &str = "L1 gets the CR4 of its L2 at an exit (svm_set_cr0 without nested paging)";

impl Run<'_> {
    /// `nested_svm_vmrun`.
    pub(super) fn nested_vmrun(&mut self, at: Gpa) -> Result<(), SimError> {
        if !self.is_vmcb(at) {
            self.queue(Exception::gp0());
            return Ok(());
        }
        self.skip_instruction();
        self.copy_vmcb12(at);
        if !self.vmcb12_is_legal() {
            self.tell_nested(NestedEdge::EntryFailed, ExitCode::Invalid.name());
            return self.write_vmcb12_exit(&Told { code: ExitCode::Invalid.number(), info1: 0, info2: 0 });
        }
        self.save_l1();
        if self.enter_l2(Pdptes::Reload).is_err() {
            self.tell_nested(NestedEdge::EntryFailed, ExitCode::Invalid.name());
            return self.nested_vmexit(&Told { code: ExitCode::Invalid.number(), info1: 0, info2: 0 });
        }
        self.vcpu.nested_run = NestedRun::Pending;
        self.tell_nested(NestedEdge::Enter, "");
        Ok(())
    }

    fn copy_vmcb12(&mut self, at: Gpa) {
        let mut page = vec![0; PAGE_BYTES as usize];
        if let Some(host) = self.vm.slots.host(self.space(), at) {
            self.ground.mem.read_bytes(host, &mut page);
        }
        let copy = self.svm_state().nested.vmcb12;
        self.ground.mem.write_bytes(copy, &page);
        self.svm_state_mut().nested.vmcb12_gpa = at;
    }

    /// What #VMEXIT will give back to L1: vmcb01 takes the registers as the guest sees them.
    fn save_l1(&mut self) {
        self.write_registers();
        for (field, value) in [
            (Field::Efer, self.vcpu.efer.bits()),
            (Field::Cr0, self.vcpu.cr0.bits()),
            (Field::Cr4, self.vcpu.cr4.bits()),
            (Field::Cr3, self.vcpu.cr3),
        ] {
            self.vmcb_set(field, value);
        }
    }

    /// `enter_svm_guest_mode` for VMRUN.
    fn enter_l2(&mut self, pdptes: Pdptes) -> Result<(), super::transition::LoadCr3Error> {
        self.svm_state_mut().nested.loaded = Loaded::Vmcb02;
        self.prepare_control();
        self.prepare_save();
        let cr3 = self.vmcb12(Field::Cr3);
        let nested_tdp = self.vcpu.mmu.nested_tdp;
        self.nested_load_cr3(cr3, nested_tdp, pdptes)
    }

    /// `nested_vmcb02_prepare_control`. Up to v6.13 guest mode is entered last, so that the nested NPT MMU is
    /// initialised for L1 (C-2).
    fn prepare_control(&mut self) {
        self.merge_intercepts();
        // nRIP is where an injected software event returns to. L0 has no TSC offset of its own.
        for field in
            [Field::EventInjection, Field::NextRip, Field::InterruptShadow, Field::VirtualInterrupt, Field::TscOffset]
        {
            let value = self.vmcb12(field);
            self.vmcb_set(field, value);
        }
        if self.vm.changes.has(Change::NnptGuestModeFirst) {
            self.svm_transition_flush();
            self.switch_context(Nesting::L2);
            self.nested_npt_init();
        } else {
            self.nested_npt_init();
            self.svm_transition_flush();
            self.switch_context(Nesting::L2);
        }
    }

    /// `nested_svm_init_mmu_context`.
    fn nested_npt_init(&mut self) {
        if !self.has_nested_npt() {
            return;
        }
        let nested_cr3 = self.vmcb12(Field::NestedCr3);
        let l1 = self.svm_l1_regs();
        self.vcpu.nested_pgd = nested_cr3;
        self.vcpu.mmu.nested_tdp = NestedTdp::Active;
        self.mmu(|ctx, vcpu, view| ctx.init_nested_npt(vcpu, view, l1, nested_cr3));
    }

    /// `nested_svm_transition_tlb_flush`: always everything, both ways.
    fn svm_transition_flush(&mut self) {
        if !self.vm.plants.has(Plant::TransitionFlushMissing) {
            self.request(Requests::MMU_SYNC | Requests::TLB_FLUSH_CURRENT);
        }
    }

    /// `nested_vmcb02_prepare_save`.
    fn prepare_save(&mut self) {
        let (vmcb02, vmcb12) = (self.vmcb(), self.svm_state().nested.vmcb12);
        let mem = &mut self.ground.mem;
        for field in VMRUN_SEGMENTS {
            let segment = vmcb::read_segment(mem, vmcb12, field);
            vmcb::write_segment(mem, vmcb02, field, &segment);
        }
        for field in VMRUN_TABLES {
            let table = vmcb::read_table(mem, vmcb12, field);
            vmcb::write_table(mem, vmcb02, field, table);
        }
        let cpl = vmcb::read_segment(mem, vmcb12, SegmentField::Ss).rights.dpl();
        vmcb::write(mem, vmcb02, Field::Cpl, u64::from(cpl));
        for (field, fixed) in [(Field::Dr6, DR6_FIXED), (Field::Dr7, DR7_FIXED)] {
            let value = vmcb::read(mem, vmcb12, field);
            vmcb::write(mem, vmcb02, field, value | fixed);
        }
        self.vcpu.cr0 = Cr0::from_bits_retain(self.vmcb12(Field::Cr0));
        self.vcpu.cr4 = Cr4::from_bits_retain(self.vmcb12(Field::Cr4));
        self.vcpu.efer = active_long_mode(Efer::from_bits_retain(self.vmcb12(Field::Efer)), self.vcpu.cr0);
        self.vcpu.rflags = Rflags::from_bits_retain(self.vmcb12(Field::Rflags)) | Rflags::FIXED;
        self.vcpu.gprs[Gpr::Rax as usize] = self.vmcb12(Field::Rax);
        self.vcpu.gprs[Gpr::Rsp as usize] = self.vmcb12(Field::Rsp);
        self.vcpu.rip = self.vmcb12(Field::Rip);
        self.vcpu.cr2 = self.vmcb12(Field::Cr2);
        self.write_controls();
    }

    /// Gives L1 the exit that hardware reported.
    pub(crate) fn svm_reflect(&mut self, exit: &Exit) -> Result<(), SimError> {
        let hardware = self.exit_code()?;
        let full = self.vmcb12(Field::InterceptCrWrites) & 1 != 0;
        let code = if !full && self.is_selective_cr0(exit) { ExitCode::Cr0SelectiveWrite } else { hardware };
        let told = Told {
            code: code.number(),
            info1: self.vmcb_get(Field::ExitInfo1),
            info2: self.vmcb_get(Field::ExitInfo2),
        };
        self.nested_vmexit(&told)
    }

    pub(crate) fn svm_exception_exit(&mut self, exception: &Exception) -> Result<(), SimError> {
        self.nested_vmexit(&Told {
            code: ExitCode::Exception(exception.vector.number()).number(),
            info1: u64::from(exception.error.unwrap_or(0)),
            info2: exception.cr2.map_or(0, |address| address.0),
        })
    }

    /// `nested_svm_simple_vmexit` for an event that L1 intercepts.
    pub(crate) fn svm_event_exit(&mut self, code: ExitCode) -> Result<(), SimError> {
        self.nested_vmexit(&Told { code: code.number(), info1: 0, info2: 0 })
    }

    /// The exit that takes L2 out for an SMI.
    pub(crate) fn svm_smi_exit(&mut self) -> Result<(), SimError> {
        self.nested_vmexit(&Told { code: SVM_EXIT_SW, info1: 0, info2: 0 })
    }

    /// `enter_svm_guest_mode` for RSM, which vmcb01 is ready for.
    pub(crate) fn enter_l2_again(&mut self, at: Gpa) -> Result<(), super::transition::LoadCr3Error> {
        self.copy_vmcb12(at);
        self.svm_state_mut().nested.gif = svm::Gif::Set;
        self.enter_l2(Pdptes::Keep)?;
        self.request(Requests::GET_NESTED_STATE_PAGES);
        Ok(())
    }

    pub(crate) fn svm_triple_fault(&mut self) -> Result<(), SimError> {
        self.nested_vmexit(&Told { code: ExitCode::Shutdown.number(), info1: 0, info2: 0 })
    }

    /// `nested_svm_inject_npf_exit`: EXITINFO1's upper half says what hardware was translating, the lower half what
    /// the walk of L1's tables found.
    pub(crate) fn svm_stage_exit(&mut self, address: u64, fault: WalkFault) -> Result<(), SimError> {
        let WalkFault::Page(error) = fault else {
            return Err(SimError::internal("an EPT fault of nested NPT tables"));
        };
        self.drop_faulted(Faulted::Nested(address))?;
        // A fault that L0's emulator met counts as one of the final access (`nested_svm_inject_npf_exit`).
        let upper = match self.exit_code()? {
            ExitCode::NestedPageFault => self.vmcb_get(Field::ExitInfo1) & !0xffff_ffff,
            _ => 1 << 32,
        };
        let error = u64::from((error | PageFaultError::U).bits());
        self.nested_vmexit(&Told { code: ExitCode::NestedPageFault.number(), info1: upper | error, info2: address })
    }

    /// `nested_svm_vmexit`.
    fn nested_vmexit(&mut self, told: &Told) -> Result<(), SimError> {
        if self.vm.slots.host(self.space(), self.svm_state().nested.vmcb12_gpa).is_none() {
            // vmcb12's memory went away while L2 ran: L2 goes on with #GP.
            self.queue(Exception::gp0());
            return Ok(());
        }
        self.write_registers();
        self.write_vmcb12_state();
        self.write_vmcb12_exit(told)?;
        self.switch_context(Nesting::L1);
        let name = ExitCode::from_number(told.code).map_or("SVM_EXIT_SW", ExitCode::name);
        self.tell_nested(NestedEdge::Exit, name);
        self.svm_state_mut().nested.loaded = Loaded::Vmcb01;
        self.svm_state_mut().nested.gif = svm::Gif::Clear;
        let l1 = self.l1_registers();
        let cr4 = self.cr4_for_l1(&l1);
        self.vcpu.efer = l1.efer;
        self.vcpu.cr0 = l1.cr0 | Cr0::PE;
        self.vcpu.cr4 = cr4;
        self.vcpu.rflags = l1.rflags | Rflags::FIXED;
        self.reload_l1_registers();
        self.write_controls();
        self.svm_transition_flush();
        self.mmu(|ctx, vcpu, _| ctx.leave_nested_tdp(vcpu));
        if self.nested_load_cr3(l1.cr3, NestedTdp::Inactive, Pdptes::Reload).is_err() {
            // L1's PDPTEs went bad while its guest ran: #VMEXIT shuts down (APM2 15.6).
            if self.vm.changes.has(Change::SvmExitFailsSilently) {
                self.mmu(|ctx, _, _| ctx.warn_of(CR3_REFUSED, Some("svm-exit-cr3")));
            } else {
                self.request(Requests::TRIPLE_FAULT);
            }
        }
        Ok(())
    }

    /// L1's CR4 behind an exit. Without nested paging `svm_set_cr0` writes CR4 anew where it switches paging on or off: it takes the
    /// vCPU's, which is L2's still, and puts it into vmcb01, from which `nested_svm_vmexit` takes L1's next.
    fn cr4_for_l1(&mut self, l1: &L1Registers) -> Cr4 {
        let switches = self.vcpu.cr0.contains(Cr0::PG) != l1.cr0.contains(Cr0::PG);
        if self.tdp() || !switches || !self.vm.changes.has(Change::SvmExitKeepsCr4) {
            return l1.cr4;
        }
        let unpaged = if l1.cr0.contains(Cr0::PG) { Cr4::empty() } else { Cr4::SMEP | Cr4::SMAP | Cr4::PKE };
        let cr4 = (self.vcpu.cr4 | Cr4::PAE) - unpaged;
        if cr4 != l1.cr4 {
            self.mmu(|ctx, _, _| ctx.warn_of(CR4_LOST, Some("svm-exit-cr4")));
        }
        cr4
    }

    /// What vmcb01 kept of L1.
    fn l1_registers(&self) -> L1Registers {
        let regs = self.svm_l1_regs();
        L1Registers {
            cr0: regs.cr0,
            cr4: regs.cr4,
            efer: regs.efer,
            cr3: self.vmcb_get(Field::Cr3),
            rflags: Rflags::from_bits_retain(self.vmcb_get(Field::Rflags)),
        }
    }

    /// L2's registers, as L1 will find them in its VMCB.
    fn write_vmcb12_state(&mut self) {
        let (vmcb02, at) = (self.vmcb(), self.svm_state().nested.vmcb12_gpa);
        let Some(vmcb12) = self.vm.slots.host(self.space(), at) else { return };
        let own = [
            (Field::Efer, self.vcpu.efer.bits()),
            (Field::Cr0, self.vcpu.cr0.bits()),
            (Field::Cr3, self.vcpu.cr3),
            (Field::Cr4, self.vcpu.cr4.bits()),
        ];
        let mem = &mut self.ground.mem;
        for field in VMRUN_SEGMENTS {
            let segment = vmcb::read_segment(mem, vmcb02, field);
            vmcb::write_segment(mem, vmcb12, field, &segment);
        }
        for field in VMRUN_TABLES {
            let table = vmcb::read_table(mem, vmcb02, field);
            vmcb::write_table(mem, vmcb12, field, table);
        }
        for field in SAVED_FIELDS {
            let value = vmcb::read(mem, vmcb02, field);
            vmcb::write(mem, vmcb12, field, value);
        }
        for (field, value) in own {
            vmcb::write(mem, vmcb12, field, value);
        }
    }

    fn write_vmcb12_exit(&mut self, told: &Told) -> Result<(), SimError> {
        let at = self.svm_state().nested.vmcb12_gpa;
        let next_rip = self.vmcb_get(Field::NextRip);
        let interrupted = self.vcpu.interrupted.take().map_or(0, |exception| EventInjection::of(&exception).0);
        let vmcb12 = self
            .vm
            .slots
            .host(self.space(), at)
            .ok_or_else(|| SimError::internal("a vmcb12 without memory at its exit"))?;
        for (field, value) in [
            (Field::ExitCode, told.code),
            (Field::ExitInfo1, told.info1),
            (Field::ExitInfo2, told.info2),
            (Field::ExitIntInfo, interrupted),
            (Field::EventInjection, 0),
            (Field::NextRip, next_rip),
        ] {
            vmcb::write(&mut self.ground.mem, vmcb12, field, value);
        }
        Ok(())
    }

    /// `svm_leave_nested`: back to vmcb01 and `root_mmu`, and nothing else: no CR3 is loaded, no MMU initialised.
    pub(crate) fn svm_leave_nested(&mut self) {
        self.write_registers();
        self.switch_context(Nesting::L1);
        self.svm_state_mut().nested.loaded = Loaded::Vmcb01;
        self.mmu(|ctx, vcpu, _| ctx.leave_nested_tdp(vcpu));
        self.vcpu.mmu.requests.remove(Requests::GET_NESTED_STATE_PAGES);
        self.tell_nested(NestedEdge::Leave, "");
    }

    /// `svm_set_nested_state`: the registers are L2's already, set by `KVM_SET_SREGS`.
    pub(crate) fn svm_restore_nested(&mut self, saved: &SavedSvm, how: Restored) -> Result<(), SimError> {
        let state = self.svm_state().clone();
        if how.nesting == Nesting::L1 {
            return Ok(());
        }
        if how.was == Nesting::L1 {
            // L2's segments came with KVM_SET_SREGS, onto the VMCB that was loaded then.
            let mut current = vec![0; (PAGE_BYTES - SAVE_AREA) as usize];
            self.ground.mem.read_bytes(state.vmcb01.offset(SAVE_AREA), &mut current);
            self.ground.mem.write_bytes(state.vmcb02.offset(SAVE_AREA), &current);
        }
        self.ground.mem.write_bytes(state.vmcb01.offset(SAVE_AREA), &saved.vmcb01_save);
        self.ground.mem.write_bytes(state.nested.vmcb12, &saved.vmcb12);
        let nested = &mut self.svm_state_mut().nested;
        nested.vmcb12_gpa = saved.nested.vmcb12_gpa;
        nested.hsave = saved.nested.hsave;
        nested.gif = saved.nested.gif;
        nested.loaded = Loaded::Vmcb02;
        self.prepare_control();
        self.write_controls();
        let (cr3, nested_tdp) = (self.vcpu.cr3, self.vcpu.mmu.nested_tdp);
        self.nested_load_cr3(cr3, nested_tdp, Pdptes::Keep)
            .map_err(|_| SimError::unmodelled("nested state with a CR3 that can't be loaded"))?;
        self.request(Requests::GET_NESTED_STATE_PAGES);
        self.tell_nested(NestedEdge::Restore, "");
        Ok(())
    }
}

struct L1Registers {
    cr0: Cr0,
    cr4: Cr4,
    efer: Efer,
    cr3: u64,
    rflags: Rflags,
}

/// VMRUN derives LMA from LME and PG (APM2 15.5.1).
const fn active_long_mode(efer: Efer, cr0: Cr0) -> Efer {
    if efer.contains(Efer::LME) && cr0.contains(Cr0::PG) { efer.union(Efer::LMA) } else { efer.difference(Efer::LMA) }
}
