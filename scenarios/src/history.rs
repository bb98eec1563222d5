//! The library of real bugs: scenarios that name the commit which mended what they show. Each is replayed as its file says,
//! and bisected between the point of history before the commit and the first one with it: the answer must be the commit.

use crate::bisect::{self, BisectError, Flip};
use crate::file::{Bug, Scenario};
use crate::replay::{self, Override};
use crate::verdict::Judgement;
use mmu::change::{Change, Point};
use rayon::prelude::*;
use sim_core::event::Detail;

/// What came of one file.
#[derive(Debug)]
pub struct Row {
    /// The file.
    pub name: String,
    /// The bug that it shows.
    pub bug: Bug,
    /// The commit that mended it.
    pub fix: Change,
    /// The last point of history without the commit.
    pub broken: &'static str,
    /// The first one with it.
    pub mended: &'static str,
    /// Expectations of the file that do not hold, each with its run.
    pub failures: Vec<String>,
    /// What bisection answers, by run: nothing where both points give the same.
    pub answers: Vec<Flip>,
    /// Why a run has no answer, other than that both points give the same.
    pub errors: Vec<BisectError>,
}

impl Row {
    /// Whether the file holds, and every run that flips flips at the commit.
    #[must_use]
    pub fn holds(&self) -> bool {
        let named = !self.answers.is_empty() && self.answers.iter().all(|flip| flip.change == self.fix);
        named && self.failures.is_empty() && self.errors.is_empty()
    }
}

/// The rows as a Markdown table: one line a file, in the order of the history.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text =
        "| bug | commit | release | title | what a guest or a user saw | what notices it here |\n".to_owned();
    text.push_str("|---|---|---|---|---|---|\n");
    for row in rows {
        let (info, number) = (row.fix.info(), &row.bug.number);
        let cells = [number, info.id, info.release, info.title, &row.bug.symptom, &noticed(row)]
            .map(|cell| cell.replace('|', "\\|"));
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

/// What tells the two sides of the first run apart, in the words of the bisection.
fn noticed(row: &Row) -> String {
    let first = row.answers.first().and_then(|flip| flip.failures.first());
    first.map_or_else(|| "nothing".to_owned(), ToString::to_string)
}

/// The points of the mainline around a change: the last without it, and the first with it.
#[must_use]
pub fn around(change: Change) -> Option<(&'static str, &'static str)> {
    let lineage = Point::newest().lineage();
    let first = lineage.iter().position(|point| point.changes().contains(&change))?;
    Some((lineage[first.checked_sub(1)?].name, lineage[first].name))
}

/// Replays and bisects every file that names a bug, in parallel; the rows are in the order of the history, and the files'
/// within one commit.
#[must_use]
pub fn all(files: Vec<(String, Scenario)>) -> Vec<Row> {
    let mut rows: Vec<Row> = files.into_par_iter().filter_map(|(name, scenario)| row(name, scenario)).collect();
    rows.sort_by_key(|row| row.fix);
    rows
}

fn row(name: String, scenario: Scenario) -> Option<Row> {
    let bug = scenario.bug.clone()?;
    let fix = Change::by_id(&bug.fix)?;
    let (broken, mended) = around(fix)?;
    let replayed = replay::file(name, scenario, &Override::default(), Detail::Nothing);
    let failed = replayed.verdicts.iter().filter(|verdict| verdict.judgement != Judgement::Holds);
    let failures = failed.map(|verdict| format!("{}: {}", verdict.run, verdict.failures.join("; "))).collect();
    let (mut answers, mut errors) = (Vec::new(), Vec::new());
    for run in bisect::runs_at_no_point(&replayed.scenario, None) {
        match bisect::run(&replayed.scenario, &run, mended, broken) {
            Ok(flip) => answers.push(flip),
            Err(BisectError::Same { .. }) => {}
            Err(error) => errors.push(error),
        }
    }
    Some(Row { name: replayed.name, bug, fix, broken, mended, failures, answers, errors })
}
