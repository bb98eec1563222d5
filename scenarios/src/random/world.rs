//! The machine of a random scenario: its address spaces, nested guests and slots, as the text of a scenario file and as
//! what the steps' generator must know of them.
//!
//! Every address space maps the same few linear addresses, each to one of a few frames, so that spaces alias each other's
//! memory; every frame begins with a RET, so that any of them can be executed. See [`super`] for what is legal.

use super::rng::Rng;
use super::token::{Paging, Token};
use crate::file::{Mode, PageSize, Vendor};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Regions of 2 MiB and of 4 MiB that hold the frames, so that nested tables can swap whole regions.
pub(super) const REGIONS: [u64; 5] = [0x20_0000, 0x40_0000, 0x80_0000, 0xa0_0000, 0xc0_0000];
/// Pages of each region that have contents.
const PAGES: u64 = 4;
/// Frames that small pages map.
pub(super) const FRAMES: [u64; 6] = [0x20_0000, 0x20_1000, 0x20_2000, 0x40_0000, 0x40_1000, 0x20_3000];
/// Linear addresses of small pages.
pub(super) const SMALL: [u64; 5] = [0x40_0000, 0x40_1000, 0x40_2000, 0x40_3000, 0x40_4000];
/// Linear addresses of small pages below tables of their own from level 3 down.
pub(super) const FAR: [u64; 2] = [0x4000_0000, 0x4000_1000];
/// A linear address that a large page maps, or small ones, and the next page.
pub(super) const LARGE: [u64; 2] = [0x80_0000, 0x80_1000];
/// Frames that large pages map: aligned for 2 MiB and for 4 MiB.
pub(super) const LARGE_FRAMES: [u64; 2] = [0x80_0000, 0xc0_0000];

/// A memory slot beside main memory, with the linear address that every space maps to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotKind {
    pub(super) name: &'static str,
    pub(super) at: u64,
    pub(super) linear: u64,
    text: &'static str,
}

/// The slots that a machine may have.
pub(super) const SLOTS: [SlotKind; 3] = [
    SlotKind { name: "rom", at: 0x1000_0000, linear: 0x60_0000, text: "read-only = true\n" },
    SlotKind { name: "apic", at: 0xfee0_0000, linear: 0x60_1000, text: "private = true\n" },
    SlotKind { name: "extra", at: 0x2000_0000, linear: 0x60_2000, text: "" },
];

/// The slot that can be at two places, and the second, which every space maps too.
pub(super) const MOVABLE: &str = "extra";
/// See [`MOVABLE`].
pub(super) const ELSEWHERE: u64 = 0x1800_0000;
const LINEAR_ELSEWHERE: u64 = 0x60_3000;

/// What an address space has at [`LARGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Big {
    /// A large page.
    Page,
    /// A table of small pages.
    Table,
    /// Nothing.
    Nothing,
}

/// Where the processor has the directory-pointer entries of PAE paging while a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pdptes {
    /// In registers, as without a hypervisor.
    Registers,
    /// In memory, as AMD's nested paging has it (APM2 15.25.10): bare silicon is no reference for edits of them.
    Memory,
}

/// An address space.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub(super) name: &'static str,
    pub(super) mode: Mode,
    pub(super) pcid: Option<u16>,
    pub(super) big: Big,
}

/// A nested guest.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) name: &'static str,
    pub(super) space: &'static str,
    pub(super) mode: Mode,
}

/// Where the scenario is to be taken: a real machine has not all that the model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// The model.
    Model,
    /// A stock kernel with default parameters, in a VM of one vCPU without an APIC; PCIDs on Intel only, no 5-level paging.
    Kernel,
}

/// A machine.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) within: Within,
    pub(super) vendor: Vendor,
    pub(super) nested_tdp: bool,
    vpid: bool,
    pub(super) vcpus: u8,
    /// Logical processors.
    pub(super) processors: u8,
    pub(super) l1_mode: Mode,
    pub(super) l1_space: &'static str,
    pub(super) spaces: Vec<Space>,
    pub(super) guests: Vec<Guest>,
    /// L1's nested tables.
    pub(super) tables: Vec<&'static str>,
    /// The slots, and whether each is there from the start.
    pub(super) slots: BTreeMap<&'static str, bool>,
    /// Where the processor has the directory-pointer entries of PAE paging.
    pub(super) pdptes: Pdptes,
    /// Whether userspace may take L2 away, after which bare silicon is no reference. On SVM the vCPU then has no registers
    /// to go on with (`svm_leave_nested`).
    pub(super) leaves: bool,
    /// What can be sent to a vCPU.
    pub(super) signals: Signals,
    text: String,
}

