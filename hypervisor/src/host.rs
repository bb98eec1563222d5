//! The host side: what userspace and the rest of the host kernel do to a VM and its vCPUs (ioctls, notifiers).

use crate::control_regs::Initiator;
use crate::machine::Machine;
use crate::nested::{Restored, SavedNested};
use crate::run::Run;
use crate::vcpu::Sregs;
use mmu::Change;
use mmu::cpuid::GuestCpuid;
use mmu::memslot::AddressSpace;
use mmu::plant::Plant;
use mmu::request::Requests;
use mmu::state::Nesting;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::addr::{Gfn, Gpa};
use sim_core::event::{Event, NestedEdge};

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
    pub(crate) fn host_call(&mut self, what: impl Into<String>) {
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

    /// One turn of the thread that recovers large pages (`kvm_nx_lpage_recovery_worker`).
    ///
    /// # Errors
    /// Never for vCPU 0, which every machine has.
    pub fn recover_nx_pages(&mut self, ratio: u64) -> Result<(), SimError> {
        self.host_call(format!("recover large pages, one in {ratio}"));
        self.on_vcpu(0, |run| {
            run.mmu(|ctx, _, _| ctx.recover_nx_pages(ratio));
            Ok(())
        })
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
                nested: run.save_nested()?,
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

    /// `KVM_SET_MSRS` of EFER.
    ///
    /// # Errors
    /// If the value has bits that a guest never has.
    pub fn set_efer(&mut self, id: u8, value: u64) -> Result<(), SimError> {
        self.host_call(format!("set EFER {value:#x}"));
        self.on_vcpu(id, |run| {
            run.set_efer(value, Initiator::Host)
                .map_err(|_| SimError::unmodelled(format!("KVM_SET_MSRS of EFER {value:#x}, which KVM refuses")))
        })
    }

    /// `KVM_SET_CPUID2`, as far as paging goes. A vCPU that has run keeps the CPUID that it has (c6617c61e8fe).
    ///
    /// # Errors
    /// If there is no such vCPU, or it has run and the CPUID is another.
    pub fn set_cpuid(&mut self, id: u8, cpuid: GuestCpuid) -> Result<(), SimError> {
        self.host_call("set CPUID");
        self.on_vcpu(id, |run| {
            if run.vcpu.last_entry.is_some() {
                return if run.vcpu.mmu.cpuid == cpuid {
                    Ok(())
                } else {
                    Err(SimError::unmodelled(
                        "KVM_SET_CPUID2 of another CPUID for a vCPU that has run, which KVM refuses",
                    ))
                };
            }
            run.vcpu.mmu.cpuid = cpuid;
            run.mmu(|ctx, vcpu, view| ctx.after_set_cpuid(vcpu, view));
            Ok(())
        })
    }

    /// The CPUID of a vCPU, as far as paging goes; none if there is no such vCPU.
    #[must_use]
    pub fn cpuid(&self, id: u8) -> Option<GuestCpuid> {
        self.vcpus.get(usize::from(id)).map(|vcpu| vcpu.mmu.cpuid)
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
            cr8: vcpu.cr8,
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
        vcpu.cr8 = sregs.cr8;
        vcpu.efer = sregs.efer;
        self.write_controls();
        if self.load_writes_cr3() {
            self.write_guest_cr3();
        }
        if self.vcpu.is_pae() && self.load_pdptes(sregs.cr3).is_err() {
            // KVM ignores the failure here too; the guest faults when it runs.
            self.vcpu.pdptes = [0; 4];
        }
        let changed = before != (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) || self.vcpu.is_pae();
        if changed && !self.vm.plants.has(Plant::NoResetAfterSetSregs) {
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
