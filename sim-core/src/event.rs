//! The one closed event type: everything that a run tells about itself.
//!
//! Each event carries its start and end in core cycles and the logical processor that it happened on. Deciding code
//! never logs; the caller that applies a decision records one event. Text output, goldens, audits and traces all read
//! this list and nothing else.

use crate::addr::{Gfn, Gpa, Gva, Hfn, Hpa, Level};
use crate::arch::extension::Extension;
use crate::clock::Cycles;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A raw `kvm_mmu_page_role` word; `mmu::role` gives it meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoleWord(pub u32);

impl fmt::Display for RoleWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A root-cache slot's content, as an event shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RootView {
    /// The root's host-physical address, [`Hpa::INVALID`] if the slot is empty.
    pub hpa: Hpa,
    /// The guest CR3, EPTP or nested CR3 that the root was built for.
    pub pgd: u64,
    /// The role of the shadow page behind the root, if there is one.
    pub role: Option<RoleWord>,
}

/// A shadow page as KVM's trace events show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageView {
    /// The generation in which it was made (`mmu_valid_gen`).
    pub generation: u8,
    /// What it shadows, or the first frame that it maps.
    pub gfn: Gfn,
    /// Its role.
    pub role: RoleWord,
    /// How many root slots hold it.
    pub root_count: u32,
    /// Whether it is out of sync with the guest's table.
    pub unsync: bool,
}

/// How a page fault that was handled without the MMU lock ended (`RET_PF_FIXED`, `RET_PF_SPURIOUS`, and neither).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FastOutcome {
    /// The entry was mended.
    Fixed,
    /// It was good already.
    Spurious,
    /// The lock is needed.
    Slow,
}

/// How a look-up in the root cache ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PgdOutcome {
    /// The current root already matches.
    Kept,
    /// A previous root matched; the number is its slot, 0 to 2.
    Hit(u8),
    /// Nothing matched; the current root is now invalid.
    Miss,
    /// The cache may not be used for this kind of root; the current root was freed.
    NotCacheable,
}

/// Which of the three MMU objects of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MmuId {
    /// `root_mmu`: L1, and L2 while L1 gives it no nested paging.
    Root,
    /// `guest_mmu`: L2's nested EPT or nested NPT roots.
    Guest,
    /// `nested_mmu`: walks L2's own page tables in software; never has roots.
    Nested,
}

impl fmt::Display for MmuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root_mmu",
            Self::Guest => "guest_mmu",
            Self::Nested => "nested_mmu",
        })
    }
}

/// What happened to a request bit of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestPhase {
    /// Made pending (a request already pending is not told again).
    Posted,
    /// Taken and carried out.
    Serviced,
}

/// The edge of a nested transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NestedEdge {
    /// L1 entered L2.
    Enter,
    /// L2 exited to L1.
    Exit,
    /// The entry failed after its checks began, and L1 sees a VM-exit for it.
    EntryFailed,
    /// Hardware refused what L0's checks had let pass (VMfail after the state was switched).
    LateFail,
    /// Userspace or RSM put the vCPU back into L2.
    Restore,
    /// L0 forced the vCPU out of L2 without telling L1.
    Leave,
}

