//! The verdict table: one line a run, in columns with a fixed meaning.
//!
//! | column | meaning |
//! |---|---|
//! | scenario | the file's name without its ending |
//! | backend | where it ran, if `--backend` says so |
//! | vendor, tdp, ntdp | whose silicon; two-dimensional paging in L0, and offered by L1 to L2 |
//! | at | point of history, then changes toggled, then the order of a permuted block |
//! | verdict | coherent, INCOHERENT, or unjudged; open bugs of that kernel in brackets; on bare silicon, where only what the guest sees can be judged, observed |
//! | step | the first bad step: its number and text |
//! | audit | the invariant that failed first |
//! | role, root | the MMU's role and the role of the root's shadow page |
//! | differs | the names of the bits in which they differ |
//!
//! A line that does not meet its expectation begins with `!`, and the reasons follow it.

use crate::backend::Kind;
use crate::file::diagnostics::count as plural;
use crate::replay::Replayed;
use crate::verdict::{Judgement, Verdict};
use std::fmt::Write as _;

/// The cells of one line.
type Cells = [String; 12];

const HEADER: [&str; 12] =
    ["scenario", "backend", "vendor", "tdp", "ntdp", "at", "verdict", "step", "audit", "role", "root", "differs"];

/// The table of all runs, and a closing line.
#[must_use]
pub fn render(replayed: &[Replayed]) -> String {
    let rows: Vec<(&Verdict, Cells)> = replayed
        .iter()
        .flat_map(|file| file.verdicts.iter().map(move |verdict| (verdict, cells(file, verdict))))
        .collect();
    let mut widths = HEADER.map(str::len);
    let is_shown = |column: usize| HEADER[column] != "backend" || replayed.iter().any(|file| file.backend.is_some());
    for (_, cells) in &rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    line(&mut text, ' ', &HEADER.map(str::to_owned), &widths, is_shown);
    for (verdict, cells) in &rows {
        let mark = if verdict.judgement == Judgement::Holds { ' ' } else { '!' };
        line(&mut text, mark, cells, &widths, is_shown);
        for failure in &verdict.failures {
            let _ = writeln!(text, "!     {failure}");
        }
    }
    text.push_str(&closing(replayed));
    text
}

fn line(text: &mut String, mark: char, cells: &Cells, widths: &[usize; 12], is_shown: impl Fn(usize) -> bool) {
    let mut row = mark.to_string();
    for (_, (cell, width)) in cells.iter().zip(widths).enumerate().filter(|(column, _)| is_shown(*column)) {
        let _ = write!(row, " {cell:<width$} ");
    }
    text.push_str(row.trim_end());
    text.push('\n');
}

fn cells(file: &Replayed, verdict: &Verdict) -> Cells {
    let run = &verdict.run;
    let name =
        std::path::Path::new(&file.name).file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into());
    let yes = |on: bool| if on { "yes" } else { "no" }.to_owned();
    let first = verdict.first();
    let roles = first.and_then(|finding| finding.roles);
    let step = first
        .map_or_else(String::new, |finding| format!("{} {}", finding.step, verdict.step_text(&file.scenario, finding)));
    [
        name,
        file.backend.unwrap_or_default().name().to_owned(),
        run.vendor.name().to_owned(),
        yes(run.tdp),
        yes(run.nested_tdp),
        history(verdict),
        summary(verdict),
        step,
        first.map_or_else(String::new, |finding| format!("{} {}", finding.audit.id(), finding.audit.name())),
        roles.map_or_else(String::new, |roles| roles.expected.to_string()),
        roles.map_or_else(String::new, |roles| roles.actual.to_string()),
        first.map_or_else(String::new, |finding| finding.difference().join(" ")),
    ]
}

fn history(verdict: &Verdict) -> String {
    let run = &verdict.run;
    let mut text = run.at.clone().unwrap_or_else(|| "newest".to_owned());
    for (sign, changes) in [('+', &run.with), ('-', &run.without)] {
        for change in changes {
            let _ = write!(text, " {sign}{change}");
        }
    }
    if !run.order.is_empty() {
        let _ = write!(text, " order {}", run.order_name());
    }
    text
}

/// The verdict in one word, and open bugs of the kernel.
#[must_use]
pub fn summary(verdict: &Verdict) -> String {
    let stopped = verdict.outcome.as_ref().map_or(true, |outcome| outcome.stopped.is_some());
    let is_bare = verdict.outcome.as_ref().is_ok_and(|outcome| outcome.backend == Kind::Bare);
    let word = match (stopped, verdict.is_coherent()) {
        (true, _) => "unjudged",
        (false, true) if is_bare => "observed",
        (false, true) => "coherent",
        (false, false) => "INCOHERENT",
    };
    let known: Vec<_> = verdict.known().into_iter().collect();
    if known.is_empty() { word.to_owned() } else { format!("{word} [{}]", known.join(" ")) }
}

fn closing(replayed: &[Replayed]) -> String {
    let verdicts = || replayed.iter().flat_map(|file| &file.verdicts);
    let count = |judgement: Judgement| verdicts().filter(|verdict| verdict.judgement == judgement).count();
    let skipped: usize = replayed.iter().map(|file| file.skipped.len()).sum();
    format!(
        "{}, {}: {} as expected, {} not, {} unjudged; {} cannot exist\n",
        plural(replayed.len(), "scenario"),
        plural(verdicts().count(), "run"),
        count(Judgement::Holds),
        count(Judgement::Fails),
        count(Judgement::Unjudged),
        plural(skipped, "combination"),
    )
}
