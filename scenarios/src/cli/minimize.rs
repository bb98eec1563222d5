//! `rolecall minimize`.

use super::args::MinimizeArgs;
use super::commands::{CommandError, kernel, known_changes, known_points, no_run, selector};
use super::exit_code::ExitCode;
use crate::file::{self, RunConfig, Scenario};
use crate::minimize::{self, Document, Symptom};
use crate::random;
use sim_core::SimError;
use std::fs;
use std::io::Write;

/// What is to be minimized: a scenario's run and its document.
struct Subject {
    name: String,
    scenario: Scenario,
    /// The runs that the arguments select, in the matrix's order.
    runs: Vec<RunConfig>,
}

/// `rolecall minimize`.
///
/// # Errors
/// If an argument or the scenario is wrong, no run has such a finding or can be judged, or the output is gone.
pub fn minimize(arguments: &MinimizeArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let subject = subject(arguments)?;
    let Some((run, symptom)) = first(&subject, arguments.finding.as_deref())? else {
        let what = arguments.finding.as_ref().map_or("finding".to_owned(), |words| format!("finding like {words:?}"));
        writeln!(out, "{}: no run has a {what}: there is nothing to minimize", subject.name)?;
        return Ok(ExitCode::Unjudged);
    };
    let document = match (&arguments.token, &arguments.file) {
        (Some(token), _) => Document::of_text(&random::text(token), &subject.scenario, &run)?,
        (None, Some(path)) => Document::of_file(path, &subject.scenario, &run)?,
        (None, None) => return Err(SimError::internal("neither a file nor a token").into()),
    };
    let minimized = minimize::minimize(&document, &run, &symptom)?;
    let told = format!("# {}: {run}\n{}", subject.name, minimized.comments());
    let text = format!("{told}\n{}", minimized.document);
    match &arguments.output {
        None => write!(out, "{text}")?,
        Some(path) => {
            fs::write(path, &text)
                .map_err(|error| CommandError::Usage(format!("--output {}: {error}", path.display())))?;
            write!(out, "{told}")?;
        }
    }
    Ok(ExitCode::Ok)
}

fn subject(arguments: &MinimizeArgs) -> Result<Subject, CommandError> {
    let change = kernel(&arguments.kernel)?;
    let (name, scenario) = match (&arguments.token, &arguments.file) {
        (Some(token), _) => (token.to_string(), random::scenario(token)?.0),
        (None, Some(path)) => (path.display().to_string(), file::load(path, &known_points(), &known_changes())?),
        (None, None) => return Err(SimError::internal("neither a file nor a token").into()),
    };
    let wanted = arguments.run.as_deref().map(|text| selector("--run", text)).transpose()?;
    let runs = change.runs(&scenario, wanted.as_ref());
    if runs.is_empty() {
        return Err(no_run(arguments.run.as_deref()));
    }
    Ok(Subject { name, scenario, runs })
}

/// The first run with a finding whose description holds the wanted words, and that finding.
fn first(subject: &Subject, words: Option<&str>) -> Result<Option<(RunConfig, Symptom)>, CommandError> {
    let mut unjudged = None;
    for run in &subject.runs {
        match minimize::symptoms(&subject.scenario, run) {
            Ok(symptoms) => {
                let wanted = |symptom: &Symptom| words.is_none_or(|words| symptom.to_string().contains(words));
                if let Some(symptom) = symptoms.into_iter().find(wanted) {
                    return Ok(Some((run.clone(), symptom)));
                }
            }
            Err(error @ SimError::Unmodelled { .. }) => unjudged = unjudged.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    unjudged.map_or(Ok(None), |error| Err(error.into()))
}
