//! SVM for the vCPU loop (KVM v5.17 svm.c): two VMCBs a vCPU, one for L1 and one for L2, in host memory.
//!
//! One ASID serves L1 and L2 of a vCPU, as in KVM; a flush is TLB_CONTROL in the current VMCB. Every MSR and every port
//! is intercepted, CR3 and page faults only without nested paging.

use crate::exits::Exit;
use crate::machine::{Ext, LogicalProcessor, Setup, Tdp};
use crate::nested::svm::{Loaded, NestedSvm, VMLOAD_SEGMENTS};
use crate::run::Run;
use crate::tags::VmcbTag;
use crate::vcpu::VendorState;
use crate::vendor::HardwareEntry;
use crate::vendor::vmx::gpr_numbered;
use ::mmu::Vm;
use ::mmu::state::{NestedTdp, Nesting};
use cpu::Gpr;
use cpu::core::{Core, Segments};
use cpu::virt::ControlRegister;
use iced_x86::Mnemonic;
use serde::{Deserialize, Serialize};
use sim_core::addr::PAGE_BYTES;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, PageFaultError, Vector};
use sim_core::arch::msr;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Segment, TableRegister};
use sim_core::{Gpa, Ground, Gva, Hpa, SimError};
use svm::vmcb::{self, Field, SegmentField, TableField};
use svm::{Capabilities, Entered, EventInjection, ExitCode, Intercepts, Svm};

/// A vCPU's SVM state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SvmState {
    /// The VMCB that L1 runs on.
    pub vmcb01: Hpa,
    /// The VMCB that L2 runs on.
    pub vmcb02: Hpa,
    /// The ASID of both.
    pub asid: u32,
    /// Where vmcb01 and vmcb02 ran last.
    pub tags: [VmcbTag; 2],
    /// What L1 did with its own SVM.
    pub nested: NestedSvm,
}

/// Frames of an I/O permission map (APM2 15.10.1) and of an MSR permission map (APM2 15.11).
const IOPM_FRAMES: u64 = 3;
const MSRPM_FRAMES: u64 = 2;
/// Makes a processor with SVM switched on.
///
/// # Errors
/// If host memory runs out.
pub fn create_processor(
    mut core: Core,
    ground: &mut Ground,
    vm: &mut Vm,
    setup: &Setup,
) -> Result<LogicalProcessor, SimError> {
    let mut unit = Svm::new(Capabilities { nasid: setup.asids, ..Capabilities::default() });
    core.efer |= Efer::SVME;
    unit.set_hsave(vm.frames.take(ground)?.base());
    Ok(LogicalProcessor { core, ext: Ext::Svm(Box::new(unit)) })
}

/// Makes a vCPU's SVM state.
///
/// # Errors
/// If host memory runs out.
pub fn create(core: &Core, ground: &mut Ground, vm: &mut Vm, setup: &Setup) -> Result<VendorState, SimError> {
    let [vmcb01, vmcb02, vmcb12] =
        [vm.frames.take(ground)?, vm.frames.take(ground)?, vm.frames.take(ground)?].map(sim_core::Hfn::base);
    let maps = vm.frames.take_run(IOPM_FRAMES + MSRPM_FRAMES)?.base();
    ground.mem.write_bytes(maps, &vec![0xff; ((IOPM_FRAMES + MSRPM_FRAMES) * PAGE_BYTES) as usize]);
    for region in [vmcb01, vmcb02] {
        write_constant_fields(ground, region, maps, core, setup);
    }
    let tags = [VmcbTag::default(); 2];
    Ok(VendorState::Svm(Box::new(SvmState { vmcb01, vmcb02, asid: 0, tags, nested: NestedSvm::new(vmcb12) })))
}

