//! A 4-level guest with one page, and second-stage tables that map its first 2 MiB one to one.

use cpu::paging::translate::translate;
use cpu::tlb::Tlb;
use cpu::virt::{EptControls, EptFlags, HostPaging, NptControls, StageFault};
use cpu::{Core, Fault, Regime, SecondStage, Tag};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::{PageFaultError, Vector};
use sim_core::{Ground, Gva, Hpa};

pub(crate) const MAXPHYADDR: u32 = 46;
/// IA32_PAT at reset.
pub(crate) const PAT: u64 = 0x0007_0406_0007_0406;
/// The guest's tables, root first.
pub(crate) const GUEST: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
/// The linear address that they map, in an odd place of each table.
pub(crate) const LINEAR: Gva = Gva((1 << 39) | (2 << 30) | (3 << 21) | (5 << 12) | 0x678);
/// What it maps to.
pub(crate) const TARGET: u64 = 0x9678;
/// The second stage's tables, root first; 4-level ones begin with the second.
pub(crate) const STAGE: [u64; 5] = [0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000, 0x1_4000];
/// P, R/W and U/S.
pub(crate) const OPEN: u64 = 7;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
pub(crate) const PS: u64 = 1 << 7;
pub(crate) const NX: u64 = 1 << 63;
/// EPT's write-back.
pub(crate) const WB: u64 = 6 << 3;
pub(crate) const EPT_ACCESSED: u64 = 1 << 8;
pub(crate) const EPT_DIRTY: u64 = 1 << 9;
/// EPTPs with walk lengths of 4 and 5.
pub(crate) const EPTP4: u64 = STAGE[1] | 3 << 3 | 6;
pub(crate) const EPTP5: u64 = STAGE[0] | 4 << 3 | 6;
pub(crate) const EPTP_MARKS: u64 = 1 << 6;

/// All sums of some of the bits.
pub(crate) fn combinations(bits: &[u64]) -> Vec<u64> {
    bits.iter().fold(vec![0], |sums, bit| sums.iter().flat_map(|sum| [*sum, sum | bit]).collect())
}

/// Both, for a setting.
pub(crate) const BOTH: [bool; 2] = [false, true];

/// A user's, a supervisor's and the processor's own access.
pub(crate) fn accesses(kind: AccessKind) -> [Access; 3] {
    [Access::new(kind, Privilege::User), Access::new(kind, Privilege::Supervisor), Access::implicit(kind)]
}

pub(crate) fn every_access() -> impl Iterator<Item = Access> {
    AccessKind::ALL.into_iter().flat_map(accesses)
}

/// Shadow-stack reads and writes of either mode.
pub(crate) fn shadow_stack_accesses() -> impl Iterator<Item = Access> {
    let kinds = [AccessKind::Read, AccessKind::Write].into_iter();
    let plain = kinds.flat_map(|kind| [Privilege::User, Privilege::Supervisor].map(|who| Access::new(kind, who)));
    plain.map(|access| Access { shadow_stack: true, ..access })
}

/// W, U, F and SS of the error code of an access, fetches being told.
pub(crate) fn described(access: Access) -> PageFaultError {
    let mut error = PageFaultError::empty();
    error.set(PageFaultError::W, access.kind == AccessKind::Write);
    error.set(PageFaultError::U, access.privilege == Privilege::User);
    error.set(PageFaultError::F, access.kind == AccessKind::Fetch);
    error.set(PageFaultError::SS, access.shadow_stack);
    error
}

/// Where the entry of each depth is for an address.
pub(crate) fn entry_at(tables: &[u64], depth: usize, address: u64) -> Hpa {
    let shift = 12 + 9 * (tables.len() - 1 - depth);
    Hpa(tables[depth] + 8 * ((address >> shift) & 0x1ff))
}

