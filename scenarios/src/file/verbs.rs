//! The verbs of steps: one table that parses, checks, documents and suggests.

use super::diagnostics::{Fault, quote};
use super::guest::{Break, ControlRegister, Flags};
use super::host::{
    CpuidChange, FrameRange, HostStep, InSmm, Logging, MAIN_MEMORY, PageAccess, PagingFeature, PausePoint,
    RegisterChange, Reset,
};
use super::observation::Seen;
use super::space::{Mapping, parse_mapping};
use super::steps::{
    Action, Actor, EntryBits, EntryName, Flush, GuestChange, InveptScope, InvpcidScope, InvvpidScope, Privilege, Scope,
    TlbControl,
};
use super::words::{Word, is_name, number_at};
use std::collections::BTreeSet;
use std::ops::Range;

/// One row: a verb, who may say it, and what it means.
#[derive(Debug)]
pub struct Verb {
    /// Its name.
    pub name: &'static str,
    /// Who may take the step.
    pub actors: &'static [Actor],
    /// The shape of its arguments.
    pub arguments: &'static str,
    /// What it can be expected to show.
    pub observes: &'static [Seen],
    /// What it does, in one line.
    pub help: &'static str,
    parse: fn(&mut Arguments<'_>) -> Result<Action, Fault>,
}

/// The most guest frames that one step names: 1 GiB of them.
const MOST_FRAMES: u64 = 1 << 18;

const GUESTS: &[Actor] = &[Actor::L1, Actor::L2];
const CODE: &[Actor] = &[Actor::L1, Actor::L2, Actor::Smm];
const SMM: &[Actor] = &[Actor::Smm];
const L1: &[Actor] = &[Actor::L1];
const L2: &[Actor] = &[Actor::L2];
const HOST: &[Actor] = &[Actor::Host];

const INSTRUCTION: &[Seen] = &[Seen::Ok, Seen::Exception, Seen::Exit, Seen::Paused];
const LOAD: &[Seen] = &[Seen::Value, Seen::Ok, Seen::Exception, Seen::Exit, Seen::Paused];
const ENTRY: &[Seen] = &[Seen::Ok, Seen::Exception, Seen::VmFail, Seen::EntryFailed, Seen::Exit];
const INVALIDATE: &[Seen] = &[Seen::Ok, Seen::Exception, Seen::VmFail];
const CALL: &[Seen] = &[Seen::Ok];
const DIRTY: &[Seen] = &[Seen::Dirty];
const AGE: &[Seen] = &[Seen::Age];
const RUN: &[Seen] = &[Seen::Ok, Seen::Exit];

macro_rules! verbs {
    ($($name:literal $actors:ident $arguments:literal $observes:ident $help:literal $parse:expr;)*) => {
        &[$(Verb { name: $name, actors: $actors, arguments: $arguments, observes: $observes, help: $help, parse: $parse },)*]
    };
}

/// Every verb.
pub const VERBS: &[Verb] = verbs! {
    "mov-cr3" GUESTS "SPACE [noflush]" INSTRUCTION "MOV to CR3 of the space's root and PCID; noflush sets bit 63" mov_cr3;
    "mov-cr0" GUESTS "+FLAG -FLAG ..." INSTRUCTION "MOV to CR0 of its value with these bits changed"
        |arguments| arguments.flags(ControlRegister::Cr0).map(Action::MovCr0);
    "mov-cr4" GUESTS "+FLAG -FLAG ..." INSTRUCTION "MOV to CR4 of its value with these bits changed"
        |arguments| arguments.flags(ControlRegister::Cr4).map(Action::MovCr4);
    "mov-cr8" GUESTS "PRIORITY" INSTRUCTION "MOV to CR8, in 64-bit code"
        |arguments| arguments.priority().map(Action::MovCr8);
    "read-cr8" GUESTS "" LOAD "MOV from CR8, in 64-bit code" |_| Ok(Action::ReadCr8);
    "wrmsr-efer" GUESTS "+FLAG -FLAG ..." INSTRUCTION "WRMSR to IA32_EFER of its value with these bits changed"
        |arguments| arguments.flags(ControlRegister::Efer).map(Action::WrmsrEfer);
    "read" CODE "ADDRESS [user]" LOAD "a load at CPL 0, or 3 with user"
        |arguments| Ok(Action::Read { at: arguments.linear()?, user: arguments.privilege() });
    "write" CODE "ADDRESS VALUE [user]" INSTRUCTION "a store at CPL 0, or 3 with user" write;
    "exec" CODE "ADDRESS [user]" INSTRUCTION "an instruction fetch at CPL 0, or 3 with user"
        |arguments| Ok(Action::Exec { at: arguments.linear()?, user: arguments.privilege() });
    "invlpg" GUESTS "ADDRESS" INSTRUCTION "INVLPG" |arguments| arguments.linear().map(Action::Invlpg);
    "invpcid" GUESTS "address PCID ADDRESS|single PCID|all|all-but-global" INSTRUCTION "INVPCID of type 0, 1, 2, 3" invpcid;
    "map" GUESTS "SPACE ADDRESS -> ADDRESS r|rw|rx|rwx [user] [global] [2M|4M|1G]" INSTRUCTION
        "a store of one leaf entry into the space's tables, which must reach that far; no flush" map;
    "unmap" GUESTS "SPACE ADDRESS" INSTRUCTION "a store that makes the leaf entry of an address 0; no flush"
        |arguments| Ok(Action::Unmap { space: arguments.space()?, at: arguments.linear()? });
    "set-entry" GUESTS "SPACE LEVEL ADDRESS +BIT -BIT ..." INSTRUCTION
        "a store that changes bits (P W U A D PS G XD) of an entry; level 1 is the page table; no flush"
        |arguments| Ok(Action::SetEntry { entry: arguments.entry()?, bits: arguments.entry_bits()? });
    "link" GUESTS "SPACE LEVEL ADDRESS OTHER" INSTRUCTION
        "a store that gives an entry the value that another space has there; no flush"
        |arguments| Ok(Action::Link { entry: arguments.entry()?, other: arguments.space()? });
    "read-entry" GUESTS "SPACE LEVEL ADDRESS" LOAD "a load of an entry of the space's tables"
        |arguments| arguments.entry().map(Action::ReadEntry);
    "run" CODE "" RUN "no instruction of its own: reach the next gate" |_| Ok(Action::Run);
    "resume" GUESTS "" LOAD "the step that is paused goes on" |_| Ok(Action::Resume);
    "become" L1 "SPACE" INSTRUCTION "switch to the space's paging mode and root by real instructions"
        |arguments| Ok(Action::Become { space: arguments.space()? });
    "enter" L1 "GUEST [cr3=SPACE] [host-cr3=SPACE] [cr0|cr4|efer|host-cr0|host-cr4|host-efer=+FLAG-FLAG] [vpid=N] [asid=N] [tlb=nothing|all|guest|guest-non-global] [nested=TABLES] [break=WHAT]"
        ENTRY "VMLAUNCH, VMRESUME or VMRUN, after these changes to the VMCS or VMCB" enter;
    "invept" L1 "single|global" INVALIDATE "INVEPT of L1's current EPTP, or of all" invept;
    "invvpid" L1 "single VPID|all|but-global VPID|address VPID ADDRESS" INVALIDATE "INVVPID" invvpid;
    "invlpga" L1 "ADDRESS ASID" INVALIDATE "INVLPGA"
        |arguments| Ok(Action::Invlpga { at: arguments.linear()?, asid: arguments.tag("an ASID")? });
    "nested-map" L1 "TABLES ADDRESS -> ADDRESS r|rw|rx|rwx [2M]" INSTRUCTION
        "a store of one leaf entry into L1's nested tables; no flush" nested_map;
    "nested-unmap" L1 "TABLES ADDRESS" INSTRUCTION
        "a store that makes the leaf entry of a guest-physical address 0 in L1's nested tables; no flush" nested_unmap;
    "exit" L2 "" INSTRUCTION "VMCALL or VMMCALL: back to L1" |_| Ok(Action::Exit);
    "rsm" SMM "" INSTRUCTION "RSM: back to what the SMI interrupted" |_| Ok(Action::Rsm);
    "zap-all" HOST "" CALL "the hypervisor zaps every shadow page" |_| Ok(Action::ZapAll);
    "zap-gfn" HOST "GFN" CALL "the hypervisor zaps what maps this guest frame"
        |arguments| arguments.frame().map(Action::ZapGfn);
    "add-slot" HOST "SLOT" CALL "a declared memory slot appears" |arguments| arguments.slot().map(Action::AddSlot);
    "delete-slot" HOST "SLOT" CALL "a memory slot goes" |arguments| arguments.slot().map(Action::DeleteSlot);
    "save-state" HOST "" CALL "user space reads registers and nested state, and keeps them" |_| Ok(Action::SaveState);
    "set-sregs" HOST "" CALL "user space writes the kept system registers back" |_| Ok(Action::SetSregs);
    "set-nested-state" HOST "" CALL "user space writes the kept nested state back" |_| Ok(Action::SetNestedState);
    "leave-nested" HOST "" CALL "user space forces the vCPU out of nested mode" |_| Ok(Action::LeaveNested);
    "run" HOST "" RUN "user space enters the vCPU until its next gate" |_| Ok(Action::HostRun);
    "unload-mmu" HOST "" CALL "the hypervisor drops all of the vCPU's roots" |_| Ok(Action::UnloadMmu);
    "flush-tlb" HOST "" CALL "the hypervisor flushes the vCPU's TLB" |_| Ok(Action::FlushTlb);
    "guest-flush" HOST "" CALL "the guest, as L1, has the hypervisor flush what the vCPU cached (KVM_VCPU_FLUSH_TLB)"
        |_| Ok(Action::Host(HostStep::GuestFlush));
    "migrate" HOST "PROCESSOR" CALL "the vCPU's thread moves to another logical processor"
        |arguments| arguments.processor().map(Action::Migrate);
    "set-registers" HOST "[cr3=SPACE] [cr0|cr4|efer=+FLAG-FLAG]" CALL
        "user space writes the vCPU's system registers as they are, with these changes" set_registers;
    "set-efer" HOST "+FLAG -FLAG ..." CALL "user space writes the vCPU's EFER, whatever the guest could write"
        |arguments| arguments.flags(ControlRegister::Efer).map(|flags| Action::Host(HostStep::SetEfer(flags)));
    "set-cpuid" HOST "[maxphyaddr=BITS] [without=1g-pages|smep|smap|la57] ..." CALL
        "user space sets what the vCPU's CPUID says of paging, which it may only before the vCPU runs" set_cpuid;
    "set-smm" HOST "inside|outside" CALL "user space says that the vCPU is in SMM, or is not, and changes nothing else of it"
        set_smm;
    "smi" HOST "" RUN "the vCPU gets an SMI and runs to its SMM code, which is flat 32-bit code without paging"
        |_| Ok(Action::Host(HostStep::Smi));
    "init-vcpu" HOST "" RUN "the vCPU gets INIT and a start-up IPI, and runs until it is in flat 32-bit code, as L1"
        |_| Ok(Action::Host(HostStep::InitVcpu));
    "move-slot" HOST "SLOT ADDRESS" CALL "a memory slot is at another guest-physical address from now on" move_slot;
    "log-dirty" HOST "SLOT on|off" CALL "writes to a slot (memory: main memory) are logged, or no longer" log_dirty;
    "dirty-log" HOST "SLOT [keep]" DIRTY "the guest frames of a slot written since they were cleared, as this does without keep"
        |arguments| {
            let slot = arguments.any_slot()?;
            let reset = if arguments.optional("keep") { Reset::No } else { Reset::Yes };
            Ok(Action::Host(HostStep::DirtyLog { slot, reset }))
        };
    "clear-dirty-log" HOST "SLOT FRAME [COUNT]" CALL "guest frames are watched for writes again, after a dirty-log"
        |arguments| {
            let slot = arguments.any_slot()?;
            Ok(Action::Host(HostStep::ClearDirtyLog { slot, frames: arguments.frames()? }))
        };
    "invalidate-begin" HOST "FRAME [COUNT]" CALL "the host begins to change what backs guest frames; nothing may map them"
        |arguments| arguments.frames().map(|frames| Action::Host(HostStep::InvalidateBegin(frames)));
    "invalidate-end" HOST "FRAME [COUNT]" CALL "the host has changed it"
        |arguments| arguments.frames().map(|frames| Action::Host(HostStep::InvalidateEnd(frames)));
    "move-page" HOST "FRAME" CALL "the host moves a page, with its content, to another host frame"
        |arguments| arguments.frame().map(|gfn| Action::Host(HostStep::MovePage(gfn)));
    "change-page" HOST "FRAME read-only|writable" CALL
        "the host replaces a page by another with the same content, and tells so afterwards" change_page;
    "pause-at" HOST "FRAME [after-walk|before-entry]" CALL
        "the vCPU's next page fault on a guest frame pauses after it has looked the host page up, after its walk, or when it is handled" pause_at;
    "pre-fault" HOST "FRAME" CALL "user space has a guest frame mapped for the vCPU without running it"
        |arguments| arguments.frame().map(|gfn| Action::Host(HostStep::PreFault(gfn)));
    "age-page" HOST "FRAME" AGE "whether a page was used since it was last asked, and forget it"
        |arguments| arguments.frame().map(|gfn| Action::Host(HostStep::AgePage(gfn)));
    "test-age" HOST "FRAME" AGE "whether a page was used since it was last asked"
        |arguments| arguments.frame().map(|gfn| Action::Host(HostStep::TestAge(gfn)));
    "recover-nx" HOST "RATIO" CALL "the hypervisor gives up one in RATIO of the tables that stand in for executable large pages"
        |arguments| arguments.ratio().map(|ratio| Action::Host(HostStep::RecoverNx(ratio)));
};

fn of(actor: Actor) -> impl Iterator<Item = &'static Verb> {
    VERBS.iter().filter(move |verb| verb.actors.contains(&actor))
}

