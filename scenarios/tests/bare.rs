//! The `bare` backend beside `sim`: the same scenarios, the same observations.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use mmu::change::{Change, POINTS};
use scenarios::backend::Kind;
use scenarios::engine::{self, Outcome};
use scenarios::file::{self, RunConfig, Scenario};
use sim_core::event::Detail;
use std::path::Path;

fn library(folder: &str) -> Vec<(String, Scenario)> {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("library").join(folder);
    let load = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, file::load(path, &points, &changes).unwrap())
    };
    file::collect(&[directory]).unwrap().iter().map(load).collect()
}

/// Whether a run is at v5.18 or later: on the line of releases, behind the rework that these scenarios are about.
fn is_since_v5_18(run: &RunConfig) -> bool {
    let released = |name: &str| {
        let numbers = name.strip_prefix('v').and_then(|rest| rest.split_once('.'));
        // A stable kernel has three numbers, and is no release.
        let numbers = numbers.and_then(|(major, minor)| Some([major.parse::<u32>().ok()?, minor.parse().ok()?]));
        numbers.is_some_and(|numbers| numbers >= [5, 18])
    };
    run.with.is_empty() && run.without.is_empty() && run.at.as_deref().is_none_or(released)
}

fn differences(scenario: &Scenario, run: &RunConfig, bare: &Outcome, sim: &Outcome) -> Vec<String> {
    let mut all = Vec::new();
    for (one, other) in bare.shown.iter().zip(&sim.shown) {
        if !one.observed.same(&other.observed) {
            let text = &scenario.steps[one.index].text;
            all.push(format!("{run}: step {} {text}: bare {}, sim {}", one.number, one.observed, other.observed));
        }
    }
    if bare.stopped != sim.stopped || bare.shown.len() != sim.shown.len() {
        all.push(format!("{run}: stopped: bare {:?}, sim {:?}", bare.stopped, sim.stopped));
    }
    all
}

/// What a guest sees of an incoherent hypervisor, where it sees anything: the runs before v5.18 and at the commits of the
/// reviewed series that differ from bare silicon.
#[test]
fn what_incoherent_hypervisors_show() {
    let mut all = Vec::new();
    for (name, scenario) in library("seed") {
        for run in scenario.runs().0.iter().filter(|run| !is_since_v5_18(run)) {
            let [bare, sim] =
                [Kind::Bare, Kind::Sim].map(|kind| engine::run_on(kind, &scenario, run, Detail::Nothing).unwrap());
            let found = differences(&scenario, run, &bare, &sim);
            assert!(found.is_empty() || !sim.findings.is_empty(), "{name}: {found:?} without a finding");
            all.extend(found.into_iter().map(|line| format!("{name}: {line}")));
        }
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("bare_differences", all.join("\n"));
    });
}

#[test]
fn sim_and_bare_observe_the_same() {
    let (mut runs, mut steps, mut all) = (0, 0, Vec::new());
    for (name, scenario) in ["seed", "nested"].into_iter().flat_map(library) {
        for run in scenario.runs().0.iter().filter(|run| is_since_v5_18(run)) {
            let [bare, sim] =
                [Kind::Bare, Kind::Sim].map(|kind| engine::run_on(kind, &scenario, run, Detail::Nothing).unwrap());
            runs += 1;
            steps += bare.shown.len();
            all.extend(differences(&scenario, run, &bare, &sim).into_iter().map(|line| format!("{name}: {line}")));
        }
    }
    println!("bare beside sim: {runs} runs, {steps} observations");
    assert!(all.is_empty(), "{}", all.join("\n"));
}
