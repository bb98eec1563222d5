//! What is wrong with a scenario file, and where: message, file, line, column, the offending text, and a line that
//! says what would be right.
//!
//! Parsers of small texts (a step, a flag list, a selector) return a [`Fault`] with offsets into their own text. The
//! loader knows where that text stands in which file, and turns a fault into a [`Problem`]. [`Diagnostics`] is all
//! problems of one load, in file order, capped at [`MOST_PROBLEMS`].

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, SourceCode,
    SourceSpan, SpanContents,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// Problems that are kept of one load; the rest is counted.
pub const MOST_PROBLEMS: usize = 20;
/// Bytes of a source line that are shown around an error, so that a file of one huge line stays readable.
const WINDOW: usize = 160;
/// Characters of the user's text that a message quotes.
const QUOTED: usize = 60;
/// Columns that a rendered report may use.
const RENDER_WIDTH: usize = 120;

/// A place in a file: bytes, and the line and column of its start, counted from 1 (columns in characters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Which of the scenario's files: 0 is the file itself, then its includes in the order they are read.
    pub file: usize,
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// The name and text of one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    name: String,
    text: String,
    line_starts: Vec<usize>,
}

/// Name and length: a text of megabytes helps nobody in a panic message.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {} bytes)", self.name, self.text.len())
    }
}

impl Source {
    /// A source as it was read. `name` is what messages call it.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text: String = text.into().chars().map(visible).collect();
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        Self { name: name.into(), text, line_starts }
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte, from 1.
    #[must_use]
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.boundary(offset);
        let line = self.line_of(offset);
        (line + 1, self.text[self.line_starts[line]..offset].chars().count() + 1)
    }

    /// The place of a byte range of file number `file`.
    pub(crate) fn span(&self, file: usize, range: Range<usize>) -> Span {
        let (line, column) = self.position(range.start);
        Span { file, start: range.start, end: range.end, line, column }
    }

    fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    /// The nearest character boundary at or before `offset`.
    fn boundary(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    /// The part of the first line of `range` that is worth showing, and `range` cut to it.
    fn window(&self, range: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let start = self.boundary(range.start);
        let line = self.line_of(start);
        let line_start = self.line_starts[line];
        let next = self.line_starts.get(line + 1).map_or(self.text.len(), |next| next - 1);
        let line_end = line_start + self.text[line_start..next.max(line_start)].trim_end_matches('\r').len();
        let shown_start = self.boundary(line_start.max(start.saturating_sub(WINDOW)));
        let shown_end = self.boundary(line_end.min(start + WINDOW)).max(start);
        let end = self.boundary(range.end).clamp(start, shown_end);
        // Nothing can be underlined behind the last character of a line: take that character.
        let first = if start == shown_end { self.boundary(start.saturating_sub(1)).max(shown_start) } else { start };
        (shown_start..shown_end, first..end)
    }
}

/// A character as a terminal may be shown it: a control character would move the cursor. As many bytes as before, so
/// that places stay; TOML allows no such character outside of a comment or string, but for tabs and line ends.
const fn visible(letter: char) -> char {
    match letter {
        '\t' | '\r' | '\n' => letter,
        '\0'..='\x1f' | '\x7f' => '?',
        '\u{80}'..='\u{9f}' => '\u{b7}',
        _ => letter,
    }
}

/// One thing that is wrong, at one place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Problem {
    source_file: Arc<Source>,
    range: Range<usize>,
    message: String,
    help: String,
}

impl Problem {
    pub(crate) fn new(source: &Arc<Source>, fault: Fault) -> Self {
        Self { source_file: Arc::clone(source), range: fault.at, message: fault.message, help: fault.help }
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What would be right.
    #[must_use]
    pub fn help_line(&self) -> &str {
        &self.help
    }

    /// The file's name.
    #[must_use]
    pub fn file(&self) -> &str {
        self.source_file.name()
    }

    /// The line and column, from 1.
    #[must_use]
    pub fn position(&self) -> (usize, usize) {
        self.source_file.position(self.range.start)
    }

    fn shown(&self) -> (Range<usize>, Range<usize>) {
        self.source_file.window(&self.range)
    }
}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (_, underlined) = self.shown();
        let label = LabeledSpan::new_with_span(Some("here".to_owned()), (underlined.start, underlined.len()));
        Some(Box::new(std::iter::once(label)))
    }
}

/// The problem is its own source: one line, cut to a window around the error.
impl SourceCode for Problem {
    fn read_span<'a>(
        &'a self,
        _span: &SourceSpan,
        _before: usize,
        _after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (shown, _) = self.shown();
        let (line, column) = self.position();
        let bytes = &self.source_file.text.as_bytes()[shown.clone()];
        Ok(Box::new(MietteSpanContents::new_named(
            self.source_file.name.clone(),
            bytes,
            (shown.start, shown.len()).into(),
            line - 1,
            column - 1,
            1,
        )))
    }
}