/// What an invalidation of translation caches is required to drop: one variant an architectural scope (SDM 3A 4.10.4.1;
/// SDM 3C 28.3.3; APM2 5.5.2, 15.16; APM3 INVLPGB). What each covers is decided by `cpu::tlb`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FlushScope {
    /// Everything of every tag (TLB_CONTROL 1).
    All,
    /// Everything of one VPID or ASID (MOV to CR0 and CR4, INVPCID type 2, INVVPID type 1, TLB_CONTROL 3, VM entry and
    /// exit without VPIDs).
    Context(u32),
    /// Non-global entries of one VPID or ASID and one PCID (MOV to CR3, INVPCID type 1, task switch).
    Pcid(u32, u16),
    /// Entries that were made under one PCID of one VPID or ASID, global or not (MOV to CR4 that changes PAE or sets
    /// SMEP).
    PcidWithGlobals(u32, u16),
    /// Non-global entries of one VPID or ASID (INVPCID type 3, INVVPID type 3, TLB_CONTROL 7).
    ContextNonGlobal(u32),
    /// Everything of every VPID but 0 (INVVPID type 2).
    Guests,
    /// One linear address of one VPID or ASID: entries of this PCID, and global ones; and every paging-structure-cache
    /// entry of this PCID, whatever its address (INVLPG).
    Address {
        /// The VPID or ASID.
        context: u32,
        /// The PCID.
        pcid: u16,
        /// Any address in the page.
        gva: Gva,
    },
    /// One linear address of one VPID and PCID, except global entries; paging-structure-cache entries only as far as
    /// that address uses them (INVPCID type 0).
    AddressNonGlobal {
        /// The VPID.
        context: u32,
        /// The PCID.
        pcid: u16,
        /// Any address in the page.
        gva: Gva,
    },
    /// One linear address of one VPID or ASID for every PCID, global or not (INVVPID type 0, INVLPGA).
    AddressEveryPcid {
        /// The VPID or ASID.
        context: u32,
        /// Any address in the page.
        gva: Gva,
    },
    /// What a page fault drops: entries that the faulting address would use under the current PCID.
    PageFault {
        /// The VPID or ASID.
        context: u32,
        /// The PCID.
        pcid: u16,
        /// The faulting address.
        gva: Gva,
    },
    /// What an EPT violation drops: guest-physical mappings of the address, and combined mappings of the linear address
    /// behind it.
    EptViolation {
        /// The current EPT root.
        root: Hpa,
        /// The guest-physical address.
        gpa: Gpa,
        /// The current VPID and PCID and the linear address, if the guest-physical address was the translation of one.
        linear: Option<(u32, u16, Gva)>,
    },
    /// Guest-physical and combined mappings of one EPT root (INVEPT type 1).
    EptRoot(Hpa),
    /// Guest-physical and combined mappings of every EPT root (INVEPT type 2).
    AllEpt,
    /// INVLPGB, on every processor.
    Broadcast(Broadcast),
}

/// The operands of INVLPGB (APM3 INVLPGB): what is absent matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broadcast {
    /// The ASID.
    pub asid: Option<u32>,
    /// The PCID.
    pub pcid: Option<u16>,
    /// The first page.
    pub gva: Option<Gva>,
    /// How many pages follow the first one.
    pub more: u16,
    /// log2 of the distance between pages: 12 or 21.
    pub stride: u32,
    /// What else it reaches.
    pub reach: BroadcastReach,
}

bitflags! {
    /// What else INVLPGB reaches.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct BroadcastReach: u8 {
        /// Global entries too.
        const GLOBAL = 1 << 0;
        /// Only entries that map pages, no paging-structure caches.
        const FINAL_ONLY = 1 << 1;
        /// Nested translations too.
        const NESTED = 1 << 2;
    }
}

