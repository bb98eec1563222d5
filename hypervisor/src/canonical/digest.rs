//! The digest of any value that can be serialised, with host frames under their canonical names.
//!
//! Every part of a value becomes 64 bits. A sequence or map that holds a renamed frame is taken without its order: in
//! sets and maps the order is that of host addresses. What a state need not remember is left out by the tables here.

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
    SerializeTupleVariant, Serializer,
};
use sim_core::addr::{ENTRY_FRAME_MASK, Hfn, Hpa};
use sim_core::hash;
use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::LazyLock;
use vmx::Field;
use vmx::vmcs::field::Kind;

/// Fields that no later behaviour depends on, or that the digest treats by itself: time, counters, allocation order, and
/// where a guest's code happens to stand.
const LEFT_OUT: &[(&str, &str)] = &[
    ("Vm", "frames"),
    ("Vm", "stats"),
    ("Vm", "warned"),
    ("Pages", "made"),
    ("ShadowPage", "made"),
    ("Vcpu", "gprs"),
    ("Vcpu", "rip"),
    ("Vcpu", "rflags"),
    ("Vcpu", "cr2"),
    ("Vcpu", "last_retry"),
    ("Vcpu", "resident"),
    ("VmxState", "last_ept_violation"),
];

/// VMCS fields of the same kind: exit information, and where the guest's code stands.
pub(super) fn is_passing(field: Field) -> bool {
    field.kind() == Kind::Information
        || matches!(field, Field::GuestRip | Field::GuestRsp | Field::GuestRflags | Field::GuestPendingDebug)
}

/// Whether a field is left out, by its number as a variant, which is its place in the table.
static PASSING: LazyLock<Vec<bool>> = LazyLock::new(|| Field::ALL.iter().copied().map(is_passing).collect());

/// Canonical names of host frames. A frame without one keeps its number.
pub(super) type Names = BTreeMap<Hfn, u64>;

/// An entry or address with its frame under its canonical name; none if the frame has none.
pub(super) fn renamed(names: &Names, word: u64) -> Option<(u64, u64)> {
    let name = names.get(&Hpa(word & ENTRY_FRAME_MASK).frame())?;
    Some((*name, word & !ENTRY_FRAME_MASK))
}

/// What a part of a value became.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) hash: u64,
    /// It holds a frame that was renamed.
    renamed: bool,
    /// It names a VMCS field that is left out.
    passing: bool,
}

impl Part {
    const fn plain(word: u64) -> Self {
        Self { hash: fold(FIRST, word), renamed: false, passing: false }
    }
}

/// What the digest of a renamed frame begins with: a name is no number.
const NAMED: u64 = 0x8bb8_4b93_962e_acc9;

/// The digest of nothing.
pub(super) const FIRST: u64 = 0x2d35_8dcc_aa6c_78a5;

/// A digest with one word more: both halves of a 128-bit product, each factor under a key, then mixed so that every bit
/// counts wherever digests are added. The state hash would do, but is made for long streams.
pub(super) const fn fold(digest: u64, word: u64) -> u64 {
    let product = (digest ^ 0x9e37_79b9_7f4a_7c15) as u128 * (word ^ 0xa076_1d64_78bd_642f) as u128;
    let folded = (product as u64 ^ (product >> 64) as u64 ^ word.rotate_left(32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    folded ^ (folded >> 29)
}

/// How an integer is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Number,
    Address,
    Frame,
}

/// The serializer.
#[derive(Clone, Copy)]
pub(super) struct Digester<'a> {
    names: &'a Names,
    meaning: Meaning,
}

impl<'a> Digester<'a> {
    pub(super) const fn new(names: &'a Names) -> Self {
        Self { names, meaning: Meaning::Number }
    }

    fn word(self, value: u64) -> Part {
        let name = match self.meaning {
            Meaning::Number => None,
            Meaning::Address => renamed(self.names, value),
            Meaning::Frame => self.names.get(&Hfn(value)).map(|name| (*name, 0)),
        };
        match name {
            Some((name, rest)) => Part { hash: fold(fold(NAMED, name), rest), renamed: true, passing: false },
            None => Part::plain(value),
        }
    }

