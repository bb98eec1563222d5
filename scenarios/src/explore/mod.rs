//! Every ordering of a scenario's steps to a depth: a breadth-first search whose alphabet is the file's steps, each as often
//! as it comes, or once, or once and in the file's order for each vCPU ([`orderings::Orders`]). States are recognised by their [canonical digest](hypervisor::canonical), so that orderings that lead to the
//! same state are followed once.
//!
//! The result depends on nothing but the scenario and the limits ([`search`]). Each kind of finding is told once for each
//! verb that brings it up, with the first ordering that does, which is one of the shortest; what only lasts from the step
//! before is not told again. Where the silicon may choose ([`Silicon::Free`]), every choice of a step's translations is a
//! way of its own, and what a step shows only by such a choice is told too. Left out: interleavings inside a page fault,
//! and comparing with bare silicon.

pub mod files;
pub mod orderings;
pub mod refusal;
pub mod root_cache;
pub mod saved;
#[cfg(feature = "timely")]
pub mod sharded;
pub mod way;

pub use crate::engine::board::Silicon;
use crate::file::{RunConfig, Scenario};
use crate::verdict::Kind;
use mmu::audit::Finding;
use orderings::{Note, Orderings, Orders};
use refusal::Refusal;
use saved::{SaveError, Saved};
use search::{Ended, Flow, Limits, Mismatch, Move, Origin, Progress, Room, Search, Tree};
use sim_core::SimError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use way::Choices;

/// A finding of a kind that had not been seen before.
#[derive(Clone, Debug)]
pub struct Found {
    /// The finding.
    pub finding: Finding,
    /// The ordering that shows it: indices of the scenario's steps.
    pub path: Vec<usize>,
    /// What the silicon chooses in it, by place from 1.
    pub choices: Choices,
    /// Which of the last step's findings it is, from 0.
    pub rank: u32,
}

/// Something that a step shows by a choice of the silicon, and not by what the modelled caches hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shows {
    /// What it shows.
    pub observed: String,
    /// The first ordering that shows it: indices of the scenario's steps.
    pub path: Vec<usize>,
    /// What the silicon chooses in it, by place from 1.
    pub choices: Choices,
}

/// What a search gave.
#[derive(Clone, Debug)]
pub struct Explored {
    /// New states at each depth, the first state alone at depth 0.
    pub levels: Vec<u64>,
    /// Steps taken.
    pub taken: u64,
    /// Each kind of finding that a verb brings up, in the order of discovery.
    pub found: Vec<Found>,
    /// What each step shows by choices of the silicon alone, in the order of discovery.
    pub shown: Vec<Shows>,
    /// Why steps could not be taken, with the first ordering of each.
    pub refused: BTreeMap<Refusal, Vec<usize>>,
    /// Why the search ended.
    pub ended: Ended,
}

impl Explored {
    /// States that were told apart.
    #[must_use]
    pub fn states(&self) -> u64 {
        self.levels.iter().sum()
    }

    /// Findings that are not open bugs of the kernel at that point of history.
    pub fn unknown(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| found.finding.known.is_none())
    }
}

/// What steps showed so far.
struct Notes<'a> {
    scenario: &'a Scenario,
    kinds: BTreeSet<(Kind, &'a str)>,
    found: Vec<Noted>,
    /// What steps show, by index.
    shows: BTreeSet<(usize, String)>,
    shown: Vec<(String, Vec<Move>)>,
    refused: BTreeMap<Refusal, Vec<Move>>,
}

/// A finding as a search takes note of it.
struct Noted {
    finding: Finding,
    path: Vec<Move>,
    rank: u32,
}

