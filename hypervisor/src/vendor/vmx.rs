//! VMX for the vCPU loop (KVM v5.17 vmx.c): two VMCSs a vCPU, one for L1 and one for L2, in host memory; everything
//! goes through VMREAD, VMWRITE and the VMX instructions.
//!
//! L0 intercepts every MSR and every port, and CR3 and page faults only without EPT. What it leaves to the guest of CR0 and CR4 is in
//! `vmx_controls`.

use crate::exits::Exit;
use crate::machine::{Ext, LogicalProcessor, Setup, Tdp};
use crate::migrate::Host;
use crate::nested::vmx::NestedVmx;
use crate::run::Run;
use crate::vcpu::VendorState;
use crate::vendor::HardwareEntry;
use crate::vendor::vmx_pml::PmlBuffer;
use crate::vendor::vmx_shadow::{self, ShadowVmcs};
use crate::vendor::vmx_tlb::VmcsHomes;
use ::mmu::Vm;
use ::mmu::plant::Plant;
use ::mmu::state::{Nesting, Pml, ShadowVmcsMode, TdpMode};
use cpu::Gpr;
use cpu::core::{Core, Segments};
use cpu::virt::ControlRegister;
use serde::{Deserialize, Serialize};
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::{Exception, PageFaultError, Vector};
use sim_core::arch::msr;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::TableRegister;
use sim_core::{Ground, Gva, Hpa, SimError};
use vmx::controls::{EntryControls, ExitControls, PrimaryProc, SecondaryProc};
use vmx::vmcs::{LaunchState, Region, SegmentName};
use vmx::{Capabilities, Entered, Entry, ExitReason, Field, Operation, VmFail, Vmx};

/// A vCPU's VMX state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmxState {
    /// The VMCS that L1 runs on.
    pub vmcs01: Hpa,
    /// The VMCS that L2 runs on.
    pub vmcs02: Hpa,
    /// Which of the two is in use (`loaded_vmcs`).
    pub loaded: Hpa,
    /// The processors on which vmcs01 and vmcs02 are active (`loaded_vmcs->cpu`).
    pub active_on: VmcsHomes,
    /// The VPID of L1, 0 if none was left.
    pub vpid01: u16,
    /// The VPID of every L2, 0 if none was left or L1 is not in VMX operation.
    pub vpid02: u16,
    /// The qualification of the last EPT violation (`vcpu->arch.exit_qualification`).
    pub last_ept_violation: u64,
    /// The page-modification log, if L0 uses one.
    pub pml: Option<PmlBuffer>,
    /// The shadow VMCS, if L0 uses one.
    pub shadow: Option<ShadowVmcs>,
    /// What L1 did with its own VMX.
    pub nested: NestedVmx,
}

impl VmxState {
    /// The VPID that an L2 with a VPID of L1's runs on (`nested_get_vpid02`).
    #[must_use]
    pub const fn nested_vpid02(&self) -> u16 {
        if self.vpid02 == 0 { self.vpid01 } else { self.vpid02 }
    }
}

/// #UD in the exception bitmap.
pub(crate) const UNDEFINED_OPCODE: u64 = 1 << Vector::InvalidOpcode.number();

/// Where L0's own code would go on after an exit. It is never executed: L0 is not guest code.
const HOST_RIP: u64 = 0x1000;

/// Makes a processor in VMX root operation.
///
/// # Errors
/// If VMXON fails.
pub fn create_processor(
    mut core: Core,
    ground: &mut Ground,
    vm: &mut Vm,
    setup: &Setup,
) -> Result<LogicalProcessor, SimError> {
    let mut profile = Capabilities::default();
    if setup.module.tdp_level == 5 {
        profile = profile.with_five_level_ept();
    }
    if setup.module.pml == Pml::On {
        profile = profile.with_page_modification_log();
    }
    if setup.module.shadow_vmcs == ShadowVmcsMode::On {
        profile = profile.with_vmcs_shadowing();
    }
    let mut unit = Vmx::new(profile.without(setup.silicon_without));
    core.cr4 |= Cr4::VMXE;
    let vmxon = vm.frames.take(ground)?.base();
    ground.mem.write_u32(vmxon, unit.capabilities().revision);
    unit.vmxon(&mut core, ground, vmxon).map_err(refused)?;
    Ok(LogicalProcessor { core, ext: Ext::Vmx(Box::new(unit)) })
}

