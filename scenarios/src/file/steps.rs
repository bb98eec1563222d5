//! Steps: one a line, actor first, and what they are parsed into.
//!
//! ```text
//! [VCPU.]ACTOR: VERB ARGUMENTS [=> OBSERVATION]      # a comment
//! permute {
//!     steps whose every order is a run of its own
//! }
//! ```
//!
//! The verbs and their arguments are the table in [`verbs`]. What a step does is the engine's business.

use super::diagnostics::{Fault, count, quote};
use super::guest::{Break, Flags};
use super::host::HostStep;
use super::observation::{Expected, Observation, Seen};
use super::space::{Mapping, Mode};
use super::verbs;
use super::words::{Place, Word, offset_in, range_in, words};
use super::{Source, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

/// Steps that one `permute` block may hold: 6! orders are 720 runs.
pub const MOST_PERMUTED: usize = 6;
/// Steps of one scenario.
pub const MOST_STEPS: usize = 4096;

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Actor {
    /// The guest hypervisor.
    L1,
    /// The nested guest that runs on the vCPU.
    L2,
    /// The code that an SMI starts on the vCPU.
    Smm,
    /// The host: calls on the hypervisor, no guest instruction.
    Host,
}

impl Actor {
    /// Every actor.
    pub const ALL: [Self; 4] = [Self::L1, Self::L2, Self::Smm, Self::Host];

    /// Its name in steps.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Smm => "smm",
            Self::Host => "host",
        }
    }
}

/// What becomes of a guest step whose level does not run when its turn comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutOfTurn {
    /// The run can't be judged.
    #[default]
    Refuse,
    /// The step is left out.
    Skip,
}

/// The privilege of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Privilege {
    /// CPL 0.
    Supervisor,
    /// CPL 3.
    User,
}

/// Whether MOV to CR3 invalidates (bit 63 of its operand, SDM 3A 4.10.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Flush {
    /// Bit 63 is 0.
    Yes,
    /// Bit 63 is 1: `noflush`.
    No,
}

/// The type of an INVEPT (SDM 3C 30.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum InveptScope {
    /// Single-context: the EPTP that L1 last entered with.
    Single,
    /// All contexts.
    Global,
}

/// The type of an INVVPID (SDM 3C 30.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum InvvpidScope {
    /// One VPID.
    Single(u16),
    /// Every VPID.
    All,
    /// One VPID, but for global entries.
    ButGlobal(u16),
    /// One linear address of one VPID.
    Address {
        /// The VPID.
        vpid: u16,
        /// The address.
        at: u64,
    },
}

/// The type of an INVPCID (SDM 2A).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum InvpcidScope {
    /// Type 0: one linear address of one PCID.
    Address {
        /// The PCID.
        pcid: u16,
        /// The address.
        at: u64,
    },
    /// Type 1: one PCID, but for global entries.
    Single(u16),
    /// Type 2: every PCID, global entries too.
    All,
    /// Type 3: every PCID, but for global entries.
    AllButGlobal,
}

/// TLB_CONTROL of a VMCB (APM2 15.16.1, table 15-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TlbControl {
    /// 0.
    Nothing = 0,
    /// 1: every entry of every ASID.
    All = 1,
    /// 3: this guest's entries.
    Guest = 3,
    /// 7: this guest's entries that are not global.
    GuestNonGlobal = 7,
}

impl TlbControl {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::All, Self::Guest, Self::GuestNonGlobal];

    /// Its name in steps.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::All => "all",
            Self::Guest => "guest",
            Self::GuestNonGlobal => "guest-non-global",
        }
    }
}

/// Bits of an entry of the paging structures to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryBits {
    /// Bits that become 1.
    pub set: u64,
    /// Bits that become 0.
    pub clear: u64,
}

