//! Planted faults: typical mistakes in the hypervisor that can be switched on, one at a time, to see whether a scenario,
//! an audit or a golden notices. A mechanism that nothing notices missing is a mechanism without a test.
//!
//! Code asks [`Plants::has`] at the one place where the mistake would be made. Without any plant, nothing differs.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! plants {
    ($($name:ident = ($text:literal, $about:literal),)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum Plant {
            $(#[doc = $about] $name,)*
        }

        impl Plant {
            /// Every mistake, in the order of the mechanisms.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What is done wrong.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$name => $about,)* }
            }
        }
    };
}

plants! {
    NoFlushAfterWriteProtect = ("no-flush-after-write-protect",
        "a guest frame that becomes a shadowed table is write-protected, but no vCPU flushes"),
    NoFlushAfterDrop = ("no-flush-after-drop", "a leaf entry is cleared, but no vCPU flushes"),
    NoFlushAfterMigration = ("no-flush-after-migration",
        "a VMCS becomes active on another processor, but what that cached in an earlier stay is kept"),
    KeepAsidOnMigration = ("keep-asid-on-migration",
        "a VMCB runs on another processor with the ASID of the one before"),
    NoFlushAtNewGeneration = ("no-flush-at-new-generation",
        "a processor begins a new generation of ASIDs, but keeps what it cached under the old"),
    KeepAsidOfOldGeneration = ("keep-asid-of-old-generation",
        "a VMCB runs with an ASID of a generation that is over"),
    NoFlushWithoutVpid02 = ("no-flush-without-vpid02",
        "L2 runs on L1's VPID because none was left, but a transition flushes nothing"),
    InvpcidCurrentOnly = ("invpcid-current-only",
        "INVPCID of an address forgets the previous roots that have the PCID"),
    PcidFlushCurrentOnly = ("pcid-flush-current-only",
        "a flush of a PCID forgets the previous roots that have it"),
    GuestFlushKeepsPrevRoots = ("guest-flush-keeps-prev-roots",
        "a flush that the guest asked for leaves previous roots with unsync pages"),
    NoResetAfterSetSregs = ("no-reset-after-set-sregs",
        "userspace writes registers that a role depends on, and the MMU is not reset"),
    NoResetAfterSetEfer = ("no-reset-after-set-efer", "userspace writes EFER.NXE, and the MMU is not reset"),
    SmmChangedWithoutReset = ("smm-changed-without-reset",
        "a vCPU enters or leaves SMM, and the MMU is not reset for it"),
    SmmSlotsForAll = ("smm-slots-for-all", "a slot that only SMM has is found for everyone"),
    SmiKeepsGuestMode = ("smi-keeps-guest-mode", "an SMI that interrupts L2 does not leave guest mode"),
    RsmForgetsL2 = ("rsm-forgets-l2", "RSM gives the vCPU L2's registers, but does not enter guest mode again"),
    InitKeepsMmu = ("init-keeps-mmu", "an INIT switches paging off, and the MMU is not reset"),
    InitKeepsTlb = ("init-keeps-tlb", "an INIT flushes nothing that the guest has cached"),
    CpuidKeepsRoles = ("cpuid-keeps-roles",
        "userspace sets another CPUID, and the stored roles stay valid, with the reserved bits of the old one"),
    NoZapAtInvalidation = ("no-zap-at-invalidation",
        "the host changes what backs a frame, and what maps it is kept"),
    NoZapAfterSlotMove = ("no-zap-after-slot-move", "a slot moves or goes, and what maps it is kept"),
    SharedVpid = ("shared-vpid", "two vCPUs get the same VPID"),
    NoNotifierRetry = ("no-notifier-retry",
        "a page fault installs a host page that was taken away after it was looked up"),
    NoDirtyMark = ("no-dirty-mark", "an entry becomes writable in a slot that logs, but its frame is not logged"),
    MmioAnyGeneration = ("mmio-any-generation", "an MMIO entry counts even after a slot has come to back its address"),
    NoProtectAfterDirtyLog = ("no-protect-after-dirty-log",
        "a frame leaves the dirty log, and is not watched for writes again"),
    NoFlushForDirtyLog = ("no-flush-for-dirty-log", "entries are watched for writes, but no vCPU flushes"),
    ClearDirtyOfL2 = ("clear-dirty-of-l2",
        "a page of L2 is watched by its dirty bit, and the page-modification log is off in L2"),
    PmlNotDrained = ("pml-not-drained", "the page-modification log is emptied only when it is full"),
    NoFlushAfterTracking = ("no-flush-after-tracking", "an entry loses its permissions to ageing, but no vCPU flushes"),
    ChangePteKeepsWrite = ("change-pte-keeps-write", "a page that becomes read-only keeps its write permission"),
    NoFlushAfterChangePte = ("no-flush-after-change-pte", "the host changes a page in place, but no vCPU flushes"),
    FastIgnoresPromise = ("fast-ignores-promise", "a write is let through without the lock whatever the entry promises"),
    FastForgetsDirty = ("fast-forgets-dirty", "a write that is let through without the lock is not logged"),
    UnsyncUpperTables = ("unsync-upper-tables", "a table above level 1 is allowed to go out of sync"),
    NoUnsyncMarkInParents = ("no-unsync-mark-in-parents", "a table goes out of sync, and those above do not know"),
    LinkForgetsUnsync = ("link-forgets-unsync", "a table with something out of sync below is linked unmarked"),
    LinkWithoutSync = ("link-without-sync", "a table is linked before what is below it is in sync"),
    NoSyncOnHit = ("no-sync-on-hit", "a table that is out of sync is used again as it was"),
    NoProtectBeforeSync = ("no-protect-before-sync", "a table is in sync again, and can still be written unnoticed"),
    NoFlushAfterSync = ("no-flush-after-sync", "a table that is used again lost entries, but no vCPU flushes"),
    SyncKeepsDropped = ("sync-keeps-dropped", "a synchronised table keeps what the guest has unmapped"),
    SyncWritesClean = ("sync-writes-clean", "a synchronised entry is writable though the guest's is clean"),
    NoWriteProtect = ("no-write-protect", "a table that becomes shadowed can still be written unnoticed"),
    NoUnaccount = ("no-unaccount", "a table that is no longer shadowed stays tracked"),
    TableWriteUnseen = ("table-write-unseen", "an emulated write to a shadowed table changes no shadow"),
    OneSpteOfTwo = ("one-spte-of-two", "a 4-byte directory entry is shadowed by two entries, and only one is zapped"),
    ZapKeepsParents = ("zap-keeps-parents", "a page goes, and entries still point to it"),
    NoReloadAfterRootZap = ("no-reload-after-root-zap", "a root that is in use is zapped, and no vCPU is told"),
    NoReloadAfterZapAll = ("no-reload-after-zap-all", "every page becomes obsolete, and no vCPU is told"),
    DropKeepsRmap = ("drop-keeps-rmap", "a leaf entry is cleared, but stays in the reverse map"),
    UnlinkKeepsParent = ("unlink-keeps-parent", "an entry is cleared, but the table below still counts it as a parent"),
    KeepNestedOrphans = ("keep-nested-orphans", "tables of L2 that lost their last parent are kept"),
    NoGpteRecheck = ("no-gpte-recheck", "a guest entry that changed after the walk is shadowed as it was"),
    RecheckLeafOnly = ("recheck-leaf-only",
        "a guest entry above the leaf that changed after the walk is shadowed as it was"),
    InvlpgCurrentOnly = ("invlpg-current-only", "INVLPG forgets previous roots"),
    LargeOverShadowedTable = ("large-over-shadowed-table", "a large page covers a shadowed guest table"),
    LargeWhileLogged = ("large-while-logged", "a large page is made in a slot that logs"),
    SplitRepeatsFrame = ("split-repeats-frame", "every part of a split large page maps its first frame"),
    KeepDirectChild = ("keep-direct-child",
        "a table that splits a guest's large page stays when the guest changes the page's permissions"),
    PrefetchNotAccessed = ("prefetch-not-accessed", "an entry is made early for a page that the guest never accessed"),
    PrefetchWhileLogged = ("prefetch-while-logged", "a writable entry is made early in a slot that logs"),
    RoleForgetsWp = ("role-forgets-wp", "the role of a root does not tell whether the guest has CR0.WP"),
    LookupIgnoresRole = ("lookup-ignores-role", "a cached root of another role is used"),
    LookupIgnoresPgd = ("lookup-ignores-pgd", "a cached root that was built for another CR3 is used"),
    NoPgdWrite = ("no-pgd-write", "a new root is not given to hardware"),
    RootKeepsCount = ("root-keeps-count", "a root that is given up still counts its slot"),
    Wp0KeepsUser = ("wp0-keeps-user", "a page that only the supervisor may write without CR0.WP stays the user's"),
    CleanIsWritable = ("clean-is-writable", "a clean guest page is mapped writable, and its dirty flag is never set"),
    PrivateForL2 = ("private-for-l2", "L2 gets pages of a slot that is KVM's own"),
    WriteReadOnlySlot = ("write-read-only-slot", "a page of a read-only slot is mapped writable"),
    QuadrantZero = ("quadrant-zero", "every part of a table of 4-byte entries is shadowed as the first"),
    NoAccessedFlag = ("no-accessed-flag", "L0's walk of a guest's tables sets no accessed flag"),
    Cr8OfTheProcessor = ("cr8-of-the-processor", "a vCPU runs with the task priority that its processor has already"),
    EptViolationWrongRights = ("ept-violation-wrong-rights",
        "L1 is told that its EPT entries permit what they do not, when they do not permit an access of L2"),
    IgnoresMsrpm = ("ignores-msrpm", "every MSR access of L2 exits to an L1 that intercepts any"),
    IgnoresIopm = ("ignores-iopm", "no port access of L2 exits to L1, whatever its map says"),
    PfFilterNotMerged = ("pf-filter-not-merged", "L1's mask and match for page faults of L2 are not given to hardware"),
    NestedWalkSkipsStage = ("nested-walk-skips-stage",
        "an address that L0's emulator finds for L2 is not translated by L1's nested tables"),
    RetryWithoutGuard = ("retry-without-guard",
        "an instruction whose table was given up runs again, however often it comes back"),
    TransitionFlushMissing = ("transition-flush-missing", "a nested transition asks for no flush"),
    InveptFreesNothing = ("invept-frees-nothing", "INVEPT of L1 keeps the roots that were built from its tables"),
    InvvpidFreesNothing = ("invvpid-frees-nothing", "INVVPID of L1 keeps L2's roots and cached translations"),
    HostStateKeepsCr4 = ("host-state-keeps-cr4", "an exit to L1 does not load CR4"),
    NxHugePageExecutable = ("nx-huge-page-executable", "a large page is executable though none may be"),
    NxRecoverySkips = ("nx-recovery-skips", "tables that stand in for a large page are never given up"),
    RequestsCrossContexts = ("requests-cross-contexts", "an exit of L2 to L1 leaves L2's flush requests for L1"),
    InitKeepsLimits = ("init-keeps-limits", "an initialisation does not look at the CPUID again"),
    ShadowNotCopied = ("shadow-not-copied", "what L1 wrote to the shadow VMCS does not reach vmcs12"),
    ShadowNotFilled = ("shadow-not-filled", "the shadow VMCS keeps what it held before an exit to L1"),
    Pml5NotLinked = ("pml5-not-linked", "the level-5 table of a special root leads nowhere"),
    PassthroughForgotten = ("passthrough-forgotten", "a root above the shadow of a level-4 nested table is taken for one of it"),
    LimitIgnored = ("limit-ignored", "no page is zapped to make room, however many there are"),
    DirectTableUnaligned = ("direct-table-unaligned",
        "a direct table is known by the frame of the fault, and not by the first that it maps"),
    EmulatorKeepsWp = ("emulator-keeps-wp",
        "the emulator walks the guest's tables with the CR0.WP that was stored, though the guest owns that bit"),
    AccessNotInherited = ("access-not-inherited", "a table's permissions do not follow from the entries above"),
}

impl Plant {
    /// The mistake with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|plant| plant.name() == name)
    }
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of mistakes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Plants(u128);

impl Plants {
    /// No mistake.
    pub const NONE: Self = Self(0);

    /// The set with a mistake more.
    #[must_use]
    pub const fn with(self, plant: Plant) -> Self {
        Self(self.0 | 1 << plant as u8)
    }

    /// Whether the mistake is made.
    #[must_use]
    pub const fn has(self, plant: Plant) -> bool {
        self.0 & (1 << plant as u8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<_> = Plant::ALL.iter().map(|plant| plant.name()).collect();
        assert_eq!(names.len(), Plant::ALL.len());
        assert!(Plant::ALL.len() <= 128);
        for plant in Plant::ALL {
            assert_eq!(Plant::by_name(plant.name()), Some(*plant));
            assert!(Plants::NONE.with(*plant).has(*plant) && !Plants::NONE.has(*plant));
        }
    }
}
