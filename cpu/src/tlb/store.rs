//! One array of a TLB or paging-structure cache: a fixed number of sets and ways, and an index beside the entries so that
//! a look-up touches only entries of one bucket.
//!
//! The sets are the architecture's (which entries compete for room), the buckets are ours. A hit changes nothing. Two
//! arrays are equal if they hold the same entries in the order of their insertion.

use crate::profile::CacheGeometry;
use sim_core::Ground;
use sim_core::choice::ChoicePoint;
use std::hash::{Hash, Hasher};

/// Where an entry belongs.
pub(super) trait Entry: Copy + PartialEq {
    /// The first address of its block.
    fn address(&self) -> u64;
    /// log2 of the bytes of its block.
    fn shift(&self) -> u32;
}

const NONE: u32 = u32::MAX;
const BUCKETS_MIN: u32 = 64;
/// Of an array without a limit.
const BUCKETS_UNBOUNDED: u32 = 1024;

#[derive(Clone, Debug)]
struct Slot<E> {
    /// Greater than that of every entry inserted before.
    stamp: u64,
    /// The next slot of the bucket.
    next: u32,
    entry: E,
}

/// An array.
#[derive(Clone, Debug)]
pub(super) struct Store<E> {
    geometry: &'static CacheGeometry,
    slots: Vec<Slot<E>>,
    /// The first slot of each bucket; empty until something is inserted.
    heads: Vec<u32>,
    /// Bit n: there may be entries of 2^n bytes.
    shifts: u64,
    stamp: u64,
}

impl<E: Entry> Store<E> {
    pub(super) const fn new(geometry: &'static CacheGeometry) -> Self {
        Self { geometry, slots: Vec::new(), heads: Vec::new(), shifts: 0, stamp: 0 }
    }

    pub(super) const fn geometry(&self) -> &'static CacheGeometry {
        self.geometry
    }

    /// Every entry, oldest first.
    pub(super) fn entries(&self) -> Vec<E> {
        let mut slots: Vec<_> = self.slots.iter().map(|slot| (slot.stamp, slot.entry)).collect();
        slots.sort_unstable_by_key(|(stamp, _)| *stamp);
        slots.into_iter().map(|(_, entry)| entry).collect()
    }

    /// An entry for an address that serves, of the smallest block.
    pub(super) fn find(&self, address: u64, serves: impl Fn(&E) -> bool) -> Option<&E> {
        let mut shifts = self.shifts;
        while shifts != 0 {
            let shift = shifts.trailing_zeros();
            shifts &= shifts - 1;
            let mut at = self.head(address >> shift);
            while let Some(slot) = self.slots.get(at as usize) {
                if slot.entry.shift() == shift && serves(&slot.entry) {
                    return Some(&slot.entry);
                }
                at = slot.next;
            }
        }
        None
    }

    /// Inserts an entry. Which one a full set gives up is open (SDM 3A 4.10.2.2): alternative 0 is the oldest.
    pub(super) fn insert(&mut self, ground: &mut Ground, entry: E) -> Option<E> {
        let members = self.competitors(&entry);
        if members.len() < self.geometry.ways as usize {
            self.push(entry);
            return None;
        }
        let index = if self.geometry.is_replacement_open {
            ground.choices.choose(ChoicePoint::TlbVictim, members.len() as u32)
        } else {
            0
        };
        let victim = members[index as usize].1;
        Some(self.replace(victim, entry))
    }

    /// Inserts an entry of a checkpoint, if it belongs here and there is room.
    pub(super) fn restore(&mut self, entry: E) {
        if self.geometry.shifts.contains(&entry.shift()) && self.competitors(&entry).len() < self.geometry.ways as usize
        {
            self.push(entry);
        }
    }

    /// Drops entries; says whether there were any.
    pub(super) fn drop_if(&mut self, is_dropped: impl Fn(&E) -> bool) -> bool {
        let before = self.slots.len();
        self.slots.retain(|slot| !is_dropped(&slot.entry));
        let is_changed = self.slots.len() != before;
        if is_changed {
            self.heads.fill(NONE);
            self.shifts = 0;
            (0..self.slots.len() as u32).for_each(|at| self.link(at));
        }
        is_changed
    }

    /// The slots of the set that an entry belongs to, oldest first.
    fn competitors(&self, entry: &E) -> Vec<(u64, u32)> {
        let sets = u64::from(self.geometry.sets);
        let set_of = |entry: &E| (entry.address() >> entry.shift()) & (sets - 1);
        let set = set_of(entry);
        if self.geometry.ways == u32::MAX {
            return Vec::new();
        }
        let slots = self.slots.iter().zip(0..).filter(|(slot, _)| set_of(&slot.entry) == set);
        let mut members: Vec<_> = slots.map(|(slot, at)| (slot.stamp, at)).collect();
        members.sort_unstable();
        members
    }

    fn push(&mut self, entry: E) {
        self.stamp += 1;
        self.slots.push(Slot { stamp: self.stamp, next: NONE, entry });
        self.link(self.slots.len() as u32 - 1);
    }

    fn replace(&mut self, at: u32, entry: E) -> E {
        self.unlink(at);
        self.stamp += 1;
        let slot = Slot { stamp: self.stamp, next: NONE, entry };
        let old = std::mem::replace(&mut self.slots[at as usize], slot);
        self.link(at);
        old.entry
    }

    const fn buckets(&self) -> u32 {
        match (self.geometry.ways, self.geometry.sets) {
            (u32::MAX, _) => BUCKETS_UNBOUNDED,
            (_, sets) if sets > BUCKETS_MIN => sets,
            _ => BUCKETS_MIN,
        }
    }

    const fn bucket(&self, block: u64) -> usize {
        (block & (self.buckets() as u64 - 1)) as usize
    }

    fn head(&self, block: u64) -> u32 {
        self.heads.get(self.bucket(block)).copied().unwrap_or(NONE)
    }

    fn link(&mut self, at: u32) {
        if self.heads.is_empty() {
            self.heads = vec![NONE; self.buckets() as usize];
        }
        let entry = self.slots[at as usize].entry;
        let bucket = self.bucket(entry.address() >> entry.shift());
        self.slots[at as usize].next = self.heads[bucket];
        self.heads[bucket] = at;
        self.shifts |= 1 << entry.shift();
    }

    fn unlink(&mut self, at: u32) {
        let gone = &self.slots[at as usize];
        let (next, bucket) = (gone.next, self.bucket(gone.entry.address() >> gone.entry.shift()));
        if self.heads[bucket] == at {
            self.heads[bucket] = next;
            return;
        }
        let mut before = self.heads[bucket];
        while let Some(slot) = self.slots.get_mut(before as usize) {
            if slot.next == at {
                slot.next = next;
                return;
            }
            before = slot.next;
        }
    }
}

