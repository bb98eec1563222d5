//! `rolecall crosscheck`: scenarios on this machine's own KVM.

use super::args::CrosscheckArgs;
use super::commands::{self, CommandError};
use super::exit_code::ExitCode;
use crate::crosscheck::{self, Answer, Engines, Row, Witness, random};
use crate::file::Scenario;
use crate::verdict::difference_text;
use sim_core::SimError;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Runs of each answer.
#[derive(Default)]
struct Totals {
    agreed: usize,
    differ: usize,
    unjudged: usize,
}

/// Takes every run of some files on this machine's KVM and tells which agree with silicon.
///
/// # Errors
/// If there is no KVM, a file is wrong, or the output is gone.
pub fn crosscheck(arguments: &CrosscheckArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let files = commands::load_all(&arguments.paths)?;
    let abilities = crate::backend::kvm::Abilities::of(&kvm()?)?;
    let engines = Engines::here();
    writeln!(out, "this KVM: {abilities}, {}", engines_text(engines))?;
    if let Some(count) = arguments.random {
        return random_scenarios(arguments.seed..arguments.seed.saturating_add(count), engines, out);
    }
    let mut totals = Totals::default();
    for (name, scenario) in &files {
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        for run in crosscheck::runs(scenario) {
            let row = crosscheck::check(scenario, &run, engines)?;
            write_row(&stem, scenario, &row, &mut totals, out)?;
        }
    }
    let Totals { agreed, differ, unjudged } = totals;
    writeln!(out, "{agreed} agree, {differ} differ, {unjudged} can't be judged here")?;
    Ok(match totals {
        Totals { differ: 1.., .. } => ExitCode::Finding,
        Totals { agreed: 0, .. } => ExitCode::Unjudged,
        Totals { .. } => ExitCode::Ok,
    })
}

fn random_scenarios(seeds: Range<u64>, engines: Engines, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let mut code = ExitCode::Ok;
    for kind in [random::Kind::User, random::Kind::Walk] {
        let campaign = crosscheck::campaign(kind, seeds.clone(), engines)?;
        for (seed, difference) in &campaign.differ {
            let (scenario, _) = crosscheck::random_scenario(kind, *seed)?;
            writeln!(out, "DIFFERS  k1-{}-{seed:08x}: {}", kind.name(), difference_text(&scenario, difference))?;
            code = ExitCode::Finding;
        }
        for (seed, why) in &campaign.unjudged {
            writeln!(out, "unjudged k1-{}-{seed:08x}: {why}", kind.name())?;
        }
        let steps: Vec<String> =
            campaign.steps.iter().map(|(witness, count)| format!("{} {count}", witness.name())).collect();
        let (agreed, differ, unjudged) = (campaign.agreed, campaign.differ.len(), campaign.unjudged.len());
        let name = kind.name();
        writeln!(out, "{name}: {agreed} agree, {differ} differ, {unjudged} unjudged; steps: {}", steps.join(", "))?;
    }
    Ok(code)
}

fn kvm() -> Result<kvm_ioctls::Kvm, CommandError> {
    kvm_ioctls::Kvm::new().map_err(|error| SimError::unmodelled(format!("/dev/kvm on this machine: {error}")).into())
}

const fn engines_text(engines: Engines) -> &'static str {
    match engines {
        Engines::Hardware => "guests run on the processor",
        Engines::Split => "the guest's kernel is emulated, its user code runs on the processor",
    }
}

fn write_row(
    stem: &str,
    scenario: &Scenario,
    row: &Row,
    totals: &mut Totals,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let count = |witness| row.agreed.get(&witness).copied().unwrap_or(0);
    let witnesses = [Witness::Processor, Witness::Emulator, Witness::Host];
    let seen = witnesses.map(|witness| format!("{} {}", witness.name(), count(witness))).join(", ");
    let vendor = row.run.vendor.name();
    let (word, why) = match &row.answer {
        Answer::Agrees => {
            totals.agreed += 1;
            ("agreed", String::new())
        }
        Answer::Differs(difference) => {
            totals.differ += 1;
            ("DIFFERS", difference_text(scenario, difference))
        }
        Answer::Unjudged(why) => {
            totals.unjudged += 1;
            ("unjudged", why.clone())
        }
    };
    writeln!(out, "{}", format!("{word:<8} {stem:<44} {vendor:<5} {seen}  {why}").trim_end())?;
    Ok(())
}
