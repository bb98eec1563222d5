//! Every planted mistake of the hypervisor is noticed by a scenario of the library: by an audit, by what the guest sees, or
//! by what the scenario records, in a step, a budget, and a golden of its transitions.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use mmu::change::{Change, POINTS};
use mmu::plant::Plant;
use scenarios::engine;
use scenarios::file::{self, RunConfig, Scenario};
use scenarios::plants::{self, Caught, Witness};
use scenarios::report::log;
use sim_core::event::Detail;
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

/// What neither an audit nor the guest can notice, such as work done twice, a golden does: the transitions of the sound run,
/// for people to read, which the mistake changes.
fn golden_notices(files: &[(String, Scenario)], plant: Plant, caught: &Caught) {
    let scenario = &files.iter().find(|(name, _)| *name == caught.scenario).unwrap().1;
    let sound = RunConfig { plants: Vec::new(), ..caught.run.clone() };
    let transitions = |run: &RunConfig| log::render(&engine::run(scenario, run, Detail::Transitions).unwrap().records);
    let text = transitions(&sound);
    assert_ne!(text, transitions(&caught.run), "{}", plant.name());
    insta::with_settings!({ snapshot_path => "../../snapshots/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(caught.scenario.as_str(), format!("{}\n{sound}\n{text}", scenario.title));
    });
}

#[test]
fn every_planted_mistake_is_noticed() {
    let files: Vec<_> = ["mechanisms", "nested"].into_iter().flat_map(library).collect();
    let rows = plants::all(&files, Plant::ALL);
    let mut by: BTreeMap<&str, u32> = BTreeMap::new();
    let mut unnoticed = Vec::new();
    for row in &rows {
        match &row.caught {
            Some(caught) => {
                *by.entry(caught.by.name()).or_default() += 1;
                if caught.by == Witness::Expectation {
                    golden_notices(&files, row.plant, caught);
                }
            }
            None => unnoticed.push(row.plant.name()),
        }
    }
    println!("planted mistakes: {} of {} noticed, by {by:?}", rows.len() - unnoticed.len(), rows.len());
    let expected: Vec<_> = SLIP_THROUGH.iter().map(|(name, _)| *name).collect();
    assert_eq!(unnoticed, expected);
}
