//! Expectations: which runs an entry selects, and what must hold in them.
//!
//! A selector is `*`, or a comma list `axis = value` or `axis = [values]`, as in `at = "seed/07", nested-tdp = false`.
//! `with` and `without` are compared as whole lists: `with = ["A"]` selects runs with exactly A switched on, and
//! `with = [["A"], []]` those with A or nothing. A single string stands for the list of it.

use super::Scenario;
use super::budget::Bound;
use super::diagnostics::{Fault, quote};
use super::matrix::{RunConfig, Vendor};
use super::shape::plain;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::str::FromStr;
use toml::de::DeTable;

/// The axes that a selector can name.
pub const AXES: [&str; 8] = ["vendor", "tdp", "nested-tdp", "vpid", "at", "with", "without", "order"];

/// What must hold in a run. What is none is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Expectation {
    /// Whether every invariant of the audit catalogue holds at every checkpoint.
    pub coherent: Option<bool>,
    /// Whether the guest observes what bare silicon can show; none is true wherever it can be judged.
    pub transparent: Option<bool>,
    /// The beginning of the first bad step's text.
    pub first: Option<String>,
    /// The number of the first bad step, from 1 in the run's order.
    pub step: Option<usize>,
    /// The audits that find it.
    pub audit: Option<Vec<String>>,
    /// The role word of the vCPU's MMU.
    pub role: Option<u64>,
    /// The role word of the root in use.
    pub root_role: Option<u64>,
    /// The names of the role bits that differ.
    pub differ: Option<Vec<String>>,
    /// Open bugs of the kernel at that point of history that the run must meet, such as C-2, and no others.
    pub known: Option<Vec<String>>,
    /// Bounds on counters, by the names that the file gives.
    pub budget: BTreeMap<String, Bound>,
    /// Why the run can't be judged.
    pub unjudged: Option<String>,
    /// Whether a step of the run never comes to an end.
    pub hangs: Option<bool>,
}

impl Expectation {
    /// Takes over what `later` says. `coherent = true` drops what earlier entries said about an incoherence.
    fn override_with(&mut self, later: &Self) {
        if later.coherent == Some(true) {
            (self.audit, self.role, self.root_role, self.differ) = (None, None, None, None);
            if later.transparent.or(self.transparent) != Some(false) {
                (self.first, self.step) = (None, None);
            }
        }
        replace(&mut self.coherent, &later.coherent);
        replace(&mut self.transparent, &later.transparent);
        replace(&mut self.first, &later.first);
        replace(&mut self.step, &later.step);
        replace(&mut self.audit, &later.audit);
        replace(&mut self.role, &later.role);
        replace(&mut self.root_role, &later.root_role);
        replace(&mut self.differ, &later.differ);
        replace(&mut self.known, &later.known);
        self.budget.extend(later.budget.iter().map(|(name, bound)| (name.clone(), *bound)));
        replace(&mut self.unjudged, &later.unjudged);
        replace(&mut self.hangs, &later.hangs);
    }
}

fn replace<T: Clone>(field: &mut Option<T>, later: &Option<T>) {
    if later.is_some() {
        field.clone_from(later);
    }
}

/// One entry of `[expect]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpectEntry {
    /// Which runs.
    pub selector: Selector,
    /// What must hold in them.
    pub expectation: Expectation,
}

/// Which runs of a matrix are meant: every axis that is named must have one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selector {
    axes: Vec<(usize, Vec<String>)>,
}

impl Selector {
    /// Whether a run is meant.
    #[must_use]
    pub fn matches(&self, run: &RunConfig) -> bool {
        self.axes.iter().all(|(axis, values)| values.contains(&value_of(run, *axis)))
    }
}

/// A run's value of an axis, as selectors compare it. Lists are in the file's order.
fn value_of(run: &RunConfig, axis: usize) -> String {
    match AXES[axis] {
        "vendor" => run.vendor.name().to_owned(),
        "tdp" => run.tdp.to_string(),
        "nested-tdp" => run.nested_tdp.to_string(),
        "vpid" => run.vpid.to_string(),
        "at" => run.at.clone().unwrap_or_default(),
        "with" => run.with.join(","),
        "without" => run.without.join(","),
        _ => run.order_name(),
    }
}

/// What the values of an axis are.
fn form(axis: &str) -> &'static str {
    match axis {
        "vendor" => "\"intel\" or \"amd\"",
        "tdp" | "nested-tdp" | "vpid" => "true or false",
        "at" => "the name of a point of history",
        "with" | "without" => "a list of changes, or a list of such lists",
        _ => "an order such as \"2-1-3\"",
    }
}

