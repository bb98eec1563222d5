//! VMX for L1 (KVM v5.17 nested.c): the VMX instructions that L1 executes.

use super::smm::Interrupted;
use super::vmcs12::Vmcs12;
use crate::run::Run;
use crate::vendor::vmx_shadow::Contents;
use cpu::virt::{ControlRegister, VirtInstruction, VirtTarget};
use mmu::Change;
use mmu::load::Which;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{Nesting, PREV_ROOTS, TdpMode};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{ENTRY_FRAME_MASK, Gpa};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, PageFaultError};
use sim_core::arch::rflags::Rflags;
use sim_core::event::MmuId;
use std::collections::BTreeMap;
use vmx::vmcs::LaunchState;
use vmx::vmcs::field::Half;
use vmx::{Capabilities, Field, InstructionError};

/// What L1 did with its VMX.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NestedVmx {
    /// Where L1's VMXON region is, if it is in VMX operation.
    pub vmxon: Option<Gpa>,
    /// L1's current VMCS.
    pub current: Option<Gpa>,
    /// Every VMCS that L1 made current so far.
    pub vmcs12s: BTreeMap<Gpa, Vmcs12>,
    /// The last VPID that L1 gave an L2.
    pub last_vpid: u16,
    /// L1's EFER at the last VMLAUNCH or VMRESUME.
    pub entry_efer: Efer,
    /// VMX operation as an SMI found it.
    pub interrupted: Interrupted,
    capabilities: Capabilities,
}

impl NestedVmx {
    /// Outside VMX operation.
    #[must_use]
    pub const fn new(capabilities: Capabilities) -> Self {
        Self {
            vmxon: None,
            current: None,
            vmcs12s: BTreeMap::new(),
            last_vpid: 0,
            entry_efer: Efer::empty(),
            interrupted: Interrupted { nesting: Nesting::L1, vmxon: None },
            capabilities,
        }
    }

    /// Whether L1 is in VMX operation.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.vmxon.is_some()
    }

    /// What L0 offers L1.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// L1's current vmcs12.
    #[must_use]
    pub fn vmcs12(&self) -> Option<&Vmcs12> {
        self.vmcs12s.get(&self.current?)
    }

    /// Whether the current L2 has a VPID of L1's.
    #[must_use]
    pub fn uses_vpid(&self) -> bool {
        self.vmcs12().is_some_and(Vmcs12::has_vpid)
    }
}

/// How an instruction of L1 ended.
pub(crate) enum Done {
    /// VMsucceed.
    Succeed,
    /// VMfailInvalid.
    FailInvalid,
    /// VMfailValid.
    FailValid(InstructionError),
    /// A fault.
    Fault(Exception),
    /// Control has moved; rip is right.
    Moved,
}