    fn parts(self, kind: &'static str, ordered: Ordered) -> Parts<'a> {
        Parts {
            digester: Self { meaning: Meaning::Number, ..self },
            kind,
            whole: !LEFT_OUT.iter().any(|(of, _)| *of == kind),
            ordered,
            count: 0,
            sequence: FIRST,
            sum: 0,
            renamed: false,
            key: None,
        }
    }
}

/// Whether the order of parts means something even if they hold renamed frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ordered {
    Yes,
    UnlessRenamed,
}

/// Parts under way: their digest in order, and the sum of their digests, which has none.
pub(super) struct Parts<'a> {
    digester: Digester<'a>,
    kind: &'static str,
    /// Nothing of it is left out.
    whole: bool,
    ordered: Ordered,
    count: u64,
    sequence: u64,
    sum: u64,
    renamed: bool,
    key: Option<Part>,
}

impl Parts<'_> {
    const fn push(&mut self, part: Part) {
        self.count += 1;
        self.sequence = fold(self.sequence, part.hash);
        self.sum = self.sum.wrapping_add(part.hash);
        self.renamed |= part.renamed;
    }

    fn add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.push(value.serialize(self.digester)?);
        Ok(())
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        if self.whole || !LEFT_OUT.contains(&(self.kind, name)) {
            self.add(value)?;
        }
        Ok(())
    }

    fn finish(self) -> Part {
        let of_set = self.renamed && self.ordered == Ordered::UnlessRenamed;
        let hash = fold(if of_set { self.sum } else { self.sequence }, self.count);
        Part { hash, renamed: self.renamed, passing: false }
    }
}

macro_rules! numbers {
    ($($method:ident: $type:ty,)*) => {
        $(fn $method(self, value: $type) -> Result<Part, Error> {
            Ok(Part::plain(value as u64))
        })*
    };
}

impl<'a> Serializer for Digester<'a> {
    type Ok = Part;
    type Error = Error;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    fn is_human_readable(&self) -> bool {
        false
    }

