//! What bisections over steps and over configuration found, as tables: `!` marks what flips the verdict.

use crate::bisect::{Effect, StepRow, SwitchRow};
use std::fmt::Write as _;

const fn mark(flips: bool) -> char {
    if flips { '!' } else { ' ' }
}

/// The steps of a run, what can't be seen in a word below.
#[must_use]
pub fn steps(rows: &[StepRow]) -> String {
    let mut text = "  step  without it  swapped with the next  text\n".to_owned();
    let mut notes = String::new();
    for row in rows {
        let StepRow { number, text: step, removed, swapped } = row;
        let mark = mark(row.is_critical());
        let after = swapped.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let _ = writeln!(text, "{mark} {number:>4}  {removed:<10}  {after:<21}  {step}");
        let swapped = swapped.as_ref().and_then(Effect::note);
        for (how, note) in [("without", removed.note()), ("swapped", swapped)] {
            if let Some(note) = note {
                let _ = writeln!(notes, "    {how} {number}: {note}");
            }
        }
    }
    text.push_str(&notes);
    let first = |flips: fn(&StepRow) -> bool| rows.iter().find(|row| flips(row)).map(|row| row.number);
    match first(|row| row.removed.flips()) {
        Some(number) => {
            let _ = writeln!(text, "the first step that it can't do without: {number}");
        }
        None => text.push_str("it can do without any one step\n"),
    }
    match first(|row| row.swapped.as_ref().is_some_and(Effect::flips)) {
        Some(number) => {
            let _ = writeln!(text, "the first two that must keep their order: {number} and {}", number + 1);
        }
        None => text.push_str("no two neighbours must keep their order\n"),
    }
    text
}

/// The parameters of a run.
#[must_use]
pub fn switches(rows: &[SwitchRow]) -> String {
    let width = |of: fn(&SwitchRow) -> &str| rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0).max(9);
    let (names, values, others) = (width(|row| &row.name), width(|row| &row.from), width(|row| &row.to));
    let mut text = format!("  {:<names$}  {:<values$}  {:<others$}  with that\n", "parameter", "value", "other");
    for SwitchRow { name, from, to, effect } in rows {
        let note = effect.note().map_or_else(String::new, |note| format!("  {note}"));
        let mark = mark(effect.flips());
        let _ = writeln!(text, "{mark} {name:<names$}  {from:<values$}  {to:<others$}  {effect}{note}");
    }
    text
}
