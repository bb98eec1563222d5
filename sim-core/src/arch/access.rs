//! What an access to memory is: read, write or fetch, by user or supervisor.

use serde::{Deserialize, Serialize};

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write, or a read with intent to write.
    Write,
    /// An instruction fetch.
    Fetch,
}

impl AccessKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Fetch];
}

/// On whose behalf (SDM 3A 4.6: user-mode accesses are those at CPL 3 that are not implicit system accesses).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Privilege {
    /// A supervisor-mode access.
    Supervisor,
    /// A user-mode access.
    User,
}

/// One access, as paging sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Access {
    /// What is done.
    pub kind: AccessKind,
    /// On whose behalf.
    pub privilege: Privilege,
    /// Whether the processor itself makes the access (descriptor tables, TSS): SMAP ignores EFLAGS.AC for these
    /// (SDM 3A 4.6).
    pub implicit: bool,
    /// Whether it is a shadow-stack access, of which there are reads and writes (SDM 3A 4.6).
    pub shadow_stack: bool,
}

impl Access {
    /// An explicit access.
    #[must_use]
    pub const fn new(kind: AccessKind, privilege: Privilege) -> Self {
        Self { kind, privilege, implicit: false, shadow_stack: false }
    }

    /// A supervisor access that the processor makes by itself.
    #[must_use]
    pub const fn implicit(kind: AccessKind) -> Self {
        Self { kind, privilege: Privilege::Supervisor, implicit: true, shadow_stack: false }
    }
}
