//! The host side: what userspace and the rest of the host kernel do to a VM and its vCPUs (ioctls, notifiers).

use crate::machine::Machine;
use crate::nested::{Restored, SavedNested};
use crate::run::Run;
use crate::vcpu::Sregs;
use mmu::memslot::{AddressSpace, Memslot, Protection, Visibility};
use mmu::request::Requests;
use mmu::state::Nesting;
use mmu::{Change, Vm};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{Gfn, Gpa, Level};
use sim_core::event::{Event, NestedEdge};

/// The slot that is a VM's memory.
pub const MEMORY_SLOT: &str = "memory";

/// Gives a VM its memory from guest-physical 0.
///
/// # Errors
/// If the host has not that much.
pub fn add_memory(vm: &mut Vm, frames: u64) -> Result<(), SimError> {
    add_slot(vm, MEMORY_SLOT, Gfn(0), frames, Visibility::Public, Protection::ReadWrite)
}

/// Adds a slot over fresh host frames.
///
/// # Errors
/// If the host has not that much, or the slot overlaps another.
pub fn add_slot(
    vm: &mut Vm,
    name: &str,
    gfn: Gfn,
    frames: u64,
    visibility: Visibility,
    protection: Protection,
) -> Result<(), SimError> {
    let hfn = vm.frames.take_aligned_run(frames, alignment(frames))?;
    let slot = Memslot { visibility, protection, ..Memslot::new(name, gfn, frames, hfn) };
    vm.slots.begin_update();
    for space in AddressSpace::ALL {
        vm.slots.add(space, slot.clone()).map_err(|overlap| SimError::unmodelled(overlap.to_string()))?;
    }
    vm.slots.end_update();
    Ok(())
}

/// Host frames of a slot are aligned as far as the largest page that could map all of it at once, so that large pages
/// are possible wherever guest addresses allow them.
#[must_use]
pub fn alignment(frames: u64) -> u64 {
    let fits = |level: &Level| level.frames() <= frames;
    [Level::L3, Level::L2].into_iter().find(fits).map_or(1, Level::frames)
}

/// What `KVM_GET_SREGS`, `KVM_GET_REGS` and `KVM_GET_NESTED_STATE` give: a vCPU as userspace saves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SavedVcpu {
    sregs: Sregs,
    nested: SavedNested,
    nesting: Nesting,
    nested_pgd: u64,
}

impl SavedVcpu {
    /// Whether L1 or L2 ran when it was saved.
    #[must_use]
    pub const fn nesting(&self) -> Nesting {
        self.nesting
    }
}

impl Machine {
    fn host_call(&mut self, what: impl Into<String>) {
        self.ground.record(Event::HostCall { what: what.into() });
    }

    /// `kvm_mmu_zap_all_fast`, as any memslot deletion does.
    ///
    /// # Errors
    /// Never for vCPU 0, which every machine has.
    pub fn zap_all(&mut self) -> Result<(), SimError> {
        self.host_call("zap all");
        self.on_vcpu(0, |run| {
            run.mmu(|ctx, _, _| ctx.zap_all_fast());
            Ok(())
        })
    }

    /// An mmu-notifier invalidation of one guest frame.
    ///
    /// # Errors
    /// Never for vCPU 0, which every machine has.
    pub fn zap_gfn(&mut self, gfn: Gfn) -> Result<(), SimError> {
        self.host_call(format!("invalidate gfn {gfn}"));
        self.on_vcpu(0, |run| {
            run.mmu(|ctx, _, _| ctx.zap_gfn(gfn));
            Ok(())
        })
    }

    /// `KVM_SET_USER_MEMORY_REGION`, adding a slot.
    ///
    /// # Errors
    /// If the host has not that much memory, or the slot overlaps another.
    pub fn add_slot(
        &mut self,
        name: &str,
        gfn: Gfn,
        frames: u64,
        visibility: Visibility,
        protection: Protection,
    ) -> Result<(), SimError> {
        self.host_call(format!("add slot {name}"));
        add_slot(&mut self.vm, name, gfn, frames, visibility, protection)
    }

