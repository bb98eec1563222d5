//! SMIs and RSM (APM2 15.22): an SMI that its guest does not intercept suspends the guest, so that SMM code runs in host
//! mode without nested paging, and RSM goes on with it.
//!
//! Left out: SMM_CTL, SMM lock, and what the save state tells of the guest (APM2 table 10-1, FED8h on): RSM goes on with
//! what the unit has kept.

use crate::unit::{Running, Svm};
use serde::{Deserialize, Serialize};

/// A guest that an SMI has suspended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Suspended(Running);

impl Svm {
    /// An SMI is about to be delivered.
    pub(crate) fn enter_smm(&mut self) {
        self.suspended = self.running.take().map(Suspended);
    }

    /// RSM is about to load the interrupted state.
    pub(crate) fn leave_smm(&mut self) {
        if let Some(Suspended(running)) = self.suspended.take() {
            self.running = Some(running);
        }
    }
}
