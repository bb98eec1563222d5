//! A finding as a scenario file that stands alone: the run's machine, the ordering's steps, and an `[expect]` that says
//! what is wrong, so that replaying the file holds as long as the finding is there.
//!
//! What it expects is read off a replay of the file itself. Left out: what the steps of the searched file expect, which
//! was written for another ordering; planted mistakes, which a file can't name (`--plant`); and choices of the silicon,
//! which it can't either: they are in a comment, as steps to replay.

use super::Found;
use crate::engine;
use crate::file::{self, RunConfig, Scenario};
use crate::minimize::Document;
use crate::verdict::Verdict;
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::BTreeSet;
use std::path::Path;
use toml::{Table, Value};

/// The text of the file of one finding. `file` is the scenario that was searched.
///
/// # Errors
/// If that file can no longer be read, or what was made of it is no scenario.
pub fn text(file: &Path, scenario: &Scenario, run: &RunConfig, found: &Found) -> Result<String, SimError> {
    let run = RunConfig { steps: found.path.clone(), choices: found.choices.clone(), ..run.clone() };
    let mut document = Document::of_file(file, &without_expectations(scenario), &run)?;
    document.expect(Table::from_iter([("coherent".to_owned(), Value::Boolean(false))]));
    document.expect(expectation(&replayed(&document, &run)?));
    let choices = match numbers(found).as_str() {
        steps if steps.contains('/') => format!("# by choices of the silicon: replay --steps {steps}\n"),
        _ => String::new(),
    };
    Ok(format!("# {run}\n# {}\n{choices}{document}", found.finding))
}

/// The steps to replay the file by: all of them in their order.
fn numbers(found: &Found) -> String {
    let own: Vec<usize> = (0..found.path.len()).collect();
    super::way::token(&own, &found.choices)
}

fn without_expectations(scenario: &Scenario) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.steps.iter_mut().for_each(|step| step.expect = None);
    scenario
}

/// What a document shows, under its own name and with the mistakes of the run that was searched.
struct Replay {
    scenario: Scenario,
    verdict: Verdict,
}

fn replayed(document: &Document, run: &RunConfig) -> Result<Replay, SimError> {
    let scenario = file::parse("a finding", &document.to_string(), &[], &[]);
    let scenario = scenario.map_err(|problems| SimError::internal(format!("a finding's file is wrong: {problems}")))?;
    let own = scenario.runs().0.into_iter().next();
    let own = own.ok_or_else(|| SimError::internal("a finding's file without a run"))?;
    let run = RunConfig { plants: run.plants.clone(), audits: run.audits, ..own };
    let verdict = Verdict::new(&scenario, &run, engine::run(&scenario, &run, Detail::Nothing));
    Ok(Replay { scenario, verdict })
}

/// What a run showed, in the words of `[expect]`.
fn expectation(Replay { scenario, verdict }: &Replay) -> Table {
    let mut all = Table::new();
    let mut say = |key: &str, value: Value| all.insert(key.to_owned(), value);
    match verdict.first() {
        None => drop(say("coherent", Value::Boolean(true))),
        Some(first) => {
            say("coherent", Value::Boolean(false));
            say("audit", names(verdict.findings().map(|finding| finding.audit.name())));
            say("step", Value::Integer(i64::from(first.step)));
            if first.step > 0 {
                say("first", Value::String(verdict.step_text(scenario, first).to_owned()));
            }
            if !first.difference().is_empty() {
                say("differ", Value::Array(first.difference().into_iter().map(Value::from).collect()));
            }
        }
    }
    let known = verdict.all_findings().filter_map(|finding| finding.known);
    say("known", names(known));
    if verdict.difference().is_some() {
        say("transparent", Value::Boolean(false));
    }
    all
}

/// Names, each once.
fn names(all: impl Iterator<Item = &'static str>) -> Value {
    Value::Array(all.collect::<BTreeSet<_>>().into_iter().map(Value::from).collect())
}
