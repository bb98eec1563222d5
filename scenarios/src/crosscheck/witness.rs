//! Who carries out a step on a real KVM. A KVM that runs guests without hardware's help emulates the guest's kernel and lets
//! only its user code run on the processor.

use crate::file::{Action, Actor, Privilege, Step};
use std::path::Path;

/// Who carried a step out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Witness {
    /// The processor, on page tables that the kernel made.
    Processor,
    /// The kernel's instruction emulator, by walking the guest's tables.
    Emulator,
    /// The host.
    Host,
}

impl Witness {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Emulator => "emulator",
            Self::Host => "host",
        }
    }
}

/// How this KVM runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engines {
    /// Everything runs on the processor, by VMX or SVM.
    Hardware,
    /// The guest's kernel is emulated, and its user code runs on the processor (`kvm-pvm`).
    Split,
}

impl Engines {
    /// This machine's, as its modules tell.
    #[must_use]
    pub fn here() -> Self {
        if Path::new("/sys/module/kvm_pvm").exists() { Self::Split } else { Self::Hardware }
    }

    /// Who carries a step out.
    #[must_use]
    pub const fn witness(self, step: &Step) -> Witness {
        match (self, step.actor, &step.action) {
            (_, Actor::Host, _) => Witness::Host,
            (Self::Hardware, _, _)
            | (
                Self::Split,
                _,
                Action::Read { user: Privilege::User, .. }
                | Action::Write { user: Privilege::User, .. }
                | Action::Exec { user: Privilege::User, .. },
            ) => Witness::Processor,
            (Self::Split, _, _) => Witness::Emulator,
        }
    }
}
