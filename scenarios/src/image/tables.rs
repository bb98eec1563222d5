//! Guest page tables: one root an address space, and L1's identity tables for nested paging.
//!
//! Every space maps the engine's first 2 MiB onto itself, 4 KiB at a time, then what its `map` says; a mapping inside
//! the first 2 MiB replaces the engine's.

use super::layout::{ENGINE_END, Seat, TABLES};
use crate::file::{Mapping, Mode, Right, Space};
use sim_core::addr::PAGE_BYTES;
use sim_core::{Gpa, Gva, SimError};
use std::collections::BTreeMap;
use std::sync::Arc;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// Memory for tables, and what was written there: value and bytes of each entry.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    used: u64,
    entries: Arc<BTreeMap<Gpa, (u64, usize)>>,
    /// What steps wrote, so that a copy of the tables need not copy what the image put there.
    edited: BTreeMap<Gpa, (u64, usize)>,
}

/// The shape of a mode's tables: index bits and shift of each level from the root, and bytes an entry.
struct Shape {
    levels: &'static [(u32, u32)],
    bytes: usize,
}

const fn shape(mode: Mode) -> Shape {
    const LONG4: &[(u32, u32)] = &[(9, 39), (9, 30), (9, 21), (9, 12)];
    const LONG5: &[(u32, u32)] = &[(9, 48), (9, 39), (9, 30), (9, 21), (9, 12)];
    const PAE: &[(u32, u32)] = &[(2, 30), (9, 21), (9, 12)];
    const LEGACY: &[(u32, u32)] = &[(10, 22), (10, 12)];
    match mode {
        Mode::Long5 => Shape { levels: LONG5, bytes: 8 },
        Mode::Pae => Shape { levels: PAE, bytes: 8 },
        Mode::Legacy32 => Shape { levels: LEGACY, bytes: 4 },
        Mode::Real | Mode::Flat32 | Mode::Long4 => Shape { levels: LONG4, bytes: 8 },
    }
}

impl Tables {
    /// What the image put there, table by table: each up to its last entry.
    #[must_use]
    pub fn contents(&self) -> Vec<(Gpa, Vec<u8>)> {
        let mut tables: Vec<(Gpa, Vec<u8>)> = Vec::new();
        for (at, (value, bytes)) in self.entries.iter() {
            let (table, within) = (at.frame().base(), at.page_offset() as usize);
            if tables.last().is_none_or(|(last, _)| *last != table) {
                tables.push((table, Vec::with_capacity(PAGE_BYTES as usize)));
            }
            if let Some((_, content)) = tables.last_mut() {
                content.resize(within, 0);
                content.extend(&value.to_le_bytes()[..*bytes]);
            }
        }
        tables
    }

    /// The value of an entry as the image put it there; 0 if it did not.
    #[must_use]
    pub fn first_value(&self, at: Gpa) -> u64 {
        self.entries.get(&at).map_or(0, |(value, _)| *value)
    }

    /// The value of an entry as it was last written here; 0 if it never was.
    #[must_use]
    pub fn value(&self, at: Gpa) -> u64 {
        self.edited.get(&at).or_else(|| self.entries.get(&at)).map_or(0, |(value, _)| *value)
    }

    /// The entries that steps have made other than the image had them.
    pub fn edits(&self) -> impl Iterator<Item = (Gpa, u64)> {
        let edited = self.edited.iter().map(|(at, (value, _))| (*at, *value));
        edited.filter(|(at, value)| self.first_value(*at) != *value)
    }

    /// Notes what a step wrote.
    pub fn set(&mut self, entry: Entry, value: u64) {
        self.edited.insert(entry.at, (value, entry.bytes));
    }

    /// The entry of a level that translates an address; 1 is the page table. None where the tables do not reach it.
    #[must_use]
    pub fn locate(&self, format: NestedFormat, root: Gpa, address: u64, level: u8) -> Option<Entry> {
        self.descent(format, root, address).into_iter().find(|entry| entry.level == level)
    }

    /// The entry that maps an address: the last that a walk reads.
    #[must_use]
    pub fn leaf(&self, format: NestedFormat, root: Gpa, address: u64) -> Option<Entry> {
        self.descent(format, root, address).pop()
    }

    /// The entries that a walk reads, root first.
    #[must_use]
    pub fn descent(&self, format: NestedFormat, root: Gpa, address: u64) -> Vec<Entry> {
        let Shape { levels, bytes } = shape(format.mode());
        let mut table = Gpa(root.0 & sim_core::addr::ENTRY_FRAME_MASK);
        let mut walked = Vec::new();
        for (index, (index_bits, shift)) in levels.iter().enumerate() {
            let at = table.offset((address >> shift & ((1 << index_bits) - 1)) * bytes as u64);
            walked.push(Entry { at, bytes, level: (levels.len() - index) as u8 });
            let entry = self.value(at);
            if entry == 0 || (*shift > 12 && entry & LARGE != 0) {
                break;
            }
            table = Gpa(entry & sim_core::addr::ENTRY_FRAME_MASK);
        }
        walked
    }

    fn put(&mut self, at: Gpa, value: u64, bytes: usize) {
        Arc::make_mut(&mut self.entries).insert(at, (value, bytes));
    }

    fn page(&mut self) -> Result<Gpa, SimError> {
        let at = TABLES.offset(self.used * PAGE_BYTES);
        self.used += 1;
        if at.0 >= ENGINE_END {
            return Err(SimError::unmodelled("more page tables than fit below 2 MiB"));
        }
        Ok(at)
    }

