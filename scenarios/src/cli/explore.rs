//! `rolecall explore`.

use super::args::ExploreArgs;
use super::commands::{CommandError, kernel, known_changes, known_points, no_run, pool, selector};
use super::exit_code::ExitCode;
use super::progress::{Deadline, Watch};
use crate::explore::orderings::{Orderings, Orders};
use crate::explore::refusal::Cause;
use crate::explore::way::token;
use crate::explore::{self, Explored, Found, Shows, Silicon, files};
use crate::file::diagnostics::count;
use crate::file::{self, RunConfig, Scenario};
#[cfg(feature = "timely")]
use search::hosts::Hosts;
use search::{Ended, Limits, Room};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// The port of process 0 on the loopback interface, if no addresses are given.
#[cfg(feature = "timely")]
const FIRST_PORT: u16 = 2101;

/// `rolecall explore`.
///
/// # Errors
/// If an argument or the scenario is wrong, or the output is gone.
pub fn explore(arguments: &ExploreArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let scenario = file::load(&arguments.file, &known_points(), &known_changes())?;
    let chosen = arguments.run.as_deref().map(|text| selector("--run", text)).transpose()?;
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
    let limits = limits(arguments, &scenario);
    #[cfg(feature = "timely")]
    if let Some(processes) = arguments.shards.processes {
        return shared(arguments, processes, scenario, runs, out);
    }
    let pool = pool(arguments.jobs)?;
    let deadline = arguments.time.map(Deadline::within);
    let mut written = 0;
    let (mut code, mut some) = (ExitCode::Ok, false);
    for run in &runs {
        let space = Orderings::new(&scenario, run, orders(arguments))?.on(silicon(arguments));
        let mut watch = Watch::new(deadline);
        let mut see = |progress: &search::Progress| watch.see(progress);
        let explored = pool.install(|| match &arguments.save {
            Some(save) => explore::search_with(save, &space, limits, &mut see).map_err(CommandError::from),
            None => explore::search_in(&space, limits, &mut see).map_err(CommandError::from),
        });
        watch.end();
        let explored = explored?;
        write(&scenario, run, &explored, out)?;
        if let Some(directory) = &arguments.output {
            written += write_files(directory, written, &arguments.file, &scenario, run, &explored)?;
        }
        some |= explored.taken > 0;
        code = code.max(said(&explored));
    }
    if let Some(directory) = &arguments.output {
        writeln!(out, "{} in {}", count(written, "scenario"), directory.display())?;
    }
    Ok(if some || code > ExitCode::Ok { code } else { ExitCode::Unjudged })
}

/// The same search, shared with other processes.
#[cfg(feature = "timely")]
fn shared(
    arguments: &ExploreArgs,
    processes: u16,
    scenario: Scenario,
    runs: Vec<RunConfig>,
    out: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let depth = limits(arguments, &scenario).depth;
    let hosts = hosts(arguments, processes)?;
    // Workers outlive every borrow that a caller could give them: what they search stays until the process ends.
    let (scenario, runs): (&'static Scenario, &'static [RunConfig]) = (Box::leak(Box::new(scenario)), runs.leak());
    let (mut code, mut some, mut written) = (ExitCode::Ok, false, 0);
    for run in runs {
        let space = Orderings::new(scenario, run, orders(arguments))?.on(silicon(arguments));
        let Some(explored) = explore::sharded::search(space, depth, &hosts)? else { continue };
        write(scenario, run, &explored, out)?;
        if let Some(directory) = &arguments.output {
            written += write_files(directory, written, &arguments.file, scenario, run, &explored)?;
        }
        some |= explored.taken > 0;
        code = code.max(said(&explored));
    }
    let tells = arguments.shards.process == Some(0);
    if let (Some(directory), true) = (&arguments.output, tells) {
        writeln!(out, "{} in {}", count(written, "scenario"), directory.display())?;
    }
    Ok(if some || code > ExitCode::Ok || !tells { code } else { ExitCode::Unjudged })
}

