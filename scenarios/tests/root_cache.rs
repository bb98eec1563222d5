//! The root-cache model: what it finds at each point of history, and that it is the same at any number of threads.

use mmu::ChangeSet;
use mmu::change::Point;
use scenarios::explore::root_cache::{Bit, Event, RootCache, Violation};
use search::{Ended, Flow, Limits, Search};
use std::collections::BTreeMap;

const BITS: [Bit; 3] = [Bit::Wp, Bit::Smep, Bit::Nxe];

fn space(at: &str) -> RootCache {
    RootCache::new(ChangeSet::at(Point::by_name(at).expect("a point of history")), 3, &BITS)
}

/// States by depth, and each violation with the first path to it.
fn explored(space: &RootCache, depth: u32) -> (Vec<u64>, BTreeMap<Violation, Vec<Event>>) {
    let mut search = Search::new(space).expect("a first state");
    let mut found = BTreeMap::new();
    let mut note = |tree: &search::Tree, at: search::Origin, violation| {
        let path = || tree.path(at).into_iter().map(|by| space.events()[usize::from(by.step)]).collect();
        found.entry(Result::expect(violation, "host memory")).or_insert_with(path);
    };
    let ended = search.run(Limits::to(depth), &mut note, &mut |_| Flow::GoOn).expect("a player");
    assert_eq!(ended, Ended::Complete);
    (search.levels().to_vec(), found)
}

/// C-1 at v5.17, S1 at seed/07 with every other bit, nothing once the look-up takes the stored role of an MMU that is up to date.
#[test]
fn history() {
    let roles = |at: &str| -> Vec<Vec<&'static str>> {
        let (_, found) = explored(&space(at), 4);
        let roles = found.keys().map(|violation| match violation {
            Violation::RootRole(differs) => differs.difference(mmu::role::PageRole(0)),
            Violation::RootPgd => vec!["pgd"],
        });
        roles.collect()
    };
    assert_eq!(roles("v5.17"), [["smep_andnot_wp"]]);
    assert_eq!(roles("v5.18"), Vec::<Vec<&str>>::new());
    assert_eq!(roles("v6.14"), Vec::<Vec<&str>>::new());
    let seed = roles("seed/07");
    assert!(seed.contains(&vec!["guest_mode"]), "{seed:?}");
    assert!(seed.iter().all(|bits| bits.contains(&"guest_mode")), "{seed:?}");
}

/// S1: an entry with L1's own CR3 finds L1's root.
#[test]
fn the_shortest() {
    let (_, found) = explored(&space("seed/07"), 2);
    let guest_mode = Violation::RootRole(mmu::role::PageRole(0).with_guest_mode(1));
    assert_eq!(found.get(&guest_mode).map(Vec::len), Some(2), "{found:?}");
}

#[test]
fn threads_do_not_show() {
    let space = space("seed/07");
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| explored(&space, 6))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(8));
}

/// What the search keeps of a visited state.
#[test]
fn bytes_of_a_visited_state() {
    let space = space("v6.14");
    let mut search = Search::new(&space).expect("a first state");
    search.run(Limits::to(7), &mut |_, _, _| {}, &mut |_| Flow::GoOn).expect("a player");
    let (bytes, states) = (search.visited_bytes(), search.tree().len() as u64);
    println!("{states} states, {} bytes a state", bytes / states);
    assert!(states > 10_000 && bytes <= 64 * states, "{bytes} bytes for {states} states");
}
