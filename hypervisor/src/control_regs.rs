//! MOV to and from control registers, and the MSRs that paging depends on (x86.c, v5.17).

use crate::run::Run;
use crate::vcpu::VendorState;
use cpu::Gpr;
use cpu::virt::ControlRegister;
use mmu::Change;
use mmu::cpuid::GuestFeatures;
use mmu::load::Which;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::{NestedTdp, Nesting, RoleRegs, TdpMode};
use sim_core::SimError;
use sim_core::addr::{ENTRY_FRAME_MASK, Gpa};
use sim_core::arch::control::{CR3_NO_FLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer};
use sim_core::arch::exception::{Exception, PageFaultError};
use sim_core::arch::msr;
use sim_core::event::{Event, MmuId};
use vmx::controls::SecondaryProc;

/// CR4 bits that L0 lets a guest set.
pub const CR4_OFFERED: Cr4 = Cr4::PSE
    .union(Cr4::PAE)
    .union(Cr4::PGE)
    .union(Cr4::SMEP)
    .union(Cr4::SMAP)
    .union(Cr4::PCIDE)
    .union(Cr4::VMXE)
    .union(Cr4::DE)
    .union(Cr4::MCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT)
    .union(Cr4::TSD)
    .union(Cr4::LA57);

/// The features that bits of CR4 need.
const CR4_FEATURES: [(GuestFeatures, Cr4); 3] =
    [(GuestFeatures::SMEP, Cr4::SMEP), (GuestFeatures::SMAP, Cr4::SMAP), (GuestFeatures::LA57, Cr4::LA57)];

/// Who writes an MSR (`msr_data.host_initiated`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The guest, by WRMSR.
    Guest,
    /// Userspace, by `KVM_SET_MSRS`.
    Host,
}

/// What flushes the translations of a PCID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PcidFlush {
    /// MOV to CR3 without bit 63.
    MovCr3,
    /// INVPCID of type 1.
    Invpcid,
}

