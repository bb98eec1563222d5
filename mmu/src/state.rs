//! The MMU's state: what KVM keeps a VM (`struct kvm_arch`), a vCPU (`struct kvm_vcpu_arch`) and an MMU object
//! (`struct kvm_mmu`), and the view of a vCPU's registers that MMU code may read.

use crate::change::ChangeSet;
use crate::cpuid::{EntryLimits, GuestCpuid};
use crate::entry_rules::EntryRules;
use crate::frames::Frames;
use crate::memslot::{AddressSpace, Memslots};
use crate::mmio::MmioInfo;
use crate::page::Pages;
use crate::plant::Plants;
use crate::request::Requests;
use crate::role::{CpuRole, PageRole};
use crate::spte::MMIO_GENERATION_BITS;
use crate::stats::Stats;
use serde::{Deserialize, Serialize};
use sim_core::Ground;
use sim_core::addr::{Gfn, Hfn, Hpa, Level};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::event::{MmuId, RootView};

/// Two-dimensional paging in L0, and with it the format of every entry that L0 writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TdpMode {
    /// Shadow paging.
    Off,
    /// EPT.
    Ept,
    /// Nested paging.
    Npt,
}

/// What happens beside the look-up when a cached root is used again (module parameter `flush_on_reuse`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FlushOnReuse {
    /// Nothing.
    #[default]
    No,
    /// `KVM_REQ_MMU_SYNC` and `KVM_REQ_TLB_FLUSH_CURRENT`.
    Yes,
}

/// Which MMU maps guest memory under two-dimensional paging (module parameter `tdp_mmu`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DirectMmu {
    /// The TDP MMU.
    #[default]
    Tdp,
    /// The shadow MMU's direct pages, as before v5.10.
    Legacy,
}

/// Whether executable large pages are forbidden (module parameter `nx_huge_pages`, b8e8c8303ff2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NxHugePages {
    /// They are allowed.
    #[default]
    Off,
    /// A large page is mapped without execute, and split when code in it runs.
    On,
}

/// Whether L0 uses accessed and dirty bits of EPT (module parameter `eptad`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AccessedDirty {
    /// Hardware keeps them.
    #[default]
    Hardware,
    /// It does not; L0 tracks access by taking permissions away.
    Tracked,
}

/// Whether L0 lets hardware log dirtied pages (module parameter `pml`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pml {
    /// Writes are logged by write protection, or by dirty bits.
    #[default]
    Off,
    /// By the page-modification log while L1 runs; never while L2 does (c3bb9a20834f).
    On,
}

/// Whether L0 lets L1 reach VMCS fields without an exit (module parameter `enable_shadow_vmcs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ShadowVmcsMode {
    /// Every VMREAD and VMWRITE of L1 exits.
    #[default]
    Off,
    /// Those of the fields that L1 touches most do not.
    On,
}

/// Whether others wait for the MMU lock (`need_resched`, `rwlock_needbreak`): what holds it gives it up between batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Contention {
    /// Nobody waits.
    #[default]
    Never,
    /// Somebody always does.
    Always,
}

/// What was decided when the module was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Config {
    /// Two-dimensional paging.
    pub tdp: TdpMode,
    /// The levels of the host's own tables, 4 or 5, and so of nested paging's (`max_tdp_level`). See [`Config::tdp_root_level`].
    pub tdp_level: u8,
    /// See [`FlushOnReuse`].
    pub flush_on_reuse: FlushOnReuse,
    /// Guest MAXPHYADDR, in bits.
    pub maxphyaddr: u32,
    /// What else a guest's entries may hold.
    pub rules: EntryRules,
    /// See [`DirectMmu`].
    pub direct: DirectMmu,
    /// The largest page with which the host maps guest memory: no entry is larger.
    pub host_page: Level,
    /// See [`NxHugePages`].
    pub nx_huge: NxHugePages,
    /// See [`AccessedDirty`].
    pub accessed_dirty: AccessedDirty,
    /// See [`Pml`].
    pub pml: Pml,
    /// See [`ShadowVmcsMode`].
    pub shadow_vmcs: ShadowVmcsMode,
    /// See [`Contention`].
    pub contention: Contention,
    /// How many shadow pages a VM may have before old ones are zapped (`n_max_mmu_pages`).
    pub pages_max: u64,
    /// Invalidations that had ended when the VM's life begins here (`mmu_notifier_seq`).
    pub invalidations: u64,
    /// How many bits of the slots' generation an MMIO entry holds (`MMIO_SPTE_GEN_MASK`).
    pub mmio_generation_bits: u32,
}

impl Config {
    /// `KVM_MIN_ALLOC_MMU_PAGES`.
    pub const PAGES_MIN: u64 = 64;