    /// `KVM_SET_USER_MEMORY_REGION`, deleting a slot: everything is zapped.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn delete_slot(&mut self, name: &str) -> Result<(), SimError> {
        self.host_call(format!("delete slot {name}"));
        if AddressSpace::ALL.into_iter().filter_map(|space| self.vm.slots.remove(space, name)).count() == 0 {
            return Err(SimError::unmodelled(format!("deletion of slot {name}, which does not exist")));
        }
        self.zap_all()
    }

    /// Frees every root of a vCPU, as any MMU reset would.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn unload_mmu(&mut self, id: u8) -> Result<(), SimError> {
        self.host_call("unload MMU");
        self.on_vcpu(id, |run| {
            run.mmu(|ctx, vcpu, _| ctx.unload(vcpu));
            Ok(())
        })
    }

    /// `KVM_GET_REGS`, `KVM_GET_SREGS` and `KVM_GET_NESTED_STATE`.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn save(&mut self, id: u8) -> Result<SavedVcpu, SimError> {
        self.host_call("get sregs and nested state");
        self.on_vcpu(id, |run| {
            Ok(SavedVcpu {
                sregs: run.sregs(),
                nested: run.save_nested(),
                nesting: run.vcpu.nesting,
                nested_pgd: run.vcpu.nested_pgd,
            })
        })
    }

    /// `KVM_SET_REGS` and `KVM_SET_SREGS` with saved values.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_saved_sregs(&mut self, id: u8, saved: &SavedVcpu) -> Result<(), SimError> {
        self.set_sregs(id, &saved.sregs)
    }

    /// `KVM_SET_REGS` and `KVM_SET_SREGS`.
    ///
    /// # Errors
    /// If there is no such vCPU.
    pub fn set_sregs(&mut self, id: u8, sregs: &Sregs) -> Result<(), SimError> {
        self.host_call("set sregs");
        self.on_vcpu(id, |run| {
            run.set_sregs(sregs);
            Ok(())
        })
    }

    /// `KVM_SET_NESTED_STATE` with saved values.
    ///
    /// # Errors
    /// If the saved state can't be entered.
    pub fn set_nested_state(&mut self, id: u8, saved: &SavedVcpu) -> Result<(), SimError> {
        self.host_call("set nested state");
        self.on_vcpu(id, |run| {
            let was = run.vcpu.nesting;
            run.leave_nested()?;
            run.restore_nested(&saved.nested, Restored { nesting: saved.nesting, was, nested_pgd: saved.nested_pgd })
        })
    }

    /// Forces a vCPU out of L2 without L1's knowledge, as a reset or an empty `KVM_SET_NESTED_STATE` does.
    ///
    /// # Errors
    /// If L1's state can't be loaded.
    pub fn leave_nested(&mut self, id: u8) -> Result<(), SimError> {
        self.host_call("leave nested");
        self.on_vcpu(id, |run| run.leave_nested())
    }
}

impl Run<'_> {
    /// `__get_sregs`, with the general registers.
    #[must_use]
    pub fn sregs(&self) -> Sregs {
        let (segments, gdtr, idtr) = self.guest_segments();
        let vcpu = &self.vcpu;
        Sregs {
            segments,
            gdtr,
            idtr,
            cr0: vcpu.cr0,
            cr2: vcpu.cr2,
            cr3: vcpu.cr3,
            cr4: vcpu.cr4,
            efer: vcpu.efer,
            gprs: vcpu.gprs,
            rip: vcpu.rip,
            rflags: vcpu.rflags,
        }
    }

    /// `__set_sregs`: registers are written raw, and the MMU is reset if any that it depends on changed.
    pub fn set_sregs(&mut self, sregs: &Sregs) {
        let before = (self.vcpu.cr0, self.vcpu.cr3, self.vcpu.cr4, self.vcpu.efer);
        self.set_guest_segments(&sregs.segments, sregs.gdtr, sregs.idtr);
        let vcpu = &mut self.vcpu;
        vcpu.gprs = sregs.gprs;
        vcpu.rip = sregs.rip;
        vcpu.rflags = sregs.rflags;
        vcpu.cr0 = sregs.cr0;
        vcpu.cr2 = sregs.cr2;
        vcpu.cr3 = sregs.cr3;
        vcpu.cr4 = sregs.cr4;
        vcpu.efer = sregs.efer;
        self.write_controls();
        self.write_guest_cr3();
        if self.vcpu.is_pae() && self.load_pdptes(sregs.cr3).is_err() {
            // KVM ignores the failure here too; the guest faults when it runs.
            self.vcpu.pdptes = [0; 4];
        }
        if before != (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) || self.vcpu.is_pae() {
            self.mmu(|ctx, vcpu, view| ctx.reset_context(vcpu, view));
            if self.vm.changes.has(Change::FlushOnReset) {
                self.request(Requests::TLB_FLUSH_GUEST);
            }
        }
    }

    /// The memslots that the vCPU sees.
    #[must_use]
    pub const fn space(&self) -> AddressSpace {
        AddressSpace::of(self.vcpu.smm)
    }

    /// Tells the log which nested edge was crossed.
    pub fn tell_nested(&mut self, edge: NestedEdge, detail: impl Into<String>) {
        self.ground.record(Event::Nested { edge, detail: detail.into() });
    }

    /// Reads guest-physical memory, none where no slot is.
    #[must_use]
    pub fn read_gpa(&self, gpa: Gpa) -> Option<u64> {
        self.vm.slots.host(self.space(), gpa).map(|host| self.ground.mem.read_u64(host))
    }
}
