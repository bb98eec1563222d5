//! The skeleton of a scenario, as the text of a file that the language takes: matrix, machine, memory, spaces, guests, steps,
//! each with the lines of the trace that it comes from, and what is not known as a comment.

use super::audit::{self, Audited};
use super::machine::{Evidence, only};
use super::memory::{Page, name};
use super::steps::{self, Accesses, Item, Steps};
use super::trace::Trace;
use crate::file::diagnostics::count;
use crate::file::{Action, Flags, Mode, Vendor};
use mmu::change::Point;
use std::fmt::{Display, Write as _};

/// The space of whoever runs in a mode that the trace does not tell.
const ASSUMED: &str = "assumed";

/// The skeleton of a trace, for a point of history if one is given.
#[must_use]
pub fn render(trace: &Trace, audited: &Audited, at: Option<&str>) -> String {
    let steps = steps::of(trace, &audited.machine, &audit::roots(trace, &audited.machine));
    let at = at.or_else(|| trace.header.as_ref()?.at.as_deref()).filter(|at| Point::by_name(at).is_some());
    let mut text = String::new();
    head(&mut text, trace, &steps);
    let pages = steps.memory.pages();
    if !pages.is_empty() {
        let lines = pages.values().map(|page| format!("    \"{:#x}: c3\",\n", page.frame));
        let _ = write!(
            text,
            "# A RET in every page, so that each can be executed.\nmemory = [\n{}]\n",
            lines.collect::<String>()
        );
    }
    body(&mut text, &steps);
    matrix(&mut text, audited, at);
    let _ = writeln!(text, "\n[machine]\nvcpus = {}", steps.vcpus.len().max(1));
    spaces(&mut text, &steps);
    guests(&mut text, &steps);
    text
}

/// What may stand in a comment or a string of TOML.
fn clean(text: &str) -> String {
    let is_plain = |letter: &char| letter.is_ascii_graphic() || *letter == ' ';
    text.chars().map(|letter| if is_plain(&letter) && !matches!(letter, '"' | '\\') { letter } else { '?' }).collect()
}

fn comment(text: &mut String, what: impl Display) {
    let _ = writeln!(text, "# {}", clean(&what.to_string()));
}

fn head(text: &mut String, trace: &Trace, steps: &Steps) {
    let name = clean(&trace.name);
    let _ = writeln!(text, "title = \"imported from {name}\"");
    let _ = writeln!(text, "source = [\"trace {name}, {}\"]", count(trace.lines, "line"));
    comment(text, "A skeleton: what the trace tells of the guest. The number behind each step is its line there.");
    for (pid, vcpu) in &steps.vcpus {
        let task = trace.tasks.get(pid).map_or("", |task| task.name.as_str());
        comment(text, format!("vCPU {vcpu} is the thread {task}-{pid}."));
    }
    for pid in &steps.without {
        comment(text, format!("Left out: the thread {pid}; a scenario has 4 vCPUs at most."));
    }
    if trace.lost_events() > 0 {
        comment(text, format!("INCOMPLETE: {} events were lost.", trace.lost_events()));
    }
    if let Some(line) = steps.full {
        comment(text, format!("Left out: everything from line {line} on; a skeleton has no more steps."));
    }
    match steps.accesses {
        Accesses::Faults => comment(text, "Accesses are page faults: those that did not fault are not told."),
        Accesses::Walks => {
            comment(text, "Accesses are walks of the guest's tables: kvm:kvm_page_fault was not recorded.")
        }
        Accesses::Entries => {
            comment(text, "Accesses are entries that were written, taken as reads: no fault and no walk was recorded.");
        }
    }
    text.push_str("# A step of a level that does not run when its turn comes is left out.\nout-of-turn = \"skip\"\n");
}

fn body(text: &mut String, steps: &Steps) {
    text.push_str("steps = \"\"\"\n");
    let mut taken = 0;
    for item in &steps.items {
        let _ = match item {
            Item::Comment(line, what) => writeln!(text, "# {line}: {}", clean(what)),
            Item::Step(vcpu, actor, action, line, note) => {
                taken += 1;
                let who = if *vcpu == 0 { String::new() } else { format!("{vcpu}.") };
                let step = format!("{who}{}: {action}", actor.name());
                let note = if note.is_empty() { String::new() } else { format!(": {}", clean(note)) };
                writeln!(text, "{step:<40} # {line}{note}")
            }
        };
    }
    if taken == 0 {
        text.push_str("# The trace tells nothing that the guest did.\nl1: run\n");
    }
    text.push_str("\"\"\"\n");
}

