//! Which parameter makes a run fail: the axes of the matrix, the hypervisor's module parameters, and what the file says
//! of the machine and of L1's guests, one at a time. Beside a run that passes, also the smallest set of differences
//! that makes that one fail.
//!
//! Changes of history are left to the walk over points. Numbers are not searched: each has one other value here.

use super::failure::Judge;
use super::variant::{Effect, Failing, effect};
use crate::file::{self, RunConfig, Scenario};
use crate::minimize::{Document, Part, Place, ddmin};
use sim_core::SimError;
use toml::Value;

/// The axes of the matrix that are switched, with their values.
const AXES: [(&str, &[&str]); 4] = [
    ("vendor", &["\"intel\"", "\"amd\""]),
    ("tdp", &["false", "true"]),
    ("nested-tdp", &["false", "true"]),
    ("vpid", &["false", "true"]),
];
/// Keys of the machine, with their values as the file spells them, the default first.
const MACHINE: [(&str, &[&str]); 15] = [
    ("flush-on-reuse", &["false", "true"]),
    ("host-pages", &["\"4K\"", "\"2M\"", "\"1G\""]),
    ("direct-mmu", &["\"tdp\"", "\"legacy\""]),
    ("nx-huge-pages", &["false", "true"]),
    ("accessed-dirty", &["true", "false"]),
    ("pml", &["false", "true"]),
    ("shadow-vmcs", &["false", "true"]),
    ("contended", &["false", "true"]),
    ("tdp-levels", &["4", "5"]),
    ("vpids", &["65535", "0"]),
    ("asids", &["32768", "2"]),
    ("mmu-pages", &["1024", "64"]),
    ("mmio-generation-bits", &["19", "3"]),
    ("invalidations", &["0", "2147483648"]),
    ("tlb", &["\"base\"", "\"skylake\"", "\"zen4\"", "\"unbounded\"", "\"bochs\""]),
];
/// Keys without which a file means something else altogether.
const KEPT: [&str; 5] = ["memory", "vcpus", "processors", "space", "steps"];

/// What comes of another value of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchRow {
    /// The parameter.
    pub name: String,
    /// Its value in the failing run.
    pub from: String,
    /// The other value.
    pub to: String,
    /// What the run shows with that.
    pub effect: Effect,
}

/// A value as a file spells it.
fn spelled(text: &str) -> Result<Value, SimError> {
    let table: toml::Table =
        format!("value = {text}").parse().map_err(|error| SimError::internal(format!("{error}")))?;
    table.get("value").cloned().ok_or_else(|| SimError::internal(format!("no value in {text}")))
}

fn path(keys: &[&str]) -> Part {
    keys.iter().map(|key| Place::Key((*key).to_owned())).collect()
}

/// One variant: the parameter, its value, the other one, and the document with that.
type Variant = (String, String, String, Document);

fn variants(document: &Document, run: &RunConfig) -> Result<Vec<Variant>, SimError> {
    let mut all = Vec::new();
    let now =
        [format!("\"{}\"", run.vendor.name()), run.tdp.to_string(), run.nested_tdp.to_string(), run.vpid.to_string()];
    for ((axis, values), now) in AXES.iter().zip(now) {
        for other in values.iter().filter(|value| **value != now) {
            let mut changed = document.with_key("matrix", axis, Value::Array(vec![spelled(other)?]));
            // What L1 can offer follows what L0 has.
            if (*axis, *other) == ("tdp", "false") {
                changed = changed.with_key("matrix", "nested-tdp", Value::Array(vec![Value::Boolean(false)]));
            }
            all.push(((*axis).to_owned(), now.clone(), (*other).to_owned(), changed));
        }
    }
    for (key, values) in MACHINE {
        let set = document.get(&path(&["machine", key])).map(ToString::to_string);
        let now = set.unwrap_or_else(|| values[0].to_owned());
        for other in values.iter().filter(|value| **value != now) {
            let changed = document.with_key("machine", key, spelled(other)?);
            all.push((format!("machine {key}"), now.clone(), (*other).to_owned(), changed));
        }
    }
    let listed = |part: &Part| MACHINE.iter().any(|(key, _)| *part == path(&["machine", key]));
    let guests = document.below(&path(&["guest"])).into_iter().flat_map(|guest| document.below(&guest));
    for part in document.below(&path(&["machine"])).into_iter().filter(|part| !listed(part)).chain(guests) {
        let keys: Vec<&str> = part.iter().filter_map(Place::key).collect();
        if keys.last().is_none_or(|key| KEPT.contains(key)) {
            continue;
        }
        let now = document.get(&part).map(ToString::to_string).unwrap_or_default();
        all.push((keys.join(" "), now, "left out".to_owned(), document.without(std::slice::from_ref(&part))));
    }
    Ok(all)
}

