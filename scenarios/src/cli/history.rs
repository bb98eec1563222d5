//! `rolecall history`: the library of real bugs as a table, one line a file.

use super::args::{HistoryArgs, HistoryFormat};
use super::commands::{self, CommandError};
use super::exit_code::ExitCode;
use crate::file::Scenario;
use crate::file::diagnostics::count;
use crate::history::{self, Row};
use mmu::change::Change;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// Replays and bisects the files that name a bug, and tells which commit each of them blames.
///
/// # Errors
/// If a file is wrong or names no bug, or the output is gone.
pub fn history(arguments: &HistoryArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let files = commands::load_all(&arguments.paths)?;
    if let Some((name, _)) = files.iter().find(|(_, scenario)| scenario.bug.is_none()) {
        return Err(CommandError::Usage(format!("{name}: no table [bug]: the file names no commit")));
    }
    let fix = |scenario: &Scenario| scenario.bug.as_ref().and_then(|bug| Change::by_id(&bug.fix));
    if let Some((name, _)) = files.iter().find(|(_, scenario)| fix(scenario).and_then(history::around).is_none()) {
        return Err(CommandError::Usage(format!(
            "{name}: its fix is no commit of the mainline with a point before it"
        )));
    }
    let rows = commands::pool(arguments.jobs)?.install(|| history::all(files));
    match arguments.format {
        HistoryFormat::Text => rows.iter().try_for_each(|row| write_row(row, out))?,
        HistoryFormat::Markdown => writeln!(out, "{}", history::table(&rows))?,
    }
    let good = rows.iter().filter(|row| row.holds()).count();
    let fixes: BTreeSet<_> = rows.iter().filter(|row| row.holds()).map(|row| row.fix).collect();
    let (all, commits) = (count(rows.len(), "scenario"), count(fixes.len(), "commit"));
    writeln!(out, "{all}, {good} break before and hold after, and bisect to their commit: {commits}")?;
    Ok(if good == rows.len() { ExitCode::Ok } else { ExitCode::Finding })
}

fn write_row(row: &Row, out: &mut dyn Write) -> Result<(), CommandError> {
    let (info, stem) = (row.fix.info(), Path::new(&row.name).file_stem().unwrap_or_default().to_string_lossy());
    let blames: BTreeSet<_> = row.answers.iter().map(|flip| flip.change).collect();
    let blames = match blames.len() {
        0 => "nothing".to_owned(),
        _ => blames.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    let verdict = if row.holds() { "ok" } else { "WRONG" };
    writeln!(out, "{:<5} {:<5} {:<8} {blames}  {}", verdict, row.bug.number, info.release, info.title)?;
    writeln!(out, "{:<11} {stem}: {} -> {}: {}", "", row.broken, row.mended, row.bug.symptom)?;
    for failure in &row.failures {
        writeln!(out, "{:<11} {failure}", "")?;
    }
    for error in &row.errors {
        writeln!(out, "{:<11} {error}", "")?;
    }
    Ok(())
}
