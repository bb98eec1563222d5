//! Guest memory by linear address, for L0's emulator (`kvm_read_guest_virt`, `kvm_write_guest_virt_system`): the guest's
//! tables are walked in software with the rights of the access, those of an L2 with nested paging through L1's
//! (`walk_mmu` is `nested_mmu` then).

use crate::run::Run;
use mmu::fault::Backing;
use mmu::guest_walk::{NestedFault, WalkFault};
use mmu::permission::Attempt;
use mmu::plant::Plant;
use mmu::state::{Mmu, NestedTdp, Paging, TdpMode};
use mmu::stats::Stat;
use sim_core::SimError;
use sim_core::addr::{Gpa, Hpa, PAGE_BYTES};
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::PageFaultError;
use sim_core::arch::rflags::Rflags;

/// Why an address can't be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The guest's own tables: a page fault at a linear address.
    Page(u64, PageFaultError),
    /// L1's nested tables: a fault at a guest-physical address.
    Stage(u64, WalkFault),
}

/// Who took a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Memory slots, all of it.
    BySlots,
    /// Some of it nobody: there is no slot, or a read-only one.
    NotAll,
}

/// One page's part of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where it is in L1's memory.
    pub(crate) gpa: Gpa,
    /// Where it is in host memory, none for MMIO.
    pub(crate) host: Option<Hpa>,
    /// Its length.
    pub(crate) bytes: usize,
}

