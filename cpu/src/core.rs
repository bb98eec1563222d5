//! One logical processor: architectural registers, and the translation caches that belong to it.

use crate::apic::Apic;
use crate::paging::memory_type::Mtrrs;
use crate::profile::Features;
use crate::tlb::Tlb;
use crate::virt::Delivery;
use bitflags::bitflags;
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
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
    pub debugctl: u64,
    pub apic_base: u64,
    pub spec_ctrl: u64,
    pub pkrs: u64,
    pub u_cet: u64,
    pub s_cet: u64,
    pub pl_ssp: [u64; 4],
    pub interrupt_ssp_table: u64,
    pub xss: u64,
    pub smbase: u64,
}

/// What the processor does between instructions (SDM 3C 24.4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activity {
    /// It executes instructions.
    #[default]
    Active = 0,
    /// It sits in HLT.
    Halted = 1,
    /// It shut down after a triple fault.
    Shutdown = 2,
    /// It waits for a start-up IPI after INIT.
    WaitForSipi = 3,
}

bitflags! {
    /// What holds events back after the instruction before, numbered as in the VMCS (SDM 3C table 24-3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Blocking: u8 {
        /// By STI: no maskable interrupt for one instruction.
        const STI = 1 << 0;
        /// By MOV to SS or POP SS: no interrupt and no debug exception for one instruction.
        const MOV_SS = 1 << 1;
        /// By SMI: the processor is in system-management mode.
        const SMI = 1 << 2;
        /// By NMI: no further NMI until IRET.
        const NMI = 1 << 3;
    }

    /// Events at the processor's pins that are neither delivered nor exited for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct PinEvents: u8 {
        /// NMI.
        const NMI = 1 << 0;
        /// SMI.
        const SMI = 1 << 1;
        /// INIT.
        const INIT = 1 << 2;
    }
}

/// Events that wait at the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pins {
    /// Those without a vector.
    pub events: PinEvents,
    /// A maskable external interrupt, with its vector, from outside the local APIC. Whoever acknowledges an interrupt
    /// calls [`apic::acknowledge`](crate::apic::acknowledge), which knows both sources.
    pub interrupt: Option<u8>,
    /// A start-up IPI, with its vector.
    pub sipi: Option<u8>,
}

/// What has passed since the last instruction boundary that was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Passed {
    /// Nothing, or nobody looks: after a VM-entry that injects nothing, and where no extension wants
    /// [`Trap::Retired`](crate::virt::Trap::Retired).
    #[default]
    Nothing,
    /// An instruction has retired or an event was delivered.
    Instruction,
}

/// Vector registers and their control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VectorState {
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl Default for VectorState {
    fn default() -> Self {
        Self { xmm: [0; 16], mxcsr: 0x1f80 }
    }
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
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// CR8, the task-priority class: 0 to 15.
    pub cr8: u8,
    /// PKRU.
    pub pkru: u32,
    /// The shadow-stack pointer.
    pub ssp: u64,
    /// XCR0.
    pub xcr0: u64,
    /// XMM registers and MXCSR.
    pub vectors: VectorState,
    /// Registers that only hold a value.
    pub msrs: Msrs,
    /// Memory-type range registers.
    pub mtrrs: Mtrrs,
    /// MAXPHYADDR, in bits.
    pub maxphyaddr: u32,
    /// What this processor offers.
    pub features: Features,
    /// What it does between instructions.
    pub activity: Activity,
    /// What holds events back.
    pub blocking: Blocking,
    /// Debug exceptions that wait for the next instruction boundary, as in the VMCS field (SDM 3C table 24-4).
    pub pending_debug: u64,
    /// Events that wait.
    pub pins: Pins,
    /// The event that is being delivered through the IDT; none between instructions. A VM-exit in the meantime tells it
    /// and takes it away.
    pub delivering: Option<Delivery>,
    /// Whether an instruction has just passed, for [`Trap::Retired`](crate::virt::Trap::Retired).
    pub passed: Passed,
    /// The local APIC.
    pub apic: Apic,
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
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            cr8: 0,
            pkru: 0,
            ssp: 0,
            xcr0: 1,
            vectors: VectorState::default(),
            msrs: Msrs { pat: 0x0007_0406_0007_0406, smbase: 0x3_0000, ..Msrs::default() },
            mtrrs: Mtrrs::WRITE_BACK,
            maxphyaddr,
            features: Features::BASE,
            activity: Activity::Active,
            blocking: Blocking::empty(),
            pending_debug: 0,
            pins: Pins::default(),
            delivering: None,
            passed: Passed::Nothing,
            apic: Apic::default(),
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

    /// Moves the bits of a debug exception from `pending_debug` to DR6 and clears DR7.GD, DebugCtl.LBR and DebugCtl.BTF, as
    /// its delivery does. B0 to B3 become those of this exception, the other bits only get set (SDM 3B 17.2.3, 17.4.1).
    pub const fn take_debug(&mut self) {
        const STICKY: u64 = !0xf;
        const SHOWN: u64 = 0xf | 1 << 13 | 1 << 14 | 1 << 15;
        if self.pending_debug & SHOWN != 0 {
            self.dr6 = (self.dr6 & STICKY) | (self.pending_debug & SHOWN);
        }
        self.pending_debug = 0;
        self.dr7 &= !(1 << 13);
        self.msrs.debugctl &= !0b11;
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
