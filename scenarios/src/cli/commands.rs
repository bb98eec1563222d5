//! The commands that run scenarios or show what rolecall knows.

use super::args::{
    BackendName, Format, KernelArgs, OrdersArgs, PlantsArgs, ReplayArgs, Report, ShowArgs, Steps, Topic,
};
use super::exit_code::ExitCode;
use crate::backend::Kind;
use crate::bisect::BisectError;
use crate::explore::saved::SaveError;
use crate::file::{self, Actor, Diagnostics, Fault, RunConfig, Scenario, Selector, Source, VERBS, Vendor};
use crate::orders;
use crate::plants;
use crate::random;
use crate::replay::{self, Override, Replayed};
use crate::report::{fidelity, json, log, over_flush, side_by_side, table, trace};
use crate::verdict::{Judgement, Verdict};
use mmu::audit::Audit;
use mmu::change::{Change, POINTS};
use mmu::plant::Plant;
use mmu::spte;
use sim_core::SimError;
use sim_core::clock::Cost;
use sim_core::event::Detail;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use thiserror::Error;

/// Why a command did not do its work.
#[derive(Debug, Error)]
pub enum CommandError {
    /// A scenario is wrong.
    #[error(transparent)]
    Input(#[from] Diagnostics),
    /// An argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// A bisection has no answer.
    #[error(transparent)]
    Bisect(#[from] BisectError),
    /// The simulation can't go on.
    #[error(transparent)]
    Simulation(#[from] SimError),
    /// A search can't be kept in a file, or not gone on with.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// Standard output is gone.
    #[error("can't write: {0}")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// The exit code that says so.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Save(SaveError::Search(SimError::Unmodelled { .. })) => ExitCode::Unjudged,
            Self::Save(SaveError::Search(_)) => ExitCode::Internal,
            Self::Input(_) | Self::Usage(_) | Self::Save(_) => ExitCode::Usage,
            Self::Bisect(
                BisectError::Simulation(SimError::Unmodelled { .. })
                | BisectError::Same { .. }
                | BisectError::NoFailure,
            )
            | Self::Simulation(SimError::Unmodelled { .. }) => ExitCode::Unjudged,
            Self::Bisect(BisectError::NoPoint(_) | BisectError::Unrelated { .. }) => ExitCode::Usage,
            Self::Bisect(BisectError::Simulation(_)) | Self::Simulation(_) | Self::Output(_) => ExitCode::Internal,
        }
    }
}

/// The names of the points of history.
#[must_use]
pub fn known_points() -> Vec<&'static str> {
    POINTS.iter().map(|point| point.name).collect()
}

/// The ids of the changes.
#[must_use]
pub fn known_changes() -> Vec<&'static str> {
    Change::ALL.iter().map(|change| change.info().id).collect()
}

/// Loads every file, or tells what is wrong with all of them.
pub(super) fn load_all(paths: &[PathBuf]) -> Result<Vec<(String, Scenario)>, CommandError> {
    let mut files = Vec::new();
    let mut diagnostics = Diagnostics::default();
    for path in file::collect(paths)? {
        match file::load(&path, &known_points(), &known_changes()) {
            Ok(scenario) => files.push((path.display().to_string(), scenario)),
            Err(problems) => diagnostics.append(problems),
        }
    }
    Ok(diagnostics.or(files)?)
}

/// The changes that `replay`'s arguments make to every run.
fn overridden(arguments: &ReplayArgs) -> Result<Override, CommandError> {
    let backend = arguments.backend.map(backend).transpose()?;
    let change = Override { backend, ..kernel(&arguments.kernel)? };
    let Some(Steps { numbers, choices }) = &arguments.steps else { return Ok(change) };
    let steps = numbers.iter().map(|number| number - 1).collect();
    Ok(Override { steps: Some(steps), choices: choices.clone(), ..change })
}

