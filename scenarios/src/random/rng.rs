//! The generator's random numbers: xoshiro256** seeded by splitmix64 (Blackman and Vigna, public domain). A token names
//! a scenario for ever, so the sequence must never change, and no crate is asked for it.

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut mixed = seed;
        let state = [(); 4].map(|()| {
            mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { state }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number below `end`, which is not 0. The bias of a 64-bit remainder is too small to matter here.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// True in `of` cases out of `out_of`.
    pub fn chance(&mut self, of: u64, out_of: u64) -> bool {
        self.below(out_of) < of
    }

    /// One of some values; none of none.
    pub fn one<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let index = self.below(all.len() as u64) as usize;
        all.get(index)
    }

    /// One of some values, by their weights; none if all weights are 0.
    pub fn weighted<'a, T>(&mut self, all: &'a [T], weight: impl Fn(&T) -> u64) -> Option<&'a T> {
        let total: u64 = all.iter().map(&weight).sum();
        let mut left = self.below(total);
        all.iter().find(|value| {
            let own = weight(value);
            let found = left < own;
            left = left.wrapping_sub(if found { 0 } else { own });
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sequence is a promise: these are the reference implementation's numbers for the seeds 0 and 42.
    #[test]
    fn the_sequence_stays() {
        let mut rng = Rng::new(0);
        assert_eq!(
            [rng.number(), rng.number(), rng.number()],
            [0x99ec_5f36_cb75_f2b4, 0xbf6e_1f78_4956_452a, 0x1a5f_849d_4933_e6e0]
        );
    }

    #[test]
    fn weights_are_kept() {
        let mut rng = Rng::new(7);
        let mut counts = [0u32; 3];
        for _ in 0..4000 {
            let index = *rng.weighted(&[0usize, 1, 2], |index| [3, 0, 1][*index]).unwrap();
            counts[index] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((2800..3200).contains(&counts[0]), "{counts:?}");
        assert_eq!(rng.weighted(&[0usize], |_| 0), None);
    }
}