impl Run<'_> {
    /// The rights of an access by the current instruction.
    fn attempt(&self, access: PageFaultError) -> Attempt {
        let (segments, _, _) = self.guest_segments();
        let user = if segments.ss.rights.dpl() == 3 { PageFaultError::U } else { PageFaultError::empty() };
        Attempt { error: access | user, smap_suppressed: self.vcpu.rflags.contains(Rflags::AC) }
    }

    /// Where a linear address is in L1's memory (`vcpu->arch.walk_mmu->gva_to_gpa`).
    pub(crate) fn translate(&mut self, address: u64, access: PageFaultError) -> Result<Gpa, Miss> {
        let attempt = self.attempt(access);
        self.mmu(|ctx, vcpu, view| ctx.refresh_wp(vcpu, view));
        let offset = address & (PAGE_BYTES - 1);
        let nested = self.vcpu.mmu.nested_tdp == NestedTdp::Active;
        let frame = if !self.vcpu.cr0.contains(Cr0::PG) {
            Gpa(address).frame()
        } else if nested {
            let walk = self.mmu(|ctx, vcpu, view| ctx.walk_nested(vcpu, view, address, attempt));
            match walk {
                Ok(walk) => walk.gfn,
                Err(NestedFault::Own(WalkFault::Page(error))) => return Err(Miss::Page(address, error)),
                Err(NestedFault::Own(fault)) => return Err(Miss::Stage(address, fault)),
                Err(NestedFault::Stage(at, fault)) => return Err(Miss::Stage(at.0, fault)),
            }
        } else {
            let paging = if self.vcpu.cr4.contains(Cr4::PAE) { Paging::Paging64 } else { Paging::Paging32 };
            let walk = self.mmu(|ctx, vcpu, view| {
                let mmu = match ctx.vm.config.tdp {
                    TdpMode::Off => vcpu.active().clone(),
                    _ => Mmu { paging, ..vcpu.root_mmu.clone() },
                };
                ctx.walk_guest(&mmu, view, address, attempt)
            });
            match walk {
                Ok(walk) => walk.gfn,
                Err(WalkFault::Page(error)) => return Err(Miss::Page(address, error)),
                Err(fault) => return Err(Miss::Stage(address, fault)),
            }
        };
        let gpa = frame.base().offset(offset);
        let skips = self.vm.plants.has(Plant::NestedWalkSkipsStage);
        if nested && !skips { self.translate_nested_gpa(gpa, access) } else { Ok(gpa) }
    }

    /// Where a guest-physical address of L2 is in L1's memory (`translate_nested_gpa`): L1's nested tables see every access
    /// as a user's.
    pub(crate) fn translate_nested_gpa(&mut self, gpa: Gpa, access: PageFaultError) -> Result<Gpa, Miss> {
        let attempt = Attempt { error: access | PageFaultError::U, smap_suppressed: false };
        let walk = self.mmu(|ctx, vcpu, view| {
            let stage = vcpu.guest_mmu.clone();
            ctx.walk_guest(&stage, view, gpa.0, attempt)
        });
        match walk {
            Ok(walk) => Ok(walk.gfn.base().offset(gpa.page_offset())),
            Err(fault) => Err(Miss::Stage(gpa.0, fault)),
        }
    }

    /// The pieces of an operand: one, or two if it crosses a page boundary.
    pub(crate) fn pieces(&mut self, address: u64, bytes: usize, access: PageFaultError) -> Result<Vec<Piece>, Miss> {
        let first = bytes.min((PAGE_BYTES - (address & (PAGE_BYTES - 1))) as usize);
        let mut pieces = Vec::new();
        for (at, bytes) in [(address, first), (address.wrapping_add(first as u64), bytes - first)] {
            if bytes != 0 {
                let gpa = self.translate(at, access)?;
                pieces.push(Piece { gpa, host: self.backing_of(gpa, PageFaultError::empty()), bytes });
            }
        }
        Ok(pieces)
    }

    /// The host memory behind an address, as far as whoever runs may see it (`kvm_vcpu_gfn_to_memslot`).
    fn backing_of(&mut self, gpa: Gpa, access: PageFaultError) -> Option<Hpa> {
        let attempt = Attempt { error: access, smap_suppressed: false };
        match self.mmu(|ctx, _, view| ctx.backing(view, gpa.frame(), attempt)) {
            Backing::Page(page) => Some(page.hfn.base().offset(gpa.page_offset())),
            Backing::None | Backing::NotWritable => None,
        }
    }

    /// Reads an operand of up to eight bytes. No device answers an address without a slot: it reads as all ones.
    pub(crate) fn read_pieces(&self, pieces: &[Piece]) -> u64 {
        let mut value = [0; 8];
        let mut at = 0;
        for piece in pieces {
            let part = piece.host.map_or(u64::MAX, |host| self.ground.mem.read(host, piece.bytes));
            value[at..at + piece.bytes].copy_from_slice(&part.to_le_bytes()[..piece.bytes]);
            at += piece.bytes;
        }
        u64::from_le_bytes(value)
    }

    /// The same for an instruction that is emulated, which leaves for userspace where no slot answers.
    pub(crate) fn load_pieces(&mut self, pieces: &[Piece]) -> u64 {
        if pieces.iter().any(|piece| piece.host.is_none()) {
            self.vm.stats.count(Stat::MmioExits);
        }
        self.read_pieces(pieces)
    }

    /// Writes an operand, and tells the MMU where it may have been a shadowed table (`emulator_write_phys`,
    /// `kvm_page_track_write`). A write to an address without a slot, or
    /// with a read-only one, goes nowhere.
    pub(crate) fn write_pieces(&mut self, pieces: &[Piece], value: u64) {
        let tell = |run: &mut Self, piece: &Piece| {
            run.mmu(|ctx, _, view| ctx.pte_write(view, piece.gpa, piece.bytes as u64));
        };
        match self.write_each(pieces, value, tell) {
            Taken::BySlots => {}
            Taken::NotAll => self.vm.stats.count(Stat::MmioExits),
        }
    }

    /// Writes what an instruction that KVM carries out itself stores (`kvm_write_guest_virt_system`): the MMU is not told, so that
    /// entries below a shadowed table that was written stay as they were.
    ///
    /// # Errors
    /// If no slot is there: KVM gives up then (`kvm_handle_memory_failure`).
    pub(crate) fn write_untracked(&mut self, pieces: &[Piece], value: u64) -> Result<(), SimError> {
        match self.write_each(pieces, value, |_, _| {}) {
            Taken::BySlots => Ok(()),
            Taken::NotAll => Err(SimError::unmodelled("a store of VMREAD or VMPTRST where no slot is")),
        }
    }

    fn write_each(&mut self, pieces: &[Piece], value: u64, mut tell: impl FnMut(&mut Self, &Piece)) -> Taken {
        let value = value.to_le_bytes();
        let (mut at, mut taken) = (0, Taken::BySlots);
        for piece in pieces {
            let mut part = [0; 8];
            part[..piece.bytes].copy_from_slice(&value[at..at + piece.bytes]);
            at += piece.bytes;
            let host = self.backing_of(piece.gpa, PageFaultError::W);
            let Some(host) = host else {
                taken = Taken::NotAll;
                continue;
            };
            self.ground.mem.write(host, u64::from_le_bytes(part), piece.bytes);
            self.mmu(|ctx, _, view| ctx.mark_dirty(view.space(), piece.gpa.frame()));
            tell(self, piece);
        }
        taken
    }
}