/// Which signals a vCPU may get, so that what it does then can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signals {
    /// None: L0 would have to emulate the real mode that they begin in, or KVM itself loses L1's registers
    /// (`svm_enter_smm` without nested paging).
    None,
    /// SMIs; an INIT waits while L1 uses the extension.
    Smi,
    /// SMIs and INITs.
    SmiAndInit,
}

impl Signals {
    const fn of(vendor: Vendor, paging: Paging, guests: bool) -> Self {
        match (paging, vendor, guests) {
            (Paging::Shadow, Vendor::Intel, _) | (Paging::Shadow, Vendor::Amd, true) => Self::None,
            (Paging::TwoDimensional, _, true) => Self::Smi,
            (_, _, false) => Self::SmiAndInit,
        }
    }
}

/// How often L1 runs in each mode.
const L1_MODES: [(Mode, u64); 5] =
    [(Mode::Long4, 9), (Mode::Long5, 2), (Mode::Pae, 4), (Mode::Legacy32, 3), (Mode::Flat32, 1)];
/// How often L2 does.
const L2_MODES: [(Mode, u64); 5] =
    [(Mode::Long4, 8), (Mode::Long5, 1), (Mode::Pae, 4), (Mode::Legacy32, 3), (Mode::Flat32, 2)];

impl Within {
    fn has(self, mode: Mode) -> bool {
        self == Self::Model || mode != Mode::Long5
    }
}

/// Whether code in a mode can run a guest in another.
fn can_run(vendor: Vendor, nested_tdp: bool, l1: Mode, l2: Mode) -> bool {
    match vendor {
        // SDM 3C 26.2.4; without EPT a guest of VMX is paged (SDM 3C 26.3.1.1).
        Vendor::Intel => l1.has_paging() && (l1.is_long() || !l2.is_long()) && (nested_tdp || l2.has_paging()),
        // The reach of L1's nested tables is that of its own paging (APM2 15.25.5); without paging it has none.
        Vendor::Amd => l1.has_paging() && (l1.is_long() || !l2.is_long()),
    }
}

fn pick(rng: &mut Rng, modes: &[(Mode, u64)], is_legal: impl Fn(Mode) -> bool) -> Mode {
    let chosen = rng.weighted(modes, |(mode, weight)| if is_legal(*mode) { *weight } else { 0 });
    chosen.map_or(Mode::Long4, |(mode, _)| *mode)
}

/// Names of L1's spaces, of L2's, and of the space that L1 may switch to.
const NAMES: [&str; 6] = ["a", "b", "c", "x", "y", "k"];

