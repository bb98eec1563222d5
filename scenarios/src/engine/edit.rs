//! Steps that edit page tables: which entry they mean, and the store that changes it. The engine keeps what it wrote, so
//! that later steps find their way through the tables; the bits that the processor sets are not in that copy.

use super::Engine;
use crate::file::{Action, EntryName, Mapping, Mode, Vendor};
use crate::image::layout::Seat;
use crate::image::tables::{Entry, NestedFormat};
use crate::snippet::{Code, Snippet};
use sim_core::{Gpa, SimError};

/// A store into tables: the bits of `keep` stay, those of `set` are added.
struct Edit {
    entry: Entry,
    keep: u64,
    set: u64,
}

fn unreached(what: &str) -> SimError {
    SimError::unmodelled(format!("{what}, which the tables do not reach"))
}

impl Engine<'_> {
    fn space(&self, name: &str) -> (NestedFormat, Gpa) {
        let mode = self.scenario.spaces.get(name).map_or(Mode::Long4, |space| space.mode);
        (NestedFormat::Paging(mode), Gpa(self.image.roots.get(name).copied().unwrap_or(0)))
    }

    /// The entry that a step names.
    pub(super) fn entry(&self, name: &EntryName) -> Result<Entry, SimError> {
        let (format, root) = self.space(&name.space);
        let entry = self.image.tables.locate(format, root, name.at, name.level);
        entry.ok_or_else(|| unreached(&format!("the entry {name}")))
    }

    /// The nested tables of a name in the format that L1 uses now.
    fn nested(&self, seat: Seat, name: &str) -> Result<(NestedFormat, Gpa), SimError> {
        let format = match self.run.vendor {
            Vendor::Intel => NestedFormat::Ept,
            Vendor::Amd => NestedFormat::Paging(self.chairs[usize::from(seat.vcpu)].l1_mode),
        };
        let root = self.image.nested_root(name, format);
        let root = root.ok_or_else(|| SimError::unmodelled(format!("nested tables {name} without nested paging")))?;
        Ok((format, root))
    }

    fn mapped(&self, (format, root): (NestedFormat, Gpa), mapping: &Mapping) -> Result<Edit, SimError> {
        let level = match (mapping.size.bytes().trailing_zeros(), format) {
            (12, _) => 1,
            (30, _) => 3,
            _ => 2,
        };
        let entry = self.image.tables.locate(format, root, mapping.from.0, level);
        let entry = entry.ok_or_else(|| unreached(&format!("the mapping {mapping}")))?;
        Ok(Edit { entry, keep: 0, set: format.leaf(mapping) })
    }

    fn unmapped(&self, (format, root): (NestedFormat, Gpa), at: u64) -> Result<Edit, SimError> {
        let entry = self.image.tables.leaf(format, root, at);
        let entry = entry.ok_or_else(|| unreached(&format!("the address {at:#x}")))?;
        Ok(Edit { entry, keep: 0, set: 0 })
    }

    /// The entries by which tables translate the address that a step names, those that it edits among them. A link makes
    /// a space go on in any other's tables.
    pub(super) fn entries_on_the_way(&self, action: &Action) -> Vec<Gpa> {
        let links = self.scenario.steps.iter().any(|step| matches!(step.action, Action::Link { .. }));
        let spaces = |own: &String| -> Vec<(NestedFormat, Gpa)> {
            let all = self.scenario.spaces.keys().filter(|name| links || *name == own);
            all.map(|name| self.space(name)).collect()
        };
        let nested = |tables: &String| self.image.nested.get(tables).cloned().unwrap_or_default();
        let (roots, at) = match action {
            Action::Map { space, mapping } => (spaces(space), mapping.from.0),
            Action::Unmap { space, at } => (spaces(space), *at),
            Action::SetEntry { entry, .. } | Action::Link { entry, .. } | Action::ReadEntry(entry) => {
                (spaces(&entry.space), entry.at)
            }
            Action::NestedMap { tables, mapping } => (nested(tables), mapping.from.0),
            Action::NestedUnmap { tables, at } => (nested(tables), *at),
            _ => return Vec::new(),
        };
        let entries = roots.into_iter().flat_map(|(format, root)| self.image.tables.descent(format, root, at));
        entries.map(|entry| entry.at).collect()
    }

    fn planned(&self, seat: Seat, action: &Action) -> Result<Edit, SimError> {
        Ok(match action {
            Action::Map { space, mapping } => self.mapped(self.space(space), mapping)?,
            Action::Unmap { space, at } => self.unmapped(self.space(space), *at)?,
            Action::NestedMap { tables, mapping } => {
                let (format, root) = self.nested(seat, tables)?;
                let edit = self.mapped((format, root), mapping)?;
                // Every access through nested page tables is a user access (APM2 15.25.5).
                let user = if format == NestedFormat::Ept { 0 } else { 1 << 2 };
                Edit { set: edit.set | user, ..edit }
            }
            Action::NestedUnmap { tables, at } => self.unmapped(self.nested(seat, tables)?, *at)?,
            Action::SetEntry { entry, bits } => {
                Edit { entry: self.entry(entry)?, keep: !(bits.set | bits.clear), set: bits.set }
            }
            Action::Link { entry, other } => {
                let there = self.entry(&EntryName { space: other.clone(), ..entry.clone() })?;
                Edit { entry: self.entry(entry)?, keep: 0, set: self.image.tables.value(there.at) }
            }
            other => return Err(SimError::internal(format!("{other} edits no tables"))),
        })
    }

    /// The code of a step that edits tables; what it writes is noted.
    pub(super) fn edit(&mut self, seat: Seat, action: &Action) -> Result<Code, SimError> {
        let Edit { entry, keep, set } = self.planned(seat, action)?;
        let value = self.image.tables.value(entry.at) & keep | set;
        self.image.tables.set(entry, value);
        Snippet::new(seat, self.mode_of(seat))?.edit(entry, keep, set)
    }
}