fn write_constant_fields(ground: &mut Ground, region: Hpa, maps: Hpa, core: &Core, setup: &Setup) {
    let shadow = setup.tdp == Tdp::Off;
    let bit = |register: u64| 1 << register;
    let cr3 = if shadow { bit(3) } else { 0 };
    let page_fault = if shadow { bit(u64::from(Vector::PageFault.number())) } else { 0 };
    let mut intercepts = l0_intercepts();
    intercepts.set(Intercepts::INVLPG | Intercepts::INVPCID, shadow);
    intercepts.write(&mut ground.mem, region);
    for (field, value) in [
        (Field::InterceptCrReads, bit(4) | cr3),
        (Field::InterceptCrWrites, bit(0) | bit(4) | bit(8) | cr3),
        (Field::InterceptExceptions, page_fault | bit(u64::from(Vector::InvalidOpcode.number()))),
        (Field::IopmBase, maps.0),
        (Field::MsrpmBase, maps.offset(IOPM_FRAMES * PAGE_BYTES).0),
        (Field::NestedControl, u64::from(!shadow)),
        (Field::GuestPat, core.msrs.pat),
        (Field::Dr6, 0xffff_0ff0),
        (Field::Dr7, 0x400),
    ] {
        vmcb::write(&mut ground.mem, region, field, value);
    }
}

/// What L0 intercepts beside control registers, page faults and INVLPG.
fn l0_intercepts() -> Intercepts {
    Intercepts::CPUID
        | Intercepts::HLT
        | Intercepts::IO
        | Intercepts::MSR
        | Intercepts::SHUTDOWN
        | Intercepts::INVLPGA
        | Intercepts::VMRUN
        | Intercepts::VMMCALL
        | Intercepts::VMLOAD
        | Intercepts::VMSAVE
        | Intercepts::STGI
        | Intercepts::CLGI
        | Intercepts::WBINVD
}

