//! `rolecall crosscheck`: scenarios on this machine's own KVM.

use super::args::{CrosscheckArgs, KernelArgs};
use super::commands::{self, CommandError};
use super::exit_code::ExitCode;
use crate::crosscheck::campaign::{self, Campaign};
use crate::crosscheck::pages::Agreed;
use crate::crosscheck::random::{self, Kind};
use crate::crosscheck::{self, Answer, Engines, Here, Host, Inside, Row, View, Witness};
use crate::file::Scenario;
use crate::verdict::difference_text;
use sim_core::SimError;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Runs of each answer.
#[derive(Default)]
pub(super) struct Totals {
    agreed: usize,
    differ: usize,
    unjudged: usize,
    inside: usize,
    /// Of these, those whose comparison ended before the run did.
    in_part: usize,
    views: BTreeSet<View>,
    /// Runs with a known difference, by its name.
    known: BTreeMap<&'static str, usize>,
}

/// Takes every run of some files on this machine's KVM and tells which agree with silicon and with the model.
///
/// # Errors
/// If there is no KVM, a file is wrong, or the output is gone.
pub fn crosscheck(arguments: &CrosscheckArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    commands::kernel(&KernelArgs { plant: arguments.plant.clone(), ..KernelArgs::default() })?;
    if let Some(path) = &arguments.recorded {
        return super::rig::recorded(path, &arguments.plant, out);
    }
    let files = commands::load_all(&arguments.paths)?;
    let seeds = arguments.random.map(|count| seeds(arguments.seed, count)).transpose()?;
    if let Some(seeds) = seeds.clone().filter(|_| arguments.print) {
        for kind in Kind::SPLIT {
            seeds.clone().try_for_each(|seed| writeln!(out, "{}", random::text(kind, seed)))?;
        }
        return Ok(ExitCode::Ok);
    }
    let host = Host::find(&kvm()?)?;
    let mut here = Here::of(&host)?;
    here.plants.clone_from(&arguments.plant);
    writeln!(out, "this KVM: {}; {}", host.abilities, engines_text(here.engines))?;
    let with = if here.tdp { "with" } else { "without" };
    writeln!(out, "the model: at {}, {with} two-dimensional paging", here.point)?;
    if let Some(seeds) = seeds {
        return campaigns(seeds, &here, out);
    }
    let mut totals = Totals::default();
    for (name, scenario) in &files {
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        for run in crosscheck::runs(scenario, &here) {
            let row = crosscheck::check(scenario, &run, &here)?;
            write_row(&stem, scenario, &row, &mut totals, out)?;
        }
    }
    write_totals(&totals, out)?;
    Ok(code(&totals, &here))
}

pub(super) fn write_totals(totals: &Totals, out: &mut dyn Write) -> Result<(), CommandError> {
    let Totals { agreed, differ, unjudged, inside, in_part, views, known } = totals;
    let views = views_text(views);
    writeln!(
        out,
        "{agreed} agree, {differ} differ, {unjudged} can't be judged here; inside view of {inside} compared{}{views}",
        in_part_text(*in_part)
    )?;
    if !known.is_empty() {
        writeln!(out, "known differences: {}", known_text(known))?;
    }
    Ok(())
}

/// How many runs were compared inside up to where the silicon of the two chose otherwise.
fn in_part_text(count: usize) -> String {
    if count == 0 { String::new() } else { format!(", {count} in part") }
}

fn known_text(known: &BTreeMap<&'static str, usize>) -> String {
    known.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// By which views the inside was compared; nothing where it was not.
fn views_text(views: &BTreeSet<View>) -> String {
    let views: Vec<String> = views.iter().map(ToString::to_string).collect();
    if views.is_empty() { String::new() } else { format!(" ({})", views.join("; ")) }
}

/// What differs is a finding; where nothing could be judged, or nothing that a planted mistake would show in, nothing is known.
pub(super) const fn code(totals: &Totals, here: &Here) -> ExitCode {
    let Totals { agreed, differ, inside, .. } = *totals;
    if differ > 0 {
        ExitCode::Finding
    } else if agreed == 0 || (inside == 0 && !here.plants.is_empty()) {
        ExitCode::Unjudged
    } else {
        ExitCode::Ok
    }
}

fn seeds(first: u64, count: u64) -> Result<Range<u64>, CommandError> {
    let end = first.checked_add(count);
    let end =
        end.ok_or_else(|| CommandError::Usage(format!("--seed {first}: too few seeds follow for --random {count}")))?;
    Ok(first..end)
}

fn kvm() -> Result<kvm_ioctls::Kvm, CommandError> {
    kvm_ioctls::Kvm::new().map_err(|error| SimError::unmodelled(format!("/dev/kvm on this machine: {error}")).into())
}

const fn engines_text(engines: Engines) -> &'static str {
    match engines {
        Engines::Hardware(_) => "guests run on the processor",
        Engines::Split => "the guest's kernel is emulated, its user code runs on the processor",
    }
}