    /// The module's own defaults, for a host that maps guest memory in 4 KiB pages.
    #[must_use]
    pub const fn new(tdp: TdpMode, maxphyaddr: u32) -> Self {
        Self {
            tdp,
            tdp_level: 4,
            flush_on_reuse: FlushOnReuse::No,
            maxphyaddr,
            rules: EntryRules::INTEL,
            direct: DirectMmu::Tdp,
            host_page: Level::L1,
            nx_huge: NxHugePages::Off,
            accessed_dirty: AccessedDirty::Hardware,
            pml: Pml::Off,
            shadow_vmcs: ShadowVmcsMode::Off,
            contention: Contention::Never,
            pages_max: 1024,
            invalidations: 0,
            mmio_generation_bits: MMIO_GENERATION_BITS,
        }
    }

    /// What of a generation an MMIO entry can tell.
    #[must_use]
    pub const fn mmio_generation_mask(&self) -> u64 {
        (1 << self.mmio_generation_bits) - 1
    }

    /// The level of a TDP root (`kvm_mmu_get_tdp_level`). Nested paging has the host's own mode (APM2 15.25.3); EPT takes
    /// its length from the EPTP, and has a fifth level only if guest addresses need it.
    #[must_use]
    pub const fn tdp_root_level(&self) -> u8 {
        match self.tdp {
            TdpMode::Ept if self.maxphyaddr <= 48 => 4,
            TdpMode::Off | TdpMode::Ept | TdpMode::Npt => self.tdp_level,
        }
    }
}

/// What an mmu-notifier does and did (`mmu_notifier_seq`, `mmu_notifier_count`): a page fault that looked a host page
/// up before must not install it afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Notifier {
    /// Invalidations that have ended.
    pub sequence: u64,
    /// Invalidations under way.
    pub under_way: u32,
    /// The guest frames that those touch, first and one past the last (`mmu_notifier_range_start` and `_end`).
    range: (Gfn, Gfn),
}

impl Notifier {
    /// An invalidation begins; several at once count as one of all frames between their ends (`kvm_inc_notifier_count`).
    pub fn begin(&mut self, first: Gfn, end: Gfn) {
        self.range = match self.under_way {
            0 => (first, end),
            _ => (self.range.0.min(first), self.range.1.max(end)),
        };
        self.under_way += 1;
    }

    /// One ends (`kvm_dec_notifier_count`). False if none was under way.
    pub const fn end(&mut self) -> bool {
        if self.under_way == 0 {
            return false;
        }
        self.under_way -= 1;
        self.sequence += 1;
        true
    }

    /// Whether a frame that was looked up at some sequence must be looked up again (`mmu_notifier_retry_hva`).
    #[must_use]
    pub fn must_retry(&self, gfn: Gfn, sequence: u64) -> bool {
        self.covers(gfn) || self.sequence != sequence
    }

    /// Whether an invalidation that is under way may cover a frame.
    #[must_use]
    pub fn covers(&self, gfn: Gfn) -> bool {
        self.under_way > 0 && self.range.0 <= gfn && gfn < self.range.1
    }
}

/// A condition that KVM would have warned about, or died of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Warned {
    /// In the kernel's terms.
    pub what: &'static str,
    /// The open bug of the kernel behind it.
    pub known: Option<&'static str>,
}

/// The MMU's part of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vm {
    /// Which kernel it behaves like.
    pub changes: ChangeSet,
    /// What was decided at module load.
    pub config: Config,
    /// Host frames.
    pub frames: Frames,
    /// Memslots.
    pub slots: Memslots,
    /// Shadow pages, direct and indirect.
    pub pages: Pages,
    /// Requests for every vCPU, to be handed out by the vCPU loop after each call.
    pub broadcast: Requests,
    /// Conditions that KVM would have warned about since the auditors last looked.
    // The loop takes them after each call, so that no saved state has any.
    #[serde(skip)]
    pub warned: Vec<Warned>,
    /// Host-side invalidations.
    pub notifier: Notifier,
    /// Mistakes switched on, to see whether they are noticed.
    pub plants: Plants,
    /// Counters.
    pub stats: Stats,
    /// A page of zeroes, once a root that the guest can't have was asked for (`ZERO_PAGE`).
    pub zero_page: Option<Hfn>,
}

impl Vm {
    /// A VM without memory, vCPUs and shadow pages.
    #[must_use]
    pub fn new(changes: ChangeSet, config: Config, frames: Frames) -> Self {
        Self {
            changes,
            config,
            frames,
            slots: Memslots::default(),
            pages: Pages::default(),
            broadcast: Requests::empty(),
            warned: Vec::new(),
            notifier: Notifier { sequence: config.invalidations, ..Notifier::default() },
            plants: Plants::NONE,
            stats: Stats::default(),
            zero_page: None,
        }
    }
}

