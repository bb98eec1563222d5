//! A value that copies share until one of them changes it, with its digest once somebody asked. What a search copies at every
//! step and a step seldom touches is kept so.

use sim_core::hash;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// A shared value.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared<T>(Arc<Inner<T>>);

#[derive(Clone, Debug, Default)]
struct Inner<T> {
    value: T,
    digest: OnceLock<u64>,
}

impl<T> Shared<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new(Inner { value, digest: OnceLock::new() }))
    }
}

impl<T: Clone> Shared<T> {
    /// The value of this copy alone, to change.
    pub(super) fn change(&mut self) -> &mut T {
        let inner = Arc::make_mut(&mut self.0);
        inner.digest = OnceLock::new();
        &mut inner.value
    }
}

impl<T: Hash> Shared<T> {
    fn digest(&self) -> u64 {
        *self.0.digest.get_or_init(|| hash::digest(&self.0.value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_stays_with_its_copy() {
        let first = Shared::new(vec![1, 2]);
        let digest = hash::digest(&first);
        let mut second = first.clone();
        assert_eq!(hash::digest(&second), digest);
        second.change().push(3);
        assert_eq!((&*first, &*second), (&vec![1, 2], &vec![1, 2, 3]));
        assert_eq!(hash::digest(&first), digest);
        assert_ne!(hash::digest(&second), digest);
    }
}
