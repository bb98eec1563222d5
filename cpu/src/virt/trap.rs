//! Everything that an extension may intercept (SDM 3C 25; APM2 15.7 to 15.14).

use super::StageFault;
use crate::core::Gpr;
use serde::{Deserialize, Serialize};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::Exception;

/// A control register that instructions can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum ControlRegister {
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Cr8,
}

impl ControlRegister {
    /// The register's number in the instruction encoding.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Cr0 => 0,
            Self::Cr2 => 2,
            Self::Cr3 => 3,
            Self::Cr4 => 4,
            Self::Cr8 => 8,
        }
    }
}

/// Something about to happen that an extension may intercept. Asked before any effect, after the checks that the
/// manuals give priority over an exit (SDM 3C 25.1.1; APM2 15.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trap {
    /// An exception would be delivered. For #DB the bits that DR6 gets are in `Core::pending_debug` while this is asked
    /// (SDM 3C table 27-1); if it is not intercepted the processor moves them to DR6 by itself, and an extension whose
    /// exit shows them in DR6 (APM2 15.12.2) calls [`Core::take_debug`].
    Exception(Exception),
    /// A triple fault (SDM 3C 25.2; APM2 shutdown).
    TripleFault,
    /// MOV to a control register.
    CrWrite {
        /// Which.
        register: ControlRegister,
        /// From where.
        gpr: Gpr,
        /// The operand.
        value: u64,
    },
    /// MOV from a control register.
    CrRead {
        /// Which.
        register: ControlRegister,
        /// To where.
        gpr: Gpr,
    },
    /// CLTS.
    Clts,
    /// INVLPG.
    Invlpg(Gva),
    /// INVPCID.
    Invpcid,
    /// IN, OUT, INS or OUTS.
    Io {
        /// The port.
        port: u16,
        /// Operand bytes: 1, 2 or 4.
        bytes: u8,
        /// Whether it is IN or INS.
        input: bool,
        /// INS and OUTS.
        string: Option<StringIo>,
    },
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// RDMSR of this register.
    Rdmsr(u32),
    /// WRMSR of this register and value.
    Wrmsr(u32, u64),
    /// RDTSC.
    Rdtsc,
    /// WBINVD and WBNOINVD.
    Wbinvd,
    /// PAUSE.
    Pause,
    /// MOV to or from a debug register.
    DrAccess {
        /// Its number.
        number: u8,
        /// To where or from where.
        gpr: Gpr,
        /// MOV to the debug register is a write.
        kind: AccessKind,
    },
    /// LMSW with its 16-bit source, and where the source is in memory its address.
    Lmsw {
        /// The source operand.
        value: u16,
        /// The address of a memory operand.
        address: Option<Gva>,
    },
    /// SMSW.
    Smsw,
    /// LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT or STR; [`At::operand`] says more.
    DescriptorTable(TableInstruction),
    /// INVD.
    Invd,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// RDRAND.
    Rdrand,
    /// RDSEED.
    Rdseed,
    /// RDPRU.
    Rdpru,
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// XSETBV.
    Xsetbv,
    /// XSAVES, with the components asked for.
    Xsaves(u64),
    /// XRSTORS, with the components asked for.
    Xrstors(u64),
    /// RSM.
    Rsm,
    /// IRET in any width.
    Iret,
    /// PUSHF in any width.
    Pushf,
    /// POPF in any width.
    Popf,
    /// INT n.
    Int(u8),
    /// INT1, before the #DB that it raises is asked about as [`Trap::Exception`] with [`At::software`].
    Icebp,
    /// INVLPGB.
    Invlpgb,
    /// TLBSYNC.
    Tlbsync,
    /// GETSEC.
    Getsec,
    /// An instruction of an extension, before its operands are read and its privilege is checked.
    Extension(ExtensionOpcode),
    /// A task switch, after its checks up to the TSS descriptor (SDM 3C 25.4.2; APM2 15.14.1).
    TaskSwitch {
        /// The new task's TSS selector.
        selector: u16,
        /// What initiates it.
        source: TaskSwitchSource,
        /// The error code that the new task's stack would get.
        error: Option<u32>,
    },
    /// A maskable external interrupt is pending and may be recognised now; the vector is acknowledged only if taken.
    Interrupt(u8),
    /// An NMI is about to be delivered.
    Nmi,
    /// An SMI is about to be delivered.
    Smi,
    /// An INIT signal is about to act.
    Init,
    /// A start-up IPI reached a processor that waits for one.
    Sipi(u8),
    /// The instruction before has retired, before any pending debug exception is delivered: monitor trap flag and
    /// other exits that come between instructions and before events (SDM 3C 25.5.2).
    Retired,
    /// NMIs are over and maskable interrupts come next: preemption timer at zero, NMI and interrupt window, virtual
    /// interrupt (SDM 3C 25.2; APM2 15.21). What of these precedes an NMI is decided when that is asked about.
    Window,
    /// A second-stage translation failed.
    Stage(StageFault),
}

