//! The command line, as clap reads it.

mod import;
mod kvm;

pub use import::ImportArgs;
#[cfg(feature = "kvm")]
pub use kvm::RigInitArgs;
pub use kvm::{CrosscheckArgs, EmulatorName, KernelName, RigArgs};

use super::exit_code;
use crate::file::Vendor;
use crate::random::Token;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Threads that `--jobs` may ask for.
const MOST_JOBS: i64 = 256;
/// States that `explore` may be asked for: they are numbered in 32 bits.
const MOST_STATES: usize = 1_000_000_000;
/// Scenarios that `random` may be asked for at once: their results are kept until the end.
const MOST_SCENARIOS: u64 = 10_000_000;

/// Litmus tests for nested MMUs: replays orderings of nested VM entries, exits and CR3 loads, and audits the roles and
/// roots of a hypervisor's MMU.
#[derive(Clone, Debug, Parser)]
#[command(name = "rolecall", version, after_help = exit_code::help(), arg_required_else_help = true)]
pub struct CommandLine {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run scenarios and compare them with their expectations
    Replay(ReplayArgs),
    /// Read scenarios and say what is wrong with them, without running anything
    Check(CheckArgs),
    /// Find the change that flips a scenario's verdict
    Bisect(BisectArgs),
    /// Find the first event at which two runs of a scenario differ
    Divergence(DivergenceArgs),
    /// Find the smallest scenario with the same finding
    Minimize(MinimizeArgs),
    /// Try every order of some commits: in which is every kernel on the way sound?
    Orders(OrdersArgs),
    /// Replay the library of real bugs, and find the commit that mended each
    History(HistoryArgs),
    /// Take the steps of a scenario in every order, each as often as it comes, to a depth: what do the audits find?
    Explore(ExploreArgs),
    /// Run random scenarios and judge every audit and transparency; a failure prints a token that replays it
    Random(RandomArgs),
    /// Let the hypervisor make each planted mistake in turn: do the scenarios notice?
    Plants(PlantsArgs),
    /// Take scenarios on this machine's own KVM, and compare what they show with silicon (cargo feature kvm)
    Crosscheck(CrosscheckArgs),
    /// Take scenarios on the KVM of a stock kernel, on an emulated processor (cargo feature kvm, rig/setup.sh)
    Rig(RigArgs),
    /// The first program inside a rig
    #[cfg(feature = "kvm")]
    #[command(hide = true)]
    RigInit(RigInitArgs),
    /// Audit the roles in a trace of a kernel's kvmmmu events, and make the skeleton of a scenario of it
    Import(ImportArgs),
    /// List what the model knows
    Show(ShowArgs),
    /// Print the JSON Schema of scenario files, for editors
    Schema,
}

/// What the hypervisor is like, whatever the matrix says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct KernelArgs {
    /// Run at this point of history, whatever the matrix says
    #[arg(long, value_name = "POINT")]
    pub at: Option<String>,
    /// Switch a change on (can be repeated)
    #[arg(long, value_name = "CHANGE")]
    pub with: Vec<String>,
    /// Switch a change off (can be repeated)
    #[arg(long, value_name = "CHANGE")]
    pub without: Vec<String>,
    /// Let the hypervisor make a mistake, to see whether anything notices (can be repeated)
    #[arg(long, value_name = "MISTAKE")]
    pub plant: Vec<String>,
}

/// `rolecall replay`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ReplayArgs {
    /// Scenario files, or directories of them
    #[arg(required_unless_present = "token", value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// The random scenario of a token that `random` printed (can be repeated)
    #[arg(long, value_name = "TOKEN")]
    pub token: Vec<Token>,
    /// Which kernel
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Where the scenarios run [default: sim]
    #[arg(long, value_enum)]
    pub backend: Option<BackendName>,
    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print the transition log of every run
    #[arg(long)]
    pub log: bool,
    /// Print what each step shows there and on bare silicon, side by side
    #[arg(long, conflicts_with_all = ["format", "log"])]
    pub side_by_side: bool,
    /// Write what the MMU did in the words of KVM's kvmmmu trace events to this file
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// What else is printed of every run (can be repeated)
    #[arg(long, value_enum, value_name = "WHAT")]
    pub report: Vec<Report>,
    /// Only the run with this number, from 1 in the matrix's order
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub run: Option<u32>,
    /// Take these steps in this order, by number from 1 in the file's order, as `explore` prints them: 11.3.6, or 11.3/0,1
    /// where the silicon chooses
    #[arg(long, value_name = "N.N...", value_parser = steps)]
    pub steps: Option<Steps>,
    /// Threads; the results do not depend on it [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_JOBS))]
    pub jobs: Option<u16>,
}

