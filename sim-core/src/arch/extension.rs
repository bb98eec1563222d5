//! The two virtualization extensions of x86.

use serde::{Deserialize, Serialize};
use std::fmt;

/// VMX or SVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Extension {
    /// Intel VMX (SDM 3C).
    Vmx,
    /// AMD SVM (APM2 chapter 15).
    Svm,
}

impl fmt::Display for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
        })
    }
}
