//! The checkpoint container, as `docs/SNAPSHOT_FORMAT.md` specifies it: header, section table, payloads.
//!
//! The container is raw little-endian and outside the codec, so that a reader can say what is wrong with a file it
//! can't decode. A checkpoint has exactly one byte form: sections ascend by kind and payloads follow without gaps.

use crate::codec::{self, CODEC_ID};
use crate::error::SnapshotError;
use crate::section::{Kind, Older, Section};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The first bytes of every checkpoint. The first is not ASCII and the line ends are there because a transfer as text
/// would damage them (the idea of the PNG signature, ISO/IEC 15948 5.2).
pub const MAGIC: [u8; 8] = *b"\x89RCS\r\n\x1a\n";
/// The container layout that this build writes, and the newest that it reads.
pub const CONTAINER_VERSION: u32 = 1;
/// The most sections a checkpoint may hold.
pub const SECTIONS_MAX: usize = 256;

/// Magic, container version, codec id, section count, crc32.
const HEADER_BYTES: usize = 24;
/// Where the header's crc32 is; it covers all before it and the section table.
const HEADER_CRC_OFFSET: usize = 20;
/// Kind, version, offset, length, crc32.
const ENTRY_BYTES: usize = 28;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Saved {
    version: u32,
    payload: Vec<u8>,
}

/// A saved run: its sections by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    sections: BTreeMap<Kind, Saved>,
}

impl Checkpoint {
    /// A checkpoint without sections.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section.
    ///
    /// # Errors
    ///
    /// If the kind is there already, the checkpoint is full, or the value cannot be encoded.
    pub fn put<S: Section>(&mut self, section: &S) -> Result<(), SnapshotError> {
        let kind = S::KIND;
        if self.sections.contains_key(&kind) {
            return Err(SnapshotError::DuplicateKind { kind });
        }
        if self.sections.len() == SECTIONS_MAX {
            return Err(SnapshotError::TooManySections { count: SECTIONS_MAX as u64 + 1 });
        }
        let payload = codec::encode(section).map_err(|cause| SnapshotError::Encode { kind, cause })?;
        self.sections.insert(kind, Saved { version: S::VERSION, payload });
        Ok(())
    }

    /// Decodes a section, through [`Section::from_older`] if it was saved in another version.
    ///
    /// # Errors
    ///
    /// If the section is missing, its version is not readable, or its payload does not decode.
    pub fn get<S: Section>(&self) -> Result<S, SnapshotError> {
        let kind = S::KIND;
        let Some(Saved { version, payload }) = self.sections.get(&kind) else {
            return Err(SnapshotError::MissingSection { kind, present: self.sections.keys().copied().collect() });
        };
        let saved = Older { kind, version: *version, payload };
        if *version == S::VERSION { saved.decode() } else { S::from_older(saved) }
    }

    /// Every section's kind, version and payload length in bytes, in ascending order of kind.
    pub fn sections(&self) -> impl Iterator<Item = (Kind, u32, usize)> + '_ {
        self.sections.iter().map(|(kind, saved)| (*kind, saved.version, saved.payload.len()))
    }

    /// The checkpoint's bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.sections.len() * ENTRY_BYTES);
        let mut offset = HEADER_BYTES + self.sections.len() * ENTRY_BYTES;
        for (kind, saved) in &self.sections {
            table.extend(kind.bytes());
            table.extend(saved.version.to_le_bytes());
            table.extend((offset as u64).to_le_bytes());
            table.extend((saved.payload.len() as u64).to_le_bytes());
            table.extend(crc32fast::hash(&saved.payload).to_le_bytes());
            offset += saved.payload.len();
        }
        let mut bytes = Vec::with_capacity(offset);
        bytes.extend(MAGIC);
        bytes.extend(CONTAINER_VERSION.to_le_bytes());
        bytes.extend(CODEC_ID.to_le_bytes());
        bytes.extend((self.sections.len() as u32).to_le_bytes());
        bytes.extend(header_crc(&bytes, &table).to_le_bytes());
        bytes.extend(table);
        for saved in self.sections.values() {
            bytes.extend(&saved.payload);
        }
        bytes
    }

    /// Reads a checkpoint's bytes and verifies all of the container; payloads are decoded by [`Checkpoint::get`].
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in the order of the file.
    pub fn read(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let header = Header::read(bytes)?;
        let table = part(bytes, "section table", HEADER_BYTES, header.sections * ENTRY_BYTES)?;
        let computed = header_crc(&bytes[..HEADER_CRC_OFFSET], table);
        if header.crc != computed {
            return Err(SnapshotError::HeaderChecksum { stored: header.crc, computed });
        }
        let mut sections = BTreeMap::new();
        let mut before = None;
        let mut end = HEADER_BYTES + table.len();
        for (index, entry) in table.as_chunks::<ENTRY_BYTES>().0.iter().enumerate() {
            let entry = Entry::read(index, entry)?;
            entry.check_order(before)?;
            let payload = entry.payload(bytes, end)?;
            end += payload.len();
            before = Some(entry.kind);
            sections.insert(entry.kind, Saved { version: entry.version, payload: payload.to_vec() });
        }
        if end != bytes.len() {
            return Err(SnapshotError::TrailingBytes { end: end as u64, file_bytes: bytes.len() as u64 });
        }
        Ok(Self { sections })
    }
}

