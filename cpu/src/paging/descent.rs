//! The walk engine that all tables share: it goes down the levels of a format until it meets a page or a reason to
//! stop, and afterwards sets the accessed and dirty flags of what it used (SDM 3A 4.3 to 4.5, 4.8; SDM 3C 28.2.2,
//! 28.2.4).
//!
//! It decides nothing about permissions; it only collects the rights along the path. Where the tables live, and so
//! what a reference to them takes, is the business of [`Tables`].

use super::entry::{Decoded, Rights, Target, decode};
use super::format::{Format, LevelFormat, Limits};
use sim_core::Hpa;
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::arch::access::AccessKind;

/// The memory that holds a stage's tables.
pub(super) trait Tables {
    /// Why a reference can fail.
    type Error;

    /// Reads the entry at an address of the stage's own output space.
    fn read(&mut self, at: u64, bytes: usize) -> Result<(Hpa, u64), Self::Error>;

    /// Writes an entry back with flags set.
    fn write_back(&mut self, step: &Step, value: u64) -> Result<(), Self::Error>;
}

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// At the format's first level, in this table.
    Table(u64),
    /// Below the format's first level: this is the entry, from a PDPTE register that was checked when it was loaded.
    Register(u64),
}

/// The tables to walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Structure {
    /// Their format.
    pub(crate) format: &'static Format,
    /// Where they begin.
    pub(crate) root: Root,
    /// What their reserved bits depend on.
    pub(crate) limits: Limits,
}

/// One entry that a walk used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The level.
    pub(super) level: &'static LevelFormat,
    /// Bytes of the entry.
    pub(super) bytes: usize,
    /// Where the entry is in the stage's output space.
    pub(super) at: u64,
    /// Where the entry is in host-physical memory.
    pub(super) hpa: Hpa,
    /// Its value as read.
    pub(super) value: u64,
}

/// A walk that reached a page.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// The entries used, root first; the last one maps the page.
    pub(super) steps: Vec<Step>,
    /// What all of them allow.
    pub(super) rights: Rights,
    /// The translated address.
    pub(super) address: u64,
    /// log2 of the page's bytes.
    pub(super) shift: u32,
}

/// Why a walk reached no page.
#[derive(Clone, Debug)]
pub(super) enum Stop<E> {
    /// An entry is not present.
    NotPresent,
    /// An entry is malformed.
    Malformed,
    /// A reference failed.
    Reference(E),
}

impl Path {
    /// Whether the page's dirty flag is set, or there is none to set.
    pub(super) fn is_dirty(&self) -> bool {
        self.steps.last().is_some_and(|leaf| missing(leaf.value, leaf.level.layout.dirty) == 0)
    }

    /// Whether the page is marked global.
    pub(super) fn is_global(&self) -> bool {
        self.steps.last().is_some_and(|leaf| leaf.value & leaf.level.layout.global != 0)
    }
}

/// Goes from the root to the page that an address is in.
pub(super) fn descend<T: Tables>(tables: &mut T, structure: &Structure, address: u64) -> Result<Path, Stop<T::Error>> {
    let (mut table, levels) = begin(structure)?;
    let mut path = Path { steps: Vec::with_capacity(levels.len()), rights: Rights::all(), address: 0, shift: 0 };
    for level in levels {
        let step = reference(tables, level, structure.format.entry_bytes, table, address)?;
        let decoded = decode(level, step.value, structure.limits);
        path.steps.push(step);
        match decoded {
            Decoded::NotPresent => return Err(Stop::NotPresent),
            Decoded::Malformed => return Err(Stop::Malformed),
            Decoded::Table(target) => {
                path.rights &= target.rights;
                table = target.base;
            }
            Decoded::Page(target) => return Ok(finish(path, level, target, address)),
        }
    }
    unreachable!("the last level of every format maps pages")
}

/// The first table to read, and the levels from there on.
fn begin<E>(structure: &Structure) -> Result<(u64, &'static [LevelFormat]), Stop<E>> {
    let levels = structure.format.levels;
    match structure.root {
        Root::Table(base) => Ok((base, levels)),
        Root::Register(entry) if entry & levels[0].layout.present == 0 => Err(Stop::NotPresent),
        Root::Register(entry) => Ok((entry & ENTRY_FRAME_MASK, &levels[1..])),
    }
}

fn reference<T: Tables>(
    tables: &mut T,
    level: &'static LevelFormat,
    bytes: usize,
    table: u64,
    address: u64,
) -> Result<Step, Stop<T::Error>> {
    let at = table.wrapping_add(level.index(address) * bytes as u64);
    let (hpa, value) = tables.read(at, bytes).map_err(Stop::Reference)?;
    Ok(Step { level, bytes, at, hpa, value })
}

fn finish(mut path: Path, level: &LevelFormat, target: Target, address: u64) -> Path {
    path.rights &= target.rights;
    path.address = target.base | (address & ((1 << level.shift) - 1));
    path.shift = level.shift;
    path
}

/// Sets the accessed flag of every entry used and, for a write, the dirty flag of the one that maps the page, root
/// first, writing only what changes (SDM 3A 4.8).
pub(super) fn mark_used<T: Tables>(tables: &mut T, path: &mut Path, kind: AccessKind) -> Result<(), T::Error> {
    let last = path.steps.len().wrapping_sub(1);
    for (index, step) in path.steps.iter_mut().enumerate() {
        let layout = step.level.layout;
        let dirty = if index == last && kind == AccessKind::Write { layout.dirty } else { 0 };
        if missing(step.value, layout.accessed | dirty) != 0 {
            let value = step.value | layout.accessed | dirty;
            tables.write_back(step, value)?;
            step.value = value;
        }
    }
    Ok(())
}

const fn missing(value: u64, flags: u64) -> u64 {
    flags & !value
}
