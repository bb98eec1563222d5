//! The VM-exit instruction-information field and the exit qualification of instructions with a memory operand (SDM 3C
//! 27.2.5, tables 27-8 to 27-14), from the operands as the CPU decoded them.

use cpu::Gpr;
use cpu::virt::{ExtensionOpcode, MemoryOperand, Operands, StringIo, TableInstruction};

/// The index register, or the base register, is invalid.
const NO_INDEX: u32 = 1 << 22;
const NO_BASE: u32 = 1 << 27;
/// Tables 27-11 and 27-14: the operand is a register.
const IS_REGISTER: u32 = 1 << 10;

/// Address size, bits 9:7: 0 for 16, 1 for 32, 2 for 64 bits.
const fn address_size(bytes: u8) -> u32 {
    let code = match bytes {
        2 => 0,
        4 => 1,
        _ => 2,
    };
    code << 7
}

/// The fields that every table has for a memory operand.
fn memory(operand: &MemoryOperand) -> u32 {
    let index = operand.index.map_or(NO_INDEX, |gpr| (gpr as u32) << 18);
    let base = operand.base.map_or(NO_BASE, |gpr| (gpr as u32) << 23);
    let scale = if operand.index.is_some() { u32::from(operand.scale & 3) } else { 0 };
    scale | address_size(operand.address_bytes) | u32::from(operand.segment & 7) << 15 | index | base
}

fn memory_of(operands: &Operands) -> u32 {
    operands.memory.as_ref().map_or(0, memory)
}

fn number(register: Option<Gpr>) -> u32 {
    register.map_or(0, |gpr| gpr as u32)
}

/// The displacement, which is the exit qualification; 0 without a memory operand.
pub(crate) fn displacement(operands: &Operands) -> u64 {
    operands.memory.map_or(0, |memory| memory.displacement)
}

/// INS and OUTS (table 27-8).
pub(crate) fn string_io(string: &StringIo) -> u32 {
    address_size(string.address_bytes) | u32::from(string.segment & 7) << 15
}

/// INVEPT, INVPCID and INVVPID (table 27-9): Reg2 is the type.
pub(crate) fn invalidation(operands: &Operands) -> u32 {
    memory_of(operands) | number(operands.reg) << 28
}

/// LGDT, LIDT, SGDT and SIDT (table 27-10); LLDT, LTR, SLDT and STR (table 27-11).
pub(crate) fn descriptor_table(instruction: TableInstruction, operands: &Operands) -> u32 {
    let identity = match instruction {
        TableInstruction::Sgdt | TableInstruction::Sldt => 0,
        TableInstruction::Sidt | TableInstruction::Str => 1,
        TableInstruction::Lgdt | TableInstruction::Lldt => 2,
        TableInstruction::Lidt | TableInstruction::Ltr => 3,
    };
    let is_wide = u32::from(operands.bytes >= 4) << 11;
    let form = match (instruction, operands.memory) {
        (TableInstruction::Sgdt | TableInstruction::Sidt | TableInstruction::Lgdt | TableInstruction::Lidt, _) => {
            memory_of(operands) | is_wide
        }
        (_, Some(operand)) => memory(&operand),
        (_, None) => IS_REGISTER | number(operands.rm) << 3,
    };
    form | identity << 28
}

/// RDRAND and RDSEED (table 27-12).
pub(crate) fn random(operands: &Operands) -> u32 {
    let size = match operands.bytes {
        2 => 0,
        4 => 1,
        _ => 2,
    };
    number(operands.rm) << 3 | size << 11
}

/// VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS and XSAVES (table 27-13).
pub(crate) fn memory_only(operands: &Operands) -> u32 {
    memory_of(operands)
}

/// VMREAD and VMWRITE (table 27-14): Reg2 holds the encoding.
pub(crate) fn field_access(operands: &Operands) -> u32 {
    let form = match operands.memory {
        Some(operand) => memory(&operand),
        None => IS_REGISTER | number(operands.rm) << 3,
    };
    form | number(operands.reg) << 28
}

/// An instruction of VMX; 0 for those without operands.
pub(crate) fn of_opcode(opcode: ExtensionOpcode, operands: &Operands) -> u32 {
    match opcode {
        ExtensionOpcode::Invept | ExtensionOpcode::Invvpid => invalidation(operands),
        ExtensionOpcode::Vmread | ExtensionOpcode::Vmwrite => field_access(operands),
        ExtensionOpcode::Vmclear | ExtensionOpcode::Vmptrld | ExtensionOpcode::Vmptrst | ExtensionOpcode::Vmxon => {
            memory_only(operands)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table 27-14 with `vmread [rax+rcx*4+0x10], rdx` and `vmread rbx, rdx`; table 27-10 with `lidt [rip]`.
    #[test]
    fn samples() {
        let memory = MemoryOperand {
            base: Some(Gpr::Rax),
            index: Some(Gpr::Rcx),
            scale: 2,
            segment: 3,
            address_bytes: 8,
            displacement: 0x10,
        };
        let operands = Operands { memory: Some(memory), rm: None, reg: Some(Gpr::Rdx), bytes: 8 };
        assert_eq!(field_access(&operands), 2 | 2 << 7 | 3 << 15 | 1 << 18 | 2 << 28);
        assert_eq!(displacement(&operands), 0x10);
        let operands = Operands { memory: None, rm: Some(Gpr::Rbx), reg: Some(Gpr::Rdx), bytes: 8 };
        assert_eq!(field_access(&operands), 3 << 3 | 1 << 10 | 2 << 28);
        let relative = MemoryOperand { segment: 3, address_bytes: 8, displacement: 0x1234, ..MemoryOperand::default() };
        let operands = Operands { memory: Some(relative), rm: None, reg: None, bytes: 8 };
        let expected = 2 << 7 | 1 << 11 | 3 << 15 | 1 << 22 | 1 << 27 | 3 << 28;
        assert_eq!(descriptor_table(TableInstruction::Lidt, &operands), expected);
        let operands = Operands { memory: None, rm: Some(Gpr::R9), reg: None, bytes: 4 };
        assert_eq!(descriptor_table(TableInstruction::Ltr, &operands), 9 << 3 | 1 << 10 | 3 << 28);
        assert_eq!(random(&operands), 9 << 3 | 1 << 11);
    }
}
