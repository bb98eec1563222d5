//! Guest memory as a kernel wants to find it when it is entered by its PVH entry: start info, memory map, command line, the
//! kernel's segments and the initramfs, in one image. Source: Xen's `start_info.h`, and the note `XEN_ELFNOTE_PHYS32_ENTRY`.

use object::Endianness;
use object::elf::{FileHeader64, NoteType, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use sim_core::SimError;

/// Where the image is: at 1 MiB, and the start info is its beginning.
pub(super) const IMAGE: u32 = 0x10_0000;
/// Where the ROM finds the kernel's entry and the end of the image.
pub(super) const ENTRY: u32 = IMAGE + 0xff0;
pub(super) const IMAGE_END: u32 = IMAGE + 0xff4;
/// Above a stack that nobody uses before the kernel has its own.
pub(super) const STACK: u32 = IMAGE + 0x1000;

/// Parts of the image, from its beginning.
const MODULES: usize = 0x100;
const MEMORY_MAP: usize = 0x200;
const COMMAND_LINE: usize = 0x1000;
const COMMAND_LINE_END: usize = 0x2000;

const MAGIC: u32 = 0x336e_c578;
const PHYS32_ENTRY: NoteType = NoteType(18);
const LARGE_PAGE: usize = 2 << 20;

/// A kernel's segments at their places, and its entry.
struct Kernel<'data> {
    segments: Vec<(usize, &'data [u8])>,
    end: usize,
    entry: u32,
}

/// The image.
///
/// # Errors
/// If the kernel is no ELF file with a PVH entry, or the command line too long.
pub(super) fn image(vmlinux: &[u8], initramfs: &[u8], line: &str, memory: u64) -> Result<Vec<u8>, SimError> {
    let kernel = kernel(vmlinux)?;
    if line.len() >= COMMAND_LINE_END - COMMAND_LINE {
        return Err(SimError::internal("a command line of more than 4 KiB"));
    }
    let base = IMAGE as usize;
    let module = kernel.end.next_multiple_of(LARGE_PAGE);
    let mut image = vec![0; module + initramfs.len() - base];
    let image_end = (base + image.len()) as u32;
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let at = |part: usize| (base + part) as u64;
    // Magic, version, flags, number of modules; modules, command line, no ACPI, memory map; its length.
    put(0, &words(&[MAGIC, 1, 0, 1]));
    put(16, &quads(&[at(MODULES), at(COMMAND_LINE), 0, at(MEMORY_MAP)]));
    let map = [(0, 0x9_fc00, 1), (0xf_0000, 0x1_0000, 2), (IMAGE.into(), memory - u64::from(IMAGE), 1)];
    put(48, &words(&[map.len() as u32, 0]));
    put(MODULES, &quads(&[module as u64, initramfs.len() as u64, 0, 0]));
    for (index, (from, bytes, kind)) in map.into_iter().enumerate() {
        put(MEMORY_MAP + 24 * index, &quads(&[from, bytes, kind]));
    }
    put((ENTRY - IMAGE) as usize, &words(&[kernel.entry, image_end]));
    put(COMMAND_LINE, line.as_bytes());
    for (place, bytes) in kernel.segments {
        put(place - base, bytes);
    }
    put(module - base, initramfs);
    Ok(image)
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn quads(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn kernel(vmlinux: &[u8]) -> Result<Kernel<'_>, SimError> {
    let wrong = |what: &str| SimError::unmodelled(format!("a kernel {what}"));
    let broken = |error: object::read::Error| wrong(&format!("that is no 64-bit ELF file: {error}"));
    let header = FileHeader64::<Endianness>::parse(vmlinux).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let mut kernel = Kernel { segments: Vec::new(), end: 0, entry: 0 };
    for segment in header.program_headers(endian, vmlinux).map_err(broken)? {
        match segment.p_type(endian) {
            PT_LOAD => {
                let bytes = segment.data(endian, vmlinux).map_err(|()| wrong("whose segments are not in its file"))?;
                let at = segment.p_paddr(endian) as usize;
                if at < IMAGE as usize + COMMAND_LINE_END {
                    return Err(wrong("that wants the first megabyte"));
                }
                kernel.end = kernel.end.max(at + segment.p_memsz(endian) as usize);
                kernel.segments.push((at, bytes));
            }
            PT_NOTE => {
                let Some(mut notes) = segment.notes(endian, vmlinux).map_err(broken)? else { continue };
                while let Some(note) = notes.next().map_err(broken)? {
                    if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                        let bytes = note.desc().iter().take(4).rev();
                        kernel.entry = bytes.fold(0, |word, byte| word << 8 | u32::from(*byte));
                    }
                }
            }
            _ => {}
        }
    }
    if kernel.segments.is_empty() || kernel.entry == 0 {
        return Err(wrong("without a PVH entry"));
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused() {
        for bytes in [&b""[..], b"#!/bin/sh", &[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]] {
            assert!(matches!(image(bytes, b"", "", 1 << 30), Err(SimError::Unmodelled { .. })));
        }
    }
}
