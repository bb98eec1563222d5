//! The scenario language: what a scenario file says, checked.
//!
//! [`load`] and [`parse`] turn a file into a [`Scenario`] or into [`Diagnostics`]; nothing here runs anything. A file is
//! read ([`mod@include`]), brought into shape ([`schema`]), and its small texts are parsed and checked against each other
//! ([`space`], [`guest`], [`steps`], [`expect`], [`matrix`]).

pub mod budget;
mod check;
pub mod diagnostics;
pub mod expect;
pub mod guest;
pub mod host;
pub mod include;
pub mod matrix;
pub mod observation;
pub mod schema;
mod shape;
pub mod space;
pub mod steps;
pub mod verbs;
pub(crate) mod words;

pub use budget::Bound;
pub use diagnostics::{Colours, Diagnostics, Fault, MOST_PROBLEMS, Problem, Source, Span};
pub use expect::{ExpectEntry, Expectation, Selector};
pub use guest::{Break, ControlRegister, FirstLevel, Flags, Guest, HostState, MAIN_TABLES};
pub use host::{
    CpuidChange, FrameRange, HostStep, InSmm, Logging, PageAccess, PagingFeature, PausePoint, RegisterChange, Reset,
};
pub use include::collect;
pub use matrix::{Matrix, RunConfig, Skipped, Vendor};
pub use observation::{Expected, Observation, PageAge, Seen};
pub use schema::json_schema;
pub use space::{BackedBy, Contents, Machine, Mapping, Mode, PageSize, Right, Rights, SeenBy, Slot, Space};
pub use steps::{
    Action, Actor, EntryBits, EntryName, Flush, GuestChange, InveptScope, InvpcidScope, InvvpidScope, OutOfTurn,
    Privilege, Step, TlbControl,
};
pub use verbs::{VERBS, Verb};

pub(crate) use steps::Body;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// The bug of a real kernel that a scenario shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bug {
    /// Its number in a list of bugs.
    pub number: String,
    /// The change that mended it.
    pub fix: String,
    /// What a guest or a user sees.
    pub symptom: String,
}

/// A checked scenario.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scenario {
    /// The names of its files: itself, then its includes. [`Span::file`] counts in it.
    pub files: Vec<String>,
    /// What it shows, in one line.
    pub title: String,
    /// What happens and why it matters.
    pub about: Option<String>,
    /// Where it comes from.
    pub source: Vec<String>,
    /// The bug of a real kernel that it shows, if it shows one.
    pub bug: Option<Bug>,
    /// The axes of its runs.
    pub matrix: Matrix,
    /// The machine.
    pub machine: Machine,
    /// Memory slots beside main memory, in the order they are declared.
    pub slots: Vec<Slot>,
    /// Guest address spaces.
    pub spaces: BTreeMap<String, Space>,
    /// First contents of memory, in order: later ones overwrite.
    pub memory: Vec<Contents>,
    /// L1's registers at the start.
    pub first_level: FirstLevel,
    /// Nested guests.
    pub guests: BTreeMap<String, Guest>,
    /// The steps in the file's order.
    pub steps: Vec<Step>,
    /// What becomes of a step whose level does not run when its turn comes.
    pub out_of_turn: OutOfTurn,
    /// Which of the steps the `permute` block holds.
    pub permuted: Option<Range<usize>>,
    /// What must hold, in the file's order.
    pub expect: Vec<ExpectEntry>,
}

/// Reads and checks the scenario in a file. `points` and `changes` are the known points of history and changes; an
/// empty list means that they are not known here, and such names are not checked.
///
/// # Errors
/// Everything that is wrong with the file and its includes, capped at [`MOST_PROBLEMS`].
pub fn load(path: &Path, points: &[&str], changes: &[&str]) -> Result<Scenario, Diagnostics> {
    let loaded = include::read_all(&include::Disk, path)?;
    check::scenario(&loaded, points, changes)
}

/// Checks the scenario in a text that stands alone: it cannot include files. `name` is what messages call it.
///
/// # Errors
/// Everything that is wrong with the text, capped at [`MOST_PROBLEMS`].
pub fn parse(name: &str, text: &str, points: &[&str], changes: &[&str]) -> Result<Scenario, Diagnostics> {
    let loaded = include::parse_all(&include::Alone, Path::new(name), text)?;
    check::scenario(&loaded, points, changes)
}

/// Reads one step, such as `1.l2: read 0x400000 => #PF(0x3)`; names and addresses are not checked.
///
/// # Errors
/// What is misspelled, and where in `text`.
pub fn parse_step(text: &str) -> Result<Step, Fault> {
    steps::parse_step(text, None)
}

impl Scenario {
    /// Where steps move slots to, and the slots' sizes in pages.
    pub(crate) fn moves(&self) -> impl Iterator<Item = (sim_core::Gpa, u64)> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Host(HostStep::MoveSlot { slot, at }) => {
                let pages = self.slots.iter().find(|other| other.name == *slot).map_or(0, |slot| slot.pages);
                Some((sim_core::Gpa(*at), pages))
            }
            _ => None,
        })
    }
}