impl World {
    pub(super) fn new(rng: &mut Rng, token: &Token, within: Within) -> Self {
        let vendor = token.vendor;
        let nested_tdp = token.paging == Paging::TwoDimensional && rng.chance(1, 2);
        let vpid = vendor == Vendor::Amd || rng.chance(3, 4);
        let l1_mode = pick(rng, &L1_MODES, |mode| within.has(mode));
        let mut world = Self {
            within,
            vendor,
            nested_tdp,
            vpid,
            vcpus: *rng.weighted(&[1, 2, 3], |vcpus| [0, 5, 4, 2][usize::from(*vcpus)]).unwrap_or(&1),
            processors: 0,
            l1_mode,
            l1_space: NAMES[0],
            spaces: Vec::new(),
            guests: Vec::new(),
            tables: Vec::new(),
            slots: BTreeMap::new(),
            pdptes: match (vendor, token.paging) {
                (Vendor::Amd, Paging::TwoDimensional) => Pdptes::Memory,
                _ => Pdptes::Registers,
            },
            leaves: vendor == Vendor::Intel && rng.chance(1, 100),
            signals: Signals::None,
            text: String::new(),
        };
        if within == Within::Kernel {
            (world.vcpus, world.leaves) = (1, false);
        }
        world.processors = world.vcpus + if rng.chance(1, 4) { 1 } else { 0 };
        for slot in SLOTS {
            if rng.chance(1, 3) && (within == Within::Model || !slot.text.contains("private")) {
                world.slots.insert(slot.name, rng.chance(3, 4));
            }
        }
        let own = 1 + rng.below(3) as usize;
        for name in &NAMES[..own] {
            world.add_space(rng, name, l1_mode);
        }
        if l1_mode.has_paging() && rng.chance(9, 10) {
            world.add_guests(rng);
        }
        let may_switch = vendor == Vendor::Amd || world.guests.is_empty();
        if may_switch && rng.chance(1, 3) {
            let mode = pick(rng, &L1_MODES, |mode| {
                within.has(mode) && mode != l1_mode && (mode.has_paging() || world.guests.is_empty())
            });
            world.add_space(rng, NAMES[5], mode);
        }
        if within == Within::Model {
            world.signals = Signals::of(vendor, token.paging, !world.guests.is_empty());
        }
        world.write(rng, token);
        world
    }

    fn add_space(&mut self, rng: &mut Rng, name: &'static str, mode: Mode) {
        let pcid = (mode.is_long() && self.has_pcids() && rng.chance(1, 2)).then(|| rng.below(3) as u16);
        let big = *rng.one(&[Big::Page, Big::Table, Big::Nothing]).unwrap_or(&Big::Nothing);
        self.spaces.push(Space { name, mode, pcid, big });
    }

    /// One or two nested guests, on spaces of L1's or on others.
    fn add_guests(&mut self, rng: &mut Rng) {
        let names = if rng.chance(1, 4) { &["l2", "l3"][..] } else { &["l2"] };
        for (index, name) in names.iter().enumerate() {
            let mode = pick(rng, &L2_MODES, |mode| {
                self.within.has(mode) && can_run(self.vendor, self.nested_tdp, self.l1_mode, mode)
            });
            let shared: Vec<&'static str> =
                self.spaces.iter().filter(|space| space.mode == mode).map(|space| space.name).collect();
            let space = match rng.one(&shared) {
                Some(shared) if rng.chance(2, 3) => *shared,
                _ => {
                    let own = NAMES[3 + index];
                    self.add_space(rng, own, mode);
                    own
                }
            };
            self.guests.push(Guest { name, space, mode });
        }
        if self.nested_tdp {
            self.tables.push("main");
            if names.len() == 2 && rng.chance(1, 2) {
                self.tables.push("other");
            }
        }
    }

    /// Whether its processors have PCIDs.
    pub(super) fn has_pcids(&self) -> bool {
        self.within == Within::Model || self.vendor == Vendor::Intel
    }

    pub(super) fn space(&self, name: &str) -> Option<&Space> {
        self.spaces.iter().find(|space| space.name == name)
    }

