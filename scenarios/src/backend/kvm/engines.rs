//! How a KVM runs guests, as its modules tell.

use crate::file::Vendor;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How this KVM runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engines {
    /// Everything runs on the processor, by VMX or SVM.
    Hardware(Vendor),
    /// The guest's kernel is emulated, and its user code runs on the processor (`kvm-pvm`).
    Split,
}

impl Engines {
    /// This machine's, as its modules tell.
    #[must_use]
    pub fn here() -> Self {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        if loaded("kvm_pvm") {
            Self::Split
        } else if loaded("kvm_amd") {
            Self::Hardware(Vendor::Amd)
        } else {
            Self::Hardware(Vendor::Intel)
        }
    }
}
