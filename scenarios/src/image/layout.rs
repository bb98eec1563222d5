//! Where the engine puts what every guest needs, in the first 2 MiB of guest-physical memory, which every address space
//! maps onto itself: code slots, stacks, descriptor tables, VMCSs and VMCBs, page tables.
//!
//! A vCPU has a block of its own, so that vCPUs never share a slot or a stack.

use crate::file::Actor;
use sim_core::Gpa;
use sim_core::addr::PAGE_BYTES;

/// One past the last byte that belongs to the engine: scenarios map and use what lies above.
pub const ENGINE_END: u64 = 0x20_0000;
/// The global descriptor table.
pub const GDT: Gpa = Gpa(0x1000);
/// VMXON regions, one a vCPU; on AMD what L1 saves with VMSAVE.
const VMXON: Gpa = Gpa(0x2000);
/// Host save areas for VM_HSAVE_PA, one a vCPU, where L1 runs on AMD silicon itself.
const HOST_SAVE: Gpa = Gpa(0x6000);
/// An area for VM-entry MSR loading.
pub const MSR_AREA: Gpa = Gpa(0xe000);
/// PDPTEs with reserved bits set.
pub const BAD_PDPTES: Gpa = Gpa(0xf000);
/// VMCSs or VMCBs, one a vCPU and guest.
const REGIONS: Gpa = Gpa(0x5_0000);
/// Page tables.
pub const TABLES: Gpa = Gpa(0x8_0000);
/// The vCPUs' blocks.
const BLOCKS: Gpa = Gpa(0x1_0000);
const BLOCK_PAGES: u64 = 16;
/// Nested guests that a scenario may have.
pub const GUESTS_MAX: usize = 8;

/// A vCPU and the level that runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The vCPU.
    pub vcpu: u8,
    /// L1 or L2.
    pub level: Actor,
}

impl Seat {
    fn page(self, of_l1: u64) -> Gpa {
        let level = u64::from(self.level == Actor::L2);
        BLOCKS.offset((u64::from(self.vcpu) * BLOCK_PAGES + of_l1 + level) * PAGE_BYTES)
    }

    /// The page of supervisor code: the current step at its start.
    #[must_use]
    pub fn slot(self) -> Gpa {
        self.page(0)
    }

    /// The page of user code.
    #[must_use]
    pub fn user_slot(self) -> Gpa {
        self.page(2)
    }

    /// The first byte above the stack.
    #[must_use]
    pub fn stack(self) -> Gpa {
        self.page(4).offset(PAGE_BYTES - 0x10)
    }

    /// The first byte above the user stack.
    #[must_use]
    pub fn user_stack(self) -> Gpa {
        self.page(6).offset(PAGE_BYTES - 0x10)
    }

    /// Interrupt descriptor tables: 64-bit gates at the start, 32-bit gates in the second half.
    #[must_use]
    pub fn idt(self) -> Gpa {
        self.page(8)
    }

    /// Task-state segment, then the data that snippets refer to.
    #[must_use]
    pub fn data(self) -> Gpa {
        self.page(10)
    }

    /// Operands in memory that snippets refer to.
    #[must_use]
    pub fn operands(self) -> Gpa {
        self.data().offset(0x800)
    }

    /// Whether a page must be accessible to user code.
    #[must_use]
    pub fn is_user_page(page: Gpa) -> bool {
        let within = page.0.wrapping_sub(BLOCKS.0) / PAGE_BYTES;
        within < 4 * BLOCK_PAGES && matches!(within % BLOCK_PAGES, 2 | 3 | 6 | 7)
    }
}

/// Offset in a slot page of the 64-bit exception handlers, 16 bytes a vector.
pub const HANDLERS64: u64 = 0x800;
/// Offset in a slot page of the 32-bit exception handlers.
pub const HANDLERS32: u64 = 0xa00;
/// Bytes of one handler.
pub const HANDLER_BYTES: u64 = 16;
/// Offset in a slot page of the gates, 16 bytes a port.
pub const GATES: u64 = 0xe00;
/// Offset in a slot page of the code that a VM-exit lands on.
pub const LANDING: u64 = 0xf00;
/// Offset in an IDT page of the 32-bit gates.
pub const IDT32: u64 = 0x800;
/// Vectors that have gates.
pub const VECTORS: u64 = 32;

/// The page that VMRUN saves the host's state in.
#[must_use]
pub fn host_save(vcpu: u8) -> Gpa {
    HOST_SAVE.offset(u64::from(vcpu) * PAGE_BYTES)
}

/// L1's VMXON region; on AMD where L1's VMSAVE puts its own state.
#[must_use]
pub fn vmxon(vcpu: u8) -> Gpa {
    VMXON.offset(u64::from(vcpu) * PAGE_BYTES)
}

/// The VMCS or VMCB of a vCPU's nested guest.
#[must_use]
pub fn region(vcpu: u8, guest: usize) -> Gpa {
    REGIONS.offset((u64::from(vcpu) * GUESTS_MAX as u64 + guest as u64) * PAGE_BYTES)
}