    /// Builds the tables of an address space and gives their root, 0 for a mode without paging.
    ///
    /// # Errors
    /// If the tables do not fit.
    pub fn space(&mut self, space: &Space) -> Result<Gpa, SimError> {
        if !space.mode.has_paging() {
            return Ok(Gpa(0));
        }
        let root = self.page()?;
        for page in (0..ENGINE_END).step_by(PAGE_BYTES as usize) {
            let user = if Seat::is_user_page(Gpa(page)) { USER } else { 0 };
            self.map(space.mode, root, Gva(page), Gpa(page), 12, WRITE | user)?;
        }
        for mapping in &space.map {
            self.map(space.mode, root, mapping.from, mapping.to, mapping.size.bytes().trailing_zeros(), bits(mapping))?;
        }
        Ok(root)
    }

    /// Builds L1's nested tables: guest memory and the slots beside it onto themselves, everything allowed. The format
    /// is the paging format of a mode, or EPT.
    ///
    /// # Errors
    /// If the tables do not fit.
    pub fn nested(&mut self, format: NestedFormat, memory: u64, slots: &[Gpa]) -> Result<Gpa, SimError> {
        let root = self.page()?;
        let mode = format.mode();
        let large = if mode == Mode::Legacy32 { 1u64 << 22 } else { 1 << 21 };
        let bits = match format {
            NestedFormat::Ept => EPT_WRITE_BACK,
            NestedFormat::Paging(_) => WRITE | USER,
        };
        let fine = large.max(ENGINE_END);
        for page in (0..fine).step_by(PAGE_BYTES as usize) {
            self.descend(mode, format, root, (Gva(page), Gpa(page)), 12, bits)?;
        }
        for page in (fine..memory).step_by(large as usize).chain(slots.iter().map(|slot| slot.0 & !(large - 1))) {
            self.descend(mode, format, root, (Gva(page), Gpa(page)), large.trailing_zeros(), bits)?;
        }
        Ok(root)
    }

    fn map(&mut self, mode: Mode, root: Gpa, from: Gva, to: Gpa, size: u32, bits: u64) -> Result<(), SimError> {
        self.descend(mode, NestedFormat::Paging(mode), root, (from, to), size, bits)
    }

    fn descend(
        &mut self,
        mode: Mode,
        format: NestedFormat,
        root: Gpa,
        (from, to): (Gva, Gpa),
        size: u32,
        bits: u64,
    ) -> Result<(), SimError> {
        let Shape { levels, bytes } = shape(mode);
        let mut table = root;
        for (depth, (index_bits, shift)) in levels.iter().enumerate() {
            let index = from.0 >> shift & ((1 << index_bits) - 1);
            let at = table.offset(index * bytes as u64);
            if *shift == size {
                let large = if size > 12 { LARGE } else { 0 };
                self.put(at, to.0 | bits | large | format.present(), bytes);
                return Ok(());
            }
            let entry = match self.entries.get(&at) {
                Some((entry, _)) if entry & LARGE == 0 => *entry,
                _ => {
                    // A PDPTE of PAE paging has no permission bits (SDM 3A table 4-8).
                    let pdpte = mode == Mode::Pae && depth == 0;
                    let allowed = if pdpte { format.present() } else { format.table() };
                    let entry = self.page()?.0 | allowed;
                    self.put(at, entry, bytes);
                    entry
                }
            };
            table = Gpa(entry & sim_core::addr::ENTRY_FRAME_MASK);
        }
        Err(SimError::internal("a page size that the mode does not have"))
    }
}

/// One entry of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub at: Gpa,
    /// Its bytes: 4 or 8.
    pub bytes: usize,
    /// Its level: 1 is the page table.
    pub level: u8,
}

/// Read, write and execute in an EPT entry (SDM 3C table 28-1).
const EPT_ALL: u64 = 7;
/// Write-back memory type in an EPT leaf.
const EPT_WRITE_BACK: u64 = 6 << 3;

/// The format of L1's nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFormat {
    /// EPT.
    Ept,
    /// The paging format of L1's own mode (APM2 15.25).
    Paging(Mode),
}

impl NestedFormat {
    /// The mode with the same shape of tables.
    const fn mode(self) -> Mode {
        match self {
            Self::Ept => Mode::Long4,
            Self::Paging(mode) => mode,
        }
    }

    /// The leaf entry of a mapping.
    #[must_use]
    pub fn leaf(self, mapping: &Mapping) -> u64 {
        let large = if mapping.size == crate::file::PageSize::Size4K { 0 } else { LARGE };
        let rights = match self {
            Self::Paging(_) => bits(mapping) | PRESENT,
            Self::Ept => {
                let write = if mapping.rights.has(Right::Write) { 2 } else { 0 };
                let execute = if mapping.rights.has(Right::Execute) { 4 } else { 0 };
                EPT_WRITE_BACK | execute | write | 1
            }
        };
        mapping.to.0 | rights | large
    }

    const fn present(self) -> u64 {
        match self {
            Self::Ept => EPT_ALL,
            Self::Paging(_) => PRESENT,
        }
    }

    const fn table(self) -> u64 {
        match self {
            Self::Ept => EPT_ALL,
            Self::Paging(_) => PRESENT | WRITE | USER,
        }
    }
}

fn bits(mapping: &Mapping) -> u64 {
    let bit = |right: Right, bit: u64| if mapping.rights.has(right) { bit } else { 0 };
    let execute = if mapping.rights.has(Right::Execute) { 0 } else { NO_EXECUTE };
    bit(Right::Write, WRITE) | bit(Right::User, USER) | bit(Right::Global, GLOBAL) | execute
}
