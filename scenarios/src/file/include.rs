//! Reading files: size and encoding limits, TOML syntax, the shape check, and includes.
//!
//! An include is read before the file that names it, so that the including file overrides it. A file that is included
//! twice counts once, where it is first named. Steps, expectations, the matrix and the title are never included.

use super::diagnostics::{Diagnostics, Fault, Problem, quote};
use super::schema::{Marked, ScenarioFile};
use super::shape::{self, Wholeness};
use super::{Source, schema};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::de::DeTable;

/// The largest file that is read.
pub const LARGEST_FILE: u64 = 4 << 20;
/// How deep includes may go.
pub const DEEPEST_INCLUDE: usize = 8;
/// Files that one scenario may be made of.
pub const MOST_FILES: usize = 64;

/// Why a file could not be read as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadFault {
    /// What is wrong.
    message: String,
    /// What would be right.
    help: String,
    /// The text before the first byte that is not UTF-8.
    valid: String,
}

impl ReadFault {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), valid: String::new() }
    }
}

/// How the files of a scenario are reached.
pub(crate) trait Files {
    /// A file's identity, so that loops are seen whatever the path to it.
    fn identity(&self, path: &Path) -> PathBuf;
    /// Its text.
    fn read(&self, path: &Path) -> Result<String, ReadFault>;
}

/// The file system.
pub(crate) struct Disk;

impl Files for Disk {
    fn identity(&self, path: &Path) -> PathBuf {
        std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
    }

    fn read(&self, path: &Path) -> Result<String, ReadFault> {
        let failed =
            |error: std::io::Error| ReadFault::new(format!("can't read the file: {error}"), "is the path right?");
        let file = File::open(path).map_err(failed)?;
        let known = file.metadata().map_err(failed)?;
        if known.is_dir() {
            return Err(ReadFault::new("this is a directory", "name a file"));
        }
        let too_large = || ReadFault::new("the file is larger than 4 MiB", "a scenario is a few kilobytes of TOML");
        if known.len() > LARGEST_FILE {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LARGEST_FILE {
            return Err(too_large());
        }
        text_of(bytes)
    }
}

/// The bytes as text.
fn text_of(bytes: Vec<u8>) -> Result<String, ReadFault> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let mut valid = error.into_bytes();
        let byte = valid.get(at).copied().unwrap_or_default();
        valid.truncate(at);
        ReadFault {
            message: format!("byte {at} ({byte:#04x}) is not UTF-8"),
            help: "save the file as UTF-8".to_owned(),
            valid: String::from_utf8(valid).unwrap_or_default(),
        }
    })
}

/// No file system: what is parsed stands alone.
pub(crate) struct Alone;

impl Files for Alone {
    fn identity(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    fn read(&self, _: &Path) -> Result<String, ReadFault> {
        Err(ReadFault::new("can't include a file in a text that stands alone", "load the scenario from its file"))
    }
}

/// A file in the shape of the schema types, and its number.
pub(crate) struct Parsed {
    pub(crate) file: usize,
    pub(crate) content: ScenarioFile,
}

/// Everything that was read. The last of `parsed` is the scenario itself, whose file number is 0.
pub(crate) struct Loaded {
    pub(crate) sources: Vec<Arc<Source>>,
    pub(crate) parsed: Vec<Parsed>,
}

/// Reads a scenario's file and its includes.
pub(crate) fn read_all(files: &dyn Files, path: &Path) -> Result<Loaded, Diagnostics> {
    let name = path.display().to_string();
    match files.read(path) {
        Ok(text) => parse_all(files, path, &text),
        Err(fault) => {
            let shown = if fault.valid.is_empty() { String::new() } else { format!("{}\u{fffd}", fault.valid) };
            let at = fault.valid.len();
            let end = shown.len();
            let source = Arc::new(Source::new(name, shown));
            Err(Diagnostics::of(&source, Fault::new(at..end, fault.message, fault.help)))
        }
    }
}

/// Parses a scenario whose text is at hand, and reads its includes.
pub(crate) fn parse_all(files: &dyn Files, path: &Path, text: &str) -> Result<Loaded, Diagnostics> {
    let mut loader = Loader {
        files,
        schema: schema::json_schema(),
        loaded: Loaded { sources: Vec::new(), parsed: Vec::new() },
        open: Vec::new(),
        known: BTreeSet::new(),
        diagnostics: Diagnostics::default(),
    };
    loader.file(path, text, Wholeness::Scenario);
    loader.diagnostics.or(loader.loaded)
}

struct Loader<'f> {
    files: &'f dyn Files,
    schema: serde_json::Value,
    loaded: Loaded,
    /// The files that are being read, outermost first.
    open: Vec<(PathBuf, String)>,
    known: BTreeSet<PathBuf>,
    diagnostics: Diagnostics,
}

