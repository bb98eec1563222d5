//! A scenario file as a tree of TOML that parts can be taken out of, and written again.
//!
//! The document of a run stands alone: includes are merged into it, the matrix has one value an axis, and the steps are
//! those of the run in its order, one a line. Comments are lost.

use crate::file::{RunConfig, Scenario};
use sim_core::SimError;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Tables that an include gives, and that the including file overrides by name.
const MERGED: [&str; 3] = ["machine", "space", "guest"];
/// Keys that only the scenario itself may have.
const OWN: [&str; 7] = ["title", "about", "source", "include", "matrix", "steps", "expect"];

/// One way into a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A table's key.
    Key(String),
    /// An array's element.
    Element(usize),
    /// A text's line.
    Line(usize),
    /// A word of a text or, below a line, of that line.
    Word(usize),
}

impl Place {
    /// The key, if it is one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Key(key) => Some(key),
            Self::Element(_) | Self::Line(_) | Self::Word(_) => None,
        }
    }
}

/// A part of a document: the way to it from the root.
pub type Part = Vec<Place>;

/// A scenario file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document(Table);

fn table(name: &str, text: &str) -> Result<Table, SimError> {
    text.parse().map_err(|error| SimError::internal(format!("{name} was read before and can't be read now: {error}")))
}

/// A file and what it includes: included files first, each once.
fn read(path: &Path, known: &mut BTreeSet<PathBuf>, all: &mut Vec<Table>) -> Result<(), SimError> {
    if !known.insert(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())) {
        return Ok(());
    }
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| SimError::internal(format!("{name}: {error}")))?;
    let read_table = table(&name, &text)?;
    let includes = read_table.get("include").and_then(Value::as_array).cloned().unwrap_or_default();
    for include in includes.iter().filter_map(Value::as_str) {
        read(&path.parent().unwrap_or(Path::new("")).join(include), known, all)?;
    }
    all.push(read_table);
    Ok(())
}

/// Lays one file over those that it includes, as the language does ([`crate::file::include`]).
fn lay_over(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if MERGED.contains(&key.as_str()) => old.extend(new),
            (Some(Value::Array(old)), Value::Array(new)) if key == "memory" => old.extend(new),
            (Some(Value::Array(old)), Value::Array(new)) if key == "slot" => {
                for slot in new {
                    match old.iter_mut().find(|other| other.get("name") == slot.get("name")) {
                        Some(other) => *other = slot,
                        None => old.push(slot),
                    }
                }
            }
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

/// A file's `steps` and `memory` mean the same below any header: brings them to the top.
fn lift(root: &mut Table) {
    let mut lifted: Vec<(String, Value)> = Vec::new();
    let mut take = |table: &mut Table, keys: &[&str]| {
        for key in keys {
            lifted.extend(table.remove(*key).map(|value| ((*key).to_owned(), value)));
        }
    };
    for (name, value) in root.iter_mut() {
        match value {
            // Machine's own memory is its size.
            Value::Table(one) if matches!(name.as_str(), "machine" | "matrix") => take(one, &["steps"]),
            Value::Table(named) => named.iter_mut().filter_map(|(_, one)| one.as_table_mut()).for_each(|one| {
                take(one, &["steps", "memory"]);
                if let Some(Value::Table(host)) = one.get_mut("host") {
                    take(host, &["steps"]);
                }
            }),
            Value::Array(slots) if name == "slot" => {
                slots.iter_mut().filter_map(Value::as_table_mut).for_each(|one| take(one, &["steps", "memory"]));
            }
            _ => {}
        }
    }
    for (key, value) in lifted {
        match (root.get_mut(&key), value) {
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
            (_, value) => {
                root.insert(key, value);
            }
        }
    }
}

fn strings<'a>(all: impl IntoIterator<Item = &'a String>) -> Value {
    Value::Array(all.into_iter().map(|one| Value::String(one.clone())).collect())
}

impl Document {
    /// The document of one run of a scenario file on disk.
    ///
    /// # Errors
    /// If the file can no longer be read.
    pub fn of_file(path: &Path, scenario: &Scenario, run: &RunConfig) -> Result<Self, SimError> {
        let mut files = Vec::new();
        read(path, &mut BTreeSet::new(), &mut files)?;
        Ok(Self::of_tables(files, scenario, run))
    }

    /// The document of one run of a scenario that stands alone in a text.
    ///
    /// # Errors
    /// If the text is no TOML.
    pub fn of_text(text: &str, scenario: &Scenario, run: &RunConfig) -> Result<Self, SimError> {
        Ok(Self::of_tables(vec![table(&scenario.title, text)?], scenario, run))
    }

