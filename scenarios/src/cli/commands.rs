//! The commands that run or describe the model. Each takes its parsed arguments, writes to `out`, and ends with an exit
//! code or a [`CommandError`].
//!
//! What is here now is the seam: [`replay`], [`bisect`] and most of [`show`] name what they miss.

use super::args::{BisectArgs, ReplayArgs, Topic};
use super::exit_code::ExitCode;
use crate::file::{Actor, Diagnostics, Fault, VERBS};
use sim_core::SimError;
use std::io::{self, Write};
use thiserror::Error;

/// Why a command could not do its work.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The input is wrong.
    #[error(transparent)]
    Input(#[from] Diagnostics),
    /// An argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// The simulation can't go on.
    #[error(transparent)]
    Simulation(#[from] SimError),
    /// Output could not be written.
    #[error("can't write: {0}")]
    Output(#[from] io::Error),
}

impl From<Fault> for CommandError {
    fn from(fault: Fault) -> Self {
        Self::Usage(fault.to_string())
    }
}

impl CommandError {
    /// The exit code that it ends with.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Input(_) | Self::Usage(_) => ExitCode::Usage,
            Self::Simulation(_) | Self::Output(_) => ExitCode::Internal,
        }
    }
}

/// The known points of history, oldest first; empty where they are not known, so that names are not checked.
#[must_use]
pub fn known_points() -> Vec<&'static str> {
    Vec::new()
}

/// The known changes, oldest first; empty where they are not known, so that names are not checked.
#[must_use]
pub fn known_changes() -> Vec<&'static str> {
    Vec::new()
}

/// `rolecall replay`.
///
/// # Errors
/// Always: the engine that runs scenarios is missing.
pub fn replay(_arguments: &ReplayArgs, _out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    Err(SimError::unmodelled("replaying a scenario").into())
}

/// `rolecall bisect`.
///
/// # Errors
/// Always: the engine that runs scenarios is missing.
pub fn bisect(_arguments: &BisectArgs, _out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    Err(SimError::unmodelled("bisecting a scenario").into())
}

/// `rolecall show`.
///
/// # Errors
/// The topic's table is missing, or output can't be written.
pub fn show(topic: Topic, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    match topic {
        Topic::Steps => steps(out)?,
        Topic::Audits => return Err(SimError::unmodelled("the table of audits").into()),
        Topic::Changes => return Err(SimError::unmodelled("the table of changes").into()),
        Topic::Points => return Err(SimError::unmodelled("the table of points of history").into()),
        Topic::Costs => return Err(SimError::unmodelled("the table of cycle costs").into()),
    }
    Ok(ExitCode::Ok)
}

/// Columns: who can take the step, the verb with its arguments, what it does, what it can show.
fn steps(out: &mut dyn Write) -> io::Result<()> {
    for verb in VERBS {
        let actors: Vec<&str> = verb.actors.iter().copied().map(Actor::name).collect();
        let form = format!("{} {}", verb.name, verb.arguments);
        let seen: Vec<&str> = verb.observes.iter().map(|seen| seen.form()).collect();
        writeln!(out, "{:<6} {}", actors.join(","), form.trim_end())?;
        writeln!(out, "{:<6}     {}", "", verb.help)?;
        writeln!(out, "{:<6}     => {}", "", seen.join(" | "))?;
    }
    Ok(())
}