impl<E: Entry> PartialEq for Store<E> {
    fn eq(&self, other: &Self) -> bool {
        self.geometry == other.geometry && self.entries() == other.entries()
    }
}

impl<E: Entry + Eq> Eq for Store<E> {}

impl<E: Entry + Hash> Hash for Store<E> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.entries().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Serves;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    struct Block(u64, u32);

    impl Entry for Block {
        fn address(&self) -> u64 {
            self.0
        }

        fn shift(&self) -> u32 {
            self.1
        }
    }

    static SMALL: CacheGeometry = CacheGeometry {
        name: "small",
        serves: Serves::All,
        level: 1,
        shifts: &[12, 21],
        sets: 4,
        ways: 2,
        is_replacement_open: false,
    };

    /// Against a plain list: four sets of two ways, oldest out, with drops in between.
    #[test]
    fn like_a_list() {
        let mut ground = Ground::new(1);
        let mut store: Store<Block> = Store::new(&SMALL);
        let mut list: Vec<Block> = Vec::new();
        let mut seed = 1_u64;
        for round in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let shift = if seed >> 63 == 1 { 21 } else { 12 };
            let entry = Block(((seed >> 40) % 24) << shift, shift);
            let set = |block: &Block| (block.0 >> block.1) % 4;
            if round % 50 == 49 {
                list.retain(|block| block.0 % 3 != 0);
                store.drop_if(|block| block.0 % 3 == 0);
            } else if store.find(entry.0, |block| block.0 == entry.0 && block.1 == shift).is_none() {
                if list.iter().filter(|block| set(block) == set(&entry)).count() == 2 {
                    let oldest = list.iter().position(|block| set(block) == set(&entry)).unwrap();
                    list.remove(oldest);
                }
                list.push(entry);
                store.insert(&mut ground, entry);
            }
            assert_eq!(store.entries(), list);
            let found = store.find(entry.0, |block| block.0 >> block.1 == entry.0 >> block.1);
            let expected =
                list.iter().filter(|block| block.0 >> block.1 == entry.0 >> block.1).min_by_key(|block| block.1);
            assert_eq!(found.map(|block| block.1), expected.map(|block| block.1));
        }
    }
}
