//! The serde serializer that builds a [`Node`].

use super::{Node, SHORT_ARRAY, TreeError};
use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use std::fmt::Display;

impl Error for TreeError {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Builds one node. `is_byte` is set if that node is a `u8`: a node does not keep an integer's width.
#[derive(Default)]
pub(super) struct TreeSerializer<'a> {
    is_byte: Option<&'a mut bool>,
}

/// Elements collected so far: as bytes while all are bytes, so that a frame of memory does not become 4096 nodes.
pub(super) enum Items {
    Bytes(Vec<u8>),
    Nodes(Vec<Node>),
}

impl Items {
    const fn new() -> Self {
        Self::Bytes(Vec::new())
    }

    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TreeError> {
        let mut is_byte = false;
        let node = value.serialize(TreeSerializer { is_byte: Some(&mut is_byte) })?;
        match (&mut *self, &node) {
            (Self::Bytes(bytes), Node::Unsigned(byte)) if is_byte => bytes.push(*byte as u8),
            (Self::Nodes(nodes), _) => nodes.push(node),
            (Self::Bytes(_), _) => {
                let mut nodes = std::mem::replace(self, Self::new()).into_nodes();
                nodes.push(node);
                *self = Self::Nodes(nodes);
            }
        }
        Ok(())
    }

    fn into_nodes(self) -> Vec<Node> {
        match self {
            Self::Bytes(bytes) => bytes.into_iter().map(|byte| Node::Unsigned(byte.into())).collect(),
            Self::Nodes(nodes) => nodes,
        }
    }

    fn into_seq(self) -> Node {
        match self {
            Self::Bytes(bytes) if !bytes.is_empty() => Node::Bytes(bytes),
            other => Node::Seq(other.into_nodes()),
        }
    }

    fn into_tuple(self) -> Node {
        match self {
            Self::Bytes(bytes) if bytes.len() > SHORT_ARRAY => Node::Bytes(bytes),
            other => Node::Tuple(other.into_nodes()),
        }
    }
}

/// A struct or tuple under construction, and the variant it belongs to, if any.
pub(super) struct Compound<T> {
    variant: Option<&'static str>,
    content: T,
}

impl<T> Compound<T> {
    const fn plain(content: T) -> Self {
        Self { variant: None, content }
    }

    const fn of(variant: &'static str, content: T) -> Self {
        Self { variant: Some(variant), content }
    }
}

fn in_variant(variant: Option<&'static str>, content: Node) -> Node {
    match variant {
        Some(name) => Node::Variant(name, Box::new(content)),
        None => content,
    }
}

type Fields = Vec<(&'static str, Node)>;

/// A map under construction.
#[derive(Default)]
pub(super) struct Entries {
    key: Option<Node>,
    entries: Vec<(Node, Node)>,
}

macro_rules! scalars {
    ($($method:ident: $type:ty => $node:ident),* $(,)?) => {
        $(fn $method(self, value: $type) -> Result<Node, TreeError> {
            Ok(Node::$node(value.into()))
        })*
    };
}

impl Serializer for TreeSerializer<'_> {
    type Ok = Node;
    type Error = TreeError;
    type SerializeSeq = Items;
    type SerializeTuple = Compound<Items>;
    type SerializeTupleStruct = Compound<Items>;
    type SerializeTupleVariant = Compound<Items>;
    type SerializeMap = Entries;
    type SerializeStruct = Compound<Fields>;
    type SerializeStructVariant = Compound<Fields>;

    scalars! {
        serialize_bool: bool => Bool, serialize_char: char => Char, serialize_str: &str => Text,
        serialize_bytes: &[u8] => Bytes,
        serialize_i8: i8 => Signed, serialize_i16: i16 => Signed, serialize_i32: i32 => Signed,
        serialize_i64: i64 => Signed, serialize_i128: i128 => Signed,
        serialize_u16: u16 => Unsigned, serialize_u32: u32 => Unsigned, serialize_u64: u64 => Unsigned,
        serialize_u128: u128 => Unsigned,
    }

    fn serialize_u8(self, value: u8) -> Result<Node, TreeError> {
        if let Some(is_byte) = self.is_byte {
            *is_byte = true;
        }
        Ok(Node::Unsigned(value.into()))
    }

    fn serialize_f32(self, value: f32) -> Result<Node, TreeError> {
        Ok(Node::Float(f64::from(value).to_bits()))
    }

    fn serialize_f64(self, value: f64) -> Result<Node, TreeError> {
        Ok(Node::Float(value.to_bits()))
    }

    fn serialize_none(self) -> Result<Node, TreeError> {
        Ok(Node::None)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Node, TreeError> {
        Ok(Node::Some(Box::new(value.serialize(TreeSerializer::default())?)))
    }

    fn serialize_unit(self) -> Result<Node, TreeError> {
        Ok(Node::Unit)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Node, TreeError> {
        Ok(Node::Unit)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Node, TreeError> {
        Ok(Node::Variant(variant, Box::new(Node::Unit)))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Node, TreeError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Node, TreeError> {
        Ok(Node::Variant(variant, Box::new(value.serialize(TreeSerializer::default())?)))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items, TreeError> {
        Ok(Items::new())
    }

    fn serialize_tuple(self, _: usize) -> Result<Compound<Items>, TreeError> {
        Ok(Compound::plain(Items::new()))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Compound<Items>, TreeError> {
        Ok(Compound::plain(Items::new()))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<Items>, TreeError> {
        Ok(Compound::of(variant, Items::new()))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries, TreeError> {
        Ok(Entries::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Compound<Fields>, TreeError> {
        Ok(Compound::plain(Fields::new()))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Compound<Fields>, TreeError> {
        Ok(Compound::of(variant, Fields::new()))
    }

    /// As the codec: what a checkpoint would hold is what is compared.
    fn is_human_readable(&self) -> bool {
        false
    }
}

impl SerializeSeq for Items {
    type Ok = Node;
    type Error = TreeError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TreeError> {
        self.push(value)
    }

    fn end(self) -> Result<Node, TreeError> {
        Ok(self.into_seq())
    }
}

macro_rules! tuple_like {
    ($($trait:ident: $method:ident),* $(,)?) => {
        $(impl $trait for Compound<Items> {
            type Ok = Node;
            type Error = TreeError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TreeError> {
                self.content.push(value)
            }

            fn end(self) -> Result<Node, TreeError> {
                Ok(in_variant(self.variant, self.content.into_tuple()))
            }
        })*
    };
}

tuple_like! {
    SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field, SerializeTupleVariant: serialize_field,
}

macro_rules! struct_like {
    ($($trait:ident),* $(,)?) => {
        $(impl $trait for Compound<Fields> {
            type Ok = Node;
            type Error = TreeError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), TreeError> {
                self.content.push((name, value.serialize(TreeSerializer::default())?));
                Ok(())
            }

            fn end(self) -> Result<Node, TreeError> {
                Ok(in_variant(self.variant, Node::Struct(self.content)))
            }
        })*
    };
}

struct_like!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for Entries {
    type Ok = Node;
    type Error = TreeError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), TreeError> {
        self.key = Some(key.serialize(TreeSerializer::default())?);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TreeError> {
        let key = self.key.take().ok_or_else(|| TreeError("a map value without its key".into()))?;
        self.entries.push((key, value.serialize(TreeSerializer::default())?));
        Ok(())
    }

    fn end(mut self) -> Result<Node, TreeError> {
        self.entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(Node::Map(self.entries))
    }
}
