//! `rolecall random`.

use super::args::{OnOff, RandomArgs};
use super::commands::{CommandError, known_points, pool};
use super::exit_code::ExitCode;
use crate::engine;
use crate::file::Vendor;
use crate::random::campaign::{self, Campaign, Failures};
use crate::random::{self, Paging, Token};
use crate::report::log;
use crate::verdict::Judgement;
use sim_core::event::Detail;
use std::io::Write;

/// `rolecall random`.
///
/// # Errors
/// If an argument is wrong, or the output is gone.
pub fn random(arguments: &RandomArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let tokens = tokens(arguments)?;
    if let ([token], true) = (tokens.as_slice(), arguments.print) {
        write!(out, "{}", random::text(token))?;
        return Ok(ExitCode::Ok);
    }
    if let ([token], true) = (tokens.as_slice(), arguments.log) {
        let (scenario, run) = random::scenario(token)?;
        let outcome = engine::run(&scenario, &run, Detail::Transitions)?;
        writeln!(out, "== {token}: {run}\n{}", log::render(&outcome.records))?;
    }
    let results = pool(arguments.jobs)?.install(|| campaign::run_all(tokens))?;
    let failures = if arguments.print { Failures::Printed } else { Failures::Told };
    write!(out, "{}", campaign::report(&results, failures))?;
    let has = |judgement: Judgement| results.iter().any(|result| result.judgement == judgement);
    Ok(if results.iter().any(|result| result.broken) {
        ExitCode::Internal
    } else if has(Judgement::Fails) {
        ExitCode::Finding
    } else if results.iter().all(|result| result.judgement == Judgement::Unjudged) {
        ExitCode::Unjudged
    } else {
        ExitCode::Ok
    })
}

/// The scenarios that the arguments name.
fn tokens(arguments: &RandomArgs) -> Result<Vec<Token>, CommandError> {
    let points = known_points();
    let newest = points.last().copied().unwrap_or_default();
    let at = match (&arguments.token, &arguments.at) {
        (Some(token), _) => token.at.as_str(),
        (None, at) => at.as_deref().unwrap_or(newest),
    };
    if !points.contains(&at) {
        return Err(CommandError::Usage(format!("{at}: no such point of history (see: rolecall show points)")));
    }
    if let Some(token) = &arguments.token {
        return Ok(vec![token.clone()]);
    }
    let vendors = match arguments.vendor {
        None => Vendor::ALL.to_vec(),
        Some(vendor) => vec![vendor.vendor()],
    };
    let pagings = match arguments.tdp {
        None => Paging::ALL.to_vec(),
        Some(OnOff::On) => vec![Paging::TwoDimensional],
        Some(OnOff::Off) => vec![Paging::Shadow],
    };
    let campaign = Campaign { at: at.to_owned(), vendors, pagings, seed: arguments.seed, count: arguments.count };
    Ok(campaign.tokens().collect())
}
