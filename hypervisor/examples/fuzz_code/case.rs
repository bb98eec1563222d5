//! One case: a machine and code from a seed, run in steps and in blocks. Neither may panic, and both must agree.

mod code;
mod machine;
mod random;

use cpu::{Outcome, Pace, StopOn};
use machine::Machine;
use random::Random;
use sim_core::SimError;
use sim_core::hash::digest;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What cases did, by how they ended.
#[derive(Debug, Default)]
pub(crate) struct Totals(BTreeMap<&'static str, u64>);

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(name, count)| format!("{name} {count}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// Runs the case of a seed.
///
/// # Errors
/// What went wrong.
pub(crate) fn run(seed: u64, totals: &mut Totals) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| attempt(seed)));
    let ends = result.map_err(|_| "a panic".to_owned())??;
    for name in ends {
        *totals.0.entry(name).or_default() += 1;
    }
    Ok(())
}

type Ran = Result<Outcome, SimError>;

fn attempt(seed: u64) -> Result<Vec<&'static str>, String> {
    let mut random = Random::new(seed);
    let mut steps = Machine::build(&mut random);
    let mut blocks = steps.clone();
    let mut ends = vec![steps.name];
    for slice in 0..3 {
        let budget = 1 + random.below(100);
        let slow = at(Pace::Steps, &mut steps, budget);
        let fast = at(Pace::Blocks, &mut blocks, budget);
        if slow != fast {
            return Err(format!("slice {slice} of {}: steps end with {slow:?}, blocks with {fast:?}", steps.name));
        }
        if state(&steps) != state(&blocks) {
            return Err(format!("slice {slice} of {}: steps and blocks differ in state after {slow:?}", steps.name));
        }
        match &slow {
            Err(SimError::Internal { .. }) => return Err(format!("{slow:?}")),
            Err(SimError::Runaway { .. }) => {}
            end => {
                ends.push(name_of(end));
                break;
            }
        }
    }
    Ok(ends)
}

fn at(pace: Pace, machine: &mut Machine, budget: u64) -> Ran {
    cpu::run_at(pace, &mut machine.core, &mut machine.ext, &mut machine.ground, StopOn::Bus, budget)
}

fn state(machine: &Machine) -> u64 {
    let ground = &machine.ground;
    digest(&(&machine.core, &machine.ext, &ground.mem, &ground.clock, &ground.choices))
}

const fn name_of(end: &Ran) -> &'static str {
    match end {
        Ok(Outcome::Halted) => "halted",
        Ok(Outcome::Shutdown) => "shut down",
        Ok(Outcome::Out { .. }) => "reached the bus",
        Ok(_) => "stopped",
        Err(_) => "not modelled",
    }
}