/// A processor in 4-level paging with NXE and WP.
pub(crate) fn core() -> Core {
    let mut core = Core::flat32(MAXPHYADDR);
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr4 |= Cr4::PAE;
    core.efer |= Efer::LME | Efer::LMA | Efer::NXE;
    core.cr3 = GUEST[0];
    core
}

/// Puts an entry for [`LINEAR`] into the guest's table of this depth; the last one maps [`TARGET`]'s page.
pub(crate) fn set_guest(ground: &mut Ground, depth: usize, flags: u64) {
    let target = GUEST.get(depth + 1).copied().unwrap_or(TARGET & !0xfff);
    ground.mem.write_u64(entry_at(&GUEST, depth, LINEAR.0), target | flags);
}

/// The entry for [`LINEAR`] of this depth.
pub(crate) fn guest_entry(ground: &Ground, depth: usize) -> u64 {
    ground.mem.read_u64(entry_at(&GUEST, depth, LINEAR.0))
}

/// A guest whose entries have these flags.
pub(crate) fn guest(flags: [u64; 4]) -> Ground {
    let mut ground = Ground::new(512);
    for (depth, flags) in flags.into_iter().enumerate() {
        set_guest(&mut ground, depth, flags);
    }
    ground
}

/// Second-stage tables, of four or five levels: pages of the first 2 MiB map one to one.
pub(crate) fn identity(ground: &mut Ground, table_flags: u64, page_flags: u64) {
    for (table, next) in STAGE.into_iter().zip(STAGE.into_iter().skip(1)) {
        ground.mem.write_u64(Hpa(table), next | table_flags);
    }
    for frame in 0..512 {
        ground.mem.write_u64(Hpa(STAGE[4] + 8 * frame), frame << 12 | page_flags);
    }
}

/// Where the second stage's entry for a page is.
pub(crate) fn stage_page(gpa: u64) -> Hpa {
    Hpa(STAGE[4] + 8 * (gpa >> 12))
}

/// The second stage's entry for one page.
pub(crate) fn set_stage_page(ground: &mut Ground, gpa: u64, flags: u64) {
    ground.mem.write_u64(stage_page(gpa), gpa & !0xfff | flags);
}

pub(crate) fn ept(eptp: u64, flags: EptFlags) -> Regime {
    let controls = EptControls { flags, log: None };
    let ept_root = Some(Hpa(eptp & !0xfff));
    Regime { tag: Tag { context: 1, ept_root }, second: SecondStage::Ept { eptp, controls } }
}

/// Nested paging with a host in 4-level mode, or in 5-level mode.
pub(crate) fn npt(la57: bool, controls: NptControls) -> Regime {
    let mut host =
        HostPaging { cr0: Cr0::PE | Cr0::PG, cr4: Cr4::PAE, efer: Efer::LME | Efer::LMA | Efer::NXE, pat: PAT };
    host.cr4.set(Cr4::LA57, la57);
    let ncr3 = STAGE[usize::from(!la57)];
    Regime { tag: Tag { context: 1, ept_root: None }, second: SecondStage::Npt { ncr3, host, controls } }
}

/// How one access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At this host-physical address.
    At(u64),
    /// In a page fault with this error code.
    PageFault(PageFaultError),
    /// In the second stage.
    Stage(StageFault),
}

/// Makes one access to [`LINEAR`] with nothing cached.
pub(crate) fn access(core: &mut Core, regime: &Regime, ground: &mut Ground, access: Access) -> End {
    core.tlb = Tlb::default();
    match translate(core, regime, ground, LINEAR, access) {
        Ok(hpa) => End::At(hpa.0),
        Err(Fault::Exception(fault)) => {
            assert_eq!((fault.vector, fault.cr2), (Vector::PageFault, Some(LINEAR)));
            let error = fault.error.and_then(PageFaultError::from_bits);
            End::PageFault(error.expect("an error code of named bits"))
        }
        Err(Fault::Stage(fault)) => End::Stage(fault),
        Err(other) => panic!("{other:?}"),
    }
}
