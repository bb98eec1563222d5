//! What replay costs: steps a second over the seed library, and cloning and hashing a machine state.
//!
//! `cargo bench -p scenarios`. The library is replayed on one thread, so that the figure is one of the simulator and
//! not of the machine's cores; with and without the audits' raw material (events).

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use mmu::change::{Change, POINTS};
use scenarios::engine;
use scenarios::file::{self, Scenario};
use sim_core::event::Detail;
use std::path::Path;

fn main() {
    divan::main();
}

fn library() -> Vec<Scenario> {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/seed");
    let paths = file::collect(&[seed]).expect("the seed library");
    paths.iter().map(|path| file::load(path, &points, &changes).expect("a valid scenario")).collect()
}

fn replay(bencher: Bencher<'_, '_>, detail: Detail) {
    let library = library();
    let steps: usize = library.iter().map(|file| file.runs().0.iter().map(|run| run.steps.len()).sum::<usize>()).sum();
    bencher.counter(ItemsCount::new(steps)).bench(|| {
        for scenario in &library {
            for run in scenario.runs().0 {
                black_box(engine::run(scenario, &run, detail).expect("a machine"));
            }
        }
    });
}

/// Items are scenario steps; each includes building its machine's share.
#[divan::bench]
fn library_steps_without_events(bencher: Bencher<'_, '_>) {
    replay(bencher, Detail::Nothing);
}

/// The same with the transition log recorded.
#[divan::bench]
fn library_steps_with_transitions(bencher: Bencher<'_, '_>) {
    replay(bencher, Detail::Transitions);
}

fn machine() -> hypervisor::Machine {
    let library = library();
    let scenario = library.iter().find(|file| file.title.starts_with("S8")).expect("S8 is in the library");
    let run = scenario.runs().0.remove(0);
    engine::machine_after(scenario, &run).expect("a machine")
}

/// A clone of a whole machine: memory is shared until written.
#[divan::bench]
fn machine_clone(bencher: Bencher<'_, '_>) {
    let machine = machine();
    bencher.bench(|| black_box(machine.clone()));
}

/// The state hash of a machine whose memory digests are known.
#[divan::bench]
fn machine_hash_warm(bencher: Bencher<'_, '_>) {
    let machine = machine();
    bencher.bench(|| black_box(machine.state_hash()));
}

/// The state hash after one frame was written.
#[divan::bench]
fn machine_hash_after_a_write(bencher: Bencher<'_, '_>) {
    let machine = machine();
    bencher
        .with_inputs(|| {
            let mut machine = machine.clone();
            machine.guest_write(sim_core::Gpa(0x30_0000), &[1]);
            machine
        })
        .bench_values(|machine| black_box(machine.state_hash()));
}