/// The kernel that the arguments ask for, its names checked.
pub(super) fn kernel(arguments: &KernelArgs) -> Result<Override, CommandError> {
    let KernelArgs { at, with, without, plant } = arguments.clone();
    let change = Override { at, with, without, plants: plant, ..Override::default() };
    if let Some(point) = &change.at
        && !known_points().contains(&point.as_str())
    {
        return Err(CommandError::Usage(format!("--at {point}: no such point of history (see: rolecall show points)")));
    }
    for id in change.with.iter().chain(&change.without) {
        if Change::by_id(id).is_none() {
            return Err(CommandError::Usage(format!("{id}: no such change (see: rolecall show changes)")));
        }
    }
    if let Some(id) = change.with.iter().find(|id| change.without.contains(id)) {
        return Err(CommandError::Usage(format!(
            "{id}: --with and --without name the same change; keep one of the two"
        )));
    }
    if let Some(name) = change.plants.iter().find(|name| Plant::by_name(name).is_none()) {
        return Err(CommandError::Usage(format!("--plant {name}: no such mistake (see: rolecall show plants)")));
    }
    Ok(change)
}

fn backend(name: BackendName) -> Result<Kind, CommandError> {
    match name {
        BackendName::Bare => Ok(Kind::Bare),
        BackendName::Sim => Ok(Kind::Sim),
        #[cfg(feature = "kvm")]
        BackendName::Kvm => Ok(Kind::Kvm),
        #[cfg(not(feature = "kvm"))]
        BackendName::Kvm => {
            Err(SimError::unmodelled("the kvm backend, which is not built in (cargo feature kvm)").into())
        }
    }
}

/// `rolecall replay`.
///
/// # Errors
/// If an argument or a scenario is wrong, or the output is gone.
pub fn replay(arguments: &ReplayArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let change = overridden(arguments)?;
    let mut files = if arguments.paths.is_empty() { Vec::new() } else { load_all(&arguments.paths)? };
    for token in &arguments.token {
        files.push((token.to_string(), random::scenario(token)?.0));
    }
    if let Some(Steps { numbers, .. }) = &arguments.steps {
        for (name, scenario) in &files {
            if let Some(number) = numbers.iter().find(|number| **number > scenario.steps.len()) {
                let count = scenario.steps.len();
                return Err(CommandError::Usage(format!("--steps: step {number} of {name}, which has {count}")));
            }
        }
    }
    let detail = match (&arguments.trace, arguments.log || arguments.report.contains(&Report::OverFlush)) {
        (Some(_), _) => Detail::Everything,
        (None, true) => Detail::Transitions,
        (None, false) => Detail::Nothing,
    };
    let mut replayed = pool(arguments.jobs)?.install(|| replay::files(files, &change, detail));
    keep_run(&mut replayed, arguments.run)?;
    if arguments.side_by_side {
        write!(out, "{}", side_by_side::render(&replayed)?)?;
        return Ok(if change.is_empty() { judged_code(&replayed) } else { findings_code(&replayed) });
    }
    if arguments.log {
        write_logs(&replayed, out)?;
    }
    if let Some(path) = &arguments.trace {
        fs::write(path, traces(&replayed))
            .map_err(|error| CommandError::Usage(format!("--trace {}: {error}", path.display())))?;
    }
    for report in &arguments.report {
        match report {
            Report::Stats => write_stats(&replayed, out)?,
            Report::OverFlush => write_over_flushes(&replayed, arguments.format, out)?,
        }
    }
    match arguments.format {
        Format::Text => write!(out, "{}", table::render(&replayed))?,
        Format::Json => {
            let text = serde_json::to_string_pretty(&json::render(&replayed)).map_err(io::Error::from)?;
            writeln!(out, "{text}")?;
        }
    }
    if !change.is_empty() {
        // The file's expectations were written for its own points of history: only findings count here.
        return Ok(findings_code(&replayed));
    }
    Ok(judged_code(&replayed))
}

/// Threads for a command; as many as there are cores, if it does not say.
pub(super) fn pool(jobs: Option<u16>) -> Result<rayon::ThreadPool, CommandError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(jobs.map_or(0, usize::from)).build();
    pool.map_err(|error| SimError::internal(format!("no threads: {error}")).into())
}