/// The verbs of an actor, in one line.
pub(crate) fn listing(actor: Actor) -> String {
    let names: Vec<&str> = of(actor).map(|verb| verb.name).collect();
    format!("{} can: {}", actor.name(), names.join(", "))
}

/// The row of a verb that this actor may say.
pub(crate) fn find(actor: Actor, word: Word<'_>) -> Result<&'static Verb, Fault> {
    if let Some(verb) = of(actor).find(|verb| verb.name == word.text) {
        return Ok(verb);
    }
    if let Some(other) = VERBS.iter().find(|verb| verb.name == word.text) {
        let owners: Vec<&str> = other.actors.iter().map(|actor| actor.name()).collect();
        let message = format!("`{}` is a step of {}, not of {}", word.text, owners.join(" and "), actor.name());
        return Err(Fault::new(word.range(), message, listing(actor)));
    }
    let mut fault = Fault::unknown(word.range(), "step", word.text, of(actor).map(|verb| verb.name));
    fault.message.push_str(&format!(" of {}", actor.name()));
    Err(fault)
}

/// The arguments of one step, taken one after the other.
pub(crate) struct Arguments<'a> {
    verb: &'static Verb,
    verb_at: Range<usize>,
    words: std::iter::Peekable<std::slice::Iter<'a, Word<'a>>>,
    scope: Option<&'a Scope>,
    /// Whether the step is expected to fault, so that an address may be one that no mode allows.
    faults: bool,
}

