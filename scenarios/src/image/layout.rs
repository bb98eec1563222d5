//! Where the engine puts what every guest needs, in the first 2 MiB of guest-physical memory, which every address space
//! maps onto itself: code slots, stacks, descriptor tables, VMCSs and VMCBs, page tables.
//!
//! A vCPU has a block of its own, so that vCPUs never share a slot or a stack.

use crate::file::Actor;
use hypervisor::canonical::GuestPage;
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
/// SMBASE of the first vCPU; code and save states of all lie in the gap between regions and page tables.
const SMBASE: u64 = 0x6_8000;
/// Bytes from one vCPU's SMBASE to the next.
const SMBASE_STRIDE: u64 = 0x400;
/// Where start-up IPIs start vCPUs, a page each.
const START_UP: Gpa = Gpa(0x7_a000);
/// Nested guests that a scenario may have.
pub const GUESTS_MAX: usize = 8;

/// What a page of guest memory holds between two steps: code slots, stacks and operands are written anew by every step,
/// SMM's save state by every SMI.
#[must_use]
pub fn page_kind(page: Gpa) -> GuestPage {
    let block = page.0.wrapping_sub(BLOCKS.0) / PAGE_BYTES;
    if block < 4 * BLOCK_PAGES {
        return if matches!(block % BLOCK_PAGES, 8 | 9 | 14) { GuestPage::Data } else { GuestPage::Passing };
    }
    if (REGIONS.0..SMBASE).contains(&page.0) {
        return GuestPage::ControlBlock;
    }
    GuestPage::Data
}

/// A vCPU and the level that runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The vCPU.
    pub vcpu: u8,
    /// L1 or L2.
    pub level: Actor,
}

/// The pages of a seat, numbered by L1's place in the block; L2's is the next.
#[derive(Clone, Copy)]
enum Page {
    Slot = 0,
    UserSlot = 2,
    Stack = 4,
    UserStack = 6,
    Idt = 8,
    Data = 10,
}

impl Page {
    /// SMM code has the last four pages of a block, and no user code.
    const fn of_smm(self) -> u64 {
        match self {
            Self::Slot | Self::UserSlot => 12,
            Self::Stack | Self::UserStack => 13,
            Self::Idt => 14,
            Self::Data => 15,
        }
    }
}

impl Seat {
    fn page(self, page: Page) -> Gpa {
        let page = match self.level {
            Actor::L1 | Actor::Host => page as u64,
            Actor::L2 => page as u64 + 1,
            Actor::Smm => page.of_smm(),
        };
        BLOCKS.offset((u64::from(self.vcpu) * BLOCK_PAGES + page) * PAGE_BYTES)
    }

    /// The page of supervisor code: the current step at its start.
    #[must_use]
    pub fn slot(self) -> Gpa {
        self.page(Page::Slot)
    }

    /// The page of user code.
    #[must_use]
    pub fn user_slot(self) -> Gpa {
        self.page(Page::UserSlot)
    }

    /// The first byte above the stack.
    #[must_use]
    pub fn stack(self) -> Gpa {
        self.page(Page::Stack).offset(PAGE_BYTES - 0x10)
    }

    /// The first byte above the user stack.
    #[must_use]
    pub fn user_stack(self) -> Gpa {
        self.page(Page::UserStack).offset(PAGE_BYTES - 0x10)
    }

    /// Interrupt descriptor tables: 64-bit gates at the start, 32-bit gates in the second half.
    #[must_use]
    pub fn idt(self) -> Gpa {
        self.page(Page::Idt)
    }

    /// Task-state segment, then the data that snippets refer to.
    #[must_use]
    pub fn data(self) -> Gpa {
        self.page(Page::Data)
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

/// A vCPU's SMBASE.
#[must_use]
pub fn smbase(vcpu: u8) -> u64 {
    SMBASE + u64::from(vcpu) * SMBASE_STRIDE
}

/// Where a start-up IPI starts a vCPU.
#[must_use]
pub fn start_up(vcpu: u8) -> Gpa {
    START_UP.offset(u64::from(vcpu) * PAGE_BYTES)
}

/// The vector of the start-up IPI that starts a vCPU.
#[must_use]
pub fn start_up_vector(vcpu: u8) -> u8 {
    start_up(vcpu).frame().0 as u8
}

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
