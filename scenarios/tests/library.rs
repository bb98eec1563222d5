//! The seed library: every verdict, the transition logs as goldens, the answers of bisection, the orders of the four
//! merged commits, and replay as identity.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use mmu::change::{Change, POINTS};
use scenarios::file::{self, RunConfig, Scenario};
use scenarios::replay::{self, Override, Replayed};
use scenarios::report::{json, log, table};
use scenarios::verdict::Judgement;
use scenarios::{bisect, engine, orders};
use sim_core::event::Detail;
use std::path::{Path, PathBuf};

fn seed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("library/seed")
}

fn points() -> Vec<&'static str> {
    POINTS.iter().map(|point| point.name).collect()
}

fn changes() -> Vec<&'static str> {
    Change::ALL.iter().map(|change| change.info().id).collect()
}

fn load(name: &str) -> Scenario {
    file::load(&seed().join(format!("{name}.toml")), &points(), &changes()).unwrap()
}

fn all() -> Vec<(String, Scenario)> {
    let paths = file::collect(&[seed()]).unwrap();
    paths
        .iter()
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, file::load(path, &points(), &changes()).unwrap())
        })
        .collect()
}

fn replay(threads: usize, detail: Detail) -> Vec<Replayed> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| replay::files(all(), &Override::default(), detail))
}

/// The table that a person reads: every run of the library with its verdict.
#[test]
fn every_verdict_is_as_expected() {
    let replayed = replay(0, Detail::Nothing);
    let text = table::render(&replayed);
    assert_eq!(replay::worst(&replayed), Judgement::Holds, "{text}");
    insta::assert_snapshot!("verdicts", text);
}

/// What guests must observe in every mix of modes, one file for every bug that was found and mended, and one for each mechanism of
/// the hypervisor.
#[test]
fn nested_guests_and_mechanisms_are_as_expected() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("library");
    let paths = file::collect(&["nested", "mechanisms"].map(|folder| library.join(folder))).unwrap();
    let files = paths.iter().map(|path| (path.display().to_string(), file::load(path, &points(), &changes()).unwrap()));
    let replayed = replay::files(files.collect(), &Override::default(), Detail::Nothing);
    assert_eq!(replay::worst(&replayed), Judgement::Holds, "{}", table::render(&replayed));
}

/// One golden a scenario: the log of its first incoherent run, or of its first run if none is.
#[test]
fn transition_logs() {
    for (name, scenario) in all() {
        let replayed = replay::file(name.clone(), scenario, &Override::default(), Detail::Transitions);
        let verdicts = &replayed.verdicts;
        let verdict = verdicts.iter().find(|verdict| !verdict.is_coherent()).unwrap_or(&verdicts[0]);
        let text = log::render(&verdict.outcome.as_ref().unwrap().records);
        let text = format!("{}\n{}\n{text}", replayed.scenario.title, verdict.run);
        insta::with_settings!({ snapshot_path => "../../snapshots/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name.as_str(), text);
        });
    }
}

/// Same scenario, same bytes: twice, and at one and two threads.
#[test]
fn replay_is_identity() {
    let render = |replayed: &[Replayed]| {
        let logs = replayed.iter().flat_map(|file| &file.verdicts);
        let logs: String = logs.map(|verdict| log::render(&verdict.outcome.as_ref().unwrap().records)).collect();
        format!("{}{}{logs}", table::render(replayed), json::render(replayed))
    };
    let first = render(&replay(1, Detail::Everything));
    assert_eq!(first, render(&replay(1, Detail::Everything)), "twice");
    assert_eq!(first, render(&replay(2, Detail::Everything)), "two threads");
    // Debug and release builds read the same number: overflow checks and optimisation change nothing.
    insta::assert_snapshot!("digest", format!("{:016x}", sim_core::hash::digest(&first)));
}

/// A run recorded in no detail ends in the same state as one recorded in all.
#[test]
fn recording_changes_nothing() {
    for (name, scenario) in all() {
        for run in scenario.runs().0 {
            let ends = [Detail::Nothing, Detail::Everything]
                .map(|detail| engine::run(&scenario, &run, detail).unwrap())
                .map(|outcome| (outcome.state, outcome.cycles, outcome.shown, outcome.findings.len()));
            assert_eq!(ends[0], ends[1], "{name}: {run}");
        }
    }
}

