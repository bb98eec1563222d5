//! Budgets: bounds on what the hypervisor's counters may say at the end of a run, its set-up included, as
//! `replay --stats` prints them.
//!
//! | value | meaning |
//! |---|---|
//! | `3` | at most 3 |
//! | `"exactly 3"` | no more and no less |
//! | `"at least 3"` | no less |

use super::diagnostics::{Fault, quote};
use super::schema::Number;
use super::words::number;
use mmu::stats::Stat;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Short names of some counters, beside KVM's own.
const SHORT: [(&str, Stat); 8] = [
    ("remote_flushes", Stat::RemoteTlbFlush),
    ("tlb_flushes", Stat::TlbFlush),
    ("zapped_pages", Stat::ShadowZapped),
    ("new_pages", Stat::CacheMiss),
    ("emulated_writes", Stat::PteWrite),
    ("page_faults", Stat::PfTaken),
    ("unsync_pages", Stat::Unsync),
    ("nested_entries", Stat::NestedRun),
];

/// The counter of a name, KVM's own or a short one.
pub(crate) fn counter(name: &str) -> Option<Stat> {
    let short = SHORT.iter().find(|(short, _)| *short == name).map(|(_, stat)| *stat);
    short.or_else(|| Stat::ALL.iter().copied().find(|stat| stat.name() == name))
}

/// Every name of a counter.
pub(crate) fn names() -> impl Iterator<Item = &'static str> + Clone {
    SHORT.iter().map(|(short, _)| *short).chain(Stat::ALL.iter().map(|stat| stat.name()))
}

/// What a counter may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Bound {
    /// No more than this.
    AtMost(u64),
    /// This.
    Exactly(u64),
    /// No less than this.
    AtLeast(u64),
}

impl Bound {
    /// Whether a count is within the bound.
    #[must_use]
    pub const fn allows(self, count: u64) -> bool {
        match self {
            Self::AtMost(most) => count <= most,
            Self::Exactly(only) => count == only,
            Self::AtLeast(least) => count >= least,
        }
    }

    /// Reads a bound; faults are placed in its text.
    ///
    /// # Errors
    /// If it is none of the forms.
    pub(crate) fn parse(value: &Number) -> Result<Self, Fault> {
        let text = match value {
            Number::Integer(most) => return Ok(Self::AtMost(*most)),
            Number::Text(text) => text.trim(),
        };
        type Make = fn(u64) -> Bound;
        let forms: [(&str, Make); 4] =
            [("exactly ", Self::Exactly), ("at least ", Self::AtLeast), ("at most ", Self::AtMost), ("", Self::AtMost)];
        let parsed = forms.iter().find_map(|(form, make)| Some(make(number(text.strip_prefix(form)?.trim())?)));
        parsed.ok_or_else(|| {
            let help = "write 3 for at most 3, or \"exactly 3\", or \"at least 3\"";
            Fault::new(0..text.len(), format!("{} is no budget", quote(text)), help)
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::Exactly(only) => write!(f, "exactly {only}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let text = |text: &str| Bound::parse(&Number::Text(text.to_owned()));
        assert_eq!(Bound::parse(&Number::Integer(3)), Ok(Bound::AtMost(3)));
        assert_eq!(text("exactly 3"), Ok(Bound::Exactly(3)));
        assert_eq!(text(" at least 0x10"), Ok(Bound::AtLeast(16)));
        assert_eq!(text("at most 7"), Ok(Bound::AtMost(7)));
        assert_eq!(text("7"), Ok(Bound::AtMost(7)));
        for bad in ["", "some", "exactly", "exactly x", "at least -1", "about 3"] {
            assert!(text(bad).unwrap_err().message.contains("is no budget"), "{bad}");
        }
        for (bound, allowed) in [(Bound::AtMost(2), [true, true, false]), (Bound::Exactly(2), [false, true, false])] {
            assert_eq!([1, 2, 3].map(|count| bound.allows(count)), allowed);
        }
        assert_eq!([1, 2, 3].map(|count| Bound::AtLeast(2).allows(count)), [false, true, true]);
    }

    /// A name means one counter.
    #[test]
    fn names_are_distinct() {
        let all: Vec<&str> = names().collect();
        for (index, name) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(name), "{name} twice");
            assert!(counter(name).is_some());
        }
    }
}
