//! The audit of a trace: every role in it with what became of its pages, the roots in time, and what can't be right.
//!
//! A trace shows what happened to pages, not the MMU's own state: that a root has another role than its MMU (I2) shows as pages
//! below it whose role no root has (kernels up to v5.19 give a page the MMU's role), or not at all. What the trace may not
//! show, because it began late or lost events, is never a finding. Pages are known by frame, role and generation; where the
//! text hides bits, pages that differ only in those count together.

use super::event::{Fate, Smm, Told};
use super::machine::{Level, Machine, only};
use super::page::{Form, Page, Seen};
use super::trace::{Entry, Trace};
use super::word::Words;
use mmu::PageRole;
use mmu::audit::Audit;
use std::collections::{BTreeMap, BTreeSet};

/// A role of the trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// What became of its pages, in the order of [`Fate::ALL`].
    pub fates: [usize; 5],
    /// The first line.
    pub line: usize,
    /// Whether its pages are roots.
    pub is_root: bool,
    /// The threads that had to do with its pages.
    pub pids: BTreeSet<u32>,
}

/// One root after another on a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The thread.
    pub pid: u32,
    /// The role before, none for the first root.
    pub from: Option<Seen>,
    /// The role after.
    pub to: Seen,
    /// The root's frame, the first time; none where only a page below it is seen.
    pub gfn: Option<u64>,
    /// How it is known: a root was made or found, or a page below another root than the last.
    pub how: How,
    /// How often.
    pub times: usize,
    /// The first line.
    pub line: usize,
}

/// How a change of the root is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// The root was made.
    Made,
    /// The root was found.
    Found,
    /// A page was made below it: the switch to a cached root leaves no event.
    Cached,
}

impl How {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Found => "found",
            Self::Cached => "cached, seen by a page below it",
        }
    }
}

/// Something that can't be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The invariant.
    pub audit: Audit,
    /// What is wrong.
    pub what: String,
    /// The role.
    pub role: Seen,
    /// The first line, and the thread of it.
    pub line: usize,
    /// See `line`.
    pub pid: u32,
    /// The frame there.
    pub gfn: u64,
    /// How often.
    pub times: usize,
}

/// The audit of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// The machine.
    pub machine: Machine,
    /// Every role.
    pub roles: BTreeMap<Seen, Role>,
    /// Changes of roots, by first line.
    pub transitions: Vec<Transition>,
    /// Findings, by first line.
    pub findings: Vec<Finding>,
    /// Pages that were there before the trace began, and the first line that tells of one.
    pub before: BTreeMap<(u64, Seen), usize>,
    /// Roles of pages of which no root was seen, where that is no finding.
    pub rootless: BTreeSet<Seen>,
    /// Whether the words of roles were held against registers.
    pub registers_judged: bool,
}

/// What is known of one page, or of several that look the same.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    events: usize,
    /// Its first event is that it was made.
    begins_here: bool,
    there: usize,
    unsync: usize,
}

type Name = (Option<u64>, u64, Seen);

struct Auditor<'a> {
    words: &'a Words,
    audited: Audited,
    pages: BTreeMap<Name, Known>,
    roots: BTreeSet<Seen>,
    /// The last root's role of each thread.
    current: BTreeMap<u32, Seen>,
    /// Threads of which L1 or L2 is known to run.
    levels: BTreeMap<u32, Level>,
    is_whole: bool,
}

/// Audits a trace, with the role words that its kernel can have.
#[must_use]
pub fn audit(trace: &Trace, words: &Words) -> Audited {
    let machine = Machine::of(trace);
    let roots = roots(trace, &machine);
    let is_old = trace.forms.iter().any(|form| matches!(form, Form::Pae | Form::NoGeneration));
    let any = Words::at(mmu::change::Point::by_name("v5.16"));
    let words = if is_old { &any } else { words };
    let audited = Audited { machine, registers_judged: words.judges_registers(), ..Audited::default() };
    let mut auditor = Auditor {
        words,
        audited,
        pages: BTreeMap::new(),
        roots,
        current: BTreeMap::new(),
        levels: BTreeMap::new(),
        is_whole: true,
    };
    for entry in &trace.entries {
        auditor.entry(entry);
    }
    auditor.rootless(trace);
    let mut audited = auditor.audited;
    audited.transitions.sort_by_key(|transition| transition.line);
    audited.findings.sort_by_key(|finding| finding.line);
    audited
}

