//! SMIs and RSM under the default treatment (SDM 3C 34.14): an SMI leaves VMX operation for system-management mode, and RSM
//! goes back to where it came from, into a guest too.
//!
//! Left out: dual-monitor treatment (no SMM-transfer monitor can be activated: IA32_VMX_BASIC bit 49 is 0), and CR4.VMXE,
//! which the CPU saves and clears with the rest of CR4.

use crate::guest::GuestMode;
use crate::unit::{Operation, Vmx};
use serde::{Deserialize, Serialize};

/// VMX operation as an SMI found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Interrupted {
    operation: Operation,
    guest: GuestMode,
}

impl Vmx {
    /// An SMI is about to be delivered.
    pub(crate) fn enter_smm(&mut self) {
        if self.interrupted.is_none() {
            self.interrupted = Some(Interrupted { operation: self.operation, guest: self.guest });
            self.operation = Operation::Off;
            self.guest = GuestMode::default();
        }
    }

    /// RSM is about to load the interrupted state.
    pub(crate) fn leave_smm(&mut self) {
        if let Some(Interrupted { operation, guest }) = self.interrupted.take() {
            self.operation = operation;
            self.guest = guest;
        }
    }
}
