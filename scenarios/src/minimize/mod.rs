//! The smallest scenario with the same finding: delta debugging over the file of one run, from whole steps down to the
//! single words of what is left.
//!
//! "The same" is a [`Symptom`]: the audit, MMU and differing role bits, or the kind of step and what it showed against
//! bare silicon. A candidate that the language refuses, or that can't be judged, does not count.
//!
//! Left out: addresses and values are not made smaller, and no step is replaced by a simpler one. Findings of step
//! expectations and budgets are not minimized.

mod ddmin;
mod document;
mod symptom;

pub use ddmin::ddmin;
pub use document::{Document, Part, Place};
pub use symptom::Symptom;

use crate::engine;
use crate::file::{self, RunConfig, Scenario};
use crate::verdict::Verdict;
use mmu::plant::Plant;
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Which parts a pass takes out.
type Parts = fn(&Document) -> Vec<Part>;

fn at(path: &[&str]) -> Part {
    path.iter().map(|key| Place::Key((*key).to_owned())).collect()
}

/// Every part two levels below one of some tables.
fn inside(document: &Document, tables: &[&str]) -> Vec<Part> {
    let named = tables.iter().flat_map(|table| document.below(&at(&[table])));
    named.flat_map(|one| document.below(&one)).collect()
}

fn lists(document: &Document) -> Vec<Part> {
    inside(document, &["space"]).iter().flat_map(|key| document.below(key)).collect()
}

/// What the passes never take: what a file must have, and what says which run it is.
const KEPT: [&str; 5] = ["title", "source", "steps", "matrix", "expect"];

fn top(document: &Document) -> Vec<Part> {
    let kept = |part: &Part| matches!(part.first(), Some(Place::Key(key)) if KEPT.contains(&key.as_str()));
    document.below(&[]).into_iter().filter(|part| !kept(part)).collect()
}

/// The passes, coarse ones first: one row each. They are repeated until none takes anything out.
const PASSES: [(&str, Parts); 11] = [
    ("steps", |document| document.below(&at(&["steps"]))),
    ("keys of the file", top),
    ("memory", |document| document.below(&at(&["memory"]))),
    ("guests", |document| document.below(&at(&["guest"]))),
    ("spaces", |document| document.below(&at(&["space"]))),
    ("slots", |document| document.below(&at(&["slot"]))),
    ("keys of the machine", |document| document.below(&at(&["machine"]))),
    ("keys of guests, spaces and slots", |document| inside(document, &["guest", "space", "slot"])),
    ("entries of spaces", lists),
    ("words of steps", |document| document.words(&at(&["steps"]))),
    ("words of guests and spaces", |document| {
        [document.words(&at(&["guest"])), document.words(&at(&["space"]))].concat()
    }),
];

/// Numbers of the machine that are made smaller.
const NUMBERS: [(&str, i64); 2] = [("vcpus", 1), ("processors", 1)];

/// What a pass did, over all its rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Parts that were there when it first ran.
    pub before: usize,
    /// Parts that are left.
    pub after: usize,
    /// Scenarios that it ran.
    pub tried: usize,
}

/// What is left, and what was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Minimized {
    /// The finding.
    pub symptom: Symptom,
    /// The smallest scenario.
    pub document: Document,
    /// Each pass by its name.
    pub passes: Vec<(&'static str, Tally)>,
    /// Mistakes that the hypervisor must make for it, which a file can't say.
    pub plants: Vec<String>,
}

/// The search for one symptom.
struct Search<'a> {
    symptom: &'a Symptom,
    run: &'a RunConfig,
    /// What came of the files that were run, so that none is run twice.
    known: BTreeMap<String, bool>,
}

/// Everything that is wrong with a run.
///
/// # Errors
/// Why the run can't be judged.
pub fn symptoms(scenario: &Scenario, run: &RunConfig) -> Result<Vec<Symptom>, SimError> {
    let verdict = Verdict::new(scenario, run, engine::run(scenario, run, Detail::Nothing));
    match verdict.stopped() {
        Some(SimError::Runaway { .. }) | None => Ok(Symptom::all(scenario, &verdict)),
        Some(error) => Err(error.clone()),
    }
}

