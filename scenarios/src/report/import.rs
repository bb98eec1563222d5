//! The audit of an imported trace, for people and as JSON.

use crate::file::diagnostics::count;
use crate::import::audit::{Audited, Finding, Transition};
use crate::import::event::Fate;
use crate::import::machine::Evidence;
use crate::import::page::Seen;
use crate::import::trace::Trace;
use mmu::PageRole;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Names in a line of them.
const LISTED: usize = 8;

/// The audit for people.
#[must_use]
pub fn text(trace: &Trace, audited: &Audited) -> String {
    let mut text = String::new();
    summary(&mut text, trace, audited);
    roles(&mut text, audited);
    transitions(&mut text, trace, audited);
    findings(&mut text, audited);
    text
}

fn summary(text: &mut String, trace: &Trace, audited: &Audited) {
    let (lines, read) = (count(trace.lines, "line"), count(events(trace), "event"));
    let _ =
        writeln!(text, "{}: {lines}, {read} of use, {} that are no events", trace.name, count(trace.others, "line"));
    for (line, lost) in trace.lost.iter().take(LISTED) {
        let _ = writeln!(
            text,
            "  INCOMPLETE  {lost} events were lost at line {line}: what was known of pages is forgotten there"
        );
    }
    if trace.lost.len() > LISTED {
        let _ = writeln!(text, "  INCOMPLETE  {} events were lost at {} places", trace.lost_events(), trace.lost.len());
    }
    if let Some(line) = trace.cut {
        let _ = writeln!(text, "  INCOMPLETE  line {line} is cut off");
    }
    for (key, what) in facts(trace, audited) {
        let _ = writeln!(text, "  {key:<10}  {what}");
    }
}

/// The events that were read.
fn events(trace: &Trace) -> usize {
    trace.entries.len() - trace.lost.len()
}

/// What is known beside roles, and what is not.
fn facts(trace: &Trace, audited: &Audited) -> Vec<(&'static str, String)> {
    let machine = &audited.machine;
    let on = |on: bool| if on { "on" } else { "off" }.to_owned();
    let mut facts = vec![
        ("vendor", told(&machine.vendor, |vendor| vendor.name().to_owned())),
        ("tdp", told(&machine.tdp, on)),
        ("nested-tdp", told(&machine.nested_tdp, on)),
    ];
    let forms: Vec<&str> = trace.forms.iter().map(|form| form.name()).collect();
    if !forms.is_empty() {
        let hidden = PageRole(!PageRole::IN_KVM_TEXT.0).difference(PageRole(0)).join(" ");
        let is_whole = trace.forms.iter().all(|form| form.has_word());
        let not = if is_whole { "role words are whole".to_owned() } else { format!("not in it: {hidden}") };
        facts.push(("pages", format!("{}; {not}", forms.join(", "))));
    }
    for (pid, task) in trace.tasks.iter().take(LISTED) {
        let process = task.tgid.map(|tgid| format!(" of process {tgid}")).unwrap_or_default();
        facts.push(("thread", format!("{}-{pid}{process}, {}", task.name, count(task.events, "event"))));
    }
    if trace.tasks.len() > LISTED {
        facts.push(("thread", format!("and {} more", trace.tasks.len() - LISTED)));
    }
    if trace.processes().len() > 1 {
        facts.push(("careful", "threads of several processes, and maybe of several VMs: --pid picks one".to_owned()));
    }
    if !trace.unread.is_empty() {
        let mut names: Vec<(&String, &usize)> = trace.unread.iter().collect();
        names.sort_by_key(|(name, times)| (std::cmp::Reverse(**times), name.as_str()));
        let more = if names.len() > LISTED { ", ..." } else { "" };
        let listed: Vec<String> = names.iter().take(LISTED).map(|(name, times)| format!("{name} {times}")).collect();
        facts.push(("not read", format!("{}{more}", listed.join(", "))));
    }
    if let Some(line) = audited.before.values().min() {
        let pages = count(audited.before.len(), "page");
        facts.push(("began late", format!("{pages} there before the trace began, first seen in line {line}")));
    }
    if !audited.rootless.is_empty() {
        let roles: Vec<String> = audited.rootless.iter().take(LISTED).map(ToString::to_string).collect();
        facts.push(("no root", format!("of pages of role {}: made before, or a root of the TDP MMU", roles.join(" "))));
    }
    if !audited.registers_judged {
        facts.push(("not judged", "role words against registers: the kernel is older than v5.17".to_owned()));
    }
    facts
}

fn told<T: Copy>(list: &[Evidence<T>], name: impl Fn(T) -> String) -> String {
    let told: Vec<String> =
        list.iter().map(|one| format!("{} (line {}: {})", name(one.value), one.line, one.by)).collect();
    match told.as_slice() {
        [] => "not told".to_owned(),
        [one] => one.clone(),
        several => format!("CONTRADICTORY: {}", several.join(", ")),
    }
}

fn roles(text: &mut String, audited: &Audited) {
    if audited.roles.is_empty() {
        return;
    }
    let header = Fate::ALL.iter().map(|fate| format!(" {:>7}", fate.name())).collect::<String>();
    let _ = writeln!(text, "\n  role      root{header}   line  threads     fields");
    for (seen, role) in &audited.roles {
        let fates: String = role.fates.iter().map(|times| format!(" {times:>7}")).collect();
        let root = if role.is_root { "root" } else { "" };
        let (word, fields) = (seen.to_string(), seen.describe());
        let pids = threads(&role.pids);
        let _ = writeln!(text, "  {word:<9} {root:<4}{fates} {:>6}  {pids:<10}  {fields}", role.line);
    }
    if audited.roles.keys().any(|seen| !seen.is_whole()) {
        text.push_str("  ?: bits that the text of the events hides, 0 here\n");
    }
}

