//! Every planted mistake of the hypervisor is noticed by a scenario of the library: by an audit, by what the guest sees, or
//! by what a step says that it must show.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use mmu::change::{Change, POINTS};
use mmu::plant::Plant;
use scenarios::file::{self, Scenario};
use scenarios::plants;
use std::collections::BTreeMap;
use std::path::Path;

/// Mistakes that no scenario notices, with the reason. A row that is noticed after all fails the test.
const SLIP_THROUGH: &[(&str, &str)] = &[(
    "init-keeps-tlb",
    "an INIT that leaves paging behind also gives up the roots, and loading one flushes; without paging nothing is stale",
)];

fn library(folder: &str) -> Vec<(String, Scenario)> {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("library").join(folder);
    let load = |path: &std::path::PathBuf| {
        (path.file_stem().unwrap().to_string_lossy().into_owned(), file::load(path, &points, &changes).unwrap())
    };
    file::collect(&[directory]).unwrap().iter().map(load).collect()
}

#[test]
fn every_planted_mistake_is_noticed() {
    let files: Vec<_> = ["mechanisms", "nested"].into_iter().flat_map(library).collect();
    let rows = plants::all(&files, Plant::ALL);
    let mut by: BTreeMap<&str, u32> = BTreeMap::new();
    let mut unnoticed = Vec::new();
    for row in &rows {
        match &row.caught {
            Some(caught) => *by.entry(caught.by.name()).or_default() += 1,
            None => unnoticed.push(row.plant.name()),
        }
    }
    println!("planted mistakes: {} of {} noticed, by {by:?}", rows.len() - unnoticed.len(), rows.len());
    let expected: Vec<_> = SLIP_THROUGH.iter().map(|(name, _)| *name).collect();
    assert_eq!(unnoticed, expected);
}