pub(super) fn refused(fail: VmFail) -> SimError {
    SimError::internal(format!("L0's VMX set-up: {fail}"))
}

/// Makes a vCPU's VMX state, on the processor that it begins on. Its VMCSs are active nowhere then.
///
/// # Errors
/// If VMPTRLD fails, or host memory runs out.
pub fn create(
    unit: &mut Vmx,
    core: &Core,
    ground: &mut Ground,
    vm: &mut Vm,
    host: &mut Host,
    setup: &Setup,
) -> Result<VendorState, SimError> {
    let mut offered = Capabilities::default();
    if setup.tdp == Tdp::Off {
        // L0 shadows EPT tables only on top of its own.
        offered = offered.without(SecondaryProc::ENABLE_EPT);
    }
    let [vmcs01, vmcs02] = [vm.frames.take(ground)?, vm.frames.take(ground)?].map(sim_core::Hfn::base);
    let vpid01 = if vm.plants.has(Plant::SharedVpid) { 1 } else { host.vpids.allocate() };
    let log_page = match setup.module.pml {
        Pml::Off => None,
        Pml::On => Some(vm.frames.take(ground)?.base()),
    };
    let shadow = match setup.module.shadow_vmcs {
        ShadowVmcsMode::Off => None,
        ShadowVmcsMode::On => Some(vmx_shadow::create(ground, &mut vm.frames, unit.capabilities().revision)?),
    };
    let mut pml = None;
    for region in [vmcs02, vmcs01] {
        ground.mem.write_u32(region, unit.capabilities().revision);
        unit.vmclear(ground, region).map_err(refused)?;
        unit.vmptrld(ground, region).map_err(refused)?;
        write_constant_fields(unit, core, ground, setup, vpid01);
        if let Some(page) = log_page.filter(|_| region == vmcs01) {
            let (buffer, fields) = PmlBuffer::new(page);
            pml = Some(buffer);
            fields.into_iter().for_each(|(field, value)| unit.vmwrite(ground, field, value));
        }
        if let Some((_, fields)) = shadow.as_ref().filter(|_| region == vmcs01) {
            fields.iter().for_each(|(field, value)| unit.vmwrite(ground, *field, *value));
        }
        unit.vmclear(ground, region).map_err(refused)?;
    }
    let shadow = shadow.map(|(shadow, _)| shadow);
    let nested = NestedVmx::new(offered);
    let active_on = VmcsHomes::default();
    let state = VmxState {
        vmcs01,
        vmcs02,
        loaded: vmcs01,
        active_on,
        vpid01,
        vpid02: 0,
        last_ept_violation: 0,
        pml,
        shadow,
        nested,
    };
    Ok(VendorState::Vmx(Box::new(state)))
}

/// L0's primary and secondary controls.
fn controls(tdp: Tdp, vpid: u16) -> (PrimaryProc, SecondaryProc) {
    let primary =
        PrimaryProc::HLT_EXITING | PrimaryProc::UNCONDITIONAL_IO_EXITING | PrimaryProc::ACTIVATE_SECONDARY_CONTROLS;
    let tag = if vpid == 0 { SecondaryProc::empty() } else { SecondaryProc::ENABLE_VPID };
    match tdp {
        Tdp::On => (
            primary,
            tag | SecondaryProc::ENABLE_EPT | SecondaryProc::UNRESTRICTED_GUEST | SecondaryProc::ENABLE_INVPCID,
        ),
        Tdp::Off => (
            primary | PrimaryProc::CR3_LOAD_EXITING | PrimaryProc::CR3_STORE_EXITING | PrimaryProc::INVLPG_EXITING,
            tag | SecondaryProc::ENABLE_INVPCID,
        ),
    }
}

