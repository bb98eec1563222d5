//! The search finds what is known to be there, by the shortest ordering, and nothing else (kvm-mmu.md E.3).

use mmu::change::{Change, POINTS};
use scenarios::engine;
use scenarios::explore::orderings::{Orderings, Orders};
use scenarios::explore::saved::SaveError;
use scenarios::explore::{self, Explored};
use scenarios::file::{self, RunConfig, Scenario, Vendor};
use search::{Ended, Flow, Limits, Room};
use sim_core::event::Detail;
use std::collections::BTreeSet;
use std::path::Path;

fn alphabet() -> Scenario {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/explore/nested-transitions.toml");
    file::load(&file, &points, &changes).expect("the library loads")
}

fn runs(scenario: &Scenario, at: &str) -> Vec<RunConfig> {
    let runs = scenario.runs().0.into_iter();
    let mut runs: Vec<_> = runs.map(|run| RunConfig { at: Some(at.to_owned()), ..run }).collect();
    runs.dedup();
    runs
}

fn search(scenario: &Scenario, run: &RunConfig, depth: u32) -> Explored {
    explore::search(scenario, run, Limits::to(depth)).expect("the machine is built")
}

/// What was found: invariant, role bits, verbs' steps; known ones too.
fn summary(scenario: &Scenario, explored: &Explored) -> Vec<String> {
    let text = |found: &explore::Found| {
        let steps: Vec<_> = found.path.iter().map(|index| scenario.steps[*index].text.as_str()).collect();
        let bits = found.finding.kind().2.join(" ");
        format!("{} [{bits}] by {}", found.finding.audit.id(), steps.join("; "))
    };
    explored.found.iter().map(text).collect()
}

/// E.3.1: at v5.17 C-1 (VMX without TDP: L1's host state is free there) and C-2 (nested NPT), and nothing else. E.3.4: at
/// v6.14 nothing at all.
#[test]
fn releases() {
    let scenario = alphabet();
    for (at, expected) in [("v5.17", [true, true]), ("v5.18", [false, true]), ("v6.14", [false, false])] {
        for run in runs(&scenario, at) {
            let explored = search(&scenario, &run, 4);
            let found: BTreeSet<_> =
                explored.found.iter().map(|found| (found.finding.audit.id(), found.finding.kind().2)).collect();
            let c1 = expected[0] && run.vendor == Vendor::Intel && !run.tdp;
            let c2 = expected[1] && run.vendor == Vendor::Amd && run.nested_tdp;
            let c1 = c1.then(|| ("I2", vec!["smep_andnot_wp"]));
            let c2 = c2.then(|| ("I6", vec!["guest_mode"]));
            assert_eq!(found, c1.into_iter().chain(c2).collect(), "{run}: {:?}", summary(&scenario, &explored));
        }
    }
}

/// E.3.2: S1 to S4 at seed/07, each by its shortest ordering.
#[test]
fn the_seed() {
    let scenario = alphabet();
    let shown = |vendor: Vendor, tdp: bool, nested_tdp: bool, depth: u32| {
        let run = runs(&scenario, "seed/07")
            .into_iter()
            .find(|run| (run.vendor, run.tdp, run.nested_tdp) == (vendor, tdp, nested_tdp))
            .unwrap();
        summary(&scenario, &search(&scenario, &run, depth))
    };
    for (name, found, expected) in [
        ("S1", shown(Vendor::Intel, false, false, 1), "I2 [guest_mode] by enter l2"),
        ("S2", shown(Vendor::Intel, false, false, 2), "I2 [guest_mode] by enter l2 cr3=x host-cr3=x; exit"),
        // As short as VMRUN with another CR3, MOV CR3 and #VMEXIT, and found first.
        ("S2 on SVM", shown(Vendor::Amd, false, false, 3), "I2 [guest_mode] by enter l2; zap-all; exit"),
        ("S3", shown(Vendor::Intel, true, false, 1), "I2 [guest_mode] by enter l2"),
        ("S4", shown(Vendor::Intel, true, true, 2), "I2 [cr0_wp] by enter l2 host-cr0=-WP host-cr4=+SMEP; exit"),
    ] {
        assert!(found.iter().any(|line| line == expected), "{name}: {found:#?}");
    }
}

/// The same at any number of threads, to the last state.
#[test]
fn threads_do_not_show() {
    let scenario = alphabet();
    let run = runs(&scenario, "seed/07").into_iter().find(|run| !run.tdp).unwrap();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let explored = pool.install(|| search(&scenario, &run, 3));
        (explored.levels.clone(), explored.taken, summary(&scenario, &explored))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(8));
}

