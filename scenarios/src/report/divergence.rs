//! Where two runs part ways, for people and for programs. `a` and `b` mark what only one side has; what has no mark is
//! the same on both.

use crate::divergence::{Divergence, Row, Side};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// The marks of the two sides.
const MARKS: [char; 2] = ['a', 'b'];

fn side_text(side: &Side) -> String {
    format!("{} on {}", side.run, side.backend.name())
}

/// The whole answer, for people.
#[must_use]
pub fn text(sides: &[Side; 2], scope: &str, found: Option<&Divergence>) -> String {
    let mut text = String::new();
    for (mark, side) in MARKS.iter().zip(sides) {
        let _ = writeln!(text, "{mark}: {}", side_text(side));
    }
    let _ = writeln!(text, "compared: {scope}");
    let Some(found) = found else {
        text.push_str("no difference\n");
        return text;
    };
    let _ = writeln!(text, "first difference {}, after {} events that are the same:", place(found), found.same);
    text.push_str(&events(found));
    if let Some(before) = &found.before {
        text.push_str("state before the step:\n");
        text.push_str(&rows(before, Which::All));
    }
    text.push_str("state after the step:\n");
    text.push_str(&rows(&found.after, Which::All));
    text
}

/// The events, and what differs in the state after the step.
#[must_use]
pub fn brief(found: &Divergence) -> String {
    format!("{}{}", events(found), rows(&found.after, Which::Different))
}

/// The step in words.
#[must_use]
pub fn place(found: &Divergence) -> String {
    if found.step == 0 { format!("at {}", found.text) } else { format!("in step {}, {}", found.step, found.text) }
}

fn events(found: &Divergence) -> String {
    let mut text = String::new();
    for line in &found.common {
        let _ = writeln!(text, "      {line}");
    }
    for (mark, event) in MARKS.iter().zip(&found.events) {
        let _ = writeln!(text, "    {mark} {}", event.as_deref().unwrap_or("(no more events)"));
    }
    text
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    Different,
}

/// The names of both sides' rows, in the first side's order, what only the second has at the end.
fn names(states: &[Vec<Row>; 2]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in states.iter().flatten() {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    names
}

fn value<'a>(rows: &'a [Row], name: &str) -> Option<&'a str> {
    rows.iter().find(|row| row.name == name).map(|row| row.value.as_str())
}

fn rows(states: &[Vec<Row>; 2], which: Which) -> String {
    let names = names(states);
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for name in names {
        let [a, b] = states.each_ref().map(|rows| value(rows, name));
        match (a, b) {
            (Some(a), Some(b)) if a == b => {
                if which == Which::All {
                    let _ = writeln!(text, "      {name:<width$}  {a}");
                }
            }
            _ => {
                for (mark, value) in MARKS.iter().zip([a, b]).filter_map(|(mark, value)| Some((mark, value?))) {
                    let _ = writeln!(text, "    {mark} {name:<width$}  {value}");
                }
            }
        }
    }
    text
}

/// The same for programs.
#[must_use]
pub fn json(sides: &[Side; 2], scope: &str, found: Option<&Divergence>) -> Value {
    let [a, b] = sides.each_ref().map(|side| json!({ "run": side.run.to_string(), "backend": side.backend.name() }));
    let difference = found.map(|found| {
        let before = found.before.as_ref().map(state_json);
        json!({
            "step": found.step,
            "step-text": found.text,
            "same-events": found.same,
            "common": found.common,
            "a": found.events[0],
            "b": found.events[1],
            "before": before,
            "after": state_json(&found.after),
        })
    });
    json!({ "a": a, "b": b, "compared": scope, "same": found.is_none(), "difference": difference })
}

fn state_json(states: &[Vec<Row>; 2]) -> Value {
    let object = |rows: &Vec<Row>| {
        let rows = rows.iter().map(|row| (row.name.clone(), Value::from(row.value.as_str())));
        Value::Object(rows.collect::<Map<_, _>>())
    };
    let differ: Vec<&str> =
        names(states).into_iter().filter(|name| value(&states[0], name) != value(&states[1], name)).collect();
    json!({ "a": object(&states[0]), "b": object(&states[1]), "differ": differ })
}