impl<'a> Notes<'a> {
    const fn new(scenario: &'a Scenario) -> Self {
        Self {
            scenario,
            kinds: BTreeSet::new(),
            found: Vec::new(),
            shows: BTreeSet::new(),
            shown: Vec::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Takes note of what one step showed.
    fn take(&mut self, tree: &Tree, at: Origin, note: Note) {
        let (path, step) = (|| tree.path(at), usize::from(at.by.step));
        match note {
            Note::Finding { finding, rank } => self.find(finding, rank, step, path),
            Note::Shows(observed) => self.show(observed, step, path),
            Note::Refused(why) => {
                self.refused.entry(why).or_insert_with(path);
            }
        }
    }
}

impl Notes<'_> {
    /// Takes note of a finding that a step brings up, if it is the first of its kind.
    fn find(&mut self, finding: Finding, rank: u32, step: usize, path: impl FnOnce() -> Vec<Move>) {
        if self.kinds.insert((finding.kind(), verb(self.scenario, step))) {
            self.found.push(Noted { finding, path: path(), rank });
        }
    }

    /// Takes note of what a step shows by a choice, if it is the first time.
    fn show(&mut self, observed: String, step: usize, path: impl FnOnce() -> Vec<Move>) {
        if self.shows.insert((step, observed.clone())) {
            self.shown.push((observed, path()));
        }
    }

    /// What a search gave that ended so.
    ///
    /// # Errors
    /// If an ordering can't be taken again.
    fn explored(
        self,
        space: &Orderings<'_>,
        (levels, taken): (Vec<u64>, u64),
        ended: Ended,
    ) -> Result<Explored, SimError> {
        let found = self.found.into_iter().map(|Noted { finding, path, rank }| {
            let choices = way::taken_again(space, &path)?.choices;
            Ok(Found { finding, path: steps(&path), choices, rank })
        });
        let found = found.collect::<Result<_, SimError>>()?;
        let shown = self.shown.into_iter().map(|(observed, path)| {
            let choices = way::taken_again(space, &path)?.choices;
            Ok(Shows { observed, path: steps(&path), choices })
        });
        let shown = shown.collect::<Result<_, SimError>>()?;
        let refused = self.refused.into_iter().map(|(why, path)| (why, steps(&path))).collect();
        Ok(Explored { levels, taken, found, shown, refused, ended })
    }
}

/// Searches one run of a scenario, whose steps are the alphabet.
///
/// # Errors
/// If the machine can't be built.
pub fn search(scenario: &Scenario, run: &RunConfig, limits: Limits) -> Result<Explored, SimError> {
    search_in(&Orderings::new(scenario, run, Orders::Any)?, limits, &mut |_| Flow::GoOn)
}

/// Searches a space; `watch` is asked after each batch whether to go on.
///
/// # Errors
/// If the machine can't be built.
pub fn search_in(
    space: &Orderings<'_>,
    limits: Limits,
    watch: &mut dyn FnMut(&Progress) -> Flow,
) -> Result<Explored, SimError> {
    let mut search = Search::new(space)?;
    let mut notes = Notes::new(space.scenario);
    let mut take = |tree: &Tree, at, note| notes.take(tree, at, note);
    let ended = search.run(limits, &mut take, &mut |search| watch(&search.progress()));
    let ended = ended.map_err(|mismatch| match mismatch {
        Mismatch::Player(error) => error,
        other => SimError::internal(other.to_string()),
    })?;
    notes.explored(space, (search.levels().to_vec(), search.taken()), ended)
}

/// The same with a file that holds the search after each level: one that is there already is gone on with.
///
/// # Errors
/// If the machine can't be built, or the file is not one of this search; then it is left as it was.
pub fn search_with(
    file: &Path,
    space: &Orderings<'_>,
    limits: Limits,
    watch: &mut dyn FnMut(&Progress) -> Flow,
) -> Result<Explored, SaveError> {
    let (mut search, mut notes) = match Saved::load(file)? {
        Some(saved) => saved.resume(file, space)?,
        None => (Search::new(space)?, Notes::new(space.scenario)),
    };
    loop {
        let expanded = search.expanded();
        let mut asked = Flow::GoOn;
        let mut between_levels = |search: &Search<'_, Orderings<'_>>| {
            let progress = search.progress();
            asked = watch(&progress);
            // Whole levels at least, so that a search that is cut off by force loses one at most.
            if progress.level.0 == progress.expanded { Flow::Stop } else { asked }
        };
        let ended = search.run(limits, &mut |tree, at, note| notes.take(tree, at, note), &mut between_levels);
        let ended = ended.map_err(|mismatch| SaveError::of(mismatch, file))?;
        if search.expanded() != expanded || ended == Ended::Full(Room::States) {
            Saved::of(&search, &notes, space).save(file)?;
        }
        if ended != Ended::Stopped || asked == Flow::Stop {
            return Ok(notes.explored(space, (search.levels().to_vec(), search.taken()), ended)?);
        }
    }
}

/// The steps of a path, by index.
fn steps(path: &[Move]) -> Vec<usize> {
    path.iter().map(|by| usize::from(by.step)).collect()
}

fn verb(scenario: &Scenario, index: usize) -> &str {
    scenario.steps.get(index).and_then(|step| step.text.split(' ').next()).unwrap_or_default()
}