/// The exit code where the files say what must hold.
fn judged_code(replayed: &[Replayed]) -> ExitCode {
    if broke(replayed) {
        return ExitCode::Internal;
    }
    match replay::worst(replayed) {
        Judgement::Holds => ExitCode::Ok,
        Judgement::Fails => ExitCode::Finding,
        Judgement::Unjudged => ExitCode::Unjudged,
    }
}

/// The exit code where the command line, and not the file, says what kernel it is: a finding is a finding, so that
/// `git bisect run` and scripts can use it.
fn findings_code(replayed: &[Replayed]) -> ExitCode {
    let verdicts = || replayed.iter().flat_map(|file| &file.verdicts);
    let runaway = |verdict: &Verdict| matches!(verdict.stopped(), Some(SimError::Runaway { .. }));
    if broke(replayed) {
        ExitCode::Internal
    } else if verdicts().any(|verdict| !verdict.is_coherent() || verdict.difference().is_some() || runaway(verdict)) {
        ExitCode::Finding
    } else if verdicts().any(|verdict| verdict.stopped().is_some()) {
        ExitCode::Unjudged
    } else {
        ExitCode::Ok
    }
}

/// Whether the simulator broke one of its own rules in some run: that is no verdict on the scenario.
fn broke(replayed: &[Replayed]) -> bool {
    let mut verdicts = replayed.iter().flat_map(|file| &file.verdicts);
    verdicts.any(|verdict| matches!(verdict.stopped(), Some(SimError::Internal(_))))
}

fn keep_run(replayed: &mut Vec<Replayed>, number: Option<u32>) -> Result<(), CommandError> {
    let Some(number) = number else { return Ok(()) };
    let total: usize = replayed.iter().map(|file| file.verdicts.len()).sum();
    let mut left = number as usize;
    if left > total {
        return Err(CommandError::Usage(format!("--run {number}: there are {total} runs")));
    }
    for file in replayed.iter_mut() {
        let count = file.verdicts.len();
        let mut index = 0;
        file.verdicts.retain(|_| {
            index += 1;
            index == left
        });
        left = left.saturating_sub(count);
        if file.verdicts.len() == 1 {
            left = usize::MAX;
        }
    }
    replayed.retain(|file| !file.verdicts.is_empty());
    Ok(())
}

/// The traces of all runs, each behind a comment that names it.
fn traces(replayed: &[Replayed]) -> String {
    let mut text = String::new();
    for file in replayed {
        for verdict in &file.verdicts {
            text.push_str(&format!("# {}: {}\n", file.name, verdict.run));
            if let Ok(outcome) = &verdict.outcome {
                if let Some(why) = &outcome.closed {
                    text.push_str(&format!("# nothing of the kernel's MMU: {why}\n"));
                }
                text.push_str(&trace::render(&outcome.records, format_of(&verdict.run)));
            }
        }
    }
    text
}

/// The format of the entries that the hypervisor writes in a run.
fn format_of(run: &RunConfig) -> spte::Format {
    match (run.vendor, run.tdp) {
        (Vendor::Intel, true) => spte::Format::Ept,
        (Vendor::Intel | Vendor::Amd, _) => spte::Format::Paging,
    }
}

/// In JSON the report is the whole output of its run, one object a run.
fn write_over_flushes(replayed: &[Replayed], format: Format, out: &mut dyn Write) -> io::Result<()> {
    for file in replayed {
        for verdict in &file.verdicts {
            let records = verdict.outcome.as_ref().map_or(&[][..], |outcome| &outcome.records);
            match format {
                Format::Text => write!(out, "{}: {}\n{}", file.name, verdict.run, over_flush::render(records))?,
                Format::Json => {
                    let run = verdict.run.to_string();
                    let flushes = over_flush::json(records);
                    writeln!(out, "{}", serde_json::json!({ "scenario": file.name, "run": run, "flushes": flushes }))?;
                }
            }
        }
    }
    Ok(())
}

