//! Every way down the tables that a walk may have taken: each entry with any value that it had, in the order of the
//! walk, each step remembered no longer than a paging-structure cache may (SDM 3A 4.10.3).
//!
//! A step knows the moments at which it may be remembered. The next entry was read at one of them, while memory held its
//! value; the accessed flag was set in that value, for the processor sets it before it caches, except that an access
//! made now may set it now. A walk may pause between two references for as long as a cache may remember the first.

use super::times::Times;
use crate::paging::descent::{Root, Structure, page_rights};
use crate::paging::entry::{Decoded, Rights, decode};
use crate::paging::format::LevelFormat;
use crate::tlb::entry::Tables;
use crate::tlb::invalidate::covers_table;
use crate::virt::SecondStage;
use sim_core::Hpa;
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::event::FlushScope;
use sim_core::history::{Moment, Version};
use sim_core::memory::PhysMem;

/// What the past is looked up in.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) memory: &'a PhysMem,
    pub(super) flushes: &'a [(Moment, FlushScope)],
    pub(super) now: Moment,
}

impl View<'_> {
    /// The values that an entry had. The present one it has at the present moment, even if memory does not know yet that
    /// this is a moment of its own.
    fn versions(&self, hpa: Hpa, bytes: usize) -> Vec<Version> {
        let mut versions = self.memory.versions(hpa, bytes);
        if let Some(present) = versions.last_mut() {
            present.until = self.now.next();
        }
        versions
    }

    /// How long what came at these moments may be remembered, if these flushes drop it.
    pub(super) fn remembered(&self, came: &Times, is_dropped: impl Fn(&FlushScope) -> bool) -> Times {
        came.lasting(|from| {
            let first = self.flushes.partition_point(|(at, _)| *at < from);
            let dropping = self.flushes[first..].iter().find(|(_, scope)| is_dropped(scope));
            dropping.map_or(self.now.next(), |(at, _)| *at)
        })
    }
}

/// Tables that were in force for a while.
#[derive(Clone)]
pub(super) struct Phase {
    pub(super) structure: Structure,
    /// What translates the addresses of the tables.
    pub(super) second: SecondStage,
    /// Whether global flags count.
    pub(super) has_globals: bool,
    /// Whether they still are, so that an access made now may set flags.
    pub(super) is_current: bool,
    pub(super) when: Times,
}

impl Phase {
    /// The moments at which an access may set flags that memory never showed.
    pub(super) fn marking(&self, now: Moment) -> Times {
        if self.is_current { Times::at(now) } else { Times::default() }
    }

    /// What walks through different formats must share to share cached steps.
    const fn shape(&self) -> (usize, usize) {
        (self.structure.format.levels.len(), self.structure.format.entry_bytes)
    }
}

/// A table that a walk may go on with.
#[derive(Clone)]
pub(super) struct Node {
    shape: (usize, usize),
    depth: usize,
    /// log2 of the bytes that the entry which gave it translates.
    pub(super) shift: u32,
    pub(super) base: u64,
    pub(super) rights: Rights,
    pub(super) when: Times,
}

impl Node {
    /// What walks must share to share it.
    pub(super) const fn shape(&self) -> (usize, usize) {
        self.shape
    }
}

/// A page that a walk may have found.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) level: &'static LevelFormat,
    pub(super) raw: u64,
    pub(super) address: u64,
    pub(super) rights: Rights,
    pub(super) is_global: bool,
    pub(super) second: SecondStage,
    pub(super) when: Times,
}

/// Where an entry of the tables may have been read, and when.
pub(super) type Locate<'a> = &'a dyn Fn(&Phase, u64, &Times) -> Vec<(Hpa, Times)>;

/// Every step remembered and every page found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) nodes: Vec<Node>,
    pub(super) leaves: Vec<Leaf>,
}

/// Walks an address through all the tables that were in force.
pub(super) fn explore(view: View<'_>, phases: &[Phase], tables: &Tables, address: u64, locate: Locate<'_>) -> Found {
    let mut found = Found::default();
    let mut nodes: Vec<Node> = phases.iter().filter_map(root).collect();
    while !nodes.is_empty() {
        let mut below = Vec::new();
        for node in &nodes {
            for phase in phases.iter().filter(|phase| phase.shape() == node.shape) {
                let step = Step { view, phase, node, tables, address };
                step.read(locate, &mut below, &mut found.leaves);
            }
        }
        found.nodes.extend(below.iter().cloned());
        nodes = below;
    }
    found
}

fn root(phase: &Phase) -> Option<Node> {
    let first = &phase.structure.format.levels[0];
    let node = |depth, base| Node {
        shape: phase.shape(),
        depth,
        shift: 64,
        base,
        rights: Rights::all(),
        when: phase.when.clone(),
    };
    match phase.structure.root {
        Root::Table(base) => Some(node(0, base)),
        // Tables in force begin at their root.
        Root::Cached(_) => None,
        Root::Register(entry) if entry & first.layout.present == 0 => None,
        Root::Register(entry) => Some(node(1, entry & ENTRY_FRAME_MASK)),
    }
}

/// One entry to read.
struct Step<'a> {
    view: View<'a>,
    phase: &'a Phase,
    node: &'a Node,
    tables: &'a Tables,
    address: u64,
}

impl Step<'_> {
    /// Reads the entry at every place and every moment that it may have been read.
    fn read(&self, locate: Locate<'_>, below: &mut Vec<Node>, leaves: &mut Vec<Leaf>) {
        let when = self.node.when.and(&self.phase.when);
        if when.is_empty() {
            return;
        }
        let format = self.phase.structure.format;
        let level = &format.levels[self.node.depth];
        let at = self.node.base.wrapping_add(level.index(self.address) * format.entry_bytes as u64);
        for (hpa, when) in locate(self.phase, at, &when) {
            for version in self.view.versions(hpa, format.entry_bytes) {
                let mut held = Times::range(version.from, version.until).and(&when);
                if level.layout.accessed & !version.value != 0 {
                    held = held.and(&self.phase.marking(self.view.now));
                }
                if !held.is_empty() {
                    self.take(level, version.value, held, below, leaves);
                }
            }
        }
    }

    fn take(&self, level: &'static LevelFormat, raw: u64, when: Times, below: &mut Vec<Node>, leaves: &mut Vec<Leaf>) {
        match decode(level, raw, self.phase.structure.limits) {
            Decoded::NotPresent | Decoded::Malformed => {}
            Decoded::Table(target) => {
                let covers = |scope: &FlushScope| covers_table(scope, self.tables, self.address, level.shift);
                let node = Node {
                    shape: self.node.shape,
                    depth: self.node.depth + 1,
                    shift: level.shift,
                    base: target.base,
                    rights: self.node.rights & target.rights,
                    when: self.view.remembered(&when, covers),
                };
                add(below, node);
            }
            Decoded::Page(target) => leaves.push(Leaf {
                level,
                raw,
                address: target.base | (self.address & ((1 << level.shift) - 1)),
                rights: page_rights(self.node.rights, level, raw, target.rights),
                is_global: self.phase.has_globals && raw & level.layout.global != 0,
                second: self.phase.second,
                when,
            }),
        }
    }
}

/// Equal steps are one step.
fn add(nodes: &mut Vec<Node>, node: Node) {
    let key = |node: &Node| (node.shape, node.depth, node.base, node.rights);
    match nodes.iter_mut().find(|known| key(known) == key(&node)) {
        Some(known) => known.when = known.when.or(&node.when),
        None => nodes.push(node),
    }
}
