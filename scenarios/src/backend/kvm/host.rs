//! Steps of the host on a real KVM: ioctls, and what this process does with the memory behind a slot.

use super::raw::{failed, set_slot};
use super::{Kvm, Present};
use crate::file::{BackedBy, CpuidChange, HostStep, InSmm, Logging, Observation, Reset, SeenBy, Slot};
use kvm_bindings::{Msrs, kvm_msr_entry};
use mmu::state::Nesting;
use sim_core::addr::PAGE_BYTES;
use sim_core::arch::control::Efer;
use sim_core::arch::msr;
use sim_core::choice::Choice;
use sim_core::event::Event;
use sim_core::{Gpa, SimError};

/// Where the slot lies that comes and goes to make the kernel drop every shadow page: one page below 512 GiB.
const SCRATCH: Gpa = Gpa(0x7f_ffff_f000);

/// Whether userspace can make such a slot.
pub(super) fn is_plain(slot: &Slot) -> Result<(), SimError> {
    if slot.private {
        return Err(SimError::unmodelled("a private slot, which only KVM itself makes"));
    }
    if slot.seen_by != SeenBy::Everyone {
        return Err(SimError::unmodelled("a slot of SMM on this KVM"));
    }
    if slot.backed_by != BackedBy::Pages {
        return Err(SimError::unmodelled("a slot of a device's memory on this KVM"));
    }
    Ok(())
}

fn no_ioctl(what: &str) -> SimError {
    SimError::unmodelled(format!("{what} on a real KVM"))
}

fn absent(name: &str) -> SimError {
    SimError::unmodelled(format!("slot {name}, which does not exist"))
}

impl Kvm {
    pub(super) fn call(&mut self, what: impl Into<String>) {
        self.record(Event::HostCall { what: what.into() });
    }