/// Threads, in a column.
fn threads(pids: &BTreeSet<u32>) -> String {
    const LISTED: usize = 2;
    let shown: Vec<String> = pids.iter().take(LISTED).map(ToString::to_string).collect();
    let more = pids.len().saturating_sub(LISTED);
    if more == 0 { shown.join(" ") } else { format!("{} +{more}", shown.join(" ")) }
}

fn transitions(text: &mut String, trace: &Trace, audited: &Audited) {
    if audited.transitions.is_empty() {
        return;
    }
    text.push_str("\n  roots in time, by the first of each kind; a switch to a cached root leaves no event\n");
    for Transition { pid, from, to, gfn, how, times, line } in &audited.transitions {
        let task = trace.tasks.get(pid).map_or("", |task| task.name.as_str());
        let before = from.map_or_else(|| "-".to_owned(), |from| from.to_string());
        let differs = difference(*from, *to);
        let at = gfn.map(|gfn| format!(" at gfn {gfn:#x}")).unwrap_or_default();
        let (after, how) = (to.to_string(), how.name());
        let _ = writeln!(text, "  {line:>6}  {task}-{pid}  {before:>9} -> {after:<9} x{times}  {how}{at}{differs}");
    }
}

fn difference(from: Option<Seen>, to: Seen) -> String {
    let fields = from.map(|from| from.difference(to)).unwrap_or_default();
    if fields.is_empty() { String::new() } else { format!(", differs in {}", fields.join(" ")) }
}

fn findings(text: &mut String, audited: &Audited) {
    text.push('\n');
    for Finding { audit, what, role, line, pid, gfn, times } in &audited.findings {
        let often = if *times > 1 { format!(", {times} times") } else { String::new() };
        let _ = writeln!(
            text,
            "! line {line}, thread {pid}: {} {}: gfn {gfn:#x} of role {role}{often}",
            audit.id(),
            audit.name()
        );
        let _ = writeln!(text, "!     {what}");
    }
    let _ = writeln!(text, "{}", count(audited.findings.len(), "finding"));
}

/// The audit as one JSON document; `scenario` is the skeleton, where it is not in a file of its own.
#[must_use]
pub fn json(trace: &Trace, audited: &Audited, scenario: Option<&str>) -> Value {
    let machine = &audited.machine;
    let roles: Vec<Value> = audited
        .roles
        .iter()
        .map(|(seen, role)| {
            let fates = Fate::ALL.iter().zip(role.fates).map(|(fate, times)| (fate.name().to_owned(), json!(times)));
            let mut object: serde_json::Map<String, Value> = fates.collect();
            object.extend(role_json(*seen));
            object.insert("root".to_owned(), json!(role.is_root));
            object.insert("line".to_owned(), json!(role.line));
            object.insert("threads".to_owned(), json!(role.pids));
            Value::Object(object)
        })
        .collect();
    let transitions: Vec<Value> = audited
        .transitions
        .iter()
        .map(|Transition { pid, from, to, gfn, how, times, line }| {
            let differ = from.map(|from| from.difference(*to)).unwrap_or_default();
            json!({ "pid": pid, "from": from.map(|from| from.word.to_string()), "to": to.word.to_string(), "gfn": gfn.map(|gfn| format!("{gfn:#x}")),
                "how": how.name(),
                "times": times, "line": line, "differ": differ })
        })
        .collect();
    let findings: Vec<Value> = audited
        .findings
        .iter()
        .map(|Finding { audit, what, role, line, pid, gfn, times }| {
            json!({ "audit": audit.name(), "id": audit.id(), "what": what, "role": role.word.to_string(), "line": line,
                "pid": pid, "gfn": format!("{gfn:#x}"), "times": times })
        })
        .collect();
    json!({
        "trace": trace.name,
        "lines": trace.lines,
        "events": events(trace),
        "other-lines": trace.others,
        "unread": trace.unread,
        "lost": trace.lost_events(),
        "cut-off": trace.cut,
        "vendor": evidence(&machine.vendor, |vendor| json!(vendor.name())),
        "tdp": evidence(&machine.tdp, |on| json!(on)),
        "nested-tdp": evidence(&machine.nested_tdp, |on| json!(on)),
        "threads": trace.tasks.iter().map(|(pid, task)| {
            json!({ "pid": pid, "name": task.name, "process": task.tgid, "events": task.events })
        }).collect::<Vec<_>>(),
        "pages-before": audited.before.len(),
        "registers-judged": audited.registers_judged,
        "roles": roles,
        "transitions": transitions,
        "findings": findings,
        "scenario": scenario,
    })
}

fn role_json(seen: Seen) -> [(String, Value); 3] {
    let known = seen.known.0;
    [
        ("role".to_owned(), json!(seen.word.to_string())),
        ("known".to_owned(), json!(format!("{known:#x}"))),
        ("fields".to_owned(), json!(seen.describe())),
    ]
}

fn evidence<T: Copy>(list: &[Evidence<T>], value: impl Fn(T) -> Value) -> Value {
    list.iter().map(|one| json!({ "value": value(one.value), "line": one.line, "by": one.by })).collect()
}
