//! SVM for L1 (KVM v5.17 svm/nested.c): the SVM instructions that L1 executes.

use crate::run::Run;
use cpu::Gpr;
use cpu::virt::VirtInstruction;
use mmu::state::RoleRegs;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{Gpa, Hpa, PAGE_BYTES, PAGE_OFFSET_MASK};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Exception;
use svm::vmcb::{self, Field, SegmentField};
use svm::{ExitCode, Gif, Intercepts};

/// Which VMCB the vCPU is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Loaded {
    /// L1's.
    Vmcb01,
    /// L2's.
    Vmcb02,
}

/// What L1 did with its SVM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NestedSvm {
    /// L0's copy of vmcb12 as it was at VMRUN.
    pub vmcb12: Hpa,
    /// Where L1 keeps its VMCB.
    pub vmcb12_gpa: Gpa,
    /// L1's VM_HSAVE_PA.
    pub hsave: u64,
    /// L1's global interrupt flag.
    pub gif: GuestGif,
    /// Which VMCB the vCPU is on.
    pub loaded: Loaded,
}

/// L1's global interrupt flag, as L0 keeps it.
pub type GuestGif = Gif;

impl NestedSvm {
    /// Before L1 did anything; `vmcb12` is a frame for L0's copy.
    #[must_use]
    pub const fn new(vmcb12: Hpa) -> Self {
        Self { vmcb12, vmcb12_gpa: Gpa(0), hsave: 0, gif: Gif::Set, loaded: Loaded::Vmcb01 }
    }
}

/// Nested state as userspace saves it (`struct kvm_svm_nested_state_data`): vmcb12's controls and L1's registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SavedSvm {
    pub(super) nested: NestedSvm,
    pub(super) vmcb12: Vec<u8>,
    pub(super) vmcb01_save: Vec<u8>,
}

/// Where the state save area begins in a VMCB (APM2 table B-2).
pub(super) const SAVE_AREA: u64 = 0x400;

/// Segment registers that VMLOAD and VMSAVE move (APM2 15.5.2).
pub(crate) const VMLOAD_SEGMENTS: [SegmentField; 4] =
    [SegmentField::Fs, SegmentField::Gs, SegmentField::Tr, SegmentField::Ldtr];
/// Other registers that VMLOAD and VMSAVE move.
const VMLOAD_FIELDS: [Field; 8] = [
    Field::KernelGsBase,
    Field::Star,
    Field::Lstar,
    Field::Cstar,
    Field::Sfmask,
    Field::SysenterCs,
    Field::SysenterEsp,
    Field::SysenterEip,
];

/// TLB_CONTROL encodings that are not reserved (`nested_svm_check_tlb_ctl`; APM2 15.16).
const TLB_CONTROLS: [u64; 4] = [0, 1, 3, 7];
/// The permission maps and their lengths in frames (APM2 15.10.1, 15.11).
const MAPS: [(Field, u64); 2] = [(Field::IopmBase, 3), (Field::MsrpmBase, 2)];

