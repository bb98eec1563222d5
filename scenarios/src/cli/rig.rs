//! `rolecall rig`: scenarios on the KVM of a stock kernel, on an emulated processor.

use super::args::{EmulatorName, OnOff, RigArgs, RigInitArgs};
use super::commands::{self, CommandError};
use super::crosscheck::{Totals, code, write_row, write_totals};
use super::exit_code::ExitCode;
use crate::backend::Kind::Sim;
use crate::crosscheck::recording::Recording;
use crate::crosscheck::{self, Engines, Here, Host, random};
use crate::engine;
use crate::file::{Observation, RunConfig, Scenario, Vendor};
use crate::minimize::Document;
use crate::random::Paging;
use crate::rig::{Header, Job, Kind, Rig, Setup, Taken, init, take};
use cpu::profile::TlbProfile;
use mmu::invlpg::PREVIOUS_UNDER_PAE;
use sim_core::SimError;
use sim_core::event::{Detail, Event, Record};
use std::io::Write;
use std::path::Path;

/// Takes every run of some files that is of the vendor in a rig, and tells which agree with silicon and with the model.
///
/// # Errors
/// If there is no rig, a file is wrong, or the output is gone.
pub fn rig(arguments: &RigArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let setup = Setup::find(&arguments.dir, arguments.kernel.name())?;
    let emulator = match arguments.emulator {
        EmulatorName::Bochs => Kind::Bochs,
        EmulatorName::Qemu => Kind::Qemu,
    };
    let rig = Rig { setup, vendor: arguments.vendor.vendor(), paging: paging(arguments.tdp), emulator };
    if (rig.vendor, rig.emulator) == (Vendor::Intel, Kind::Qemu) {
        return Err(CommandError::Usage("QEMU emulates no VMX: --emulator bochs has it".to_owned()));
    }
    let files = commands::load_all(&arguments.paths)?;
    let jobs = match arguments.random {
        Some(count) => random_jobs(&rig, arguments.seed, count)?,
        None => file_jobs(&rig, &files)?,
    };
    if jobs.is_empty() {
        return Err(CommandError::Usage(format!("no run of these files is of {}", rig.vendor.name())));
    }
    let (deadly, jobs) = sort_out(jobs)?;
    writeln!(out, "the rig: {}; {} jobs", rig.setup.version, jobs.len())?;
    for job in &deadly {
        writeln!(out, "left out {}: the kernel would die of it: {PREVIOUS_UNDER_PAE}", job.name)?;
    }
    let taken = take(&rig, &jobs)?;
    if let Some(path) = &arguments.keep {
        keep(path, &jobs, &taken)?;
    }
    judge(&taken, &jobs, &[], out)
}

const fn paging(tdp: OnOff) -> Paging {
    match tdp {
        OnOff::On => Paging::TwoDimensional,
        OnOff::Off => Paging::Shadow,
    }
}

/// The first program of a rig.
///
/// # Errors
/// If this is no rig.
pub fn rig_init(arguments: RigInitArgs) -> Result<ExitCode, CommandError> {
    init::main(arguments.vendor.vendor(), paging(arguments.tdp))?;
    Ok(ExitCode::Ok)
}

/// The runs of files, each as a text that stands alone.
fn file_jobs(rig: &Rig, files: &[(String, Scenario)]) -> Result<Vec<Job>, CommandError> {
    let here = Here {
        engines: Engines::Hardware(rig.vendor),
        tdp: rig.paging == Paging::TwoDimensional,
        point: String::new(),
        tlb: TlbProfile::Base,
        plants: Vec::new(),
    };
    let mut jobs = Vec::new();
    for (name, scenario) in files {
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        let runs = crosscheck::runs(scenario, &here);
        for (number, run) in runs.iter().enumerate() {
            let text = Document::of_file(Path::new(name), scenario, run)?.to_string();
            let name = if runs.len() == 1 { stem.to_string() } else { format!("{stem}#{}", number + 1) };
            jobs.push(Job { name, text });
        }
    }
    Ok(jobs)
}

/// Jobs of which a kernel dies, as the model foresees, and the others. One that is asked for alone is taken all the same.
fn sort_out(jobs: Vec<Job>) -> Result<(Vec<Job>, Vec<Job>), CommandError> {
    if jobs.len() == 1 {
        return Ok((Vec::new(), jobs));
    }
    let (mut deadly, mut others) = (Vec::new(), Vec::new());
    for job in jobs {
        if is_deadly(&job)? { deadly.push(job) } else { others.push(job) }
    }
    Ok((deadly, others))
}

