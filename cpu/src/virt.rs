//! The narrow hook through which a processor reaches its virtualization extension, and through which VMX and SVM see
//! the processor. The CPU asks three things: which translation regime is in force, whether something that is about to
//! happen is intercepted, and what an instruction of the extension itself does. Everything else stays on either side.

use crate::core::{Blocking, Core, Gpr};
use crate::exec::Fault;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use sim_core::addr::{Gpa, Gva, Hpa};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::exception::Exception;
use sim_core::{Ground, SimError};

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

    /// What holds events back, beside the processor's own flags and blocking: GIF, virtual interrupt masking.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct HeldEvents: u8 {
        /// Maskable external interrupts.
        const INTERRUPT = 1 << 0;
        /// NMI.
        const NMI = 1 << 1;
        /// SMI.
        const SMI = 1 << 2;
        /// INIT.
        const INIT = 1 << 3;
        /// Data and instruction breakpoints and single-step traps.
        const DEBUG = 1 << 4;
        /// Not held back but let through: maskable interrupts do not look at RFLAGS.IF (VMX "external-interrupt exiting",
        /// SDM 3C 25.2; SVM with V_INTR_MASKING and the host's IF set, APM2 15.21.1).
        const INTERRUPT_UNMASKED = 1 << 5;
        /// NMIs do not look at blocking by NMI, which is that of virtual NMIs (SDM 3C 25.3).
        const NMI_UNBLOCKED = 1 << 6;
        /// IRET leaves blocking by NMI alone ("NMI exiting" without "virtual NMIs", SDM 3C 25.3).
        const IRET_KEEPS_NMI = 1 << 7;
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

/// An instruction that belongs to an extension, with its operand already found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VirtInstruction {
    /// VMXON m64, VMCLEAR m64, VMPTRLD m64: the operand's value, a physical address.
    Vmxon(u64),
    /// VMCLEAR.
    Vmclear(u64),
    /// VMPTRLD.
    Vmptrld(u64),
    /// VMPTRST: where to store.
    Vmptrst(VirtTarget),
    /// VMREAD of the field with this encoding into a register or memory.
    Vmread {
        /// The field's encoding.
        field: u64,
        /// Where to.
        target: VirtTarget,
    },
    /// VMWRITE of a value to the field with this encoding.
    Vmwrite {
        /// The field's encoding.
        field: u64,
        /// The value.
        value: u64,
    },
    /// VMLAUNCH.
    Vmlaunch,
    /// VMRESUME.
    Vmresume,
    /// VMXOFF.
    Vmxoff,
    /// VMCALL.
    Vmcall,
    /// VMFUNC: the function is in EAX, its argument in ECX.
    Vmfunc,
    /// INVEPT with its type and 128-bit descriptor.
    Invept {
        /// The type, from the register operand.
        kind: u64,
        /// The descriptor's two quadwords.
        descriptor: [u64; 2],
    },
    /// INVVPID with its type and 128-bit descriptor.
    Invvpid {
        /// The type, from the register operand.
        kind: u64,
        /// The descriptor's two quadwords.
        descriptor: [u64; 2],
    },
    /// VMRUN rAX.
    Vmrun(u64),
    /// VMLOAD rAX.
    Vmload(u64),
    /// VMSAVE rAX.
    Vmsave(u64),
    /// STGI.
    Stgi,
    /// CLGI.
    Clgi,
    /// SKINIT EAX.
    Skinit(u32),
    /// VMMCALL.
    Vmmcall,
    /// INVLPGA rAX, ECX.
    Invlpga {
        /// The linear address.
        address: Gva,
        /// The ASID.
        asid: u32,
    },
}

impl VirtInstruction {
    /// The manual's mnemonic.
    #[must_use]
    pub const fn mnemonic(&self) -> &'static str {
        match self {
            Self::Vmxon(_) => "VMXON",
            Self::Vmclear(_) => "VMCLEAR",
            Self::Vmptrld(_) => "VMPTRLD",
            Self::Vmptrst(_) => "VMPTRST",
            Self::Vmread { .. } => "VMREAD",
            Self::Vmwrite { .. } => "VMWRITE",
            Self::Vmlaunch => "VMLAUNCH",
            Self::Vmresume => "VMRESUME",
            Self::Vmxoff => "VMXOFF",
            Self::Vmcall => "VMCALL",
            Self::Vmfunc => "VMFUNC",
            Self::Invept { .. } => "INVEPT",
            Self::Invvpid { .. } => "INVVPID",
            Self::Vmrun(_) => "VMRUN",
            Self::Vmload(_) => "VMLOAD",
            Self::Vmsave(_) => "VMSAVE",
            Self::Stgi => "STGI",
            Self::Clgi => "CLGI",
            Self::Skinit(_) => "SKINIT",
            Self::Vmmcall => "VMMCALL",
            Self::Invlpga { .. } => "INVLPGA",
        }
    }
}

/// Where an instruction of an extension puts its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VirtTarget {
    /// A register.
    Register(Gpr),
    /// Memory at a linear address.
    Memory(Gva),
}

