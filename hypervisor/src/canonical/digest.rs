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
use std::collections::{BTreeMap, BTreeSet};
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

static PASSING: LazyLock<BTreeSet<String>> =
    LazyLock::new(|| Field::ALL.iter().filter(|field| is_passing(**field)).map(|field| format!("{field:?}")).collect());

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
    fn plain(value: &impl std::hash::Hash) -> Self {
        Self { hash: hash::digest(value), renamed: false, passing: false }
    }
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
            Some(name) => Part { renamed: true, ..Part::plain(&name) },
            None => Part::plain(&value),
        }
    }

    fn parts(self, kind: &'static str, ordered: Ordered) -> Parts<'a> {
        Parts { digester: Self { meaning: Meaning::Number, ..self }, kind, ordered, parts: Vec::new(), key: None }
    }
}

/// Whether the order of parts means something even if they hold renamed frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ordered {
    Yes,
    UnlessRenamed,
}

/// Parts under way.
pub(super) struct Parts<'a> {
    digester: Digester<'a>,
    kind: &'static str,
    ordered: Ordered,
    parts: Vec<Part>,
    key: Option<Part>,
}

impl Parts<'_> {
    fn add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.parts.push(value.serialize(self.digester)?);
        Ok(())
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        if !LEFT_OUT.contains(&(self.kind, name)) {
            self.add(value)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Part {
        let renamed = self.parts.iter().any(|part| part.renamed);
        if renamed && self.ordered == Ordered::UnlessRenamed {
            self.parts.sort_unstable();
        }
        let hashes: Vec<u64> = self.parts.iter().map(|part| part.hash).collect();
        Part { renamed, ..Part::plain(&hashes) }
    }
}

macro_rules! numbers {
    ($($method:ident: $type:ty,)*) => {
        $(fn $method(self, value: $type) -> Result<Part, Error> {
            Ok(Part::plain(&value))
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
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_i128: i128, serialize_u128: u128,
        serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
    }

    fn serialize_u64(self, value: u64) -> Result<Part, Error> {
        Ok(self.word(value))
    }

    fn serialize_f32(self, value: f32) -> Result<Part, Error> {
        Ok(Part::plain(&value.to_bits()))
    }

    fn serialize_f64(self, value: f64) -> Result<Part, Error> {
        Ok(Part::plain(&value.to_bits()))
    }

    fn serialize_none(self) -> Result<Part, Error> {
        Ok(Part::plain(&"none"))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Part, Error> {
        let inner = value.serialize(self)?;
        Ok(Part { hash: hash::digest(&("some", inner.hash)), ..inner })
    }

    fn serialize_unit(self) -> Result<Part, Error> {
        Ok(Part::plain(&"unit"))
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<Part, Error> {
        Ok(Part::plain(&name))
    }

    fn serialize_unit_variant(self, name: &'static str, index: u32, variant: &'static str) -> Result<Part, Error> {
        let passing = name == "Field" && PASSING.contains(variant);
        Ok(Part { passing, ..Part::plain(&index) })
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
        Ok(Part { hash: hash::digest(&(index, inner.hash)), ..inner })
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
            let both = Part::plain(&(key.hash, value.hash));
            self.parts.push(Part { renamed: key.renamed || value.renamed, ..both });
        }
        Ok(())
    }

    fn end(self) -> Result<Part, Error> {
        Ok(self.finish())
    }
}
