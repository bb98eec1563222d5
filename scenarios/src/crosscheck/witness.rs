//! Who carries out a step on a real KVM. A KVM that runs guests without hardware's help emulates the guest's kernel and lets
//! only its user code run on the processor.

use crate::backend::kvm::Engines;
use crate::file::{Action, Actor, Privilege, Step};

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

impl Engines {
    /// Who carries a step out.
    #[must_use]
    pub const fn witness(self, step: &Step) -> Witness {
        match (self, step.actor, &step.action) {
            (_, Actor::Host, _) => Witness::Host,
            (Self::Hardware(_), _, _)
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