pub(super) fn write_row(
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
    let (mut word, why) = match &row.answer {
        Answer::Agrees => ("agreed", String::new()),
        Answer::Differs(difference) => ("DIFFERS", difference_text(scenario, difference)),
        Answer::Unjudged(why) => ("unjudged", why.clone()),
    };
    let inside = match &row.inside {
        Inside::Agrees(agreed, view) => {
            totals.inside += 1;
            totals.in_part += usize::from(agreed.until.is_some());
            totals.views.insert(view.clone());
            format!("{} alike ({view})", agreed_text(*agreed, view))
        }
        Inside::Differs(unlike) => {
            word = "DIFFERS";
            format!("inside: the kernel: {}; the model: {}", unlike.kernel, unlike.model)
        }
        Inside::NotCompared(_) => String::new(),
    };
    match word {
        "agreed" => totals.agreed += 1,
        "DIFFERS" => totals.differ += 1,
        _ => totals.unjudged += 1,
    }
    row.known.iter().for_each(|name| *totals.known.entry(name).or_default() += 1);
    let names: Vec<_> = row.known.iter().copied().collect();
    let known = if names.is_empty() { String::new() } else { format!("known: {}", names.join(", ")) };
    let told: Vec<String> = [known, why, inside].into_iter().filter(|text| !text.is_empty()).collect();
    writeln!(out, "{}", format!("{word:<8} {stem:<44} {vendor:<5} {seen}  {}", told.join("; ")).trim_end())?;
    Ok(())
}

fn agreed_text(agreed: Agreed, view: &View) -> String {
    let Agreed { pages, syncs, entries, counts, until } = agreed;
    let events = format!("{pages} pages, {syncs} syncs, {entries} entries");
    let what = match view {
        View::Both => format!("{events}, {counts} statistics"),
        View::Events(_) => events,
        View::Statistics(_) => format!("{counts} statistics"),
    };
    match until {
        None => what,
        Some(until) => format!("{what} {until}"),
    }
}

fn campaigns(seeds: Range<u64>, here: &Here, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let mut totals = Totals::default();
    for kind in Kind::of(here) {
        let campaign = campaign::run(kind, seeds.clone(), here)?;
        totals.differ += campaign.differ.len() + campaign.unlike.len();
        totals.agreed += campaign.agreed;
        totals.inside += campaign.inside;
        write_campaign(kind, &campaign, here, out)?;
    }
    Ok(code(&totals, here))
}

fn write_campaign(kind: Kind, campaign: &Campaign, here: &Here, out: &mut dyn Write) -> Result<(), CommandError> {
    let name = kind.name();
    for (seed, difference) in &campaign.differ {
        let (scenario, _) = campaign::scenario(kind, *seed, here)?;
        writeln!(out, "DIFFERS  {}: {}", kind.token(*seed), difference_text(&scenario, difference))?;
    }
    for (seed, unlike) in &campaign.unlike {
        writeln!(out, "DIFFERS  {}: the kernel: {}; the model: {}", kind.token(*seed), unlike.kernel, unlike.model)?;
    }
    for (seed, why) in &campaign.unjudged {
        writeln!(out, "unjudged {}: {why}", kind.token(*seed))?;
    }
    let steps: Vec<String> =
        campaign.steps.iter().map(|(witness, count)| format!("{} {count}", witness.name())).collect();
    let (agreed, differ, unjudged) = (campaign.agreed, campaign.differ.len(), campaign.unjudged.len());
    writeln!(out, "{name}: {agreed} agree, {differ} differ, {unjudged} unjudged; steps: {}", steps.join(", "))?;
    let (inside, unlike, events) = (campaign.inside, campaign.unlike.len(), campaign.events);
    let in_part = in_part_text(campaign.in_part);
    let Agreed { pages, syncs, entries, counts, .. } = events;
    writeln!(
        out,
        "{name}, inside: {inside} alike{in_part}, {unlike} unlike; {pages} pages, {syncs} syncs, {entries} entries, {counts} \
         statistics{}",
        views_text(&campaign.views)
    )?;
    if !campaign.known.is_empty() {
        writeln!(out, "{name}, known differences: {}", known_text(&campaign.known))?;
    }
    for why in &campaign.not_compared {
        writeln!(out, "{name}, inside: not compared: {why}")?;
    }
    Ok(())
}
