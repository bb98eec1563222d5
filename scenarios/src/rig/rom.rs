//! The boot ROM for Bochs: no BIOS, no disk, no boot loader. From reset it goes to flat 32-bit mode and jumps to the kernel's
//! PVH entry (Xen's x86 HVM direct boot ABI) with EBX at the start info that [`super::pvh`] has laid into memory.
//!
//! Bochs takes host memory for guest memory block by block, in the order of the first touch, where its loader of RAM images
//! copies as if all blocks lay in a row. So the ROM touches the whole image in ascending order before anything else does.

use super::pvh::{ENTRY, IMAGE, IMAGE_END, STACK};
use iced_x86::code_asm::{CodeAssembler, al, cr0, ds, dword_ptr, eax, ebx, ecx, edi, edx, es, esi, esp, fs, gs, ss};
use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};
use sim_core::SimError;

/// Its size, and where its end is the end of the 4 GiB that 32 bits reach.
const SIZE: usize = 0x1_0000;
/// Where it is.
pub(super) const BASE: u32 = 0xffff_0000;

/// Parts of it.
const PROTECTED: u32 = 0x100;
const GDT: u32 = 0x200;
const GDTR: u32 = 0x218;
const RESET: u32 = 0xfff0;

/// Nothing, flat code, flat data.
const DESCRIPTORS: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: u16 = 0x8;
const DATA: u32 = 0x10;

/// The ROM.
///
/// # Errors
/// If it can't be assembled, which is a bug.
pub(super) fn build() -> Result<Vec<u8>, SimError> {
    let failed = |error: IcedError| SimError::internal(format!("the boot ROM: {error}"));
    let mut rom = vec![0xff; SIZE];
    let mut put = |at: u32, bytes: &[u8]| rom[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(0, &real().map_err(failed)?);
    put(PROTECTED, &protected().map_err(failed)?);
    for (at, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        put(at, &descriptor.to_le_bytes());
    }
    put(GDTR, &(DESCRIPTORS.len() as u16 * 8 - 1).to_le_bytes());
    put(GDTR + 2, &(BASE + GDT).to_le_bytes());
    put(RESET, &reset().map_err(failed)?);
    Ok(rom)
}

/// A near jump: CS keeps the base that reset gave it, which is the ROM's.
fn reset() -> Result<Vec<u8>, IcedError> {
    let mut encoder = Encoder::new(16);
    encoder.encode(&Instruction::with_branch(Code::Jmp_rel16, 0)?, RESET.into())?;
    Ok(encoder.take_buffer())
}

fn real() -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(16)?;
    code.cli()?;
    // No interrupt, and the 21st address line.
    code.mov(al, 0xff)?;
    code.out(0x21, al)?;
    code.out(0xa1, al)?;
    code.in_(al, 0x92)?;
    code.or(al, 2)?;
    code.out(0x92, al)?;
    let gdtr = MemoryOperand::new(Register::None, Register::None, 1, GDTR.into(), 2, false, Register::CS);
    code.add_instruction(Instruction::with1(Code::Lgdt_m1632, gdtr)?)?;
    // Caches on, protection on.
    code.mov(eax, cr0)?;
    code.and(eax, 0x9fff_ffff_u32)?;
    code.or(eax, 1)?;
    code.mov(cr0, eax)?;
    code.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, CODE, BASE + PROTECTED)?)?;
    code.assemble(0)
}

fn protected() -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(32)?;
    code.mov(eax, DATA)?;
    for segment in [ds, es, ss, fs, gs] {
        code.mov(segment, eax)?;
    }
    let mut touch = code.create_label();
    code.mov(edx, IMAGE)?;
    code.set_label(&mut touch)?;
    code.mov(eax, dword_ptr(edx))?;
    code.add(edx, 0x1_0000)?;
    code.cmp(edx, dword_ptr(IMAGE_END))?;
    code.jb(touch)?;
    for register in [eax, ecx, edx, esi, edi] {
        code.xor(register, register)?;
    }
    code.mov(ebx, IMAGE)?;
    code.mov(esp, STACK)?;
    code.jmp(dword_ptr(ENTRY))?;
    code.assemble((BASE + PROTECTED).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn decoded(rom: &[u8], bitness: u32, at: u32) -> Vec<String> {
        let mut decoder = Decoder::with_ip(bitness, &rom[at as usize..], at.into(), DecoderOptions::NONE);
        let mut all = Vec::new();
        while let Some(instruction) = Some(decoder.decode()).filter(|_| all.len() < 30) {
            all.push(format!("{:?} {:x}", instruction.code(), instruction.near_branch_target()));
            if !matches!(
                instruction.flow_control(),
                iced_x86::FlowControl::Next | iced_x86::FlowControl::ConditionalBranch
            ) {
                break;
            }
        }
        all
    }

    /// Reset goes to the first byte, that to the 32-bit part, and that to the kernel.
    #[test]
    fn goes_from_reset_to_the_kernel() {
        let rom = build().unwrap();
        assert_eq!(rom.len(), SIZE);
        assert_eq!(decoded(&rom, 16, RESET), ["Jmp_rel16 0"]);
        assert_eq!(decoded(&rom, 16, 0).last().unwrap(), "Jmp_ptr1632 0");
        assert_eq!(decoded(&rom, 32, PROTECTED).last().unwrap(), "Jmp_rm32 0");
    }
}
