//! `rolecall divergence`.

use super::args::{DivergenceArgs, Format, KernelArgs};
use super::commands::{CommandError, kernel, known_changes, known_points, no_run, selector};
use super::exit_code::ExitCode;
use crate::backend::Kind;
use crate::divergence::{self, Scope, Side};
use crate::file::{self, RunConfig, Scenario, Source, Vendor};
use crate::report::divergence as report;
use serde::Deserialize;
use std::io::{self, Write};

/// What a side changes of the run that it starts from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Changes {
    vendor: Option<Vendor>,
    tdp: Option<bool>,
    nested_tdp: Option<bool>,
    vpid: Option<bool>,
    at: Option<String>,
    with: Option<Vec<String>>,
    without: Option<Vec<String>>,
    plant: Option<Vec<String>>,
    order: Option<String>,
    backend: Option<Backend>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    Bare,
    Sim,
}

/// The table that the changes are read in.
#[derive(Debug, Deserialize)]
struct Line {
    s: Changes,
}

/// `rolecall divergence`.
///
/// # Errors
/// If an argument or the scenario is wrong, a machine can't be built, or the output is gone.
pub fn divergence(arguments: &DivergenceArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let scenario = file::load(&arguments.file, &known_points(), &known_changes())?;
    let wanted = arguments.run.as_deref().map(|text| selector("--run", text)).transpose()?;
    let runs = scenario.runs().0;
    let base = runs.into_iter().find(|run| wanted.as_ref().is_none_or(|wanted| wanted.matches(run)));
    let base = base.ok_or_else(|| no_run(arguments.run.as_deref()))?;
    let side = |name, text: Option<&str>| match text {
        Some(text) => {
            side(&scenario, &base, text).map_err(|error| CommandError::Usage(format!("{name} {text}: {error}")))
        }
        None => Ok(Side { run: base.clone(), backend: Kind::Sim }),
    };
    let sides = [side("--a", arguments.a.as_deref())?, side("--b", arguments.b.as_deref())?];
    let scope = if arguments.observations { Scope::Observations } else { divergence::scope_of(&sides) };
    let found = divergence::first(&scenario, &sides, scope, usize::from(arguments.context))?;
    match arguments.format {
        Format::Text => write!(out, "{}", report::text(&sides, scope.about(), found.as_ref()))?,
        Format::Json => {
            let json = report::json(&sides, scope.about(), found.as_ref());
            writeln!(out, "{}", serde_json::to_string_pretty(&json).map_err(io::Error::from)?)?;
        }
    }
    Ok(if found.is_some() { ExitCode::Finding } else { ExitCode::Ok })
}

/// A side, or what is wrong with what it changes.
fn side(scenario: &Scenario, base: &RunConfig, text: &str) -> Result<Side, String> {
    let changes = read(text)?;
    let asked = KernelArgs {
        at: changes.at.clone(),
        with: changes.with.clone().unwrap_or_default(),
        without: changes.without.clone().unwrap_or_default(),
        plant: changes.plant.clone().unwrap_or_default(),
    };
    kernel(&asked).map_err(|error| error.to_string())?;
    let mut run = base.clone();
    if let Some(order) = &changes.order {
        run = reordered(scenario, &run, order)?;
    }
    set(&mut run.vendor, changes.vendor);
    // What L1 can offer follows what L0 has, as in a matrix without the axis.
    set(&mut run.nested_tdp, changes.nested_tdp.or(changes.tdp.filter(|tdp| !tdp)));
    set(&mut run.tdp, changes.tdp);
    set(&mut run.vpid, changes.vpid);
    set(&mut run.at, changes.at.map(Some));
    set(&mut run.with, changes.with);
    set(&mut run.without, changes.without);
    set(&mut run.plants, changes.plant);
    if let Some(why) = run.impossible() {
        return Err(why.to_owned());
    }
    let backend = match changes.backend {
        Some(Backend::Bare) => Kind::Bare,
        Some(Backend::Sim) | None => Kind::Sim,
    };
    Ok(Side { run, backend })
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn read(text: &str) -> Result<Changes, String> {
    const BEFORE: &str = "s={";
    let line = format!("{BEFORE}{text}}}");
    toml::from_str(&line).map(|Line { s }| s).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.saturating_sub(BEFORE.len()).min(text.len()));
        let column = Source::new("side", text).position(at).1;
        format!("column {column}: {}", error.message())
    })
}

/// The run with another order of the `permute` block.
fn reordered(scenario: &Scenario, run: &RunConfig, order: &str) -> Result<RunConfig, String> {
    let found = scenario.runs().0.into_iter().find(|other| other.order_name() == order && !other.order.is_empty());
    let found = found.ok_or_else(|| format!("{order} is no order of the file's permute block"))?;
    Ok(RunConfig { order: found.order, steps: found.steps, ..run.clone() })
}
