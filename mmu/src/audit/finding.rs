//! What an auditor says when an invariant is broken (kvm-mmu.md D.4): where, which roles, what they differ in, and what
//! had just happened.

use crate::audit::Subject;
use crate::role::PageRole;
use crate::state::{Nesting, Smm};
use serde::{Deserialize, Serialize};
use sim_core::addr::Hpa;
use sim_core::event::{Event, MmuId};
use std::fmt;

macro_rules! audits {
    ($($name:ident = ($id:literal, $text:literal, $about:literal),)*) => {
        /// An invariant.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Audit {
            $(#[doc = $about] $name,)*
        }

        impl Audit {
            /// Every invariant, in the order of the catalogue.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its number in the catalogue, such as `I2`.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// Its stable name, as scenarios spell it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it demands.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$name => $about,)* }
            }
        }
    };
}

audits! {
    RootValid = ("I1", "root-valid", "the active MMU has a root"),
    RootRole = ("I2", "root-role", "the root's shadow page has the MMU's role, every bit of it"),
    PaeRoot = ("I3", "pae-root", "every valid pae_root entry has the MMU's role at level 2, and the right quadrant"),
    RootPgd = ("I4", "root-pgd", "an indirect root was built for the CR3, EPTP or nested CR3 in force"),
    StoredRole = ("I5", "stored-role", "the MMU's role is what the registers in force give"),
    GuestMode = ("I6", "guest-mode", "role.guest_mode says whether L2 runs"),
    Smm = ("I7", "smm", "role.smm says whether the vCPU is in SMM, where L2 never runs"),
    ObsoleteRoot = ("I8", "obsolete-root", "the root is not obsolete"),
    HardwareRoot = ("I9", "hardware-root", "EPTP, nested CR3 or CR3 points to the root, with its level"),
    RootReferences = ("I10", "root-references", "cached roots have shadow pages, and each page counts its slots"),
    ChildRole = ("I11", "child-role", "every table below a root has the root's role, but for what is its own"),
    ParentLists = ("I12", "parent-lists", "parent lists are exactly the entries that lead to a page"),
    ReverseMap = ("I12", "reverse-map", "the reverse map holds exactly the leaves"),
    UnsyncMarks = ("I13", "unsync-marks", "what is out of sync is a leaf table, and every table above knows"),
    TablesProtected = ("I14", "tables-protected", "a guest table whose shadow is in sync can't be written unnoticed"),
    EntryBits = ("I15", "entry-bits", "entries have legal writable bits and no bit that hardware reserves"),
    MmioEntries = ("I16", "mmio-entries", "an MMIO entry of this generation has no slot behind it"),
    CachedTranslations = ("I17", "cached-translations",
        "what a processor still has cached leads only to memory that the guest has, and may write"),
    PrivateSlots = ("I18", "private-slots", "L2 never reaches a slot that is KVM's own"),
    Metadata = ("I19", "metadata", "what an MMU knows of rights and reserved bits is what registers and CPUID say"),
    RequestContext = ("I20", "request-context", "a request is serviced in the context, L1 or L2, that it was raised for"),
    Permissions = ("P1", "permissions", "no entry grants more than the guest's tables and the role do"),
    Backing = ("P2", "backing", "every leaf leads to the page behind its guest frame, as the host allows"),
    PageHash = ("P3", "page-hash", "every good shadow page can be found, and is the only one"),
    TableCounts = ("P4", "table-counts", "counts of tracked and small-only frames are those of the shadowed tables"),
    PageLimit = ("P5", "page-limit", "beside roots, no more shadow pages exist than a VM may have"),
    KernelWarning = ("W", "kernel-warning", "the kernel's own WARN_ON conditions stay silent"),
}

/// When an auditor looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Moment {
    /// Checkpoint E: immediately before the entry.
    Entry,
    /// No MMU function is under way.
    Rest,
}

/// Two roles that should agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Roles {
    /// What the role should be.
    pub expected: PageRole,
    /// What it is.
    pub actual: PageRole,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Finding {
    /// Which.
    pub audit: Audit,
    /// The scenario step.
    pub step: u32,
    /// The vCPU.
    pub vcpu: u8,
    /// When the auditor looked.
    pub moment: Moment,
    /// Which MMU.
    pub mmu: MmuId,
    /// What disagrees, in words.
    pub what: String,
    /// The roles, if it is about roles.
    pub roles: Option<Roles>,
    /// The root.
    pub root: Hpa,
    /// What the root was built for.
    pub pgd: u64,
    /// Where the root is: `cur`, `p0` to `p2`, or `pae[i]`.
    pub slot: String,
    /// Pending requests.
    pub requests: Vec<&'static str>,
    /// L1 or L2.
    pub nesting: Nesting,
    /// In SMM or not.
    pub smm: Smm,
    /// An open bug of the kernel at this point of history, which upstream knows by now.
    pub known: Option<&'static str>,
    /// The last transitions before.
    pub recent: Vec<Event>,
}

/// Transitions that a finding carries.
const RECENT: usize = 8;

impl Finding {
    /// A finding about the active MMU's current root.
    #[must_use]
    pub fn new(audit: Audit, subject: &Subject<'_>, what: impl Into<String>) -> Self {
        let mmu = subject.vcpu.active();
        let records = subject.log.records();
        let recent = records[records.len().saturating_sub(RECENT)..].iter().map(|record| record.event.clone());
        Self {
            audit,
            step: subject.step,
            vcpu: subject.id,
            moment: Moment::Entry,
            mmu: mmu.id,
            what: what.into(),
            roles: None,
            root: mmu.root.hpa,
            pgd: mmu.root.pgd,
            slot: "cur".to_owned(),
            requests: subject.vcpu.requests.names(),
            nesting: subject.view.nesting,
            smm: subject.view.smm,
            known: None,
            recent: recent.collect(),
        }
    }

    /// The finding with the two roles that disagree.
    #[must_use]
    pub const fn with_roles(mut self, expected: PageRole, actual: PageRole) -> Self {
        self.roles = Some(Roles { expected, actual });
        self
    }

    /// The names of the role bits that differ.
    #[must_use]
    pub fn difference(&self) -> Vec<&'static str> {
        self.roles.map(|roles| roles.expected.difference(roles.actual)).unwrap_or_default()
    }

    /// What makes two findings the same kind: invariant, MMU and differing role bits.
    #[must_use]
    pub fn kind(&self) -> (Audit, MmuId, Vec<&'static str>) {
        (self.audit, self.mmu, self.difference())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.audit.id(), self.audit.name(), self.what)?;
        if let Some(Roles { expected, actual }) = self.roles {
            write!(f, "; expected {expected}, is {actual}, differs in {}", self.difference().join(" "))?;
        }
        if let Some(known) = self.known {
            write!(f, " (known: {known})")?;
        }
        Ok(())
    }
}