impl<'a> Arguments<'a> {
    pub(crate) fn new(
        verb: &'static Verb,
        word: Word<'a>,
        words: &'a [Word<'a>],
        scope: Option<&'a Scope>,
        faults: bool,
    ) -> Self {
        Self { verb, verb_at: word.range(), words: words.iter().peekable(), scope, faults }
    }

    /// The action, when all words are used.
    pub(crate) fn parse(mut self) -> Result<Action, Fault> {
        let action = (self.verb.parse)(&mut self)?;
        match self.words.next() {
            None => Ok(action),
            Some(word) => {
                let message = format!("`{}` does not take {}", self.verb.name, quote(word.text));
                Err(Fault::new(word.range(), message, self.usage()))
            }
        }
    }

    fn usage(&self) -> String {
        format!("write `{}`", format!("{} {}", self.verb.name, self.verb.arguments).trim())
    }

    fn word(&mut self, what: &str) -> Result<Word<'a>, Fault> {
        self.words
            .next()
            .copied()
            .ok_or_else(|| Fault::new(self.verb_at.clone(), format!("`{}` needs {what}", self.verb.name), self.usage()))
    }

    fn optional(&mut self, keyword: &str) -> bool {
        self.words.next_if(|word| word.text == keyword).is_some()
    }

    fn privilege(&mut self) -> Privilege {
        if self.optional("user") { Privilege::User } else { Privilege::Supervisor }
    }

    fn space(&mut self) -> Result<String, Fault> {
        let word = self.word("an address space")?;
        self.space_in(word)
    }

    fn space_in(&self, word: Word<'_>) -> Result<String, Fault> {
        named(word, "space", self.scope.map(|scope| scope.spaces.keys()))
    }

    fn slot(&mut self) -> Result<String, Fault> {
        let word = self.word("a memory slot")?;
        named(word, "slot", self.scope.map(|scope| scope.slots.iter()))
    }

    fn nested(&mut self) -> Result<String, Fault> {
        let word = self.word("the name of nested tables")?;
        named(word, "nested tables", self.scope.map(|scope| scope.nested.iter()))
    }

    /// A memory slot, or main memory.
    fn any_slot(&mut self) -> Result<String, Fault> {
        if self.optional(MAIN_MEMORY) { Ok(MAIN_MEMORY.to_owned()) } else { self.slot() }
    }

    /// A guest frame that exists.
    fn frame(&mut self) -> Result<u64, Fault> {
        const PAGE: u64 = sim_core::addr::PAGE_BYTES;
        let word = self.word("a guest frame number")?;
        let gfn = number_at(word, "a guest frame number")?;
        let exists = |scope: &Scope| gfn.checked_mul(PAGE).is_some_and(|address| scope.has_physical(address, PAGE));
        if self.scope.is_none_or(exists) {
            return Ok(gfn);
        }
        let help = "a frame number is the address / 4096; `memory` under [machine] says how much there is";
        Err(Fault::new(word.range(), format!("guest frame {gfn:#x} is outside memory and slots"), help))
    }

    /// FRAME [COUNT].
    fn frames(&mut self) -> Result<FrameRange, Fault> {
        let first = self.frame()?;
        let Some(word) = self.words.next().copied() else { return Ok(FrameRange { first, count: 1 }) };
        let count = number_at(word, "a count of frames")?;
        if (1..=MOST_FRAMES).contains(&count) {
            return Ok(FrameRange { first, count });
        }
        Err(Fault::new(word.range(), format!("{count} frames"), format!("1 to {MOST_FRAMES}")))
    }

    fn one_of<T: Copy, const N: usize>(
        &mut self,
        what: &str,
        all: [T; N],
        name: impl Fn(T) -> &'static str,
    ) -> Result<T, Fault> {
        let word = self.word(what)?;
        let found = all.into_iter().find(|one| name(*one) == word.text);
        found.ok_or_else(|| Fault::unknown(word.range(), "choice", word.text, all.map(name)))
    }

    fn processor(&mut self) -> Result<u8, Fault> {
        let word = self.word("a processor")?;
        let number = number_at(word, "a processor")?;
        let count = self.scope.map_or(u8::MAX, |scope| scope.processors);
        u8::try_from(number).ok().filter(|number| *number < count).ok_or_else(|| {
            let message = format!("there is no processor {}", quote(word.text));
            let help = format!("the machine has {count}, numbered from 0; `processors` under [machine] says how many");
            Fault::new(word.range(), message, help)
        })
    }

    /// A 16-bit tag.
    fn tag(&mut self, what: &str) -> Result<u16, Fault> {
        let word = self.word(what)?;
        u16::try_from(number_at(word, what)?)
            .map_err(|_| Fault::new(word.range(), format!("{what} has 16 bits at most"), "use 0 to 65535"))
    }

    fn ratio(&mut self) -> Result<u64, Fault> {
        let word = self.word("a ratio")?;
        number_at(word, "a ratio")
    }

    fn priority(&mut self) -> Result<u8, Fault> {
        let word = self.word("a task priority")?;
        u8::try_from(number_at(word, "a task priority")?)
            .map_err(|_| Fault::new(word.range(), "a task priority is one byte here", "use 0 to 15; more is a #GP"))
    }

    fn pcid(&mut self) -> Result<u16, Fault> {
        let word = self.word("a PCID")?;
        let pcid = number_at(word, "a PCID")?;
        u16::try_from(pcid)
            .ok()
            .filter(|pcid| *pcid < 0x1000)
            .ok_or_else(|| Fault::new(word.range(), "a PCID has 12 bits", "use 0 to 4095"))
    }

    /// SPACE LEVEL ADDRESS.
    fn entry(&mut self) -> Result<EntryName, Fault> {
        let space = self.space()?;
        let word = self.word("a level")?;
        let level = number_at(word, "a level")?;
        let deepest = self.scope.and_then(|scope| scope.spaces.get(&space)).map_or(5, |mode| mode.levels());
        let level = u8::try_from(level).ok().filter(|level| (1..=deepest).contains(level)).ok_or_else(|| {
            let message = format!("there is no level {} in the tables of {space}", quote(word.text));
            Fault::new(word.range(), message, format!("1 is the page table, {deepest} the root"))
        })?;
        Ok(EntryName { space, level, at: self.linear()? })
    }

    fn entry_bits(&mut self) -> Result<EntryBits, Fault> {
        let first = self.word("bits to change")?;
        let mut all = EntryBits::default();
        for word in std::iter::once(first).chain(self.words.by_ref().copied()) {
            let (sign, name) = word.text.split_at(word.text.chars().next().map_or(0, char::len_utf8));
            let at = word.start + sign.len()..word.start + word.text.len();
            if !matches!(sign, "+" | "-") {
                return Err(Fault::new(word.range(), format!("{} has no sign", quote(word.text)), "such as +W or -P"));
            }
            let known = EntryBits::NAMES;
            let Some((_, bit)) = known.iter().find(|(known, _)| *known == name) else {
                return Err(Fault::unknown(at, "entry bit", name, known.map(|(name, _)| name)));
            };
            if (all.set | all.clear) & bit != 0 {
                return Err(Fault::new(word.range(), "a bit is given twice", "keep one of the two"));
            }
            if sign == "+" { all.set |= bit } else { all.clear |= bit }
        }
        Ok(all)
    }

    /// The rest of the step as a line of `map`.
    fn mapping(&mut self) -> Result<Mapping, Fault> {
        let words: Vec<Word<'_>> = self.words.by_ref().copied().collect();
        let Some((first, last)) = words.first().zip(words.last()) else {
            return Err(Fault::new(
                self.verb_at.clone(),
                format!("`{}` needs a mapping", self.verb.name),
                self.usage(),
            ));
        };
        let text: Vec<&str> = words.iter().map(|word| word.text).collect();
        let whole = first.start..last.range().end;
        parse_mapping(&text.join(" ")).map_err(|fault| Fault { at: whole, ..fault })
    }

    fn physical(&mut self) -> Result<u64, Fault> {
        let word = self.word("a guest-physical address")?;
        number_at(word, "a guest-physical address")
    }

    fn linear(&mut self) -> Result<u64, Fault> {
        let word = self.word("a linear address")?;
        let at = number_at(word, "a linear address")?;
        let Some(scope) = self.scope else { return Ok(at) };
        if self.faults || scope.spaces.values().any(|mode| mode.holds(at)) {
            return Ok(at);
        }
        let modes: BTreeSet<_> = scope.spaces.values().collect();
        let names: Vec<&str> = modes.into_iter().map(|mode| mode.name()).collect();
        let message = format!("{at:#x} is no linear address of any space here ({})", names.join(", "));
        Err(Fault::new(word.range(), message, "use a canonical address of the mode, or expect the fault: `=> #GP(0)`"))
    }

    fn flags(&mut self, register: ControlRegister) -> Result<Flags, Fault> {
        let first = self.word("flags to change")?;
        let mut all = Flags::none(register);
        for word in std::iter::once(first).chain(self.words.by_ref().copied()) {
            let flags = Flags::parse(register, word.text).map_err(|fault| fault.shifted(word.start))?;
            if (all.set | all.clear) & (flags.set | flags.clear) != 0 {
                return Err(Fault::new(word.range(), "a flag is given twice", "keep one of the two"));
            }
            all = Flags { register, set: all.set | flags.set, clear: all.clear | flags.clear };
        }
        Ok(all)
    }
}

