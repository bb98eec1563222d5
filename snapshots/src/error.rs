//! What can be wrong with a checkpoint's bytes; each error says what would be right.

use crate::codec::{CODEC_ID, CODEC_NAME, CodecError};
use crate::container::{CONTAINER_VERSION, MAGIC, SECTIONS_MAX};
use crate::section::Kind;
use thiserror::Error;

/// Why bytes are not a checkpoint, or a checkpoint does not give a section.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// The file is something else.
    #[error("not a checkpoint: it starts with {found:02x?}, a checkpoint with {MAGIC:02x?}")]
    NotACheckpoint {
        /// The first bytes, at most eight.
        found: Vec<u8>,
    },
    /// The file ends within the header or the section table.
    #[error("truncated: the {part} ends at byte {need}, the file at byte {have}")]
    Truncated {
        /// `header` or `section table`.
        part: &'static str,
        /// Bytes up to the end of the part.
        need: u64,
        /// Bytes in the file.
        have: u64,
    },
    /// A container layout that this build does not know.
    #[error("container version {found}: this build reads 1 to {CONTAINER_VERSION}; use the rolecall that wrote it")]
    ContainerVersion {
        /// The file's version.
        found: u32,
    },
    /// A payload layout that this build does not know.
    #[error("codec id {found}: this build reads {CODEC_ID} ({CODEC_NAME}); use the rolecall that wrote it")]
    UnknownCodec {
        /// The file's codec id.
        found: u32,
    },
    /// More sections than any checkpoint has.
    #[error("{count} sections: a checkpoint holds at most {SECTIONS_MAX}")]
    TooManySections {
        /// The stated number.
        count: u64,
    },
    /// The header or the section table was damaged.
    #[error("damaged header or section table: crc32 {stored:#010x} in the file, {computed:#010x} over its bytes")]
    HeaderChecksum {
        /// What the file says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A kind that cannot be a kind.
    #[error("section {index} has the kind {code:02x?}: a kind is four capital ASCII letters or digits")]
    BadKind {
        /// Position in the section table, from 0.
        index: usize,
        /// The code found.
        code: [u8; 4],
    },
    /// One kind twice.
    #[error("section {kind} twice: a checkpoint holds each kind at most once")]
    DuplicateKind {
        /// The kind.
        kind: Kind,
    },
    /// The section table is not sorted.
    #[error("section {kind} after {before}: the section table is in ascending order of kind")]
    UnorderedKind {
        /// The misplaced kind.
        kind: Kind,
        /// The kind before it.
        before: Kind,
    },
    /// A payload that lies beyond the file.
    #[error("section {kind} is {length} bytes at offset {offset}: the file has {file_bytes} bytes")]
    OutOfRange {
        /// The section.
        kind: Kind,
        /// Stated offset.
        offset: u64,
        /// Stated length.
        length: u64,
        /// Bytes in the file.
        file_bytes: u64,
    },
    /// A payload that shares bytes with what comes before it.
    #[error("section {kind} at offset {offset} overlaps what is before it: it must start at {expected}")]
    Overlap {
        /// The section.
        kind: Kind,
        /// Stated offset.
        offset: u64,
        /// Where the part before it ends.
        expected: u64,
    },
    /// Bytes that belong to no section, before one.
    #[error("section {kind} at offset {offset} leaves a gap: it must start at {expected}")]
    Gap {
        /// The section.
        kind: Kind,
        /// Stated offset.
        offset: u64,
        /// Where the part before it ends.
        expected: u64,
    },
    /// Bytes that belong to no section, at the end.
    #[error("the last section ends at byte {end}, the file at byte {file_bytes}: nothing may follow")]
    TrailingBytes {
        /// End of the last payload.
        end: u64,
        /// Bytes in the file.
        file_bytes: u64,
    },
    /// A payload was damaged.
    #[error("damaged section {kind}: crc32 {stored:#010x} in the table, {computed:#010x} over its payload")]
    PayloadChecksum {
        /// The section.
        kind: Kind,
        /// What the table says.
        stored: u32,
        /// What the payload gives.
        computed: u32,
    },
    /// The checkpoint has no such section.
    #[error("no section {kind}: the checkpoint holds {present:?}")]
    MissingSection {
        /// The kind asked for.
        kind: Kind,
        /// The kinds there are.
        present: Vec<Kind>,
    },
    /// A section in a version that this build can't read.
    #[error("section {kind} has version {found}: this build reads version {expected}")]
    SectionVersion {
        /// The section.
        kind: Kind,
        /// Version in the checkpoint.
        found: u32,
        /// Version of this build.
        expected: u32,
    },
    /// A section whose value cannot be written.
    #[error("section {kind} can't be written: {cause}")]
    Encode {
        /// The section.
        kind: Kind,
        /// Why.
        cause: CodecError,
    },
    /// A payload that is not a value of its section's type.
    #[error("section {kind} can't be read: {cause}")]
    Decode {
        /// The section.
        kind: Kind,
        /// Why.
        cause: CodecError,
    },
    /// A state that decodes, but not to the state that was saved.
    #[error("section {kind} decodes to the state {computed:#018x}, the checkpoint was taken of {stored:#018x}")]
    StateDigest {
        /// The section.
        kind: Kind,
        /// Digest noted when the checkpoint was taken.
        stored: u64,
        /// Digest of the decoded state.
        computed: u64,
    },
}