/// How an event came about, numbered as the interruption-information fields of VMX do (SDM 3C table 24-16; APM2 15.20
/// numbers its fewer kinds alike).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum EventKind {
    /// A maskable external interrupt.
    ExternalInterrupt = 0,
    /// A non-maskable interrupt.
    Nmi = 2,
    /// An exception that the processor raises by itself.
    HardwareException = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 and INTO.
    SoftwareException = 6,
}

/// An event on its way through the IDT: what IDT-vectoring information and EXITINTINFO tell (SDM 3C 27.2.4; APM2
/// 15.7.2), and what a VM-entry injects (SDM 3C 26.6; APM2 15.20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Delivery {
    /// The vector.
    pub vector: u8,
    /// How the event came about.
    pub kind: EventKind,
    /// The error code to push.
    pub error: Option<u32>,
    /// The length of the instruction behind which a software event returns; 0 for the other kinds.
    pub length: u8,
}

impl Delivery {
    /// An exception that the processor raises by itself.
    #[must_use]
    pub const fn of(exception: &Exception) -> Self {
        let vector = exception.vector.number();
        Self { vector, kind: EventKind::HardwareException, error: exception.error, length: 0 }
    }

    /// An event that an instruction of this length raises on purpose.
    #[must_use]
    pub const fn software(vector: u8, kind: EventKind, length: u8) -> Self {
        Self { vector, kind, error: None, length }
    }
}

/// INS and OUTS, as an exit for them tells (SDM 3C table 27-5 and 27-9; APM2 15.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StringIo {
    /// The memory operand's linear address.
    pub address: Gva,
    /// Whether there is a REP prefix.
    pub repeated: bool,
    /// The address size in bytes: 2, 4 or 8.
    pub address_bytes: u8,
    /// The segment register's number: ES 0, CS 1, SS 2, DS 3, FS 4, GS 5.
    pub segment: u8,
}

/// An instruction on GDTR, IDTR, LDTR or TR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the mnemonics")]
pub enum TableInstruction {
    Sgdt,
    Sidt,
    Lgdt,
    Lidt,
    Sldt,
    Str,
    Lldt,
    Ltr,
}

/// What initiates a task switch, numbered as the exit qualification does (SDM 3C table 27-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the initiators")]
pub enum TaskSwitchSource {
    Call = 0,
    Iret = 1,
    Jmp = 2,
    TaskGate = 3,
}

/// An instruction that belongs to an extension, before its operands are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the mnemonics")]
pub enum ExtensionOpcode {
    Vmxon,
    Vmclear,
    Vmptrld,
    Vmptrst,
    Vmread,
    Vmwrite,
    Vmlaunch,
    Vmresume,
    Vmxoff,
    Vmcall,
    Vmfunc,
    Invept,
    Invvpid,
    Vmrun,
    Vmload,
    Vmsave,
    Stgi,
    Clgi,
    Skinit,
    Vmmcall,
    Invlpga,
}
