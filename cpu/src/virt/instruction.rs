//! The extension's own instructions, and what an exit tells of any instruction (SDM 3C 27.2.5, 30; APM2 15).

use super::EventKind;
use crate::core::{Blocking, Gpr};
use serde::{Deserialize, Serialize};
use sim_core::addr::Gva;

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
