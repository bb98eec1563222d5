//! The narrow hook through which a processor reaches its virtualization extension, and through which VMX and SVM see
//! the processor. The CPU asks three things: which translation regime is in force, whether something that is about to
//! happen is intercepted, and what an instruction of the extension itself does. Everything else stays on either side.

use crate::core::{Core, Gpr};
use crate::exec::Fault;
use serde::{Deserialize, Serialize};
use sim_core::addr::{Gpa, Gva, Hpa};
use sim_core::arch::access::Access;
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
    },
    /// Nested paging (APM2 15.25) in the host's paging mode at VMRUN.
    Npt {
        /// Nested CR3, raw.
        ncr3: u64,
        /// The host's control registers and EFER at VMRUN, which select the format of the nested tables.
        host: HostPaging,
    },
}

/// The host registers that nested paging uses (APM2 15.25.3 to 15.25.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct HostPaging {
    pub cr0: sim_core::arch::control::Cr0,
    pub cr4: sim_core::arch::control::Cr4,
    pub efer: sim_core::arch::control::Efer,
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
    /// What the walk found.
    pub kind: StageFaultKind,
}

/// Why a second-stage translation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageFaultKind {
    /// EPT violation; `allowed` has bit 0 readable, 1 writable, 2 executable: the AND over the entries walked, 0 where
    /// the walk met a non-present entry (SDM 3C table 27-7 bits 5:3).
    EptViolation {
        /// Bits 2:0 as described.
        allowed: u8,
    },
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
    /// An exception would be delivered; `length` is the length of the instruction for software exceptions.
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
    /// IN or OUT.
    Io {
        /// The port.
        port: u16,
        /// Operand bytes: 1, 2 or 4.
        bytes: u8,
        /// Whether it is IN.
        input: bool,
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
    /// WBINVD.
    Wbinvd,
    /// PAUSE.
    Pause,
    /// A second-stage translation failed.
    Stage(StageFault),
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
            Self::Invept { .. } => "INVEPT",
            Self::Invvpid { .. } => "INVVPID",
            Self::Vmrun(_) => "VMRUN",
            Self::Vmload(_) => "VMLOAD",
            Self::Vmsave(_) => "VMSAVE",
            Self::Stgi => "STGI",
            Self::Clgi => "CLGI",
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
}

/// What became of something that might be intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Not intercepted: carry on.
    Continue,
    /// Intercepted: the VM-exit has happened and the core now holds host state.
    Exited,
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

    /// Writes an MSR that belongs to the extension; none if it has no such MSR.
    fn wrmsr(&mut self, core: &mut Core, index: u32, value: u64) -> Option<Result<(), Exception>>;
}