/// A name, known if names are checked.
fn named<'n>(
    word: Word<'_>,
    kind: &str,
    mut known: Option<impl Iterator<Item = &'n String> + Clone>,
) -> Result<String, Fault> {
    let good = match &mut known {
        Some(names) => names.clone().any(|name| name == word.text),
        None => is_name(word.text),
    };
    if good {
        return Ok(word.text.to_owned());
    }
    Err(Fault::unknown(word.range(), kind, word.text, known.into_iter().flatten().map(String::as_str)))
}

fn mov_cr3(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let space = arguments.space()?;
    let flush = if arguments.optional("noflush") { Flush::No } else { Flush::Yes };
    Ok(Action::MovCr3 { space, flush })
}

fn invpcid(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let word = arguments.word("a type")?;
    Ok(Action::Invpcid(match word.text {
        "address" => InvpcidScope::Address { pcid: arguments.pcid()?, at: arguments.linear()? },
        "single" => InvpcidScope::Single(arguments.pcid()?),
        "all" => InvpcidScope::All,
        "all-but-global" => InvpcidScope::AllButGlobal,
        other => {
            let known = ["address", "single", "all", "all-but-global"];
            return Err(Fault::unknown(word.range(), "invpcid type", other, known));
        }
    }))
}

fn map(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let space = arguments.space()?;
    let at = arguments.words.peek().map_or_else(|| arguments.verb_at.clone(), |word| word.range());
    let mapping = arguments.mapping()?;
    let mode = arguments.scope.and_then(|scope| scope.spaces.get(&space));
    if let Some(mode) = mode.filter(|mode| !mode.page_sizes().contains(&mapping.size)) {
        let message = format!("{} has no {} pages", mode.name(), mapping.size.name());
        return Err(Fault::new(at, message, "see the page sizes of the mode"));
    }
    aligned(&mapping, at)?;
    Ok(Action::Map { space, mapping })
}