/// Fields that never change: controls and host state.
fn write_constant_fields(unit: &mut Vmx, core: &Core, ground: &mut Ground, setup: &Setup, vpid: u16) {
    let (primary, secondary) = controls(setup.tdp, vpid);
    let capabilities = *unit.capabilities();
    let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE
        | ExitControls::SAVE_EFER
        | ExitControls::LOAD_EFER
        | ExitControls::SAVE_PAT
        | ExitControls::LOAD_PAT;
    let entry = EntryControls::LOAD_EFER | EntryControls::LOAD_PAT;
    let page_fault = u64::from(setup.tdp == Tdp::Off) << Vector::PageFault.number();
    // RSM of the guest is undefined outside SMM (`handle_ud`).
    let exceptions = page_fault | UNDEFINED_OPCODE;
    for (field, value) in [
        (Field::PinBasedControls, u64::from(capabilities.pin.adjust(0))),
        (Field::PrimaryControls, u64::from(capabilities.primary.adjust(primary.bits()))),
        (Field::SecondaryControls, u64::from(capabilities.secondary.adjust(secondary.bits()))),
        (Field::ExitControls, u64::from(capabilities.exit.adjust(exit.bits()))),
        (Field::EntryControls, u64::from(capabilities.entry.adjust(entry.bits()))),
        (Field::ExceptionBitmap, exceptions),
        (Field::Cr0GuestHostMask, u64::MAX),
        (Field::Cr4GuestHostMask, u64::MAX),
        (Field::VmcsLinkPointer, u64::MAX),
        (Field::Vpid, u64::from(vpid)),
        (Field::GuestPat, core.msrs.pat),
        (Field::GuestDr7, 0x400),
        (Field::HostCr0, core.cr0.bits()),
        (Field::HostCr3, core.cr3),
        (Field::HostCr4, core.cr4.bits()),
        (Field::HostEfer, core.efer.bits()),
        (Field::HostPat, core.msrs.pat),
        (Field::HostCsSelector, u64::from(core.segments.cs.selector)),
        (Field::HostTrSelector, u64::from(core.segments.tr.selector)),
        (Field::HostRip, HOST_RIP),
    ] {
        unit.vmwrite(ground, field, value);
    }
}