impl EntryBits {
    /// The bits that can be changed (SDM 3A table 4-19).
    pub const NAMES: [(&'static str, u64); 8] = [
        ("P", 1),
        ("W", 1 << 1),
        ("U", 1 << 2),
        ("A", 1 << 5),
        ("D", 1 << 6),
        ("PS", 1 << 7),
        ("G", 1 << 8),
        ("XD", 1 << 63),
    ];
}

impl fmt::Display for EntryBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signs = [('+', self.set), ('-', self.clear)];
        let named =
            signs.iter().flat_map(|(sign, bits)| Self::NAMES.iter().map(move |(name, bit)| (sign, bits & bit, name)));
        let words: Vec<String> =
            named.filter(|(_, bit, _)| *bit != 0).map(|(sign, _, name)| format!("{sign}{name}")).collect();
        f.write_str(&words.join(" "))
    }
}

/// An entry of an address space's tables: the space, the level from 1 (page table) up, and a linear address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EntryName {
    /// The address space.
    pub space: String,
    /// The level: 1 is the page table.
    pub level: u8,
    /// A linear address that the entry translates.
    pub at: u64,
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:#x}", self.space, self.level, self.at)
    }
}

/// A change that `enter` makes to the VMCS or VMCB before the entry; it stays for later entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GuestChange {
    /// Guest CR3 is this address space's root.
    Cr3(String),
    /// Host CR3 is this address space's root.
    HostCr3(String),
    /// Bits of guest CR0, CR4 or EFER.
    Register(Flags),
    /// Bits of host CR0, CR4 or EFER.
    HostRegister(Flags),
    /// The VPID; 0 turns the control off.
    Vpid(u16),
    /// The ASID (AMD).
    Asid(u16),
    /// TLB_CONTROL (AMD).
    TlbControl(TlbControl),
    /// Which of L1's nested tables.
    Nested(String),
    /// Something is made bad.
    Break(Break),
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// MOV to CR3.
    MovCr3 {
        /// The address space whose root is loaded.
        space: String,
        /// Whether it invalidates.
        flush: Flush,
    },
    /// MOV to CR0 of its value with some bits changed.
    MovCr0(Flags),
    /// MOV to CR4 of its value with some bits changed.
    MovCr4(Flags),
    /// MOV to CR8.
    MovCr8(u8),
    /// MOV from CR8.
    ReadCr8,
    /// WRMSR to IA32_EFER of its value with some bits changed.
    WrmsrEfer(Flags),
    /// A load.
    Read {
        /// Its linear address.
        at: u64,
        /// Its privilege.
        user: Privilege,
    },
    /// A store.
    Write {
        /// Its linear address.
        at: u64,
        /// What is stored.
        value: u64,
        /// Its privilege.
        user: Privilege,
    },
    /// An instruction fetch.
    Exec {
        /// Its linear address.
        at: u64,
        /// Its privilege.
        user: Privilege,
    },
    /// INVLPG.
    Invlpg(u64),
    /// INVPCID.
    Invpcid(InvpcidScope),
    /// A store into an address space's tables: one leaf entry is replaced. Nothing is flushed.
    Map {
        /// The address space.
        space: String,
        /// What it maps from now on.
        mapping: Mapping,
    },
    /// A store into an address space's tables: the leaf entry of an address becomes 0.
    Unmap {
        /// The address space.
        space: String,
        /// The linear address.
        at: u64,
    },
    /// A store into an address space's tables: bits of an entry change.
    SetEntry {
        /// The entry.
        entry: EntryName,
        /// The bits.
        bits: EntryBits,
    },
    /// A store into an address space's tables: an entry becomes what another space has there.
    Link {
        /// The entry.
        entry: EntryName,
        /// The other space.
        other: String,
    },
    /// A load of an entry of an address space's tables.
    ReadEntry(EntryName),
    /// A store into L1's nested tables: one leaf entry is replaced.
    NestedMap {
        /// The nested tables.
        tables: String,
        /// What they map from now on.
        mapping: Mapping,
    },
    /// A store into L1's nested tables: the leaf entry of an address becomes 0.
    NestedUnmap {
        /// The nested tables.
        tables: String,
        /// The guest-physical address.
        at: u64,
    },
    /// INVLPGA.
    Invlpga {
        /// The linear address.
        at: u64,
        /// The ASID.
        asid: u16,
    },
    /// No instruction of its own: reach the next gate.
    Run,
    /// Switch paging mode and address space by real instructions.
    Become {
        /// The address space.
        space: String,
    },
    /// VMLAUNCH, VMRESUME or VMRUN.
    Enter {
        /// The nested guest.
        guest: String,
        /// What L1 changes first.
        changes: Vec<GuestChange>,
    },
    /// VMCALL or VMMCALL: back to L1.
    Exit,
    /// RSM.
    Rsm,
    /// INVEPT.
    Invept(InveptScope),
    /// INVVPID.
    Invvpid(InvvpidScope),
    /// The hypervisor zaps every shadow page.
    ZapAll,
    /// The hypervisor zaps what maps one guest frame.
    ZapGfn(u64),
    /// A memory slot appears.
    AddSlot(String),
    /// A memory slot goes.
    DeleteSlot(String),
    /// User space reads the vCPU's registers and nested state, and keeps them.
    SaveState,
    /// User space writes the kept system registers back.
    SetSregs,
    /// User space writes the kept nested state back.
    SetNestedState,
    /// User space forces the vCPU out of nested mode.
    LeaveNested,
    /// User space enters the vCPU until its next gate.
    HostRun,
    /// The hypervisor drops all of the vCPU's roots.
    UnloadMmu,
    /// The hypervisor flushes the vCPU's TLB.
    FlushTlb,
    /// The vCPU's thread moves to another logical processor.
    Migrate(u8),
    /// Something else of the host's.
    Host(HostStep),
    /// A paused step goes on.
    Resume,
}

