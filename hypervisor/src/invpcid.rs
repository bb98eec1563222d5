//! INVPCID of a guest without two-dimensional paging (`kvm_handle_invpcid`, `kvm_mmu_invpcid_gva`; v5.17): hardware's
//! tags are those of the shadow roots, so L0 does to its own tables what the guest wants done to its TLB.
//!
//! L0 decodes the instruction itself. Intel tells its operands in the VM-exit instruction-information field and AMD in
//! EXITINFO1 and 2; the result is the same.

use crate::control_regs::PcidFlush;
use crate::run::Run;
use crate::translate::Miss;
use crate::vendor::vmx::gpr_numbered;
use iced_x86::Mnemonic;
use mmu::Change;
use mmu::load::Which;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::Paging;
use mmu::stats::Stat;
use sim_core::arch::control::{CR3_PCID_MASK, Cr4};
use sim_core::arch::exception::{Exception, PageFaultError};
use sim_core::event::Event;
use sim_core::{Gva, SimError};

/// INVPCID's operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operands {
    kind: u64,
    pcid: u64,
    address: u64,
}

impl Run<'_> {
    /// An exit for INVPCID.
    ///
    /// # Errors
    /// If the operand can't be read.
    pub fn invpcid(&mut self) -> Result<(), SimError> {
        let operands = match self.invpcid_operands()? {
            Ok(operands) => operands,
            Err(miss) => return self.tell(miss),
        };
        self.ground.record(Event::Handled {
            what: "INVPCID",
            detail: format!("type {} pcid {:#x} address {:#x}", operands.kind, operands.pcid, operands.address),
        });
        match self.invalidate(operands)? {
            Ok(()) => self.skip_instruction(),
            Err(exception) => self.queue(exception),
        }
        Ok(())
    }

    fn invpcid_operands(&mut self) -> Result<Result<Operands, Miss>, SimError> {
        let instruction = match self.fetch_instruction() {
            Ok(instruction) => instruction,
            Err(miss) => return Ok(Err(miss)),
        };
        if instruction.mnemonic() != Mnemonic::Invpcid {
            return Err(SimError::internal(format!("an INVPCID exit of {:?}", instruction.mnemonic())));
        }
        let kind = self.vcpu.gprs[gpr_numbered(instruction.op0_register().full_register().number() as u64) as usize];
        let kind = if self.code_position().1 == 64 { kind } else { kind & 0xffff_ffff };
        let address = self.operand_address(&instruction, 1);
        let address = address.ok_or_else(|| SimError::internal("INVPCID without a memory operand"))?;
        let mut words = [0; 2];
        for (word, at) in words.iter_mut().zip([0, 8]) {
            *word = match self.pieces(address.wrapping_add(at), 8, PageFaultError::empty()) {
                Ok(pieces) => self.read_pieces(&pieces),
                Err(miss) => return Ok(Err(miss)),
            };
        }
        Ok(Ok(Operands { kind, pcid: words[0], address: words[1] }))
    }

    fn invalidate(&mut self, Operands { kind, pcid, address }: Operands) -> Result<Result<(), Exception>, SimError> {
        let tagless = !self.vcpu.cr4.contains(Cr4::PCIDE) && pcid != 0;
        let canonical = Gva(address).is_canonical(self.guest_linear_width());
        let illegal = match kind {
            0 => tagless || !canonical,
            1 => tagless,
            2 | 3 => false,
            _ => true,
        };
        if illegal || pcid & !CR3_PCID_MASK != 0 {
            return Ok(Err(Exception::gp0()));
        }
        match kind {
            0 => self.invpcid_gva(address, pcid)?,
            1 => self.invalidate_pcid(pcid, PcidFlush::Invpcid),
            // No shadow entry is global, so both types are one. Up to v5.13 they gave up every root (28f28d453ffc).
            _ if !self.vm.changes.has(Change::SyncAllPgds) => self.request(Requests::MMU_RELOAD),
            _ => self.request(Requests::TLB_FLUSH_GUEST),
        }
        Ok(Ok(()))
    }

    /// Bits of a linear address that the guest's paging mode translates.
    fn guest_linear_width(&self) -> u32 {
        if self.vcpu.cr4.contains(Cr4::LA57) { 57 } else { 48 }
    }

    /// `kvm_mmu_invpcid_gva`.
    fn invpcid_gva(&mut self, address: u64, pcid: u64) -> Result<(), SimError> {
        self.vm.stats.count(Stat::Invlpg);
        let of = |cr3: u64, pcide: bool| if pcide { cr3 & CR3_PCID_MASK } else { 0 };
        let pcide = self.vcpu.cr4.contains(Cr4::PCIDE);
        let mmu = self.vcpu.mmu.active();
        let active = of(self.vcpu.cr3, pcide) == pcid;
        let prev = mmu.prev.map(|root| root.is_valid() && of(root.pgd, pcide) == pcid);
        if !active && !prev.contains(&true) {
            return Ok(());
        }
        if mmu.paging == Paging::NonPaging && !self.vm.changes.has(Change::InvlpgGuard) {
            self.mmu(|ctx, _, _| ctx.warn("mmu->invlpg called, which is NULL without paging (CVE-2022-1789)"));
            return Ok(());
        }
        let prev = if self.vm.plants.has(Plant::InvpcidCurrentOnly) { [false; 3] } else { prev };
        self.mmu(|ctx, vcpu, _| {
            ctx.invlpg_roots(vcpu, address, |which| match which {
                Which::Current => active,
                Which::Prev(slot) => prev[slot],
                Which::All => false,
            });
        });
        self.flush_gva(address)
    }
}