/// What else `replay` can print of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Report {
    /// The counters, under KVM's names.
    Stats,
    /// Each flush, whether an audit needed it, and why.
    OverFlush,
}

/// Where scenarios run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The silicon alone: what a guest must observe.
    Bare,
    /// The silicon with the hypervisor model as L0.
    Sim,
    /// A real KVM.
    Kvm,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Text,
    /// One JSON document for programs.
    Json,
}

/// `rolecall check`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// Scenario files, or directories of them
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
}

/// `rolecall bisect`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct BisectArgs {
    /// The scenario file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// A point of history where the scenario is fine [default: the oldest]
    #[arg(long, value_name = "POINT")]
    pub good: Option<String>,
    /// A point of history where it is not [default: the newest]
    #[arg(long, value_name = "POINT")]
    pub bad: Option<String>,
    /// Which runs: a selector such as 'vendor = "amd", tdp = false' [default: all]
    #[arg(long, value_name = "SELECTOR")]
    pub run: Option<String>,
    /// Which failure: words of its description, such as root-role or transparency [default: the most telling one]
    #[arg(long, value_name = "WORDS")]
    pub finding: Option<String>,
    /// Over the steps of the first run that fails, at --bad if given: which it can't do without, which must keep their order
    #[arg(long, conflicts_with_all = ["good", "switches"])]
    pub steps: bool,
    /// Over its configuration: which parameter of the matrix, the machine or the guests makes it fail
    #[arg(long, conflicts_with = "good")]
    pub switches: bool,
    /// The run that passes, for --switches: a selector [default: the first of the matrix]
    #[arg(long, value_name = "SELECTOR", requires = "switches")]
    pub against: Option<String>,
}

/// `rolecall divergence`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    after_help = "Exit codes:\n    0  the runs are the same\n    1  they differ\n    2  bad usage or input\n    3  an internal error\n    125  cannot be judged here\n"
)]
pub struct DivergenceArgs {
    /// The scenario file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The run that both sides start from: a selector such as 'vendor = "amd", tdp = false' [default: the first]
    #[arg(long, value_name = "SELECTOR")]
    pub run: Option<String>,
    /// What the first side changes: vendor, tdp, nested-tdp, vpid, at, with, without, plant, order and backend, as in
    /// 'at = "v5.17", with = ["d2e5f3334169"]' [default: nothing]
    #[arg(long, value_name = "CHANGES", required_unless_present = "b")]
    pub a: Option<String>,
    /// What the second side changes, such as 'backend = "bare"' [default: nothing]
    #[arg(long, value_name = "CHANGES")]
    pub b: Option<String>,
    /// Compare only what steps show
    #[arg(long)]
    pub observations: bool,
    /// How many of the events before are printed
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub context: u16,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `rolecall minimize`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct MinimizeArgs {
    /// The scenario file
    #[arg(value_name = "FILE", required_unless_present = "token")]
    pub file: Option<PathBuf>,
    /// The random scenario of a token that `random` printed
    #[arg(long, value_name = "TOKEN", conflicts_with = "file")]
    pub token: Option<Token>,
    /// Which runs: a selector such as 'vendor = "amd", tdp = false' [default: the first with a finding]
    #[arg(long, value_name = "SELECTOR")]
    pub run: Option<String>,
    /// Which finding: words of its description, such as root-role or transparency [default: the first]
    #[arg(long, value_name = "WORDS")]
    pub finding: Option<String>,
    /// Which kernel
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Write the scenario to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `orders`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct OrdersArgs {
    /// Scenario files, or directories of them.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// The point of history that the commits go on top of.
    #[arg(long, value_name = "POINT", default_value = "v5.17")]
    pub base: String,
    /// The commits; without it, the four that reworked the root cache in v5.18.
    #[arg(long, value_name = "CHANGE", value_delimiter = ',',
          default_values = ["594bef793108", "5499ea73e7db", "3cffc89d9d07", "d2e5f3334169"])]
    pub changes: Vec<String>,
}