/// What every MMU operation works on.
pub struct Ctx<'a> {
    /// The VM.
    pub vm: &'a mut Vm,
    /// Memory, time, events.
    pub ground: &'a mut Ground,
}

/// `struct kvm_mmu_role_regs`: the only legal input of role computation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RoleRegs {
    /// CR0, only PG and WP.
    pub cr0: Cr0,
    /// CR4, only the bits that paging depends on.
    pub cr4: Cr4,
    /// EFER, whole.
    pub efer: Efer,
}

impl RoleRegs {
    /// `KVM_MMU_CR0_ROLE_BITS`.
    pub const CR0_BITS: Cr0 = Cr0::PG.union(Cr0::WP);
    /// `KVM_MMU_CR4_ROLE_BITS`.
    pub const CR4_BITS: Cr4 =
        Cr4::PSE.union(Cr4::PAE).union(Cr4::LA57).union(Cr4::SMEP).union(Cr4::SMAP).union(Cr4::PKE);

    /// The snapshot that role computation works on.
    #[must_use]
    pub const fn new(cr0: Cr0, cr4: Cr4, efer: Efer) -> Self {
        Self { cr0: cr0.intersection(Self::CR0_BITS), cr4: cr4.intersection(Self::CR4_BITS), efer }
    }

    /// `role_regs_to_root_level`: levels of the guest's own tables, 0 without paging.
    #[must_use]
    pub const fn root_level(self) -> u8 {
        if !self.cr0.contains(Cr0::PG) {
            0
        } else if self.efer.contains(Efer::LMA) {
            if self.cr4.contains(Cr4::LA57) { 5 } else { 4 }
        } else if self.cr4.contains(Cr4::PAE) {
            3
        } else {
            2
        }
    }
}

/// Whether the vCPU runs L1 or L2 (`is_guest_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Nesting {
    /// L1 runs.
    #[default]
    L1,
    /// L2 runs.
    L2,
}

/// Whether the vCPU is in system-management mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Smm {
    /// It is not.
    #[default]
    Outside,
    /// It is.
    Inside,
}

/// What MMU code may read of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// CR0, CR4 and EFER.
    pub regs: RoleRegs,
    /// CR3 as the guest sees it.
    pub cr3: u64,
    /// The guest's PDPTE registers.
    pub pdptes: [u64; 4],
    /// L1 or L2.
    pub nesting: Nesting,
    /// In SMM or not.
    pub smm: Smm,
    /// The EPTP or nested CR3 that L1 gave L2, raw.
    pub nested_pgd: u64,
}

impl View {
    /// The memslots that the vCPU sees.
    #[must_use]
    pub const fn space(&self) -> AddressSpace {
        AddressSpace::of(self.smm)
    }
}

/// A root and what it was built for (`struct kvm_mmu_root_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Root {
    /// The root table, [`Hpa::INVALID`] if there is none.
    pub hpa: Hpa,
    /// The CR3, EPTP or nested CR3 that it was built for; 0 for a direct root.
    pub pgd: u64,
}

impl Root {
    /// No root.
    pub const NONE: Self = Self { hpa: Hpa::INVALID, pgd: 0 };

    /// Whether there is a root.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.hpa.is_valid()
    }
}

/// Previous roots kept for each MMU (`KVM_MMU_NUM_PREV_ROOTS`).
pub const PREV_ROOTS: usize = 3;

/// How an MMU walks and maps: the choice of callbacks in KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Paging {
    /// Never initialised.
    #[default]
    Uninitialised,
    /// CR0.PG = 0, shadowed by direct pages.
    NonPaging,
    /// Tables of 8-byte entries.
    Paging64,
    /// Tables of 4-byte entries.
    Paging32,
    /// Two-dimensional paging: direct pages, the guest's own tables are walked by hardware.
    Tdp,
    /// Nested EPT tables.
    Ept,
}

/// One MMU object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mmu {
    /// Which of the three it is.
    pub id: MmuId,
    /// The current root.
    pub root: Root,
    /// Previous roots, most recently used first.
    pub prev: [Root; PREV_ROOTS],
    /// What the guest's paging looks like, as of the last initialisation.
    pub cpu_role: CpuRole,
    /// What its shadow tables look like (`mmu_role.base` up to v5.18, `root_role` from v5.19).
    pub root_role: PageRole,
    /// Levels of the guest's tables: 0, 2, 3, 4 or 5.
    pub root_level: u8,
    /// Levels of the tables that hardware walks: 3, 4 or 5.
    pub shadow_root_level: u8,
    /// How it walks and maps.
    pub paging: Paging,
    /// The limits of guest entries as of the last initialisation (`guest_rsvd_check`).
    pub limits: EntryLimits,
    /// The four-entry table of PAE and special roots.
    pub pae_root: Option<Hfn>,
    /// The level-4 table above `pae_root` in a special root (32-bit L1 nested paging under 64-bit nested paging).
    pub pml4_root: Option<Hfn>,
    /// The level-5 table above `pml4_root`, where the host has five levels.
    pub pml5_root: Option<Hfn>,
}

