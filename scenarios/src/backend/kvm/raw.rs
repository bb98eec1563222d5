//! The only unsafe code of rolecall: what the kernel's interface needs beyond what `kvm-ioctls` and `vm-memory` wrap.
//! Guest memory is given to a VM here, statistics are opened, a timer is set on the thread that runs a vCPU, and a rig speaks
//! through an I/O port.

#![expect(unsafe_code, reason = "the kernel's interface; each block says why it is sound")]

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use sim_core::SimError;
use std::arch::asm;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::time::Duration;
use vm_memory::mmap::MmapRegion;
use vm_memory::{VolatileMemory, VolatileSlice};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Memory of this process that backs a slot. Its pages are touched and small, so that no page of zeroes and no large page
/// stands in for them.
#[derive(Clone, Debug)]
pub(super) struct Backing(Arc<MmapRegion>);

impl Backing {
    /// Pages of zeroes.
    pub(super) fn new(bytes: usize) -> Result<Self, SimError> {
        let region = MmapRegion::new(bytes).map_err(|error| failed("mmap of guest memory", &error))?;
        // SAFETY: the range is this mapping's own, and the advice changes no content.
        let advised = unsafe { libc::madvise(region.as_ptr().cast(), bytes, libc::MADV_NOHUGEPAGE) };
        if advised != 0 {
            return Err(failed("madvise of guest memory", &io::Error::last_os_error()));
        }
        // All at once where the kernel has that (v5.14): a fault a page costs an emulated processor seconds.
        // SAFETY: the range is this mapping's own, and so far nothing is in it.
        let populated = unsafe { libc::madvise(region.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) };
        let backing = Self(Arc::new(region));
        if populated == 0 {
            return Ok(backing);
        }
        for page in (0..bytes).step_by(4096) {
            backing.write(page, &[0])?;
        }
        Ok(backing)
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }

    /// Writes at an offset.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), SimError> {
        let place = self.slice();
        let place = place.get_slice(offset, bytes.len()).map_err(|error| failed("guest memory", &error))?;
        place.copy_from(bytes);
        Ok(())
    }

    /// Reads at an offset.
    pub(super) fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), SimError> {
        let place = self.slice();
        let place = place.get_slice(offset, bytes.len()).map_err(|error| failed("guest memory", &error))?;
        place.copy_to(bytes);
        Ok(())
    }

    /// Gives the page at an offset back to the kernel and takes a new one with the same content: an mmu-notifier
    /// invalidation, and another host frame.
    pub(super) fn renew_page(&self, offset: usize) -> Result<(), SimError> {
        let mut content = vec![0; 4096];
        self.read(offset, &mut content)?;
        // SAFETY: `read` has checked that the page lies in this mapping, whose content is restored below.
        let given = unsafe { libc::madvise(self.0.as_ptr().add(offset).cast(), 4096, libc::MADV_DONTNEED) };
        if given != 0 {
            return Err(failed("madvise of a guest page", &io::Error::last_os_error()));
        }
        self.write(offset, &content)
    }
}

/// How the guest may use a slot, and whether its writes are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotFlags {
    pub(super) read_only: bool,
    pub(super) logs: bool,
}

/// Creates, moves or changes a memory slot; without backing, deletes it. Whoever owns the backing keeps it until the slot is
/// deleted, or the VM is gone.
pub(super) fn set_slot(vm: &VmFd, slot: u32, at: u64, backing: Option<(&Backing, SlotFlags)>) -> Result<(), SimError> {
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    let (size, address, flags) = match backing {
        None => (0, 0, 0),
        Some((backing, flags)) => (
            backing.0.size() as u64,
            backing.0.as_ptr() as u64,
            bit(flags.read_only, KVM_MEM_READONLY) | bit(flags.logs, KVM_MEM_LOG_DIRTY_PAGES),
        ),
    };
    let region =
        kvm_userspace_memory_region { slot, flags, guest_phys_addr: at, memory_size: size, userspace_addr: address };
    // SAFETY: the range is a whole mapping, which the backend keeps for as long as the VM has the slot.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| failed("KVM_SET_USER_MEMORY_REGION", &error))
}

/// KVM_GET_STATS_FD, `_IO(KVMIO, 0xce)`.
const GET_STATS_FD: libc::c_ulong = 0xaece;

/// The file of statistics of a VM or a vCPU.
pub(super) fn statistics_of(fd: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the call has no argument, and the descriptor is open as long as its owner is borrowed.
    let file = unsafe { libc::ioctl(fd.as_raw_fd(), GET_STATS_FD as _) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(file) })
}

/// A timer that interrupts the thread which armed it, again and again until it is dropped, so that no KVM_RUN lasts.
#[derive(Debug)]
pub(super) struct Alarm(libc::timer_t);

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Alarm {
    /// Sets one.
    pub(super) fn set(after: Duration) -> Result<Self, SimError> {
        register_signal_handler(SIGRTMIN(), ignore).map_err(|error| failed("sigaction", &error))?;
        // SAFETY: an event of zeroes is a valid one; what matters is set below.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        // SAFETY: the call has no arguments and can't fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = MaybeUninit::<libc::timer_t>::uninit();
        // SAFETY: both pointers are to locals that outlive the call.
        let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr()) };
        if made != 0 {
            return Err(failed("timer_create", &io::Error::last_os_error()));
        }
        // SAFETY: the call above has filled it in.
        let alarm = Self(unsafe { timer.assume_init() });
        let after = libc::timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos().into() };
        let often = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let spec = libc::itimerspec { it_interval: often, it_value: after };
        // SAFETY: the timer is valid, and the specification is a local that outlives the call.
        if unsafe { libc::timer_settime(alarm.0, 0, &raw const spec, std::ptr::null_mut()) } != 0 {
            return Err(failed("timer_settime", &io::Error::last_os_error()));
        }
        Ok(alarm)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is valid and used no more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// What the kernel refused, by name: the run can't be judged here.
pub(super) fn failed(what: &str, error: &dyn std::fmt::Display) -> SimError {
    SimError::unmodelled(format!("{what} on this KVM: {error}"))
}

/// The I/O port that rigs speak to: both QEMU and Bochs pass on what is written there.
pub(crate) const PORT: u16 = 0xe9;

/// The right of this thread to use [`PORT`], which stays with the thread.
#[derive(Debug)]
pub(crate) struct Port(PhantomData<*const ()>);

impl Port {
    /// Asks the kernel for it.
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: the call only permits the port, and nothing but `write` uses it.
        match unsafe { libc::ioperm(PORT.into(), 1, 1) } {
            0 => Ok(Self(PhantomData)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes bytes one after the other. The kernels of rigs have no `/dev/port`.
    pub(crate) fn write(&self, bytes: &[u8]) {
        // SAFETY: this thread may use the port, as `open` saw; the instruction reads the bytes and changes the two
        // registers that it is given, and DF is clear as the ABI has it.
        unsafe {
            asm!(
                "rep outsb",
                inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _,
                in("dx") PORT,
                options(readonly, nostack, preserves_flags)
            );
        }
    }
}