fn is_deadly(job: &Job) -> Result<bool, CommandError> {
    let (scenario, run) = job.load()?;
    match engine::run_on(Sim, &scenario, &RunConfig { at: None, ..run }, Detail::Transitions) {
        Ok(outcome) => {
            let dies = |record: &Record| record.event == Event::Warning { what: PREVIOUS_UNDER_PAE };
            Ok(outcome.records.iter().any(dies))
        }
        // What the model lacks it foresees nothing of.
        Err(SimError::Unmodelled { .. } | SimError::Runaway { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Random scenarios for the rig's silicon and paging.
fn random_jobs(rig: &Rig, first: u64, count: u64) -> Result<Vec<Job>, CommandError> {
    let end = first.checked_add(count);
    let end =
        end.ok_or_else(|| CommandError::Usage(format!("--seed {first}: too few seeds follow for --random {count}")))?;
    let kind = random::Kind::Nested(rig.vendor, rig.paging);
    Ok((first..end).map(|seed| Job { name: kind.token(seed), text: random::text(kind, seed) }).collect())
}

/// Holds what came back against the model; the kernel's own words say at which point of history.
fn judge(taken: &Taken, jobs: &[Job], plants: &[String], out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let here = Here { plants: plants.to_vec(), tlb: taken.emulator.tlb(), ..Here::of(&taken.header.host)? };
    write_header(&taken.header, taken.boots, out)?;
    let with = if here.tdp { "with" } else { "without" };
    writeln!(out, "the model: at {}, {with} two-dimensional paging", here.point)?;
    let mut totals = Totals::default();
    for (job, result) in jobs.iter().zip(&taken.results) {
        let (scenario, run) = job.load()?;
        let mut result = result.clone();
        if let (Ok(recording), false) = (&mut result, taken.emulator.loads_cr2(&taken.header.host)) {
            take_cr2_over(recording, &scenario, &run, &here)?;
        }
        let row = crosscheck::judge(&scenario, &run, &here, result)?;
        write_row(&job.name, &scenario, &row, &mut totals, out)?;
    }
    write_totals(&totals, out)?;
    Ok(code(&totals, &here))
}

/// Where an emulator loses CR2, page faults are compared without it: it is the model's.
fn take_cr2_over(
    recording: &mut Recording,
    scenario: &Scenario,
    run: &RunConfig,
    here: &Here,
) -> Result<(), CommandError> {
    let (ours, run) = crosscheck::model(scenario, run, here);
    let model = match engine::run_on(Sim, &ours, &run, Detail::Nothing) {
        Ok(model) => model,
        Err(SimError::Unmodelled { .. } | SimError::Runaway { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for (seen, ours) in recording.shown.iter_mut().zip(&model.shown) {
        if let (Observation::Exception(seen), Observation::Exception(ours)) = (&mut seen.observed, &ours.observed)
            && (seen.vector, seen.error) == (ours.vector, ours.error)
        {
            seen.cr2 = ours.cr2;
        }
    }
    Ok(())
}

/// The parameters that decide how the MMU works, where the module has them.
const TOLD: [&str; 6] = ["npt", "ept", "nested", "tdp_mmu", "vpid", "unrestricted_guest"];

fn write_header(header: &Header, boots: usize, out: &mut dyn Write) -> Result<(), CommandError> {
    let told =
        header.parameters.iter().filter(|(name, _)| name.rsplit('.').next().is_some_and(|name| TOLD.contains(&name)));
    let told: Vec<String> = told.map(|(name, value)| format!("{name}={value}")).collect();
    let boots = if boots == 1 { "one boot".to_owned() } else { format!("{boots} boots") };
    let Host { release, build, abilities, .. } = &header.host;
    writeln!(out, "its kernel: {release} {build}; {}; {boots}", told.join(" "))?;
    writeln!(out, "its KVM: {abilities}")?;
    Ok(())
}

/// Everything that came back, as JSON.
fn keep(path: &Path, jobs: &[Job], taken: &Taken) -> Result<(), CommandError> {
    let file = std::io::BufWriter::new(std::fs::File::create(path)?);
    serde_json::to_writer(file, &(jobs, taken)).map_err(std::io::Error::from)?;
    Ok(())
}

/// Judges what [`keep`] wrote.
///
/// # Errors
/// If it is no such file, or the output is gone.
pub(super) fn recorded(path: &Path, plants: &[String], out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let no_recording = |error: &dyn std::fmt::Display| {
        CommandError::Usage(format!("{}: not what `rig --keep` writes: {error}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| no_recording(&error))?;
    let (jobs, taken): (Vec<Job>, Taken) = serde_json::from_str(&text).map_err(|error| no_recording(&error))?;
    judge(&taken, &jobs, plants, out)
}
