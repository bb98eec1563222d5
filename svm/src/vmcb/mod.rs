//! The virtual machine control block: one page of ordinary memory, in the layout of APM2 appendix B.
//!
//! What VMRUN loads is an [`Image`] of it, in which fields under a clean bit come from the processor's copy and not from
//! memory. Offsets that have no name keep what software puts there.
//!
//! The same functions serve the host save area, whose content APM2 15.30.4 leaves to the implementation: the model
//! gives it the layout of the VMCB's state save area.

mod cache;
mod clean;
mod field;
mod image;
mod segment;

pub(crate) use cache::VmcbCache;
pub use clean::CleanBits;
pub use field::Field;
pub use image::Image;
pub use segment::{SegmentField, TableField, pack, unpack};

use sim_core::addr::{Hpa, PAGE_OFFSET_MASK};
use sim_core::arch::segment::{Segment, TableRegister};
use sim_core::memory::PhysMem;

/// Reads one field, zero-extended.
#[must_use]
pub fn read(mem: &PhysMem, vmcb: Hpa, field: Field) -> u64 {
    mem.read(vmcb.offset(u64::from(field.offset())), field.bytes())
}

/// Writes one field; bits of `value` beyond its width are dropped.
pub fn write(mem: &mut PhysMem, vmcb: Hpa, field: Field, value: u64) {
    mem.write(vmcb.offset(u64::from(field.offset())), value, field.bytes());
}

/// Reads a segment register's 16 bytes: selector, attributes, limit, base.
#[must_use]
pub fn read_segment(mem: &PhysMem, vmcb: Hpa, field: SegmentField) -> Segment {
    let at = vmcb.offset(u64::from(field.offset()));
    Segment {
        selector: mem.read(at, 2) as u16,
        rights: unpack(mem.read(at.offset(2), 2) as u16),
        limit: mem.read_u32(at.offset(4)),
        base: mem.read_u64(at.offset(8)),
    }
}

/// Writes a segment register's 16 bytes.
pub fn write_segment(mem: &mut PhysMem, vmcb: Hpa, field: SegmentField, segment: &Segment) {
    let at = vmcb.offset(u64::from(field.offset()));
    mem.write(at, u64::from(segment.selector), 2);
    mem.write(at.offset(2), u64::from(pack(segment.rights)), 2);
    mem.write_u32(at.offset(4), segment.limit);
    mem.write_u64(at.offset(8), segment.base);
}

/// Reads GDTR or IDTR; only bits 15:0 of the limit count (APM2 table B-2).
#[must_use]
pub fn read_table(mem: &PhysMem, vmcb: Hpa, field: TableField) -> TableRegister {
    let at = vmcb.offset(u64::from(field.offset()));
    TableRegister { limit: mem.read(at.offset(4), 2) as u16, base: mem.read_u64(at.offset(8)) }
}

/// Writes GDTR or IDTR; selector and attributes are reserved and stay.
pub fn write_table(mem: &mut PhysMem, vmcb: Hpa, field: TableField, table: TableRegister) {
    let at = vmcb.offset(u64::from(field.offset()));
    mem.write_u32(at.offset(4), u32::from(table.limit));
    mem.write_u64(at.offset(8), table.base);
}

/// Where the guest instruction bytes begin, and how many there are at most (APM2 table B-1, 0D0h).
const INSTRUCTION_BYTES: (u64, usize) = (0xd1, 15);

/// Writes the number of bytes fetched, and the bytes; more than 15 are dropped, and fewer leave the rest as it is.
pub fn write_instruction(mem: &mut PhysMem, vmcb: Hpa, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(INSTRUCTION_BYTES.1)];
    write(mem, vmcb, Field::BytesFetched, bytes.len() as u64);
    mem.write_bytes(vmcb.offset(INSTRUCTION_BYTES.0), bytes);
}

/// Whether rAX may name a VMCB: page-aligned and below the physical-address limit (APM3 VMRUN).
#[must_use]
pub(crate) const fn is_valid_address(address: u64, maxphyaddr: u32) -> bool {
    address & PAGE_OFFSET_MASK == 0 && (maxphyaddr >= 64 || address >> maxphyaddr == 0)
}
