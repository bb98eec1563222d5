//! Checkpoints as files. A save either replaces the file whole or leaves the old one as it was.
//!
//! The bytes go to a new file beside the target, are synced and then renamed over it (rename(2) replaces atomically).
//! A symbolic link at the target is replaced, not followed.

use crate::container::Checkpoint;
use crate::error::SnapshotError;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The longest file that [`load`] reads, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 30;

/// How many names for the temporary file are tried; each that exists is another save under way, or one that was killed.
const TEMPORARY_NAMES: u32 = 100;

/// Why a checkpoint could not be saved or loaded.
#[derive(Debug, Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{}: can't {action}: {cause}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        cause: io::Error,
    },
    /// The file is longer than the reader accepts.
    #[error("{}: longer than {max} bytes, the most that is read", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// The file is not a good checkpoint.
    #[error("{}: {cause}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: SnapshotError,
    },
}

impl FileError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { path: path.to_owned(), action, cause }
    }
}

/// Saves a checkpoint, replacing an existing file atomically.
///
/// # Errors
///
/// If a step fails. The file that was there before is then untouched and no temporary file is left behind; only if
/// the last step fails, syncing the directory, is the new file there, but a power loss may still undo it.
pub fn save(path: &Path, checkpoint: &Checkpoint) -> Result<(), FileError> {
    let (temporary, file) = create_beside(path)?;
    let done = write_and_sync(&temporary, file, &checkpoint.write())
        .and_then(|()| fs::rename(&temporary, path).map_err(FileError::io(path, "replace the file")));
    if done.is_err() {
        // The error of interest is the first one.
        drop(fs::remove_file(&temporary));
        return done;
    }
    sync_directory(path)
}

fn write_and_sync(path: &Path, mut file: File, bytes: &[u8]) -> Result<(), FileError> {
    file.write_all(bytes).map_err(FileError::io(path, "write"))?;
    file.sync_all().map_err(FileError::io(path, "sync to the disk"))
}

/// Creates a file that nobody else has, in the target's directory, since a rename can't cross file systems.
fn create_beside(path: &Path) -> Result<(PathBuf, File), FileError> {
    let Some(name) = path.file_name() else {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        return Err(FileError::io(path, "save")(cause));
    };
    let mut last = None;
    for number in 0..TEMPORARY_NAMES {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".tmp{number}"));
        let temporary = path.with_file_name(temporary);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => last = Some((temporary, cause)),
            Err(cause) => return Err(FileError::io(&temporary, "create")(cause)),
        }
    }
    let (temporary, cause) = last.unwrap_or_else(|| (path.to_owned(), io::ErrorKind::AlreadyExists.into()));
    Err(FileError::io(&temporary, "create this or any lower-numbered temporary file; remove those left behind")(cause))
}

/// Makes the rename itself durable. Where a directory can't be opened as a file (Windows), the file system does it.
fn sync_directory(path: &Path) -> Result<(), FileError> {
    if cfg!(unix) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(FileError::io(parent, "sync the directory"))?;
    }
    Ok(())
}

/// Loads a checkpoint of at most [`FILE_BYTES_MAX`] bytes.
///
/// # Errors
///
/// If the file can't be read, is too long, or is not a good checkpoint.
pub fn load(path: &Path) -> Result<Checkpoint, FileError> {
    load_at_most(path, FILE_BYTES_MAX)
}

/// Loads a checkpoint of at most `max` bytes.
///
/// # Errors
///
/// If the file can't be read, is too long, or is not a good checkpoint.
pub fn load_at_most(path: &Path, max: u64) -> Result<Checkpoint, FileError> {
    let file = File::open(path).map_err(FileError::io(path, "open"))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a long file from a full one; a file may also grow while it is read.
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(FileError::io(path, "read"))?;
    if bytes.len() as u64 > max {
        return Err(FileError::TooLong { path: path.to_owned(), max });
    }
    Checkpoint::read(&bytes).map_err(|cause| FileError::Content { path: path.to_owned(), cause })
}