fn aligned(mapping: &Mapping, at: Range<usize>) -> Result<(), Fault> {
    if (mapping.from.0 | mapping.to.0) & (mapping.size.bytes() - 1) == 0 {
        return Ok(());
    }
    Err(Fault::new(at, format!("the addresses are not aligned to {}", mapping.size.name()), "use whole pages"))
}

fn nested_map(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let tables = arguments.nested()?;
    let at = arguments.words.peek().map_or_else(|| arguments.verb_at.clone(), |word| word.range());
    let mapping = arguments.mapping()?;
    aligned(&mapping, at)?;
    Ok(Action::NestedMap { tables, mapping })
}

fn nested_unmap(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    Ok(Action::NestedUnmap { tables: arguments.nested()?, at: arguments.physical()? })
}

fn write(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let at = arguments.linear()?;
    let value = number_at(arguments.word("a value")?, "the value")?;
    Ok(Action::Write { at, value, user: arguments.privilege() })
}

fn set_cpuid(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let mut change = CpuidChange::default();
    while change == CpuidChange::default() || arguments.words.peek().is_some() {
        let word = arguments.word("a change")?;
        let (key, text) = word.text.split_once('=').unwrap_or((word.text, ""));
        let value = Word { text, start: word.start + key.len() + 1 };
        match key {
            "maxphyaddr" => {
                let bits = number_at(value, "a number of bits")?;
                let bits = u32::try_from(bits).ok().filter(|bits| (32..=52).contains(bits));
                let help = "a processor with long mode has 32 to 52";
                let fault = || Fault::new(value.range(), "no processor has so many physical-address bits", help);
                change.maxphyaddr = Some(bits.ok_or_else(fault)?);
            }
            "without" => {
                let feature = PagingFeature::ALL.into_iter().find(|feature| feature.name() == text);
                let names = PagingFeature::ALL.map(PagingFeature::name);
                change.without.push(feature.ok_or_else(|| Fault::unknown(value.range(), "feature", text, names))?);
            }
            _ => {
                return Err(Fault::unknown(
                    word.start..word.start + key.len(),
                    "change",
                    key,
                    ["maxphyaddr", "without"],
                ));
            }
        }
    }
    Ok(Action::Host(HostStep::SetCpuid(change)))
}