    /// The names of the spaces of a mode.
    pub(super) fn spaces_of(&self, mode: Mode) -> Vec<&'static str> {
        self.spaces.iter().filter(|space| space.mode == mode).map(|space| space.name).collect()
    }

    /// The scenario file without its steps, which come instead of `{steps}`.
    pub(super) fn text(&self, steps: &str) -> String {
        self.text.replace("{steps}", steps)
    }

    fn write(&mut self, rng: &mut Rng, token: &Token) {
        let source = match (self.within, token.paging) {
            (Within::Model, _) => format!("rolecall random --token {token}"),
            (Within::Kernel, paging) => {
                let tdp = if paging == Paging::TwoDimensional { "on" } else { "off" };
                format!("rolecall rig --vendor {} --tdp {tdp} --random 1 --seed {}", self.vendor.name(), token.seed)
            }
        };
        let mut text = format!("title = \"random {token}\"\nsource = [\"{source}\"]\n");
        text.push_str(
            "# A step of a level that does not run when its turn comes is left out.\nout-of-turn = \"skip\"\n",
        );
        text.push_str(&self.contents());
        text.push_str("steps = \"\"\"\n{steps}\"\"\"\n");
        let tdp = token.paging == Paging::TwoDimensional;
        let _ = write!(
            text,
            "\n[matrix]\nvendor = [\"{}\"]\ntdp = [{tdp}]\nnested-tdp = [{}]\nvpid = [{}]\nat = [\"{}\"]\n",
            self.vendor.name(),
            self.nested_tdp,
            self.vpid,
            token.at
        );
        let _ = write!(text, "\n[machine]\nmemory = \"16M\"\nvcpus = {}\n", self.vcpus);
        let _ = writeln!(text, "processors = {}", self.processors);
        let eptp_flags = self.within == Within::Kernel || module(rng, token, &mut text);
        for slot in SLOTS {
            if let Some(present) = self.slots.get(slot.name) {
                let _ = writeln!(text, "\n[[slot]]\nname = \"{}\"\nat = \"{:#x}\"", slot.name, slot.at);
                let _ = write!(text, "present = {present}\n{}", slot.text);
            }
        }
        if self.slots.contains_key(MOVABLE) {
            // Room to move to: never there by itself.
            let _ = write!(text, "\n[[slot]]\nname = \"elsewhere\"\nat = \"{ELSEWHERE:#x}\"\npresent = false\n");
        }
        for space in &self.spaces {
            space.write(rng, &mut text, &self.slots);
        }
        let _ = write!(
            text,
            "\n[guest.l1]\nspace = \"{}\"\n{}",
            self.l1_space,
            registers(rng, self.l1_mode, self.has_pcids())
        );
        for (index, guest) in self.guests.iter().enumerate() {
            let _ = write!(text, "\n[guest.{}]\nspace = \"{}\"\n", guest.name, guest.space);
            if let Some(tables) = self.tables.get(index) {
                let _ = writeln!(text, "nested = \"{tables}\"");
            }
            match self.vendor {
                Vendor::Intel if rng.chance(2, 3) => {
                    let _ = writeln!(text, "vpid = {}", 1 + rng.below(2));
                    let _ = writeln!(text, "ept-ad = {}", rng.chance(1, 2) && eptp_flags);
                }
                Vendor::Intel => {}
                Vendor::Amd => {
                    let _ = writeln!(text, "asid = {}", 1 + rng.below(2));
                }
            }
            text.push_str(&registers(rng, guest.mode, self.has_pcids()));
        }
        text.push_str("\n[expect]\n\"*\" = { coherent = true, transparent = true }\n");
        self.text = text;
    }

    /// First contents: a RET and a number of its own in each page.
    fn contents(&self) -> String {
        let pages = REGIONS.iter().flat_map(|region| (0..PAGES).map(move |page| region + page * 0x1000));
        let slots = SLOTS.iter().filter(|slot| self.slots.get(slot.name) == Some(&true)).map(|slot| slot.at);
        let lines = pages.chain(slots).enumerate().map(|(number, at)| {
            let value = (number as u64 + 1) << 8 | 0xc3;
            format!("    \"{at:#x}: u64 {value:#x}\",\n")
        });
        format!("memory = [\n{}]\n", lines.collect::<String>())
    }
}

/// The hypervisor's module parameters, and how the host backs memory. Whether L1 may use accessed and dirty flags in EPT,
/// which L0 offers only if it does.
fn module(rng: &mut Rng, token: &Token, text: &mut String) -> bool {
    let tdp = token.paging == Paging::TwoDimensional;
    if rng.chance(1, 3) {
        let size = if rng.chance(3, 4) { "2M" } else { "1G" };
        let _ = writeln!(text, "host-pages = \"{size}\"");
    }
    let mut line = |legal: bool, often: (u64, u64), line: &str| {
        if rng.chance(often.0, often.1) && legal {
            let _ = writeln!(text, "{line}");
        }
    };
    line(true, (1, 4), "nx-huge-pages = true");
    line(tdp, (1, 4), "direct-mmu = \"legacy\"");
    line(true, (1, 8), "mmu-pages = 64");
    line(true, (1, 8), "contended = true");
    let tracked = tdp && token.vendor == Vendor::Intel && rng.chance(1, 4);
    if tracked {
        let _ = writeln!(text, "accessed-dirty = false");
    }
    match token.vendor {
        Vendor::Intel => {
            let few = rng.below(3);
            if rng.chance(1, 5) {
                let _ = writeln!(text, "vpids = {few}");
            }
        }
        Vendor::Amd => {
            if rng.chance(1, 6) {
                let _ = writeln!(text, "asids = 3");
            }
        }
    }
    !tracked
}