impl Run<'_> {
    /// An exit for MOV to a control register.
    ///
    /// # Errors
    /// If the register is one that L0 never intercepts.
    pub fn cr_write(&mut self, register: ControlRegister, gpr: Gpr) -> Result<(), SimError> {
        let value = self.cr_operand(gpr);
        let what = match register {
            ControlRegister::Cr0 => "MOV to CR0",
            ControlRegister::Cr3 => "MOV to CR3",
            ControlRegister::Cr4 => "MOV to CR4",
            ControlRegister::Cr8 => "MOV to CR8",
            ControlRegister::Cr2 => return Err(SimError::internal("an exit for CR2 that nobody asked for")),
        };
        self.ground.record(Event::Handled { what, detail: format!("{value:#x}") });
        let value = self.l2_cr_value(register, value);
        let done = match register {
            ControlRegister::Cr0 => self.set_cr0(Cr0::from_bits_retain(value)),
            ControlRegister::Cr4 => self.set_cr4(Cr4::from_bits_retain(value)),
            ControlRegister::Cr8 => self.set_cr8(value),
            _ => self.set_cr3(value),
        };
        self.finish(done);
        Ok(())
    }

    /// Ends an emulated instruction: on to the next, or its exception.
    fn finish(&mut self, done: Result<(), Exception>) {
        match done {
            Ok(()) => self.skip_instruction(),
            Err(exception) => self.queue(exception),
        }
    }

    /// An exit for MOV from a control register: L0 intercepts CR3 reads without TDP.
    pub fn cr_read(&mut self, register: ControlRegister, gpr: Gpr) {
        let value = match register {
            ControlRegister::Cr0 => self.vcpu.cr0.bits(),
            ControlRegister::Cr2 => self.vcpu.cr2,
            ControlRegister::Cr3 => self.vcpu.cr3,
            ControlRegister::Cr4 => self.vcpu.cr4.bits(),
            ControlRegister::Cr8 => self.vcpu.cr8.into(),
        };
        self.vcpu.gprs[gpr as usize] = value;
        self.skip_instruction();
    }

    /// An exit for CLTS.
    pub fn clts(&mut self) {
        let done = self.set_cr0(self.vcpu.cr0 - Cr0::TS);
        self.finish(done);
    }

    /// An exit for LMSW (`kvm_lmsw`): it loads MP, EM and TS, and can set PE but not clear it.
    pub fn lmsw(&mut self, source: u16) {
        const LOADED: Cr0 = Cr0::MP.union(Cr0::EM).union(Cr0::TS);
        let value = Cr0::from_bits_truncate(u64::from(source & 0xf));
        self.ground.record(Event::Handled { what: "LMSW", detail: format!("{source:#x}") });
        let value = self.l2_cr_value(ControlRegister::Cr0, ((self.vcpu.cr0 - LOADED) | value).bits());
        let done = self.set_cr0(Cr0::from_bits_retain(value));
        self.finish(done);
    }

    /// The value that MOV to a control register moves: 32 bits outside 64-bit mode.
    pub(crate) fn cr_operand(&self, gpr: Gpr) -> u64 {
        let wide = self.code_position().1 == 64;
        self.vcpu.gprs[gpr as usize] & if wide { u64::MAX } else { 0xffff_ffff }
    }

    /// `kvm_set_cr0` and `kvm_post_set_cr0`.
    pub(crate) fn set_cr0(&mut self, value: Cr0) -> Result<(), Exception> {
        let old = self.vcpu.cr0;
        if value.bits() >> 32 != 0 {
            return Err(Exception::gp0());
        }
        // Reserved bits of the lower half are ignored (SDM 3A 2.5).
        let value = Cr0::from_bits_truncate(value.bits()) | Cr0::ET;
        if self.cr0_is_illegal(old, value) {
            return Err(Exception::gp0());
        }
        let long = self.vcpu.efer.contains(Efer::LME) && value.contains(Cr0::PG);
        let efer = if long { self.vcpu.efer | Efer::LMA } else { self.vcpu.efer - Efer::LMA };
        let pae = value.contains(Cr0::PG) && self.vcpu.cr4.contains(Cr4::PAE) && !long;
        if pae && (old ^ value).intersects(Cr0::PG | Cr0::CD | Cr0::NW) {
            self.load_pdptes(self.vcpu.cr3)?;
        }
        self.vcpu.cr0 = value;
        self.vcpu.efer = efer;
        self.write_cr0_and_efer();
        let changed = (old ^ value) & RoleRegs::CR0_BITS;
        let wp_alone = |change| changed == Cr0::WP && self.vm.changes.has(change);
        if !value.contains(Cr0::PG) && wp_alone(Change::UnpagedWpIgnored) {
            // Without paging there are no permissions.
        } else if self.vm.config.tdp != TdpMode::Off && wp_alone(Change::WpKeepsRoots) {
            // What walks the guest's tables must know; the tables of L0 do not depend on it.
            self.mmu(|ctx, vcpu, view| ctx.init_mmu(vcpu, view));
        } else if !changed.is_empty() {
            self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
        }
        if self.vm.changes.has(Change::FlushOnReset) && old.contains(Cr0::PG) && !value.contains(Cr0::PG) {
            self.request(Requests::TLB_FLUSH_GUEST);
        }
        Ok(())
    }

    /// The combinations that MOV to CR0 refuses (SDM 3A 4.1.2; MOV to CR0).
    fn cr0_is_illegal(&self, old: Cr0, value: Cr0) -> bool {
        let code64 = self.code_position().1 == 64;
        let (segments, _, _) = self.guest_segments();
        let (off, on) = (!value.contains(Cr0::PG), value.contains(Cr0::PG) && !old.contains(Cr0::PG));
        let starts_long = on && self.vcpu.efer.contains(Efer::LME);
        // VMX operation fixes PE, NE and PG, PE and PG not for an unrestricted guest (SDM 3C 23.8; nested_host_cr0_valid,
        // nested_guest_cr0_valid).
        let fixed = match self.vcpu.nesting {
            _ if !self.vmx_is_on() => Cr0::empty(),
            Nesting::L2 if self.vmcs12().secondary().contains(SecondaryProc::UNRESTRICTED_GUEST) => Cr0::NE,
            Nesting::L1 | Nesting::L2 => Cr0::PE | Cr0::NE | Cr0::PG,
        };
        (value.contains(Cr0::PG) && !value.contains(Cr0::PE))
            || (value.contains(Cr0::NW) && !value.contains(Cr0::CD))
            || (off && (code64 || self.vcpu.cr4.contains(Cr4::PCIDE)))
            || (starts_long && (!self.vcpu.cr4.contains(Cr4::PAE) || segments.cs.rights.is_long()))
            || !value.contains(fixed)
    }

    /// `kvm_set_cr4` and `kvm_post_set_cr4`.
    pub(crate) fn set_cr4(&mut self, value: Cr4) -> Result<(), Exception> {
        let old = self.vcpu.cr4;
        let long = self.vcpu.efer.contains(Efer::LMA);
        let pcide_on = value.contains(Cr4::PCIDE) && !old.contains(Cr4::PCIDE);
        let illegal = !self.cr4_offered().contains(value)
            || (long && (!value.contains(Cr4::PAE) || (old ^ value).contains(Cr4::LA57)))
            || (pcide_on && (!long || self.vcpu.cr3 & CR3_PCID_MASK != 0))
            || (self.vmx_is_on() && !value.contains(Cr4::VMXE));
        if illegal {
            return Err(Exception::gp0());
        }
        let changed = old ^ value;
        let pae = self.vcpu.cr0.contains(Cr0::PG) && value.contains(Cr4::PAE) && !long;
        let smap = if self.vm.changes.has(Change::SmapKeepsPdptes) { Cr4::empty() } else { Cr4::SMAP };
        if pae && changed.intersects(Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP | smap) {
            self.load_pdptes(self.vcpu.cr3)?;
        }
        self.vcpu.cr4 = value;
        self.write_controls();
        self.after_cr4(changed, value);
        Ok(())
    }

    fn after_cr4(&mut self, changed: Cr4, value: Cr4) {
        let changes = self.vm.changes;
        let mut resetting = RoleRegs::CR4_BITS;
        resetting.set(Cr4::PGE, !changes.has(Change::PgeKeepsContext));
        let reloads = changes.has(Change::CachedCr3WithoutPcid);
        let pcide_off = changed.contains(Cr4::PCIDE) && !value.contains(Cr4::PCIDE);
        let resets = changed.intersects(resetting) || (pcide_off && !reloads);
        if resets {
            self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
        }
        if !changes.has(Change::FlushOnReset) {
            if !resets && changed.contains(Cr4::PCIDE) && reloads {
                self.request(Requests::MMU_RELOAD);
            } else if !resets && changed.contains(Cr4::PGE) {
                self.request(Requests::TLB_FLUSH_GUEST);
            }
            return;
        }
        // b5f61c035d49: what must be flushed no longer hangs on whether the roots were freed.
        let pcide_on = changed.contains(Cr4::PCIDE) && value.contains(Cr4::PCIDE);
        if self.vm.config.tdp == TdpMode::Off && pcide_on && reloads {
            self.mmu(|ctx, vcpu, _| ctx.unload(vcpu));
        }
        if changed.contains(Cr4::PGE) || (changed.contains(Cr4::PCIDE) && !value.contains(Cr4::PCIDE)) {
            self.request(Requests::TLB_FLUSH_GUEST);
        } else if changed.contains(Cr4::PAE) || (changed.contains(Cr4::SMEP) && value.contains(Cr4::SMEP)) {
            self.request(Requests::TLB_FLUSH_CURRENT);
        }
    }

    /// `kvm_set_cr8`, without a local APIC of L0's making.
    fn set_cr8(&mut self, value: u64) -> Result<(), Exception> {
        if value > 0xf {
            return Err(Exception::gp0());
        }
        self.vcpu.cr8 = value as u8;
        Ok(())
    }

    /// `kvm_set_cr3`.
    pub(crate) fn set_cr3(&mut self, operand: u64) -> Result<(), Exception> {
        let pcide = self.vcpu.cr4.contains(Cr4::PCIDE);
        let skip_flush = pcide && operand & CR3_NO_FLUSH != 0;
        let cr3 = if pcide { operand & !CR3_NO_FLUSH } else { operand };
        let pcid = if pcide { cr3 & CR3_PCID_MASK } else { 0 };
        if cr3 != self.vcpu.cr3 || self.vcpu.is_pae() {
            if cr3 & !self.legal_gpa_mask() != 0 {
                return Err(Exception::gp0());
            }
            if self.vcpu.is_pae() {
                self.load_pdptes(cr3)?;
            }
            // Nested paging has roots of its own, which CR3 of L2 does not name.
            let own_tables = self.vcpu.mmu.nested_tdp == NestedTdp::Inactive;
            if cr3 != self.vcpu.cr3 && own_tables {
                self.mmu(|ctx, vcpu, view| ctx.new_pgd(vcpu, view, cr3));
            }
            self.vcpu.cr3 = cr3;
            self.write_guest_cr3();
        }
        if !skip_flush {
            self.invalidate_pcid(pcid, PcidFlush::MovCr3);
        }
        Ok(())
    }

    /// CR4 bits that the vCPU's CPUID lets it set (`cr4_guest_rsvd_bits`).
    pub(crate) fn cr4_offered(&self) -> Cr4 {
        let features = self.vcpu.mmu.cpuid.features;
        let lacking = CR4_FEATURES.iter().filter(|(feature, _)| !features.contains(*feature));
        lacking.fold(CR4_OFFERED, |bits, (_, bit)| bits - *bit)
    }

    /// Address bits that a guest-physical address may have.
    #[must_use]
    pub const fn legal_gpa_mask(&self) -> u64 {
        (1 << self.vcpu.mmu.cpuid.maxphyaddr) - 1
    }

    /// `kvm_invalidate_pcid`.
    pub(crate) fn invalidate_pcid(&mut self, pcid: u64, by: PcidFlush) {
        if self.vm.config.tdp != TdpMode::Off {
            self.request(Requests::TLB_FLUSH_GUEST);
            return;
        }
        let pcide = self.vcpu.cr4.contains(Cr4::PCIDE);
        let of = |cr3: u64| if pcide { cr3 & CR3_PCID_MASK } else { 0 };
        if of(self.vcpu.cr3) == pcid {
            self.request(Requests::MMU_SYNC | Requests::TLB_FLUSH_CURRENT);
        }
        let current_only = by == PcidFlush::MovCr3 && !self.vm.changes.has(Change::PcidAllPgds);
        // Without PCIDs every later MOV to CR3 flushes as well, so previous roots may stay as they are.
        let kept = !pcide && self.vm.changes.keeps_roots_without_pcid();
        if kept || current_only || self.vm.plants.has(Plant::PcidFlushCurrentOnly) {
            return;
        }
        self.mmu(|ctx, vcpu, _| {
            let id = vcpu.active().id;
            for slot in 0..mmu::state::PREV_ROOTS {
                let root = vcpu.active().prev[slot];
                if root.is_valid() && of(root.pgd) == pcid {
                    ctx.free_roots(vcpu, id, Which::Prev(slot));
                }
            }
        });
    }

    /// `load_pdptrs`: reads and checks the PDPTEs; a change makes the shadow root stale.
    ///
    /// # Errors
    /// #GP(0) if an entry has reserved bits set or can't be read.
    pub fn load_pdptes(&mut self, cr3: u64) -> Result<(), Exception> {
        let mut pdptes = [0; 4];
        for (index, pdpte) in pdptes.iter_mut().enumerate() {
            let gpa = Gpa(cr3 & 0xffff_ffe0).offset(index as u64 * 8);
            // CR3 of an L2 with nested paging is a guest-physical address of L2 (`load_pdptrs`, v5.16 on); L1's tables see a write.
            let gpa = match self.vcpu.mmu.nested_tdp {
                NestedTdp::Active => self.translate_nested_gpa(gpa, PageFaultError::W).map_err(|_| Exception::gp0())?,
                NestedTdp::Inactive => gpa,
            };
            let host = self.vm.slots.host(self.space(), gpa).ok_or_else(Exception::gp0)?;
            *pdpte = self.ground.mem.read_u64(host);
            let reserved = !(ENTRY_FRAME_MASK & self.legal_gpa_mask()) & !0xe19;
            if *pdpte & 1 != 0 && *pdpte & reserved != 0 {
                return Err(Exception::gp0());
            }
        }
        let rebuilds = self.vm.changes.has(Change::PdptesRebuildRoot);
        if self.vm.config.tdp == TdpMode::Off && pdptes != self.vcpu.pdptes && rebuilds {
            self.mmu(|ctx, vcpu, _| ctx.free_roots(vcpu, MmuId::Root, Which::Current));
        }
        self.vcpu.pdptes = pdptes;
        if self.vm.changes.has(Change::PdptesReachVmcs) {
            self.request(Requests::LOAD_MMU_PGD);
        } else {
            // A VMCB has no fields for them.
            self.vcpu.pdptes_wait = matches!(self.vcpu.vendor, VendorState::Vmx(_));
        }
        Ok(())
    }

    /// `set_efer`. Only a guest is told that long mode can't be switched while paging is on.
    ///
    /// # Errors
    /// #GP(0) if the guest may not write the value.
    pub(crate) fn set_efer(&mut self, value: u64, by: Initiator) -> Result<(), Exception> {
        const MODELLED: Efer = Efer::SCE.union(Efer::LME).union(Efer::LMA).union(Efer::NXE).union(Efer::SVME);
        let new = Efer::from_bits_retain(value) - Efer::LMA;
        let old = self.vcpu.efer;
        let lme_changed = (old ^ new).contains(Efer::LME);
        let refused = by == Initiator::Guest && lme_changed && self.vcpu.cr0.contains(Cr0::PG);
        if !MODELLED.contains(new) || refused {
            return Err(Exception::gp0());
        }
        self.vcpu.efer = new | (old & Efer::LMA);
        self.write_cr0_and_efer();
        let resets = if self.vm.changes.has(Change::EferLmeResets) { Efer::NXE | Efer::LME } else { Efer::NXE };
        let forgets = by == Initiator::Host && self.vm.plants.has(Plant::NoResetAfterSetEfer);
        if (old ^ new).intersects(resets) && !forgets {
            self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
        }
        Ok(())
    }

    /// An exit for RDMSR.
    ///
    /// # Errors
    /// If the MSR is not modelled.
    pub fn rdmsr(&mut self) -> Result<(), SimError> {
        let index = self.vcpu.gprs[Gpr::Rcx as usize] as u32;
        let value = match index {
            msr::EFER => self.vcpu.efer.bits(),
            _ => self.vendor_rdmsr(index)?,
        };
        self.vcpu.gprs[Gpr::Rax as usize] = value & 0xffff_ffff;
        self.vcpu.gprs[Gpr::Rdx as usize] = value >> 32;
        self.skip_instruction();
        Ok(())
    }

    /// An exit for WRMSR.
    ///
    /// # Errors
    /// If the MSR is not modelled.
    pub fn wrmsr(&mut self) -> Result<(), SimError> {
        let [rax, rcx, rdx] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx].map(|gpr| self.vcpu.gprs[gpr as usize] & 0xffff_ffff);
        let value = rdx << 32 | rax;
        self.ground.record(Event::Handled { what: "WRMSR", detail: format!("{rcx:#x} {value:#x}") });
        let done = match rcx as u32 {
            msr::EFER => self.set_efer(value, Initiator::Guest),
            index => self.vendor_wrmsr(index, value)?,
        };
        self.finish(done);
        Ok(())
    }
}
