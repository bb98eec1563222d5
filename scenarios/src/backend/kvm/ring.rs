//! Pages of the kernel's trace ring buffer, as `trace_pipe_raw` gives them (Documentation/trace/ring-buffer-design,
//! `events/header_page`, `events/header_event`): a time, a length, and events one after the other.
//!
//! The binary form is the only one in which every kernel tells raw fields: the `fields` option came with v6.4.

use std::io;

/// Bytes before the events: a time and how many bytes follow.
const HEADER: usize = 16;
/// How much of the length word is the length.
const LENGTH: u64 = (1 << 27) - 1;
/// Set in the length word if events before this page were lost.
const MISSED: u64 = 1 << 31;
/// Event types above every length.
const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;

/// An event, without its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw<'a> {
    /// By the clock of the trace.
    pub(super) time: u64,
    /// Its fields.
    pub(super) fields: &'a [u8],
}

/// The number in some bytes, least first; none if they are not all there.
pub(super) fn number(bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a page of the trace {what}"))
}

/// The events of a page, oldest first.
///
/// # Errors
/// If events are missing before it, or it is not made as documented: what is missing must not pass for agreement.
pub(super) fn events(page: &[u8]) -> io::Result<Vec<Raw<'_>>> {
    let short = || malformed("ends early");
    let mut time = number(page, 0, 8).ok_or_else(short)?;
    let length = number(page, 8, 8).ok_or_else(short)?;
    if length & MISSED != 0 {
        return Err(malformed("comes after events that were lost"));
    }
    let body = page.get(HEADER..HEADER + (length & LENGTH) as usize).ok_or_else(short)?;
    let (mut events, mut at) = (Vec::new(), 0);
    while at < body.len() {
        let word = number(body, at, 4).ok_or_else(short)? as u32;
        let (kind, delta) = (word & 0x1f, u64::from(word >> 5));
        let next = || number(body, at + 4, 4).ok_or_else(short);
        let size = match kind {
            PADDING if delta == 0 => break,
            // Such lengths count themselves.
            0 | PADDING => 4 + next()? as usize,
            TIME_EXTEND | TIME_STAMP => 8,
            words => 4 + 4 * words as usize,
        };
        match kind {
            TIME_STAMP => time = next()? << 27 | delta,
            TIME_EXTEND => time = time.wrapping_add(next()? << 27 | delta),
            _ => time = time.wrapping_add(delta),
        }
        if !matches!(kind, PADDING | TIME_EXTEND | TIME_STAMP) {
            let start = at + if kind == 0 { 8 } else { 4 };
            events.push(Raw { time, fields: body.get(start..at + size).ok_or_else(short)? });
        }
        at += size;
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(words: &[u32]) -> Vec<u8> {
        let mut page = 1000_u64.to_le_bytes().to_vec();
        page.extend((words.len() as u64 * 4).to_le_bytes());
        page.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        page
    }

    #[test]
    fn every_kind_of_event_is_stepped_over() {
        let page = page(&[
            2 | 5 << 5,
            0xaa,
            0xbb, // two words
            30 | 3 << 5,
            1, // time extended
            29 | 1 << 5,
            8,
            0, // discarded, eight bytes behind its head
            7 << 5,
            8,
            0xcc, // a length of its own
            29,
            0, // the rest is empty
        ]);
        let seen: Vec<_> = events(&page).unwrap().iter().map(|raw| (raw.time, raw.fields.to_vec())).collect();
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let later = 1005 + (1 << 27) + 3 + 1 + 7;
        assert_eq!(seen, [(1005, bytes(&[0xaa, 0xbb])), (later, bytes(&[0xcc]))]);
    }

    #[test]
    fn what_is_missing_is_an_error() {
        let whole = page(&[1, 0xaa]);
        assert!(events(&whole).is_ok());
        assert!(events(&whole[..whole.len() - 1]).is_err());
        assert!(events(&[]).is_err());
        assert!(events(&page(&[4, 0xaa])).is_err(), "an event longer than its page");
        let mut lost = whole;
        lost[11] |= 0x80;
        assert!(events(&lost).is_err());
    }
}
