//! The library of real bugs: each file breaks before its commit, holds after it, and bisects to it.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use mmu::change::{Change, POINTS};
use scenarios::file::{self, Scenario};
use scenarios::history;
use std::path::Path;

fn library() -> Vec<(String, Scenario)> {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/history");
    let paths = file::collect(&[directory]).unwrap();
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), file::load(path, &points, &changes).unwrap())).collect()
}

/// kvm-mmu.md part C; each file says which entry.
#[test]
fn every_bug_breaks_before_its_commit_and_holds_after_it() {
    let files = library();
    let count = files.len();
    let rows = history::all(files);
    assert_eq!(rows.len(), count, "a file without [bug]");
    let wrong: Vec<_> = rows.iter().filter(|row| !row.holds()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A file is named by its commit.
#[test]
fn files_are_named_by_their_commits() {
    for (name, scenario) in library() {
        let fix = scenario.bug.unwrap().fix;
        assert!(name.starts_with(fix.trim_start_matches("list:")), "{name} shows {fix}");
    }
}

/// `docs/bugs.md` holds the table that `rolecall history scenarios/library/history --format markdown` prints.
#[test]
fn the_table_in_the_docs_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bugs.md");
    let (document, table) = (std::fs::read_to_string(path).unwrap(), history::table(&history::all(library())));
    assert!(document.contains(&table), "docs/bugs.md needs this table:\n{table}");
}