impl fmt::Display for GuestChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cr3(space) => write!(f, "cr3={space}"),
            Self::HostCr3(space) => write!(f, "host-cr3={space}"),
            Self::Register(flags) => write!(f, "{}={}", flags.register.name(), flags.compact()),
            Self::HostRegister(flags) => write!(f, "host-{}={}", flags.register.name(), flags.compact()),
            Self::Vpid(vpid) => write!(f, "vpid={vpid}"),
            Self::Asid(asid) => write!(f, "asid={asid}"),
            Self::TlbControl(control) => write!(f, "tlb={}", control.name()),
            Self::Nested(tables) => write!(f, "nested={tables}"),
            Self::Break(broken) => write!(f, "break={}", broken.name()),
        }
    }
}

fn at_privilege(user: Privilege) -> &'static str {
    match user {
        Privilege::Supervisor => "",
        Privilege::User => " user",
    }
}

/// The verb and its arguments, as they parse.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MovCr3 { space, flush: Flush::Yes } => write!(f, "mov-cr3 {space}"),
            Self::MovCr3 { space, flush: Flush::No } => write!(f, "mov-cr3 {space} noflush"),
            Self::MovCr0(flags) => write!(f, "mov-cr0 {flags}"),
            Self::MovCr4(flags) => write!(f, "mov-cr4 {flags}"),
            Self::MovCr8(priority) => write!(f, "mov-cr8 {priority}"),
            Self::ReadCr8 => f.write_str("read-cr8"),
            Self::WrmsrEfer(flags) => write!(f, "wrmsr-efer {flags}"),
            Self::Read { at, user } => write!(f, "read {at:#x}{}", at_privilege(*user)),
            Self::Write { at, value, user } => write!(f, "write {at:#x} {value:#x}{}", at_privilege(*user)),
            Self::Exec { at, user } => write!(f, "exec {at:#x}{}", at_privilege(*user)),
            Self::Invlpg(at) => write!(f, "invlpg {at:#x}"),
            Self::Invpcid(InvpcidScope::Address { pcid, at }) => write!(f, "invpcid address {pcid} {at:#x}"),
            Self::Invpcid(InvpcidScope::Single(pcid)) => write!(f, "invpcid single {pcid}"),
            Self::Invpcid(InvpcidScope::All) => f.write_str("invpcid all"),
            Self::Invpcid(InvpcidScope::AllButGlobal) => f.write_str("invpcid all-but-global"),
            Self::Map { space, mapping } => write!(f, "map {space} {mapping}"),
            Self::Unmap { space, at } => write!(f, "unmap {space} {at:#x}"),
            Self::SetEntry { entry, bits } => write!(f, "set-entry {entry} {bits}"),
            Self::Link { entry, other } => write!(f, "link {entry} {other}"),
            Self::ReadEntry(entry) => write!(f, "read-entry {entry}"),
            Self::NestedMap { tables, mapping } => write!(f, "nested-map {tables} {mapping}"),
            Self::NestedUnmap { tables, at } => write!(f, "nested-unmap {tables} {at:#x}"),
            Self::Invlpga { at, asid } => write!(f, "invlpga {at:#x} {asid}"),
            Self::Run | Self::HostRun => f.write_str("run"),
            Self::Become { space } => write!(f, "become {space}"),
            Self::Enter { guest, changes } => {
                write!(f, "enter {guest}")?;
                changes.iter().try_for_each(|change| write!(f, " {change}"))
            }
            Self::Exit => f.write_str("exit"),
            Self::Rsm => f.write_str("rsm"),
            Self::Invept(InveptScope::Single) => f.write_str("invept single"),
            Self::Invept(InveptScope::Global) => f.write_str("invept global"),
            Self::Invvpid(InvvpidScope::Single(vpid)) => write!(f, "invvpid single {vpid}"),
            Self::Invvpid(InvvpidScope::All) => f.write_str("invvpid all"),
            Self::Invvpid(InvvpidScope::ButGlobal(vpid)) => write!(f, "invvpid but-global {vpid}"),
            Self::Invvpid(InvvpidScope::Address { vpid, at }) => write!(f, "invvpid address {vpid} {at:#x}"),
            Self::ZapAll => f.write_str("zap-all"),
            Self::ZapGfn(gfn) => write!(f, "zap-gfn {gfn:#x}"),
            Self::AddSlot(slot) => write!(f, "add-slot {slot}"),
            Self::DeleteSlot(slot) => write!(f, "delete-slot {slot}"),
            Self::SaveState => f.write_str("save-state"),
            Self::SetSregs => f.write_str("set-sregs"),
            Self::SetNestedState => f.write_str("set-nested-state"),
            Self::LeaveNested => f.write_str("leave-nested"),
            Self::UnloadMmu => f.write_str("unload-mmu"),
            Self::FlushTlb => f.write_str("flush-tlb"),
            Self::Resume => f.write_str("resume"),
            Self::Host(step) => write!(f, "{step}"),
            Self::Migrate(cpu) => write!(f, "migrate {cpu}"),
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    /// Where it stands.
    pub span: Span,
    /// Verb and arguments as written, without actor and observation.
    pub text: String,
    /// The vCPU that takes it, from 0.
    pub vcpu: u8,
    /// Who takes it.
    pub actor: Actor,
    /// What it does.
    pub action: Action,
    /// What it must show, if the file says so.
    pub expect: Option<Expected>,
}

