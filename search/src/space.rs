//! What is searched.

use crate::tree::Move;

/// A space of states. Nothing in it may depend on the order in which threads ask.
pub trait Space: Sync {
    /// A state that is still to be expanded.
    type State: Send + Sync;
    /// What takes steps: a machine, with whatever it needs again and again. Each thread has its own.
    type Player: Send;
    /// What a step shows beside where it leads.
    type Note: Send;
    /// Why a player can't be had.
    type Error: Send;

    /// States that are expanded between two looks at what was visited before. The more, the less threads wait for each
    /// other, and the more states are there at once.
    const BATCH: usize;

    /// How many steps there are. They are numbered from 0.
    fn steps(&self) -> u16;

    /// A player.
    ///
    /// # Errors
    /// If there can't be one.
    fn player(&self) -> Result<Self::Player, Self::Error>;

    /// The first state and its digest.
    ///
    /// # Errors
    /// If there is none.
    fn start(&self, player: &mut Self::Player) -> Result<(u64, Self::State), Self::Error>;

    /// Takes one move from a state: the digest of where it leads, where the player is then. None if it can't be taken
    /// there; why, is a note. `depth` is that of the state it leads to. The ways of a step are asked for one after the
    /// other, from 0, each of the same player and from the same state.
    fn take(
        &self,
        player: &mut Self::Player,
        from: &Self::State,
        depth: u32,
        by: Move,
        notes: &mut Vec<Self::Note>,
    ) -> Option<u64>;

    /// Whether the step that the player was asked for last has a further way, taken or not.
    fn has_more(&self, _player: &Self::Player) -> bool {
        false
    }

    /// The move that is asked for after one, from the same state.
    fn after(&self, player: &Self::Player, Move { step, way }: Move) -> Option<Move> {
        let next = way.checked_add(1).filter(|_| self.has_more(player)).map(|way| Move { step, way });
        next.or_else(|| Some(Move::of(step + 1)).filter(|next| next.step < self.steps()))
    }

    /// Takes one move out of turn: the ways before it come first.
    fn take_alone(&self, player: &mut Self::Player, from: &Self::State, depth: u32, by: Move) -> Option<u64> {
        let mut notes = Vec::new();
        for way in 0..by.way {
            self.take(player, from, depth, Move { way, ..by }, &mut notes);
            if !self.has_more(player) {
                return None;
            }
        }
        self.take(player, from, depth, by, &mut notes)
    }

    /// The state that the player is in after a step.
    fn keep(&self, player: &mut Self::Player) -> Self::State;

    /// What a state takes of memory until it is expanded, in bytes.
    fn weight(&self) -> u64 {
        size_of::<Self::State>() as u64
    }
}
