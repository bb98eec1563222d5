//! What memory held before: every value that a word took while the history was kept, so that it can be told which stale
//! paging-structure entries a processor may still have cached.
//!
//! Moments are numbered: a moment is the state between two numbered happenings, which are changes of a word and
//! whatever else asks for a number (invalidations, changes of context), of all processors in one order. Aligned words of
//! eight bytes change at once; a longer write changes its words in ascending order, each at a moment of its own.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A state of the machine between two happenings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment after.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A value and the moments at which memory held it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// The value.
    pub value: u64,
    /// The first moment.
    pub from: Moment,
    /// The first moment at which it is gone; for the present value the one after now.
    pub until: Moment,
}

/// Who looks at a history, and so keeps it from being forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Observer(usize);

/// The values of words over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    now: Moment,
    words: BTreeMap<u64, Vec<(Moment, u64)>>,
    /// The earliest moment that each observer still asks about.
    needed: Vec<Moment>,
}

impl History {
    /// The present moment.
    #[must_use]
    pub const fn now(&self) -> Moment {
        self.now
    }

    /// Something happens: the moment after it.
    pub const fn tick(&mut self) -> Moment {
        self.now = self.now.next();
        self.now
    }

    /// Another observer, who asks about nothing before now.
    pub fn observe(&mut self) -> Observer {
        self.needed.push(self.now);
        Observer(self.needed.len() - 1)
    }

    /// The observer asks about nothing before a moment any more.
    pub fn release(&mut self, observer: Observer, before: Moment) {
        if let Some(needed) = self.needed.get_mut(observer.0) {
            *needed = before.max(*needed);
        }
        let horizon = self.needed.iter().min().copied().unwrap_or(self.now);
        self.words.retain(|_, values| {
            let old = values.iter().skip(1).take_while(|(from, _)| *from <= horizon).count();
            values.drain(..old);
            values.len() > 1 || values[0].0 > horizon
        });
    }

    /// The word number `word` (address / 8) changed.
    pub(crate) fn changed(&mut self, word: u64, old: u64, new: u64) {
        if old != new {
            let at = self.tick();
            self.words.entry(word).or_insert_with(|| vec![(Moment(0), old)]).push((at, new));
        }
    }

    /// The values of a word, oldest first, the present one last.
    pub(crate) fn versions(&self, word: u64, present: u64) -> Vec<Version> {
        let end = self.now.next();
        let Some(values) = self.words.get(&word) else {
            return vec![Version { value: present, from: Moment(0), until: end }];
        };
        let ends = values.iter().skip(1).map(|(from, _)| *from).chain([end]);
        values.iter().zip(ends).map(|((from, value), until)| Version { value: *value, from: *from, until }).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::Hpa;
    use crate::memory::PhysMem;

    fn values(memory: &PhysMem, at: Hpa, bytes: usize) -> Vec<(u64, u64, u64)> {
        memory.versions(at, bytes).iter().map(|found| (found.value, found.from.0, found.until.0)).collect()
    }

    #[test]
    fn remembers_changes_and_nothing_else() {
        let mut memory = PhysMem::new(16);
        memory.write_u64(Hpa(0x1000), 1);
        assert_eq!(values(&memory, Hpa(0x1000), 8), [(1, 0, 1)]);
        let observer = memory.observe();
        memory.write_u64(Hpa(0x1000), 1);
        memory.write_u64(Hpa(0x1000), 2);
        memory.write_u32(Hpa(0x1004), 3);
        assert_eq!(values(&memory, Hpa(0x1000), 8), [(1, 0, 1), (2, 1, 2), (3 << 32 | 2, 2, 3)]);
        assert_eq!(values(&memory, Hpa(0x1004), 4), [(0, 0, 1), (0, 1, 2), (3, 2, 3)]);
        assert_eq!(values(&memory, Hpa(0x2000), 8), [(0, 0, 3)]);
        memory.release(observer, crate::history::Moment(1));
        assert_eq!(values(&memory, Hpa(0x1000), 8), [(2, 1, 2), (3 << 32 | 2, 2, 3)]);
    }

    #[test]
    fn a_cleared_frame_and_a_write_across_words_are_remembered() {
        let mut memory = PhysMem::new(16);
        memory.observe();
        memory.write_u64(Hpa(0x1ffc), u64::MAX);
        assert_eq!(values(&memory, Hpa(0x1ff8), 8), [(0, 0, 1), (0xffff_ffff << 32, 1, 3)]);
        assert_eq!(values(&memory, Hpa(0x2000), 8), [(0, 0, 2), (0xffff_ffff, 2, 3)]);
        memory.clear_frame(Hpa(0x2000).frame());
        assert_eq!(values(&memory, Hpa(0x2000), 8)[2], (0, 3, 4));
    }
}