/// The step as it parses, in the table's spelling.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.vcpu > 0 {
            write!(f, "{}.", self.vcpu)?;
        }
        write!(f, "{}: {}", self.actor.name(), self.action)?;
        self.expect.as_ref().map_or(Ok(()), |observation| write!(f, " => {observation}"))
    }
}

/// The names and limits that steps are checked against.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// Address spaces and their modes.
    pub(crate) spaces: BTreeMap<String, Mode>,
    /// Nested guests.
    pub(crate) guests: BTreeSet<String>,
    /// L1's nested tables.
    pub(crate) nested: BTreeSet<String>,
    /// Memory slots.
    pub(crate) slots: BTreeSet<String>,
    /// Guest-physical ranges that exist: memory, then slots.
    pub(crate) physical: Vec<Range<u64>>,
    /// vCPUs.
    pub(crate) vcpus: u8,
    /// Logical processors.
    pub(crate) processors: u8,
}

impl Scope {
    /// Whether all bytes of a guest-physical range exist.
    pub(crate) fn has_physical(&self, start: u64, bytes: u64) -> bool {
        let Some(end) = start.checked_add(bytes) else { return false };
        self.physical.iter().any(|range| range.start <= start && end <= range.end)
    }
}

/// The steps of a file, in its order, and the run of them that is permuted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pub(crate) steps: Vec<Step>,
    pub(crate) permuted: Option<Range<usize>>,
}