    /// Drops every shadow page: a slot is deleted, which does it (`kvm_arch_flush_shadow_memslot`).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn zap_all(&mut self) -> Result<(), SimError> {
        self.call("zap all");
        let number = self.next_slot;
        set_slot(&self.vm, number, SCRATCH.0, Some((&self.scratch, super::SlotFlags::default())))?;
        set_slot(&self.vm, number, SCRATCH.0, None)?;
        self.look_inside();
        Ok(())
    }

    /// An mmu-notifier invalidation of one guest frame.
    ///
    /// # Errors
    /// If no slot is there.
    pub fn zap_gfn(&mut self, gfn: u64) -> Result<(), SimError> {
        self.call(format!("invalidate gfn {gfn:#x}"));
        self.renew(gfn)
    }

    fn renew(&self, gfn: u64) -> Result<(), SimError> {
        let at = Gpa(gfn * PAGE_BYTES);
        let slot = self.slots.values().find(|slot| slot.holds(at));
        let slot = slot.ok_or_else(|| SimError::unmodelled(format!("a page of the host at {at}, where no slot is")))?;
        slot.backing.renew_page((at.0 - slot.at.0) as usize)
    }

    /// Gives up every root of a vCPU, by switching EFER.NXE from outside and back. KVM_SET_SREGS would do so too, but would read
    /// PDPTEs on the way.
    ///
    /// # Errors
    /// If there is no such vCPU, or the kernel refuses the value.
    pub fn unload_mmu(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.call("unload MMU");
        let efer = self.sregs(vcpu)?.efer;
        let between = efer.symmetric_difference(Efer::NXE);
        [between, efer].into_iter().try_for_each(|efer| self.write_efer(vcpu, efer.bits()))
    }

    /// Flushes what a guest has cached: no ioctl does, and no guest may notice.
    ///
    /// # Errors
    /// Always.
    pub fn flush_tlb(&mut self, _vcpu: u8) -> Result<(), SimError> {
        Err(no_ioctl("a flush of the TLB"))
    }

    /// A flush that the guest asks for in words of its own: it would need a paravirtual guest.
    ///
    /// # Errors
    /// Always.
    pub fn guest_flush(&mut self, _vcpu: u8) -> Result<(), SimError> {
        Err(no_ioctl("a guest's own flush"))
    }

    /// Changes what CPUID says: a vCPU's is set as it is made.
    ///
    /// # Errors
    /// Always.
    pub fn set_cpuid(&mut self, _vcpu: u8, _change: &CpuidChange) -> Result<(), SimError> {
        Err(no_ioctl("another CPUID"))
    }

    /// An SMI (`KVM_SMI`), which the vCPU takes when it runs next.
    ///
    /// # Errors
    /// If there is no such vCPU, or this KVM has no SMM.
    pub fn smi(&mut self, vcpu: u8) -> Result<(), SimError> {
        self.call("SMI");
        self.seat(vcpu)?.fd.smi().map_err(|error| failed("KVM_SMI", &error))
    }

    /// A move to another processor.
    ///
    /// # Errors
    /// Always.
    pub fn migrate(&mut self, _vcpu: u8, _cpu: u8) -> Result<(), SimError> {
        Err(no_ioctl("a move to another processor"))
    }

    /// Says that a vCPU is in SMM, or is not.
    ///
    /// # Errors
    /// Always.
    pub fn set_smm(&mut self, _vcpu: u8, _smm: InSmm) -> Result<Nesting, SimError> {
        Err(no_ioctl("SMM"))
    }

    /// Nothing: what a real processor may translate by nobody can see.
    pub const fn watch(&mut self) {}

    /// Makes the processor choose its translations.
    ///
    /// # Errors
    /// Always: a real one chooses by itself.
    pub fn choose_freely(&mut self, _vcpu: u8, _script: Vec<u32>) -> Result<(), SimError> {
        Err(no_ioctl("choosing translations"))
    }

    /// Nothing: see [`Self::choose_freely`].
    ///
    /// # Errors
    /// Never.
    pub const fn choose_no_more(&mut self, _vcpu: u8) -> Result<(), SimError> {
        Ok(())
    }

    /// None.
    #[must_use]
    pub const fn choices(&self) -> &[Choice] {
        &[]
    }

    /// A real machine has no state that could be hashed.
    #[must_use]
    pub const fn state_hash(&self) -> u64 {
        0
    }

    /// A real machine's cycles are no result.
    #[must_use]
    pub const fn cycles(&self) -> u64 {
        0
    }

    /// Sets EFER (`KVM_SET_MSRS`).
    ///
    /// # Errors
    /// If there is no such vCPU, or the kernel refuses the value.
    pub fn set_efer(&mut self, vcpu: u8, value: u64) -> Result<(), SimError> {
        self.call(format!("set EFER {value:#x}"));
        self.write_efer(vcpu, value)
    }

    fn write_efer(&mut self, vcpu: u8, value: u64) -> Result<(), SimError> {
        let entry = kvm_msr_entry { index: msr::EFER, data: value, ..kvm_msr_entry::default() };
        let msrs = Msrs::from_entries(&[entry]).map_err(|error| failed("KVM_SET_MSRS", &format!("{error:?}")))?;
        match self.seat(vcpu)?.fd.set_msrs(&msrs).map_err(|error| failed("KVM_SET_MSRS", &error))? {
            1 => Ok(()),
            _ => Err(SimError::unmodelled(format!("KVM_SET_MSRS of EFER {value:#x}, which this KVM refuses"))),
        }
    }

    /// A step about slots and pages.
    ///
    /// # Errors
    /// If a slot does not exist, or userspace can't do such a thing.
    pub fn host(&mut self, step: &HostStep) -> Result<Observation, SimError> {
        self.call(step.to_string());
        match step {
            HostStep::MoveSlot { slot, at } => self.move_slot(slot, Gpa(*at))?,
            HostStep::MovePage(gfn) => self.renew(*gfn)?,
            HostStep::LogDirty { slot, logging } => self.log_dirty(slot, *logging)?,
            HostStep::DirtyLog { slot, reset: Reset::Yes } => return self.dirty_log(slot),
            _ => {
                return Err(SimError::unmodelled(format!("the host's step \"{step}\" on a real KVM")));
            }
        }
        Ok(Observation::Ok)
    }

    fn slot_mut(&mut self, name: &str) -> Result<&mut Present, SimError> {
        let name = if name == crate::file::host::MAIN_MEMORY { "" } else { name };
        self.slots.get_mut(name).ok_or_else(|| absent(name))
    }

    fn move_slot(&mut self, name: &str, at: Gpa) -> Result<(), SimError> {
        let slot = self.slot_mut(name)?;
        slot.at = at;
        let (number, backing, flags) = (slot.number, slot.backing.clone(), slot.flags);
        set_slot(&self.vm, number, at.0, Some((&backing, flags)))
    }

    fn log_dirty(&mut self, name: &str, logging: Logging) -> Result<(), SimError> {
        let slot = self.slot_mut(name)?;
        slot.flags.logs = logging == Logging::On;
        let (number, at, flags, backing) = (slot.number, slot.at, slot.flags, slot.backing.clone());
        set_slot(&self.vm, number, at.0, Some((&backing, flags)))
    }

    fn dirty_log(&mut self, name: &str) -> Result<Observation, SimError> {
        let slot = self.slot_mut(name)?;
        let (number, bytes, first) = (slot.number, slot.bytes(), slot.at.frame().0);
        let words =
            self.vm.get_dirty_log(number, bytes as usize).map_err(|error| failed("KVM_GET_DIRTY_LOG", &error))?;
        let frames = words.iter().zip((0..).step_by(64)).flat_map(|(word, start)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + start + bit)
        });
        Ok(Observation::Dirty(frames.collect()))
    }
}
