//! The matrix: axes whose product is a file's runs, in one fixed order, without the combinations that cannot exist.

use super::steps::Step;
use super::{Body, Scenario};
use mmu::audit::Extent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Runs that one file may have.
pub const MOST_RUNS: usize = 20_000;

/// Whose silicon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// VMX.
    Intel,
    /// SVM.
    Amd,
}

impl Vendor {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Intel, Self::Amd];

    /// Its name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intel => "intel",
            Self::Amd => "amd",
        }
    }
}

/// The axes as the file gives them; an empty one was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Matrix {
    /// Whose silicon; without the axis, Intel.
    pub vendor: Vec<Vendor>,
    /// Two-dimensional paging in L0; without the axis, on.
    pub tdp: Vec<bool>,
    /// Two-dimensional paging offered by L1 to L2; without the axis, as `tdp`.
    pub nested_tdp: Vec<bool>,
    /// Tagged TLB entries on Intel; without the axis, on.
    pub vpid: Vec<bool>,
    /// Points of history; without the axis, the newest.
    pub at: Vec<String>,
    /// Changes switched on; without the axis, none.
    pub with: Vec<Vec<String>>,
    /// Changes switched off; without the axis, none.
    pub without: Vec<Vec<String>>,
}

/// One run: a value of every axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunConfig {
    /// Whose silicon.
    pub vendor: Vendor,
    /// Two-dimensional paging in L0.
    pub tdp: bool,
    /// Two-dimensional paging offered by L1 to L2.
    pub nested_tdp: bool,
    /// Tagged TLB entries; always on for AMD, whose ASIDs cannot be turned off.
    pub vpid: bool,
    /// The point of history, none for the newest.
    pub at: Option<String>,
    /// Changes switched on beside those of the point.
    pub with: Vec<String>,
    /// Changes switched off.
    pub without: Vec<String>,
    /// Mistakes that the hypervisor makes ([`mmu::plant`]), by name.
    pub plants: Vec<String>,
    /// How much the audits look at: everything, but where a benchmark asks for less.
    pub audits: Extent,
    /// The order of the `permute` block: its steps' numbers, from 1 as written. Empty without a block.
    pub order: Vec<usize>,
    /// Indexes into [`Scenario::steps`], in the order they run.
    pub steps: Vec<usize>,
    /// Steps, by number in the run from 1, in which the silicon uses any translation that the architecture permits, with
    /// its answers.
    pub choices: BTreeMap<u32, Vec<u32>>,
}

impl RunConfig {
    /// Why it cannot exist, if so.
    #[must_use]
    pub fn impossible(&self) -> Option<&'static str> {
        IMPOSSIBLE.iter().find(|(_, rule)| rule(self)).map(|(why, _)| *why)
    }

    /// The order as selectors write it, such as `2-1-3`.
    #[must_use]
    pub fn order_name(&self) -> String {
        self.order.iter().map(ToString::to_string).collect::<Vec<_>>().join("-")
    }
}

/// `vendor=intel tdp=false nested-tdp=false vpid=true at=v5.17`, then what is not empty of with, without and order.
impl fmt::Display for RunConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vendor, tdp, nested_tdp, vpid, .. } = self;
        write!(f, "vendor={} tdp={tdp} nested-tdp={nested_tdp} vpid={vpid}", vendor.name())?;
        if let Some(point) = &self.at {
            write!(f, " at={point}")?;
        }
        for (axis, names) in [("with", &self.with), ("without", &self.without), ("plant", &self.plants)] {
            if !names.is_empty() {
                write!(f, " {axis}={}", names.join(","))?;
            }
        }
        if self.order.is_empty() { Ok(()) } else { write!(f, " order={}", self.order_name()) }
    }
}

/// A combination of the matrix that cannot exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Skipped {
    /// The combination.
    pub run: RunConfig,
    /// Why it cannot exist.
    pub why: String,
}

/// Whether a run breaks a rule.
type Rule = fn(&RunConfig) -> bool;

/// Why a combination cannot exist: one row a rule.
const IMPOSSIBLE: [(&str, Rule); 3] = [
    ("L1 can't offer two-dimensional paging that L0 does not have", |run| run.nested_tdp && !run.tdp),
    ("AMD's ASIDs can't be turned off", |run| run.vendor == Vendor::Amd && !run.vpid),
    ("a change is switched on and off", |run| run.with.iter().any(|change| run.without.contains(change))),
];

