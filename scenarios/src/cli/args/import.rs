//! Arguments of `import` (docs/import.md).

use super::Format;
use clap::Args;
use std::path::PathBuf;

/// `rolecall import`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ImportArgs {
    /// Text of `trace`, `trace_pipe` or `trace-cmd report -R`; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The point of history of the kernel that wrote it [default: any since v5.17]
    #[arg(long, value_name = "POINT")]
    pub at: Option<String>,
    /// Only this thread
    #[arg(long, value_name = "N")]
    pub pid: Option<u32>,
    /// Write the scenario's skeleton to this file, which must not exist [default: behind the audit]
    #[arg(short, long, value_name = "SCENARIO")]
    pub output: Option<PathBuf>,
    /// How the audit is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}
