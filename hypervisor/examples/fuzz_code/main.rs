//! Random code in random machines, until something panics: see `docs/fuzzing.md`.
//!
//! `fuzz_code [SEED [CASES]]` runs cases from a seed on, without end if no number is given. Each case stands for itself:
//! `fuzz_code SEED 1` replays one. The exit code is 1 if a case failed.

#[path = "case.rs"]
mod case;

use std::process::ExitCode;

/// How many cases pass between two lines of progress.
const REPORT_EVERY: u64 = 20_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (first, count) = match (arguments.next(), arguments.next()) {
        (None, _) => (0, u64::MAX),
        (Some(Ok(first)), None) => (first, u64::MAX),
        (Some(Ok(first)), Some(Ok(count))) => (first, count),
        _ => {
            eprintln!("usage: fuzz_code [SEED [CASES]]");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0u64;
    let mut totals = case::Totals::default();
    for done in 0..count {
        let seed = first.wrapping_add(done);
        if let Err(what) = case::run(seed, &mut totals) {
            println!("seed {seed}: {what}");
            failed += 1;
        }
        if (done + 1) % REPORT_EVERY == 0 {
            println!("{} cases, {failed} failed; {totals}", done + 1);
        }
    }
    println!("{count} cases, {failed} failed; {totals}");
    ExitCode::from(u8::from(failed > 0))
}
