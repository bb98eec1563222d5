//! A sample of the fuzz target: random code in every mode, in and outside of guests. `ROLECALL_CASES` multiplies the
//! number of cases (default 1).

#[path = "../examples/fuzz_code/case.rs"]
mod case;

/// Cases by default.
const CASES: u64 = 3000;

#[test]
fn no_panic_on_any_code() {
    let factor = std::env::var("ROLECALL_CASES").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(1);
    let mut totals = case::Totals::default();
    let cases = CASES * factor;
    let failed: Vec<_> = (0..cases).filter_map(|seed| Some((seed, case::run(seed, &mut totals).err()?))).collect();
    println!("fuzz cases: {cases}; {totals}");
    assert!(failed.is_empty(), "{failed:?}");
}

/// Seeds that once failed. 9000038280: the frame of an #AC was misaligned, and its delivery never came back.
const FAILED: &[u64] = &[9_000_038_280];

#[test]
fn what_failed_before() {
    let mut totals = case::Totals::default();
    for seed in FAILED {
        assert_eq!(case::run(*seed, &mut totals), Ok(()), "seed {seed}");
    }
}
