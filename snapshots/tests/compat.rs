//! Files of released container versions still read, and the specification shows a real one.
//!
//! A fixture is written once, with `ROLECALL_WRITE_FIXTURES=1 cargo test -p snapshots --test compat`, and then kept:
//! the helper never replaces one that exists. A new container, codec or `ORIG` version gets a folder of its own.

mod support;

use snapshots::{FileError, Origin, load, save};
use std::path::{Path, PathBuf};
use support::{Toy, minimal};

fn fixture() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/v1/minimal.rcsnap");
    if std::env::var_os("ROLECALL_WRITE_FIXTURES").is_some() && !path.exists() {
        save(&path, &minimal()).expect("the fixture can be written");
    }
    path
}

#[test]
fn version_1_still_reads() {
    let checkpoint = load(&fixture()).unwrap();
    assert_eq!(checkpoint, minimal());
    assert_eq!(checkpoint.get::<Toy>().unwrap(), Toy { rip: 0xfff0, stack: vec![0xf4] });
    let origin = checkpoint.get::<Origin>().unwrap();
    assert_eq!(origin.scenario, "vcpus = 1\n");
    assert_eq!((origin.choices, origin.steps), (vec![0, 1], 2));
}

/// Holds while version 1 is what we write; with version 2, drop this test and keep the one above.
#[test]
fn version_1_is_what_we_write() {
    assert_eq!(std::fs::read(fixture()).unwrap(), minimal().write());
}

/// The example in docs/SNAPSHOT_FORMAT.md: lines `offset: bytes | meaning`, numbers in hex.
#[test]
fn the_specification_shows_the_fixture() {
    let text = include_str!("../../docs/SNAPSHOT_FORMAT.md");
    let dump = text.split("```dump\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut bytes = Vec::new();
    for line in dump.lines() {
        let (offset, rest) = line.split_once(':').unwrap();
        assert_eq!(usize::from_str_radix(offset, 16).unwrap(), bytes.len(), "{line}");
        let hex = rest.split('|').next().unwrap();
        bytes.extend(hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    assert_eq!(bytes, std::fs::read(fixture()).unwrap());
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nowhere/at/all.rcsnap")).unwrap_err();
    assert!(matches!(error, FileError::Io { action: "open", .. }), "{error}");
    assert!(error.to_string().starts_with("/nowhere/at/all.rcsnap: can't open: "), "{error}");
}
