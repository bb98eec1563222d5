//! Choices of the silicon in a search: every way of a step is followed, nothing that is found without them is missed, and
//! what is told can be replayed.

use mmu::change::{Change, POINTS};
use scenarios::engine;
use scenarios::engine::board::{Board, Position};
use scenarios::explore::orderings::{Orderings, Orders};
use scenarios::explore::way::{Way, Ways};
use scenarios::explore::{self, Explored, Silicon};
use scenarios::file::{self, RunConfig, Scenario};
use search::{Ended, Flow, Limits, Move, Room};
use sim_core::event::Detail;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn alphabet(name: &str) -> Scenario {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/explore").join(name);
    file::load(&file, &points, &changes).expect("the library loads")
}

fn search(scenario: &Scenario, run: &RunConfig, silicon: Silicon, depth: u32) -> Explored {
    let space = Orderings::new(scenario, run, Orders::Any).expect("few steps").on(silicon);
    explore::search_in(&space, Limits::to(depth), &mut |_| Flow::GoOn).expect("the machine is built")
}

/// What steps show by choices, with the length of the shortest ordering.
type Shortest = BTreeMap<(usize, String), usize>;

fn shortest(explored: &Explored) -> Shortest {
    let shown = explored.shown.iter().map(|shows| {
        let step = *shows.path.last().expect("a step");
        ((step, shows.observed.clone()), shows.path.len())
    });
    shown.collect()
}

/// A page is mapped elsewhere: without INVLPG a read finds the old page or the new one, each in an ordering that replays.
#[test]
fn old_and_new() {
    let scenario = alphabet("stale-translations.toml");
    for run in scenario.runs().0.into_iter().filter(|run| run.tdp) {
        let (with, without) =
            (search(&scenario, &run, Silicon::Free, 4), search(&scenario, &run, Silicon::Modelled, 4));
        assert!(without.shown.is_empty() && with.states() > without.states(), "{:?} {:?}", with.levels, without.levels);
        let shown: Vec<_> = with.shown.iter().map(|shows| (shows.observed.as_str(), shows.path.len())).collect();
        assert_eq!(shown, [("0x2222", 3), ("0x1111", 4)], "{run}");
        for shows in &with.shown {
            let run = RunConfig { steps: shows.path.clone(), choices: shows.choices.clone(), ..run.clone() };
            let outcome = engine::run(&scenario, &run, Detail::Nothing).expect("a machine");
            let last = outcome.shown.last().expect("a step");
            assert_eq!((outcome.shown.len(), last.observed.to_string()), (shows.path.len(), shows.observed.clone()));
        }
    }
}

/// Every ordering and every way, from position to position, none merged with another.
struct Plainly<'a> {
    board: Board<'a>,
    steps: u16,
    depth: usize,
    found: Shortest,
}

impl Plainly<'_> {
    fn from(&mut self, position: &Position, before: usize) {
        if before == self.depth {
            return;
        }
        for step in (0..self.steps).filter(|step| self.board.may_take(position, usize::from(*step))).collect::<Vec<_>>()
        {
            let mut ways = Ways::default();
            for way in 0.. {
                let by = Move { step, way };
                let number = before as u32 + 1;
                let taken = ways.take(&mut self.board, Silicon::Free, (position, number), by).expect("a processor");
                let behind = self.board.position();
                if let Way::Shows(_, observed) = taken {
                    if let Some(observed) = observed {
                        let least = self.found.entry((usize::from(step), observed)).or_insert(before + 1);
                        *least = (*least).min(before + 1);
                    }
                    self.from(&behind, before + 1);
                }
                if !ways.has_more() {
                    break;
                }
            }
        }
    }
}

/// What every ordering to a depth shows by choices, with the length of the shortest.
fn plainly(scenario: &Scenario, run: &RunConfig, depth: usize) -> Shortest {
    let board = Board::new(scenario, run, Silicon::Free).expect("a machine");
    let first = board.position();
    let mut plainly = Plainly { board, steps: scenario.steps.len() as u16, depth, found: Shortest::new() };
    plainly.from(&first, 0);
    plainly.found
}

/// States that may remember the same are one: nothing is lost by it.
#[test]
fn merging_loses_nothing() {
    let scenario = alphabet("stale-translations.toml");
    for run in scenario.runs().0 {
        let plainly = plainly(&scenario, &run, 4);
        assert_eq!(plainly, shortest(&search(&scenario, &run, Silicon::Free, 4)), "{run}");
        // Without TDP the hypervisor flushes when the guest's table is written.
        assert_eq!(plainly.is_empty(), !run.tdp, "{run}: {plainly:?}");
    }
}

/// A store into a table is translated as well: by a stale translation it goes where it may go no longer.
const TABLE_PAGE: &str = "
title = 'the page that a table is in'
source = ['none']
steps = '''
l1: set-entry a 1 0x84000 -W -A -D
l1: set-entry a 1 0x84000 +W +A +D
l1: set-entry a 1 0x400000 -W
l1: read 0x401000
'''
[matrix]
vendor = ['intel', 'amd']
tdp = [true, false]
nested-tdp = [false]
[space.a]
mode = 'long4'
# A read brings the table's page into the hypervisor's tables.
map = ['0x400000 -> 0x200000 rw', '0x401000 -> 0x84000 r']
[guest.l1]
space = 'a'
cr0 = '+WP'
";

