//! A search that workers share is the search of one, down to the order of what it found.
#![cfg(feature = "timely")]

mod rows;

use rows::{Row, Rows};
use search::hosts::Hosts;
use search::sharded::{self, Gathered};
use search::{Flow, Limits, Search};

fn shared(depth: u32, workers: usize) -> Gathered<Row> {
    let make = || -> (Rows, sharded::Tell<Row, Row>) { (Rows, Box::new(|_, row| Some(row))) };
    sharded::run(&Hosts::alone(workers), depth, make).expect("workers").expect("this is the first worker's process")
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