/// Everything that is wrong with the files of one load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    problems: Vec<Problem>,
    uncounted: usize,
}

impl Diagnostics {
    /// The problems, in the order they were found.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many more there were than are kept.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.uncounted
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn push(&mut self, problem: Problem) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.uncounted += 1;
        }
    }

    /// Adds the problems of another load.
    pub(crate) fn append(&mut self, other: Self) {
        other.problems.into_iter().for_each(|problem| self.push(problem));
        self.uncounted += other.uncounted;
    }

    pub(crate) fn of(source: &Arc<Source>, fault: Fault) -> Self {
        Self { problems: vec![Problem::new(source, fault)], uncounted: 0 }
    }

    /// `value`, unless something is wrong.
    pub(crate) fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The report as a terminal shows it: each problem with its source line underlined.
    #[must_use]
    pub fn render(&self, colours: Colours) -> String {
        let theme = match colours {
            Colours::Plain => GraphicalTheme::unicode_nocolor(),
            Colours::Ansi => GraphicalTheme::unicode(),
        };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(RENDER_WIDTH).with_links(false);
        let mut out = String::new();
        for problem in &self.problems {
            if handler.render_report(&mut out, problem).is_err() {
                out.push_str(&line_of(problem));
                out.push('\n');
            }
        }
        if self.uncounted > 0 {
            out.push_str(&format!("  and {} more\n", self.uncounted));
        }
        out
    }
}

/// Whether a report is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// No escape sequences.
    Plain,
    /// ANSI colours.
    Ansi,
}

fn line_of(problem: &Problem) -> String {
    let (line, column) = problem.position();
    format!("{}:{line}:{column}: {} ({})", problem.file(), problem.message, problem.help)
}

/// One line a problem: `file:line:column: message (help)`.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<String> = self.problems.iter().map(line_of).collect();
        if self.uncounted > 0 {
            lines.push(format!("and {} more", self.uncounted));
        }
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Diagnostics {}

impl Diagnostic for Diagnostics {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|problem| problem as &dyn Diagnostic)))
    }
}

/// What is wrong with a small text, at a byte range of that text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message} ({help})")]
pub struct Fault {
    /// The bytes at fault.
    pub at: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: String,
}

impl Diagnostic for Fault {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.help))
    }
}

impl Fault {
    pub(crate) fn new(at: Range<usize>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { at, message: message.into(), help: help.into() }
    }

    /// The same fault, `offset` bytes further on.
    pub(crate) fn shifted(mut self, offset: usize) -> Self {
        self.at = self.at.start + offset..self.at.end + offset;
        self
    }

    /// `word` is none of `known`: what it could have been.
    pub(crate) fn unknown<'a>(
        at: Range<usize>,
        kind: &str,
        word: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self::new(at, format!("unknown {kind} {}", quote(word)), suggest(kind, word, known))
    }
}

/// The user's text in backticks, one line and not too long.
pub(crate) fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTED).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED).is_some() {
        shown.push_str("...");
    }
    format!("`{}`", shown.replace("\\\"", "\"").replace("\\'", "'"))
}

/// The known word that `word` most likely meant.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > QUOTED {
        return None;
    }
    let lower = word.to_lowercase();
    let allowed = 1 + lower.chars().count() / 4;
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A count and its noun.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A help line for an unknown word: the closest known one, or all of them.
pub(crate) fn suggest<'a>(kind: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    const LISTED: usize = 24;
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(candidate) = closest(word, known.iter().copied()) {
        return format!("did you mean `{candidate}`?");
    }
    if known.is_empty() {
        return format!("there is no {kind} here");
    }
    let more = if known.len() > LISTED { ", ..." } else { "" };
    format!("known: {}{more}", known[..known.len().min(LISTED)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = Source::new("f", "ab\nπ=1\n");
        for (offset, place) in [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 2)), (4, (2, 1)), (99, (3, 1))] {
            assert_eq!(source.position(offset), place, "offset {offset}");
        }
    }

    #[test]
    fn closest_word() {
        let known = ["title", "about", "source", "steps"];
        for (word, meant) in
            [("titel", Some("title")), ("TITLE", Some("title")), ("step", Some("steps")), ("xyzzy", None), ("", None)]
        {
            assert_eq!(closest(word, known), meant, "{word}");
        }
    }

    /// A long line is cut around the error, and the underline stays inside what is shown.
    #[test]
    fn long_lines_are_cut() {
        let source = Source::new("f", format!("{}X{}", "é".repeat(5000), "y".repeat(5000)));
        let (shown, underlined) = source.window(&(10_000..10_001));
        assert!(shown.len() <= 2 * WINDOW + 4);
        assert_eq!(&source.text()[underlined.clone()], "X");
        assert!(shown.start <= underlined.start && underlined.end <= shown.end);
    }
}
