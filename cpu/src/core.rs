//! One logical processor: architectural registers, and the translation caches that belong to it.

use crate::tlb::Tlb;
use serde::{Deserialize, Serialize};
use sim_core::addr::Gva;
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};

/// A general-purpose register, numbered as ModRM and REX encode it (SDM 2A table 2-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum Gpr {
    Rax = 0,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// The segment registers that instructions can name, and the two system ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
}

/// Model-specific registers that only hold a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the registers'; see `sim_core::arch::msr` for their addresses")]
pub struct Msrs {
    pub pat: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

/// The instruction set's operand and address width, from CS and EFER (SDM 3A 3.4.5, 5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bitness {
    /// 16-bit code: real mode, or CS.D = 0.
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// One logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Core {
    /// The general-purpose registers, indexed by [`Gpr`].
    pub gprs: [u64; 16],
    /// The instruction pointer, an offset in CS.
    pub rip: u64,
    /// The flags.
    pub rflags: Rflags,
    /// CR0.
    pub cr0: Cr0,
    /// CR2, the last page fault's linear address.
    pub cr2: Gva,
    /// CR3, raw.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// The PDPTE registers of PAE paging (SDM 3A 4.4.1).
    pub pdptes: [u64; 4],
    /// Segment registers.
    pub segments: Segments,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// DR7.
    pub dr7: u64,
    /// Registers that only hold a value.
    pub msrs: Msrs,
    /// MAXPHYADDR, in bits.
    pub maxphyaddr: u32,
    /// Whether the processor sits in HLT.
    pub halted: bool,
    /// Cached translations.
    pub tlb: Tlb,
}

impl Core {
    /// A processor in flat 32-bit protected mode without paging, at `rip` 0: the state in which a firmware or a test
    /// loader hands over, not the reset state.
    #[must_use]
    pub fn flat32(maxphyaddr: u32) -> Self {
        let data = Segment::flat(0x10, Rights::DATA);
        let segments = Segments {
            es: data,
            cs: Segment::flat(0x08, Rights::CODE32),
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            ldtr: Segment { rights: Rights::UNUSABLE, ..Segment::default() },
            tr: Segment { selector: 0x18, base: 0, limit: 0x67, rights: Rights::BUSY_TSS },
        };
        Self {
            gprs: [0; 16],
            rip: 0,
            rflags: Rflags::FIXED,
            cr0: Cr0::PE.union(Cr0::ET).union(Cr0::NE),
            cr2: Gva(0),
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            pdptes: [0; 4],
            segments,
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            dr7: 0x400,
            msrs: Msrs { pat: 0x0007_0406_0007_0406, ..Msrs::default() },
            maxphyaddr,
            halted: false,
            tlb: Tlb::default(),
        }
    }

    /// One general-purpose register, whole.
    #[must_use]
    pub const fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[register as usize]
    }

    /// Writes one general-purpose register, whole.
    pub const fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[register as usize] = value;
    }

    /// The current privilege level, from SS.DPL (SDM 3C 24.4.1: CPL is always SS.DPL).
    #[must_use]
    pub const fn cpl(&self) -> u8 {
        self.segments.ss.rights.dpl()
    }

    /// The paging mode in force.
    #[must_use]
    pub const fn paging_mode(&self) -> PagingMode {
        PagingMode::of(self.cr0, self.cr4, self.efer)
    }

    /// The width of the code being run.
    #[must_use]
    pub const fn bitness(&self) -> Bitness {
        let cs = self.segments.cs.rights;
        if self.efer.contains(Efer::LMA) && cs.is_long() {
            Bitness::Bits64
        } else if self.cr0.contains(Cr0::PE) && cs.is_big() {
            Bitness::Bits32
        } else {
            Bitness::Bits16
        }
    }

    /// The current PCID: CR3 bits 11:0 with CR4.PCIDE, else 0 (SDM 3A 4.10.1).
    #[must_use]
    pub const fn pcid(&self) -> u16 {
        if self.cr4.contains(Cr4::PCIDE) { (self.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// The linear-address width that canonical checks use.
    #[must_use]
    pub const fn linear_width(&self) -> u32 {
        if self.cr4.contains(Cr4::LA57) { 57 } else { 48 }
    }
}
