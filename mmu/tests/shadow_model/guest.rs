//! A guest with two address spaces that share their leaf tables, and what its tables say at any time: a walk that knows
//! nothing of shadows (SDM 3A 4.3 to 4.6).

use crate::support::guest::{A, ALL, D, Layout, NX, P, RW, Space, US};
use crate::support::{Machine, RAM_FRAMES};

/// Directories of the two spaces, then the two leaf tables: all that the guest writes.
pub(crate) const TABLES: [u64; 4] = [0x102, 0x112, 0x130, 0x131];
/// A leaf table that maps [`TABLES`] and is never written.
const WINDOW: u64 = 0x132;
/// The directory entry that leads to it.
const WINDOW_SLOT: u64 = 8;
/// Directory entries in use.
pub(crate) const SLOTS: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) layout: Layout,
}

/// What the guest's tables give an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truth {
    pub(crate) gfn: u64,
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) execute: bool,
    /// Accessed, if all entries are, and dirty, if the last one is.
    pub(crate) flags: u64,
}

impl Model {
    const fn space(self) -> Space {
        Space::new(self.layout, 0)
    }

    /// Leaf entries in use: the first, the second and the last of a table.
    pub(crate) fn leaves(self) -> [u64; 3] {
        [0, 1, if self.layout == Layout::Legacy { 1023 } else { 511 }]
    }

    pub(crate) fn address(self, slot: u64, leaf: u64) -> u64 {
        slot << if self.layout == Layout::Legacy { 22 } else { 21 } | leaf << 12
    }

    /// Where the guest sees one of its tables.
    pub(crate) fn window(self, table: usize) -> u64 {
        self.address(WINDOW_SLOT, table as u64)
    }

    pub(crate) fn addresses(self) -> Vec<u64> {
        (0..SLOTS).flat_map(|slot| self.leaves().map(|leaf| self.address(slot, leaf))).collect()
    }

    pub(crate) const fn cr3(self, space: usize) -> u64 {
        if matches!(self.layout, Layout::Legacy) { TABLES[space] << 12 } else { (0x100 + 0x10 * space as u64) << 12 }
    }

    pub(crate) const fn bytes(self) -> usize {
        self.space().bytes()
    }

    /// The tables as they are before the first step: only the window is mapped.
    pub(crate) fn build(self, machine: &mut Machine) {
        let bytes = self.bytes();
        for (space, directory) in TABLES.into_iter().take(2).enumerate() {
            let top = self.cr3(space);
            match self.layout {
                Layout::Legacy => {}
                Layout::Pae => machine.write(top, directory << 12 | P, 8),
                Layout::Four | Layout::Ept => {
                    machine.write(top, (top + 0x1000) | ALL & !D, 8);
                    machine.write(top + 0x1000, directory << 12 | ALL & !D, 8);
                }
            }
            machine.write((directory << 12) + WINDOW_SLOT * bytes as u64, WINDOW << 12 | ALL & !D, bytes);
        }
        for (index, table) in TABLES.into_iter().enumerate() {
            machine.write((WINDOW << 12) + (index * bytes) as u64, table << 12 | ALL, bytes);
        }
    }

    /// The walk.
    pub(crate) fn truth(self, machine: &Machine, space: usize, address: u64) -> Option<Truth> {
        let walk = self.space();
        let mut table = self.cr3(space);
        let mut truth = Truth { gfn: 0, write: true, user: true, execute: true, flags: A };
        for level in (1..=walk.levels()).rev() {
            if table >> 12 >= RAM_FRAMES {
                return None;
            }
            let entry = machine.read(table + walk.offset(level, address), self.bytes());
            if entry & P == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if self.layout == Layout::Pae && level == 3 {
                continue;
            }
            truth.write &= entry & RW != 0;
            truth.user &= entry & US != 0;
            truth.execute &= entry & NX == 0;
            truth.flags = truth.flags & entry & A | entry & D;
        }
        Some(Truth { gfn: table >> 12, ..truth })
    }
}
