//! Any serialisable value as a small tree with its names kept, for comparing and printing.
//!
//! Newtypes are transparent (an `Hpa(0x1000)` is the number). A sequence of bytes becomes one [`Node::Bytes`], as does
//! an array of more than [`SHORT_ARRAY`] bytes. Structs and enum variants keep their names. A map is kept
//! in ascending order of its keys, whatever order the value gives. Floats are kept by their bits, so that a tree has an
//! order and equals itself.

mod serializer;

use serde::Serialize;
use serializer::TreeSerializer;
use std::fmt;
use thiserror::Error;

/// Arrays and tuples of at most this many bytes stay element by element: they are records more often than data.
pub(crate) const SHORT_ARRAY: usize = 8;
/// Byte runs of at most this length are printed whole.
const SHORT_RUN: usize = 16;
/// Bytes shown of a longer run.
const RUN_HEAD: usize = 8;

/// A value's serde form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// `()` or a unit struct.
    Unit,
    /// A boolean.
    Bool(bool),
    /// An unsigned integer of any width.
    Unsigned(u128),
    /// A signed integer of any width.
    Signed(i128),
    /// The bits of a float, as a double.
    Float(u64),
    /// A character.
    Char(char),
    /// A text.
    Text(String),
    /// Bytes, or a sequence of them.
    Bytes(Vec<u8>),
    /// `None`.
    None,
    /// `Some` value.
    Some(Box<Self>),
    /// Elements of one type, any number.
    Seq(Vec<Self>),
    /// An array, a tuple or a tuple struct.
    Tuple(Vec<Self>),
    /// Keys and values, in ascending order of keys.
    Map(Vec<(Self, Self)>),
    /// Named fields.
    Struct(Vec<(&'static str, Self)>),
    /// An enum variant: its name and content ([`Node::Unit`] without any).
    Variant(&'static str, Box<Self>),
}

/// A value that cannot be serialised.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("can't serialise: {0}")]
pub struct TreeError(pub(crate) String);

/// The tree of a value.
///
/// # Errors
///
/// If the value's own `Serialize` refuses.
pub fn tree<T: Serialize + ?Sized>(value: &T) -> Result<Node, TreeError> {
    value.serialize(TreeSerializer::default())
}

impl Node {
    /// The bytes of a byte run, of which an empty sequence is also one.
    pub(crate) const fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes.as_slice()),
            Self::Seq(items) if items.is_empty() => Some(&[]),
            _ => None,
        }
    }

    /// The elements of a sequence that is no byte run.
    pub(crate) const fn as_seq(&self) -> Option<&[Self]> {
        match self {
            Self::Seq(items) => Some(items.as_slice()),
            _ => None,
        }
    }
}

/// One line: integers in hex, long byte runs summarised.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit => f.write_str("()"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Unsigned(value) => write!(f, "{value:#x}"),
            Self::Signed(value) if *value < 0 => write!(f, "-{:#x}", value.unsigned_abs()),
            Self::Signed(value) => write!(f, "{value:#x}"),
            Self::Float(bits) => write!(f, "{:?}", f64::from_bits(*bits)),
            Self::Char(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Bytes(bytes) => Run(bytes).fmt(f),
            Self::None => f.write_str("none"),
            Self::Some(value) => match &**value {
                nested @ (Self::None | Self::Some(_)) => write!(f, "some({nested})"),
                plain => write!(f, "{plain}"),
            },
            Self::Seq(items) => write_list(f, ["[", "]"], items, |f, item| write!(f, "{item}")),
            Self::Tuple(items) => write_list(f, ["(", ")"], items, |f, item| write!(f, "{item}")),
            Self::Map(entries) => write_list(f, ["{", "}"], entries, |f, (key, value)| write!(f, "{key}: {value}")),
            Self::Struct(fields) => write_list(f, ["{", "}"], fields, |f, (name, value)| write!(f, "{name}: {value}")),
            Self::Variant(name, content) => match &**content {
                Self::Unit => f.write_str(name),
                fields @ Self::Struct(_) => write!(f, "{name} {fields}"),
                items @ Self::Tuple(_) => write!(f, "{name}{items}"),
                content => write!(f, "{name}({content})"),
            },
        }
    }
}

fn write_list<T>(
    f: &mut fmt::Formatter<'_>,
    [open, close]: [&str; 2],
    items: &[T],
    mut write_item: impl FnMut(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    f.write_str(open)?;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        write_item(f, item)?;
    }
    f.write_str(close)
}

/// Prints `[01 02 03]`; of a longer run its head and its length, or its one value and its length.
pub(crate) struct Run<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self(bytes) = self;
        let length = bytes.len();
        if length <= SHORT_RUN {
            write!(f, "[{}]", hex(bytes))
        } else if bytes.iter().all(|byte| *byte == bytes[0]) {
            write!(f, "[{:02x} x {length}]", bytes[0])
        } else {
            write!(f, "[{} .. {length} bytes, crc32 {:08x}]", hex(&bytes[..RUN_HEAD]), crc32fast::hash(bytes))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