impl Run<'_> {
    pub(crate) fn vmx_state(&self) -> &VmxState {
        match &self.vcpu.vendor {
            VendorState::Vmx(state) => state,
            VendorState::Svm(_) => unreachable!("VMX code runs only on VMX vCPUs"),
        }
    }

    pub(crate) fn vmx_state_mut(&mut self) -> &mut VmxState {
        match &mut self.vcpu.vendor {
            VendorState::Vmx(state) => state,
            VendorState::Svm(_) => unreachable!("VMX code runs only on VMX vCPUs"),
        }
    }

    fn vmx_unit(&self) -> &Vmx {
        match &self.processor.ext {
            Ext::Vmx(unit) => unit,
            Ext::Svm(_) => unreachable!("VMX code runs only on VMX processors"),
        }
    }

    /// The VMX unit, the processor and the ground, all to change.
    pub(crate) fn vmx_parts(&mut self) -> (&mut Vmx, &mut Core, &mut Ground) {
        match &mut self.processor.ext {
            Ext::Vmx(unit) => (unit, &mut self.processor.core, self.ground),
            Ext::Svm(_) => unreachable!("VMX code runs only on VMX processors"),
        }
    }

    /// VMREAD of the current VMCS.
    pub(crate) fn vmread(&self, field: Field) -> u64 {
        self.vmx_unit().vmread(self.ground, field)
    }

    /// VMWRITE to the current VMCS.
    pub(crate) fn vmwrite(&mut self, field: Field, value: u64) {
        let (unit, _, ground) = self.vmx_parts();
        unit.vmwrite(ground, field, value);
    }

    pub(crate) fn tdp(&self) -> bool {
        self.vm.config.tdp != TdpMode::Off
    }

    pub(crate) fn vmx_enter(&mut self) -> Result<Option<HardwareEntry>, SimError> {
        if !self.tdp() && self.vcpu.nesting == Nesting::L1 && !self.vcpu.cr0.contains(Cr0::PE) {
            return Err(SimError::unmodelled("real mode without unrestricted guest, which L0 would have to emulate"));
        }
        self.vmx_fill_shadow()?;
        let (unit, core, ground) = self.vmx_parts();
        let how = match unit.current().map(|region| Region(region).launch_state(ground)) {
            Some(LaunchState::Launched) => Entry::Resume,
            _ => Entry::Launch,
        };
        Ok(match unit.enter(core, ground, how)? {
            // Delivering an injected event may have left the guest again.
            Entered::Guest if unit.operation() == Operation::Root => Some(HardwareEntry::Exited),
            Entered::Guest => None,
            Entered::Refused => Some(HardwareEntry::Exited),
            Entered::Failed(_) => Some(HardwareEntry::Refused),
        })
    }

    pub(crate) fn vmx_write_guest_cr3(&mut self) {
        if self.tdp() {
            self.vmwrite(Field::GuestCr3, self.vcpu.cr3);
        }
    }

    /// `vmx_load_mmu_pgd`.
    pub(crate) fn vmx_load_pgd(&mut self) {
        let root = self.vcpu.mmu.active().root.hpa;
        if !root.is_valid() {
            return;
        }
        self.vcpu.pdptes_wait = false;
        if self.tdp() {
            self.vmwrite(Field::EptPointer, self.construct_eptp(root));
            if self.load_writes_cr3() {
                self.vmx_write_guest_cr3();
            }
        } else {
            let pcid = if self.vcpu.cr4.contains(Cr4::PCIDE) { self.vcpu.cr3 & 0xfff } else { 0 };
            self.vmwrite(Field::GuestCr3, root.0 | pcid);
        }
    }

    /// `construct_eptp`: write-back, the root's level, and A/D bits; for L2 only if L1's own EPTP has them, so not where L1 has none,
    /// though entries below such a root have the bits.
    fn construct_eptp(&self, root: Hpa) -> u64 {
        let mmu = self.vcpu.mmu.active();
        let level = u64::from(mmu.shadow_root_level) - 1;
        let shared = self.vcpu.nesting == Nesting::L2 && !self.vmcs12().has_ept();
        let accessed_dirty = u64::from(mmu.root_role.ad_disabled() == 0 && !shared);
        root.0 | 6 | level << 3 | accessed_dirty << 6
    }

    pub(crate) fn vmx_hardware_root(&self) -> u64 {
        self.vmread(if self.tdp() { Field::EptPointer } else { Field::GuestCr3 })
    }

    pub(crate) fn vmx_write_registers(&mut self) {
        self.processor.core.gprs = self.vcpu.gprs;
        self.processor.core.cr2 = Gva(self.vcpu.cr2);
        self.vmwrite(Field::GuestRsp, self.vcpu.gprs[Gpr::Rsp as usize]);
        self.vmwrite(Field::GuestRip, self.vcpu.rip);
        self.vmwrite(Field::GuestRflags, self.vcpu.rflags.bits());
        if self.tdp() && self.vcpu.is_pae() && !self.vcpu.pdptes_wait {
            for (field, value) in Field::PDPTES.into_iter().zip(self.vcpu.pdptes) {
                self.vmwrite(field, value);
            }
        }
    }

    pub(crate) fn vmx_read_registers(&mut self) {
        self.vcpu.gprs = self.processor.core.gprs;
        self.vcpu.cr2 = self.processor.core.cr2.0;
        self.vcpu.gprs[Gpr::Rsp as usize] = self.vmread(Field::GuestRsp);
        self.vcpu.rip = self.vmread(Field::GuestRip);
        self.vcpu.rflags = Rflags::from_bits_retain(self.vmread(Field::GuestRflags));
        let owned = self.guest_owned_cr0();
        self.vcpu.cr0 = (self.vcpu.cr0 - owned) | (Cr0::from_bits_retain(self.vmread(Field::GuestCr0)) & owned);
        let owned = self.guest_owned_cr4();
        self.vcpu.cr4 = (self.vcpu.cr4 - owned) | (Cr4::from_bits_retain(self.vmread(Field::GuestCr4)) & owned);
        if self.tdp() {
            self.vcpu.cr3 = self.vmread(Field::GuestCr3);
            if self.vcpu.is_pae() {
                self.vcpu.pdptes = Field::PDPTES.map(|field| self.vmread(field));
            }
        }
    }

    pub(crate) fn vmx_skip(&mut self) {
        self.vcpu.rip = self.vcpu.rip.wrapping_add(self.vmread(Field::ExitInstructionLength));
    }

    /// The raw exit reason and qualification, as L1 may have to see them.
    pub(crate) fn vmx_exit_information(&self) -> (u32, u64) {
        (self.vmread(Field::ExitReason) as u32, self.vmread(Field::ExitQualification))
    }

    pub(crate) fn vmx_decode_exit(&mut self) -> Result<Exit, SimError> {
        let (word, qualification) = self.vmx_exit_information();
        let reason = ExitReason::from_word(u64::from(word))
            .ok_or_else(|| SimError::internal(format!("exit reason {word:#x}")))?;
        Ok(match reason {
            ExitReason::Io => Exit::Io { port: (qualification >> 16) as u16, input: qualification & 8 != 0 },
            ExitReason::CrAccess => decode_cr_access(qualification)?,
            ExitReason::ExceptionOrNmi => Exit::Exception(self.exit_exception(qualification)?),
            ExitReason::EptViolation => {
                self.vmx_state_mut().last_ept_violation = qualification;
                Exit::Stage { gpa: self.vmread(Field::GuestPhysicalAddress), error: ept_error(qualification) }
            }
            // Only entries that L0 made for MMIO are misconfigured; the exit does not say what the access was.
            ExitReason::EptMisconfiguration => {
                Exit::Stage { gpa: self.vmread(Field::GuestPhysicalAddress), error: PageFaultError::RSVD }
            }
            ExitReason::PmlFull => Exit::LogFull,
            ExitReason::Invlpg => Exit::Invlpg(qualification),
            ExitReason::Invpcid => Exit::Invpcid,
            ExitReason::Invd | ExitReason::Wbinvd => Exit::Caches,
            ExitReason::Hlt => Exit::Hlt,
            ExitReason::Rdmsr => Exit::Rdmsr,
            ExitReason::Wrmsr => Exit::Wrmsr,
            ExitReason::TripleFault => Exit::TripleFault,
            ExitReason::EntryGuestState | ExitReason::EntryMsrLoading => Exit::EntryFailed,
            other => match self.vmx_unit().exiting_instruction() {
                Some(instruction) => Exit::Virt(instruction),
                None => Exit::Other(other.name()),
            },
        })
    }

    fn exit_exception(&self, qualification: u64) -> Result<Exception, SimError> {
        let information = self.vmread(Field::ExitInterruptionInformation);
        let vector = Vector::from_number(information as u8)
            .ok_or_else(|| SimError::unmodelled(format!("exit for vector {}", information & 0xff)))?;
        let error = (information & 1 << 11 != 0).then(|| self.vmread(Field::ExitInterruptionErrorCode) as u32);
        let cr2 = (vector == Vector::PageFault).then_some(Gva(qualification));
        Ok(Exception { vector, error, cr2 })
    }

    pub(crate) fn vmx_interrupted_event(&self) -> Result<Option<Exception>, SimError> {
        let information = self.vmread(Field::IdtVectoringInformation);
        // A software exception is raised again by its own instruction.
        if information >> 31 & 1 == 0 || information >> 8 & 7 != 3 {
            return Ok(None);
        }
        let vector = Vector::from_number(information as u8)
            .ok_or_else(|| SimError::unmodelled(format!("interrupted delivery of vector {}", information & 0xff)))?;
        let error = (information & 1 << 11 != 0).then(|| self.vmread(Field::IdtVectoringErrorCode) as u32);
        Ok(Some(Exception { vector, error, cr2: None }))
    }

    pub(crate) fn vmx_inject(&mut self, exception: &Exception) {
        let (information, error) = crate::nested::vmx_exit::interruption_fields(exception);
        self.vmwrite(Field::EntryInterruptionInformation, information);
        self.vmwrite(Field::EntryExceptionErrorCode, error);
    }

    pub(crate) fn vmx_segments(&self) -> (Segments, TableRegister, TableRegister) {
        let mut segments = Segments::default();
        if let Some(region) = self.vmx_unit().current() {
            for name in SegmentName::ALL {
                *name.of_mut(&mut segments) = name.load(Region(region), self.ground);
            }
        }
        let table = |base, limit| TableRegister { base: self.vmread(base), limit: self.vmread(limit) as u16 };
        let gdtr = table(Field::GuestGdtrBase, Field::GuestGdtrLimit);
        (segments, gdtr, table(Field::GuestIdtrBase, Field::GuestIdtrLimit))
    }

    pub(crate) fn vmx_set_segments(&mut self, segments: &Segments, gdtr: TableRegister, idtr: TableRegister) {
        if let Some(region) = self.vmx_unit().current() {
            for name in SegmentName::ALL {
                name.save(Region(region), self.ground, name.of(segments));
            }
        }
        for (table, base, limit) in
            [(gdtr, Field::GuestGdtrBase, Field::GuestGdtrLimit), (idtr, Field::GuestIdtrBase, Field::GuestIdtrLimit)]
        {
            self.vmwrite(base, table.base);
            self.vmwrite(limit, u64::from(table.limit));
        }
    }

    pub(crate) fn vmx_rdmsr(&mut self, index: u32) -> Result<u64, SimError> {
        if let Some(value) = self.vmx_state().nested.capabilities().msr(index) {
            return Ok(value);
        }
        match index {
            // Locked, VMX allowed outside SMX (SDM 3C 23.7).
            msr::FEATURE_CONTROL => Ok(5),
            msr::PAT => Ok(self.vmread(Field::GuestPat)),
            _ => Err(SimError::unmodelled(format!("RDMSR of {index:#x} by a guest"))),
        }
    }

    pub(crate) fn vmx_wrmsr(&mut self, index: u32, value: u64) -> Result<Result<(), Exception>, SimError> {
        match index {
            msr::PAT => {
                self.vmwrite(Field::GuestPat, value);
                Ok(Ok(()))
            }
            _ => Err(SimError::unmodelled(format!("WRMSR to {index:#x} by a guest"))),
        }
    }
}

