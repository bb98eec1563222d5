//! The search against one written down in the plainest way, at any number of threads, and in pieces.

mod rows;

use rows::{Row, Rows, SWAPS, digest, taken};
use search::{Ended, Flow, Limits, Mismatch, Move, Origin, Room, Search};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// The move with a number.
fn by(number: u16) -> Move {
    match number.checked_sub(SWAPS) {
        None => Move { step: 0, way: number },
        Some(other) => Move::of(other + 1),
    }
}

/// What a search gave, to compare.
#[derive(Debug, PartialEq, Eq)]
struct Gave {
    levels: Vec<u64>,
    taken: u64,
    origins: Vec<Origin>,
    digests: Vec<u64>,
    notes: Vec<(Vec<Move>, Row)>,
}

fn search(limits: Limits, threads: usize) -> (Gave, Ended) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        let mut search = Search::new(&Rows).expect("a first row");
        let mut notes = Vec::new();
        let mut note = |tree: &search::Tree, at: Origin, row| notes.push((tree.path(at), row));
        let ended = search.run(limits, &mut note, &mut |_| Flow::GoOn).expect("a player");
        (gave(&search, notes), ended)
    })
}

fn gave(search: &Search<'_, Rows>, notes: Vec<(Vec<Move>, Row)>) -> Gave {
    Gave {
        levels: search.levels().to_vec(),
        taken: search.taken(),
        origins: search.tree().origins().to_vec(),
        digests: search.visited().sorted(),
        notes,
    }
}

/// The same by a queue and an ordered map, state by state.
fn plainly(depth: u32) -> Gave {
    let first: Row = [0, 1, 2, 3, 4];
    let mut numbers = BTreeMap::from([(first, 0u32)]);
    let mut paths: Vec<Vec<Move>> = vec![Vec::new()];
    let mut gave = Gave { levels: vec![1], taken: 0, origins: Vec::new(), digests: Vec::new(), notes: Vec::new() };
    let mut level = vec![first];
    for _ in 0..depth {
        let mut next = Vec::new();
        for row in level {
            let from = numbers[&row];
            for step in 0..6 {
                let Some(to) = taken(row, step) else { continue };
                gave.taken += 1;
                let path = [paths[from as usize].as_slice(), &[by(step)]].concat();
                if to[0] & to[4] & 0x80 != 0 {
                    gave.notes.push((path.clone(), to));
                }
                if let Entry::Vacant(new) = numbers.entry(to) {
                    new.insert(paths.len() as u32);
                    paths.push(path);
                    gave.origins.push(Origin { from, by: by(step) });
                    next.push(to);
                }
            }
        }
        if next.is_empty() {
            break;
        }
        gave.levels.push(next.len() as u64);
        level = next;
    }
    let digests: BTreeSet<u64> = numbers.keys().map(|row| digest(*row)).collect();
    gave.digests = digests.into_iter().collect();
    gave
}

#[test]
fn as_written_down_plainly() {
    for depth in [0, 1, 4, 9, 40] {
        let (gave, ended) = search(Limits::to(depth), 2);
        assert_eq!(gave, plainly(depth), "depth {depth}");
        assert_eq!(ended, Ended::Complete);
    }
    // Every order of the tokens, each either way up.
    assert_eq!(plainly(40).digests.len(), 120 * 32);
}

#[test]
fn threads_do_not_show() {
    let limits = Limits { states: 1000, ..Limits::to(30) };
    for limits in [Limits::to(30), limits] {
        let one = search(limits, 1);
        assert_eq!(one, search(limits, 2));
        assert_eq!(one, search(limits, 8));
    }
}

#[test]
fn limits_hold() {
    let (gave, ended) = search(Limits { states: 1000, ..Limits::to(30) }, 2);
    assert_eq!((gave.digests.len(), ended), (1000, Ended::Full(Room::States)));
    let all = plainly(30);
    assert_eq!(gave.origins, all.origins[..999]);
    let (some, ended) = search(Limits { memory: 30_000, ..Limits::to(30) }, 2);
    assert_eq!(ended, Ended::Full(Room::Memory));
    assert_eq!(some.origins, all.origins[..some.origins.len()]);
}