/// The digest of the state that an ordering leads to by choices, so that the modelled caches are empty behind it, and
/// everything that one more step can show there.
fn behind(scenario: &Scenario, run: &RunConfig, path: &[usize], next: u16) -> (u64, BTreeSet<String>) {
    let mut board = Board::new(scenario, run, Silicon::Free).expect("a machine");
    for (number, step) in (1..).zip(path) {
        let from = board.position();
        board.take_freely(&from, number, *step, Vec::new()).expect("a processor").0.expect("a step");
    }
    let (key, from, number) = (board.key().expect("a digest"), board.position(), path.len() as u32 + 1);
    let (mut ways, mut shows) = (Ways::default(), BTreeSet::new());
    for way in 0.. {
        let by = Move { step: next, way };
        if let Way::Shows(shown, _) = ways.take(&mut board, Silicon::Free, (&from, number), by).expect("a processor") {
            shows.insert(shown.observed.to_string());
        }
        if !ways.has_more() {
            break;
        }
    }
    (key, shows)
}

/// A state that may remember that a table was writable is not one that may not.
#[test]
fn stores_into_tables() {
    let scenario = file::parse("table-page", TABLE_PAGE, &[], &[]).expect("a valid scenario");
    for run in scenario.runs().0 {
        let [not_writable, was_writable] = [[3, 0, 0], [3, 1, 0]].map(|path| behind(&scenario, &run, &path, 2));
        // Without TDP the hypervisor flushes when the guest's table is written.
        assert_eq!(not_writable.1 != was_writable.1, run.tdp, "{run}: {not_writable:?} {was_writable:?}");
        assert!(!run.tdp || not_writable.0 != was_writable.0, "{run}: {not_writable:?} {was_writable:?}");
    }
}

/// A store that faults does not change the table, but what later steps take for its entry.
const FAULTING_STORE: &str = "
title = 'stores into a table that is mapped read-only'
source = ['none']
steps = '''
l1: set-entry a 1 0x400000 +W
l1: set-entry a 1 0x400000 -P
'''
[matrix]
vendor = ['intel']
tdp = [false, true]
[space.a]
mode = 'long4'
map = ['0x84000 -> 0x84000 r', '0x400000 -> 0x200000 rw']
[guest.l1]
space = 'a'
cr0 = '+WP'
";

#[test]
fn what_steps_take_for_an_entry() {
    let scenario = file::parse("faulting-store", FAULTING_STORE, &[], &[]).expect("a valid scenario");
    for run in scenario.runs().0 {
        for silicon in [Silicon::Modelled, Silicon::Free] {
            let mut board = Board::new(&scenario, &run, silicon).expect("a machine");
            let first = board.position();
            let mut behind = |index| {
                let shown = board.take(&first, 1, index).expect("a step");
                (shown.observed.to_string(), board.key().expect("a digest"))
            };
            let ((same, kept), (faulted, changed)) = (behind(0), behind(1));
            assert_eq!((same.as_str(), faulted.as_str()), ("#PF(0x3) cr2 0x84000", "#PF(0x3) cr2 0x84000"), "{run}");
            assert_ne!(kept, changed, "{run}");
        }
    }
}

/// What is found without choices is found with them, by an ordering as short.
#[test]
fn never_fewer() {
    let scenario = alphabet("nested-transitions.toml");
    let runs = scenario.runs().0.into_iter().map(|run| RunConfig { at: Some("seed/07".to_owned()), ..run });
    let run = runs.into_iter().find(|run| !run.tdp).expect("a run");
    let found = |silicon| -> Vec<_> {
        let found = search(&scenario, &run, silicon, 2).found.into_iter();
        found.map(|found| (found.finding.kind(), found.path)).collect()
    };
    let without = found(Silicon::Modelled);
    assert!(!without.is_empty());
    let with = found(Silicon::Free);
    for (kind, path) in without {
        let as_short = with.iter().any(|(other, way)| *other == kind && way.len() <= path.len());
        assert!(as_short, "{kind:?} by {path:?}, with choices {with:?}");
    }
}

/// The same at any number of threads, and in pieces.
#[test]
fn threads_and_pieces() {
    let scenario = alphabet("stale-translations.toml");
    let run = scenario.runs().0.into_iter().find(|run| run.tdp).expect("a run");
    let all = |explored: Explored| (explored.levels, explored.taken, explored.shown);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        all(pool.install(|| search(&scenario, &run, Silicon::Free, 5)))
    };
    let one = with(1);
    assert_eq!(one, with(8));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("choices.search");
    drop(std::fs::remove_file(&file));
    let space = Orderings::new(&scenario, &run, Orders::Any).expect("few steps").on(Silicon::Free);
    for states in [5, 12, usize::MAX] {
        let limits = Limits { states, ..Limits::to(5) };
        let part = explore::search_with(&file, &space, limits, &mut |_| Flow::GoOn).expect("a search");
        match part.ended {
            Ended::Full(room) => assert_eq!((room, part.states()), (Room::States, states as u64)),
            _ => assert_eq!(all(part), one),
        }
    }
    let other = space.on(Silicon::Modelled);
    let refused = explore::search_with(&file, &other, Limits::to(5), &mut |_| Flow::GoOn);
    assert!(refused.is_err_and(|error| error.to_string().contains("a search of")));
}
