//! A vCPU as L0 keeps it (`struct kvm_vcpu`): the guest's registers, its MMUs, and what its vendor needs.

use mmu::VcpuMmu;
use mmu::state::{Nesting, RoleRegs, Smm, View};
use serde::{Deserialize, Serialize};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::TableRegister;

use crate::migrate::Resident;
use crate::pause::Pause;
use crate::signals::Signals;
use crate::vendor::svm::SvmState;
use crate::vendor::vmx::VmxState;
use cpu::core::Segments;

/// What only one vendor needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VendorState {
    /// Intel.
    Vmx(Box<VmxState>),
    /// AMD.
    Svm(Box<SvmState>),
}

/// How far L1's last VMLAUNCH, VMRESUME or VMRUN has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NestedRun {
    /// Hardware has entered L2, or there was none.
    #[default]
    Settled,
    /// L0 has emulated it, and hardware has yet to enter L2 (`nested_run_pending`).
    Pending,
}

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub id: u8,
    /// The processor that it was loaded on last (`vcpu->cpu`); none before the first time.
    pub cpu: Option<u8>,
    /// The processor that it last entered its guest on; none before the first time (`arch.last_vmentry_cpu`).
    pub last_entry: Option<u8>,
    /// The processor that its thread runs on.
    pub thread_on: u8,
    /// What it left in a processor that it no longer holds.
    pub resident: Option<Resident>,
    /// The general-purpose registers of whoever runs, L1 or L2.
    pub gprs: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// The flags.
    pub rflags: Rflags,
    /// CR0 as the guest set it.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3 as the guest set it.
    pub cr3: u64,
    /// CR4 as the guest set it.
    pub cr4: Cr4,
    /// CR8, the task priority, of L1 and of an L2 that has none of its own.
    pub cr8: u8,
    /// EFER as the guest set it.
    pub efer: Efer,
    /// The guest's PDPTE registers.
    pub pdptes: [u64; 4],
    /// Whether they were read anew and wait for the next load of a root to reach the VMCS (up to v5.16).
    pub pdptes_wait: bool,
    /// L1 or L2.
    pub nesting: Nesting,
    /// How far the entry of L2 has come.
    pub nested_run: NestedRun,
    /// In SMM or not.
    pub smm: Smm,
    /// Where its SMM code and save state are.
    pub smbase: u64,
    /// Signals that wait for it.
    pub signals: Signals,
    /// The vector of a start-up IPI that waits with an INIT.
    pub sipi: Option<u8>,
    /// The instruction and the table for which a shadow was given up last (`last_retry_eip`, `last_retry_addr`).
    pub last_retry: Option<(u64, sim_core::addr::Gpa)>,
    /// The MMUs and the pending requests.
    pub mmu: VcpuMmu,
    /// An exception to inject at the next entry.
    pub pending: Option<Exception>,
    /// An exception whose delivery an exit interrupted, to deliver again.
    pub interrupted: Option<Exception>,
    /// Where it waits, or is to wait, without a lock of the MMU.
    pub pause: Pause,
    /// The EPTP or nested CR3 that L1 gave L2, raw.
    pub nested_pgd: u64,
    /// What only the vendor needs.
    pub vendor: VendorState,
}

impl Vcpu {
    /// What MMU code may read.
    #[must_use]
    pub const fn view(&self) -> View {
        View {
            regs: RoleRegs::new(self.cr0, self.cr4, self.efer),
            cr3: self.cr3,
            pdptes: self.pdptes,
            nesting: self.nesting,
            smm: self.smm,
            nested_pgd: self.nested_pgd,
        }
    }

    /// Whether the guest uses PAE paging, whose PDPTEs are registers.
    #[must_use]
    pub const fn is_pae(&self) -> bool {
        self.cr0.contains(Cr0::PG) && self.cr4.contains(Cr4::PAE) && !self.efer.contains(Efer::LMA)
    }
}

impl Sregs {
    /// `kvm_is_valid_sregs`, as far as paging goes (SDM 3A 4.1.2).
    #[must_use]
    pub const fn are_legal(&self) -> bool {
        let (cr0, cr4, efer) = (self.cr0, self.cr4, self.efer);
        let paged = cr0.contains(Cr0::PG);
        let long = efer.contains(Efer::LME) && paged;
        (cr0.contains(Cr0::PE) || !paged)
            && (cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW))
            && long == efer.contains(Efer::LMA)
            && (!long || cr4.contains(Cr4::PAE))
            && (long || (!cr4.contains(Cr4::PCIDE) && !self.segments.cs.rights.is_long()))
    }
}

/// `struct kvm_sregs` and the general registers: what userspace sets to start, migrate or reset a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sregs {
    /// Segment registers.
    pub segments: Segments,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// CR8.
    pub cr8: u8,
    /// EFER.
    pub efer: Efer,
    /// General-purpose registers.
    pub gprs: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: Rflags,
}
