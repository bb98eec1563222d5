//! `rolecall bisect`.

use super::args::BisectArgs;
use super::commands::{CommandError, known_changes, known_points, no_run, selector};
use super::exit_code::ExitCode;
use crate::backend::Kind;
use crate::bisect::{self, BisectError, Failing, Flip, Newer, switches, variant};
use crate::divergence::{self, Scope, Side};
use crate::file::{self, RunConfig, Scenario};
use crate::minimize::Document;
use crate::replay::Override;
use crate::report::{bisect as report, divergence as parting};
use mmu::change::Point;
use sim_core::SimError;
use std::io::{self, Write};

/// `rolecall bisect`.
///
/// # Errors
/// If an argument or the scenario is wrong, or no run of it has an answer.
pub fn bisect(arguments: &BisectArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let scenario = file::load(&arguments.file, &known_points(), &known_changes())?;
    if arguments.steps {
        over_steps(arguments, &scenario, out)
    } else if arguments.switches {
        over_switches(arguments, &scenario, out)
    } else {
        over_history(arguments, &scenario, out)
    }
}

/// The runs that the arguments select, at the bad point if one is given.
fn selected(arguments: &BisectArgs, scenario: &Scenario) -> Result<Vec<RunConfig>, CommandError> {
    if let Some(bad) = arguments.bad.as_deref().filter(|bad| !known_points().contains(bad)) {
        return Err(CommandError::Usage(format!("--bad {bad}: no such point of history (see: rolecall show points)")));
    }
    let at = Override { at: arguments.bad.clone(), ..Override::default() };
    let wanted = arguments.run.as_deref().map(|text| selector("--run", text)).transpose()?;
    let runs = at.runs(scenario, wanted.as_ref());
    if runs.is_empty() { Err(no_run(arguments.run.as_deref())) } else { Ok(runs) }
}

/// The first run that fails, told.
fn failing(arguments: &BisectArgs, scenario: &Scenario, out: &mut dyn Write) -> Result<Failing, CommandError> {
    let runs = selected(arguments, scenario)?;
    let found = variant::first_failing(scenario, &runs, arguments.finding.as_deref());
    let failing = found.map_err(BisectError::from)?.ok_or(BisectError::NoFailure)?;
    writeln!(out, "{}", failing.run)?;
    for failure in &failing.failures {
        writeln!(out, "    {failure}")?;
    }
    Ok(failing)
}

/// `--steps`.
fn over_steps(arguments: &BisectArgs, scenario: &Scenario, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let failing = failing(arguments, scenario, out)?;
    let rows = bisect::steps(scenario, &failing, arguments.finding.as_deref())?;
    write!(out, "{}", report::steps(&rows))?;
    Ok(ExitCode::Ok)
}

/// `--switches`.
fn over_switches(arguments: &BisectArgs, scenario: &Scenario, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let words = arguments.finding.as_deref();
    let against = arguments.against.as_deref().map(|text| selector("--against", text)).transpose()?;
    let others: Vec<RunConfig> =
        scenario.runs().0.into_iter().filter(|run| against.as_ref().is_none_or(|one| one.matches(run))).collect();
    if others.is_empty() {
        let text = arguments.against.as_deref().unwrap_or_default();
        return Err(CommandError::Usage(format!("--against {text}: no run of the matrix (see: rolecall replay)")));
    }
    let failing = failing(arguments, scenario, out)?;
    let document = Document::of_file(&arguments.file, scenario, &failing.run)?;
    write!(out, "{}", report::switches(&switches(scenario, &document, &failing, words)?))?;
    match switches::first_passing(scenario, &failing, &others, words)? {
        None => writeln!(out, "no run of the matrix to compare with passes")?,
        Some(passing) => {
            let set = switches::smallest_set(scenario, &failing, &passing, words)?;
            writeln!(out, "{passing} passes, and fails so with {}", set.join(" and "))?;
        }
    }
    Ok(ExitCode::Ok)
}

/// Over history.
fn over_history(arguments: &BisectArgs, scenario: &Scenario, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let selector = arguments.run.as_deref().map(|text| selector("--run", text)).transpose()?;
    let newest = Point::newest();
    let oldest = newest.lineage().first().map_or(newest.name, |point| point.name);
    let good = arguments.good.as_deref().unwrap_or(oldest);
    let bad = arguments.bad.as_deref().unwrap_or(newest.name);
    let runs = bisect::runs_at_no_point(scenario, selector.as_ref());
    if runs.is_empty() {
        return Err(no_run(arguments.run.as_deref()));
    }
    let (mut answers, mut unjudged): (Vec<Flip>, Option<BisectError>) = (Vec::new(), None);
    for run in runs {
        match bisect::run_for(scenario, &run, (good, bad), arguments.finding.as_deref()) {
            Ok(flip) => answers.push(flip),
            Err(BisectError::Same { .. }) => {}
            // Other runs may have an answer.
            Err(error @ BisectError::Simulation(SimError::Unmodelled { .. })) => {
                writeln!(out, "{run}: can't be judged: {error}")?;
                unjudged.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if answers.is_empty() {
        let same = BisectError::Same { good: good.to_owned(), bad: bad.to_owned() };
        return Err(unjudged.unwrap_or(same).into());
    }
    for flip in &answers {
        write_flip(flip, out)?;
        writeln!(out, "    {}", bisect::toggles(scenario, flip)?)?;
        let sides = flip.states.each_ref().map(|state| Side { run: state.of(&flip.run), backend: Kind::Sim });
        if let Some(found) = divergence::first(scenario, &sides, Scope::Transitions, 1)? {
            writeln!(out, "    without it (a) and with it (b) the runs part {}:", parting::place(&found))?;
            write!(out, "{}", parting::brief(&found))?;
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
    for failure in flip.sought.difference(&flip.failures) {
        writeln!(out, "    not with this change (see --finding): {failure}")?;
    }
    writeln!(out, "    {}; {} runs tried", info.effect, flip.tried)
}