fn answers(name: &str, good: &str, bad: &str) -> Vec<&'static str> {
    let scenario = load(name);
    let runs = bisect::runs_at_no_point(&scenario, None);
    runs.iter().map(|run: &RunConfig| bisect::run(&scenario, run, good, bad).unwrap().info().id).collect()
}

/// kvm-mmu.md E.3.5 and the change that fixed C-2.
#[test]
fn bisection_names_the_change() {
    for (scenario, good, bad, id) in [
        ("c1", "v5.18", "v5.17", "d2e5f3334169"),
        ("c1", "v5.17", "v5.18", "d2e5f3334169"),
        ("c1-mov-cr3", "v5.18", "v5.17", "d2e5f3334169"),
        ("c1-smap", "v5.18", "v5.17", "d2e5f3334169"),
        ("c1-enter", "v6.14", "v5.17", "d2e5f3334169"),
        ("c2", "v6.14", "v5.17", "46d6c6f3ef0e"),
        ("c2", "v6.14", "v5.18", "46d6c6f3ef0e"),
        ("s1", "v5.17", "seed/07", "seed/07"),
        ("s1-cached", "v5.17", "seed/07", "seed/07"),
        ("s2-host-cr3", "v5.17", "seed/07", "seed/07"),
        ("s2-mov-cr3", "v5.17", "seed/07", "seed/07"),
        ("s3", "v5.17", "seed/07", "seed/07"),
        ("s3-reload", "v5.17", "seed/07", "seed/07"),
        ("s4-wp", "v5.17", "seed/07", "seed/07"),
        ("b36-32-to-64", "v5.17", "seed/07", "seed/06"),
        ("b36-64-to-32", "v5.17", "seed/07", "seed/06"),
        ("e11-swap-only", "v5.17", "swap-only", "swap-only"),
    ] {
        let answers = answers(scenario, good, bad);
        assert!(!answers.is_empty());
        assert!(answers.iter().all(|answer| *answer == id), "{scenario} {good}..{bad}: {answers:?}");
    }
}

#[test]
fn bisection_refuses_what_has_no_answer() {
    let scenario = load("s1");
    let run = &bisect::runs_at_no_point(&scenario, None)[0];
    for (good, bad, message) in [
        ("v5.17", "v5.18", "v5.17 and v5.18 give the same verdict in every run: there is nothing to bisect"),
        (
            "seed/07",
            "v5.18",
            "seed/07 and v5.18 are on different forks of history; give two points of which one builds on the other",
        ),
        ("v5.17", "v9.9", "\"v9.9\" is no point of history (see: rolecall show points)"),
    ] {
        assert_eq!(bisect::run(&scenario, run, good, bad).unwrap_err().to_string(), message);
    }
}

/// kvm-mmu.md E.1.1: the merged order is clean, and the only freedom is between the first two commits.
#[test]
fn orders_of_the_four_merged_commits() {
    let four = [Change::FreeBySp, Change::CacheKeepsCurrent, Change::InitThenPgd, Change::LookupStoredRole];
    let tried = orders::all(&all(), "v5.17", &four).unwrap();
    assert_eq!(tried.len(), 24);
    let clean: Vec<_> = tried.iter().filter(|order| order.breaks.is_none()).map(|order| &order.changes).collect();
    let first_two_swapped = [four[1], four[0], four[2], four[3]];
    assert_eq!(clean, [&four.to_vec(), &first_two_swapped.to_vec()]);
    for order in &tried {
        let position = |change: Change| order.changes.iter().position(|other| *other == change).unwrap();
        let predicted = position(Change::FreeBySp) < position(Change::InitThenPgd)
            && position(Change::CacheKeepsCurrent) < position(Change::InitThenPgd)
            && position(Change::InitThenPgd) < position(Change::LookupStoredRole);
        assert_eq!(order.breaks.is_none(), predicted, "{:?}", order.changes);
    }
}

/// Every file says what it shows and where it comes from, and every point of history that an issue of the kernel needs
/// is replayed by some file.
#[test]
fn files_are_explained() {
    for (name, scenario) in all() {
        assert!(scenario.about.as_ref().is_some_and(|about| about.len() > 40), "{name} has no about");
        assert!(!scenario.source.is_empty(), "{name} has no source");
        assert!(!scenario.expect.is_empty(), "{name} expects nothing");
    }
}
