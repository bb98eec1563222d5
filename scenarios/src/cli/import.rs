//! `rolecall import`.

use super::args::{Format, ImportArgs};
use super::commands::CommandError;
use super::exit_code::ExitCode;
use crate::import::audit;
use crate::import::page::Layout;
use crate::import::skeleton;
use crate::import::trace::{self, Trace};
use crate::import::word::Words;
use crate::report::import as report;
use mmu::change::Point;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

/// What messages call standard input.
const STDIN: &str = "<stdin>";

/// `rolecall import`: reads `input` where the file is `-`.
///
/// # Errors
/// If an argument or the trace is wrong, the skeleton's file exists, or the output is gone.
pub fn import(arguments: &ImportArgs, input: &mut dyn Read, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let point = arguments.at.as_deref().map(point).transpose()?;
    let (name, bytes) = read(&arguments.file, input)?;
    let text = trace::text_of(&name, &bytes)?;
    let trace = trace::read(&name, &text, Layout::at(point), arguments.pid)?;
    if let Some(pid) = arguments.pid.filter(|pid| !trace.tasks.contains_key(pid)) {
        return Err(no_thread(pid, &trace));
    }
    if trace.entries.len() == trace.lost.len() {
        writeln!(out, "{name}: no event that is read here, of kvmmmu or kvm: there is nothing to import")?;
        return Ok(ExitCode::Unjudged);
    }
    let words = Words::at(point.or_else(|| Point::by_name(trace.header.as_ref()?.at.as_deref()?)));
    let audited = audit::audit(&trace, &words);
    let scenario = skeleton::render(&trace, &audited, arguments.at.as_deref());
    if let Some(path) = &arguments.output {
        write_new(path, &scenario)?;
    }
    let inline = arguments.output.is_none().then_some(scenario.as_str());
    match arguments.format {
        Format::Text => {
            write!(out, "{}", report::text(&trace, &audited))?;
            if let Some(scenario) = inline {
                write!(out, "\nscenario, which -o SCENARIO writes to a file:\n\n{scenario}")?;
            }
        }
        Format::Json => {
            let text =
                serde_json::to_string_pretty(&report::json(&trace, &audited, inline)).map_err(io::Error::from)?;
            writeln!(out, "{text}")?;
        }
    }
    Ok(if audited.findings.is_empty() { ExitCode::Ok } else { ExitCode::Finding })
}

fn point(name: &str) -> Result<&'static Point, CommandError> {
    let unknown = || CommandError::Usage(format!("--at {name}: no such point of history (see: rolecall show points)"));
    Point::by_name(name).ok_or_else(unknown)
}

/// The name and the bytes of the trace.
fn read(path: &Path, input: &mut dyn Read) -> Result<(String, Vec<u8>), CommandError> {
    let fault = |error: io::Error| CommandError::Usage(format!("{}: {error}", path.display()));
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes).map_err(fault)?;
        return Ok((STDIN.to_owned(), bytes));
    }
    Ok((path.display().to_string(), fs::read(path).map_err(fault)?))
}

fn no_thread(pid: u32, trace: &Trace) -> CommandError {
    const LISTED: usize = 16;
    let known: Vec<String> =
        trace.tasks.iter().take(LISTED).map(|(pid, task)| format!("{}-{pid}", task.name)).collect();
    CommandError::Usage(format!("--pid {pid}: no such thread in the trace (it has: {})", known.join(", ")))
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, text: &str) -> Result<(), CommandError> {
    let written =
        File::options().write(true).create_new(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let what = match error.kind() {
            ErrorKind::AlreadyExists => "it exists, and is not written over: remove it, or name another".to_owned(),
            _ => error.to_string(),
        };
        CommandError::Usage(format!("--output {}: {what}", path.display()))
    })
}
