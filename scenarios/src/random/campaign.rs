//! Many random scenarios, judged: in parallel, with a summary that does not depend on the number of threads.

use super::scenario;
use super::token::{Paging, Token};
use crate::engine;
use crate::engine::transparency::Transparency;
use crate::file::Vendor;
use crate::verdict::{Judgement, Verdict};
use rayon::prelude::*;
use sim_core::SimError;
use sim_core::event::Detail;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Which scenarios.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    /// The point of history.
    pub at: String,
    /// Whose silicon.
    pub vendors: Vec<Vendor>,
    /// Two-dimensional paging in L0.
    pub pagings: Vec<Paging>,
    /// The first seed.
    pub seed: u64,
    /// How many scenarios; they take turns over the machines, and seeds follow each other.
    pub count: u64,
}

/// What one scenario gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its name.
    pub token: Token,
    /// Its steps that ran.
    pub steps: usize,
    /// What came of it.
    pub judgement: Judgement,
    /// Each expectation that does not hold, in words.
    pub failures: Vec<String>,
    /// What is wrong, in few words, each once: audits that found something new, and `transparency`.
    pub kinds: Vec<String>,
    /// Open differences of the kernel that it met.
    pub known: Vec<&'static str>,
    /// Why it could not be judged, or only in part.
    pub unjudged: Option<String>,
    /// Whether the simulator broke one of its own rules.
    pub broken: bool,
}

impl Campaign {
    /// The scenarios' names, in order.
    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        let machines: Vec<(Vendor, Paging)> =
            self.vendors.iter().flat_map(|vendor| self.pagings.iter().map(|paging| (*vendor, *paging))).collect();
        (0..if machines.is_empty() { 0 } else { self.count }).map(move |index| {
            let (vendor, paging) = machines[(index % machines.len() as u64) as usize];
            Token { at: self.at.clone(), vendor, paging, seed: self.seed.wrapping_add(index) }
        })
    }
}

/// Runs some scenarios, in parallel, with results in their order.
///
/// # Errors
/// If the generator wrote what the language refuses.
pub fn run_all(tokens: Vec<Token>) -> Result<Vec<Ran>, SimError> {
    tokens.into_par_iter().map(run).collect()
}

/// Runs and judges one scenario.
///
/// # Errors
/// If the generator wrote what the language refuses.
pub fn run(token: Token) -> Result<Ran, SimError> {
    let (scenario, config) = scenario(&token)?;
    let verdict = Verdict::new(&scenario, &config, engine::run(&scenario, &config, Detail::Nothing));
    let mut kinds: Vec<String> =
        verdict.findings().map(|finding| format!("{} {}", finding.audit.id(), finding.audit.name())).collect();
    kinds.extend(verdict.difference().map(|_| "transparency".to_owned()));
    let (mut unjudged, mut broken) = (None, false);
    match verdict.stopped() {
        Some(SimError::Unmodelled { what }) => unjudged = Some(what.clone()),
        Some(error) => {
            broken = matches!(error, SimError::Internal(_));
            kinds.push(error.to_string());
        }
        None => {}
    }
    if let Some(Transparency::Unjudged { error, .. }) = &verdict.transparency {
        unjudged = unjudged.or_else(|| Some(format!("bare silicon: {error}")));
    }
    if verdict.judgement == Judgement::Fails && kinds.is_empty() {
        kinds.push("other".to_owned());
    }
    kinds.sort();
    kinds.dedup();
    let judgement = if kinds.is_empty() { verdict.judgement } else { Judgement::Fails };
    let steps = verdict.outcome.as_ref().map_or(0, |outcome| outcome.shown.len());
    let known = verdict.known().into_iter().collect();
    Ok(Ran { token, steps, judgement, failures: verdict.failures, kinds, known, unjudged, broken })
}

/// Totals of some scenarios.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    scenarios: usize,
    steps: usize,
    failed: usize,
    unjudged: usize,
}

impl Total {
    fn add(&mut self, result: &Ran) {
        self.scenarios += 1;
        self.steps += result.steps;
        self.failed += usize::from(result.judgement == Judgement::Fails);
        self.unjudged += usize::from(result.unjudged.is_some());
    }
}

/// How much a report says of each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    /// Its token and what does not hold.
    Told,
    /// The scenario file too.
    Printed,
}

/// The summary: totals of each machine, findings by kind, known differences, what could not be judged, and each failure
/// with its token.
#[must_use]
pub fn report(results: &[Ran], failures: Failures) -> String {
    let mut text = "vendor  l0      scenarios    steps  failed  unjudged\n".to_owned();
    let mut machines: BTreeMap<_, Total> = BTreeMap::new();
    let mut all = Total::default();
    for result in results {
        machines.entry(result.token.machine()).or_default().add(result);
        all.add(result);
    }
    for ((vendor, paging), total) in machines.into_iter().chain([(("all", ""), all)]) {
        let Total { scenarios, steps, failed, unjudged } = total;
        let _ = writeln!(text, "{vendor:<6}  {paging:<6} {scenarios:>10} {steps:>8} {failed:>7} {unjudged:>9}");
    }
    counted(&mut text, "findings", results.iter().flat_map(|result| result.kinds.iter().map(String::as_str)));
    counted(&mut text, "known differences", results.iter().flat_map(|result| result.known.iter().copied()));
    counted(&mut text, "not judged, or in part", results.iter().filter_map(|result| result.unjudged.as_deref()));
    for result in results.iter().filter(|result| result.judgement == Judgement::Fails) {
        let _ = writeln!(text, "! {}  {}", result.token, result.kinds.join(", "));
        for failure in &result.failures {
            let _ = writeln!(text, "!     {failure}");
        }
        if failures == Failures::Printed {
            text.push_str(&super::text(&result.token));
        }
    }
    text
}

/// How often each of some names comes, most often first.
fn counted<'a>(text: &mut String, title: &str, names: impl Iterator<Item = &'a str>) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    if !counts.is_empty() {
        let _ = writeln!(text, "{title}");
    }
    for (name, count) in counts {
        let _ = writeln!(text, "  {count:>7}  {name}");
    }
}
