//! Random legal scenarios: a seed gives a machine and steps that stress what a hypervisor's MMU must keep apart: mode
//! mixes of L1 and L2, shared CR3s and shared tables, table edits with and without their invalidation, control-register
//! toggles, nested transitions with changed controls, and everything that the host does behind the guests' backs, on one
//! to three vCPUs.
//!
//! **Legal** means that the scenario's meaning does not depend on what nobody models: code, stacks and descriptor tables
//! stay mapped, executed memory holds instructions, slots go only where nothing of that lies. Whether a step succeeds
//! is not foreseen: faults, failed entries and exits are observations like others, and a step of a level that does not
//! run when its turn comes is left out (`out-of-turn = "skip"`).
//!
//! The machine varies too: host pages, the MMU's module parameters, few shadow pages, VPIDs and ASIDs. Left out
//! are `pml`, `tdp-levels`, `shadow-vmcs`, `flush-on-reuse`, `maxphyaddr` and `silicon-without`.
//!
//! A scenario is a pure function of its [`Token`], by way of its text, so that what is printed is what ran.

pub mod campaign;
pub mod rng;
pub mod token;
mod verbs;
mod world;

pub use token::{Paging, Token, VERSION};
pub use world::Within;

use crate::file::{self, RunConfig, Scenario};
use rng::Rng;
use sim_core::SimError;
use world::World;

/// The verbs of random scenarios, who says them, and how often: the weights of those that have none of their own are in
/// the row of the verb that they come with.
pub fn weights() -> impl Iterator<Item = (&'static str, &'static [file::Actor], u64)> {
    verbs::ROWS.iter().map(|row| (row.verb, row.actors, row.weight))
}

/// The scenario file of a token.
#[must_use]
pub fn text(token: &Token) -> String {
    text_within(token, Within::Model)
}

/// The scenario file of a token for some machine; only for the model it is what the token stands for.
#[must_use]
pub fn text_within(token: &Token, within: Within) -> String {
    let mut rng = Rng::new(token.seed);
    let mut world = World::new(&mut rng, token, within);
    let steps = verbs::steps(&mut rng, &mut world);
    world.text(&steps)
}

/// The scenario of a token, and its one run.
///
/// # Errors
/// If the generator wrote what the language refuses.
pub fn scenario(token: &Token) -> Result<(Scenario, RunConfig), SimError> {
    let scenario = file::parse(&token.to_string(), &text(token), &[], &[])
        .map_err(|diagnostics| SimError::internal(format!("{token}: {diagnostics}")))?;
    let run = scenario.runs().0.into_iter().next();
    let run = run.ok_or_else(|| SimError::internal(format!("{token}: a scenario without a run")))?;
    Ok((scenario, run))
}