impl Run<'_> {
    /// A field of L0's copy of vmcb12.
    pub(super) fn vmcb12(&self, field: Field) -> u64 {
        vmcb::read(&self.ground.mem, self.svm_state().nested.vmcb12, field)
    }

    /// Whether L1 gave L2 nested tables.
    pub(super) fn has_nested_npt(&self) -> bool {
        self.vmcb12(Field::NestedControl) & 1 != 0
    }

    /// An instruction of L1, or of an L2 whose L1 does not intercept it: it acts on L1's state then, as on hardware.
    pub(crate) fn nested_svm_instruction(&mut self, instruction: &VirtInstruction) -> Result<(), SimError> {
        if matches!(instruction, VirtInstruction::Vmmcall) {
            self.hypercall();
            return Ok(());
        }
        if !self.vcpu.efer.contains(Efer::SVME) || !self.vcpu.cr0.contains(Cr0::PG) {
            self.queue(Exception::ud());
            return Ok(());
        }
        match *instruction {
            VirtInstruction::Vmrun(at) => return self.nested_vmrun(Gpa(at)),
            VirtInstruction::Vmload(at) | VirtInstruction::Vmsave(at) if !self.is_vmcb(Gpa(at)) => {
                self.queue(Exception::gp0());
                return Ok(());
            }
            VirtInstruction::Vmload(at) => self.vmload12(Gpa(at), Direction::FromL1),
            VirtInstruction::Vmsave(at) => self.vmload12(Gpa(at), Direction::ToL1),
            VirtInstruction::Stgi => self.svm_state_mut().nested.gif = Gif::Set,
            VirtInstruction::Clgi => self.svm_state_mut().nested.gif = Gif::Clear,
            // KVM ignores the ASID operand and treats it as INVLPG.
            VirtInstruction::Invlpga { address, .. } => self.emulate_invlpg(address.0)?,
            // SKINIT, which KVM does not offer, and what belongs to VMX.
            _ => {
                self.queue(Exception::ud());
                return Ok(());
            }
        }
        self.skip_instruction();
        Ok(())
    }

    /// Whether a guest-physical address can be a VMCB.
    pub(super) fn is_vmcb(&self, at: Gpa) -> bool {
        at.page_offset() == 0 && self.vm.slots.host(self.space(), at).is_some()
    }

    fn vmload12(&mut self, at: Gpa, direction: Direction) {
        let Some(host) = self.vm.slots.host(self.space(), at) else { return };
        let own = self.svm_state().vmcb01;
        let (from, to) = match direction {
            Direction::FromL1 => (host, own),
            Direction::ToL1 => (own, host),
        };
        for field in VMLOAD_SEGMENTS {
            let segment = vmcb::read_segment(&self.ground.mem, from, field);
            vmcb::write_segment(&mut self.ground.mem, to, field, &segment);
        }
        for field in VMLOAD_FIELDS {
            let value = vmcb::read(&self.ground.mem, from, field);
            vmcb::write(&mut self.ground.mem, to, field, value);
        }
    }

    /// L1's registers as vmcb01 has them while L2 runs.
    pub(crate) fn svm_l1_regs(&self) -> RoleRegs {
        let vmcb01 = self.svm_state().vmcb01;
        let get = |field| vmcb::read(&self.ground.mem, vmcb01, field);
        RoleRegs {
            cr0: Cr0::from_bits_retain(get(Field::Cr0)),
            cr4: Cr4::from_bits_retain(get(Field::Cr4)),
            efer: Efer::from_bits_retain(get(Field::Efer)),
        }
    }

    /// The intercepts of L0 and L1 together (`recalc_intercepts`).
    pub(crate) fn merge_intercepts(&mut self) {
        const V_INTR_MASKING: u64 = 1 << 24;
        const CR8: u64 = 1 << 8;
        let (vmcb01, vmcb12) = (self.svm_state().vmcb01, self.svm_state().nested.vmcb12);
        let masks_interrupts = self.vmcb12(Field::VirtualInterrupt) & V_INTR_MASKING != 0;
        for field in [
            Field::InterceptCrReads,
            Field::InterceptCrWrites,
            Field::InterceptDrReads,
            Field::InterceptDrWrites,
            Field::InterceptExceptions,
        ] {
            let mut own = vmcb::read(&self.ground.mem, vmcb01, field);
            if field == Field::InterceptCrWrites && masks_interrupts {
                // L2 has a task priority of its own in V_TPR.
                own &= !CR8;
            }
            let merged = own | vmcb::read(&self.ground.mem, vmcb12, field);
            self.vmcb_set(field, merged);
        }
        let merged = Intercepts::read(&self.ground.mem, vmcb01) | Intercepts::read(&self.ground.mem, vmcb12);
        let vmcb02 = self.vmcb();
        merged.write(&mut self.ground.mem, vmcb02);
    }

    pub(crate) fn svm_save_nested(&mut self) -> SavedSvm {
        let state = self.svm_state().clone();
        let mut vmcb12 = vec![0; PAGE_BYTES as usize];
        self.ground.mem.read_bytes(state.nested.vmcb12, &mut vmcb12);
        let mut vmcb01_save = vec![0; (PAGE_BYTES - SAVE_AREA) as usize];
        self.ground.mem.read_bytes(state.vmcb01.offset(SAVE_AREA), &mut vmcb01_save);
        SavedSvm { nested: state.nested, vmcb12, vmcb01_save }
    }

    /// What VMRUN refuses of vmcb12 (`nested_vmcb_check_controls`, `nested_vmcb_check_save`; APM2 15.5.1).
    pub(super) fn vmcb12_is_legal(&self) -> bool {
        let cr0 = Cr0::from_bits_retain(self.vmcb12(Field::Cr0));
        let cr4 = Cr4::from_bits_retain(self.vmcb12(Field::Cr4));
        let efer = Efer::from_bits_retain(self.vmcb12(Field::Efer));
        let intercepts = Intercepts::read(&self.ground.mem, self.svm_state().nested.vmcb12);
        let cs = vmcb::read_segment(&self.ground.mem, self.svm_state().nested.vmcb12, SegmentField::Cs);
        let long = efer.contains(Efer::LME) && cr0.contains(Cr0::PG);
        let mode = !long
            || (cr4.contains(Cr4::PAE)
                && cr0.contains(Cr0::PE)
                && self.vmcb12(Field::Cr3) & !self.legal_gpa_mask() == 0
                && !(cs.rights.is_long() && cs.rights.is_big()));
        intercepts.contains(Intercepts::VMRUN)
            && self.maps_are_legal()
            && TLB_CONTROLS.contains(&self.vmcb12(Field::TlbControl))
            && self.vmcb12(Field::Dr6) >> 32 == 0
            && self.vmcb12(Field::Dr7) >> 32 == 0
            && self.vmcb12(Field::Asid) != 0
            && (!self.has_nested_npt() || self.tdp())
            && efer.contains(Efer::SVME)
            && (cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW))
            && cr0.bits() >> 32 == 0
            && mode
    }

    /// Whether L1's permission maps are in its physical-address space (`nested_svm_check_bitmap_pa`). L0 uses its own
    /// maps, so the processor never sees these.
    fn maps_are_legal(&self) -> bool {
        MAPS.iter().all(|(field, frames)| {
            let first = self.vmcb12(*field) & !PAGE_OFFSET_MASK;
            first.checked_add(frames * PAGE_BYTES - 1).is_some_and(|last| last & !self.legal_gpa_mask() == 0)
        })
    }

    /// The exit code of vmcb02, if it has one that the manual names.
    pub(super) fn exit_code(&self) -> Result<ExitCode, SimError> {
        let number = self.vmcb_get(Field::ExitCode);
        ExitCode::from_number(number).ok_or_else(|| SimError::internal(format!("exit code {number:#x} reflected")))
    }

    /// RAX of L1 at its VMRUN, which vmcb01 keeps.
    pub(super) fn reload_l1_registers(&mut self) {
        self.vcpu.gprs[Gpr::Rax as usize] = self.vmcb_get(Field::Rax);
        self.vcpu.gprs[Gpr::Rsp as usize] = self.vmcb_get(Field::Rsp);
        self.vcpu.rip = self.vmcb_get(Field::Rip);
    }
}

/// Which way VMLOAD and VMSAVE move registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    FromL1,
    ToL1,
}
