//! The walk engine that all tables share: it goes down the levels of a format until it meets a page or a reason to
//! stop, and afterwards sets the accessed and dirty flags of what it used (SDM 3A 4.3 to 4.5, 4.8; SDM 3C 28.2.2,
//! 28.2.4).
//!
//! It decides nothing about permissions; it only collects the rights along the path. Where the tables live, and so
//! what a reference to them takes, is the business of [`Tables`].
//!
//! A flag is set by a locked update of the entry as it was read (SDM 3A 8.1.2.1): if the entry holds something else by
//! then, the walk starts again. Nothing more is said about order than that every accessed flag is set before the
//! translation is cached (SDM 3A 4.10.2.3); here the flags of upper levels are set first, and only once the whole walk
//! has found a page and allowed the access.

use super::entry::{Decoded, Rights, Target, decode};
use super::format::{Format, LevelFormat, Limits};
use sim_core::addr::ENTRY_FRAME_MASK;
use sim_core::arch::access::AccessKind;
use sim_core::{Hpa, SimError};

/// The memory that holds a stage's tables.
pub(super) trait Tables {
    /// Why a reference can fail.
    type Error;

    /// Reads the entry at an address of the stage's own output space.
    fn read(&mut self, at: u64, bytes: usize) -> Result<(Hpa, u64), Self::Error>;

    /// Replaces an entry by one with flags set, if it still holds what was read.
    fn update(&mut self, step: &Step, value: u64) -> Result<Update, Self::Error>;
}

/// What became of a locked update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    /// The flags are set.
    Done,
    /// The entry had changed since it was read.
    Changed,
}

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// At the format's first level, in this table.
    Table(u64),
    /// Below the format's first level: this is the entry, from a PDPTE register that was checked when it was loaded.
    Register(u64),
    /// Below the entry for a block of this size, at what a paging-structure cache keeps of it.
    Cached(CachedStep),
}

/// What is left of the entries that a walk used so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CachedStep {
    /// log2 of the bytes that the last of them translates.
    pub(crate) shift: u32,
    /// The table that it refers to.
    pub(crate) base: u64,
    /// What all of them allow.
    pub(crate) rights: Rights,
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

/// Tables above the last one, in the deepest format.
const UPPER_MAX: usize = 4;

/// The entries that refer to tables, root first, of a walk under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Upper {
    steps: [Option<Step>; UPPER_MAX],
    count: usize,
}

impl Upper {
    fn push(&mut self, step: Step) {
        if let Some(slot) = self.steps.get_mut(self.count) {
            *slot = Some(step);
            self.count += 1;
        }
    }
}

/// A walk that reached a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// The entries that refer to tables.
    pub(super) upper: Upper,
    /// The entry that maps the page.
    pub(super) leaf: Step,
    /// What all of them allow.
    pub(super) rights: Rights,
    /// The translated address.
    pub(super) address: u64,
    /// log2 of the page's bytes.
    pub(super) shift: u32,
}

/// Why a walk reached no page.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop<E> {
    /// This entry is not present.
    NotPresent(u64),
    /// An entry is malformed.
    Malformed,
    /// A reference failed.
    Reference(E),
}

impl Path {
    /// Whether the page's dirty flag is set, or there is none to set.
    pub(super) const fn is_dirty(&self) -> bool {
        missing(self.leaf.value, self.leaf.level.layout.dirty) == 0
    }

    /// Whether the page is marked global.
    pub(super) const fn is_global(&self) -> bool {
        self.leaf.value & self.leaf.level.layout.global != 0
    }

    /// Whether an access has flags to set.
    pub(super) fn lacks_marks(&self, kind: AccessKind) -> bool {
        let lacks_accessed = |step: &Step| missing(step.value, step.level.layout.accessed) != 0;
        missing(self.leaf.value, leaf_marks(&self.leaf, kind)) != 0
            || self.upper.steps.iter().flatten().any(lacks_accessed)
    }
}

/// Goes from the root to the page that an address is in.
pub(super) fn descend<T: Tables>(tables: &mut T, structure: &Structure, address: u64) -> Result<Path, Stop<T::Error>> {
    let (mut table, levels) = begin(structure)?;
    let mut upper = Upper::default();
    let mut rights = structure.root.rights();
    for level in levels {
        let step = reference(tables, level, structure.format.entry_bytes, table, address)?;
        match decode(level, step.value, structure.limits) {
            Decoded::NotPresent => return Err(Stop::NotPresent(step.value)),
            Decoded::Malformed => return Err(Stop::Malformed),
            Decoded::Table(target) => {
                rights &= target.rights;
                table = target.base;
                upper.push(step);
            }
            Decoded::Page(target) => return Ok(finish(upper, step, rights, target, address)),
        }
    }
    unreachable!("the last level of every format maps pages")
}

