//! The differences of two values, as lines for a person: `path: old -> new`.
//!
//! Values are compared as [`Node`] trees, in the order of the old value's fields; what is only in the new one comes
//! where its order puts it. Maps, and sequences of pairs with ascending numbers in front (frames of memory), are
//! compared by key. Other sequences are compared by position after their common beginning and end are set aside, so
//! that one inserted element is one line. That is not the shortest difference, but a stable one.

use crate::tree::{Node, Run, TreeError, tree};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::mem::discriminant;

/// Unequal bytes with fewer equal ones than this between them are one run.
const RUN_GAP: usize = 4;
/// Runs listed for one byte string.
const RUNS_MAX: usize = 16;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where: field names with dots, keys and positions in brackets; `.` for the whole value.
    pub path: String,
    /// What was there, if anything.
    pub old: Option<String>,
    /// What is there, if anything.
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |side: &Option<String>| side.clone().unwrap_or_else(|| "absent".into());
        write!(f, "{}: {} -> {}", self.path, text(&self.old), text(&self.new))
    }
}

/// The differences of two values, none if their serialised forms are equal.
///
/// # Errors
///
/// If one of them can't be serialised.
pub fn diff<A: Serialize + ?Sized, B: Serialize + ?Sized>(old: &A, new: &B) -> Result<Vec<Change>, TreeError> {
    Ok(diff_nodes(&tree(old)?, &tree(new)?))
}

/// The differences of two trees.
#[must_use]
pub fn diff_nodes(old: &Node, new: &Node) -> Vec<Change> {
    let mut walk = Walk::default();
    walk.compare(old, new);
    walk.changes
}

#[derive(Default)]
struct Walk {
    path: String,
    changes: Vec<Change>,
}

impl Walk {
    /// Does `inner` with the path extended by `segment`.
    fn within(&mut self, segment: &str, inner: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(segment);
        inner(self);
        self.path.truncate(length);
    }

    fn in_field(&mut self, name: &str, inner: impl FnOnce(&mut Self)) {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.within(&format!("{dot}{name}"), inner);
    }

    fn report(&mut self, old: Option<String>, new: Option<String>) {
        let path = if self.path.is_empty() { ".".into() } else { self.path.clone() };
        self.changes.push(Change { path, old, new });
    }

    /// Compares what may be missing on one side.
    fn compare_sides(&mut self, old: Option<&Node>, new: Option<&Node>) {
        match (old, new) {
            (Some(old), Some(new)) => self.compare(old, new),
            (old, new) => self.report(old.map(Node::to_string), new.map(Node::to_string)),
        }
    }

    fn compare(&mut self, old: &Node, new: &Node) {
        if old == new {
            return;
        }
        if let (Some(old), Some(new)) = (old.as_bytes(), new.as_bytes()) {
            return self.compare_bytes(old, new);
        }
        if discriminant(old) == discriminant(new)
            && let (Some(old), Some(new)) = (keyed(old), keyed(new))
        {
            return self.compare_keyed(&old, &new);
        }
        match (old, new) {
            (Node::Some(old), Node::Some(new)) => self.compare(old, new),
            (Node::Variant(name, old), Node::Variant(other, new)) if name == other => {
                self.in_field(name, |walk| walk.compare(old, new));
            }
            (Node::Struct(old), Node::Struct(new)) => self.compare_fields(old, new),
            (Node::Tuple(old), Node::Tuple(new)) => self.compare_positions(old, new, 0),
            _ => match (old.as_seq(), new.as_seq()) {
                (Some(old), Some(new)) => self.compare_seq(old, new),
                _ => self.report(Some(old.to_string()), Some(new.to_string())),
            },
        }
    }

    fn compare_fields(&mut self, old: &[(&'static str, Node)], new: &[(&'static str, Node)]) {
        let find = |fields: &'_ [(&'static str, Node)], name| fields.iter().position(|(other, _)| *other == name);
        for (name, value) in old {
            let other = find(new, *name).map(|at| &new[at].1);
            self.in_field(name, |walk| walk.compare_sides(Some(value), other));
        }
        for (name, value) in new.iter().filter(|(name, _)| find(old, *name).is_none()) {
            self.in_field(name, |walk| walk.compare_sides(None, Some(value)));
        }
    }

    fn compare_keyed(&mut self, old: &BTreeMap<&Node, &Node>, new: &BTreeMap<&Node, &Node>) {
        let mut keys: Vec<&Node> = old.keys().chain(new.keys()).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let segment = format!("[{key}]");
            self.within(&segment, |walk| walk.compare_sides(old.get(key).copied(), new.get(key).copied()));
        }
    }

    fn compare_seq(&mut self, old: &[Node], new: &[Node]) {
        if old.len() == new.len() {
            return self.compare_positions(old, new, 0);
        }
        let start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
        let (old, new) = (&old[start..], &new[start..]);
        let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
        self.compare_positions(&old[..old.len() - end], &new[..new.len() - end], start);
    }

    /// Compares element by element; positions are those of both sides as far as both go, then of the longer one.
    fn compare_positions(&mut self, old: &[Node], new: &[Node], start: usize) {
        for index in 0..old.len().max(new.len()) {
            let segment = format!("[{}]", start + index);
            self.within(&segment, |walk| walk.compare_sides(old.get(index), new.get(index)));
        }
    }

    fn compare_bytes(&mut self, old: &[u8], new: &[u8]) {
        let run = |bytes: &[u8]| Some(Run(bytes).to_string());
        if old.len() != new.len() {
            return self.report(run(old), run(new));
        }
        let runs = unequal_runs(old, new);
        for &(start, end) in runs.iter().take(RUNS_MAX) {
            let segment = if end - start == 1 { format!("[{start:#x}]") } else { format!("[{start:#x}..{end:#x}]") };
            self.within(&segment, |walk| walk.report(run(&old[start..end]), run(&new[start..end])));
        }
        if let (Some(&(start, _)), Some(&(_, end))) = (runs.get(RUNS_MAX), runs.last()) {
            let segment = format!("[{start:#x}..{end:#x}] ({} more runs)", runs.len() - RUNS_MAX);
            self.within(&segment, |walk| walk.report(run(&old[start..end]), run(&new[start..end])));
        }
    }
}

/// The node's entries by key, if it is a map or a sequence that reads as one, and no key is there twice.
fn keyed(node: &Node) -> Option<BTreeMap<&Node, &Node>> {
    let entries: Vec<(&Node, &Node)> = match node {
        Node::Map(entries) => entries.iter().map(|(key, value)| (key, value)).collect(),
        Node::Seq(items) => items.iter().map(as_pair).collect::<Option<_>>()?,
        _ => return None,
    };
    let ascending = entries.is_sorted_by(|(one, _), (other, _)| one < other);
    ascending.then(|| entries.into_iter().collect())
}

fn as_pair(node: &Node) -> Option<(&Node, &Node)> {
    match node {
        Node::Tuple(items) => match items.as_slice() {
            [key @ Node::Unsigned(_), value] => Some((key, value)),
            _ => None,
        },
        _ => None,
    }
}

/// Half-open ranges of unequal bytes in two strings of one length.
fn unequal_runs(old: &[u8], new: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, _) in old.iter().zip(new).enumerate().filter(|(_, (old, new))| old != new) {
        match runs.last_mut() {
            Some((_, end)) if index - *end < RUN_GAP => *end = index + 1,
            _ => runs.push((index, index + 1)),
        }
    }
    runs
}
