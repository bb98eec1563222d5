//! What userspace and the host kernel do to a VM beside letting it run: the steps of `host` that change registers,
//! memory slots and host pages, and ask what the guest did.

use super::guest::Flags;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of main memory, where steps name a slot.
pub const MAIN_MEMORY: &str = "memory";

/// A change of a system register.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RegisterChange {
    /// CR3 is this address space's root.
    Cr3(String),
    /// Bits of CR0, CR4 or EFER.
    Flags(Flags),
}

/// Whether writes to a slot are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Logging {
    /// They are not.
    Off,
    /// They are.
    On,
}

impl Logging {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Off, Self::On];

    /// As steps spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// Whether reading a dirty log clears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reset {
    /// It does, and the pages are watched again.
    Yes,
    /// It does not (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`): `clear-dirty-log` does.
    No,
}

/// Where a vCPU pauses in a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PausePoint {
    /// After the walk of the guest's tables, before anything follows from it.
    AfterWalk,
    /// After the host page was looked up, before the MMU lock is taken.
    BeforeLock,
    /// After the fault was handled, before the guest is entered again.
    BeforeEntry,
}

/// What the host lets be done with a page that it gives a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PageAccess {
    /// It may only be read.
    ReadOnly,
    /// It may be written.
    Writable,
}

impl PageAccess {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ReadOnly, Self::Writable];

    /// As steps spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Writable => "writable",
        }
    }
}

/// Whether userspace says that a vCPU is in SMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InSmm {
    /// It is not.
    Outside,
    /// It is.
    Inside,
}

impl InSmm {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Outside, Self::Inside];

    /// As steps spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Inside => "inside",
        }
    }
}

/// A feature of paging that a guest's CPUID may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PagingFeature {
    /// 1 GiB pages.
    GiantPages,
    /// Supervisor-mode execution prevention.
    Smep,
    /// Supervisor-mode access prevention.
    Smap,
    /// 5-level paging.
    La57,
}

impl PagingFeature {
    /// Every feature.
    pub const ALL: [Self; 4] = [Self::GiantPages, Self::Smep, Self::Smap, Self::La57];

    /// As steps spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GiantPages => "1g-pages",
            Self::Smep => "smep",
            Self::Smap => "smap",
            Self::La57 => "la57",
        }
    }
}

/// What a vCPU's CPUID says from now on; the rest is what the host has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuidChange {
    /// Physical-address bits.
    pub maxphyaddr: Option<u32>,
    /// Features that it lacks.
    pub without: Vec<PagingFeature>,
}

impl fmt::Display for CpuidChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(bits) = self.maxphyaddr {
            write!(f, " maxphyaddr={bits}")?;
        }
        self.without.iter().try_for_each(|feature| write!(f, " without={}", feature.name()))
    }
}

/// Guest frames, first and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FrameRange {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl fmt::Display for FrameRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.first)?;
        if self.count == 1 { Ok(()) } else { write!(f, " {}", self.count) }
    }
}

