//! What each step shows on the hypervisor model and on bare silicon, side by side: one line a step, in columns.
//!
//! | column | meaning |
//! |---|---|
//! | mark | `~` where bare silicon shows something else by its own caches, but could show the same; `!` at the first step that it can't show, behind which nothing is marked |
//! | step | its number in the run |
//! | sim, bare | what it shows |
//! | text | what it is |

use crate::backend::Kind;
use crate::engine;
use crate::replay::Replayed;
use crate::verdict::{Verdict, difference_text};
use sim_core::SimError;
use sim_core::event::Detail;
use std::fmt::Write as _;

/// The runs of some files.
///
/// # Errors
/// If the bare machine can't be built.
pub fn render(replayed: &[Replayed]) -> Result<String, SimError> {
    let mut text = String::new();
    for file in replayed {
        for verdict in &file.verdicts {
            let _ = writeln!(text, "== {}: {}", file.name, verdict.run);
            one(&mut text, file, verdict)?;
        }
    }
    Ok(text)
}

fn one(text: &mut String, file: &Replayed, verdict: &Verdict) -> Result<(), SimError> {
    let bare = engine::run_on(Kind::Bare, &file.scenario, &verdict.run, Detail::Nothing)?;
    let Ok(outcome) = &verdict.outcome else {
        let _ = writeln!(text, "  {}", verdict.failures.join("; "));
        return Ok(());
    };
    let seen = |index: usize| {
        let there = bare.shown.get(index).map_or_else(|| "-".to_owned(), |shown| shown.observed.to_string());
        (outcome.shown[index].observed.to_string(), there)
    };
    let widths = (0..outcome.shown.len())
        .map(seen)
        .fold((3, 4), |(here, there), (sim, bare)| (here.max(sim.chars().count()), there.max(bare.chars().count())));
    let first = verdict.difference().map(|difference| difference.number);
    let _ = writeln!(text, "  step  {:<w$}  {:<v$}  text", "sim", "bare", w = widths.0, v = widths.1);
    for (index, shown) in outcome.shown.iter().enumerate() {
        let (sim, bare) = seen(index);
        let mark = match first {
            Some(first) if shown.number == first => '!',
            Some(first) if shown.number > first => ' ',
            _ if sim != bare => '~',
            _ => ' ',
        };
        let step = &file.scenario.steps[shown.index];
        let who = if step.vcpu == 0 { String::new() } else { format!("{}.", step.vcpu) };
        let (w, v) = widths;
        let _ = writeln!(
            text,
            "{mark} {:>4}  {sim:<w$}  {bare:<v$}  {who}{}: {}",
            shown.number,
            step.actor.name(),
            step.text
        );
    }
    for error in [&outcome.stopped, &bare.stopped].into_iter().flatten() {
        let _ = writeln!(text, "  stopped: {error}");
    }
    if let Some(difference) = verdict.difference() {
        let _ = writeln!(text, "  {}", difference_text(&file.scenario, difference));
    }
    Ok(())
}
