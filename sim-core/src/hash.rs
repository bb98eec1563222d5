//! The state hash: 64 bits of XXH3 over a value's `Hash` stream, the same on every machine and in every build.
//!
//! Integers are fed as little-endian bytes and `usize` as 64 bits, so neither the host's byte order nor its word size
//! reaches the result.

use std::hash::{Hash, Hasher};
use xxhash_rust::xxh3::Xxh3;

/// A [`Hasher`] whose result depends on nothing but what is fed to it.
#[derive(Default)]
pub struct StateHasher(Xxh3);

macro_rules! little_endian {
    ($($method:ident: $type:ty),* $(,)?) => {
        $(fn $method(&mut self, value: $type) {
            self.0.update(&value.to_le_bytes());
        })*
    };
}

impl Hasher for StateHasher {
    fn finish(&self) -> u64 {
        self.0.digest()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    little_endian! {
        write_u8: u8, write_u16: u16, write_u32: u32, write_u64: u64, write_u128: u128,
        write_i8: i8, write_i16: i16, write_i32: i32, write_i64: i64, write_i128: i128,
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_i64(value as i64);
    }
}

/// The state hash of one value.
#[must_use]
pub fn digest<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = StateHasher::default();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of this value changes every recorded hash: it must be deliberate.
    #[test]
    fn the_stream_is_pinned() {
        assert_eq!(digest(&(1u8, 2u64, 3usize)), 0x5fcda6413fb3eb19);
        assert_ne!(digest(&1u32), digest(&1u64));
    }
}
