//! Exit codes of `rolecall`: one table.

use std::process::Termination;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitCode {
    /// All expectations hold.
    Ok = 0,
    /// A finding.
    Finding = 1,
    /// Bad usage or input.
    Usage = 2,
    /// An internal error.
    Internal = 3,
    /// Cannot be judged here; what `git bisect run` takes as "skip".
    Unjudged = 125,
}

/// Every exit code and what it means.
pub const TABLE: [(ExitCode, &str); 5] = [
    (ExitCode::Ok, "all expectations hold"),
    (ExitCode::Finding, "a finding: an expectation does not hold"),
    (ExitCode::Usage, "bad usage or input"),
    (ExitCode::Internal, "an internal error"),
    (ExitCode::Unjudged, "cannot be judged here (git bisect run skips it)"),
];

impl ExitCode {
    /// The number that the shell sees.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        std::process::ExitCode::from(self.number())
    }
}

/// The table as the end of `--help` shows it.
#[must_use]
pub fn help() -> String {
    let rows = TABLE.iter().map(|(code, meaning)| format!("  {:>3}  {meaning}\n", code.number()));
    format!("Exit codes:\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are a promise to scripts.
    #[test]
    fn numbers() {
        assert_eq!(TABLE.map(|(code, _)| code.number()), [0, 1, 2, 3, 125]);
    }
}
