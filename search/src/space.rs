//! What is searched.

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

    /// Takes one step from a state: the digest of where it leads, where the player is then. None if it can't be taken
    /// there; why, is a note. `depth` is that of the state it leads to.
    fn take(
        &self,
        player: &mut Self::Player,
        from: &Self::State,
        depth: u32,
        step: u16,
        notes: &mut Vec<Self::Note>,
    ) -> Option<u64>;

    /// The state that the player is in after a step.
    fn keep(&self, player: &mut Self::Player) -> Self::State;

    /// What a state takes of memory until it is expanded, in bytes.
    fn weight(&self) -> u64 {
        size_of::<Self::State>() as u64
    }
}
