//! What real hardware leaves open, as numbered choices: recorded, replayable, enumerable.
//!
//! Whoever meets an open point asks [`Choices::choose`] for one of `n` alternatives. The answer comes from the script
//! while it lasts and is alternative 0 after that; both question and answer are recorded. A run is therefore a pure
//! function of its scenario and its script, and the record of one run is the script that repeats it.

use serde::{Deserialize, Serialize};

/// Where a choice was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ChoicePoint {
    /// Which entry a full TLB gives up (SDM 3A 4.10.2.2: replacement is not architectural).
    TlbVictim,
    /// Which vCPU runs next.
    Schedule,
    /// Which permitted translation an access uses; alternative 0 is the freshest (SDM 3A 4.10.2.3, 4.10.3).
    Translation,
}

/// One answered question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Choice {
    /// What was open.
    pub point: ChoicePoint,
    /// How many alternatives there were.
    pub of: u32,
    /// The alternative taken, below `of`.
    pub taken: u32,
}

/// The oracle for open points of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Choices {
    script: Vec<u32>,
    taken: Vec<Choice>,
}

impl Choices {
    /// An oracle that answers from `script`, then always takes alternative 0.
    #[must_use]
    pub const fn scripted(script: Vec<u32>) -> Self {
        Self { script, taken: Vec::new() }
    }

    /// Takes one of `of` alternatives. A scripted answer beyond the last alternative means the last one, so that a
    /// script cut from another run still replays.
    pub fn choose(&mut self, point: ChoicePoint, of: u32) -> u32 {
        let scripted = self.script.get(self.taken.len()).copied().unwrap_or(0);
        let taken = scripted.min(of.saturating_sub(1));
        self.taken.push(Choice { point, of, taken });
        taken
    }

    /// Every question answered so far, in order.
    #[must_use]
    pub fn taken(&self) -> &[Choice] {
        &self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_replays_itself() {
        let mut first = Choices::scripted(vec![2, 9]);
        let answers: Vec<_> = [3, 4, 5].map(|of| first.choose(ChoicePoint::TlbVictim, of)).into();
        assert_eq!(answers, [2, 3, 0]);
        let mut again = Choices::scripted(first.taken().iter().map(|choice| choice.taken).collect());
        let repeated: Vec<_> = [3, 4, 5].map(|of| again.choose(ChoicePoint::TlbVictim, of)).into();
        assert_eq!(answers, repeated);
    }
}