fn write_stats(replayed: &[Replayed], out: &mut dyn Write) -> io::Result<()> {
    for file in replayed {
        for verdict in &file.verdicts {
            writeln!(out, "{}: {}", file.name, verdict.run)?;
            for (stat, count) in verdict.outcome.iter().flat_map(|outcome| outcome.stats.nonzero()) {
                writeln!(out, "  {:<28} {count}", stat.name())?;
            }
        }
    }
    Ok(())
}

fn write_logs(replayed: &[Replayed], out: &mut dyn Write) -> io::Result<()> {
    for file in replayed {
        for verdict in &file.verdicts {
            writeln!(out, "== {}: {}", file.name, verdict.run)?;
            match &verdict.outcome {
                Ok(outcome) => {
                    if let Some(why) = &outcome.closed {
                        writeln!(out, "nothing of the kernel's MMU: {why}")?;
                    }
                    writeln!(out, "{}", log::render(&outcome.records))?;
                }
                Err(error) => writeln!(out, "{error}\n")?,
            }
        }
    }
    Ok(())
}

/// A selector that selects nothing.
pub(super) fn no_run(selector: Option<&str>) -> CommandError {
    let selector = selector.unwrap_or_default();
    CommandError::Usage(format!("--run {selector}: no run of the matrix (see: rolecall replay)"))
}

/// The selector that an argument gives, or where in it the fault is.
pub(super) fn selector(name: &str, text: &str) -> Result<Selector, CommandError> {
    text.parse().map_err(|fault: Fault| {
        let column = Source::new(name, text).position(fault.at.start).1;
        CommandError::Usage(format!("{name} {text}: column {column}: {fault}"))
    })
}

/// `rolecall plants`.
///
/// # Errors
/// If an argument or a scenario is wrong, or the output is gone.
pub fn plants(arguments: &PlantsArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let find = |name: &String| {
        Plant::by_name(name)
            .ok_or_else(|| CommandError::Usage(format!("--plant {name}: no such mistake (see: rolecall show plants)")))
    };
    let named = arguments.plant.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let wanted = if named.is_empty() { Plant::ALL } else { &named };
    let files = load_all(&arguments.paths)?;
    let rows = plants::all(&files, wanted);
    for row in &rows {
        match &row.caught {
            Some(caught) => {
                let file = PathBuf::from(&caught.scenario);
                let file = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                writeln!(out, "{:<44} {:<20} {file}", row.plant.name(), caught.by.name())?;
            }
            None => writeln!(out, "{:<44} NOT NOTICED", row.plant.name())?,
        }
    }
    let noticed = rows.iter().filter(|row| row.caught.is_some()).count();
    writeln!(out, "{noticed} of {} mistakes are noticed", rows.len())?;
    Ok(if noticed == rows.len() { ExitCode::Ok } else { ExitCode::Finding })
}

/// `rolecall orders`.
///
/// # Errors
/// If an argument or a scenario is wrong, or a run can't be judged.
pub fn orders(arguments: &OrdersArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    if !known_points().contains(&arguments.base.as_str()) {
        return Err(CommandError::Usage(format!("--base {}: no such point of history", arguments.base)));
    }
    let find = |id: &String| {
        Change::by_id(id)
            .ok_or_else(|| CommandError::Usage(format!("{id}: no such change (see: rolecall show changes)")))
    };
    let changes = arguments.changes.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    if changes.len() > orders::MOST_CHANGES {
        let most = orders::MOST_CHANGES;
        return Err(CommandError::Usage(format!(
            "--changes: {} commits have too many orders; at most {most}",
            changes.len()
        )));
    }
    if let Some(twice) = (1..changes.len()).find(|index| changes[..*index].contains(&changes[*index])) {
        return Err(CommandError::Usage(format!("--changes: {} is given twice", changes[twice])));
    }
    let files = load_all(&arguments.paths)?;
    let tried = orders::all(&files, &arguments.base, &changes)?;
    for order in &tried {
        let names: Vec<_> = order.changes.iter().map(ToString::to_string).collect();
        match &order.breaks {
            None => writeln!(out, "clean   {}", names.join(" "))?,
            Some((applied, breakage)) => {
                let (audit, mmu, bits) = &breakage.kind;
                let file = std::path::Path::new(&breakage.scenario).file_stem().unwrap_or_default().to_string_lossy();
                let what = format!("{} in {mmu} {}", audit.name(), bits.join(" "));
                writeln!(out, "breaks  {}  after {applied}: {file}: {}", names.join(" "), what.trim_end())?;
            }
        }
    }
    let clean = tried.iter().filter(|order| order.breaks.is_none()).count();
    writeln!(out, "{clean} of {} orders are clean on {}", tried.len(), arguments.base)?;
    Ok(ExitCode::Ok)
}

