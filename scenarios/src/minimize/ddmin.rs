//! Delta debugging: the `ddmin` algorithm of Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input"
//! (IEEE TSE 28(2), 2002), section 3.2.
//!
//! Its answer is 1-minimal: nothing can be taken out alone. Whether it is the smallest of all is not known.

use sim_core::SimError;

/// A list with as much taken out as `still` permits, which is asked about what is left and is taken to hold for all of
/// `parts`.
///
/// # Errors
/// What `still` fails with.
pub fn ddmin<P: Clone>(
    parts: Vec<P>,
    mut still: impl FnMut(&[P]) -> Result<bool, SimError>,
) -> Result<Vec<P>, SimError> {
    let mut parts = parts;
    // Often nothing of all this is needed.
    if parts.is_empty() || still(&[])? {
        return Ok(Vec::new());
    }
    let mut chunks = 2;
    while parts.len() > 1 {
        match smaller(&parts, chunks, &mut still)? {
            Some((less, at)) => (parts, chunks) = (less, at),
            None if chunks >= parts.len() => break,
            None => chunks = (chunks * 2).min(parts.len()),
        }
    }
    Ok(parts)
}

/// The first chunk, or the first rest without a chunk, that will do, and into how many chunks it is cut next.
fn smaller<P: Clone>(
    parts: &[P],
    chunks: usize,
    still: &mut impl FnMut(&[P]) -> Result<bool, SimError>,
) -> Result<Option<(Vec<P>, usize)>, SimError> {
    let size = parts.len().div_ceil(chunks);
    // With two chunks each is the rest of the other; alone they are tried only where they are larger than one part, for
    // single parts seldom do.
    if size > 1 {
        for chunk in parts.chunks(size) {
            if still(chunk)? {
                return Ok(Some((chunk.to_vec(), 2)));
            }
        }
    }
    let count = parts.len().div_ceil(size);
    for skipped in (0..count).filter(|_| count > 2 || size == 1) {
        let left = parts.chunks(size).enumerate().filter(|(index, _)| *index != skipped);
        let rest: Vec<P> = left.flat_map(|(_, chunk)| chunk.to_vec()).collect();
        if still(&rest)? {
            return Ok(Some((rest, (chunks - 1).max(2))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn minimal(count: u32, needed: &BTreeSet<u32>) -> (Vec<u32>, usize) {
        let mut tried = 0;
        let left = ddmin((0..count).collect(), |parts: &[u32]| {
            tried += 1;
            Ok(needed.iter().all(|one| parts.contains(one)))
        });
        (left.expect("nothing fails"), tried)
    }

    proptest! {
        /// Where exactly some parts are needed, exactly they are left, in order.
        #[test]
        fn finds_what_is_needed(count in 1_u32..80, needed in proptest::collection::btree_set(0_u32..80, 0..6)) {
            let needed: BTreeSet<u32> = needed.into_iter().filter(|one| *one < count).collect();
            let (left, _) = minimal(count, &needed);
            prop_assert_eq!(left, needed.into_iter().collect::<Vec<_>>());
        }

        /// Whatever is asked, nothing that is left can go alone.
        #[test]
        fn is_minimal(count in 2_usize..40, modulus in 2_usize..7) {
            let still = |parts: &[usize]| parts.len() % modulus == count % modulus && !parts.is_empty();
            let left = ddmin((0..count).collect(), |parts: &[usize]| Ok(still(parts))).expect("nothing fails");
            for gone in 0..left.len() {
                let mut rest = left.clone();
                rest.remove(gone);
                prop_assert!(!still(&rest));
            }
        }
    }

    #[test]
    fn tries_few() {
        let (left, tried) = minimal(64, &BTreeSet::from([9, 50]));
        assert_eq!(left, [9, 50]);
        assert!(tried < 64, "{tried}");
    }
}