/// How the library of real bugs is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HistoryFormat {
    /// Lines for people.
    #[default]
    Text,
    /// The table of `docs/bugs.md`.
    Markdown,
}

/// `rolecall history`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct HistoryArgs {
    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: HistoryFormat,
    /// Scenario files that name a bug, or directories of them
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// Threads; the results do not depend on it [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_JOBS))]
    pub jobs: Option<u16>,
}

/// `rolecall explore`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ExploreArgs {
    /// The scenario file: its steps are the alphabet
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The longest ordering, in steps [default: 4; with --permute or --interleave, all steps]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub depth: Option<u32>,
    /// How many states there may be
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = states)]
    pub states: usize,
    /// How much memory the states may take, such as 512M or 4G: 19 to 38 bytes each, and 32 KB while it is to be
    /// expanded; the last batch may go beyond it
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = memory)]
    pub memory: u64,
    /// Stop after so many seconds. What was found by then depends on the machine; --save makes it possible to go on
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub time: Option<u64>,
    /// Take each step at most once
    #[arg(long, conflicts_with = "interleave")]
    pub permute: bool,
    /// Take each step at most once, and those of each vCPU, and of the host, in the order of the file
    #[arg(long)]
    pub interleave: bool,
    /// Let the silicon use any translation that the architecture permits, at each step: every way is followed
    #[arg(long)]
    pub choices: bool,
    /// Who shares the search
    #[cfg(feature = "timely")]
    #[command(flatten)]
    pub shards: ShardArgs,
    /// Write each ordering that shows a finding as a scenario file into this directory
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Keep the search in this file after each level, and go on with the one that is in it
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Which kernel
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Which runs: a selector such as 'vendor = "amd", tdp = false' [default: all]
    #[arg(long, value_name = "SELECTOR")]
    pub run: Option<String>,
    /// Threads; the results do not depend on it [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_JOBS))]
    pub jobs: Option<u16>,
}

/// The processes that share a search. Each is given the same arguments but for its own number.
#[cfg(feature = "timely")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct ShardArgs {
    /// How many processes share the search; --jobs is the threads of each [default: one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), requires = "process")]
    #[arg(conflicts_with_all = ["save", "time", "states", "memory"])]
    pub processes: Option<u16>,
    /// Which of them this is, from 0; it is process 0 that prints what was found
    #[arg(long, value_name = "N", requires = "processes")]
    pub process: Option<u16>,
    /// A file with the address of each process, one HOST:PORT a line [default: loopback, ports from 2101]
    #[arg(long, value_name = "FILE", requires = "processes")]
    pub hosts: Option<PathBuf>,
}

/// A size in bytes, with K, M or G behind it.
fn memory(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = number.parse().ok().and_then(|number: u64| number.checked_mul(unit)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "write a size such as 512M or 4G".to_owned())
}

/// Steps by number, as `explore` prints them.
fn steps(text: &str) -> Result<Steps, String> {
    let mut steps = Steps { numbers: Vec::new(), choices: BTreeMap::new() };
    let wrong =
        || "write the numbers of steps from 1, such as 11.3.6, with answers of the silicon as in 3/0,1".to_owned();
    for (place, step) in (1..).zip(text.split('.')) {
        let (number, answers) = step.split_once('/').map_or((step, None), |(number, answers)| (number, Some(answers)));
        steps.numbers.push(number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?);
        if let Some(answers) = answers {
            let answers: Result<Vec<u32>, _> = answers.split(',').map(str::parse).collect();
            steps.choices.insert(place, answers.map_err(|_| wrong())?);
        }
    }
    Ok(steps)
}