/// Reads one step; `scope` none checks the spelling only.
pub(crate) fn parse_step(line: &str, scope: Option<&Scope>) -> Result<Step, Fault> {
    let (left, observed) = match line.split_once("=>") {
        Some((left, observed)) => (left, Some(observed)),
        None => (line, None),
    };
    let Some((who, what)) = left.split_once(':') else {
        let message = format!("{} names no actor", quote(left.trim()));
        return Err(Fault::new(
            range_in(line, left.trim()),
            message,
            "a step is `l1: VERB`, `l2: VERB` or `host: VERB`",
        ));
    };
    let (vcpu, actor) = parse_actor(Word { text: who.trim(), start: range_in(line, who.trim()).start }, scope)?;
    let expect = observed
        .map(|text| text.parse::<Expected>().map_err(|fault| fault.shifted(offset_in(line, text))))
        .transpose()?;
    let what = what.trim();
    let words: Vec<Word<'_>> = words(what, offset_in(line, what)).collect();
    let Some((verb, arguments)) = words.split_first() else {
        return Err(Fault::new(range_in(line, who.trim()), "the step has no verb", verbs::listing(actor)));
    };
    let verb_row = verbs::find(actor, *verb)?;
    let named = expect.as_ref().map(Expected::observations).unwrap_or_default();
    if let Some(text) = observed
        && named.iter().map(Observation::kind).any(|kind| kind != Seen::Skipped && !verb_row.observes.contains(&kind))
    {
        let forms: Vec<&str> = verb_row.observes.iter().map(|seen| seen.form()).collect();
        let message = format!("`{}` can't show {}", verb_row.name, quote(text.trim()));
        return Err(Fault::new(range_in(line, text.trim()), message, format!("it shows {}", forms.join(", "))));
    }
    let faults = named.iter().any(|observation| matches!(observation, Observation::Exception(_)));
    let action = verbs::Arguments::new(verb_row, *verb, arguments, scope, faults).parse()?;
    Ok(Step { span: Span::default(), text: what.to_owned(), vcpu, actor, action, expect })
}

fn parse_actor(word: Word<'_>, scope: Option<&Scope>) -> Result<(u8, Actor), Fault> {
    let (vcpu, name, name_at) = match word.text.split_once('.') {
        Some((vcpu, name)) => (Some(vcpu), name, word.start + vcpu.len() + 1),
        None => (None, word.text, word.start),
    };
    let vcpus = scope.map_or(u8::MAX, |scope| scope.vcpus);
    let vcpu = match vcpu {
        None => 0,
        Some(digits) => digits.parse::<u8>().ok().filter(|vcpu| *vcpu < vcpus).ok_or_else(|| {
            let message = format!("there is no vCPU {}", quote(digits));
            let help = format!("the machine has {vcpus}, numbered from 0; `vcpus` under [machine] says how many");
            Fault::new(word.start..word.start + digits.len(), message, help)
        })?,
    };
    let name_range = name_at..name_at + name.len();
    let Some(actor) = Actor::ALL.into_iter().find(|actor| actor.name() == name) else {
        return Err(Fault::unknown(name_range, "actor", name, Actor::ALL.map(Actor::name)));
    };
    if actor == Actor::L2 && scope.is_some_and(|scope| scope.guests.is_empty()) {
        let help = "declare one, such as [guest.l2] with space = \"a\"";
        return Err(Fault::new(name_range, "no nested guest is declared, so l2 never runs", help));
    }
    Ok((vcpu, actor))
}

