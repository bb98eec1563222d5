//! Guest page tables in guest memory: SDM 3A 4.3 to 4.5, and EPT tables, SDM 3C 28.3.2.

use super::Machine;

/// Present.
pub(crate) const P: u64 = 1;
/// Writable.
pub(crate) const RW: u64 = 2;
/// User.
pub(crate) const US: u64 = 4;
/// Accessed.
pub(crate) const A: u64 = 1 << 5;
/// Dirty.
pub(crate) const D: u64 = 1 << 6;
/// A large page.
pub(crate) const PS: u64 = 1 << 7;
/// Not executable.
pub(crate) const NX: u64 = 1 << 63;
/// Every permission, accessed and dirty.
pub(crate) const ALL: u64 = P | RW | US | A | D;
/// EPT: read, write, execute, write-back.
pub(crate) const EPT_ALL: u64 = 7 | 6 << 3;

/// How a guest's tables are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Four levels of 8-byte entries.
    Four,
    /// Four PDPTEs, then two levels of 8-byte entries.
    Pae,
    /// Two levels of 4-byte entries.
    Legacy,
    /// Four levels of EPT entries.
    Ept,
}

/// One address space, and where its next table goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) layout: Layout,
    /// The guest-physical address of the top table.
    pub(crate) root: u64,
    next: u64,
}

impl Space {
    /// A space whose tables are at guest frames from `gfn` on, the top table first.
    pub(crate) const fn new(layout: Layout, gfn: u64) -> Self {
        Self { layout, root: gfn << 12, next: gfn + 1 }
    }

    pub(crate) const fn levels(&self) -> u8 {
        match self.layout {
            Layout::Four | Layout::Ept => 4,
            Layout::Pae => 3,
            Layout::Legacy => 2,
        }
    }

    /// The bytes of an entry.
    pub(crate) const fn bytes(&self) -> usize {
        if matches!(self.layout, Layout::Legacy) { 4 } else { 8 }
    }

    /// The offset of an address's entry in its table of a level.
    pub(crate) const fn offset(&self, level: u8, address: u64) -> u64 {
        match self.layout {
            Layout::Legacy => (address >> (12 + 10 * (level - 1)) & 0x3ff) * 4,
            _ => (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8,
        }
    }

    /// What entries that lead to tables have.
    const fn table_flags(&self, level: u8) -> u64 {
        match (self.layout, level) {
            (Layout::Ept, _) => 7,
            (Layout::Pae, 3) => P,
            _ => P | RW | US,
        }
    }

    /// Where the entry of an address is at a level, making the tables above it.
    pub(crate) fn entry(&mut self, machine: &mut Machine, address: u64, at_level: u8) -> u64 {
        let mut table = self.root;
        let mut level = self.levels();
        while level > at_level {
            let at = table + self.offset(level, address);
            let mut entry = machine.read(at, self.bytes());
            if entry == 0 {
                entry = self.next << 12 | self.table_flags(level);
                self.next += 1;
                machine.write(at, entry, self.bytes());
            }
            table = entry & 0x000f_ffff_ffff_f000;
            level -= 1;
        }
        table + self.offset(level, address)
    }

    /// Maps a 4 KiB page: `leaf` is the whole entry.
    pub(crate) fn map(&mut self, machine: &mut Machine, address: u64, leaf: u64) {
        let at = self.entry(machine, address, 1);
        machine.write(at, leaf, self.bytes());
    }
}