impl Mmu {
    /// An MMU that was never initialised.
    #[must_use]
    pub const fn new(id: MmuId, limits: EntryLimits) -> Self {
        Self {
            id,
            root: Root::NONE,
            prev: [Root::NONE; PREV_ROOTS],
            cpu_role: CpuRole { base: PageRole(0), ext: crate::role::ExtRole::empty() },
            root_role: PageRole(0),
            root_level: 0,
            shadow_root_level: 0,
            paging: Paging::Uninitialised,
            limits,
            pae_root: None,
            pml4_root: None,
            pml5_root: None,
        }
    }

    /// The tables without a shadow page that the MMU has, the one nearest to memory first.
    pub fn special_tables(&self) -> impl Iterator<Item = Hfn> {
        [self.pae_root, self.pml4_root, self.pml5_root].into_iter().flatten()
    }

    /// `direct_map`: no guest table is shadowed.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        matches!(self.paging, Paging::NonPaging | Paging::Tdp)
    }

    /// Whether the root is built from `pae_root`: a 32-bit, PAE or unpaged guest without TDP, or 32-bit nested paging.
    #[must_use]
    pub const fn walks_pae_root(&self) -> bool {
        self.shadow_root_level == 3 || (self.shadow_root_level >= 4 && self.root_level < 4 && !self.is_direct())
    }
}

/// The MMU's part of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VcpuMmu {
    /// `root_mmu`.
    pub root_mmu: Mmu,
    /// `guest_mmu`.
    pub guest_mmu: Mmu,
    /// `nested_mmu`.
    pub nested_mmu: Mmu,
    /// Whether `arch.mmu` is `guest_mmu` and `arch.walk_mmu` is `nested_mmu`.
    pub nested_tdp: NestedTdp,
    /// Pending requests.
    pub requests: Requests,
    /// The last MMIO address.
    pub mmio: Option<MmioInfo>,
    /// What its CPUID says of paging.
    pub cpuid: GuestCpuid,
}

/// Where `arch.mmu` and `arch.walk_mmu` point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NestedTdp {
    /// Both to `root_mmu`.
    #[default]
    Inactive,
    /// To `guest_mmu` and `nested_mmu`: L2 runs with nested EPT or nested NPT.
    Active,
}

impl VcpuMmu {
    /// MMUs that were never initialised.
    #[must_use]
    pub const fn new(cpuid: GuestCpuid) -> Self {
        let limits = cpuid.limits();
        Self {
            root_mmu: Mmu::new(MmuId::Root, limits),
            guest_mmu: Mmu::new(MmuId::Guest, limits),
            nested_mmu: Mmu::new(MmuId::Nested, limits),
            nested_tdp: NestedTdp::Inactive,
            requests: Requests::empty(),
            mmio: None,
            cpuid,
        }
    }

    /// `arch.mmu`: the MMU whose root hardware uses.
    #[must_use]
    pub const fn active(&self) -> &Mmu {
        match self.nested_tdp {
            NestedTdp::Inactive => &self.root_mmu,
            NestedTdp::Active => &self.guest_mmu,
        }
    }

    /// `arch.mmu`, to change.
    pub const fn active_mut(&mut self) -> &mut Mmu {
        match self.nested_tdp {
            NestedTdp::Inactive => &mut self.root_mmu,
            NestedTdp::Active => &mut self.guest_mmu,
        }
    }

    /// One of the three by name.
    #[must_use]
    pub const fn get(&self, id: MmuId) -> &Mmu {
        match id {
            MmuId::Root => &self.root_mmu,
            MmuId::Guest => &self.guest_mmu,
            MmuId::Nested => &self.nested_mmu,
        }
    }

    /// One of the three by name, to change.
    pub const fn get_mut(&mut self, id: MmuId) -> &mut Mmu {
        match id {
            MmuId::Root => &mut self.root_mmu,
            MmuId::Guest => &mut self.guest_mmu,
            MmuId::Nested => &mut self.nested_mmu,
        }
    }
}

impl Vm {
    /// `kvm_mmu_is_dummy_root`: the root of a guest whose own root is in no slot.
    #[must_use]
    pub fn is_dummy_root(&self, root: Hpa) -> bool {
        self.zero_page.is_some_and(|page| page.base() == root)
    }

    /// A root as events show it.
    #[must_use]
    pub fn root_view(&self, root: Root) -> RootView {
        let role = self.pages.at(root.hpa).map(|page| page.role.word());
        RootView { hpa: root.hpa, pgd: root.pgd, role }
    }
}