/// A step of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HostStep {
    /// `KVM_SET_SREGS` of what the vCPU has, with changes.
    SetRegisters(Vec<RegisterChange>),
    /// `KVM_SET_MSRS` of EFER.
    SetEfer(Flags),
    /// `KVM_SET_CPUID2`, before the vCPU runs.
    SetCpuid(CpuidChange),
    /// `KVM_SET_VCPU_EVENTS` with another `smi.smm`, and nothing else.
    SetSmm(InSmm),
    /// `KVM_SMI`, and then the vCPU runs to the beginning of its SMM code.
    Smi,
    /// INIT and a start-up IPI, and then the vCPU runs until it is in flat 32-bit code.
    InitVcpu,
    /// `KVM_SET_USER_MEMORY_REGION`: the slot is elsewhere from now on.
    MoveSlot {
        /// The slot.
        slot: String,
        /// Its new guest-physical address.
        at: u64,
    },
    /// `KVM_SET_USER_MEMORY_REGION`: writes are logged, or no longer.
    LogDirty {
        /// The slot.
        slot: String,
        /// Whether they are.
        logging: Logging,
    },
    /// `KVM_GET_DIRTY_LOG`.
    DirtyLog {
        /// The slot.
        slot: String,
        /// Whether it is also cleared.
        reset: Reset,
    },
    /// `KVM_CLEAR_DIRTY_LOG`.
    ClearDirtyLog {
        /// The slot.
        slot: String,
        /// The guest frames.
        frames: FrameRange,
    },
    /// An mmu-notifier invalidation begins.
    InvalidateBegin(FrameRange),
    /// It ends.
    InvalidateEnd(FrameRange),
    /// The host moves a page to another host frame.
    MovePage(u64),
    /// The host replaces a page by another with the same content (`change_pte`).
    ChangePage {
        /// The guest frame.
        gfn: u64,
        /// What may be done with the new page.
        access: PageAccess,
    },
    /// The host asks whether a page was used, and forgets it (`clear_flush_young`).
    AgePage(u64),
    /// The vCPU's next page fault on a guest frame pauses.
    PauseAt {
        /// The guest frame.
        gfn: u64,
        /// Where.
        point: PausePoint,
    },
    /// User space has a guest frame mapped outside of a run (`KVM_PRE_FAULT_MEMORY`).
    PreFault(u64),
    /// The host asks whether a page was used (`test_young`).
    TestAge(u64),
    /// The recovery thread gives up one in this many of the tables that stand in for a large page
    /// (`nx_huge_pages_recovery_ratio`).
    RecoverNx(u64),
    /// The guest has the hypervisor flush what the vCPU cached (`KVM_VCPU_FLUSH_TLB`, Hyper-V's hypercalls).
    GuestFlush,
}

impl fmt::Display for HostStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetRegisters(changes) => {
                f.write_str("set-registers")?;
                changes.iter().try_for_each(|change| match change {
                    RegisterChange::Cr3(space) => write!(f, " cr3={space}"),
                    RegisterChange::Flags(flags) => write!(f, " {}={}", flags.register.name(), flags.compact()),
                })
            }
            Self::SetEfer(flags) => write!(f, "set-efer {flags}"),
            Self::SetCpuid(change) => write!(f, "set-cpuid{change}"),
            Self::SetSmm(smm) => write!(f, "set-smm {}", smm.name()),
            Self::Smi => f.write_str("smi"),
            Self::InitVcpu => f.write_str("init-vcpu"),
            Self::MoveSlot { slot, at } => write!(f, "move-slot {slot} {at:#x}"),
            Self::LogDirty { slot, logging } => write!(f, "log-dirty {slot} {}", logging.name()),
            Self::DirtyLog { slot, reset: Reset::Yes } => write!(f, "dirty-log {slot}"),
            Self::DirtyLog { slot, reset: Reset::No } => write!(f, "dirty-log {slot} keep"),
            Self::ClearDirtyLog { slot, frames } => write!(f, "clear-dirty-log {slot} {frames}"),
            Self::InvalidateBegin(frames) => write!(f, "invalidate-begin {frames}"),
            Self::InvalidateEnd(frames) => write!(f, "invalidate-end {frames}"),
            Self::MovePage(gfn) => write!(f, "move-page {gfn:#x}"),
            Self::ChangePage { gfn, access } => write!(f, "change-page {gfn:#x} {}", access.name()),
            Self::AgePage(gfn) => write!(f, "age-page {gfn:#x}"),
            Self::PauseAt { gfn, point: PausePoint::BeforeLock } => write!(f, "pause-at {gfn:#x}"),
            Self::PauseAt { gfn, point: PausePoint::AfterWalk } => write!(f, "pause-at {gfn:#x} after-walk"),
            Self::PauseAt { gfn, point: PausePoint::BeforeEntry } => write!(f, "pause-at {gfn:#x} before-entry"),
            Self::TestAge(gfn) => write!(f, "test-age {gfn:#x}"),
            Self::PreFault(gfn) => write!(f, "pre-fault {gfn:#x}"),
            Self::RecoverNx(ratio) => write!(f, "recover-nx {ratio}"),
            Self::GuestFlush => f.write_str("guest-flush"),
        }
    }
}
