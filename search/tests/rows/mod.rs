//! A small space.

use search::{Move, Space};
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

/// Which places change is the way of one step; the other steps have one way.
pub(crate) const SWAPS: u16 = 4;

fn number(by: Move) -> u16 {
    if by.step == 0 { by.way } else { SWAPS + by.step - 1 }
}

pub(crate) struct Player {
    row: Row,
    /// The way that was asked for last, of the step that has several.
    last: u16,
}

pub(crate) fn digest(row: Row) -> u64 {
    row.iter().fold(0x9e37_79b9_7f4a_7c15, |hash, byte| {
        let hash: u64 = (hash ^ u64::from(*byte)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^ (hash >> 29)
    })
}

impl Space for Rows {
    type State = Row;
    type Player = Player;
    type Note = Row;
    type Error = Infallible;
    const BATCH: usize = 48;

    fn steps(&self) -> u16 {
        3
    }

    fn player(&self) -> Result<Player, Infallible> {
        Ok(Player { row: [0; 5], last: 0 })
    }

    fn start(&self, player: &mut Player) -> Result<(u64, Row), Infallible> {
        player.row = [0, 1, 2, 3, 4];
        Ok((digest(player.row), player.row))
    }

    fn take(&self, player: &mut Player, from: &Row, _: u32, by: Move, notes: &mut Vec<Row>) -> Option<u64> {
        // Ways come in turn.
        assert!(by.way == 0 || by.way == player.last + 1, "{by:?} after {}", player.last);
        player.last = if by.step == 0 { by.way } else { SWAPS };
        player.row = taken(*from, number(by))?;
        if player.row[0] & player.row[4] & 0x80 != 0 {
            notes.push(player.row);
        }
        Some(digest(player.row))
    }

    fn has_more(&self, player: &Player) -> bool {
        player.last + 1 < SWAPS
    }

    fn keep(&self, player: &mut Player) -> Row {
        player.row
    }
}