    fn of_tables(files: Vec<Table>, scenario: &Scenario, run: &RunConfig) -> Self {
        let last = files.len().saturating_sub(1);
        let mut root = Table::new();
        for (index, mut file) in files.into_iter().enumerate() {
            lift(&mut file);
            file.retain(|key, _| index == last || !OWN.contains(&(key as &str)));
            lay_over(&mut root, file);
        }
        for key in ["about", "include", "expect"] {
            root.remove(key);
        }
        let steps = run.steps.iter().filter_map(|index| scenario.steps.get(*index));
        let steps: String = steps.map(|step| format!("{step}\n")).collect();
        root.insert("steps".to_owned(), Value::String(steps));
        root.insert("matrix".to_owned(), Value::Table(matrix(run)));
        // Without it L1's space is the first that is declared, which depends on the order of the file.
        let guests = root.entry("guest").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(guests) = guests {
            let first = guests.entry("l1").or_insert_with(|| Value::Table(Table::new()));
            if let (Value::Table(first), false) = (first, scenario.first_level.space.is_empty()) {
                first.insert("space".to_owned(), Value::String(scenario.first_level.space.clone()));
            }
        }
        Self(root)
    }

    /// Says what must hold: `key = value` below `[expect]`, for every run.
    pub fn expect(&mut self, expectation: Table) {
        self.0
            .insert("expect".to_owned(), Value::Table(Table::from_iter([("*".to_owned(), Value::Table(expectation))])));
    }

    /// The document with a key of one of its tables set.
    #[must_use]
    pub fn with_key(&self, table: &str, key: &str, value: Value) -> Self {
        let mut root = self.0.clone();
        if let Value::Table(table) = root.entry(table).or_insert_with(|| Value::Table(Table::new())) {
            table.insert(key.to_owned(), value);
        }
        Self(root)
    }

    /// The value at a place.
    #[must_use]
    pub fn get(&self, path: &[Place]) -> Option<&Value> {
        let (Place::Key(key), rest) = path.split_first()? else { return None };
        rest.iter().try_fold(self.0.get(key)?, |value, place| match place {
            Place::Key(key) => value.get(key),
            Place::Element(index) => value.get(*index),
            Place::Line(_) | Place::Word(_) => None,
        })
    }

    /// The steps, one a line.
    #[must_use]
    pub fn steps(&self) -> Vec<&str> {
        self.0.get("steps").and_then(Value::as_str).unwrap_or_default().lines().collect()
    }

    /// The document with other steps.
    #[must_use]
    pub fn with_steps(&self, steps: &[String]) -> Self {
        let mut root = self.0.clone();
        root.insert("steps".to_owned(), Value::String(steps.iter().map(|step| format!("{step}\n")).collect()));
        Self(root)
    }

    /// The document with a number of the machine changed.
    #[must_use]
    pub fn with_machine(&self, key: &str, number: i64) -> Self {
        let mut root = self.0.clone();
        if let Some(Value::Table(machine)) = root.get_mut("machine") {
            machine.insert(key.to_owned(), Value::Integer(number));
        }
        Self(root)
    }

    /// A number of the machine.
    #[must_use]
    pub fn machine(&self, key: &str) -> Option<i64> {
        self.get(&[Place::Key("machine".to_owned()), Place::Key(key.to_owned())]).and_then(Value::as_integer)
    }