    numbers! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_char: char,
    }

    fn serialize_i128(self, value: i128) -> Result<Part, Error> {
        self.serialize_u128(value as u128)
    }

    fn serialize_u128(self, value: u128) -> Result<Part, Error> {
        Ok(Part { hash: fold(fold(FIRST, value as u64), (value >> 64) as u64), renamed: false, passing: false })
    }

    fn serialize_str(self, value: &str) -> Result<Part, Error> {
        self.serialize_bytes(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<Part, Error> {
        Ok(Part::plain(hash::digest(value)))
    }

    fn serialize_u64(self, value: u64) -> Result<Part, Error> {
        Ok(self.word(value))
    }

    fn serialize_f32(self, value: f32) -> Result<Part, Error> {
        Ok(Part::plain(u64::from(value.to_bits())))
    }

    fn serialize_f64(self, value: f64) -> Result<Part, Error> {
        Ok(Part::plain(value.to_bits()))
    }

    fn serialize_none(self) -> Result<Part, Error> {
        Ok(Part::plain(0))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Part, Error> {
        let inner = value.serialize(self)?;
        Ok(Part { hash: fold(1, inner.hash), ..inner })
    }

    fn serialize_unit(self) -> Result<Part, Error> {
        Ok(Part::plain(0))
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Part, Error> {
        Ok(Part::plain(0))
    }

    fn serialize_unit_variant(self, name: &'static str, index: u32, _: &'static str) -> Result<Part, Error> {
        let passing = name == "Field" && PASSING.get(index as usize).copied().unwrap_or_default();
        Ok(Part { passing, ..Part::plain(u64::from(index)) })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<Part, Error> {
        let meaning = match name {
            "Hpa" => Meaning::Address,
            "Hfn" => Meaning::Frame,
            _ => Meaning::Number,
        };
        value.serialize(Self { meaning, ..self })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<Part, Error> {
        let inner = value.serialize(Self { meaning: Meaning::Number, ..self })?;
        Ok(Part { hash: fold(u64::from(index), inner.hash), ..inner })
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'a>, Error> {
        Ok(self.parts("", Ordered::UnlessRenamed))
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, Error> {
        Ok(self.parts("", Ordered::Yes))
    }

    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Parts<'a>, Error> {
        Ok(self.parts(name, Ordered::Yes))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Error> {
        let mut parts = self.parts("", Ordered::Yes);
        parts.add(&index)?;
        Ok(parts)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Parts<'a>, Error> {
        Ok(self.parts("", Ordered::UnlessRenamed))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Parts<'a>, Error> {
        Ok(self.parts(name, Ordered::Yes))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Error> {
        let mut parts = self.parts(name, Ordered::Yes);
        parts.add(&index)?;
        Ok(parts)
    }
}

macro_rules! sequences {
    ($($trait:ident::$method:ident,)*) => {
        $(impl $trait for Parts<'_> {
            type Ok = Part;
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.add(value)
            }

            fn end(self) -> Result<Part, Error> {
                Ok(self.finish())
            }
        })*
    };
}

sequences! {
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
}

macro_rules! structures {
    ($($trait:ident,)*) => {
        $(impl $trait for Parts<'_> {
            type Ok = Part;
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.field(name, value)
            }

            fn end(self) -> Result<Part, Error> {
                Ok(self.finish())
            }
        })*
    };
}

structures! { SerializeStruct, SerializeStructVariant, }

impl SerializeMap for Parts<'_> {
    type Ok = Part;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.key = Some(key.serialize(self.digester)?);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let key = self.key.take().ok_or(Error)?;
        if !key.passing {
            let value = value.serialize(self.digester)?;
            let hash = fold(key.hash, value.hash);
            self.push(Part { hash, renamed: key.renamed || value.renamed, passing: false });
        }
        Ok(())
    }

    fn end(self) -> Result<Part, Error> {
        Ok(self.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(value: &impl Serialize, names: &Names) -> u64 {
        value.serialize(Digester::new(names)).map(|part| part.hash).expect("it can be serialised")
    }

    /// A field's number as a variant is its place in the table of fields: what is left out depends on it.
    #[test]
    fn fields_are_numbered_by_place() {
        let names = Names::new();
        for field in Field::ALL {
            let part = field.serialize(Digester::new(&names)).expect("a variant");
            assert_eq!(part.passing, is_passing(*field), "{field:?}");
        }
    }

    /// Sets of renamed frames have no order, everything else has; and a name is not the number that it is.
    #[test]
    fn order_counts_unless_renamed() {
        let names = Names::from([(Hfn(7), 1), (Hfn(8), 2)]);
        let (one, other) = (vec![Hfn(7), Hfn(8)], vec![Hfn(8), Hfn(7)]);
        assert_eq!(digest(&one, &names), digest(&other, &names));
        assert_ne!(digest(&one, &Names::new()), digest(&other, &Names::new()));
        assert_ne!(digest(&(Hfn(7), Hfn(8)), &names), digest(&(Hfn(8), Hfn(7)), &names));
        assert_ne!(digest(&Hfn(7), &names), digest(&Hfn(1), &names));
        let swapped = Names::from([(Hfn(7), 2), (Hfn(8), 1)]);
        assert_eq!(digest(&one, &names), digest(&one, &swapped));
        assert_ne!(digest(&vec![Hfn(7), Hfn(7)], &names), digest(&one, &names));
    }

    /// Words that differ in one bit, and digests that do, give digests that differ in many.
    #[test]
    fn folding_mixes() {
        for (bit, words) in (0..64).flat_map(|bit| [0, 1, 0xfff, u64::MAX].map(|word| (bit, word))) {
            for (one, other) in [
                (fold(FIRST, words), fold(FIRST, words ^ 1 << bit)),
                (fold(words, 0x1000), fold(words ^ 1 << bit, 0x1000)),
            ] {
                assert!((one ^ other).count_ones() >= 8, "bit {bit} of {words:#x}");
            }
        }
    }
}