/// An axis: what is told, or all values.
fn axis<T: Copy>(text: &mut String, key: &str, told: &[Evidence<T>], all: &[T], name: impl Fn(T) -> String) {
    match told {
        [] => comment(text, format!("Not told by the trace: {key}.")),
        [one] => comment(text, format!("Line {}: {}.", one.line, one.by)),
        several => {
            let lines: Vec<String> = several.iter().map(|one| format!("line {}: {}", one.line, one.by)).collect();
            comment(text, format!("The trace contradicts itself: {}.", lines.join(", ")));
        }
    }
    let values: Vec<T> = only(told).map_or_else(|| all.to_vec(), |one| vec![one]);
    let _ = writeln!(text, "{key} = [{}]", values.into_iter().map(name).collect::<Vec<_>>().join(", "));
}

fn matrix(text: &mut String, audited: &Audited, at: Option<&str>) {
    let machine = &audited.machine;
    text.push_str("\n[matrix]\n");
    axis(text, "vendor", &machine.vendor, &Vendor::ALL, |vendor| format!("\"{}\"", vendor.name()));
    axis(text, "tdp", &machine.tdp, &[true, false], |on| on.to_string());
    // What L0 does not have, L1 can't give.
    match (only(&machine.nested_tdp), only(&machine.tdp)) {
        (Some(true), Some(false)) | (None, _) => {
            comment(text, "Not told by the trace: nested-tdp, which is as tdp then.")
        }
        _ => axis(text, "nested-tdp", &machine.nested_tdp, &[true, false], |on| on.to_string()),
    }
    comment(text, "Not told by any trace: vpid.");
    match at {
        Some(at) => {
            let _ = writeln!(text, "at = [\"{}\"]", clean(at));
        }
        None => comment(text, "Not told by the trace: the kernel; `at` says which, and the newest is taken."),
    }
}

/// The linear addresses that steps use.
fn addresses(steps: &Steps) -> Vec<u64> {
    let named = steps.items.iter().filter_map(|item| match item {
        Item::Step(_, _, Action::Invlpg(at) | Action::Invlpga { at, .. }, ..) => Some(*at),
        _ => None,
    });
    named.chain(steps.memory.pages().keys().copied()).collect()
}

fn spaces(text: &mut String, steps: &Steps) {
    let known = steps.memory.spaces();
    for (index, space) in known.iter().enumerate() {
        text.push('\n');
        match space.gfn {
            Some(gfn) => comment(text, format!("The root at gfn {gfn:#x}. What it maps is assumed.")),
            None => comment(text, "Without paging."),
        }
        table(text, &name(index), space.mode, steps);
    }
    let is_held = |at: &u64| known.iter().any(|space| space.mode.holds(*at));
    if steps.first[0].is_none() || !addresses(steps).iter().all(is_held) {
        text.push('\n');
        comment(text, "Not told by the trace: the paging mode.");
        table(text, ASSUMED, Mode::Long4, steps);
    }
}

fn table(text: &mut String, name: &str, mode: Mode, steps: &Steps) {
    let _ = write!(text, "[space.{name}]\nmode = \"{}\"\n", mode.name());
    let held = steps.memory.pages().iter().filter(|(at, _)| mode.has_paging() && mode.holds(**at));
    let line = |(at, page): (&u64, &Page)| {
        let user = if page.user { " user" } else { "" };
        let gfns: Vec<String> = page.gfns.iter().map(|gfn| format!("{gfn:#x}")).collect();
        let was = if gfns.is_empty() { String::new() } else { format!(" # gfn {} in the trace", gfns.join(" ")) };
        format!("    \"{at:#x} -> {:#x} rwx{user}\",{was}\n", page.frame)
    };
    let lines: String = held.map(line).collect();
    if !lines.is_empty() {
        let _ = write!(text, "map = [\n{lines}]\n");
    }
}

fn guests(text: &mut String, steps: &Steps) {
    let l1 = steps.first[0].map_or_else(|| ASSUMED.to_owned(), name);
    let l2 = steps.first[1].map_or_else(|| l1.clone(), name);
    for (index, (guest, space)) in [("l1", l1), ("l2", l2)].into_iter().enumerate() {
        text.push('\n');
        if steps.first[index].is_none() {
            comment(text, format!("Not told by the trace: where {guest} runs."));
        }
        let _ = writeln!(text, "[guest.{guest}]\nspace = \"{space}\"");
        for flags in &steps.flags[index] {
            let Flags { register, .. } = flags;
            let _ = writeln!(text, "{} = \"{flags}\"", register.name());
        }
    }
}