/// Every parameter of a failing run with every other value that is tried, in the order of the tables above.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn switches(
    scenario: &Scenario,
    document: &Document,
    failing: &Failing,
    words: Option<&str>,
) -> Result<Vec<SwitchRow>, SimError> {
    let judge = Judge::new(scenario, &failing.run, words);
    let mut rows = Vec::new();
    for (name, from, to, document) in variants(document, &failing.run)? {
        let effect = match file::parse("variant", &document.to_string(), &[], &[]) {
            Err(error) => Effect::Unjudged(
                error.problems().first().map(|problem| problem.message().to_owned()).unwrap_or_default(),
            ),
            Ok(variant) => {
                let (runs, skipped) = variant.runs();
                match (runs.into_iter().next(), skipped.into_iter().next()) {
                    (Some(run), _) => {
                        let run = RunConfig { plants: failing.run.plants.clone(), ..run };
                        effect(&judge.on(&variant), failing, &run)?
                    }
                    (None, skipped) => Effect::Unjudged(skipped.map(|skipped| skipped.why).unwrap_or_default()),
                }
            }
        };
        rows.push(SwitchRow { name, from, to, effect });
    }
    Ok(rows)
}

/// Takes one value over from a run to another.
type Take = fn(&RunConfig, &mut RunConfig);
/// A difference of two runs: its name with the failing run's value, and how it is taken over.
type Axis = (String, Take);

/// The values of a failing run that another one, which passes, does not have.
fn differences(failing: &RunConfig, passing: &RunConfig) -> Vec<Axis> {
    let list = |names: &[String]| format!("[{}]", names.join(", "));
    let point = |run: &RunConfig| run.at.clone().unwrap_or_else(|| "the newest".to_owned());
    let all: [(String, bool, Take); 8] = [
        (format!("vendor={}", failing.vendor.name()), failing.vendor != passing.vendor, |from, to| {
            to.vendor = from.vendor
        }),
        (format!("tdp={}", failing.tdp), failing.tdp != passing.tdp, |from, to| to.tdp = from.tdp),
        (format!("nested-tdp={}", failing.nested_tdp), failing.nested_tdp != passing.nested_tdp, |from, to| {
            to.nested_tdp = from.nested_tdp;
        }),
        (format!("vpid={}", failing.vpid), failing.vpid != passing.vpid, |from, to| to.vpid = from.vpid),
        (format!("at={}", point(failing)), failing.at != passing.at, |from, to| to.at.clone_from(&from.at)),
        (format!("with={}", list(&failing.with)), failing.with != passing.with, |from, to| {
            to.with.clone_from(&from.with)
        }),
        (format!("without={}", list(&failing.without)), failing.without != passing.without, |from, to| {
            to.without.clone_from(&from.without);
        }),
        (format!("order={}", failing.order_name()), failing.steps != passing.steps, |from, to| {
            to.order.clone_from(&from.order);
            to.steps.clone_from(&from.steps);
        }),
    ];
    all.into_iter().filter(|(_, differs, _)| *differs).map(|(name, _, take)| (name, take)).collect()
}

/// The first of some runs that does not show a failing run's failures.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn first_passing(
    scenario: &Scenario,
    failing: &Failing,
    runs: &[RunConfig],
    words: Option<&str>,
) -> Result<Option<RunConfig>, SimError> {
    let judge = Judge::new(scenario, &failing.run, words);
    for run in runs {
        if effect(&judge, failing, run)? == Effect::Gone {
            return Ok(Some(run.clone()));
        }
    }
    Ok(None)
}

/// The smallest set of the failing run's values with which a passing run fails as it does.
///
/// # Errors
/// If the simulator breaks one of its own rules.
pub fn smallest_set(
    scenario: &Scenario,
    failing: &Failing,
    passing: &RunConfig,
    words: Option<&str>,
) -> Result<Vec<String>, SimError> {
    let judge = Judge::new(scenario, &failing.run, words);
    let left = ddmin(differences(&failing.run, passing), |axes: &[Axis]| {
        let mut run = passing.clone();
        axes.iter().for_each(|(_, take)| take(&failing.run, &mut run));
        Ok(effect(&judge, failing, &run)? == Effect::Stays)
    })?;
    Ok(left.into_iter().map(|(name, _)| name).collect())
}
