//! Which of L0's flushes no audit needed, step by step, and why: each flush as it was carried out, with what the processor
//! had cached for the guest then.
//!
//! A flush is needed by an audit if a cached translation led to memory that the guest no longer has, or may no longer
//! write. One that is not may still be owed to the guest, who asked for it: those are told apart by their request.

use serde_json::{Value, json};
use sim_core::event::{Event, Record};
use std::fmt::Write as _;

/// One flush.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row<'a> {
    step: u32,
    text: &'a str,
    request: &'static str,
    cached: u32,
    needed: Option<&'a str>,
}

fn rows(records: &[Record]) -> Vec<Row<'_>> {
    let (mut step, mut text) = (0, "");
    let mut rows = Vec::new();
    for record in records {
        match &record.event {
            Event::StepBegin { step: number, text: what } => (step, text) = (*number, what.as_str()),
            Event::FlushJudged { request, cached, needed } => {
                rows.push(Row { step, text, request, cached: *cached, needed: needed.as_deref() });
            }
            _ => {}
        }
    }
    rows
}

/// Why a flush was needed, or why not.
fn verdict(row: &Row<'_>) -> String {
    match (row.needed, row.cached) {
        (Some(why), _) => format!("needed: {why}"),
        (None, 0) => "not needed: nothing was cached".to_owned(),
        (None, cached) => format!("not needed: all {cached} cached translations lead where they may"),
    }
}

/// The report of a run.
#[must_use]
pub fn render(records: &[Record]) -> String {
    let rows = rows(records);
    let mut text = String::new();
    for row in &rows {
        let _ = writeln!(text, "  [{}] {}: {} {}", row.step, row.text, row.request, verdict(row));
    }
    let needless = rows.iter().filter(|row| row.needed.is_none()).count();
    let _ = writeln!(text, "  {needless} of {} flushes were needed by no audit", rows.len());
    text
}

/// The same for programs.
#[must_use]
pub fn json(records: &[Record]) -> Value {
    let object = |row: &Row<'_>| {
        json!({
            "step": row.step,
            "step-text": row.text,
            "request": row.request,
            "cached": row.cached,
            "needed": row.needed.is_some(),
            "why": verdict(row),
        })
    };
    Value::Array(rows(records).iter().map(object).collect())
}