/// The part of a line before its comment. `#` starts one at a word's start, except in the exception after `=>`.
fn without_comment(line: &str) -> &str {
    let mut previous = "";
    for word in words(line, 0) {
        if let Some(after) = word.text.strip_prefix('#')
            && !(matches!(previous, "=>" | "may" | "never" | "|")
                && after.starts_with(|letter: char| letter.is_ascii_uppercase()))
        {
            return &line[..word.start];
        }
        previous = word.text;
    }
    line
}

/// Reads the body of a file. Faults are placed in `source`.
pub(crate) fn parse_body(source: &Source, place: &Place, text: &str, scope: &Scope) -> (Body, Vec<Fault>) {
    let mut body = Body::default();
    let mut faults = Vec::new();
    let mut block = Block::None;
    for line in text.lines() {
        let line_at = offset_in(text, line);
        let step = without_comment(line).trim();
        let step_at = line_at + offset_in(line, step);
        let result = match step {
            "" => Ok(()),
            "}" => close(&mut block, &mut body, faults.is_empty()),
            _ if is_permute(step) => open(&mut block, &body, step.len()),
            _ => parse_step(step, Some(scope)).map(|mut parsed| {
                parsed.span = source.span(0, place.map(step_at..step_at + step.len()));
                body.steps.push(parsed);
            }),
        };
        faults.extend(result.err().map(|fault| place.fault(fault.shifted(step_at))));
        if faults.len() > super::MOST_PROBLEMS || body.steps.len() > MOST_STEPS {
            break;
        }
    }
    if let Block::Open { line, .. } = block {
        let end = text.trim_end().len();
        let message = format!("the permute block of step {} is not closed", line + 1);
        faults.push(place.fault(Fault::new(end..end, message, "close it with a line `}`")));
    }
    if faults.is_empty() && (body.steps.is_empty() || body.steps.len() > MOST_STEPS) {
        let message = format!("a scenario has 1 to {MOST_STEPS} steps");
        faults.push(place.fault(Fault::new(0..0, message, "write one a line, such as `l1: mov-cr3 a`")));
    }
    (body, faults)
}

/// Where the reader is with respect to the `permute` block.
enum Block {
    None,
    Open { line: usize },
    Done,
}

fn is_permute(step: &str) -> bool {
    step.strip_suffix('{').is_some_and(|word| word.trim_end() == "permute")
}

fn open(block: &mut Block, body: &Body, length: usize) -> Result<(), Fault> {
    if !matches!(block, Block::None) {
        return Err(Fault::new(0..length, "a second permute block", "a file has one; write another scenario"));
    }
    *block = Block::Open { line: body.steps.len() };
    Ok(())
}

/// Ends the block. Its steps are counted only where all could be read.
fn close(block: &mut Block, body: &mut Body, complete: bool) -> Result<(), Fault> {
    let Block::Open { line } = *block else {
        return Err(Fault::new(0..1, "`}` closes nothing", "a block starts with a line `permute {`"));
    };
    *block = Block::Done;
    let length = body.steps.len() - line;
    if complete && !(2..=MOST_PERMUTED).contains(&length) {
        let message = format!("the permute block has {}", count(length, "step"));
        return Err(Fault::new(0..1, message, format!("2 to {MOST_PERMUTED} steps can be permuted (720 orders)")));
    }
    body.permuted = Some(line..body.steps.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments() {
        for (line, kept) in [
            ("l1: run # why", "l1: run "),
            ("# all", ""),
            ("l1: read 1 => #PF(0x3) # why", "l1: read 1 => #PF(0x3) "),
            ("l1: read 1 =>#PF", "l1: read 1 =>#PF"),
            ("l1: read 1 => may #PF | #GP # why", "l1: read 1 => may #PF | #GP "),
            ("l1: read 1 => never #PF # why", "l1: read 1 => never #PF "),
            ("l1: read 1 => # why", "l1: read 1 => "),
            ("l1: read 1 => #é", "l1: read 1 => "),
        ] {
            assert_eq!(without_comment(line), kept, "{line}");
        }
    }
}
