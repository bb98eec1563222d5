//! `rolecall explore`.

use super::args::ExploreArgs;
use super::commands::{CommandError, known_changes, known_points, pool, selector};
use super::exit_code::ExitCode;
use crate::explore::{self, Explored, Found, Limits};
use crate::file::diagnostics::count;
use crate::file::{self, RunConfig, Scenario};
use std::io::{self, Write};

/// `rolecall explore`.
///
/// # Errors
/// If an argument or the scenario is wrong, or the output is gone.
pub fn explore(arguments: &ExploreArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let scenario = file::load(&arguments.file, &known_points(), &known_changes())?;
    let chosen = arguments.run.as_deref().map(selector).transpose()?;
    let runs = runs(&scenario, arguments)?;
    let runs: Vec<_> =
        runs.into_iter().filter(|run| chosen.as_ref().is_none_or(|chosen| chosen.matches(run))).collect();
    if runs.is_empty() {
        let selector = arguments.run.as_deref().unwrap_or_default();
        return Err(CommandError::Usage(format!("--run {selector}: no run of the matrix (see: rolecall replay)")));
    }
    if arguments.save.is_some() && runs.len() > 1 {
        return Err(CommandError::Usage(format!(
            "--save: {} runs, and a file holds one (see --run and --at)",
            runs.len()
        )));
    }
    let limits = Limits { depth: arguments.depth, states: arguments.states };
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

/// The matrix's runs, at the points that the arguments ask for.
fn runs(scenario: &Scenario, arguments: &ExploreArgs) -> Result<Vec<RunConfig>, CommandError> {
    let points = known_points();
    if let Some(at) = arguments.at.iter().find(|at| !points.contains(&at.as_str())) {
        return Err(CommandError::Usage(format!("{at}: no such point of history (see: rolecall show points)")));
    }
    let mut runs: Vec<RunConfig> = Vec::new();
    for run in scenario.runs().0 {
        let at = |at: &String| RunConfig { at: Some(at.clone()), ..run.clone() };
        let moved = if arguments.at.is_empty() { vec![run.clone()] } else { arguments.at.iter().map(at).collect() };
        runs.extend(moved.into_iter().filter(|run| !runs.contains(run)).collect::<Vec<_>>());
    }
    Ok(runs)
}

/// What a search gave: its size by depth, then each kind of finding with its shortest ordering.
fn write(scenario: &Scenario, run: &RunConfig, explored: &Explored, out: &mut dyn Write) -> io::Result<()> {
    let sizes: Vec<String> = explored.levels.iter().map(ToString::to_string).collect();
    let depth = explored.levels.len() - 1;
    let (states, taken) = (count(explored.states(), "state"), explored.taken);
    writeln!(out, "{run}: {states} to depth {depth} ({}), {taken} steps taken", sizes.join(" "))?;
    if explored.full {
        writeln!(out, "    no room for more states: the rest of this depth was not looked at (see --states)")?;
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