    /// The parts right below a place: a table's keys or an array's elements, a text's lines if it has several.
    #[must_use]
    pub fn below(&self, path: &[Place]) -> Vec<Part> {
        let with = |place: Place| [path, &[place]].concat();
        let keys = |table: &Table| table.keys().map(|key| with(Place::Key(key.clone()))).collect();
        if path.is_empty() {
            return keys(&self.0);
        }
        match self.get(path) {
            Some(Value::Table(table)) => keys(table),
            Some(Value::Array(array)) => (0..array.len()).map(|index| with(Place::Element(index))).collect(),
            Some(Value::String(text)) if text.contains('\n') => {
                (0..text.lines().count()).map(|line| with(Place::Line(line))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The words of every text below a place, line by line. A line or text of one word has none to spare.
    #[must_use]
    pub fn words(&self, path: &[Place]) -> Vec<Part> {
        let below = self.below(path);
        match self.get(path) {
            Some(Value::String(text)) if below.is_empty() => words_of(path, text),
            Some(Value::String(text)) => {
                below.iter().zip(text.lines()).flat_map(|(line, text)| words_of(line, text)).collect()
            }
            _ => below.iter().flat_map(|part| self.words(part)).collect(),
        }
    }

    /// The document without some parts, none of which lies in another.
    #[must_use]
    pub fn without(&self, parts: &[Part]) -> Self {
        let mut sorted: Vec<&Part> = parts.iter().collect();
        sorted.sort();
        let mut root = Value::Table(self.0.clone());
        // From the last to the first, so that what goes does not move what is still to go.
        for part in sorted.into_iter().rev() {
            remove(&mut root, part);
        }
        match root {
            Value::Table(root) => Self(root),
            _ => self.clone(),
        }
    }
}

fn words_of(path: &[Place], text: &str) -> Vec<Part> {
    let count = text.split_whitespace().count();
    let all = if count < 2 { 0..0 } else { 0..count };
    all.map(|word| [path, &[Place::Word(word)]].concat()).collect()
}

fn without_word(text: &str, word: usize) -> String {
    let left = text.split_whitespace().enumerate().filter(|(index, _)| *index != word).map(|(_, word)| word);
    left.collect::<Vec<_>>().join(" ")
}

fn remove(value: &mut Value, path: &[Place]) {
    match (value, path) {
        (Value::Table(table), [Place::Key(key)]) => {
            table.remove(key);
        }
        (Value::Array(array), [Place::Element(index)]) if *index < array.len() => {
            array.remove(*index);
        }
        (Value::String(text), [Place::Word(word)]) => *text = without_word(text, *word),
        (Value::String(text), [Place::Line(line), rest @ ..]) => {
            let lines = text.lines().enumerate().filter_map(|(index, text)| match (index == *line, rest) {
                (true, [Place::Word(word), ..]) => Some(without_word(text, *word)),
                (true, _) => None,
                (false, _) => Some(text.to_owned()),
            });
            *text = lines.map(|line| format!("{line}\n")).collect();
        }
        (Value::Table(table), [Place::Key(key), rest @ ..]) => {
            if let Some(inner) = table.get_mut(key) {
                remove(inner, rest);
            }
        }
        (Value::Array(array), [Place::Element(index), rest @ ..]) => {
            if let Some(inner) = array.get_mut(*index) {
                remove(inner, rest);
            }
        }
        _ => {}
    }
}

/// The axes of one run.
fn matrix(run: &RunConfig) -> Table {
    let one = |value: Value| Value::Array(vec![value]);
    let mut axes = Table::from_iter([
        ("vendor".to_owned(), one(Value::String(run.vendor.name().to_owned()))),
        ("tdp".to_owned(), one(Value::Boolean(run.tdp))),
        ("nested-tdp".to_owned(), one(Value::Boolean(run.nested_tdp))),
        ("vpid".to_owned(), one(Value::Boolean(run.vpid))),
    ]);
    if let Some(at) = &run.at {
        axes.insert("at".to_owned(), one(Value::String(at.clone())));
    }
    for (axis, names) in [("with", &run.with), ("without", &run.without)] {
        if !names.is_empty() {
            axes.insert(axis.to_owned(), one(strings(names)));
        }
    }
    axes
}

/// Keys of the top in the order in which a person reads them; others come before `steps`.
const ORDER: [&str; 5] = ["title", "source", "out-of-turn", "memory", "steps"];
/// Tables in that order.
const TABLES: [&str; 6] = ["matrix", "machine", "slot", "space", "guest", "expect"];

fn key_text(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

fn write_pair(text: &mut String, key: &str, value: &Value) {
    let key = key_text(key);
    let _ = match value {
        Value::String(lines) if lines.contains('\n') && !lines.contains(['"', '\\']) => {
            writeln!(text, "{key} = \"\"\"\n{lines}\"\"\"")
        }
        Value::Array(all) if all.len() > 1 && all.iter().all(Value::is_str) => {
            let lines: String = all.iter().map(|one| format!("    {one},\n")).collect();
            writeln!(text, "{key} = [\n{lines}]")
        }
        value => writeln!(text, "{key} = {value}"),
    };
}

fn write_table(text: &mut String, header: &str, table: &Table) {
    let _ = writeln!(text, "\n{header}");
    for (key, value) in table {
        write_pair(text, key, value);
    }
}

/// The file, as the language reads it.
impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = |key: &str| ORDER.iter().position(|known| *known == key);
        let mut top: Vec<(&String, &Value)> =
            self.0.iter().filter(|(key, _)| !TABLES.contains(&key.as_str())).collect();
        top.sort_by_key(|(key, _)| rank(key).unwrap_or(ORDER.len() - 2));
        let mut text = String::new();
        for (key, value) in top {
            write_pair(&mut text, key, value);
        }
        for name in TABLES {
            match self.0.get(name) {
                Some(Value::Table(named)) if matches!(name, "space" | "guest") => {
                    for (one, table) in named.iter().filter_map(|(one, value)| Some((one, value.as_table()?))) {
                        write_table(&mut text, &format!("[{name}.{}]", key_text(one)), table);
                    }
                }
                Some(Value::Table(table)) if !table.is_empty() => write_table(&mut text, &format!("[{name}]"), table),
                Some(Value::Array(all)) => {
                    for table in all.iter().filter_map(Value::as_table) {
                        write_table(&mut text, &format!("[[{name}]]"), table);
                    }
                }
                _ => {}
            }
        }
        f.write_str(&text)
    }
}
