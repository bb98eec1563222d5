//! Arguments of the commands that take scenarios on a real KVM (docs/kvm.md, docs/rig.md).

use super::{MOST_SCENARIOS, OnOff, VendorName};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `rolecall crosscheck`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CrosscheckArgs {
    /// Scenario files, or directories of them
    #[arg(required_unless_present_any = ["random", "recorded"], value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// Instead of running anything, judge what `rig --keep` wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["paths", "random"])]
    pub recorded: Option<PathBuf>,
    /// Instead of files, this many random scenarios of each kind
    #[arg(long, value_name = "N", conflicts_with = "paths", value_parser = clap::value_parser!(u64).range(1..=MOST_SCENARIOS))]
    pub random: Option<u64>,
    /// The first seed; seeds follow each other
    #[arg(long, value_name = "S", default_value_t = 0, requires = "random")]
    pub seed: u64,
    /// Let the model make a mistake, to see whether the comparison notices (can be repeated)
    #[arg(long, value_name = "MISTAKE")]
    pub plant: Vec<String>,
    /// Print the random scenarios instead of running them
    #[arg(long, requires = "random")]
    pub print: bool,
}

/// `rolecall rig`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RigArgs {
    /// Scenario files, or directories of them: their runs of this vendor
    #[arg(required_unless_present = "random", value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// Whose silicon
    #[arg(long, value_enum)]
    pub vendor: VendorName,
    /// On what: Bochs has both vendors' silicon, QEMU has AMD's, quicker and less exact
    #[arg(long, value_enum, default_value = "bochs")]
    pub emulator: EmulatorName,
    /// Two-dimensional paging in the rig's KVM
    #[arg(long, value_enum)]
    pub tdp: OnOff,
    /// The kernel
    #[arg(long, value_enum)]
    pub kernel: KernelName,
    /// Instead of files, this many random scenarios
    #[arg(long, value_name = "N", conflicts_with = "paths", value_parser = clap::value_parser!(u64).range(1..=MOST_SCENARIOS))]
    pub random: Option<u64>,
    /// The first seed; seeds follow each other
    #[arg(long, value_name = "S", default_value_t = 0, requires = "random")]
    pub seed: u64,
    /// Where rig/setup.sh has put everything
    #[arg(long, value_name = "DIR", default_value = "target/rig")]
    pub dir: PathBuf,
    /// Write what came back to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub keep: Option<PathBuf>,
}

/// What the kernel of a rig tells its first program.
#[cfg(feature = "kvm")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct RigInitArgs {
    /// Whose module to load
    #[arg(long, value_enum)]
    pub vendor: VendorName,
    /// Two-dimensional paging in its KVM
    #[arg(long, value_enum)]
    pub tdp: OnOff,
}

/// An emulator of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EmulatorName {
    /// Bochs.
    Bochs,
    /// QEMU's TCG.
    Qemu,
}

/// A kernel that Debian ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelName {
    /// Of bookworm.
    #[value(name = "6.1")]
    V6_1,
    /// Of bookworm-backports.
    #[value(name = "6.12")]
    V6_12,
}

impl KernelName {
    /// Its folder.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}
