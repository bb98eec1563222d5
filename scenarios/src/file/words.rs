//! The small texts inside a scenario file: words with their place, numbers, sizes, names, and where a TOML string's
//! characters stand in the file.

use super::diagnostics::{Fault, quote};
use std::ops::Range;

/// A word of a text and the byte where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word<'a> {
    /// The word.
    pub(crate) text: &'a str,
    /// Its first byte in the text.
    pub(crate) start: usize,
}

impl Word<'_> {
    /// The bytes it covers.
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.start + self.text.len()
    }
}

/// The words of `text`, split at white space; `offset` is added to their places.
pub(crate) fn words(text: &str, offset: usize) -> impl Iterator<Item = Word<'_>> {
    text.split_whitespace().map(move |word| Word { text: word, start: offset + offset_in(text, word) })
}

/// Where `part`, a slice of `whole`, starts in it.
pub(crate) fn offset_in(whole: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// The range of `part`, a slice of `whole`, in it.
pub(crate) fn range_in(whole: &str, part: &str) -> Range<usize> {
    let start = offset_in(whole, part);
    start..start + part.len()
}

/// A number: decimal or `0x` hexadecimal, `_` allowed between digits.
pub(crate) fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let starts_with_digit = digits.chars().next().is_some_and(|first| first.is_digit(radix));
    if !starts_with_digit {
        return None;
    }
    u64::from_str_radix(&digits.replace('_', ""), radix).ok()
}

/// A number at a place of a text.
pub(crate) fn number_at(word: Word<'_>, what: &str) -> Result<u64, Fault> {
    number(word.text).ok_or_else(|| {
        Fault::new(
            word.range(),
            format!("{what} must be a 64-bit number, not {}", quote(word.text)),
            "write it in decimal or as 0x hexadecimal, such as 0x400000",
        )
    })
}

/// A size in bytes: `4K`, `32M`, `1G`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let unit_at = text.len().checked_sub(1)?;
    let shift = match text.as_bytes()[unit_at] {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => return None,
    };
    let count = number(text.get(..unit_at)?)?;
    count.checked_mul(1 << shift)
}

/// Whether a text can name a space, a guest or a slot, so that it reads as one word in a step.
pub(crate) fn is_name(text: &str) -> bool {
    const LONGEST: usize = 40;
    let first = text.chars().next();
    first.is_some_and(|first| first.is_ascii_alphabetic())
        && text.len() <= LONGEST
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'))
}

/// Where a TOML string's characters stand in the file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    whole: Range<usize>,
    /// The file offset of the string's first character, when it is written without escapes.
    base: Option<usize>,
}

impl Place {
    /// The place of the string `decoded`, written at `range` of `source` with its quotation marks.
    pub(crate) fn of(source: &str, range: Range<usize>, decoded: &str) -> Self {
        let raw = source.get(range.clone()).unwrap_or_default();
        let base = ["\"\"\"", "'''", "\"", "'", ""].into_iter().find_map(|mark| {
            let inner = raw.strip_prefix(mark)?.strip_suffix(mark)?;
            let body = match mark.len() {
                3 => inner.strip_prefix("\r\n").or_else(|| inner.strip_prefix('\n')).unwrap_or(inner),
                _ => inner,
            };
            (body == decoded).then(|| range.start + offset_in(raw, body))
        });
        Self { whole: range, base }
    }

    /// The file range of a range of the string: exact, or the whole string when it is written with escapes.
    pub(crate) fn map(&self, local: Range<usize>) -> Range<usize> {
        self.base.map_or_else(|| self.whole.clone(), |base| base + local.start..base + local.end)
    }

    /// The same fault, at its place in the file.
    pub(crate) fn fault(&self, mut fault: Fault) -> Fault {
        fault.at = self.map(fault.at);
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes() {
        for (text, value) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("0x1F", Some(31)),
            ("0x40_0000", Some(0x40_0000)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("+1", None),
            ("-1", None),
            ("_1", None),
            ("0x", None),
            ("", None),
            ("é", None),
        ] {
            assert_eq!(number(text), value, "{text}");
        }
        for (text, value) in
            [("4K", Some(4096)), ("32M", Some(32 << 20)), ("1G", Some(1 << 30)), ("32", None), ("M", None), ("é", None)]
        {
            assert_eq!(size(text), value, "{text}");
        }
    }

    /// TOML 1.1, strings: the newline after an opening `"""` is trimmed.
    #[test]
    fn places_of_strings() {
        for (raw, decoded, base) in [
            ("'ab'", "ab", Some(1)),
            ("\"ab\"", "ab", Some(1)),
            ("\"\"\"\nab\n\"\"\"", "ab\n", Some(4)),
            ("'''\r\nab'''", "ab", Some(5)),
            ("ab", "ab", Some(0)),
            ("\"a\\tb\"", "a\tb", None),
        ] {
            assert_eq!(Place::of(raw, 0..raw.len(), decoded).base, base, "{raw}");
        }
    }
}