impl Run<'_> {
    /// The current vmcs12. L1 has one whenever L2 exists.
    pub(crate) fn vmcs12(&self) -> &Vmcs12 {
        match self.vmx_state().nested.vmcs12() {
            Some(vmcs12) => vmcs12,
            None => unreachable!("asked for a vmcs12 before L1 made one current"),
        }
    }

    /// Writes a field of the current vmcs12.
    pub(crate) fn vmcs12_set(&mut self, field: Field, value: u64) {
        let nested = &mut self.vmx_state_mut().nested;
        if let Some(vmcs12) = nested.current.and_then(|gpa| nested.vmcs12s.get_mut(&gpa)) {
            vmcs12.set(field, value);
        }
    }

    pub(crate) fn nested_vmx_instruction(&mut self, instruction: &VirtInstruction) -> Result<(), SimError> {
        self.vmx_copy_shadow()?;
        let done = self.execute_vmx(instruction)?;
        self.end_vmx(done);
        Ok(())
    }

    /// Shows L1 how its instruction ended (SDM 3C 30.2).
    pub(crate) fn end_vmx(&mut self, done: Done) {
        let flags = match done {
            Done::Moved => return,
            Done::Fault(exception) => return self.queue(exception),
            Done::Succeed => Rflags::empty(),
            Done::FailInvalid => Rflags::CF,
            Done::FailValid(error) => {
                self.vmcs12_set(Field::InstructionError, u64::from(error.number()));
                Rflags::ZF
            }
        };
        self.vcpu.rflags = (self.vcpu.rflags - Rflags::STATUS) | flags;
        self.skip_instruction();
    }

    fn execute_vmx(&mut self, instruction: &VirtInstruction) -> Result<Done, SimError> {
        let nested = &self.vmx_state().nested;
        let (on, current) = (nested.is_on(), nested.current);
        if matches!(instruction, VirtInstruction::Vmcall) {
            self.hypercall();
            return Ok(Done::Moved);
        }
        let (segments, _, _) = self.guest_segments();
        if segments.ss.rights.dpl() != 0 {
            return Ok(Done::Fault(if on { Exception::gp0() } else { Exception::ud() }));
        }
        if let VirtInstruction::Vmxon(region) = *instruction {
            return self.vmxon(Gpa(region));
        }
        if !on {
            return Ok(Done::Fault(Exception::ud()));
        }
        Ok(match *instruction {
            VirtInstruction::Vmclear(region) => self.vmclear(Gpa(region)),
            VirtInstruction::Vmptrld(region) => self.vmptrld12(Gpa(region)),
            VirtInstruction::Vmptrst(target) => {
                return self.store_result(target, current.map_or(u64::MAX, |gpa| gpa.0), 8);
            }
            VirtInstruction::Vmread { .. } | VirtInstruction::Vmwrite { .. } if current.is_none() => Done::FailInvalid,
            VirtInstruction::Vmread { field, target } => match self.known_field(field) {
                Some((field, half)) => {
                    let value = self.vmcs12().get(field);
                    let bytes = if self.code_position().1 == 64 { 8 } else { 4 };
                    return self.store_result(target, if half == Half::High { value >> 32 } else { value }, bytes);
                }
                None => Done::FailValid(InstructionError::UnsupportedComponent),
            },
            VirtInstruction::Vmwrite { field, value } => match self.known_field(field) {
                Some((field, half)) => {
                    let low = self.vmcs12().get(field) & 0xffff_ffff;
                    self.vmcs12_set(field, if half == Half::High { value << 32 | low } else { value });
                    self.vmx_shadow_is_stale();
                    Done::Succeed
                }
                None => Done::FailValid(InstructionError::UnsupportedComponent),
            },
            VirtInstruction::Vmlaunch => return self.nested_vmx_run(LaunchState::Clear),
            VirtInstruction::Vmresume => return self.nested_vmx_run(LaunchState::Launched),
            VirtInstruction::Vmxoff => {
                let nested = &mut self.vmx_state_mut().nested;
                nested.vmxon = None;
                nested.current = None;
                self.vmx_use_shadow(Contents::Unused);
                self.free_nested()?;
                Done::Succeed
            }
            VirtInstruction::Invept { .. } if !self.tdp() => Done::Fault(Exception::ud()),
            VirtInstruction::Invept { kind, descriptor } => self.invept12(kind, descriptor),
            VirtInstruction::Invvpid { kind, descriptor } => return self.invvpid12(kind, descriptor),
            // VM functions, which are for L2 alone, and what belongs to SVM.
            _ => Done::Fault(Exception::ud()),
        })
    }

    /// What `free_nested` does to tags and the MMU: no root for a nested table survives the end of VMX operation.
    ///
    /// # Errors
    /// If hardware refuses to clear vmcs02.
    pub(crate) fn free_nested(&mut self) -> Result<(), SimError> {
        self.renew_vpid02()?;
        self.mmu(|ctx, vcpu, _| ctx.free_roots(vcpu, MmuId::Guest, Which::All));
        Ok(())
    }

    /// The field and the half that L1 names (`get_vmcs12_field_offset`).
    fn known_field(&self, operand: u64) -> Option<(Field, Half)> {
        let known = Field::from_operand(operand)?;
        self.vmx_state().nested.capabilities().has_field(known.0).then_some(known)
    }

    /// Gives VMREAD's or VMPTRST's result to L1; memory may fault (`handle_vmread`, `handle_vmptrst`).
    fn store_result(&mut self, target: VirtTarget, value: u64, bytes: usize) -> Result<Done, SimError> {
        match target {
            VirtTarget::Register(gpr) => {
                self.vcpu.gprs[gpr as usize] = if bytes == 4 { value & 0xffff_ffff } else { value };
            }
            VirtTarget::Memory(address) => match self.pieces(address.0, bytes, PageFaultError::W) {
                // `kvm_write_guest_virt_system` tells the MMU nothing.
                Ok(pieces) => self.write_untracked(&pieces, value)?,
                Err(miss) => {
                    self.tell(miss)?;
                    return Ok(Done::Moved);
                }
            },
        }
        Ok(Done::Succeed)
    }

    fn vmxon(&mut self, region: Gpa) -> Result<Done, SimError> {
        let nested = &self.vmx_state().nested;
        if nested.is_on() {
            return Ok(match nested.current {
                Some(_) => Done::FailValid(InstructionError::VmxonInRoot),
                None => Done::FailInvalid,
            });
        }
        if !self.vcpu.cr4.contains(Cr4::VMXE) {
            return Ok(Done::Fault(Exception::ud()));
        }
        if !self.vcpu.cr0.contains(Cr0::PE | Cr0::PG | Cr0::NE) {
            return Ok(Done::Fault(Exception::gp0()));
        }
        if !self.is_region(region) || self.revision_at(region) != Some(nested.capabilities().revision) {
            return Ok(Done::FailInvalid);
        }
        self.vmx_state_mut().nested.vmxon = Some(region);
        self.renew_vpid02()?;
        Ok(Done::Succeed)
    }

    fn is_region(&self, region: Gpa) -> bool {
        region.page_offset() == 0 && region.0 & !self.legal_gpa_mask() == 0
    }

    fn revision_at(&self, region: Gpa) -> Option<u32> {
        self.vm.slots.host(self.space(), region).map(|host| self.ground.mem.read_u32(host))
    }

    fn vmclear(&mut self, region: Gpa) -> Done {
        if !self.is_region(region) {
            return Done::FailValid(InstructionError::VmclearAddress);
        }
        let nested = &mut self.vmx_state_mut().nested;
        if nested.vmxon == Some(region) {
            return Done::FailValid(InstructionError::VmclearVmxonPointer);
        }
        nested.vmcs12s.entry(region).or_default().launch = LaunchState::Clear;
        if nested.current == Some(region) {
            nested.current = None;
            self.vmx_use_shadow(Contents::Unused);
            self.release_vmcs12();
        }
        Done::Succeed
    }

    /// The end of `nested_release_vmcs12`: a VMCS that stops being current takes the roots of its EPT along.
    fn release_vmcs12(&mut self) {
        if self.vm.changes.has(Change::GuestMmu) {
            self.mmu(|ctx, vcpu, _| ctx.free_roots(vcpu, MmuId::Guest, Which::All));
        }
    }

    fn vmptrld12(&mut self, region: Gpa) -> Done {
        if !self.is_region(region) {
            return Done::FailValid(InstructionError::VmptrldAddress);
        }
        let revision = self.revision_at(region);
        let nested = &mut self.vmx_state_mut().nested;
        if nested.vmxon == Some(region) {
            return Done::FailValid(InstructionError::VmptrldVmxonPointer);
        }
        if revision != Some(nested.capabilities().revision) {
            return Done::FailValid(InstructionError::VmptrldRevision);
        }
        nested.vmcs12s.entry(region).or_default();
        let before = nested.current.replace(region);
        if before.is_some_and(|before| before != region) {
            self.release_vmcs12();
        }
        self.vmx_use_shadow(Contents::Stale);
        Done::Succeed
    }

    /// INVEPT by L1 (`handle_invept`): roots of `guest_mmu` whose EPT root matches are given up.
    fn invept12(&mut self, kind: u64, [eptp, _]: [u64; 2]) -> Done {
        match kind {
            1 if !self.eptp_is_legal(eptp) => return Done::FailValid(InstructionError::InvalidationOperand),
            1 | 2 if self.vm.plants.has(Plant::InveptFreesNothing) => {}
            // Only what hardware cached.
            1 | 2 if !self.vm.changes.invept_frees_roots() => self.request(Requests::TLB_FLUSH),
            1 => self.mmu(|ctx, vcpu, _| {
                let matches = |root: mmu::state::Root| root.is_valid() && (root.pgd ^ eptp) & ENTRY_FRAME_MASK == 0;
                // Like `kvm_mmu_free_roots`, which is told all of them at once, the previous ones first.
                let prev = (0..PREV_ROOTS).map(Which::Prev);
                for which in prev.chain(std::iter::once(Which::Current)) {
                    let root = match which {
                        Which::Prev(slot) => vcpu.guest_mmu.prev[slot],
                        Which::Current | Which::All => vcpu.guest_mmu.root,
                    };
                    if matches(root) {
                        ctx.free_roots(vcpu, MmuId::Guest, which);
                    }
                }
            }),
            2 => self.mmu(|ctx, vcpu, _| ctx.free_roots(vcpu, MmuId::Guest, Which::All)),
            _ => return Done::FailValid(InstructionError::InvalidationOperand),
        }
        Done::Succeed
    }

    /// INVVPID by L1 (`handle_invvpid`): vpid02 is flushed, and without EPT the previous L2 roots are given up.
    fn invvpid12(&mut self, kind: u64, [vpid, address]: [u64; 2]) -> Result<Done, SimError> {
        let canonical = sim_core::Gva(address).is_canonical(self.processor.core.linear_width());
        if kind > 3 || vpid > 0xffff || (kind != 2 && vpid == 0) || (kind == 0 && !canonical) {
            return Ok(Done::FailValid(InstructionError::InvalidationOperand));
        }
        if self.vm.plants.has(Plant::InvvpidFreesNothing) {
            return Ok(Done::Succeed);
        }
        let vpid02 = self.vmx_state().nested_vpid02();
        self.invvpid(if kind == 0 {
            vmx::InvvpidScope::Address(vpid02, sim_core::Gva(address))
        } else {
            vmx::InvvpidScope::Single(vpid02)
        })?;
        if self.vm.config.tdp == TdpMode::Off && self.vm.changes.has(Change::InvvpidFreesRoots) {
            self.mmu(|ctx, vcpu, _| {
                for slot in 0..PREV_ROOTS {
                    let root = vcpu.root_mmu.prev[slot];
                    let of_l2 = ctx.vm.pages.at(root.hpa).is_none_or(|page| page.role.guest_mode() == 1);
                    if root.is_valid() && (of_l2 || !ctx.vm.changes.has(Change::InvvpidKeepsL1)) {
                        ctx.free_roots(vcpu, MmuId::Root, Which::Prev(slot));
                    }
                }
            });
        }
        Ok(Done::Succeed)
    }

    /// Bits that L1 owns keep their value; L2 sets the rest.
    pub(crate) fn vmx_l2_cr_value(&self, register: ControlRegister, operand: u64) -> u64 {
        let (mask, actual) = match register {
            ControlRegister::Cr0 => (self.vmcs12().get(Field::Cr0GuestHostMask), self.vcpu.cr0.bits()),
            ControlRegister::Cr4 => (self.vmcs12().get(Field::Cr4GuestHostMask), self.vcpu.cr4.bits()),
            _ => return operand,
        };
        (operand & !mask) | (actual & mask)
    }

    /// What MOV from CR0 and CR4 must show (`nested_read_cr0`, `nested_read_cr4`).
    pub(crate) fn cr_read_shadows(&self) -> (u64, u64) {
        let (cr0, cr4) = (self.vcpu.cr0.bits(), self.vcpu.cr4.bits());
        if self.vcpu.nesting == Nesting::L1 {
            return (cr0, cr4);
        }
        let shown = |actual: u64, mask: Field, shadow: Field| {
            let mask = self.vmcs12().get(mask);
            (actual & !mask) | (self.vmcs12().get(shadow) & mask)
        };
        (
            shown(cr0, Field::Cr0GuestHostMask, Field::Cr0ReadShadow),
            shown(cr4, Field::Cr4GuestHostMask, Field::Cr4ReadShadow),
        )
    }
}