fn set_registers(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let mut changes = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    while changes.is_empty() || arguments.words.peek().is_some() {
        let word = arguments.word("a change")?;
        let Some((key, value)) = word.text.split_once('=') else {
            let message = format!("{} is not a change", quote(word.text));
            return Err(Fault::new(word.range(), message, "KEY=VALUE, with KEY one of cr3, cr0, cr4, efer"));
        };
        let key_at = word.start..word.start + key.len();
        if seen.contains(&key) {
            return Err(Fault::new(key_at, format!("`{key}` is given twice"), "keep one of the two"));
        }
        let value = Word { text: value, start: key_at.end + 1 };
        changes.push(match ControlRegister::ALL.into_iter().find(|register| register.name() == key) {
            Some(register) => {
                let flags = Flags::parse(register, value.text).map_err(|fault| fault.shifted(value.start))?;
                if flags.is_empty() {
                    return Err(Fault::new(key_at, format!("`{key}=` changes nothing"), "such as cr0=+WP-AM"));
                }
                RegisterChange::Flags(flags)
            }
            None if key == "cr3" => RegisterChange::Cr3(arguments.space_in(value)?),
            None => return Err(Fault::unknown(key_at, "register", key, ["cr3", "cr0", "cr4", "efer"])),
        });
        seen.push(key);
    }
    Ok(Action::Host(HostStep::SetRegisters(changes)))
}

