//! What a checkpoint holds: sections, each with a four-character kind and a version of its own.

use crate::codec;
use crate::error::SnapshotError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;

/// A section's four-character code: capital ASCII letters and digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind([u8; 4]);

impl Kind {
    /// The kind with this code; meant for constants, where a bad code does not compile.
    ///
    /// # Panics
    ///
    /// If a character is not a capital ASCII letter or a digit.
    #[must_use]
    pub const fn new(code: [u8; 4]) -> Self {
        match Self::from_bytes(code) {
            Some(kind) => kind,
            None => panic!("a kind is four capital ASCII letters or digits"),
        }
    }

    /// The kind with this code, if it is one.
    #[must_use]
    pub const fn from_bytes(code: [u8; 4]) -> Option<Self> {
        let mut at = 0;
        while at < code.len() {
            if !code[at].is_ascii_uppercase() && !code[at].is_ascii_digit() {
                return None;
            }
            at += 1;
        }
        Some(Self(code))
    }

    /// The four characters.
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        self.0
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({self})")
    }
}

/// A saved state: a struct of its own, apart from the one a run works with, so that the latter may change freely.
///
/// The bytes of a payload do not describe themselves. Any change of a field, of an order or of a type needs a new
/// [`Section::VERSION`]; a `serde` default does not help.
pub trait Section: Serialize + DeserializeOwned {
    /// The four-character code.
    const KIND: Kind;
    /// The version of the payload that this build writes.
    const VERSION: u32;

    /// Makes this section from a payload of another version. Without an own implementation, other versions are refused.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::SectionVersion`] for a version that it can't read, or why the payload does not decode.
    fn from_older(older: Older<'_>) -> Result<Self, SnapshotError> {
        Err(older.refused(Self::VERSION))
    }
}

/// The payload of a section in a version other than the one this build writes.
#[derive(Clone, Copy, Debug)]
pub struct Older<'a> {
    pub(crate) kind: Kind,
    pub(crate) version: u32,
    pub(crate) payload: &'a [u8],
}

impl Older<'_> {
    /// The payload's version.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Decodes the payload as the struct that this version was.
    ///
    /// # Errors
    ///
    /// If the payload is not such a struct.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, SnapshotError> {
        codec::decode(self.payload).map_err(|cause| SnapshotError::Decode { kind: self.kind, cause })
    }

    /// The error for a version that can't be read.
    #[must_use]
    pub const fn refused(&self, expected: u32) -> SnapshotError {
        SnapshotError::SectionVersion { kind: self.kind, found: self.version, expected }
    }
}
