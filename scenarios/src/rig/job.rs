//! What goes into a rig, and what comes out of it.

use crate::crosscheck::Host;
use crate::crosscheck::recording::{self, Recording};
use crate::file::{self, RunConfig, Scenario};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use std::collections::BTreeMap;

/// One run: a scenario that stands alone, whose matrix has one combination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What it is called in tables.
    pub name: String,
    /// The scenario file.
    pub text: String,
}

impl Job {
    /// The scenario and its run; both sides read it this way.
    ///
    /// # Errors
    /// If the text is no scenario.
    pub fn load(&self) -> Result<(Scenario, RunConfig), SimError> {
        let scenario = file::parse(&self.name, &self.text, &[], &[]);
        let scenario = scenario.map_err(|problems| SimError::internal(format!("{}: {problems}", self.name)))?;
        let run = scenario.runs().0.into_iter().next();
        let run = run.ok_or_else(|| SimError::internal(format!("{}: a scenario without a run", self.name)))?;
        // A real kernel is at the point where it is.
        Ok((scenario, RunConfig { at: None, with: Vec::new(), without: Vec::new(), ..run }))
    }

    /// Takes it on the KVM of the kernel that this program runs on.
    pub(super) fn take(&self) -> Result<Recording, String> {
        let recorded = self.load().and_then(|(scenario, run)| recording::record(&scenario, &run));
        recorded.map_err(|error| match error {
            SimError::Unmodelled { what } => what,
            other => other.to_string(),
        })
    }
}

/// What the kernel inside says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The machine that it makes of the emulator.
    pub host: Host,
    /// The parameters of `kvm` and of the vendor's module, as they came to be.
    pub parameters: BTreeMap<String, String>,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// The kernel is up, with KVM.
    Up(Header),
    /// It is not, for this reason.
    Failed(String),
    /// A job begins, by its place in the list.
    Begin(usize),
    /// It has ended with this recording, or why there is none.
    Done(usize, Result<Recording, String>),
    /// All jobs are done.
    End,
}