/// Everything that a run can tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A scenario step begins.
    StepBegin {
        /// Its number, from 1.
        step: u32,
        /// Its text in the scenario.
        text: String,
    },
    /// What a step observed.
    Observed {
        /// The step's number.
        step: u32,
        /// The observation, as scenarios spell it.
        text: String,
    },
    /// An instruction was issued (told only at [`Detail::Everything`]).
    Instruction {
        /// Its linear address.
        rip: Gva,
        /// Its mnemonic.
        mnemonic: &'static str,
    },
    /// A page walk ended (told only at [`Detail::Everything`]).
    Walk {
        /// The linear address translated.
        gva: Gva,
        /// References made to paging-structure entries of both stages.
        references: u32,
        /// The translation, or none if the walk faulted.
        result: Option<Hpa>,
    },
    /// An exception was delivered through the IDT.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, if the vector has one.
        error: Option<u32>,
        /// CR2 after the delivery of a page fault.
        cr2: Option<Gva>,
    },
    /// TLB entries were dropped.
    TlbFlush {
        /// Which.
        scope: FlushScope,
    },
    /// The silicon entered a guest.
    VmEntry {
        /// By which extension.
        extension: Extension,
        /// The VMCS or VMCB.
        region: Hpa,
        /// The root of the second-stage tables, or guest CR3 without them.
        root: Hpa,
    },
    /// The silicon left a guest.
    VmExit {
        /// By which extension.
        extension: Extension,
        /// The VMCS or VMCB.
        region: Hpa,
        /// The basic exit reason or exit code.
        reason: u64,
        /// The reason's name in the manual.
        name: &'static str,
        /// The exit qualification, or EXITINFO1.
        qualification: u64,
    },
    /// An MMU was initialised for a new role, or found that its role had not changed.
    MmuInit {
        /// Which MMU.
        mmu: MmuId,
        /// The root role before.
        old: RoleWord,
        /// The root role after.
        new: RoleWord,
    },
    /// The root cache was asked for a root.
    PgdLookup {
        /// Which MMU.
        mmu: MmuId,
        /// The CR3, EPTP or nested CR3 looked for.
        pgd: u64,
        /// The role looked for.
        role: RoleWord,
        /// How it ended.
        outcome: PgdOutcome,
        /// The current root afterwards.
        current: RootView,
        /// The three previous roots afterwards.
        prev: [RootView; 3],
    },
    /// A root was built or found for an MMU that had none.
    RootLoad {
        /// Which MMU.
        mmu: MmuId,
        /// The root.
        root: RootView,
        /// The MMU's root role.
        role: RoleWord,
    },
    /// Roots of an MMU were given up.
    RootFree {
        /// Which MMU.
        mmu: MmuId,
        /// The root given up.
        root: RootView,
    },
    /// A shadow page was looked up (`kvm_mmu_get_page`).
    PageGet {
        /// The page.
        page: PageView,
        /// Whether it was made by this look-up.
        created: bool,
    },
    /// A leaf table was allowed to go out of sync (`kvm_mmu_unsync_page`).
    PageUnsync {
        /// The page, before.
        page: PageView,
    },
    /// An out-of-sync table was brought up to date, or goes (`kvm_mmu_sync_page`).
    PageSync {
        /// The page, before.
        page: PageView,
    },
    /// A shadow page was zapped (`kvm_mmu_prepare_zap_page`).
    PageZap {
        /// The page, before it was made invalid.
        page: PageView,
    },
    /// A leaf entry was written (`kvm_mmu_set_spte`).
    SpteSet {
        /// What it maps.
        gfn: Gfn,
        /// The table's level.
        level: Level,
        /// The new value.
        spte: u64,
        /// Where the entry is.
        sptep: Hpa,
    },
    /// All shadow pages became obsolete (`kvm_mmu_zap_all_fast`).
    ZapAllFast {
        /// The generation that is valid from now on.
        generation: u8,
        /// Pages in use (`n_used_mmu_pages`).
        used_pages: u64,
    },
    /// An entry for an address without a slot was written (`mark_mmio_spte`).
    MarkMmio {
        /// Where the entry is.
        sptep: Hpa,
        /// The guest frame.
        gfn: Gfn,
        /// The access mask.
        access: u32,
        /// The generation that it carries.
        generation: u64,
    },
    /// The generation of such an entry was compared (`check_mmio_spte`).
    CheckMmio {
        /// The entry.
        spte: u64,
        /// The generation of the slots.
        kvm_generation: u64,
        /// The generation of the entry.
        spte_generation: u64,
    },
    /// A fault on such an entry was handled (`handle_mmio_page_fault`).
    HandleMmio {
        /// The faulting address.
        address: u64,
        /// The guest frame.
        gfn: Gfn,
        /// The access mask.
        access: u32,
    },
    /// A fault was handled, or tried to be, without the MMU lock (`fast_page_fault`).
    FastPageFault {
        /// The vCPU.
        vcpu: u8,
        /// The faulting address.
        address: u64,
        /// The error code.
        error: u64,
        /// The entry's address.
        sptep: Hpa,
        /// The entry before.
        old: u64,
        /// The entry after.
        new: u64,
        /// How it ended.
        outcome: FastOutcome,
    },
    /// A large page was split into small ones (`kvm_mmu_split_huge_page`).
    SplitHugePage {
        /// The first guest frame.
        gfn: Gfn,
        /// The large entry.
        spte: u64,
        /// Its level.
        level: Level,
        /// 0, or the error that kept it whole.
        errno: i32,
    },
    /// A fault asks for an entry (`kvm_mmu_spte_requested`; told only at [`Detail::Everything`]).
    SpteRequested {
        /// The guest frame.
        gfn: Gfn,
        /// The host frame.
        hfn: Hfn,
        /// The level that is aimed at.
        level: Level,
    },
    /// The TDP MMU changed an entry (`kvm_tdp_mmu_spte_changed`; told only at [`Detail::Everything`]).
    TdpSpteChanged {
        /// The address space, 0 or 1.
        space: u8,
        /// The first guest frame.
        gfn: Gfn,
        /// The table's level.
        level: Level,
        /// The entry before.
        old: u64,
        /// The entry after.
        new: u64,
    },
    /// L0 begins to walk a guest's tables (`kvm_mmu_pagetable_walk`; told only at [`Detail::Everything`]).
    GuestWalk {
        /// The address.
        address: u64,
        /// The error code that the access would have.
        error: u32,
    },
    /// The walk read an entry (`kvm_mmu_paging_element`; told only at [`Detail::Everything`]).
    GuestWalkEntry {
        /// The entry.
        entry: u64,
        /// The table's level.
        level: Level,
    },
    /// The walk found that the guest must fault (`kvm_mmu_walker_error`; told only at [`Detail::Everything`]).
    GuestWalkError {
        /// The error code.
        error: u32,
    },
    /// The walk set an accessed flag (`kvm_mmu_set_accessed_bit`; told only at [`Detail::Everything`]).
    GuestAccessed {
        /// The entry's guest-physical address.
        gpa: Gpa,
    },
    /// The walk set a dirty flag (`kvm_mmu_set_dirty_bit`; told only at [`Detail::Everything`]).
    GuestDirty {
        /// The entry's guest-physical address.
        gpa: Gpa,
    },
    /// A request bit changed.
    Request {
        /// KVM's name for it, without `KVM_REQ_`.
        name: &'static str,
        /// Made pending or carried out.
        phase: RequestPhase,
    },
    /// L0 is about to flush what a processor has cached for a guest.
    FlushJudged {
        /// The request that asks for it, without `KVM_REQ_`; `RELOAD` for the flush of a new root.
        request: &'static str,
        /// Cached translations of the guest.
        cached: u32,
        /// What one of them would let the guest do that it may not; none if no audit needs the flush.
        needed: Option<String>,
    },
    /// A nested transition happened.
    Nested {
        /// Which edge.
        edge: NestedEdge,
        /// The exit reason or failure, in words.
        detail: String,
    },
    /// L0 handled a VM-exit by itself.
    Handled {
        /// What it was.
        what: &'static str,
        /// Further facts, in words.
        detail: String,
    },
    /// L0 injected an exception into the guest.
    Inject {
        /// The vector.
        vector: u8,
        /// The error code, if the vector has one.
        error: Option<u32>,
    },
    /// Checkpoint E: roots are loaded, requests serviced, hardware is about to be entered.
    Checkpoint {
        /// The MMU that the guest will run on.
        mmu: MmuId,
        /// Its root role.
        role: RoleWord,
        /// Its root.
        root: RootView,
    },
    /// KVM would have warned here (`WARN_ON`).
    Warning {
        /// The rule that was broken.
        what: &'static str,
    },
    /// An audit found a broken invariant.
    Finding {
        /// The invariant's stable name.
        audit: &'static str,
        /// The finding, in words.
        text: String,
    },
    /// A call on the host side (an ioctl, a notifier, a memslot change).
    HostCall {
        /// What was asked for.
        what: String,
    },
}