/// Flags that a guest starts with.
fn registers(rng: &mut Rng, mode: Mode, pcids: bool) -> String {
    let mut text = String::new();
    let mut line = |key: &str, flags: &[&str]| {
        let chosen: String = flags.iter().filter(|_| rng.chance(1, 4)).map(|flag| format!("{flag} ")).collect();
        if !chosen.is_empty() {
            let _ = writeln!(text, "{key} = \"{}\"", chosen.trim_end());
        }
    };
    line("cr0", &["-WP"]);
    match mode {
        Mode::Long4 | Mode::Long5 if pcids => line("cr4", &["+SMEP", "+SMAP", "+PGE", "+PCIDE"]),
        _ => line("cr4", &["+SMEP", "+SMAP", "+PGE"]),
    }
    line("efer", &["-NXE"]);
    text
}

/// The rights of a mapping.
pub(super) fn rights(rng: &mut Rng) -> String {
    const BASES: [(&str, u64); 4] = [("r", 2), ("rw", 5), ("rx", 2), ("rwx", 4)];
    let base = rng.weighted(&BASES, |(_, weight)| *weight).map_or("rw", |(base, _)| *base);
    let user = if rng.chance(1, 2) { " user" } else { "" };
    let global = if rng.chance(1, 6) { " global" } else { "" };
    format!("{base}{user}{global}")
}

/// The name of the large page size of a mode.
pub(super) const fn large_size(mode: Mode) -> PageSize {
    match mode {
        Mode::Legacy32 => PageSize::Size4M,
        _ => PageSize::Size2M,
    }
}

impl Space {
    /// The levels whose entries steps may edit at an address.
    pub(super) fn levels_at(&self, at: u64, pdptes: Pdptes) -> &'static [u8] {
        match (self.mode, FAR.contains(&at)) {
            (Mode::Real | Mode::Flat32, _) => &[],
            (Mode::Legacy32, _) | (_, false) => &[1, 2],
            (Mode::Pae, true) if pdptes == Pdptes::Memory => &[1, 2],
            (_, true) => &[1, 2, 3],
        }
    }

    fn write(&self, rng: &mut Rng, text: &mut String, slots: &BTreeMap<&'static str, bool>) {
        let _ = write!(text, "\n[space.{}]\nmode = \"{}\"\n", self.name, self.mode.name());
        if let Some(pcid) = self.pcid {
            let _ = writeln!(text, "pcid = {pcid}");
        }
        if !self.mode.has_paging() {
            return;
        }
        let mut lines = Vec::new();
        let small = SMALL.iter().chain(&FAR).chain(if self.big == Big::Table { &LARGE[..] } else { &[] });
        for at in small {
            // The first page of each table is there, so that the table is.
            let is_first = at & 0x1f_ffff == 0;
            let frame = *rng.one(&FRAMES).unwrap_or(&FRAMES[0]);
            let rights = rights(rng);
            if is_first || rng.chance(4, 5) {
                lines.push(format!("{at:#x} -> {frame:#x} {rights}"));
            }
        }
        if self.big == Big::Page {
            let frame = *rng.one(&LARGE_FRAMES).unwrap_or(&LARGE_FRAMES[0]);
            lines.push(format!("{:#x} -> {frame:#x} {} {}", LARGE[0], rights(rng), large_size(self.mode).name()));
        }
        for slot in SLOTS.iter().filter(|slot| slots.contains_key(slot.name)) {
            lines.push(format!("{:#x} -> {:#x} {}", slot.linear, slot.at, rights(rng)));
        }
        if slots.contains_key(MOVABLE) {
            lines.push(format!("{LINEAR_ELSEWHERE:#x} -> {ELSEWHERE:#x} {}", rights(rng)));
        }
        let lines: String = lines.iter().map(|line| format!("    \"{line}\",\n")).collect();
        let _ = writeln!(text, "map = [\n{lines}]");
    }
}