/// Every ordering that is told shows its finding when it is replayed from the start: merged states lose nothing.
#[test]
fn orderings_replay() {
    let scenario = alphabet();
    for at in ["v5.17", "seed/07"] {
        for run in runs(&scenario, at) {
            for found in search(&scenario, &run, 3).found {
                let run = RunConfig { steps: found.path.clone(), ..run.clone() };
                let outcome = engine::run(&scenario, &run, Detail::Nothing).unwrap();
                let last = outcome.findings.iter().filter(|finding| finding.step as usize == found.path.len());
                assert!(last.map(mmu::audit::Finding::kind).any(|kind| kind == found.finding.kind()), "{run}");
            }
        }
    }
}

/// Merging states loses nothing: every ordering of three steps, each run whole, finds the same kinds as the search.
#[test]
fn every_ordering_agrees() {
    let scenario = alphabet();
    let run = runs(&scenario, "seed/07").into_iter().find(|run| run.vendor == Vendor::Intel && !run.tdp).unwrap();
    let mut all = BTreeSet::new();
    let count = scenario.steps.len();
    for number in 0..count.pow(3) {
        let steps = vec![number / count / count, number / count % count, number % count];
        // Steps out of turn are left out: shorter orderings are among these.
        let outcome = engine::run(&scenario, &RunConfig { steps, ..run.clone() }, Detail::Nothing).unwrap();
        all.extend(outcome.findings.iter().map(mmu::audit::Finding::kind));
    }
    let found = search(&scenario, &run, 3).found;
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(found.iter().map(|found| found.finding.kind()).collect::<BTreeSet<_>>(), all);
}

/// A bound on states is told, not hidden.
#[test]
fn a_full_search_says_so() {
    let scenario = alphabet();
    let run = runs(&scenario, "v6.14").remove(0);
    let explored = explore::search(&scenario, &run, Limits { states: 50, ..Limits::to(4) }).unwrap();
    assert!(explored.ended == Ended::Full(Room::States) && explored.states() == 50, "{:?}", explored.levels);
}

fn search_with(file: &Path, scenario: &Scenario, run: &RunConfig, limits: Limits) -> Result<Explored, SaveError> {
    let space = Orderings::new(scenario, run, Orders::Any).expect("few steps");
    explore::search_with(file, &space, limits, &mut |_| Flow::GoOn)
}

fn temporary(name: &str) -> std::path::PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(std::fs::remove_file(&directory));
    directory
}

/// A search that is cut off after each level and gone on with is the same search.
#[test]
fn an_interrupted_search_goes_on() {
    let scenario = alphabet();
    let run = runs(&scenario, "seed/07").into_iter().find(|run| !run.tdp).unwrap();
    let file = temporary("interrupted.search");
    let whole = search(&scenario, &run, 3);
    for depth in 1..=3 {
        let part = search_with(&file, &scenario, &run, Limits::to(depth)).unwrap();
        assert_eq!(part.levels, whole.levels[..=depth as usize]);
    }
    let again = search_with(&file, &scenario, &run, Limits::to(3)).unwrap();
    let all = |explored: &Explored| {
        let found: Vec<_> =
            explored.found.iter().map(|found| (found.path.clone(), found.finding.to_string())).collect();
        (explored.levels.clone(), explored.taken, found, explored.refused.clone())
    };
    assert_eq!(all(&again), all(&whole));
}

/// A search that ended for want of room is kept too, and with more room it is the same search.
#[test]
fn a_full_search_goes_on() {
    let scenario = alphabet();
    let run = runs(&scenario, "seed/07").into_iter().find(|run| !run.tdp).unwrap();
    let file = temporary("full.search");
    let whole = search(&scenario, &run, 3);
    for states in [20, 60] {
        let part = search_with(&file, &scenario, &run, Limits { states, ..Limits::to(3) }).unwrap();
        assert_eq!((part.ended, part.states()), (Ended::Full(Room::States), states as u64));
    }
    let rest = search_with(&file, &scenario, &run, Limits::to(3)).unwrap();
    assert_eq!((&rest.levels, rest.taken, rest.ended), (&whole.levels, whole.taken, Ended::Complete));
    assert_eq!(summary(&scenario, &rest), summary(&scenario, &whole));
}

/// A damaged file, and one of another search, are refused and stay as they were.
#[test]
fn a_bad_file_is_left_alone() {
    let scenario = alphabet();
    let runs = runs(&scenario, "v6.14");
    let limits = Limits::to(1);
    let file = temporary("bad.search");
    search_with(&file, &scenario, &runs[0], limits).unwrap();
    let good = std::fs::read(&file).unwrap();
    let refused = |bytes: &[u8], run: &RunConfig, why: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error = search_with(&file, &scenario, run, limits).unwrap_err().to_string();
        assert!(error.contains("bad.search") && error.contains(why), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "{error}");
    };
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        refused(&bytes, &runs[0], "");
    }
    refused(&good[..good.len() - 1], &runs[0], "");
    refused(b"", &runs[0], "");
    refused(&good, &runs[1], "a search of");
}