impl Run<'_> {
    pub(crate) fn svm_state(&self) -> &SvmState {
        match &self.vcpu.vendor {
            VendorState::Svm(state) => state,
            VendorState::Vmx(_) => unreachable!("SVM code runs only on SVM vCPUs"),
        }
    }

    pub(crate) fn svm_state_mut(&mut self) -> &mut SvmState {
        match &mut self.vcpu.vendor {
            VendorState::Svm(state) => state,
            VendorState::Vmx(_) => unreachable!("SVM code runs only on SVM vCPUs"),
        }
    }

    /// The SVM unit, the processor and the ground, all to change.
    pub(crate) fn svm_parts(&mut self) -> (&mut Svm, &mut Core, &mut Ground) {
        match &mut self.processor.ext {
            Ext::Svm(unit) => (unit, &mut self.processor.core, self.ground),
            Ext::Vmx(_) => unreachable!("SVM code runs only on SVM processors"),
        }
    }

    /// The VMCB of whoever runs.
    pub(crate) fn vmcb(&self) -> Hpa {
        let state = self.svm_state();
        match state.nested.loaded {
            Loaded::Vmcb01 => state.vmcb01,
            Loaded::Vmcb02 => state.vmcb02,
        }
    }

    /// A field of the current VMCB.
    pub(crate) fn vmcb_get(&self, field: Field) -> u64 {
        vmcb::read(&self.ground.mem, self.vmcb(), field)
    }

    /// Writes a field of the current VMCB.
    pub(crate) fn vmcb_set(&mut self, field: Field, value: u64) {
        let at = self.vmcb();
        vmcb::write(&mut self.ground.mem, at, field, value);
    }

    pub(crate) fn svm_enter(&mut self) -> Result<Option<HardwareEntry>, SimError> {
        self.svm_pre_run();
        let (at, vmcb01) = (self.vmcb(), self.svm_state().vmcb01);
        let (unit, core, ground) = self.svm_parts();
        // VMRUN does not load FS, GS, TR, LDTR and the system-call registers; L1's VMCB keeps them for L2 too, as L1
        // loads them for L2 by its own VMLOAD (KVM __svm_vcpu_run).
        unit.vmload(core, ground, vmcb01);
        let entered = unit.enter(core, ground, at)?;
        // #VMEXIT cleared the host's GIF (APM2 15.17).
        self.svm_parts().0.stgi();
        self.vmcb_set(Field::TlbControl, 0);
        Ok(match entered {
            Entered::Guest => None,
            Entered::Refused => Some(HardwareEntry::Exited),
        })
    }

    /// `svm_set_cr0`, `svm_set_cr4`, `svm_set_efer`.
    pub(crate) fn svm_write_controls(&mut self) {
        let (cr0, cr4, efer) = (self.vcpu.cr0, self.vcpu.cr4, self.vcpu.efer | Efer::SVME);
        let cr0 = cr0 - (Cr0::NW | Cr0::CD);
        let (cr0, cr4, efer) = if self.tdp() {
            (cr0, cr4, efer)
        } else {
            let unpaged = if cr0.contains(Cr0::PG) { Cr4::empty() } else { Cr4::SMEP | Cr4::SMAP };
            let efer = if efer.contains(Efer::LMA) { efer } else { efer - Efer::LME };
            (cr0 | Cr0::PG | Cr0::WP | Cr0::PE, (cr4 - unpaged) | Cr4::PAE, efer | Efer::NXE)
        };
        for (field, value) in
            [(Field::Cr0, cr0.bits()), (Field::Cr4, (cr4 - Cr4::VMXE).bits()), (Field::Efer, efer.bits())]
        {
            self.vmcb_set(field, value);
        }
        self.answer_cr0_reads(cr0 != self.vcpu.cr0);
    }

    /// Reads of CR0 are answered where hardware's is not the guest's; SMSW and MOV leave no exit otherwise. KVM does the same with
    /// writes, which it gets by the selective intercept then: here each of them exits.
    fn answer_cr0_reads(&mut self, answer: bool) {
        let vmcb01 = self.svm_state().vmcb01;
        let others = vmcb::read(&self.ground.mem, vmcb01, Field::InterceptCrReads) & !1;
        vmcb::write(&mut self.ground.mem, vmcb01, Field::InterceptCrReads, others | u64::from(answer));
        if self.vcpu.nesting == Nesting::L2 {
            self.merge_intercepts();
        }
    }

    pub(crate) fn svm_write_guest_cr3(&mut self) {
        if self.tdp() {
            self.vmcb_set(Field::Cr3, self.vcpu.cr3);
        }
    }

    /// `svm_load_mmu_pgd`.
    pub(crate) fn svm_load_pgd(&mut self) {
        let root = self.vcpu.mmu.active().root.hpa;
        if !root.is_valid() {
            return;
        }
        if self.tdp() {
            self.vmcb_set(Field::NestedCr3, root.0);
            if self.load_writes_cr3() {
                self.svm_write_guest_cr3();
            }
        } else {
            let pcid = if self.vcpu.cr4.contains(Cr4::PCIDE) { self.vcpu.cr3 & 0xfff } else { 0 };
            self.vmcb_set(Field::Cr3, root.0 | pcid);
        }
    }

    pub(crate) fn svm_hardware_root(&self) -> u64 {
        self.vmcb_get(if self.tdp() { Field::NestedCr3 } else { Field::Cr3 })
    }

    pub(crate) fn svm_write_registers(&mut self) {
        self.processor.core.gprs = self.vcpu.gprs;
        for (field, value) in [
            (Field::Rax, self.vcpu.gprs[Gpr::Rax as usize]),
            (Field::Rsp, self.vcpu.gprs[Gpr::Rsp as usize]),
            (Field::Rip, self.vcpu.rip),
            (Field::Rflags, self.vcpu.rflags.bits()),
            (Field::Cr2, self.vcpu.cr2),
        ] {
            self.vmcb_set(field, value);
        }
    }

    pub(crate) fn svm_read_registers(&mut self) {
        let vmcb01 = self.svm_state().vmcb01;
        let (unit, core, ground) = self.svm_parts();
        unit.vmsave(core, ground, vmcb01);
        self.vcpu.gprs = self.processor.core.gprs;
        self.vcpu.gprs[Gpr::Rax as usize] = self.vmcb_get(Field::Rax);
        self.vcpu.gprs[Gpr::Rsp as usize] = self.vmcb_get(Field::Rsp);
        self.vcpu.rip = self.vmcb_get(Field::Rip);
        self.vcpu.rflags = Rflags::from_bits_retain(self.vmcb_get(Field::Rflags));
        self.vcpu.cr2 = self.vmcb_get(Field::Cr2);
        if self.tdp() {
            self.vcpu.cr3 = self.vmcb_get(Field::Cr3);
            self.read_pdptes_again();
        }
    }

    /// With nested paging PDPTEs are no registers: hardware reads them at every walk (APM2 15.25.10), and so does L0
    /// whenever it needs them (`svm_cache_reg`). Those of an L2 with nested paging are read through L1's tables then.
    fn read_pdptes_again(&mut self) {
        if !self.vcpu.is_pae() || self.vcpu.mmu.nested_tdp == NestedTdp::Active {
            return;
        }
        let table = Gpa(self.vcpu.cr3 & 0xffff_ffe0);
        let read = |index: u64| {
            let host = self.vm.slots.host(self.space(), table.offset(index * 8));
            host.map_or(0, |host| self.ground.mem.read_u64(host))
        };
        self.vcpu.pdptes = [0, 1, 2, 3].map(read);
    }

    pub(crate) fn svm_skip(&mut self) {
        self.vcpu.rip = self.vmcb_get(Field::NextRip);
        // The instruction is done, and with it the shadow that it ran in (`svm_set_interrupt_shadow`).
        self.vmcb_set(Field::InterruptShadow, 0);
    }

    pub(crate) fn svm_decode_exit(&mut self) -> Result<Exit, SimError> {
        let number = self.vmcb_get(Field::ExitCode);
        let info1 = self.vmcb_get(Field::ExitInfo1);
        let info2 = self.vmcb_get(Field::ExitInfo2);
        let code = ExitCode::from_number(number).ok_or_else(|| SimError::internal(format!("exit code {number:#x}")))?;
        let gpr = gpr_numbered(info1 & 0xf);
        Ok(match code {
            ExitCode::Io => Exit::Io { port: (info1 >> 16) as u16, input: info1 & 1 != 0 },
            // With decode assists bit 63 tells MOV from LMSW, SMSW and CLTS (APM2 15.8.1).
            ExitCode::CrWrite(0) | ExitCode::CrRead(0) if info1 >> 63 == 0 => self.machine_status_exit()?,
            ExitCode::CrWrite(number) => Exit::CrWrite(control_register(number)?, gpr),
            ExitCode::CrRead(number) => Exit::CrRead(control_register(number)?, gpr),
            ExitCode::Exception(number) => Exit::Exception(exit_exception(number, info1, info2)?),
            ExitCode::NestedPageFault => {
                Exit::Stage { gpa: info2, error: PageFaultError::from_bits_truncate(info1 as u32) }
            }
            ExitCode::Invlpg => Exit::Invlpg(info1),
            ExitCode::Invpcid => Exit::Invpcid,
            ExitCode::Invd | ExitCode::Wbinvd => Exit::Caches,
            ExitCode::Hlt => Exit::Hlt,
            ExitCode::Msr if info1 & 1 == 0 => Exit::Rdmsr,
            ExitCode::Msr => Exit::Wrmsr,
            ExitCode::Shutdown => Exit::TripleFault,
            ExitCode::Invalid => Exit::EntryFailed,
            other => match self.svm_parts().0.exiting_instruction() {
                Some(instruction) => Exit::Virt(instruction),
                None => Exit::Other(other.name()),
            },
        })
    }

    /// CLTS, LMSW or SMSW, which the exit does not tell apart: L0 decodes the instruction.
    fn machine_status_exit(&mut self) -> Result<Exit, SimError> {
        let Ok(instruction) = self.fetch_instruction() else {
            return Err(SimError::internal("an exit of an instruction that is not mapped"));
        };
        Ok(match instruction.mnemonic() {
            Mnemonic::Clts => Exit::Clts,
            Mnemonic::Smsw => Exit::Smsw,
            Mnemonic::Lmsw => match self.machine_status_operand(&instruction) {
                Ok(value) => Exit::Lmsw(value),
                Err(miss) => Exit::Missed(miss),
            },
            other => return Err(SimError::internal(format!("an exit for CR0 by {other:?}"))),
        })
    }

    pub(crate) fn svm_interrupted_event(&self) -> Result<Option<Exception>, SimError> {
        let event = EventInjection(self.vmcb_get(Field::ExitIntInfo));
        // The guest runs the instruction of a software event again (KVM svm_complete_interrupts).
        if event.is_software() { Ok(None) } else { event.exception() }
    }

    pub(crate) fn svm_inject(&mut self, exception: &Exception) {
        self.vmcb_set(Field::EventInjection, EventInjection::of(exception).0);
    }

    /// Which VMCB holds a segment register.
    fn holder(&self, field: SegmentField) -> Hpa {
        if VMLOAD_SEGMENTS.contains(&field) { self.svm_state().vmcb01 } else { self.vmcb() }
    }

    pub(crate) fn svm_segments(&self) -> (Segments, TableRegister, TableRegister) {
        let at = self.vmcb();
        let mut segments = Segments::default();
        for field in SegmentField::ALL {
            *segment_of(&mut segments, field) = vmcb::read_segment(&self.ground.mem, self.holder(field), field);
        }
        let table = |field| vmcb::read_table(&self.ground.mem, at, field);
        (segments, table(TableField::Gdtr), table(TableField::Idtr))
    }

    pub(crate) fn svm_set_segments(&mut self, segments: &Segments, gdtr: TableRegister, idtr: TableRegister) {
        let at = self.vmcb();
        let mut segments = *segments;
        for field in SegmentField::ALL {
            let holder = self.holder(field);
            vmcb::write_segment(&mut self.ground.mem, holder, field, segment_of(&mut segments, field));
        }
        vmcb::write_table(&mut self.ground.mem, at, TableField::Gdtr, gdtr);
        vmcb::write_table(&mut self.ground.mem, at, TableField::Idtr, idtr);
        self.vmcb_set(Field::Cpl, u64::from(segments.ss.rights.dpl()));
    }

    pub(crate) fn svm_rdmsr(&mut self, index: u32) -> Result<u64, SimError> {
        match index {
            msr::PAT => Ok(self.vmcb_get(Field::GuestPat)),
            msr::VM_HSAVE_PA => Ok(self.svm_state().nested.hsave),
            _ => Err(SimError::unmodelled(format!("RDMSR of {index:#x} by a guest"))),
        }
    }

    pub(crate) fn svm_wrmsr(&mut self, index: u32, value: u64) -> Result<Result<(), Exception>, SimError> {
        match index {
            msr::PAT => self.vmcb_set(Field::GuestPat, value),
            msr::VM_HSAVE_PA => self.svm_state_mut().nested.hsave = value,
            _ => return Err(SimError::unmodelled(format!("WRMSR to {index:#x} by a guest"))),
        }
        Ok(Ok(()))
    }
}