fn header_crc(before: &[u8], table: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(before);
    hasher.update(table);
    hasher.finalize()
}

/// A part of the container, or where it would end.
fn part<'a>(bytes: &'a [u8], part: &'static str, start: usize, length: usize) -> Result<&'a [u8], SnapshotError> {
    let need = start + length;
    bytes.get(start..need).ok_or(SnapshotError::Truncated { part, need: need as u64, have: bytes.len() as u64 })
}

/// The little-endian field at `at`; all offsets are constants within a part whose length is known.
fn field<const N: usize>(part: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&part[at..at + N]);
    field
}

struct Header {
    sections: usize,
    crc: u32,
}

impl Header {
    /// Reads the header and checks it in the order of its fields. What follows the version is only looked at if the
    /// version is known: a newer layout may differ in everything else.
    fn read(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let start = &bytes[..bytes.len().min(MAGIC.len())];
        if start.is_empty() || !MAGIC.starts_with(start) {
            return Err(SnapshotError::NotACheckpoint { found: start.to_vec() });
        }
        let header = part(bytes, "header", 0, HEADER_BYTES)?;
        let version = u32::from_le_bytes(field(header, 8));
        if version != CONTAINER_VERSION {
            return Err(SnapshotError::ContainerVersion { found: version });
        }
        let codec = u32::from_le_bytes(field(header, 12));
        if codec != CODEC_ID {
            return Err(SnapshotError::UnknownCodec { found: codec });
        }
        let count = u32::from_le_bytes(field(header, 16));
        match usize::try_from(count) {
            Ok(sections) if sections <= SECTIONS_MAX => {
                Ok(Self { sections, crc: u32::from_le_bytes(field(header, HEADER_CRC_OFFSET)) })
            }
            _ => Err(SnapshotError::TooManySections { count: count.into() }),
        }
    }
}

/// One row of the section table.
struct Entry {
    kind: Kind,
    version: u32,
    offset: u64,
    length: u64,
    crc: u32,
}

impl Entry {
    fn read(index: usize, entry: &[u8; ENTRY_BYTES]) -> Result<Self, SnapshotError> {
        let code = field(entry, 0);
        Ok(Self {
            kind: Kind::from_bytes(code).ok_or(SnapshotError::BadKind { index, code })?,
            version: u32::from_le_bytes(field(entry, 4)),
            offset: u64::from_le_bytes(field(entry, 8)),
            length: u64::from_le_bytes(field(entry, 16)),
            crc: u32::from_le_bytes(field(entry, 24)),
        })
    }

    fn check_order(&self, before: Option<Kind>) -> Result<(), SnapshotError> {
        let kind = self.kind;
        match before {
            Some(before) if before == kind => Err(SnapshotError::DuplicateKind { kind }),
            Some(before) if before > kind => Err(SnapshotError::UnorderedKind { kind, before }),
            _ => Ok(()),
        }
    }

    /// The payload, which must start where the part before it ended.
    fn payload<'a>(&self, bytes: &'a [u8], expected: usize) -> Result<&'a [u8], SnapshotError> {
        let &Self { kind, offset, length, crc: stored, .. } = self;
        let file_bytes = bytes.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > file_bytes) {
            return Err(SnapshotError::OutOfRange { kind, offset, length, file_bytes });
        }
        let expected_offset = expected as u64;
        match offset.cmp(&expected_offset) {
            Ordering::Less => return Err(SnapshotError::Overlap { kind, offset, expected: expected_offset }),
            Ordering::Greater => return Err(SnapshotError::Gap { kind, offset, expected: expected_offset }),
            Ordering::Equal => {}
        }
        // Both fit: their sum is at most the length of a slice.
        let payload = &bytes[expected..expected + length as usize];
        let computed = crc32fast::hash(payload);
        if stored == computed { Ok(payload) } else { Err(SnapshotError::PayloadChecksum { kind, stored, computed }) }
    }
}
