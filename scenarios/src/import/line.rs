//! One line of a trace: who, when, which event, and what the event says.
//!
//! Two forms are read, each with or without what options add (Documentation/trace/ftrace.rst):
//!
//! ```text
//!    CPU 0/KVM-1234    (   1230) [001] d..1.   123.456789: kvm_mmu_get_page: sp gen 0 ...     trace, trace_pipe
//!        CPU 0/KVM-1234  [001]   123.456789: kvmmmu:kvm_mmu_get_page:     sp gen 0 ...        trace-cmd report
//! ```
//!
//! The latency format and the option `raw` have no such prefix: their lines are no events here.

use super::event;
use crate::file::Fault;
use crate::file::diagnostics::quote;

/// What the prefix of an event looks like.
const FORM: &str =
    "a line is `TASK-PID [CPU] FLAGS TIME: event: text`, as `trace_pipe` and `trace-cmd report` print it";

/// An event of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The task's name.
    pub task: &'a str,
    /// Its thread.
    pub pid: u32,
    /// Its process, where the option `record-tgid` shows it.
    pub tgid: Option<u32>,
    /// The event, without its system.
    pub name: &'a str,
    /// What it says.
    pub text: &'a str,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read<'a> {
    /// An event.
    Event(Line<'a>),
    /// The kernel, or trace-cmd, has dropped so many events.
    Lost(u64),
    /// Anything else.
    Other,
}

/// Reads a line.
///
/// # Errors
/// If it names an event that is read here behind a prefix of another form.
pub fn read(line: &str) -> Result<Read<'_>, Fault> {
    if let Some(lost) = lost(line) {
        return Ok(Read::Lost(lost));
    }
    if let Some(event) = event_of(line) {
        return Ok(Read::Event(event));
    }
    if line.trim_start().starts_with('#') {
        return Ok(Read::Other);
    }
    let known = |(at, _): &(usize, &str)| {
        let word = line[..*at].rsplit([' ', '\t', ':']).next().unwrap_or_default();
        event::is_known(word)
    };
    match line.match_indices(": ").find(known) {
        Some((at, _)) => {
            let message = format!("an event behind {}, which is no prefix of an event", quote(line[..at].trim()));
            Err(Fault::new(0..at, message, FORM))
        }
        None => Ok(Read::Other),
    }
}

/// `CPU:1 [LOST 120 EVENTS]`, `CPU:1 [120 EVENTS DROPPED]`, or `# entries-in-buffer/entries-written: 100/220`.
fn lost(line: &str) -> Option<u64> {
    let line = line.trim();
    if let Some(counts) = line.strip_prefix("# entries-in-buffer/entries-written:") {
        let (kept, written) = counts.split_whitespace().next()?.split_once('/')?;
        let dropped = written.parse::<u64>().ok()?.checked_sub(kept.parse().ok()?)?;
        return (dropped > 0).then_some(dropped);
    }
    let inside = line.strip_prefix("CPU:")?.split_once('[')?.1.strip_suffix(']')?;
    let mut words = inside.split(' ');
    match (words.next()?, words.next()?, words.next()?) {
        ("LOST", count, "EVENTS") | (count, "EVENTS", "DROPPED") => count.parse().ok(),
        _ => None,
    }
}

fn event_of(line: &str) -> Option<Line<'_>> {
    // A task's name may hold anything, so that the first thing that can be the processor's column is taken.
    let columns = line.match_indices('[').filter_map(|(at, _)| {
        let (cpu, rest) = line[at + 1..].split_once(']')?;
        is_number(cpu).then_some((&line[..at], rest))
    });
    let ((task, pid, tgid), rest) = columns.filter_map(|(head, rest)| Some((who(head)?, rest))).next()?;
    let (name, text) = what(rest)?;
    Some(Line { task, pid, tgid, name, text })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `CPU 0/KVM-1234 (  1230)`: task, thread and process.
fn who(head: &str) -> Option<(&str, u32, Option<u32>)> {
    let head = head.trim();
    let (head, tgid) = match head.strip_suffix(')').and_then(|head| head.rsplit_once('(')) {
        Some((before, inside)) if is_number(inside.trim()) => (before.trim_end(), inside.trim().parse().ok()),
        Some((before, inside)) if inside.trim().bytes().all(|byte| byte == b'-') => (before.trim_end(), None),
        _ => (head, None),
    };
    let (task, pid) = head.rsplit_once('-')?;
    Some((task, pid.parse().ok().filter(|_| is_number(pid))?, tgid))
}

/// ` d..1. 123.456789: kvmmmu:kvm_mmu_get_page: text`: the event and its text.
fn what(rest: &str) -> Option<(&str, &str)> {
    let is_time = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let (before, rest) = rest.split_once(": ")?;
    let time = before.split_whitespace().next_back()?;
    // Flags, and what a clock or an option adds, are a word or two.
    if !is_time(time) || before.split_whitespace().count() > 3 {
        return None;
    }
    let rest = rest.trim_start();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let name = rest[..end].strip_suffix(':')?;
    let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then(|| (name, rest[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        let plain = Line { task: "kt", pid: 61, tgid: None, name: "kvm_fpu", text: "load" };
        let vcpu = Line { task: "CPU 0/KVM", pid: 1234, ..plain };
        for (line, event) in [
            ("              kt-61      [000] .N...     1.106455: kvm_fpu: load", plain),
            ("kt-61 [000] 1.106455: kvm_fpu: load", plain),
            ("kt-61 [000] 1.106455: kvm:kvm_fpu:   load", plain),
            ("kt-61 [012] d..1. 11064551234: kvm_fpu: load", plain),
            ("  CPU 0/KVM-1234    (   1230) [001] d..1.   1.1: kvm_fpu: load", Line { tgid: Some(1230), ..vcpu }),
            ("  CPU 0/KVM-1234    (-------) [001] d..1.   1.1: kvm_fpu: load", vcpu),
            ("  a[1] b-61 [001] 1.1: kvm_fpu: load", Line { task: "a[1] b", ..plain }),
            ("kt-61 [000] 1.106455: kvm_fpu:", Line { text: "", ..plain }),
        ] {
            assert_eq!(read(line), Ok(Read::Event(event)), "{line}");
        }
    }

    #[test]
    fn lines_that_are_no_events() {
        for (line, is) in [
            ("# tracer: nop", Read::Other),
            ("", Read::Other),
            ("cpus=2", Read::Other),
            ("RIG param npt=N: kvm_fpu: load", Read::Other),
            ("kt-61      0d..2. 581348805us+: kvm_fpu: load", Read::Other),
            ("3658 0 581348847680 type: 372", Read::Other),
            ("# 1.1: kvm_mmu_get_page: sp", Read::Other),
            ("CPU:1 [LOST 120 EVENTS]", Read::Lost(120)),
            ("CPU:1 [7 EVENTS DROPPED]", Read::Lost(7)),
            ("# entries-in-buffer/entries-written: 100/220   #P:2", Read::Lost(120)),
            ("# entries-in-buffer/entries-written: 100/100   #P:2", Read::Other),
        ] {
            assert_eq!(read(line), Ok(is), "{line}");
        }
        for line in ["kt-61 0d..2. 58us+: kvm_mmu_get_page: sp", "kvm_mmu_get_page: sp gen 0"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
