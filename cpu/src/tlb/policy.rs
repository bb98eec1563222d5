//! Which of the translations that the architecture permits an access uses.

use serde::{Deserialize, Serialize};

/// How a processor answers what the architecture leaves open about cached translations (SDM 3A 4.10.2.3, 4.10.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TlbPolicy {
    /// Every access walks the tables anew, as if nothing were cached.
    Freshest,
    /// The modelled TLB and paging-structure caches answer.
    #[default]
    Concrete,
    /// Every access asks for one of the permitted translations, and the choice is recorded.
    Adversarial,
}
