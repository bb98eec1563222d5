//! Checkpoints on disk, and the difference of two states for a person to read.
//!
//! A [`Checkpoint`] is a container of typed [`Section`]s. The floors above each define a section for their own saved
//! state; this crate knows only one, the [`Origin`]: the scenario, the settings and the choices that led to the state,
//! so that a build that cannot decode a state rebuilds it by replay.
//!
//! The byte format is written down in `docs/SNAPSHOT_FORMAT.md`. [`diff`] compares any two serialisable values.
//!
//! Not here: compression, encryption, deltas between checkpoints, reading a part of a file.

mod codec;
mod container;
mod diff;
mod error;
mod file;
mod origin;
mod section;
mod tree;

pub use codec::{CodecError, SECTION_BYTES_MAX};
pub use container::{CONTAINER_VERSION, Checkpoint, MAGIC, SECTIONS_MAX};
pub use diff::{Change, diff, diff_nodes};
pub use error::SnapshotError;
pub use file::{FILE_BYTES_MAX, FileError, load, load_at_most, save};
pub use origin::{Origin, Restored};
pub use section::{Kind, Older, Section};
pub use tree::{Node, TreeError, tree};
