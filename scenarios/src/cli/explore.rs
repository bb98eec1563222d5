//! `rolecall explore`.

use super::args::ExploreArgs;
use super::commands::{CommandError, kernel, known_changes, known_points, no_run, pool, selector};
use super::exit_code::ExitCode;
use crate::explore::{self, Explored, Found};
use crate::file::diagnostics::count;
use crate::file::{self, RunConfig, Scenario};
use search::{Ended, Limits, Room};
use std::io::{self, Write};

/// `rolecall explore`.
///
/// # Errors
/// If an argument or the scenario is wrong, or the output is gone.
pub fn explore(arguments: &ExploreArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let scenario = file::load(&arguments.file, &known_points(), &known_changes())?;
    let chosen = arguments.run.as_deref().map(selector).transpose()?;
    let runs = kernel(&arguments.kernel)?.runs(&scenario, chosen.as_ref());
    if runs.is_empty() {
        return Err(no_run(arguments.run.as_deref()));
    }
    if arguments.save.is_some() && runs.len() > 1 {
        return Err(CommandError::Usage(format!(
            "--save: {} runs, and a file holds one (see --run and --at)",
            runs.len()
        )));
    }
    let limits = Limits { depth: arguments.depth, states: arguments.states, memory: u64::MAX };
    let pool = pool(arguments.jobs)?;
    let (mut code, mut some) = (ExitCode::Ok, false);
    for run in &runs {
        let explored = pool.install(|| match &arguments.save {
            Some(save) => explore::search_with(save, &scenario, run, limits).map_err(CommandError::from),
            None => explore::search(&scenario, run, limits).map_err(CommandError::from),
        })?;
        write(&scenario, run, &explored, out)?;
        some |= explored.taken > 0;
        if explored.unknown().next().is_some() {
            code = ExitCode::Finding;
        }
    }
    Ok(if some { code } else { ExitCode::Unjudged })
}

/// What a search gave: its size by depth, then each kind of finding with its shortest ordering.
fn write(scenario: &Scenario, run: &RunConfig, explored: &Explored, out: &mut dyn Write) -> io::Result<()> {
    let sizes: Vec<String> = explored.levels.iter().map(ToString::to_string).collect();
    let depth = explored.levels.len() - 1;
    let (states, taken) = (count(explored.states() as usize, "state"), explored.taken);
    writeln!(out, "{run}: {states} to depth {depth} ({}), {taken} steps taken", sizes.join(" "))?;
    let rest = "the rest of this depth was not looked at";
    match explored.ended {
        Ended::Complete => {}
        Ended::Full(Room::States) => writeln!(out, "    no room for more states: {rest} (see --states)")?,
        Ended::Full(Room::Memory) => writeln!(out, "    no room for more memory: {rest} (see --memory)")?,
        Ended::Stopped => writeln!(out, "    out of time: {rest} (see --time)")?,
    }
    for Found { finding, path, .. } in &explored.found {
        writeln!(out, "  {finding}")?;
        write_path(scenario, path, out)?;
    }
    for (why, path) in &explored.refused {
        writeln!(out, "  not taken: {why}")?;
        write_path(scenario, path, out)?;
    }
    Ok(())
}

fn write_path(scenario: &Scenario, path: &[usize], out: &mut dyn Write) -> io::Result<()> {
    for step in path.iter().filter_map(|index| scenario.steps.get(*index)) {
        writeln!(out, "    {step}")?;
    }
    Ok(())
}