impl Event {
    /// Whether it is told only at [`Detail::Everything`].
    #[must_use]
    pub const fn is_fine(&self) -> bool {
        matches!(
            self,
            Self::Instruction { .. }
                | Self::Walk { .. }
                | Self::SpteRequested { .. }
                | Self::TdpSpteChanged { .. }
                | Self::GuestWalk { .. }
                | Self::GuestWalkEntry { .. }
                | Self::GuestWalkError { .. }
                | Self::GuestAccessed { .. }
                | Self::GuestDirty { .. }
        )
    }
}

/// When and where an event happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Its number in the run, from 0.
    pub seq: u64,
    /// When it began.
    pub start: Cycles,
    /// When it ended.
    pub end: Cycles,
    /// The logical processor, or vCPU, that it happened on.
    pub processor: u8,
}

/// An event with its stamp.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// When and where.
    pub stamp: Stamp,
    /// What.
    pub event: Event,
}

/// How much is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Detail {
    /// Nothing: for searches that only want verdicts.
    Nothing,
    /// Transitions of state: what a person reads.
    #[default]
    Transitions,
    /// Also every instruction, every page walk, and L0's own walks entry by entry.
    Everything,
}

/// The events of a run, in order.
#[derive(Clone, Debug, Default)]
pub struct EventLog {
    records: Vec<Record>,
    detail: Detail,
    processor: u8,
    count: u64,
}

impl EventLog {
    /// A log with the given amount of detail.
    #[must_use]
    pub fn new(detail: Detail) -> Self {
        Self { detail, ..Self::default() }
    }

    /// How much is recorded.
    #[must_use]
    pub const fn detail(&self) -> Detail {
        self.detail
    }

    /// Which logical processor events happen on.
    #[must_use]
    pub const fn processor(&self) -> u8 {
        self.processor
    }

    /// Says which logical processor the following events happen on.
    pub const fn set_processor(&mut self, processor: u8) {
        self.processor = processor;
    }

    /// Appends one event.
    pub fn push(&mut self, start: Cycles, end: Cycles, event: Event) {
        if self.detail == Detail::Nothing || (event.is_fine() && self.detail != Detail::Everything) {
            return;
        }
        let stamp = Stamp { seq: self.count, start, end, processor: self.processor };
        self.count += 1;
        self.records.push(Record { stamp, event });
    }

    /// Everything recorded so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}