/// Two vCPUs that share nothing but the host's acts, and the host.
const TWO_VCPUS: &str = "
title = 'two vCPUs'
source = ['none']
out-of-turn = 'skip'
steps = '''
l1: enter l2
l2: exit
1.l1: mov-cr3 b
1.l1: mov-cr3 a
host: zap-all
'''
[matrix]
vendor = ['intel']
tdp = [false]
at = ['seed/07']
[machine]
vcpus = 2
[space.a]
mode = 'long4'
map = ['0x400000 -> 0x200000 rw']
[space.b]
mode = 'long4'
map = ['0x400000 -> 0x201000 rw']
[guest.l1]
space = 'a'
[guest.l2]
space = 'a'
";

fn two_vcpus() -> Scenario {
    file::parse("two-vcpus", TWO_VCPUS, &["seed/07"], &[]).expect("a valid scenario")
}

fn in_order(orders: Orders) -> Explored {
    let scenario = two_vcpus();
    let run = scenario.runs().0.remove(0);
    let space = Orderings::new(&scenario, &run, orders).expect("few steps");
    explore::search_in(&space, Limits::to(5), &mut |_| Flow::GoOn).expect("a machine")
}

/// Every interleaving of two threads of two steps and one of one: states at each depth are at most the ways to have taken so
/// many, and every finding keeps each vCPU's steps in their order.
#[test]
fn interleavings() {
    let explored = in_order(Orders::Interleaved);
    // How many of each thread were taken: 3 * 3 * 2 combinations, by their sum. Where a state depends on the order too,
    // as with what zap-all frees, there are more.
    let (least, most) = ([1, 3, 5, 5, 3, 1], [1, 3, 8, 20, 30, 30]);
    assert_eq!(explored.levels.len(), 6, "{:?}", explored.levels);
    for (depth, states) in explored.levels.iter().enumerate() {
        assert!((least[depth]..=most[depth]).contains(states), "{:?}", explored.levels);
    }
    assert!(!explored.found.is_empty());
    for found in &explored.found {
        let place = |step| found.path.iter().position(|index| *index == step);
        assert!(place(1).is_none() || place(0) < place(1), "{:?}", found.path);
        assert!(place(3).is_none() || place(2) < place(3), "{:?}", found.path);
    }
}

/// A permutation takes no step twice, and is not bound to the order of the file.
#[test]
fn permutations() {
    let (permuted, interleaved) = (in_order(Orders::Permuted), in_order(Orders::Interleaved));
    assert_eq!(permuted.levels.len(), 6, "{:?}", permuted.levels);
    // mov-cr3 a may come first here.
    assert_eq!((permuted.levels[1], interleaved.levels[1]), (4, 3));
    let kinds = |explored: &Explored| explored.found.iter().map(|found| found.finding.kind()).collect::<BTreeSet<_>>();
    assert!(kinds(&permuted).is_superset(&kinds(&interleaved)));
    for found in &permuted.found {
        assert_eq!(found.path.iter().collect::<BTreeSet<_>>().len(), found.path.len());
    }
}

/// A search that is stopped between batches says so, and what it kept is gone on with.
#[test]
fn a_stopped_search_goes_on() {
    let scenario = alphabet();
    let run = runs(&scenario, "seed/07").into_iter().find(|run| !run.tdp).unwrap();
    let space = Orderings::new(&scenario, &run, Orders::Any).unwrap();
    let file = temporary("stopped.search");
    let mut stops = 0;
    let explored = loop {
        let explored = explore::search_with(&file, &space, Limits::to(4), &mut |_| Flow::Stop).unwrap();
        if explored.ended == Ended::Complete {
            break explored;
        }
        assert_eq!(explored.ended, Ended::Stopped);
        stops += 1;
    };
    assert!(stops > 1, "{stops}");
    let whole = explore::search(&scenario, &run, Limits::to(4)).unwrap();
    assert_eq!((&explored.levels, explored.taken), (&whole.levels, whole.taken));
    assert_eq!(summary(&scenario, &explored), summary(&scenario, &whole));
}

/// A bound on memory is kept, and does not depend on threads.
#[test]
fn a_bound_on_memory() {
    let scenario = alphabet();
    let run = runs(&scenario, "v6.14").remove(0);
    let limits = Limits { memory: 3_000_000, ..Limits::to(6) };
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let explored = pool.install(|| explore::search(&scenario, &run, limits)).unwrap();
        (explored.levels, explored.taken, explored.ended)
    };
    let one = with(1);
    assert_eq!(one.2, Ended::Full(Room::Memory));
    assert_eq!(one, with(2));
}
