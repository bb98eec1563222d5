//! Tokens: the name of a random scenario, such as `r3-v6.14-amd-npt-0000002a`.
//!
//! | part | meaning |
//! |---|---|
//! | `r3` | the generator's version, which changes whenever a seed would give another scenario |
//! | `v6.14` | the point of history |
//! | `amd` | whose silicon |
//! | `npt` | two-dimensional paging in L0: `ept`, `npt`, or `shadow` for none |
//! | `0000002a` | the seed, in hexadecimal |

use crate::file::Vendor;
use std::fmt;
use std::str::FromStr;

/// The generator's version.
pub const VERSION: u32 = 3;

/// Two-dimensional paging in L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Paging {
    /// Shadow paging.
    Shadow,
    /// EPT or nested paging.
    TwoDimensional,
}

impl Paging {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Shadow, Self::TwoDimensional];
}

/// The name of a random scenario.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// The point of history.
    pub at: String,
    /// Whose silicon.
    pub vendor: Vendor,
    /// Two-dimensional paging in L0.
    pub paging: Paging,
    /// The seed.
    pub seed: u64,
}

const fn paging_name(vendor: Vendor, paging: Paging) -> &'static str {
    match (paging, vendor) {
        (Paging::Shadow, _) => "shadow",
        (Paging::TwoDimensional, Vendor::Intel) => "ept",
        (Paging::TwoDimensional, Vendor::Amd) => "npt",
    }
}

impl Token {
    /// The machine of the token in columns: vendor, and paging in L0.
    #[must_use]
    pub const fn machine(&self) -> (&'static str, &'static str) {
        (self.vendor.name(), paging_name(self.vendor, self.paging))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vendor, paging) = self.machine();
        write!(f, "r{VERSION}-{}-{vendor}-{paging}-{:08x}", self.at, self.seed)
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is no token: one is like r{VERSION}-v6.14-amd-npt-0000002a");
        let (version, rest) = text.strip_prefix('r').and_then(|rest| rest.split_once('-')).ok_or_else(form)?;
        let version: u32 = version.parse().map_err(|_| form())?;
        if version != VERSION {
            return Err(format!("{text:?} is of generator {version}; this is generator {VERSION}"));
        }
        // A point of history may have dashes in its name, the other parts have none.
        let mut parts = rest.rsplitn(4, '-');
        let (Some(seed), Some(paging), Some(vendor), Some(at)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        let seed = u64::from_str_radix(seed, 16).map_err(|_| form())?;
        let vendor = Vendor::ALL.into_iter().find(|known| known.name() == vendor).ok_or_else(form)?;
        let paging = Paging::ALL.into_iter().find(|known| paging_name(vendor, *known) == paging).ok_or_else(form)?;
        Ok(Self { at: at.to_owned(), vendor, paging, seed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_parse_as_they_print() {
        for text in ["r3-v6.14-amd-npt-0000002a", "r3-swap-only-intel-shadow-00000000", "r3-v5.17-intel-ept-123456789a"]
        {
            assert_eq!(text.parse::<Token>().unwrap().to_string(), text);
        }
        for text in ["", "r3", "r3-v6.14-amd-ept-0", "r3-amd-npt-2a", "r3-v6.14-amd-npt-xyz", "2-v6.14-amd-npt-2a"] {
            assert!(text.parse::<Token>().unwrap_err().contains("is no token"), "{text}");
        }
        assert!("r9-v6.14-amd-npt-2a".parse::<Token>().unwrap_err().contains("generator 9"));
    }
}