/// The roles whose pages are roots: of all pages that share a role's shared part the highest level, if a root can have it, and
/// pages that roots refer to. Below two-dimensional paging roots of level 2 are none, and those of the TDP MMU leave no event.
pub(super) fn roots(trace: &Trace, machine: &Machine) -> BTreeSet<Seen> {
    let tdp = only(&machine.tdp) == Some(true);
    let mut highest: BTreeMap<Seen, u32> = BTreeMap::new();
    let pages: Vec<&Page> = trace.entries.iter().filter_map(|entry| page_of(entry)).collect();
    for page in &pages {
        let level = highest.entry(page.role.shared()).or_default();
        *level = (*level).max(page.role.word.level());
    }
    let is_root = |page: &&&Page| {
        let level = page.role.word.level();
        let can_be = matches!(level, 4 | 5) || (level == 2 && !(tdp && page.role.word.direct() == 1));
        page.root_count > 0 || (can_be && highest.get(&page.role.shared()) == Some(&level))
    };
    pages.iter().filter(is_root).map(|page| page.role.valid()).collect()
}

const fn page_of(entry: &Entry) -> Option<&Page> {
    match &entry.told {
        Told::Page(_, page) => Some(page),
        _ => None,
    }
}

impl Auditor<'_> {
    fn entry(&mut self, entry: &Entry) {
        match &entry.told {
            Told::Page(fate, page) => self.page(entry, *fate, page),
            Told::Enter { .. } => {
                self.levels.insert(entry.pid, Level::L2);
            }
            Told::Leave(_) | Told::EnterFailed(_) => {
                self.levels.insert(entry.pid, Level::L1);
            }
            // Where SMM comes from and goes to is not told.
            Told::Smm(Smm::Enters | Smm::Leaves) => {
                self.levels.remove(&entry.pid);
            }
            Told::Lost(_) => {
                self.pages.clear();
                self.levels.clear();
                self.current.clear();
                self.is_whole = false;
            }
            _ => {}
        }
    }

    fn page(&mut self, entry: &Entry, fate: Fate, page: &Page) {
        let role = page.role.valid();
        let is_root = self.roots.contains(&role);
        let row = self.audited.roles.entry(role).or_insert_with(|| Role { line: entry.line, ..Role::default() });
        row.fates[fate as usize] += 1;
        row.is_root = is_root;
        row.pids.insert(entry.pid);
        if let Some(wrong) = self.words.wrong(role) {
            let audit = if is_root { Audit::StoredRole } else { Audit::ChildRole };
            self.find(entry, page, audit, wrong.what);
        }
        let name = (page.generation, page.gfn, role);
        self.told_by_itself(entry, fate, page);
        self.history(entry, fate, page, name);
        if matches!(fate, Fate::Made | Fate::Found) {
            self.level(entry, page);
            self.follow(entry, fate, page, is_root);
        }
    }

    fn find(&mut self, entry: &Entry, page: &Page, audit: Audit, what: impl Into<String>) {
        let (what, role) = (what.into(), page.role);
        let findings = &mut self.audited.findings;
        let same = |other: &&mut Finding| other.audit == audit && other.role == role && other.what == what;
        if let Some(other) = findings.iter_mut().find(same) {
            other.times += 1;
            return;
        }
        findings.push(Finding { audit, what, role, line: entry.line, pid: entry.pid, gfn: page.gfn, times: 1 });
    }

    /// What an event contradicts in itself.
    fn told_by_itself(&mut self, entry: &Entry, fate: Fate, page: &Page) {
        let word = page.role.word;
        let is_leaf_table = word.level() == 1 && word.direct() == 0;
        let wrong = match fate {
            Fate::Made | Fate::Found if word.invalid() == 1 => {
                Some((Audit::PageHash, "a page that is zapped was looked up and taken"))
            }
            Fate::Unsync if !is_leaf_table => Some((Audit::UnsyncMarks, "only shadowed page tables go out of sync")),
            Fate::Unsync if page.unsync => Some((Audit::UnsyncMarks, "it goes out of sync, and was so before")),
            Fate::Sync if !page.unsync => {
                Some((Audit::KernelWarning, "it is brought into sync, and was in sync before"))
            }
            Fate::Made | Fate::Found | Fate::Zapped if page.unsync && !is_leaf_table => {
                Some((Audit::UnsyncMarks, "it is out of sync, which only shadowed page tables can be"))
            }
            _ => None,
        };
        if let Some((audit, what)) = wrong {
            self.find(entry, page, audit, what);
        }
    }

    /// What an event contradicts of those before.
    fn history(&mut self, entry: &Entry, fate: Fate, page: &Page, name: Name) {
        // Pages of the TDP MMU can't be looked up, so that there may be two; hidden bits make two look like one.
        let is_alone = page.role.is_whole() && page.role.word.direct() == 0 && page.generation.is_some();
        let is_valid = page.role.word.invalid() == 0;
        let known = self.pages.entry(name).or_default();
        let before = *known;
        known.begins_here |= fate == Fate::Made && before.events == 0;
        known.events += 1;
        match fate {
            Fate::Made => known.there += 1,
            Fate::Found => known.there = known.there.max(1),
            Fate::Unsync => known.unsync += 1,
            Fate::Sync => known.unsync = known.unsync.saturating_sub(1),
            Fate::Zapped => known.there = known.there.saturating_sub(1),
        }
        let (is_there, is_gone) = (before.there > 0, before.begins_here && before.there == 0);
        let wrong = match fate {
            Fate::Made if is_alone && is_there => Some((Audit::PageHash, "it was made, while the same page was there")),
            Fate::Found if is_alone && is_gone => Some((Audit::PageHash, "it was found, and was zapped before")),
            Fate::Zapped if is_alone && is_gone && is_valid => {
                Some((Audit::PageHash, "it was zapped, and was zapped before"))
            }
            Fate::Sync if before.begins_here && is_there && before.unsync == 0 => {
                Some((Audit::UnsyncMarks, "it is brought into sync, and never went out of it"))
            }
            _ => None,
        };
        if let Some((audit, what)) = wrong {
            self.find(entry, page, audit, what);
        }
        if before.events == 0 && fate != Fate::Made && self.is_whole {
            self.audited.before.insert((page.gfn, page.role.valid()), entry.line);
        }
    }

    /// I6: a page that is made or found for L1 is L1's, and so for L2.
    fn level(&mut self, entry: &Entry, page: &Page) {
        if !page.role.knows(PageRole(0).with_guest_mode(1)) {
            return;
        }
        let what = match (self.levels.get(&entry.pid), page.role.word.guest_mode()) {
            (Some(Level::L1), 1) => "a page of L2's is used while L1 runs, as far as entries and exits are told",
            (Some(Level::L2), 0) => "a page of L1's is used while L2 runs, as far as entries and exits are told",
            _ => return,
        };
        self.find(entry, page, Audit::GuestMode, what);
    }

    /// Follows the roots of a thread.
    fn follow(&mut self, entry: &Entry, fate: Fate, page: &Page, is_root: bool) {
        let role = page.role.valid();
        let from = self.current.get(&entry.pid).copied();
        let (to, how) = match (is_root, fate) {
            (true, Fate::Made) => (role, How::Made),
            (true, _) => (role, How::Found),
            (false, _) if from.is_some_and(|from| from.shared() == role.shared()) => return,
            (false, _) => {
                // The root above is one that was seen before; if there are several, which of them is not told.
                let seen = self.audited.roles.iter().filter(|(_, row)| row.is_root).map(|(root, _)| *root);
                let above = seen.filter(|root| root.shared() == role.shared()).max_by_key(|root| root.word.level());
                match above {
                    Some(above) => (above, How::Cached),
                    None => return,
                }
            }
        };
        self.current.insert(entry.pid, to);
        let transitions = &mut self.audited.transitions;
        let same = |other: &&mut Transition| (other.pid, other.from, other.to, other.how) == (entry.pid, from, to, how);
        match transitions.iter_mut().find(same) {
            Some(other) => other.times += 1,
            None => transitions.push(Transition {
                pid: entry.pid,
                from,
                to,
                gfn: is_root.then_some(page.gfn),
                how,
                times: 1,
                line: entry.line,
            }),
        }
    }

    /// I11: pages that were made below no root. Roots of the TDP MMU leave no event, and a trace may begin below a root.
    fn rootless(&mut self, trace: &Trace) {
        let shared: BTreeSet<Seen> = self.roots.iter().map(|root| root.shared()).collect();
        let can_tell = self.is_whole && self.audited.before.is_empty();
        for entry in &trace.entries {
            let Told::Page(Fate::Made, page) = &entry.told else { continue };
            let role = page.role.valid();
            if shared.contains(&role.shared()) || self.words.wrong(role).is_some() {
                continue;
            }
            let of_tdp = role.word.direct() == 1 && only(&self.audited.machine.tdp) != Some(false);
            if can_tell && !of_tdp {
                let near = shared.iter().min_by_key(|root| role.shared().difference(**root).len());
                let what = near.map_or_else(
                    || "it was made, and there is no root".to_owned(),
                    |near| {
                        let differs = role.shared().difference(*near).join(" ");
                        format!("it was made below no root of its role; the nearest root differs in {differs}")
                    },
                );
                self.find(entry, page, Audit::ChildRole, what);
            } else {
                self.audited.rootless.insert(role);
            }
        }
    }
}