/// Numbers of a scenario's steps, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The steps.
    pub numbers: Vec<usize>,
    /// What the silicon chooses in some of them, by place from 1.
    pub choices: BTreeMap<u32, Vec<u32>>,
}

/// A number of states.
fn states(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(states @ 1..=MOST_STATES) => Ok(states),
        _ => Err(format!("write a number from 1 to {MOST_STATES}")),
    }
}

/// Arguments of `plants`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct PlantsArgs {
    /// Scenario files, or directories of them
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// Only these mistakes (can be repeated) [default: all]
    #[arg(long, value_name = "MISTAKE")]
    pub plant: Vec<String>,
}

/// `rolecall random`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RandomArgs {
    /// The first seed
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// How many scenarios; seeds follow each other
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MOST_SCENARIOS))]
    pub count: u64,
    /// The point of history [default: the newest]
    #[arg(long, value_name = "POINT")]
    pub at: Option<String>,
    /// Whose silicon [default: both in turns]
    #[arg(long, value_enum)]
    pub vendor: Option<VendorName>,
    /// Two-dimensional paging in L0 [default: on and off in turns]
    #[arg(long, value_enum)]
    pub tdp: Option<OnOff>,
    /// Only the scenario of this token
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["seed", "count", "at", "vendor", "tdp"])]
    pub token: Option<Token>,
    /// Print the scenario files: of one scenario instead of running it, of several those that fail
    #[arg(long)]
    pub print: bool,
    /// Print the transition log; with --token only
    #[arg(long, requires = "token", conflicts_with = "print")]
    pub log: bool,
    /// Threads; the results do not depend on it [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_JOBS))]
    pub jobs: Option<u16>,
}

/// Whose silicon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VendorName {
    /// VMX.
    Intel,
    /// SVM.
    Amd,
}

impl VendorName {
    /// The vendor.
    #[must_use]
    pub const fn vendor(self) -> Vendor {
        match self {
            Self::Intel => Vendor::Intel,
            Self::Amd => Vendor::Amd,
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// On.
    On,
    /// Off.
    Off,
}

/// `rolecall show`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct ShowArgs {
    /// What to list
    #[arg(value_enum)]
    pub what: Topic,
    /// How it is printed; JSON for `fidelity` only
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// What `rolecall show` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topic {
    /// The invariants that are audited.
    Audits,
    /// The changes of the hypervisor's history.
    Changes,
    /// The points of that history.
    Points,
    /// Mistakes that the hypervisor can be made to make.
    Plants,
    /// The steps of scenario files.
    Steps,
    /// How often random scenarios use each step.
    Random,
    /// The cycle costs of the model.
    Costs,
    /// Which clauses of the manuals the silicon models, and how far.
    Fidelity,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn replay_arguments() {
        let line = "rolecall replay a.toml dir --at v5.17 --with A --with B --without C --plant no-flush-after-drop --backend bare --format json --log --run 3 --jobs 2";
        let CommandLine { command: Command::Replay(args) } = CommandLine::parse_from(line.split(' ')) else {
            panic!("not replay");
        };
        let expected = ReplayArgs {
            paths: vec!["a.toml".into(), "dir".into()],
            token: Vec::new(),
            side_by_side: false,
            kernel: KernelArgs {
                at: Some("v5.17".to_owned()),
                with: vec!["A".to_owned(), "B".to_owned()],
                without: vec!["C".to_owned()],
                plant: vec!["no-flush-after-drop".to_owned()],
            },
            backend: Some(BackendName::Bare),
            format: Format::Json,
            log: true,
            trace: None,
            report: Vec::new(),
            run: Some(3),
            steps: None,
            jobs: Some(2),
        };
        assert_eq!(args, expected);
    }

    /// Bad usage ends with 2, clap's own code.
    #[test]
    fn bad_usage() {
        for line in ["rolecall", "rolecall replay", "rolecall replay a --run 0", "rolecall show x", "rolecall frob"] {
            let error = CommandLine::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
