//! What the silicon models, clause by clause of the manuals: the row type of the tables that `cpu`, `vmx` and `svm` keep
//! beside their code, and that `rolecall show fidelity` prints.

use std::fmt;

/// How far a clause is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grade {
    /// As the manual says, with a test.
    Modelled,
    /// With a difference that the note names.
    Simplified,
    /// Not at all; what needs it says so by name.
    NotModelled,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Modelled => "modelled",
            Self::Simplified => "simplified",
            Self::NotModelled => "not modelled",
        })
    }
}

/// One clause of a manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The manual and section, such as `SDM 3A 4.10.4.1` or `APM2 15.16`. SDM sections of volume 3C are numbered as in
    /// the editions up to 2023 (VM entries: chapter 26).
    pub section: &'static str,
    /// What the clause is about, in the manual's words where they are short.
    pub title: &'static str,
    /// How far it is modelled.
    pub grade: Grade,
    /// What differs or is missing, or where the code is: never empty unless modelled.
    pub note: &'static str,
}
