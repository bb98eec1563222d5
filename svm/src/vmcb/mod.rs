//! The virtual machine control block: one page of ordinary memory, in the layout of APM2 appendix B.
//!
//! Nothing of it is cached: VMRUN loads every field it needs, whatever the VMCB clean bits say. APM2 15.15 allows that
//! ("the processor may ignore the clean bits"); a stale cached field can therefore not be shown yet.
//!
//! The same functions serve the host save area, whose content APM2 15.30.4 leaves to the implementation: the model
//! gives it the layout of the VMCB's state save area.

mod field;
mod segment;

pub use field::Field;
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

/// Whether rAX may name a VMCB: page-aligned and below the physical-address limit (APM3 VMRUN).
#[must_use]
pub(crate) const fn is_valid_address(address: u64, maxphyaddr: u32) -> bool {
    address & PAGE_OFFSET_MASK == 0 && (maxphyaddr >= 64 || address >> maxphyaddr == 0)
}