/// The first table to read, and the levels from there on.
fn begin<E>(structure: &Structure) -> Result<(u64, &'static [LevelFormat]), Stop<E>> {
    let levels = structure.format.levels;
    match structure.root {
        Root::Table(base) => Ok((base, levels)),
        Root::Register(entry) if entry & levels[0].layout.present == 0 => Err(Stop::NotPresent(entry)),
        Root::Register(entry) => Ok((entry & ENTRY_FRAME_MASK, &levels[1..])),
        Root::Cached(step) => {
            let used = levels.iter().take_while(|level| level.shift >= step.shift).count();
            Ok((step.base, &levels[used..]))
        }
    }
}

impl Root {
    const fn rights(&self) -> Rights {
        match self {
            Self::Table(_) | Self::Register(_) => Rights::all(),
            Self::Cached(step) => step.rights,
        }
    }
}

/// What a paging-structure cache may keep of a walk whose accessed flags are set (SDM 3A 4.10.3.1).
pub(super) fn cacheable(structure: &Structure, path: &Path) -> impl Iterator<Item = CachedStep> + use<> {
    let (limits, mut rights) = (structure.limits, structure.root.rights());
    path.upper.steps.into_iter().flatten().filter_map(move |step| match decode(step.level, step.value, limits) {
        Decoded::Table(target) => {
            rights &= target.rights;
            Some(CachedStep { shift: step.level.shift, base: target.base, rights })
        }
        Decoded::NotPresent | Decoded::Malformed | Decoded::Page(_) => None,
    })
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

/// What the tables above a page and the entry that maps it allow together. A page is a shadow stack by its own entry,
/// below tables that are all writable.
pub(crate) fn page_rights(above: Rights, level: &LevelFormat, entry: u64, own: Rights) -> Rights {
    let mut rights = above & own;
    rights.set(Rights::SHADOW_STACK, above.contains(Rights::WRITE) && level.layout.shadow_stack.marks(entry));
    rights
}

fn finish(upper: Upper, leaf: Step, above: Rights, target: Target, address: u64) -> Path {
    let level = leaf.level;
    let rights = page_rights(above, level, leaf.value, target.rights);
    let address = target.base | (address & ((1 << level.shift) - 1));
    Path { upper, leaf, rights, address, shift: level.shift }
}

/// Sets the accessed flag of every entry used and, for a write, the dirty flag of the one that maps the page, root
/// first, writing only what changes (SDM 3A 4.8).
pub(super) fn mark_used<T: Tables>(tables: &mut T, path: &mut Path, kind: AccessKind) -> Result<Update, T::Error> {
    for step in path.upper.steps.iter_mut().flatten() {
        if mark(tables, step, step.level.layout.accessed)? == Update::Changed {
            return Ok(Update::Changed);
        }
    }
    let marks = leaf_marks(&path.leaf, kind);
    mark(tables, &mut path.leaf, marks)
}

fn mark<T: Tables>(tables: &mut T, step: &mut Step, marks: u64) -> Result<Update, T::Error> {
    if missing(step.value, marks) == 0 {
        return Ok(Update::Done);
    }
    let value = step.value | marks;
    let update = tables.update(step, value)?;
    if update == Update::Done {
        step.value = value;
    }
    Ok(update)
}

const fn leaf_marks(leaf: &Step, kind: AccessKind) -> u64 {
    let layout = leaf.level.layout;
    match kind {
        AccessKind::Write => layout.accessed | layout.dirty,
        AccessKind::Read | AccessKind::Fetch => layout.accessed,
    }
}

const fn missing(value: u64, flags: u64) -> u64 {
    flags & !value
}

/// How often a walk is begun again. Each time some entry has changed, and one walk sets finitely many flags; only tables
/// that overlap with a page-modification log can change without end.
const ATTEMPTS_MAX: u32 = 2048;

/// Makes attempts until one is not disturbed.
pub(super) fn until_undisturbed<T, E: From<SimError>>(
    mut attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<T, E> {
    for _ in 0..ATTEMPTS_MAX {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
    }
    Err(SimError::unmodelled("paging structures that change under every attempt to walk them").into())
}