impl Search<'_> {
    /// Whether a candidate shows the symptom.
    fn shows(&mut self, document: &Document, tried: &mut usize) -> Result<bool, SimError> {
        let text = document.to_string();
        if let Some(known) = self.known.get(&text) {
            return Ok(*known);
        }
        let shows = match file::parse("candidate", &text, &[], &[]) {
            Ok(scenario) => {
                *tried += 1;
                self.runs(&scenario)?
            }
            Err(_) => false,
        };
        self.known.insert(text, shows);
        Ok(shows)
    }

    fn runs(&self, scenario: &Scenario) -> Result<bool, SimError> {
        let Some(run) = scenario.runs().0.into_iter().next() else { return Ok(false) };
        let run = RunConfig { plants: self.run.plants.clone(), audits: self.run.audits, ..run };
        let outcome = engine::run(scenario, &run, Detail::Nothing);
        let may_be = outcome.as_ref().is_ok_and(|outcome| self.symptom.may_be_in(scenario, outcome));
        let verdict = if self.symptom.is_of_transparency() && may_be {
            Verdict::new(scenario, &run, outcome)
        } else {
            Verdict::of_audits(&run, outcome)
        };
        match verdict.stopped() {
            Some(error @ SimError::Internal(_)) => Err(error.clone()),
            _ => Ok(Symptom::all(scenario, &verdict).contains(self.symptom)),
        }
    }

    /// Takes out as many of a pass's parts as can go.
    fn pass(&mut self, document: &Document, parts: Parts, tally: &mut Tally) -> Result<Document, SimError> {
        let all = parts(document);
        let without = |kept: &[Part]| {
            let gone: Vec<Part> = all.iter().filter(|part| !kept.contains(part)).cloned().collect();
            document.without(&gone)
        };
        let kept = ddmin(all.clone(), |kept| self.shows(&without(kept), &mut tally.tried))?;
        Ok(without(&kept))
    }

    /// Fewer vCPUs and processors: steps of a vCPU move to another, and numbers become smaller.
    fn fewer(&mut self, document: &Document, tally: &mut Tally) -> Result<Document, SimError> {
        let mut document = document.clone();
        for from in 1..4 {
            for to in 0..from {
                let moved: Vec<String> = document.steps().into_iter().map(|step| on_vcpu(step, from, to)).collect();
                let candidate = document.with_steps(&moved);
                if candidate != document && self.shows(&candidate, &mut tally.tried)? {
                    document = candidate;
                    break;
                }
            }
        }
        for (key, least) in NUMBERS {
            for number in least..document.machine(key).unwrap_or(least) {
                let candidate = document.with_machine(key, number);
                if self.shows(&candidate, &mut tally.tried)? {
                    document = candidate;
                    break;
                }
            }
        }
        Ok(document)
    }
}

/// A step, moved to another vCPU if it is one's.
fn on_vcpu(step: &str, from: u8, to: u8) -> String {
    match step.strip_prefix(&format!("{from}.")) {
        Some(rest) if to == 0 => rest.to_owned(),
        Some(rest) => format!("{to}.{rest}"),
        None => step.to_owned(),
    }
}

/// A step without what it must show, which is no part of any symptom.
fn without_expectation(step: &str) -> String {
    step.split_once(" => ").map_or(step, |(step, _)| step).to_owned()
}

/// The smallest scenario in which a run's symptom is left.
///
/// # Errors
/// If the document does not show the symptom, or the simulator breaks one of its own rules.
pub fn minimize(document: &Document, run: &RunConfig, symptom: &Symptom) -> Result<Minimized, SimError> {
    let mut search = Search { symptom, run, known: BTreeMap::new() };
    let mut document = document.clone();
    document.expect(symptom.broken_expectation());
    if !search.shows(&document, &mut 0)? {
        return Err(SimError::internal(format!("the rewritten scenario does not show {symptom}:\n{document}")));
    }
    let bare_steps: Vec<String> = document.steps().into_iter().map(without_expectation).collect();
    let without_expectations = document.with_steps(&bare_steps);
    if search.shows(&without_expectations, &mut 0)? {
        document = without_expectations;
    }
    let mut passes = vec![("vCPUs and processors", Tally::default())];
    passes.extend(PASSES.iter().map(|(name, _)| (*name, Tally::default())));
    let size = |document: &Document| {
        NUMBERS.iter().map(|(key, least)| document.machine(key).unwrap_or(*least)).sum::<i64>() as usize
    };
    passes[0].1.before = size(&document);
    for round in 0_usize.. {
        let start = document.clone();
        for ((_, parts), (_, tally)) in PASSES.iter().zip(passes.iter_mut().skip(1)) {
            if round == 0 {
                tally.before = parts(&document).len();
            }
            document = search.pass(&document, *parts, tally)?;
        }
        document = search.fewer(&document, &mut passes[0].1)?;
        if document == start {
            break;
        }
    }
    passes[0].1.after = size(&document);
    for ((_, parts), (_, tally)) in PASSES.iter().zip(passes.iter_mut().skip(1)) {
        tally.after = parts(&document).len();
    }
    let plants = run.plants.iter().filter(|name| Plant::by_name(name).is_some()).cloned().collect();
    Ok(Minimized { symptom: symptom.clone(), document, passes, plants })
}

impl Minimized {
    /// The steps that are left.
    #[must_use]
    pub fn steps(&self) -> Vec<&str> {
        self.document.steps()
    }

    /// What was tried, as comments of a scenario file.
    #[must_use]
    pub fn comments(&self) -> String {
        let mut text = format!("# {}\n", self.symptom);
        for plant in &self.plants {
            let _ = writeln!(text, "# with --plant {plant}");
        }
        let _ = writeln!(text, "#\n# {:<34} {:>6} {:>6} {:>6}", "", "before", "after", "tried");
        for (name, Tally { before, after, tried }) in &self.passes {
            let _ = writeln!(text, "# {name:<34} {before:>6} {after:>6} {tried:>6}");
        }
        let tried: usize = self.passes.iter().map(|(_, tally)| tally.tried).sum();
        let _ = writeln!(text, "# {:<34} {:>6} {:>6} {tried:>6}", "all", "", "");
        text
    }
}