/// One value of an axis, as [`value_of`] writes it.
fn axis_value(axis: &str, value: &Value) -> Option<String> {
    match (axis, value) {
        ("vendor", Value::String(name)) => Vendor::ALL.iter().any(|vendor| vendor.name() == name).then(|| name.clone()),
        ("tdp" | "nested-tdp" | "vpid", Value::Bool(truth)) => Some(truth.to_string()),
        ("at" | "order" | "with" | "without", Value::String(name)) => Some(name.clone()),
        ("with" | "without", Value::Array(names)) => {
            names.iter().map(Value::as_str).collect::<Option<Vec<_>>>().map(|names| names.join(","))
        }
        _ => None,
    }
}

/// All values that a selector gives for an axis.
fn axis_values(axis: &str, value: &Value) -> Option<Vec<String>> {
    let lists = matches!(axis, "with" | "without");
    match value {
        Value::Array(values) if !lists || (!values.is_empty() && values.iter().all(Value::is_array)) => {
            values.iter().map(|value| axis_value(axis, value)).collect()
        }
        single => axis_value(axis, single).map(|value| vec![value]),
    }
}

const FORM: &str = "write \"*\", or 'vendor = \"amd\", tdp = [true, false]'";

impl FromStr for Selector {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.trim() == "*" {
            return Ok(Self::default());
        }
        let table = format!("s={{{text}}}");
        let shift = "s={".len();
        let shrink = |range: std::ops::Range<usize>| {
            let cut = |at: usize| at.saturating_sub(shift).min(text.len());
            cut(range.start)..cut(range.end)
        };
        let whole = DeTable::parse(&table).map_err(|error| {
            let at = error.span().map_or(0..text.len(), shrink);
            Fault::new(at, format!("not a selector: {}", error.message()), FORM)
        })?;
        let axes = whole.get_ref().get("s").and_then(|value| value.get_ref().as_table());
        let Some(axes) = axes.filter(|axes| !axes.is_empty() && whole.get_ref().len() == 1) else {
            return Err(Fault::new(0..text.len(), "a selector names at least one axis", FORM));
        };
        let mut selector = Self::default();
        for (key, value) in axes {
            let name: &str = key.get_ref();
            let Some(axis) = AXES.iter().position(|axis| *axis == name) else {
                return Err(Fault::unknown(shrink(key.span()), "axis", name, AXES));
            };
            let Some(values) = axis_values(name, &plain(value.get_ref())) else {
                let message = format!("{} is no value of `{name}`", quote(&plain(value.get_ref()).to_string()));
                return Err(Fault::new(shrink(value.span()), message, format!("it is {}", form(name))));
            };
            selector.axes.push((axis, values));
        }
        selector.axes.sort();
        Ok(selector)
    }
}

impl Scenario {
    /// What must hold in a run: every entry that selects it, in the file's order, later ones field by field.
    #[must_use]
    pub fn expectation(&self, run: &RunConfig) -> Expectation {
        let mut expectation = Expectation::default();
        for entry in self.expect.iter().filter(|entry| entry.selector.matches(run)) {
            expectation.override_with(&entry.expectation);
        }
        expectation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunConfig {
        RunConfig {
            vendor: Vendor::Amd,
            tdp: true,
            nested_tdp: false,
            vpid: true,
            at: Some("seed/07".to_owned()),
            with: vec!["A".to_owned()],
            without: Vec::new(),
            plants: Vec::new(),
            audits: mmu::audit::Extent::Everything,
            order: vec![2, 1],
            steps: vec![1, 0],
            choices: BTreeMap::new(),
        }
    }

    #[test]
    fn selectors() {
        for (text, matches) in [
            ("*", true),
            ("vendor = \"amd\"", true),
            ("vendor = \"intel\"", false),
            ("vendor = [\"intel\", \"amd\"], tdp = true", true),
            ("tdp = true, nested-tdp = true", false),
            ("at = 'seed/07'", true),
            ("at = ['v5.17', 'v5.18']", false),
            ("with = 'A'", true),
            ("with = ['A']", true),
            ("with = [['B'], ['A']]", true),
            ("with = []", false),
            ("without = []", true),
            ("without = [[], ['B']]", true),
            ("order = '2-1'", true),
            ("order = '1-2'", false),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().matches(&run()), matches, "{text}");
        }
    }

    #[test]
    fn bad_selectors() {
        for (text, at) in [
            ("", 0..0),
            ("vender = 'amd'", 0..6),
            ("vendor = 'amdd'", 9..15),
            ("vendor = true", 9..13),
            ("tdp = [1]", 6..9),
            ("tdp = true} \n x = {", 0..19),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap_err().at, at, "{text}");
        }
    }
}