fn move_slot(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let slot = arguments.slot()?;
    let word = arguments.word("a guest-physical address")?;
    let at = number_at(word, "a guest-physical address")?;
    if !at.is_multiple_of(sim_core::addr::PAGE_BYTES) {
        return Err(Fault::new(word.range(), format!("a slot can't be at {at:#x}"), "slots are page-aligned"));
    }
    Ok(Action::Host(HostStep::MoveSlot { slot, at }))
}

fn log_dirty(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let slot = arguments.any_slot()?;
    let logging = arguments.one_of("on or off", Logging::ALL, Logging::name)?;
    Ok(Action::Host(HostStep::LogDirty { slot, logging }))
}

fn change_page(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let gfn = arguments.frame()?;
    let access = arguments.one_of("read-only or writable", PageAccess::ALL, PageAccess::name)?;
    Ok(Action::Host(HostStep::ChangePage { gfn, access }))
}

fn set_smm(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let smm = arguments.one_of("inside or outside", InSmm::ALL, InSmm::name)?;
    Ok(Action::Host(HostStep::SetSmm(smm)))
}

fn pause_at(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let gfn = arguments.frame()?;
    let point = match () {
        () if arguments.optional("after-walk") => PausePoint::AfterWalk,
        () if arguments.optional("before-entry") => PausePoint::BeforeEntry,
        () => PausePoint::BeforeLock,
    };
    Ok(Action::Host(HostStep::PauseAt { gfn, point }))
}

fn invept(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let word = arguments.word("a type")?;
    match word.text {
        "single" => Ok(Action::Invept(InveptScope::Single)),
        "global" => Ok(Action::Invept(InveptScope::Global)),
        other => Err(Fault::unknown(word.range(), "invept type", other, ["single", "global"])),
    }
}

