//! A whole trace, read: its events in order, its tasks, and what was not understood.
//!
//! One thread is one vCPU, as in every user of KVM so far; a thread that only zaps is the host's. A trace is taken to be of one
//! VM: tasks of several processes are told (option `record-tgid`), and `--pid` picks one thread.

use super::event::{self, Told};
use super::line::{self, Read};
use super::page::{Form, Layout};
use crate::file::diagnostics::Problem;
use crate::file::words::offset_in;
use crate::file::{Diagnostics, Fault, Source, Vendor};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An event of interest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The line, from 1.
    pub line: usize,
    /// The thread; 0 where events were lost.
    pub pid: u32,
    /// What it tells.
    pub told: Told,
}

/// A thread of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its process, if the trace tells it.
    pub tgid: Option<u32>,
    /// Its events.
    pub events: usize,
}

/// What `replay --trace` says of the run that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The line, from 1.
    pub line: usize,
    /// Whose silicon.
    pub vendor: Vendor,
    /// Two-dimensional paging in L0.
    pub tdp: bool,
    /// And offered by L1 to L2.
    pub nested_tdp: bool,
    /// The point of history, none for the newest.
    pub at: Option<String>,
}

/// A trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// What messages call it.
    pub name: String,
    /// Its lines.
    pub lines: usize,
    /// Lines that are no events.
    pub others: usize,
    /// What was read.
    pub entries: Vec<Entry>,
    /// Events that are not read, by name.
    pub unread: BTreeMap<String, usize>,
    /// Threads.
    pub tasks: BTreeMap<u32, Task>,
    /// Where events were lost, and how many.
    pub lost: Vec<(usize, u64)>,
    /// How pages are written.
    pub forms: BTreeSet<Form>,
    /// The run, if it is one of this program's.
    pub header: Option<Header>,
    /// The last line, if it has no end and can't be read: a trace that was cut off.
    pub cut: Option<usize>,
}

/// The first bytes of `trace.dat`.
const TRACE_DAT: &[u8] = b"\x17\x08\x44tracing";

/// A trace's text, or why its bytes are none.
///
/// # Errors
/// If they are binary.
pub fn text_of(name: &str, bytes: &[u8]) -> Result<String, Diagnostics> {
    let binary = |message: &str, help: &str| {
        let fault = Fault::new(0..0, message, help);
        Err(Diagnostics::of(&Arc::new(Source::new(name, "(binary)")), fault))
    };
    if bytes.starts_with(TRACE_DAT) {
        return binary(
            "a file of trace-cmd's, which is binary",
            "run `trace-cmd report -R -i FILE` and import its output",
        );
    }
    if bytes.contains(&0) {
        return binary("binary data", "import reads text: of `trace`, `trace_pipe` or `trace-cmd report -R`");
    }
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Reads a trace. Only the thread `pid` is kept, if one is given.
///
/// # Errors
/// Every event that is read here and is not written as any kernel writes it; runs of several VMs.
pub fn read(name: &str, text: &str, layout: Layout, pid: Option<u32>) -> Result<Trace, Diagnostics> {
    let mut trace = Trace { name: name.to_owned(), ..Trace::default() };
    let mut faults: Vec<Fault> = Vec::new();
    for line in text.split_inclusive('\n') {
        trace.lines += 1;
        let (bare, start) = (line.trim_end_matches(['\n', '\r']), offset_in(text, line));
        match trace.line(bare, layout, pid) {
            Ok(()) => {}
            Err(_) if !line.ends_with('\n') => trace.cut = Some(trace.lines),
            Err(fault) => faults.push(fault.shifted(start)),
        }
    }
    if faults.is_empty() {
        return Ok(trace);
    }
    let source = Arc::new(Source::new(name, text));
    let mut diagnostics = Diagnostics::default();
    faults.into_iter().for_each(|fault| diagnostics.push(Problem::new(&source, fault)));
    Err(diagnostics)
}

impl Trace {
    fn line(&mut self, line: &str, layout: Layout, pid: Option<u32>) -> Result<(), Fault> {
        let event = match line::read(line)? {
            Read::Event(event) => event,
            Read::Lost(count) => {
                self.lost.push((self.lines, count));
                self.entries.push(Entry { line: self.lines, pid: 0, told: Told::Lost(count) });
                return Ok(());
            }
            Read::Other => {
                self.others += 1;
                return self.header(line);
            }
        };
        let task = self.tasks.entry(event.pid);
        let task = task.or_insert_with(|| Task { name: event.task.to_owned(), tgid: event.tgid, events: 0 });
        task.events += 1;
        if pid.is_some_and(|pid| pid != event.pid) {
            return Ok(());
        }
        if !event::is_known(event.name) {
            *self.unread.entry(event.name.to_owned()).or_default() += 1;
            return Ok(());
        }
        let told = event::read(event.name, event.text, layout);
        let told = told.map_err(|fault| fault.shifted(offset_in(line, event.text)))?;
        if let Some(Told::Page(_, page)) = &told {
            self.forms.insert(page.form);
        }
        self.entries.extend(told.map(|told| Entry { line: self.lines, pid: event.pid, told }));
        Ok(())
    }

    /// `# FILE: vendor=intel tdp=false nested-tdp=false vpid=true at=v5.17`.
    fn header(&mut self, line: &str) -> Result<(), Fault> {
        let Some((_, axes)) = line.strip_prefix("# ").and_then(|line| line.rsplit_once(": vendor=")) else {
            return Ok(());
        };
        let mut words = axes.split(' ');
        let vendor = words.next().and_then(|name| Vendor::ALL.into_iter().find(|vendor| vendor.name() == name));
        let axes: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let switch = |axis: &str| axes.get(axis)?.parse().ok();
        let (Some(vendor), Some(tdp), Some(nested_tdp)) = (vendor, switch("tdp"), switch("nested-tdp")) else {
            return Ok(());
        };
        if let Some(first) = &self.header {
            let message = format!("a second run; the first began in line {}", first.line);
            return Err(Fault::new(
                0..line.len(),
                message,
                "one VM at a time: write it with `replay --run N --trace FILE`",
            ));
        }
        let at = axes.get("at").map(|at| (*at).to_owned());
        self.header = Some(Header { line: self.lines, vendor, tdp, nested_tdp, at });
        Ok(())
    }

    /// The processes of the threads, as far as the trace tells them.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<u32> {
        self.tasks.values().filter_map(|task| task.tgid).collect()
    }

    /// Events that were lost.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.lost.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}
