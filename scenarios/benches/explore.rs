//! How fast states are explored: the root-cache model by our search and by stateright, on one thread and on two.
//!
//! `cargo bench -p scenarios --bench explore`. Items are unique states, so that the item rate is states a second; both
//! sides take the same steps through the same code and must come to the same number of states. Printed first: that number,
//! and the bytes of a visited state. `full_machines` is `explore` on the library's alphabet, where a state is a whole
//! machine.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use mmu::ChangeSet;
use mmu::change::Point;
use scenarios::explore::root_cache::{Bit, Packed, Player, RootCache};
use scenarios::explore::{self, Explored};
use scenarios::file;
use search::{Flow, Limits, Search};
use stateright::{Checker, Model, Property};
use std::cell::RefCell;
use std::path::Path;

/// A space that is exhausted, because stateright's threads do not keep to the order of depths.
fn space() -> RootCache {
    RootCache::new(ChangeSet::at(Point::by_name("v6.14").expect("a point of history")), 4, &[Bit::Wp, Bit::Smep])
}

thread_local! {
    /// stateright asks for steps through a shared reference: each of its threads has a player of its own.
    static PLAYER: RefCell<Option<Player>> = const { RefCell::new(None) };
}

/// The same space for stateright.
struct Same(RootCache);

impl Model for Same {
    type State = Packed;
    type Action = u16;

    fn init_states(&self) -> Vec<Packed> {
        vec![self.0.first()]
    }

    fn actions(&self, _: &Packed, actions: &mut Vec<u16>) {
        actions.extend(0..self.0.events().len() as u16);
    }

    fn next_state(&self, from: &Packed, step: u16) -> Option<Packed> {
        PLAYER.with_borrow_mut(|player| {
            let player = player.get_or_insert_with(|| self.0.new_player().expect("a player"));
            player.take(*from, self.0.events()[usize::from(step)]).expect("host memory")
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // What is wrong is seen by whoever took the step; that nothing is, was checked by the tests.
        vec![Property::always("coherent", |_, _| true)]
    }
}

fn ours(space: &RootCache, threads: usize) -> (u64, u64) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        let mut search = Search::new(space).expect("a first state");
        let mut violations = 0u64;
        search.run(Limits::to(u32::MAX), &mut |_, _, _| violations += 1, &mut |_| Flow::GoOn).expect("a player");
        assert_eq!(violations, 0, "v6.14 is coherent");
        (search.tree().len() as u64, search.visited_bytes())
    })
}

fn theirs(space: &RootCache, threads: usize) -> u64 {
    let checker = Same(space.clone()).checker().threads(threads).spawn_bfs().join();
    checker.unique_state_count() as u64
}

fn main() {
    let space = space();
    let (states, bytes) = ours(&space, 2);
    assert_eq!(states, theirs(&space, 2), "both searches come to the same states");
    println!("root cache: {states} states, {:.1} bytes a visited state", bytes as f64 / states as f64);
    divan::main();
}

const THREADS: [usize; 2] = [1, 2];

#[divan::bench(args = THREADS, sample_count = 5, sample_size = 1)]
fn root_cache(bencher: Bencher<'_, '_>, threads: usize) {
    let space = space();
    let states = ours(&space, 2).0;
    bencher.counter(ItemsCount::new(states)).bench(|| ours(black_box(&space), threads));
}

#[divan::bench(args = THREADS, sample_count = 5, sample_size = 1)]
fn root_cache_by_stateright(bencher: Bencher<'_, '_>, threads: usize) {
    let space = space();
    let states = ours(&space, 2).0;
    bencher.counter(ItemsCount::new(states)).bench(|| theirs(black_box(&space), threads));
}

/// Each run of the alphabet at v5.17 to this depth.
const DEPTH: u32 = 4;

#[divan::bench(args = THREADS, sample_count = 3, sample_size = 1)]
fn full_machines(bencher: Bencher<'_, '_>, threads: usize) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/explore/nested-transitions.toml");
    let scenario = file::load(&file, &["v5.17", "v6.14"], &[]).expect("the library loads");
    let mut runs = scenario.runs().0;
    runs.retain(|run| run.at.as_deref() == Some("v5.17"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let all = || -> u64 {
        let explore = |run| explore::search(&scenario, run, Limits::to(DEPTH)).as_ref().map_or(0, Explored::states);
        pool.install(|| runs.iter().map(explore).sum())
    };
    bencher.counter(ItemsCount::new(all())).bench(all);
}
