//! The `rolecall` command: reads its arguments, calls the command, and turns what went wrong into messages on standard
//! error and an exit code.

pub mod args;
pub mod bisect;
pub mod commands;
#[cfg(feature = "kvm")]
pub mod crosscheck;
pub mod divergence;
pub mod exit_code;
pub mod explore;
pub mod history;
pub mod import;
pub mod minimize;
mod progress;
pub mod random;
#[cfg(feature = "kvm")]
pub mod rig;

pub use exit_code::ExitCode;

use crate::file::diagnostics::count;
use crate::file::{self, Colours};
use args::{CheckArgs, Command, CommandLine};
use clap::Parser;
use commands::CommandError;
#[cfg(not(feature = "kvm"))]
use sim_core::SimError;
use std::io::{self, IsTerminal, Write};

/// Runs the command that the process's arguments name. Bad arguments end the process with exit code 2.
#[must_use]
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let colours = if io::stderr().is_terminal() { Colours::Ansi } else { Colours::Plain };
    run(&line, colours, &mut io::stdout().lock(), &mut io::stderr().lock())
}

/// Runs one command. Results go to `out`, what is wrong to `err`.
pub fn run(line: &CommandLine, colours: Colours, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let result = match &line.command {
        Command::Replay(arguments) => commands::replay(arguments, out),
        Command::Check(arguments) => check(arguments, colours, out, err),
        Command::Bisect(arguments) => bisect::bisect(arguments, out),
        Command::Divergence(arguments) => divergence::divergence(arguments, out),
        Command::Minimize(arguments) => minimize::minimize(arguments, out),
        Command::Orders(arguments) => commands::orders(arguments, out),
        Command::History(arguments) => history::history(arguments, out),
        Command::Explore(arguments) => explore::explore(arguments, out),
        Command::Random(arguments) => random::random(arguments, out),
        Command::Import(arguments) => import::import(arguments, &mut io::stdin().lock(), out),
        Command::Plants(arguments) => commands::plants(arguments, out),
        Command::Show(arguments) => commands::show(*arguments, out),
        #[cfg(feature = "kvm")]
        Command::Crosscheck(arguments) => crosscheck::crosscheck(arguments, out),
        #[cfg(not(feature = "kvm"))]
        Command::Crosscheck(_) => {
            Err(SimError::unmodelled("crosscheck in a build without the cargo feature kvm").into())
        }
        #[cfg(feature = "kvm")]
        Command::Rig(arguments) => rig::rig(arguments, out),
        #[cfg(feature = "kvm")]
        Command::RigInit(arguments) => rig::rig_init(*arguments),
        #[cfg(not(feature = "kvm"))]
        Command::Rig(_) => Err(SimError::unmodelled("a rig in a build without the cargo feature kvm").into()),
        Command::Schema => schema(out),
    };
    match result.and_then(|code| out.flush().map(|()| code).map_err(CommandError::from)) {
        Ok(code) => code,
        // The reader went away, as `head` does: nothing is wrong.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Ok,
        Err(error) => {
            let text = match &error {
                CommandError::Input(diagnostics) => diagnostics.render(colours),
                other => format!("rolecall: {other}\n"),
            };
            // Where standard error is gone, the exit code still tells.
            err.write_all(text.as_bytes()).map_or(ExitCode::Internal, |()| error.exit_code())
        }
    }
}

/// `rolecall check`: one line a good file, and every problem of the others.
fn check(
    arguments: &CheckArgs,
    colours: Colours,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let (points, changes) = (commands::known_points(), commands::known_changes());
    let mut code = ExitCode::Ok;
    for path in file::collect(&arguments.paths)? {
        match file::load(&path, &points, &changes) {
            Ok(scenario) => {
                let (runs, skipped) = scenario.runs();
                let (steps, runs) = (count(scenario.steps.len(), "step"), count(runs.len(), "run"));
                writeln!(out, "{}: {steps}, {runs}, {} skipped", path.display(), skipped.len())?;
            }
            Err(diagnostics) => {
                err.write_all(diagnostics.render(colours).as_bytes())?;
                code = ExitCode::Usage;
            }
        }
    }
    Ok(code)
}

/// `rolecall schema`.
fn schema(out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let text = serde_json::to_string_pretty(&file::json_schema()).map_err(io::Error::from)?;
    writeln!(out, "{text}")?;
    Ok(ExitCode::Ok)
}
