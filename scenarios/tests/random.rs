//! Random scenarios: what the generator writes is legal, at the newest point of history every audit and transparency
//! hold, and no number of threads changes the summary.

#![expect(clippy::unwrap_used, reason = "what can't be made fails the test")]

use mmu::change::POINTS;
use scenarios::file::Vendor;
use scenarios::random::campaign::{self, Campaign, Failures, Ran};
use scenarios::random::{self, Paging};
use scenarios::verdict::Judgement;

fn campaign(at: &str, seed: u64, count: u64) -> Campaign {
    Campaign { at: at.to_owned(), vendors: Vendor::ALL.to_vec(), pagings: Paging::ALL.to_vec(), seed, count }
}

fn newest() -> &'static str {
    POINTS.last().unwrap().name
}

fn run(campaign: &Campaign, threads: usize) -> Vec<Ran> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| campaign::run_all(campaign.tokens().collect())).unwrap()
}

/// Both vendors, with and without two-dimensional paging.
#[test]
fn the_newest_kernel_holds() {
    let results = run(&campaign(newest(), 0, 400), 0);
    let failed = results.iter().filter(|result| result.judgement == Judgement::Fails).count();
    let unjudged = results.iter().filter(|result| result.unjudged.is_some()).count();
    println!("{}", campaign::report(&results, Failures::Told));
    assert_eq!(failed, 0, "{}", campaign::report(&results, Failures::Told));
    assert!(unjudged * 100 < results.len(), "{}", campaign::report(&results, Failures::Told));
}

#[test]
fn threads_change_nothing() {
    let campaign = campaign("v5.17", 7, 60);
    let [one, two] = [1, 2].map(|threads| campaign::report(&run(&campaign, threads), Failures::Printed));
    assert_eq!(one, two);
}

/// Most steps take place: the generator seldom mistakes who runs.
#[test]
fn few_steps_are_left_out() {
    let (mut all, mut skipped) = (0, 0);
    for token in campaign(newest(), 1000, 100).tokens() {
        let (scenario, run) = random::scenario(&token).unwrap();
        let outcome = scenarios::engine::run(&scenario, &run, sim_core::event::Detail::Nothing).unwrap();
        all += outcome.shown.len();
        skipped += outcome.shown.iter().filter(|shown| shown.observed.to_string() == "skipped").count();
    }
    println!("steps: {all}, left out: {skipped}");
    assert!(skipped * 10 < all, "{skipped} of {all}");
}
