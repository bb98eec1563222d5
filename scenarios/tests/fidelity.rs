//! `rolecall show fidelity`: its totals, and the same as JSON.

#![expect(clippy::unwrap_used, reason = "what can't be run fails the test")]

use clap::Parser;
use scenarios::cli::{self, ExitCode, args::CommandLine};
use scenarios::file::Colours;

fn output(words: &[&str]) -> (ExitCode, String, String) {
    let line = CommandLine::try_parse_from([&["rolecall", "show"], words].concat()).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::run(&line, Colours::Plain, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// The totals count every clause once.
#[test]
fn totals_add_up() {
    let (code, text, _) = output(&["fidelity"]);
    assert_eq!(code, ExitCode::Ok);
    let (rows, totals) = text.split_once("\ntotals").unwrap();
    let clauses = rows.lines().filter(|line| line.starts_with("  ")).count();
    let numbers = totals.lines().skip(1).flat_map(|line| line.split_whitespace().rev().take(3));
    assert_eq!(numbers.map(|number| number.parse::<usize>().unwrap()).sum::<usize>(), clauses);
}

#[test]
fn json_says_the_same() {
    let (code, text, _) = output(&["fidelity", "--format", "json"]);
    assert_eq!(code, ExitCode::Ok);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = json["clauses"].as_array().unwrap();
    let counted: u64 = json["totals"].as_array().unwrap().iter().map(|row| row["modelled"].as_u64().unwrap()).sum();
    assert_eq!(rows.iter().filter(|row| row["grade"] == "modelled").count() as u64, counted);
    let (code, _, err) = output(&["steps", "--format", "json"]);
    assert_eq!((code, err.as_str()), (ExitCode::Usage, "rolecall: --format json: only `show fidelity` has it\n"));
}