/// The instruction during which a hook is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct At {
    /// The instruction's length in bytes; 0 outside any instruction.
    pub length: u8,
    /// Its operands, for the instructions whose exits tell them.
    pub operand: Operands,
    /// For [`Trap::Exception`] of INT1, INT3 and INTO: the interruption type; the length is the instruction's.
    pub software: Option<EventKind>,
    /// [`Blocking::NMI`] if this is an IRET that has ended it: "NMI unblocking due to IRET" (SDM 3C table 27-7 bit 12).
    pub unblocked: Blocking,
}

impl At {
    /// An instruction of this length whose operands nobody asks for.
    #[must_use]
    pub const fn of(length: u8) -> Self {
        Self { length, operand: Operands::NONE, software: None, unblocked: Blocking::empty() }
    }
}

/// An instruction's operands as encoded: what the VM-exit instruction-information field is made of (SDM 3C 27.2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operands {
    /// The memory operand, if there is one.
    pub memory: Option<MemoryOperand>,
    /// The register operand of ModRM.rm, if that is a register.
    pub rm: Option<Gpr>,
    /// The register operand of ModRM.reg, if there is one.
    pub reg: Option<Gpr>,
    /// The operand size in bytes: 2, 4 or 8; 0 where nobody asks.
    pub bytes: u8,
}

impl Operands {
    /// No operands.
    pub const NONE: Self = Self { memory: None, rm: None, reg: None, bytes: 0 };
}

/// A memory operand as encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemoryOperand {
    /// The base register.
    pub base: Option<Gpr>,
    /// The index register.
    pub index: Option<Gpr>,
    /// log2 of the index's scale: 0 to 3.
    pub scale: u8,
    /// The segment register's number: ES 0, CS 1, SS 2, DS 3, FS 4, GS 5.
    pub segment: u8,
    /// The address size in bytes: 2, 4 or 8.
    pub address_bytes: u8,
    /// The displacement, sign-extended; with RIP-relative addressing, the next instruction's address plus it.
    pub displacement: u64,
}

/// What became of something that might be intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Not intercepted: carry on.
    Continue,
    /// Intercepted: the VM-exit has happened and the core now holds host state.
    Exited,
    /// Not intercepted, but an exception comes in its place: #VE for an EPT violation (SDM 3C 25.5.7), #GP(0), #UD.
    Raise(Exception),
}

/// What became of an instruction of the extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VirtDone {
    /// Done (or VMfail, shown in RFLAGS): go on with the next instruction.
    Next,
    /// Control has moved (an entry, or an exit): the core's rip is already right.
    Moved(Movement),
}

/// Which way control moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Movement {
    /// Into a guest.
    Entered,
    /// Out of a guest.
    Exited,
}

/// A processor's virtualization extension, as its CPU sees it.
pub trait Virt {
    /// The translation regime of the current context.
    fn regime(&self, core: &Core) -> Regime;

    /// Asks whether `trap` is intercepted, and if so performs the VM-exit.
    ///
    /// # Errors
    /// If the exit needs something that is not modelled.
    fn trap(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError>;

    /// Executes an instruction of the extension. Operand faults are raised by the CPU before; this raises #UD, #GP
    /// and VM-exits of the instruction itself.
    ///
    /// # Errors
    /// The exception to deliver, or what is not modelled.
    fn instruction(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault>;

    /// What MOV from CR0 or CR4 shows (VMX read shadows, SDM 3C 25.3); `actual` elsewhere.
    fn cr_read(&self, ground: &Ground, register: ControlRegister, actual: u64) -> u64;

    /// The value that MOV to CR0 or CR4 gives the register, from the operand and the current value (VMX guest/host
    /// masks, SDM 3C 25.3); `operand` elsewhere.
    fn cr_write(&self, ground: &Ground, register: ControlRegister, current: u64, operand: u64) -> u64;

    /// Bits of CR0 and CR4 that may not be changed now, as (must be 1, must be 0) for the register (SDM 3C 23.8 in VMX
    /// operation).
    fn cr_fixed(&self, register: ControlRegister) -> (u64, u64);

    /// Reads an MSR that belongs to the extension; none if it has no such MSR.
    fn rdmsr(&self, core: &Core, index: u32) -> Option<Result<u64, Exception>>;

    /// Whether the extension wants to be asked [`Trap::Retired`] and [`Trap::Window`] around the next instruction. Cheap:
    /// it is asked before every one.
    fn attention(&self, core: &Core) -> bool {
        let _ = core;
        false
    }

    /// What the extension holds back, beside the processor's own flags and blocking.
    fn held(&self, core: &Core) -> HeldEvents {
        let _ = core;
        HeldEvents::empty()
    }

    /// What RDTSC shows at a time: offset and scaling (SDM 3C 25.3; APM2 15.30.5).
    fn tsc(&self, ground: &Ground, now: u64) -> u64 {
        let _ = ground;
        now
    }

    /// Writes an MSR that belongs to the extension; none if it has no such MSR.
    fn wrmsr(&mut self, core: &mut Core, index: u32, value: u64) -> Option<Result<(), Exception>>;
}
