//! Where KVM is known to show a guest something else than bare silicon does, to this day: named, not hidden.

use crate::file::{Mode, Observation, RunConfig};
use sim_core::arch::exception::Vector;

/// A step that shows something else on bare silicon.
pub(super) struct Situation<'a> {
    /// The run.
    pub(super) run: &'a RunConfig,
    /// The mode of the code that took the step.
    pub(super) mode: Mode,
    /// What it showed.
    pub(super) seen: &'a Observation,
    /// What it shows on bare silicon.
    pub(super) bare: &'a Observation,
}

/// One row: the difference's name, and whether a step is a case of it.
struct Known {
    name: &'static str,
    is: fn(&Situation<'_>) -> bool,
}

/// Every known difference.
const KNOWN: [Known; 1] = [Known { name: "fetch-bit-without-pae", is: fetch_bit_without_pae }];

/// The name of the known difference that a step is a case of.
pub(super) fn name(situation: &Situation<'_>) -> Option<&'static str> {
    KNOWN.iter().find(|known| (known.is)(situation)).map(|known| known.name)
}

/// `FNAME(walk_addr_generic)` sets the fetch bit of an error code if EFER.NXE or CR4.SMEP is set; processors ask for
/// CR4.PAE beside EFER.NXE (SDM 3A 4.7). 32-bit paging without SMEP shows it. v5.17 to v6.14 at least.
fn fetch_bit_without_pae(situation: &Situation<'_>) -> bool {
    const FETCH: u32 = 1 << 4;
    let Situation { run, mode, seen: Observation::Exception(seen), bare: Observation::Exception(bare) } = situation
    else {
        return false;
    };
    let codes = seen.error.unwrap_or_default() ^ bare.error.unwrap_or_default();
    !run.tdp
        && *mode == Mode::Legacy32
        && (seen.vector, bare.vector) == (Vector::PageFault, Vector::PageFault)
        && seen.cr2 == bare.cr2
        && codes == FETCH
        && seen.error.is_some_and(|code| code & FETCH != 0)
}