/// The orders of `count` steps in lexicographic order, numbered from 1; one empty order for none.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let longer = all.iter().flat_map(|order: &Vec<usize>| {
            (1..=count).filter(|next| !order.contains(next)).map(|next| [order.as_slice(), &[next]].concat())
        });
        all = longer.collect();
    }
    all
}

/// The values of an axis, or its default.
fn values<T: Clone>(axis: &[T], default: T) -> Vec<T> {
    if axis.is_empty() { vec![default] } else { axis.to_vec() }
}

impl Matrix {
    /// How many combinations there are, at most [`usize::MAX`].
    pub(crate) fn combinations(&self, body: &Body) -> usize {
        let orders = body.permuted.as_ref().map_or(1, |block| (1..=block.len()).product());
        let axes = [
            self.vendor.len(),
            self.tdp.len(),
            self.nested_tdp.len(),
            self.vpid.len(),
            self.at.len(),
            self.with.len(),
            self.without.len(),
        ];
        axes.into_iter().fold(orders, |product: usize, axis| product.saturating_mul(axis.max(1)))
    }

    /// The combinations of all axes but the order, first axis slowest.
    fn machines(&self) -> Vec<RunConfig> {
        let first = RunConfig {
            vendor: Vendor::Intel,
            tdp: true,
            nested_tdp: true,
            vpid: true,
            at: None,
            with: Vec::new(),
            without: Vec::new(),
            plants: Vec::new(),
            audits: Extent::Everything,
            order: Vec::new(),
            steps: Vec::new(),
            choices: BTreeMap::new(),
        };
        let mut runs = vec![first];
        runs = product(&runs, |_| values(&self.vendor, Vendor::Intel), |run, vendor| run.vendor = vendor);
        runs = product(&runs, |_| values(&self.tdp, true), |run, tdp| run.tdp = tdp);
        runs = product(&runs, |run| values(&self.nested_tdp, run.tdp), |run, nested| run.nested_tdp = nested);
        runs = product(&runs, |_| values(&self.vpid, true), |run, vpid| run.vpid = vpid);
        let points: Vec<Option<String>> = self.at.iter().cloned().map(Some).collect();
        runs = product(&runs, |_| values(&points, None), |run, at| run.at = at);
        runs = product(&runs, |_| values(&self.with, Vec::new()), |run, with| run.with = with);
        product(&runs, |_| values(&self.without, Vec::new()), |run, without| run.without = without)
    }
}

fn product<T>(
    runs: &[RunConfig],
    axis: impl Fn(&RunConfig) -> Vec<T>,
    set: impl Fn(&mut RunConfig, T),
) -> Vec<RunConfig> {
    let mut longer = Vec::new();
    for run in runs {
        for value in axis(run) {
            let mut next = run.clone();
            set(&mut next, value);
            longer.push(next);
        }
    }
    longer
}

impl Scenario {
    /// The runs in the order of the axes (vendor, tdp, nested-tdp, vpid, at, with, without, order), first axis slowest,
    /// and the combinations that cannot exist.
    #[must_use]
    pub fn runs(&self) -> (Vec<RunConfig>, Vec<Skipped>) {
        let block = self.permuted.clone().unwrap_or(0..0);
        let mut runs = Vec::new();
        let mut skipped = Vec::new();
        for machine in self.matrix.machines() {
            if let Some(why) = machine.impossible() {
                skipped.push(Skipped { run: machine, why: why.to_owned() });
                continue;
            }
            for order in orders(block.len()) {
                let permuted = order.iter().map(|number| block.start + number - 1);
                let steps = (0..block.start).chain(permuted).chain(block.end..self.steps.len()).collect();
                runs.push(RunConfig { order, steps, ..machine.clone() });
            }
        }
        (runs, skipped)
    }

    /// The steps of a run, in its order.
    pub fn steps_of<'a>(&'a self, run: &'a RunConfig) -> impl Iterator<Item = &'a Step> {
        run.steps.iter().filter_map(|index| self.steps.get(*index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_lexicographic_and_complete() {
        assert_eq!(orders(0), [Vec::<usize>::new()]);
        assert_eq!(orders(2), [[1, 2], [2, 1]]);
        for (count, factorial) in [(3, 6), (4, 24), (5, 120), (6, 720)] {
            let all = orders(count);
            assert_eq!(all.len(), factorial);
            assert!(all.is_sorted_by(|a, b| a < b), "strictly sorted, so without duplicates");
        }
    }
}