/// The processes that the arguments name.
#[cfg(feature = "timely")]
fn hosts(arguments: &ExploreArgs, processes: u16) -> Result<Hosts, CommandError> {
    let shards = &arguments.shards;
    let addresses: Vec<String> = match &shards.hosts {
        None => (0..processes).map(|process| format!("127.0.0.1:{}", FIRST_PORT.saturating_add(process))).collect(),
        Some(path) => {
            let text = fs::read_to_string(path)
                .map_err(|error| CommandError::Usage(format!("--hosts {}: {error}", path.display())))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
    };
    let process = shards.process.unwrap_or_default();
    if addresses.len() != usize::from(processes) || process >= processes {
        let count = addresses.len();
        let what = format!("--process {process} of --processes {processes} with {count} addresses (see --hosts)");
        return Err(CommandError::Usage(what));
    }
    Ok(Hosts { addresses, process: usize::from(process), workers: arguments.jobs.map_or(1, usize::from) })
}

const fn orders(arguments: &ExploreArgs) -> Orders {
    match (arguments.permute, arguments.interleave) {
        (true, _) => Orders::Permuted,
        (false, true) => Orders::Interleaved,
        (false, false) => Orders::Any,
    }
}

const fn silicon(arguments: &ExploreArgs) -> Silicon {
    if arguments.choices { Silicon::Free } else { Silicon::Modelled }
}

fn limits(arguments: &ExploreArgs, scenario: &Scenario) -> Limits {
    // Where each step comes once, all of them is what is asked for.
    let all = scenario.steps.len() as u32;
    let depth = if orders(arguments) == Orders::Any { 4 } else { all };
    Limits { depth: arguments.depth.unwrap_or(depth), states: arguments.states, memory: arguments.memory }
}

/// What a search says to scripts.
fn said(explored: &Explored) -> ExitCode {
    let refused = |cause| explored.refused.keys().any(|refusal| refusal.cause == cause);
    if refused(Cause::Internal) {
        ExitCode::Internal
    } else if explored.unknown().next().is_some() || refused(Cause::Runaway) {
        ExitCode::Finding
    } else {
        ExitCode::Ok
    }
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
        Ended::Stopped => writeln!(
            out,
            "    out of time: {rest}; how far it came depends on the machine (see --time, and --save to go on)"
        )?,
    }
    for Found { finding, path, choices, .. } in &explored.found {
        writeln!(out, "  {finding}")?;
        write_path(scenario, path, out)?;
        writeln!(out, "    (replay --steps {})", token(path, choices))?;
    }
    for Shows { observed, path, choices } in &explored.shown {
        writeln!(out, "  by a choice of the silicon the last step shows {observed}")?;
        write_path(scenario, path, out)?;
        writeln!(out, "    (replay --steps {})", token(path, choices))?;
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

/// Writes each ordering that shows a finding as a scenario of its own, numbered after those that are there.
fn write_files(
    directory: &Path,
    before: usize,
    file: &Path,
    scenario: &Scenario,
    run: &RunConfig,
    explored: &Explored,
) -> Result<usize, CommandError> {
    let wrong = |path: &Path, error: io::Error| CommandError::Usage(format!("--output {}: {error}", path.display()));
    fs::create_dir_all(directory).map_err(|error| wrong(directory, error))?;
    for (number, found) in (before + 1..).zip(&explored.found) {
        let text = files::text(file, scenario, run, found)?;
        let path = directory.join(format!("{number:03}-{}.toml", found.finding.audit.name()));
        fs::write(&path, text).map_err(|error| wrong(&path, error))?;
    }
    Ok(explored.found.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_core::SimError;
    use std::collections::BTreeMap;

    #[test]
    fn exit_codes() {
        let (internal, runaway) = (SimError::internal("a rule"), SimError::Runaway { budget: 1, rip: 2 });
        let unmodelled = SimError::unmodelled("something");
        for (refused, code) in [
            (vec![], ExitCode::Ok),
            (vec![&unmodelled], ExitCode::Ok),
            (vec![&unmodelled, &runaway], ExitCode::Finding),
            (vec![&runaway, &internal], ExitCode::Internal),
        ] {
            let refused: BTreeMap<_, _> = refused.into_iter().map(|error| (error.clone().into(), vec![0])).collect();
            let (found, shown) = (Vec::new(), Vec::new());
            let explored = Explored { levels: vec![1], taken: 0, found, shown, refused, ended: Ended::Complete };
            assert_eq!(said(&explored), code);
        }
    }
}