/// SDM 3C table 27-3.
fn decode_cr_access(qualification: u64) -> Result<Exit, SimError> {
    let register = match qualification & 0xf {
        0 => ControlRegister::Cr0,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => ControlRegister::Cr8,
        other => return Err(SimError::internal(format!("CR-access exit for CR{other}"))),
    };
    let gpr = gpr_numbered(qualification >> 8 & 0xf);
    Ok(match qualification >> 4 & 3 {
        0 => Exit::CrWrite(register, gpr),
        1 => Exit::CrRead(register, gpr),
        2 => Exit::Clts,
        _ => Exit::Lmsw((qualification >> 16) as u16),
    })
}

/// The general-purpose register with an encoding's number.
pub(crate) fn gpr_numbered(number: u64) -> Gpr {
    const GPRS: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];
    GPRS[(number & 0xf) as usize]
}

/// An EPT violation's qualification as a page-fault error code (`handle_ept_violation`): read becomes "user".
fn ept_error(qualification: u64) -> PageFaultError {
    let mut error = PageFaultError::empty();
    error.set(PageFaultError::U, qualification & 1 != 0);
    error.set(PageFaultError::W, qualification & 2 != 0);
    error.set(PageFaultError::F, qualification & 4 != 0);
    error.set(PageFaultError::P, qualification & 0x38 != 0);
    error
}
