//! The digests of the states that were visited: open addressing with linear probing, in parts that threads fill at once.
//!
//! A part is chosen by the upper bits of a digest and a place in it by the lower ones; digests must be well mixed. A part
//! that is three quarters full doubles, so that a digest takes 11 to 22 bytes.

/// Parts of the table, a power of two.
pub(crate) const PARTS: usize = 64;
/// Places of a part at first, a power of two.
const FIRST: usize = 16;

/// One part. No digest is 0.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    places: Vec<u64>,
    used: usize,
}

impl Part {
    fn new() -> Self {
        Self { places: vec![0; FIRST], used: 0 }
    }

    /// Where a digest is, or the empty place where it belongs.
    fn place(&self, digest: u64) -> usize {
        let mask = self.places.len() - 1;
        let mut at = digest as usize & mask;
        while self.places[at] != 0 && self.places[at] != digest {
            at = (at + 1) & mask;
        }
        at
    }

    fn contains(&self, digest: u64) -> bool {
        self.places[self.place(digest)] == digest
    }

    /// Puts a digest in. False if it was there.
    pub(crate) fn insert(&mut self, digest: u64) -> bool {
        let digest = nonzero(digest);
        let at = self.place(digest);
        if self.places[at] == digest {
            return false;
        }
        self.places[at] = digest;
        self.used += 1;
        if self.used * 4 > self.places.len() * 3 {
            self.grow();
        }
        true
    }

    fn grow(&mut self) {
        let places = vec![0; self.places.len() * 2];
        for digest in std::mem::replace(&mut self.places, places) {
            if digest != 0 {
                let at = self.place(digest);
                self.places[at] = digest;
            }
        }
    }
}

/// An empty place is 0, so that digest shares a name with the next one.
const fn nonzero(digest: u64) -> u64 {
    if digest == 0 { 1 } else { digest }
}

/// The part that a digest belongs to.
#[must_use]
pub(crate) const fn part_of(digest: u64) -> usize {
    (digest >> (u64::BITS - PARTS.trailing_zeros())) as usize
}

/// A set of digests.
#[derive(Clone, Debug)]
pub struct Visited {
    parts: Vec<Part>,
}

impl Default for Visited {
    fn default() -> Self {
        Self { parts: vec![Part::new(); PARTS] }
    }
}

impl Visited {
    /// Whether a digest is there.
    #[must_use]
    pub fn contains(&self, digest: u64) -> bool {
        self.parts[part_of(digest)].contains(nonzero(digest))
    }

    /// Puts a digest in. False if it was there.
    pub fn insert(&mut self, digest: u64) -> bool {
        self.parts[part_of(digest)].insert(digest)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.used).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, ascending.
    #[must_use]
    pub fn sorted(&self) -> Vec<u64> {
        let mut all: Vec<u64> =
            self.parts.iter().flat_map(|part| &part.places).copied().filter(|digest| *digest != 0).collect();
        all.sort_unstable();
        all
    }

    /// What it takes of memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| (part.places.capacity() * size_of::<u64>()) as u64).sum()
    }

    pub(crate) fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts
    }
}

impl FromIterator<u64> for Visited {
    fn from_iter<I: IntoIterator<Item = u64>>(digests: I) -> Self {
        let mut visited = Self::default();
        for digest in digests {
            visited.insert(digest);
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A bijection that mixes well (the finalizer of splitmix64).
    fn mixed(number: u64) -> u64 {
        let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    #[test]
    fn like_an_ordered_set() {
        let (mut visited, mut set) = (Visited::default(), BTreeSet::new());
        for number in 0..200_000 {
            let digest = mixed(number * number % 150_001);
            assert_eq!(visited.insert(digest), set.insert(nonzero(digest)), "{number}");
        }
        assert_eq!(visited.len(), set.len());
        assert!(visited.sorted().into_iter().eq(set.iter().copied()));
        assert!(set.iter().all(|digest| visited.contains(*digest)));
        assert!((200_000..300_000).all(|number| set.contains(&mixed(number)) == visited.contains(mixed(number))));
        let bytes = visited.bytes() / visited.len() as u64;
        assert!(bytes <= 24, "{bytes} bytes a digest");
    }

    /// Digests that all want one place still find one, and 0 is a digest like any other.
    #[test]
    fn crowded() {
        let mut visited = Visited::default();
        for number in 0..100 {
            assert!(visited.insert(number << 32), "{number}");
            assert!(!visited.insert(number << 32), "{number}");
        }
        assert!(visited.contains(0) && visited.len() == 100);
    }
}
