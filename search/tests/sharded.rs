//! A search that workers share is the search of one, down to the order of what it found.
#![cfg(feature = "timely")]

mod rows;

use rows::{Row, Rows};
use search::hosts::Hosts;
use search::sharded::{self, Failure, Gathered};
use search::{Flow, Limits, Move, Search, Space};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

fn shared(depth: u32, workers: usize) -> Gathered<Row> {
    let make = || -> (Rows, sharded::Tell<Row, Row>) { (Rows, Box::new(|_, row| Some(row))) };
    sharded::run(&Hosts::alone(workers), 0, depth, make).expect("workers").expect("this is the first worker's process")
}

#[test]
fn as_alone() {
    for depth in [0, 1, 5, 40] {
        let mut search = Search::new(&Rows).expect("a first row");
        let mut reports = Vec::new();
        let mut note = |tree: &search::Tree, at: search::Origin, row| reports.push((tree.path(at), row));
        search.run(Limits::to(depth), &mut note, &mut |_| Flow::GoOn).expect("a player");
        let alone = Gathered { levels: search.levels().to_vec(), taken: search.taken(), reports };
        for workers in [1, 2, 5] {
            assert_eq!(shared(depth, workers), alone, "depth {depth}, {workers} workers");
        }
    }
}

/// Rows whose digests differ from worker to worker.
struct Salted(u64);

impl Space for Salted {
    type State = Row;
    type Player = rows::Player;
    type Note = Row;
    type Error = Infallible;
    const BATCH: usize = Rows::BATCH;

    fn steps(&self) -> u16 {
        Rows.steps()
    }

    fn player(&self) -> Result<rows::Player, Infallible> {
        Rows.player()
    }

    fn start(&self, player: &mut rows::Player) -> Result<(u64, Row), Infallible> {
        Rows.start(player)
    }

    fn take(&self, player: &mut rows::Player, from: &Row, depth: u32, by: Move, notes: &mut Vec<Row>) -> Option<u64> {
        Rows.take(player, from, depth, by, notes).map(|digest| digest ^ self.0)
    }

    fn has_more(&self, player: &rows::Player) -> bool {
        Rows.has_more(player)
    }

    fn keep(&self, player: &mut rows::Player) -> Row {
        Rows.keep(player)
    }
}

/// A path that leads elsewhere than for whoever sent it is noticed.
#[test]
fn led_elsewhere() {
    let salts = AtomicU64::new(0);
    let make = move || -> (Salted, sharded::Tell<Row, Row>) {
        (Salted(salts.fetch_add(1 << 40, Ordering::Relaxed)), Box::new(|_, row| Some(row)))
    };
    assert_eq!(sharded::run(&Hosts::alone(2), 0, 5, make), Err(Failure::Worker));
}
