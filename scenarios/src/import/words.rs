//! What an event says, read word by word, or field by field where the kernel was told to print fields
//! (`echo fields > trace_options`, v6.4) or `trace-cmd report -R` prints them.

use crate::file::Fault;
use crate::file::diagnostics::quote;
use crate::file::words::{Word, number, words};
use std::ops::Range;

/// An event's text, taken from the left.
#[derive(Clone, Debug)]
pub(super) struct Words<'a> {
    words: Vec<Word<'a>>,
    at: usize,
    /// What the kernel writes.
    form: &'static str,
    end: usize,
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str, form: &'static str) -> Self {
        Self { words: words(text, 0).collect(), at: 0, form, end: text.trim_end().len() }
    }

    pub(super) fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(|word| word.text)
    }

    /// The next word, if it is this one.
    pub(super) fn optional(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn next(&mut self, what: &str) -> Result<Word<'a>, Fault> {
        let word = self.words.get(self.at).copied();
        self.at += 1;
        word.ok_or_else(|| Fault::new(self.end..self.end, format!("the event ends where {what} must be"), self.help()))
    }

    pub(super) fn keyword(&mut self, keyword: &str) -> Result<(), Fault> {
        let word = self.next(&quote(keyword))?;
        if word.text == keyword { Ok(()) } else { Err(self.wrong(word, &quote(keyword))) }
    }

    /// Goes behind the first of these words.
    pub(super) fn find(&mut self, any: &[&str]) -> Result<(), Fault> {
        let found = self.words[self.at.min(self.words.len())..].iter().position(|word| any.contains(&word.text));
        match found {
            Some(more) => {
                self.at += more + 1;
                Ok(())
            }
            None => Err(Fault::new(
                0..self.end,
                format!("the event has no {}", quote(any.first().copied().unwrap_or_default())),
                self.help(),
            )),
        }
    }

    /// A hexadecimal number, with or without `0x`.
    pub(super) fn hex(&mut self, what: &str) -> Result<u64, Fault> {
        let word = self.next(what)?;
        self.hex_in(word, word.text, what)
    }

    pub(super) fn hex_in(&self, word: Word<'_>, digits: &str, what: &str) -> Result<u64, Fault> {
        let digits = digits.trim_end_matches(',');
        hex(digits).ok_or_else(|| self.wrong(word, &format!("{what}, a hexadecimal number of 64 bits,")))
    }

    pub(super) fn decimal(&mut self, what: &str) -> Result<u64, Fault> {
        let word = self.next(what)?;
        self.decimal_in(word, word.text, what)
    }

    pub(super) fn decimal_in(&self, word: Word<'_>, digits: &str, what: &str) -> Result<u64, Fault> {
        let is_decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let value = digits.parse().ok().filter(|_| is_decimal);
        value.ok_or_else(|| self.wrong(word, &format!("{what}, a decimal number,")))
    }

    pub(super) fn wrong(&self, word: Word<'_>, what: &str) -> Fault {
        Fault::new(word.range(), format!("{} where {what} must be", quote(word.text)), self.help())
    }

    /// The last word taken.
    pub(super) fn last_text(&self) -> &'a str {
        self.words.get(self.at.saturating_sub(1)).map_or("", |word| word.text)
    }

    /// Where the last word taken stands.
    pub(super) fn last(&self) -> Range<usize> {
        self.words.get(self.at.saturating_sub(1)).map_or(self.end..self.end, Word::range)
    }

    pub(super) fn help(&self) -> String {
        format!("the kernel writes `{}`", self.form)
    }
}

fn hex(digits: &str) -> Option<u64> {
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

/// `gfn=0x84 (132) role=0x3701 (14081) unsync=(0)`, or `gfn=132 role=14081 unsync=0`. The kernel prints a field of one byte in
/// brackets only.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    text: &'a str,
    fields: Vec<(&'a str, Word<'a>)>,
}

/// What trace-cmd writes before the fields of an event whose text it can't make.
const UNPARSED: &str = "[FAILED TO PARSE]";

impl<'a> Fields<'a> {
    /// The fields, if the text is fields.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        let body = text.strip_prefix(UNPARSED).unwrap_or(text);
        let offset = text.len() - body.len();
        let named = words(body, offset).filter_map(|word| {
            let (name, value) = word.text.split_once('=')?;
            Some((name, Word { text: value, start: word.start + name.len() + 1 }))
        });
        let first = body.split_whitespace().next()?;
        let is_fields = first.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        });
        is_fields.then(|| Self { text, fields: named.collect() })
    }

    /// A field's number.
    pub(super) fn get(&self, name: &str) -> Result<u64, Fault> {
        let Some((_, word)) = self.fields.iter().find(|(field, _)| *field == name) else {
            let message = format!("the event has no field {}", quote(name));
            return Err(Fault::new(
                0..self.text.trim_end().len(),
                message,
                "a field is written `gfn=0x1 (1)`, as `echo fields > trace_options` and `trace-cmd report -R` have it",
            ));
        };
        let digits = word.text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(word.text);
        number(digits).ok_or_else(|| {
            let message = format!("{} where the number of {} must be", quote(word.text), quote(name));
            Fault::new(word.range(), message, "a decimal number, or a hexadecimal one with 0x")
        })
    }

    /// A field's number, if it has the field.
    pub(super) fn get_or(&self, name: &str, other: u64) -> Result<u64, Fault> {
        if self.fields.iter().any(|(field, _)| *field == name) { self.get(name) } else { Ok(other) }
    }
}
