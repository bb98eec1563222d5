//! `rolecall bisect`.

use super::args::BisectArgs;
use super::commands::{CommandError, known_changes, known_points, no_run, selector};
use super::exit_code::ExitCode;
use crate::backend::Kind;
use crate::bisect::{self, BisectError, Flip, Newer};
use crate::divergence::{self, Scope, Side};
use crate::file;
use crate::report::divergence as report;
use mmu::change::Point;
use std::io::{self, Write};

/// `rolecall bisect`.
///
/// # Errors
/// If an argument or the scenario is wrong, or no run of it has an answer.
pub fn bisect(arguments: &BisectArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let scenario = file::load(&arguments.file, &known_points(), &known_changes())?;
    let selector = arguments.run.as_deref().map(selector).transpose()?;
    let newest = Point::newest();
    let oldest = newest.lineage().first().map_or(newest.name, |point| point.name);
    let good = arguments.good.as_deref().unwrap_or(oldest);
    let bad = arguments.bad.as_deref().unwrap_or(newest.name);
    let runs = bisect::timeless_runs(&scenario, selector.as_ref());
    if runs.is_empty() {
        return Err(no_run(arguments.run.as_deref()));
    }
    let mut answers: Vec<Flip> = Vec::new();
    for run in runs {
        match bisect::run_for(&scenario, &run, (good, bad), arguments.finding.as_deref()) {
            Ok(flip) => answers.push(flip),
            Err(BisectError::Same { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if answers.is_empty() {
        return Err(BisectError::Same { good: good.to_owned(), bad: bad.to_owned() }.into());
    }
    for flip in &answers {
        write_flip(flip, out)?;
        writeln!(out, "    {}", bisect::toggles(&scenario, flip)?)?;
        let sides = flip.states.each_ref().map(|state| Side { run: state.of(&flip.run), backend: Kind::Sim });
        if let Some(found) = divergence::first(&scenario, &sides, Scope::Transitions, 1)? {
            writeln!(out, "    without it (a) and with it (b) the runs part {}:", report::place(&found))?;
            write!(out, "{}", report::brief(&found))?;
        }
    }
    Ok(ExitCode::Ok)
}

fn write_flip(flip: &Flip, out: &mut dyn Write) -> io::Result<()> {
    let info = flip.info();
    let verb = match flip.newer {
        Newer::Bad => "breaks",
        Newer::Good => "mends",
    };
    writeln!(out, "{} {} ({}) {verb} {}", info.id, info.title, info.release, flip.run)?;
    for failure in &flip.failures {
        writeln!(out, "    {failure}")?;
    }
    writeln!(out, "    {}; {} runs tried", info.effect, flip.tried)
}
