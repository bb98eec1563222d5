//! The `rolecall` command.

use scenarios::cli::{self, ExitCode};

fn main() -> ExitCode {
    cli::main()
}