impl Loader<'_> {
    fn file(&mut self, path: &Path, text: &str, wholeness: Wholeness) {
        let name = path.display().to_string();
        let source = Arc::new(Source::new(name.clone(), text));
        let file = self.loaded.sources.len();
        self.loaded.sources.push(Arc::clone(&source));
        let identity = self.files.identity(path);
        self.known.insert(identity.clone());
        let content = match parse_shape(text, &self.schema, wholeness) {
            Ok(content) => content,
            Err(faults) => {
                for fault in faults {
                    self.diagnostics.push(Problem::new(&source, fault));
                }
                return;
            }
        };
        self.open.push((identity, name));
        for include in &content.include {
            if let Err(fault) = self.include(path, include) {
                self.diagnostics.push(Problem::new(&source, fault));
            }
        }
        self.open.pop();
        self.loaded.parsed.push(Parsed { file, content });
    }

    fn include(&mut self, from: &Path, include: &Marked<String>) -> Result<(), Fault> {
        let path = from.parent().unwrap_or(Path::new("")).join(include.get());
        let identity = self.files.identity(&path);
        let fail = |message: String, help: &str| Err(Fault::new(include.range(), message, help));
        if let Some(start) = self.open.iter().position(|(open, _)| *open == identity) {
            let names = self.open[start..].iter().map(|(_, name)| name.as_str());
            let chain: Vec<&str> = names.chain([self.open[start].1.as_str()]).collect();
            return fail(format!("the includes form a loop: {}", chain.join(" -> ")), "remove one of them");
        }
        if self.open.len() > DEEPEST_INCLUDE {
            return fail(
                format!("includes are more than {DEEPEST_INCLUDE} deep"),
                "include the innermost file directly",
            );
        }
        if self.known.contains(&identity) {
            return Ok(());
        }
        if self.loaded.sources.len() >= MOST_FILES {
            return fail(format!("a scenario is made of at most {MOST_FILES} files"), "join some of them");
        }
        match self.files.read(&path) {
            Ok(text) => {
                self.file(&path, &text, Wholeness::Fragment);
                Ok(())
            }
            Err(fault) => {
                let message = format!("{}: {}", quote(&path.display().to_string()), fault.message);
                Err(Fault::new(include.range(), message, fault.help))
            }
        }
    }
}

/// A text in the shape of the schema types, or everything that is wrong with its shape.
fn parse_shape(text: &str, schema: &serde_json::Value, wholeness: Wholeness) -> Result<ScenarioFile, Vec<Fault>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().take(super::MOST_PROBLEMS).map(|error| syntax(text, error)).collect());
    }
    let faults = shape::check(&table, schema, wholeness);
    if !faults.is_empty() {
        return Err(faults);
    }
    let content = ScenarioFile::deserialize(toml::Deserializer::from(table));
    content.map_err(|error| vec![syntax(text, &error)])
}

/// What helps against TOML's own errors, by a part of their message.
const SYNTAX_HELP: [(&str, &str); 6] = [
    ("duplicate key", "a key and a [header] stand once in a file: join the two"),
    ("must be quoted", "put it in quotation marks: \"...\""),
    ("unclosed table", "a header is [name], or [[slot]]"),
    ("multi-line", "close it with the three quotation marks that it starts with"),
    ("recursion", "nothing in a scenario is nested that deep"),
    ("key", "write KEY = VALUE"),
];

fn syntax(text: &str, error: &toml::de::Error) -> Fault {
    let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
    let help = SYNTAX_HELP.iter().find(|(part, _)| message.contains(part)).map_or("see toml.io", |(_, help)| help);
    Fault::new(error.span().unwrap_or(0..text.len().min(1)), message, help)
}

/// The files that the arguments name, in the byte order of their paths: a file itself, or every `.toml` file under a
/// directory that is a scenario and not only something to include.
///
/// # Errors
/// A path does not exist, a directory holds no scenario, or cannot be read.
pub fn collect(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Diagnostics> {
    let mut found = BTreeSet::new();
    let mut diagnostics = Diagnostics::default();
    for path in paths {
        let result = if path.is_dir() {
            directory(path, 0, &mut found).and_then(|count| match count {
                0 => Err("the directory holds no scenario".to_owned()),
                _ => Ok(()),
            })
        } else {
            found.insert(path.clone());
            Ok(())
        };
        if let Err(message) = result {
            let source = Arc::new(Source::new(path.display().to_string(), ""));
            let help = "scenarios are files that end in .toml and have a title";
            diagnostics.push(Problem::new(&source, Fault::new(0..0, message, help)));
        }
    }
    let mut files: Vec<PathBuf> = found.into_iter().collect();
    files.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    diagnostics.or(files)
}

/// Adds the scenarios under a directory, and counts them.
fn directory(path: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) -> Result<usize, String> {
    const DEEPEST_DIRECTORY: usize = 32;
    if depth > DEEPEST_DIRECTORY {
        return Err(format!("directories are more than {DEEPEST_DIRECTORY} deep: is there a loop of links?"));
    }
    let failed = |error: std::io::Error| format!("can't read the directory {}: {error}", path.display());
    let mut count = 0;
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        if entry.is_dir() {
            count += directory(&entry, depth + 1, found)?;
        } else if entry.extension().is_some_and(|extension| extension == "toml") && !is_fragment(&entry) {
            found.insert(entry);
            count += 1;
        }
    }
    Ok(count)
}

/// Whether a file is only good for including: it reads as TOML and has nothing of what a scenario alone has.
fn is_fragment(path: &Path) -> bool {
    const OWN: [&str; 6] = ["title", "about", "source", "matrix", "steps", "expect"];
    let Ok(text) = Disk.read(path) else { return false };
    DeTable::parse(&text).is_ok_and(|table| !OWN.iter().any(|key| table.get_ref().contains_key(*key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_text() {
        let fault = text_of(b"title = \"a\xff\"".to_vec()).unwrap_err();
        assert_eq!(fault.message, "byte 10 (0xff) is not UTF-8");
        assert_eq!(fault.valid, "title = \"a");
    }
}