fn vpid(word: Word<'_>) -> Result<u16, Fault> {
    u16::try_from(number_at(word, "a VPID")?)
        .map_err(|_| Fault::new(word.range(), "a VPID has 16 bits", "use 0 to 65535"))
}

fn invvpid(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let word = arguments.word("a type")?;
    let scope = match word.text {
        "all" => InvvpidScope::All,
        "single" => InvvpidScope::Single(vpid(arguments.word("a VPID")?)?),
        "but-global" => InvvpidScope::ButGlobal(vpid(arguments.word("a VPID")?)?),
        "address" => InvvpidScope::Address { vpid: vpid(arguments.word("a VPID")?)?, at: arguments.linear()? },
        other => {
            return Err(Fault::unknown(
                word.range(),
                "invvpid type",
                other,
                ["single", "all", "but-global", "address"],
            ));
        }
    };
    Ok(Action::Invvpid(scope))
}

const ENTER_KEYS: [&str; 13] = [
    "cr3",
    "host-cr3",
    "cr0",
    "cr4",
    "efer",
    "host-cr0",
    "host-cr4",
    "host-efer",
    "vpid",
    "asid",
    "tlb",
    "nested",
    "break",
];

fn enter(arguments: &mut Arguments<'_>) -> Result<Action, Fault> {
    let word = arguments.word("a guest")?;
    let guest = named(word, "guest", arguments.scope.map(|scope| scope.guests.iter()))?;
    let mut changes = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    while let Some(word) = arguments.words.next().copied() {
        let Some((key, value)) = word.text.split_once('=') else {
            let message = format!("{} is not a change", quote(word.text));
            return Err(Fault::new(
                word.range(),
                message,
                format!("KEY=VALUE, with KEY one of {}", ENTER_KEYS.join(", ")),
            ));
        };
        let key_at = word.start..word.start + key.len();
        if seen.contains(&key) {
            return Err(Fault::new(key_at, format!("`{key}` is given twice"), "keep one of the two"));
        }
        let value = Word { text: value, start: key_at.end + 1 };
        changes.push(change(arguments, Word { text: key, start: word.start }, value)?);
        seen.push(key);
    }
    Ok(Action::Enter { guest, changes })
}

fn change(arguments: &Arguments<'_>, key: Word<'_>, value: Word<'_>) -> Result<GuestChange, Fault> {
    let plain = key.text.strip_prefix("host-").unwrap_or(key.text);
    if let Some(register) = ControlRegister::ALL.into_iter().find(|register| register.name() == plain) {
        let flags = Flags::parse(register, value.text).map_err(|fault| fault.shifted(value.start))?;
        if flags.is_empty() {
            return Err(Fault::new(key.range(), format!("`{}=` changes nothing", key.text), "such as cr0=+WP-AM"));
        }
        let host = key.text.len() != plain.len();
        return Ok(if host { GuestChange::HostRegister(flags) } else { GuestChange::Register(flags) });
    }
    match key.text {
        "cr3" => arguments.space_in(value).map(GuestChange::Cr3),
        "host-cr3" => arguments.space_in(value).map(GuestChange::HostCr3),
        "vpid" => vpid(value).map(GuestChange::Vpid),
        "asid" => u16::try_from(number_at(value, "an ASID")?)
            .map(GuestChange::Asid)
            .map_err(|_| Fault::new(value.range(), "an ASID has 16 bits at most", "use 1 to 255")),
        "tlb" => TlbControl::ALL
            .into_iter()
            .find(|control| control.name() == value.text)
            .map(GuestChange::TlbControl)
            .ok_or_else(|| {
                Fault::unknown(value.range(), "TLB control", value.text, TlbControl::ALL.map(TlbControl::name))
            }),
        "nested" => {
            named(value, "nested tables", arguments.scope.map(|scope| scope.nested.iter())).map(GuestChange::Nested)
        }
        "break" => Break::ALL
            .into_iter()
            .find(|broken| broken.name() == value.text)
            .map(GuestChange::Break)
            .ok_or_else(|| Fault::unknown(value.range(), "thing to break", value.text, Break::ALL.map(Break::name))),
        other => Err(Fault::unknown(key.range(), "change", other, ENTER_KEYS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every actor's verbs are distinct, and each row is complete.
    #[test]
    fn table_is_sound() {
        for actor in Actor::ALL {
            let names: Vec<&str> = of(actor).map(|verb| verb.name).collect();
            for (index, name) in names.iter().enumerate() {
                assert!(!names[index + 1..].contains(name), "{name} twice for {}", actor.name());
            }
        }
        for verb in VERBS {
            assert!(!verb.help.is_empty() && !verb.observes.is_empty() && !verb.actors.is_empty(), "{}", verb.name);
        }
    }
}
