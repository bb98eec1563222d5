//! A small space.

use search::Space;
use std::convert::Infallible;

/// Five tokens in a row: two neighbours change places, or the first is turned over. A note for each row that begins and
/// ends turned over.
pub(crate) struct Rows;

pub(crate) type Row = [u8; 5];

pub(crate) fn taken(row: Row, step: u16) -> Option<Row> {
    let mut next = row;
    match step {
        0..4 => next.swap(usize::from(step), usize::from(step) + 1),
        4 => next[0] ^= 0x80,
        // A step that only a sorted beginning permits.
        _ if row[0] < row[1] => next.reverse(),
        _ => return None,
    }
    Some(next)
}

pub(crate) fn digest(row: Row) -> u64 {
    row.iter().fold(0x9e37_79b9_7f4a_7c15, |hash, byte| {
        let hash: u64 = (hash ^ u64::from(*byte)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^ (hash >> 29)
    })
}

impl Space for Rows {
    type State = Row;
    type Player = Row;
    type Note = Row;
    type Error = Infallible;
    const BATCH: usize = 48;

    fn steps(&self) -> u16 {
        6
    }

    fn player(&self) -> Result<Row, Infallible> {
        Ok([0; 5])
    }

    fn start(&self, player: &mut Row) -> Result<(u64, Row), Infallible> {
        *player = [0, 1, 2, 3, 4];
        Ok((digest(*player), *player))
    }

    fn take(&self, player: &mut Row, from: &Row, _: u32, step: u16, notes: &mut Vec<Row>) -> Option<u64> {
        *player = taken(*from, step)?;
        if player[0] & player[4] & 0x80 != 0 {
            notes.push(*player);
        }
        Some(digest(*player))
    }

    fn keep(&self, player: &mut Row) -> Row {
        *player
    }
}