/// `rolecall show`.
///
/// # Errors
/// If the topic has no such format, or the output is gone.
pub fn show(arguments: ShowArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    if arguments.format == Format::Json && arguments.what != Topic::Fidelity {
        return Err(CommandError::Usage("--format json: only `show fidelity` has it".to_owned()));
    }
    match arguments.what {
        Topic::Fidelity if arguments.format == Format::Json => {
            let text = serde_json::to_string_pretty(&fidelity::json()).map_err(io::Error::from)?;
            writeln!(out, "{text}")?;
        }
        Topic::Fidelity => write!(out, "{}", fidelity::text())?,
        Topic::Steps => steps(out)?,
        Topic::Audits => {
            for audit in Audit::ALL {
                writeln!(out, "{:<4} {:<16} {}", audit.id(), audit.name(), audit.about())?;
            }
        }
        Topic::Changes => changes(out)?,
        Topic::Points => points(out)?,
        Topic::Plants => {
            for plant in Plant::ALL {
                writeln!(out, "{:<28} {}", plant.name(), plant.about())?;
            }
        }
        Topic::Random => {
            for (verb, actors, weight) in random::weights() {
                let actors: Vec<&str> = actors.iter().copied().map(Actor::name).collect();
                writeln!(out, "{:<6} {verb:<17} {weight:>3}", actors.join(","))?;
            }
        }
        Topic::Costs => {
            for cost in Cost::ALL {
                writeln!(out, "{:<16} {:>5} cycles", cost.name(), cost.cycles())?;
            }
        }
    }
    Ok(ExitCode::Ok)
}

fn changes(out: &mut dyn Write) -> io::Result<()> {
    for change in Change::ALL {
        let info = change.info();
        let kind = format!("{:?}", info.kind).to_lowercase();
        writeln!(out, "{:<13} {:<15} {kind:<9} {}", info.id, info.release, info.title)?;
        writeln!(out, "{:<13} {:<15} {:<9} {}", "", "", "", info.effect)?;
    }
    Ok(())
}

fn points(out: &mut dyn Write) -> io::Result<()> {
    for point in POINTS {
        let adds: String = point.adds().iter().map(|change| format!(" + {change}")).collect();
        let row = format!("{:<13} on {:<13} {:<40}{adds}", point.name, point.parent.unwrap_or("-"), point.about);
        writeln!(out, "{}", row.trim_end())?;
    }
    Ok(())
}

fn steps(out: &mut dyn Write) -> io::Result<()> {
    for verb in VERBS {
        let actors: Vec<&str> = verb.actors.iter().copied().map(Actor::name).collect();
        let form = format!("{} {}", verb.name, verb.arguments);
        let seen: Vec<&str> = verb.observes.iter().map(|seen| seen.form()).collect();
        writeln!(out, "{:<9} {}", actors.join(","), form.trim_end())?;
        writeln!(out, "{:<9}     {}", "", verb.help)?;
        writeln!(out, "{:<9}     => {}", "", seen.join(" | "))?;
    }
    Ok(())
}