/// A search that was resumed ends for want of memory where one in one piece does.
#[test]
fn memory_in_pieces() {
    for memory in (20_000..40_000).step_by(1000) {
        let limits = Limits { memory, ..Limits::to(30) };
        let (whole, ended) = search(limits, 2);
        let mut notes = Vec::new();
        let mut search = Search::new(&Rows).unwrap();
        let ended_in_pieces = loop {
            let mut note = |tree: &search::Tree, at: Origin, row| notes.push((tree.path(at), row));
            let ended = search.run(limits, &mut note, &mut |_| Flow::Stop).unwrap();
            if ended != Ended::Stopped {
                break ended;
            }
            search = Search::resume(&Rows, search.parts()).unwrap();
        };
        let gave = gave(&search, notes);
        assert!(gave == whole && ended_in_pieces == ended, "{memory} bytes: {:?}, {:?}", gave.levels, whole.levels);
    }
}

/// Whoever stops a search after its last batch has stopped nothing.
#[test]
fn stopped_at_the_end() {
    let mut search = Search::new(&Rows).unwrap();
    let ended = search.run(Limits::to(1), &mut |_, _, _| {}, &mut |_| Flow::Stop).unwrap();
    assert_eq!((ended, search.levels()), (Ended::Complete, &[1, 6][..]));
}

/// Stopped after each batch, and resumed from its parts or as it is, it is the same search.
#[test]
fn in_pieces() {
    let whole = plainly(12);
    for resumed in [true, false] {
        let mut notes = Vec::new();
        let mut search = Search::new(&Rows).unwrap();
        let mut depth = 1;
        loop {
            let mut note = |tree: &search::Tree, at: Origin, row| notes.push((tree.path(at), row));
            let ended = search.run(Limits::to(depth), &mut note, &mut |_| Flow::Stop).unwrap();
            if ended == Ended::Complete && depth == 12 {
                break;
            }
            // The limit grows while the level before it is still being expanded.
            depth = (depth + 1).min(12);
            if resumed {
                search = Search::resume(&Rows, search.parts()).unwrap();
            }
        }
        assert_eq!(gave(&search, notes), whole);
    }
}

/// Ended for want of room for states again and again, and gone on with each time more room, it is the same search.
#[test]
fn with_more_room_each_time() {
    let whole = plainly(12);
    for resumed in [true, false] {
        let mut search = Search::new(&Rows).unwrap();
        let mut notes = BTreeSet::new();
        let mut ends = 0;
        for states in (100..).step_by(700) {
            let mut note = |tree: &search::Tree, at: Origin, row| {
                notes.insert((tree.path(at), row));
            };
            let limits = Limits { states, ..Limits::to(12) };
            let ended = search.run(limits, &mut note, &mut |_| Flow::GoOn).unwrap();
            if ended == Ended::Complete {
                break;
            }
            assert_eq!((ended, search.tree().len()), (Ended::Full(Room::States), states));
            ends += 1;
            if resumed {
                search = Search::resume(&Rows, search.parts()).unwrap();
            }
        }
        assert!(ends > 2, "{ends}");
        assert_eq!(notes, whole.notes.iter().cloned().collect());
        assert_eq!(gave(&search, whole.notes.clone()), whole);
    }
}

/// Parts that do not belong together are told, not searched.
#[test]
fn wrong_parts() {
    let mut search = Search::new(&Rows).unwrap();
    search.run(Limits::to(4), &mut |_, _, _| {}, &mut |_| Flow::GoOn).unwrap();
    let good = search.parts();
    let refused = |change: &dyn Fn(&mut search::Parts)| {
        let mut parts = good.clone();
        change(&mut parts);
        let again = Search::resume(&Rows, parts);
        again.and_then(|mut search| search.run(Limits::to(6), &mut |_, _, _| {}, &mut |_| Flow::GoOn)).err()
    };
    assert_eq!(refused(&|_| {}), None);
    assert!(matches!(refused(&|parts| parts.origins[3].by.step = 3), Some(Mismatch::Parts(_))));
    assert!(matches!(refused(&|parts| parts.origins[3].from = 4), Some(Mismatch::Parts(_))));
    assert!(matches!(refused(&|parts| parts.levels[2] += 1), Some(Mismatch::Parts(_))));
    assert!(matches!(refused(&|parts| parts.levels[2] = u64::MAX), Some(Mismatch::Parts(_))));
    assert!(matches!(refused(&|parts| parts.visited[2] = parts.visited[1]), Some(Mismatch::Parts(_))));
    assert!(matches!(refused(&|parts| parts.expanded = 100_000), Some(Mismatch::Parts(_))));
    assert_eq!(refused(&|parts| parts.visited[0] ^= 2), Some(Mismatch::Elsewhere));
}