const fn segment_of(segments: &mut Segments, field: SegmentField) -> &mut Segment {
    match field {
        SegmentField::Es => &mut segments.es,
        SegmentField::Cs => &mut segments.cs,
        SegmentField::Ss => &mut segments.ss,
        SegmentField::Ds => &mut segments.ds,
        SegmentField::Fs => &mut segments.fs,
        SegmentField::Gs => &mut segments.gs,
        SegmentField::Ldtr => &mut segments.ldtr,
        SegmentField::Tr => &mut segments.tr,
    }
}

fn control_register(number: u8) -> Result<ControlRegister, SimError> {
    match number {
        0 => Ok(ControlRegister::Cr0),
        2 => Ok(ControlRegister::Cr2),
        3 => Ok(ControlRegister::Cr3),
        4 => Ok(ControlRegister::Cr4),
        8 => Ok(ControlRegister::Cr8),
        other => Err(SimError::internal(format!("exit for CR{other}"))),
    }
}

fn exit_exception(number: u8, info1: u64, info2: u64) -> Result<Exception, SimError> {
    let vector =
        Vector::from_number(number).ok_or_else(|| SimError::unmodelled(format!("exit for vector {number}")))?;
    let error = vector.has_error_code().then_some(info1 as u32);
    Ok(Exception { vector, error, cr2: (vector == Vector::PageFault).then_some(Gva(info2)) })
}
