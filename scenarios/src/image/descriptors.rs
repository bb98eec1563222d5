//! Descriptor tables: one GDT for all, an IDT and a task-state segment a vCPU and level (SDM 3A 3.4.5, 6.11, 7.7).

use super::layout::{GDT, HANDLER_BYTES, HANDLERS32, HANDLERS64, IDT32, Seat, VECTORS};
use crate::file::Mode;
use sim_core::Gpa;
use sim_core::arch::segment::{Rights, Segment, TableRegister};

/// Ring-0 64-bit code.
pub const CODE64: u16 = 0x08;
/// Ring-0 data.
pub const DATA: u16 = 0x10;
/// Ring-0 32-bit code.
pub const CODE32: u16 = 0x18;
/// Ring-3 data.
pub const USER_DATA: u16 = 0x23;
/// Ring-3 64-bit code.
pub const USER_CODE64: u16 = 0x2b;
/// Ring-3 32-bit code.
pub const USER_CODE32: u16 = 0x33;
/// The task-state segment. No instruction loads it: TR is set with the other registers.
pub const TSS: u16 = 0x38;

/// A descriptor from its access byte and flags, flat over 4 GiB.
const fn flat(access: u64, flags: u64) -> u64 {
    0x000f_0000_0000_ffff | access << 40 | flags << 52
}

/// The GDT's content. Accessed bits are set, so that loading a segment never writes.
const DESCRIPTORS: [u64; 7] =
    [0, flat(0x9b, 0xa), flat(0x93, 0xc), flat(0x9b, 0xc), flat(0xf3, 0xc), flat(0xfb, 0xa), flat(0xfb, 0xc)];

/// GDTR.
#[must_use]
pub const fn gdtr() -> TableRegister {
    TableRegister { base: GDT.0, limit: (DESCRIPTORS.len() * 8 - 1) as u16 }
}

/// The GDT as bytes.
#[must_use]
pub fn gdt() -> Vec<u8> {
    DESCRIPTORS.iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect()
}

/// IDTR for code of a mode.
#[must_use]
pub fn idtr(seat: Seat, mode: Mode) -> TableRegister {
    if mode.is_long() {
        TableRegister { base: seat.idt().0, limit: (VECTORS * 16 - 1) as u16 }
    } else {
        TableRegister { base: seat.idt().offset(IDT32).0, limit: (VECTORS * 8 - 1) as u16 }
    }
}

/// Vector 3 may be raised from ring 3: it is how user code comes back.
const fn dpl(vector: u64) -> u64 {
    if vector == 3 { 3 } else { 0 }
}

/// Both IDTs of a seat as one page.
#[must_use]
pub fn idt(seat: Seat) -> Vec<u8> {
    let handler = |base: u64, vector: u64| seat.slot().0 + base + vector * HANDLER_BYTES;
    let low = |selector: u16, offset: u64, vector: u64| {
        (offset & 0xffff) | u64::from(selector) << 16 | (0x8e | dpl(vector) << 5) << 40 | (offset >> 16 & 0xffff) << 48
    };
    let long = (0..VECTORS).flat_map(|vector| {
        let offset = handler(HANDLERS64, vector);
        [low(CODE64, offset, vector), offset >> 32]
    });
    let legacy = (0..VECTORS).map(|vector| low(CODE32, handler(HANDLERS32, vector), vector));
    let mut page: Vec<u8> = long.flat_map(u64::to_le_bytes).collect();
    page.resize(IDT32 as usize, 0);
    page.extend(legacy.flat_map(u64::to_le_bytes));
    page
}

/// The task-state segment: only the ring-0 stack matters, which both layouts keep at offset 4 (SS0 at 8 in 32-bit code
/// overlaps the upper half of RSP0, which is zero as DATA must not be; so each has its own copy).
#[must_use]
pub fn tss(seat: Seat, mode: Mode) -> Vec<u8> {
    let mut bytes = vec![0; 0x68];
    let stack = seat.stack().0;
    if mode.is_long() {
        bytes[4..12].copy_from_slice(&stack.to_le_bytes());
    } else {
        bytes[4..8].copy_from_slice(&(stack as u32).to_le_bytes());
        bytes[8..10].copy_from_slice(&DATA.to_le_bytes());
    }
    bytes[0x66..0x68].copy_from_slice(&0x68u16.to_le_bytes());
    bytes
}

/// Where a seat's task-state segment is.
#[must_use]
pub fn tss_at(seat: Seat, mode: Mode) -> Gpa {
    seat.data().offset(if mode.is_long() { 0 } else { 0x100 })
}

/// The segment registers that code of a mode starts with.
#[must_use]
pub fn segments(seat: Seat, mode: Mode) -> cpu::core::Segments {
    let data = Segment::flat(DATA, Rights::DATA);
    let cs = if mode.is_long() { Segment::flat(CODE64, Rights::CODE64) } else { Segment::flat(CODE32, Rights::CODE32) };
    cpu::core::Segments {
        es: data,
        cs,
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        ldtr: Segment { rights: Rights::UNUSABLE, ..Segment::default() },
        tr: Segment { selector: TSS, base: tss_at(seat, mode).0, limit: 0x67, rights: Rights::BUSY_TSS },
    }
}

/// Everything that does not depend on the scenario's spaces, as (address, bytes).
#[must_use]
pub fn all(vcpus: u8) -> Vec<(Gpa, Vec<u8>)> {
    use crate::file::Actor;
    let mut parts = vec![(GDT, gdt())];
    for vcpu in 0..vcpus {
        for level in [Actor::L1, Actor::L2, Actor::Smm] {
            let seat = Seat { vcpu, level };
            parts.push((seat.idt(), idt(seat)));
            for mode in [Mode::Long4, Mode::Pae] {
                parts.push((tss_at(seat, mode), tss(seat, mode)));
            }
        }
    }
    parts
}
