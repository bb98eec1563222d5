//! What translates addresses: the tags of a context, the second stage in force, and how a second-stage translation fails
//! (SDM 3C 28; APM2 15.25).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use sim_core::addr::{Gpa, Gva, Hpa};
use sim_core::arch::access::Access;

/// The tags of the current context's TLB entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tag {
    /// VPID (SDM 3C 28.1) or ASID (APM2 15.16); 0 is the host.
    pub context: u32,
    /// The EPT root, bits 51:12 of the EPTP (SDM 3C 28.3.1), if EPT is in use.
    pub ept_root: Option<Hpa>,
}

/// The second stage of translation in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SecondStage {
    /// Guest-physical is host-physical.
    #[default]
    None,
    /// EPT with this EPTP (SDM 3C 28.2.2).
    Ept {
        /// The EPT pointer, raw: memory type 2:0, walk length minus 1 in 5:3, A/D enable 6, root 51:12.
        eptp: u64,
        /// The controls that change what EPT does.
        controls: EptControls,
    },
    /// Nested paging (APM2 15.25) in the host's paging mode at VMRUN.
    Npt {
        /// Nested CR3, raw.
        ncr3: u64,
        /// The host's control registers and EFER at VMRUN, which select the format of the nested tables.
        host: HostPaging,
        /// The VMCB bits that change what nested paging does.
        controls: NptControls,
    },
}

bitflags! {
    /// VM-execution controls that change what EPT does (SDM 3C 24.6.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct EptFlags: u8 {
        /// Mode-based execute control: bit 10 of entries is execute access for user-mode addresses (SDM 3C 28.3.3.2).
        const MODE_BASED_EXECUTE = 1 << 0;
        /// EPT-violation #VE: violations that bit 63 of the entry does not suppress are convertible (SDM 3C 25.5.7).
        const VIOLATION_VE = 1 << 1;
        /// Supervisor shadow-stack control: EPTP bit 7 (SDM 3C 28.3.3.2).
        const SUPERVISOR_SHADOW_STACK = 1 << 2;
        /// The processor has no execute-only translations: IA32_VMX_EPT_VPID_CAP bit 0 is 0.
        const NO_EXECUTE_ONLY = 1 << 3;
        /// No EPT PDE may map a page: IA32_VMX_EPT_VPID_CAP bit 16 is 0.
        const NO_PAGE_2M = 1 << 4;
        /// No EPT PDPTE may map a page: IA32_VMX_EPT_VPID_CAP bit 17 is 0.
        const NO_PAGE_1G = 1 << 5;
    }

    /// VMCB bits that change what nested paging does (APM2 15.25, VMCB offset 090h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct NptControls: u8 {
        /// Guest mode execute trap: pages that are user pages in the nested tables are not executable by guest
        /// supervisors (APM2 15.25.13).
        const GUEST_MODE_EXECUTE_TRAP = 1 << 0;
        /// Supervisor shadow-stack checks in the nested tables (APM2 15.25.14).
        const SUPERVISOR_SHADOW_STACK = 1 << 1;
    }
}

/// The controls that change what EPT does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EptControls {
    /// The controls that are on or off.
    pub flags: EptFlags,
    /// Page-modification logging, if on.
    pub log: Option<PageModificationLog>,
}

/// Page-modification logging (SDM 3C 28.3.6). The index is a VMCS field and VMCS contents live in memory, so the
/// walker reads and writes it where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageModificationLog {
    /// Where the 16-bit PML index is.
    pub index: Hpa,
    /// The 4 KiB log of 512 guest-physical addresses.
    pub log: Hpa,
}

/// The host registers that nested paging uses (APM2 15.25.3 to 15.25.5, 15.25.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct HostPaging {
    pub cr0: sim_core::arch::control::Cr0,
    pub cr4: sim_core::arch::control::Cr4,
    pub efer: sim_core::arch::control::Efer,
    pub pat: u64,
}

/// A translation regime: the tags and the second stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Regime {
    /// How TLB entries are tagged.
    pub tag: Tag,
    /// What translates guest-physical addresses.
    pub second: SecondStage,
}

/// Whether the failed second-stage access was for a table of the first stage or for the final address
/// (SDM 3C table 27-7 bit 8; APM2 15.25.6 EXITINFO1 bits 33:32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StagePurpose {
    /// The translated address of the access itself.
    Final,
    /// A paging-structure entry of the first stage.
    Table,
}

/// A second-stage translation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StageFault {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// The linear address being translated, if there was one (there is none for a PDPTE load).
    pub gva: Option<Gva>,
    /// The access to the guest-physical address: a table reference that updates A/D bits is a write.
    pub access: Access,
    /// For a table or for the final address.
    pub purpose: StagePurpose,
    /// What the first stage says of the linear address, for the advanced information on EPT violations; none where the
    /// access is for a table or no linear address was translated.
    pub first: Option<FirstStage>,
    /// Whether bit 63 (suppress #VE) of the EPT entry that decided is 0.
    pub convertible: bool,
    /// What the walk found.
    pub kind: StageFaultKind,
}

/// Why a second-stage translation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageFaultKind {
    /// EPT violation; `allowed` has bit 0 readable, 1 writable, 2 executable (for supervisors with mode-based execute
    /// control), 3 executable for users: the AND over the entries walked, 0 where the walk met a non-present entry (SDM
    /// 3C table 27-7 bits 6:3). Bit 3 is 0 without mode-based execute control. Bit 4, with supervisor shadow-stack
    /// control alone, is bit 60 of the entry that maps the page (table 27-7 bit 14).
    EptViolation {
        /// Bits 4:0 as described.
        allowed: u8,
    },
    /// A write has to set a dirty flag, and the page-modification log is full (SDM 3C 28.3.6).
    LogFull,
    /// EPT misconfiguration (SDM 3C 28.2.3.1).
    EptMisconfiguration,
    /// Nested page fault; `present` tells whether every entry walked was present, `reserved` whether a reserved bit
    /// was set (APM2 15.25.6).
    NestedPageFault {
        /// EXITINFO1 bit 0.
        present: bool,
        /// EXITINFO1 bit 3.
        reserved: bool,
    },
    /// Nested page fault because a supervisor shadow-stack access met a page that the nested tables don't make a
    /// supervisor shadow stack: EXITINFO1 bits 37 and 0 (APM2 15.25.14).
    NestedShadowStack,
}

bitflags! {
    /// What the first stage says of a linear address (SDM 3C table 27-7 bits 11:9).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct FirstStage: u8 {
        /// A user-mode address: bit 9.
        const USER = 1 << 0;
        /// Writable: bit 10.
        const WRITABLE = 1 << 1;
        /// Execute-disabled: bit 11.
        const EXECUTE_DISABLED = 1 << 2;
    }
}
