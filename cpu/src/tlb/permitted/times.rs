//! Sets of moments.

use sim_core::history::Moment;

/// A set of moments, as disjoint non-empty ranges in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Times(Vec<(Moment, Moment)>);

impl Times {
    /// The moments from one up to, but not including, another.
    pub(super) fn range(from: Moment, until: Moment) -> Self {
        Self(if from < until { vec![(from, until)] } else { Vec::new() })
    }

    pub(super) fn at(moment: Moment) -> Self {
        Self::range(moment, moment.next())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, moment: Moment) -> bool {
        self.0.iter().any(|(from, until)| *from <= moment && moment < *until)
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        for (from, until) in &self.0 {
            for (other_from, other_until) in &other.0 {
                let (from, until) = (*from.max(other_from), *until.min(other_until));
                if from < until {
                    both.push((from, until));
                }
            }
        }
        Self(both)
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        let mut all: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut merged: Vec<(Moment, Moment)> = Vec::new();
        for (from, until) in all {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(until),
                _ => merged.push((from, until)),
            }
        }
        Self(merged)
    }

    /// The moments at which something is still there that came at one of these, where `end` says when what came at a
    /// moment goes: the first moment of those given or of later ones at which it is gone.
    pub(super) fn lasting(&self, end: impl Fn(Moment) -> Moment) -> Self {
        let lasting = self.0.iter().map(|(from, until)| Self::range(*from, end(*until).max(*until)));
        lasting.fold(Self::default(), |all, range| all.or(&range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bits: u32) -> Times {
        let moments = (0..8).filter(|bit| bits >> bit & 1 == 1).map(|bit| Times::at(Moment(bit)));
        moments.fold(Times::default(), |all, one| all.or(&one))
    }

    fn bits(times: &Times) -> u32 {
        (0..16).filter(|bit| times.contains(Moment(*bit))).map(|bit| 1 << bit).sum()
    }

    /// Every pair of sets of eight moments against the same on bits.
    #[test]
    fn sets_are_sets() {
        for left in 0..256 {
            for right in 0..256 {
                assert_eq!(bits(&set(left).and(&set(right))), left & right);
                assert_eq!(bits(&set(left).or(&set(right))), left | right);
                assert_eq!(set(left).and(&set(right)).is_empty(), left & right == 0);
            }
        }
    }

    /// What comes at 1 or 4 and goes at 3 and 6.
    #[test]
    fn what_came_lasts_until_it_goes() {
        let end = |from: Moment| Moment([3, 3, 3, 3, 6, 6, 6, 9, 9][from.0 as usize]);
        assert_eq!(bits(&set(0b1_0010).lasting(end)), 0b11_0110);
    }
}
