//! Instructions against the real processor: the same instruction with the same registers, flags and memory runs on the
//! host in user mode and in the simulator, and everything that the architecture defines must agree: registers, flags,
//! memory, and the exception with its error code and address.
//!
//! Families stand in `families.rs`. Where the host can't run the native program the tests say so and pass. Sizes: a few
//! thousand cases a family and mode; `ROLECALL_CASES=20 cargo test -p cpu --test native` runs twenty times as many.

mod compare;
mod families;
mod generate;
mod host;
mod program;
mod raw;
mod record;
mod simulated;

use generate::{Family, Random};
use record::{Case, Ended, Mode};
use simulated::{Path, Simulated};
use std::collections::BTreeMap;

/// Cases of one family in one mode.
const CASES: usize = 1000;

fn size() -> usize {
    let multiplier = std::env::var("ROLECALL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    CASES * multiplier
}

/// What one comparison found.
#[derive(Default)]
struct Report {
    compared: usize,
    unmodelled: BTreeMap<String, usize>,
    different: Vec<String>,
    count: usize,
}

/// What is not modelled, without the operands: the part before a colon, or a mnemonic in parentheses.
fn kind(what: &str) -> String {
    let text = what.split(':').next().unwrap_or_default();
    text.rsplit_once('(').map_or(text, |(_, mnemonic)| mnemonic.trim_end_matches(')')).to_owned()
}

/// Simulates the cases, runs natively those that the simulator models, and compares.
fn compare(name: &str, cases: Vec<Case>) -> Result<Report, host::Unavailable> {
    const SHOWN: usize = 12;
    let simulated = Simulated::new();
    let mut report = Report::default();
    let mut pairs: Vec<(Case, Ended)> = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        let path = if index % 2 == 0 { Path::Step } else { Path::Run };
        match simulated.run(&case, path) {
            Ok(ended) => pairs.push((case, ended)),
            Err(what) => {
                *report.unmodelled.entry(kind(&what)).or_default() += 1;
            }
        }
    }
    let (cases, ends): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    for (index, native) in host::run(name, &cases)?.iter().enumerate() {
        report.compared += 1;
        if let Some(difference) = compare::differs(&cases[index], native, &ends[index]) {
            report.count += 1;
            if report.different.len() < SHOWN {
                report.different.push(difference);
            }
        }
    }
    Ok(report)
}

fn judge(name: &str, mode: Mode, outcome: Result<Report, host::Unavailable>) {
    match outcome {
        Err(reason) => println!("native cases: {name} {mode:?} skipped: {reason}"),
        Ok(report) => {
            println!("native cases: {name} {mode:?} {}", report.compared);
            for (what, count) in &report.unmodelled {
                println!("  not modelled, {count} times: {what}");
            }
            let (count, shown) = (report.count, report.different.join("\n"));
            assert_eq!(count, 0, "{name} {mode:?}: {count} of {} differ:\n{shown}", report.compared);
        }
    }
}

fn run(name: &str) {
    let family = families::FAMILIES.iter().find(|family| family.name == name).expect("a family of the table");
    for &mode in family.modes {
        let cases = cases(family, mode);
        judge(name, mode, compare(&format!("{name}-{mode:?}"), cases));
    }
}

fn cases(family: &Family, mode: Mode) -> Vec<Case> {
    let codes = generate::encodings(family, mode);
    let seed = family
        .name
        .bytes()
        .fold(mode.bitness().into(), |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = Random(seed);
    let mut one = || {
        let code = generate::instruction(&mut random, family, &codes, mode);
        generate::case(&mut random, mode, family.registers, code)
    };
    (0..size()).map(|_| one()).collect()
}

/// Bytes of no family, and what is no instruction at all.
#[test]
fn raw_bytes() {
    for mode in [Mode::Bits64, Mode::Bits32, Mode::Bits16] {
        let mut random = Random(u64::from(mode.bitness()));
        let cases = (0..4 * size()).map(|_| raw::random_case(&mut random, mode)).collect();
        judge("raw", mode, compare(&format!("raw-{mode:?}"), cases));
    }
}

macro_rules! families {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        /// Every family of the table has its test.
        #[test]
        fn every_family_is_tested() {
            let tested = [$(stringify!($name)),*];
            for family in families::FAMILIES {
                assert!(tested.contains(&family.name), "{} has no test", family.name);
            }
        }
    };
}

families! {
    arithmetic logic shift multiply divide bits moves widen condition branch stack exchange flags decimal far segments mov privileged popf call cmpxchg16b string string_compare double_shift count bmi movbe cache frame table bound ports vector_move packed shuffle
}
