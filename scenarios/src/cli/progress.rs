//! What a person sees of a long search: one line on a terminal, and nothing where standard error is none.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use search::{Flow, Progress};
use std::io::{self, IsTerminal};
use std::time::Duration;

/// The one line: which depth, how much of it, how fast, and how long it should still take.
const LINE: &str =
    "depth {prefix} [{wide_bar}] {pos}/{len} states expanded, {per_sec}, {msg}, {eta} left of this depth";

/// A line of progress, and the time that a search may take.
pub(super) struct Watch {
    bar: ProgressBar,
    depth: u32,
    deadline: Option<Deadline>,
}

/// When a command's searches are to stop. It is the one thing that lets the clock into a result, and only by `--time`.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    begun: std::time::Instant,
    most: Duration,
}

impl Deadline {
    #[expect(clippy::disallowed_methods, reason = "--time asks for the clock of the machine, and the result says so")]
    pub(super) fn within(seconds: u64) -> Self {
        Self { begun: std::time::Instant::now(), most: Duration::from_secs(seconds) }
    }

    fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.most
    }
}

impl Watch {
    pub(super) fn new(deadline: Option<Deadline>) -> Self {
        let target =
            if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) = ProgressStyle::with_template(LINE) {
            bar.set_style(style);
        }
        Self { bar, depth: 0, deadline }
    }

    /// Shows how far a search is, and says whether it may go on.
    pub(super) fn see(&mut self, progress: &Progress) -> Flow {
        let (begin, end) = progress.level;
        if self.depth != progress.depth {
            self.depth = progress.depth;
            self.bar.set_prefix(progress.depth.to_string());
            self.bar.set_length((end - begin) as u64);
            self.bar.reset_eta();
        }
        self.bar.set_position((progress.expanded - begin) as u64);
        let frontier = progress.states - progress.expanded;
        self.bar.set_message(format!("{} states, {frontier} to expand, {} MB", progress.states, progress.bytes >> 20));
        let over = self.deadline.as_ref().is_some_and(Deadline::is_over);
        if over { Flow::Stop } else { Flow::GoOn }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
