//! The `rolecall` command.

use scenarios::cli::{self, ExitCode};

/// Searches make and drop small parts of machines all the time; the system's allocator takes a third of their time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
