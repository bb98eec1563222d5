//! The sections of the container tests, and the checkpoint whose bytes are kept in the repository.

use serde::{Deserialize, Serialize};
use snapshots::{Checkpoint, Kind, Origin, Section};
use std::collections::BTreeMap;

/// A saved state as small as one can be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Toy {
    pub(crate) rip: u64,
    pub(crate) stack: Vec<u8>,
}

impl Section for Toy {
    const KIND: Kind = Kind::new(*b"TOY0");
    const VERSION: u32 = 1;
}

/// The content of `compat/v1/minimal.rcsnap`. Version 1 is this for ever: do not change it, add a new fixture.
pub(crate) fn minimal() -> Checkpoint {
    let origin = Origin {
        writer: "0.1.0".into(),
        name: "min".into(),
        scenario: "vcpus = 1\n".into(),
        settings: BTreeMap::from([("at".into(), "v7.0".into())]),
        choices: vec![0, 1],
        steps: 2,
        state_digest: 0,
    };
    Checkpoint::of(&Toy { rip: 0xfff0, stack: vec![0xf4] }, origin).expect("both sections encode")
}
