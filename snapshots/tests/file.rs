//! Saving is atomic and leaves nothing behind; loading has a limit; errors name the path.

mod support;

use snapshots::{Checkpoint, FileError, load, load_at_most, save};
use std::fs;
use std::path::{Path, PathBuf};
use support::minimal;

/// An empty directory of this test's own.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("the old directory can go");
    }
    fs::create_dir_all(&path).expect("a directory can be made");
    path
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory is readable");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries.map(|entry| name(entry.expect("an entry"))).collect();
    names.sort();
    names
}

#[test]
fn a_save_replaces_the_file_and_leaves_nothing_else() {
    let directory = directory("replace");
    let path = directory.join("run.rcsnap");
    for checkpoint in [Checkpoint::new(), minimal()] {
        save(&path, &checkpoint).unwrap();
        assert_eq!(load(&path).unwrap(), checkpoint);
        assert_eq!(names(&directory), ["run.rcsnap"]);
    }
}

#[test]
fn a_temporary_file_of_another_save_is_left_alone() {
    let directory = directory("other");
    let path = directory.join("run.rcsnap");
    fs::write(directory.join(".run.rcsnap.tmp0"), "theirs").unwrap();
    save(&path, &minimal()).unwrap();
    assert_eq!(load(&path).unwrap(), minimal());
    assert_eq!(fs::read(directory.join(".run.rcsnap.tmp0")).unwrap(), b"theirs");
    assert_eq!(names(&directory), [".run.rcsnap.tmp0", "run.rcsnap"]);
}

#[test]
fn a_failed_save_leaves_what_was_there() {
    let directory = directory("failed");
    // A rename cannot put a file over a directory that is not empty: the last step fails.
    let path = directory.join("run.rcsnap");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("precious"), "content").unwrap();
    let error = save(&path, &minimal()).unwrap_err();
    assert!(matches!(error, FileError::Io { action: "replace the file", .. }), "{error}");
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    assert_eq!(fs::read(path.join("precious")).unwrap(), b"content");
    assert_eq!(names(&directory), ["run.rcsnap"]);

    // All temporary names are taken: the first step fails, and an old file stays.
    let path = directory.join("old.rcsnap");
    save(&path, &minimal()).unwrap();
    for number in 0..100 {
        fs::write(directory.join(format!(".old.rcsnap.tmp{number}")), "").unwrap();
    }
    assert!(save(&path, &Checkpoint::new()).unwrap_err().to_string().contains(".old.rcsnap.tmp99: can't create"));
    assert_eq!(load(&path).unwrap(), minimal());

    for (path, expected) in [
        (directory.join("no/such/run.rcsnap"), "no/such/.run.rcsnap.tmp0: can't create"),
        (PathBuf::from("/"), "/: can't save: the path names no file"),
    ] {
        let error = save(&path, &minimal()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn loading_has_a_limit_and_names_the_file() {
    let directory = directory("limit");
    let path = directory.join("run.rcsnap");
    save(&path, &minimal()).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    assert_eq!(load_at_most(&path, length).unwrap(), minimal());
    let error = load_at_most(&path, length - 1).unwrap_err();
    assert!(matches!(error, FileError::TooLong { max, .. } if max == length - 1), "{error}");

    fs::write(&path, "a text").unwrap();
    let error = load(&path).unwrap_err();
    assert!(matches!(error, FileError::Content { .. }));
    assert!(error.to_string().starts_with(&format!("{}: not a checkpoint", path.display())), "{error}");
    assert!(matches!(load(&directory), Err(FileError::Io { .. })), "a directory");
}
