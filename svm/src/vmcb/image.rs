//! What VMRUN sees of a VMCB: its bytes, some of which may be those of an earlier VMRUN (APM2 15.15).

use super::clean::CleanBits;
use super::{Field, SegmentField, TableField, unpack};
use serde::{Deserialize, Serialize};
use sim_core::Hpa;
use sim_core::arch::segment::{Segment, TableRegister};
use sim_core::memory::PhysMem;

/// Bytes of a VMCB that hold everything VMRUN loads.
const BYTES: usize = 0x700;

/// The part of a VMCB that VMRUN loads, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Image {
    bytes: Vec<u8>,
}

/// A run of bytes of a VMCB, and the clean bit that covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    offset: usize,
    bytes: usize,
    clean: CleanBits,
}

/// Every field and register that a clean bit covers.
fn spans() -> impl Iterator<Item = Span> {
    let field = |field: &Field| Span { offset: field.offset() as usize, bytes: field.bytes(), clean: field.clean() };
    let segment = |field: &SegmentField| Span { offset: field.offset() as usize, bytes: 16, clean: field.clean() };
    let table = |field: &TableField| Span { offset: field.offset() as usize, bytes: 16, clean: CleanBits::DT };
    let all = Field::ALL.iter().map(field).chain(SegmentField::ALL.iter().map(segment));
    all.chain(TableField::ALL.iter().map(table)).filter(|span| !span.clean.is_empty())
}

impl Image {
    /// What memory holds.
    #[must_use]
    pub fn read(mem: &PhysMem, vmcb: Hpa) -> Self {
        let mut bytes = vec![0; BYTES];
        mem.read_bytes(vmcb, &mut bytes);
        Self { bytes }
    }

    fn get(&self, offset: usize, bytes: usize) -> u64 {
        let mut value = [0; 8];
        if let Some(from) = self.bytes.get(offset..offset + bytes) {
            value[..bytes].copy_from_slice(from);
        }
        u64::from_le_bytes(value)
    }

    /// One field, zero-extended.
    #[must_use]
    pub fn field(&self, field: Field) -> u64 {
        self.get(field.offset() as usize, field.bytes())
    }

    /// Changes one field; bits of `value` beyond its width are dropped.
    pub fn set(&mut self, field: Field, value: u64) {
        let at = field.offset() as usize;
        if let Some(to) = self.bytes.get_mut(at..at + field.bytes()) {
            to.copy_from_slice(&value.to_le_bytes()[..field.bytes()]);
        }
    }

    /// A segment register.
    #[must_use]
    pub fn segment(&self, field: SegmentField) -> Segment {
        let at = field.offset() as usize;
        Segment {
            selector: self.get(at, 2) as u16,
            rights: unpack(self.get(at + 2, 2) as u16),
            limit: self.get(at + 4, 4) as u32,
            base: self.get(at + 8, 8),
        }
    }

    /// GDTR or IDTR; only bits 15:0 of the limit count (APM2 table B-2).
    #[must_use]
    pub fn table(&self, field: TableField) -> TableRegister {
        let at = field.offset() as usize;
        TableRegister { limit: self.get(at + 4, 2) as u16, base: self.get(at + 8, 8) }
    }

    /// Takes the fields of these groups from another image.
    pub(crate) fn overlay(&mut self, other: &Self, groups: CleanBits) {
        for span in spans().filter(|span| groups.contains(span.clean)) {
            let range = span.offset..span.offset + span.bytes;
            if let (Some(to), Some(from)) = (self.bytes.get_mut(range.clone()), other.bytes.get(range)) {
                to.copy_from_slice(from);
            }
        }
    }

    /// The groups in which two images differ.
    #[must_use]
    pub fn differing(&self, other: &Self) -> CleanBits {
        let differs = |span: &Span| {
            let range = span.offset..span.offset + span.bytes;
            self.bytes.get(range.clone()) != other.bytes.get(range)
        };
        spans().filter(differs).fold(CleanBits::empty(), |groups, span| groups | span.clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmcb;

    const VMCB: Hpa = Hpa(0x1000);

    /// An image shows what the accessors of memory show, field by field.
    #[test]
    fn image_and_memory_agree() {
        let mut mem = PhysMem::new(2);
        for at in 0..0x1000_u64 {
            mem.write(VMCB.offset(at), (at * 7 + 3) & 0xff, 1);
        }
        let mut image = Image::read(&mem, VMCB);
        for field in Field::ALL {
            assert_eq!(image.field(*field), vmcb::read(&mem, VMCB, *field), "{}", field.name());
            image.set(*field, 0x1122_3344_5566_7788);
            vmcb::write(&mut mem, VMCB, *field, 0x1122_3344_5566_7788);
            assert_eq!(image, Image::read(&mem, VMCB), "{}", field.name());
        }
        for field in SegmentField::ALL {
            assert_eq!(image.segment(field), vmcb::read_segment(&mem, VMCB, field));
        }
        for field in TableField::ALL {
            assert_eq!(image.table(field), vmcb::read_table(&mem, VMCB, field));
        }
        println!("{} fields by image and by memory", Field::ALL.len());
    }

    /// Each group's overlay changes that group and nothing else, and every clean bit covers something.
    #[test]
    fn groups_are_disjoint() {
        let mut mem = PhysMem::new(2);
        let zero = Image::read(&mem, VMCB);
        mem.write_bytes(VMCB, &[0xff; 0x1000]);
        let ones = Image::read(&mem, VMCB);
        assert_eq!(zero.differing(&ones), CleanBits::all());
        for group in CleanBits::all().iter() {
            let mut mixed = zero.clone();
            mixed.overlay(&ones, group);
            assert_eq!(mixed.differing(&zero), group);
            assert_eq!(mixed.differing(&ones), CleanBits::all() - group);
        }
    }
}
