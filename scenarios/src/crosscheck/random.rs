//! Random scenarios for a KVM that runs only 64-bit guests without nesting: user code that edits the page table which maps
//! it, the guest's kernel that edits, invalidates and switches, and a host that moves pages and slots.
//!
//! | kind | what it is for |
//! |---|---|
//! | [`Kind::User`] | stale translations: accesses and edits at ring 3, with and without an invalidation |
//! | [`Kind::Walk`] | page walks: random bits in the entries of every level, one access, then the entries read back |

use super::{Engines, Here};
use crate::file::Vendor;
use crate::random::rng::Rng;
use crate::random::{Paging, Token, Within};
use mmu::change::Point;
use std::fmt::Write as _;
use std::ops::Range;

/// Virtual pages that are accessed; the first four share a page table.
const PAGES: [u64; 6] = [0x40_0000, 0x40_1000, 0x40_2000, 0x40_3000, 0x60_0000, 0x4000_0000];
/// Where space a maps the page table of the first four, writable for user code. It is the fifth table of the image: the
/// engine's own first 2 MiB have the first four.
const ALIAS: (u64, u64) = (0x40_8000, 0x8_4000);
/// Frames of data; each begins with a RET, so that it can be executed as well.
const FRAMES: Range<u64> = 0x200..0x208;
/// Rights of a mapping.
const RIGHTS: [&str; 8] = ["r", "rw", "rx", "rwx", "r user", "rw user", "rx user", "rwx user"];

/// What sort of scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Edits by user code.
    User,
    /// Page walks.
    Walk,
    /// The MMU under nested guests, for a KVM that can nest: the generator of `rolecall random`, without what a stock kernel
    /// lacks.
    Nested(Vendor, Paging),
}

impl Kind {
    /// Those for a KVM that emulates the guest's kernel.
    pub const SPLIT: [Self; 2] = [Self::User, Self::Walk];

    /// Those that say something on a machine.
    #[must_use]
    pub fn of(here: &Here) -> Vec<Self> {
        match here.engines {
            Engines::Split => Self::SPLIT.to_vec(),
            Engines::Hardware(vendor) => {
                vec![Self::Nested(vendor, if here.tdp { Paging::TwoDimensional } else { Paging::Shadow })]
            }
        }
    }

    /// The name of a scenario of this sort.
    #[must_use]
    pub fn token(self, seed: u64) -> String {
        match self {
            Self::Nested(vendor, paging) => {
                let paging = if paging == Paging::Shadow { "shadow" } else { "tdp" };
                format!("k1-nested-{}-{paging}-{seed:08x}", vendor.name())
            }
            Self::User | Self::Walk => format!("k1-{}-{seed:08x}", self.name()),
        }
    }

    /// Its name in tokens.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Walk => "walk",
            Self::Nested(..) => "nested",
        }
    }
}

/// The scenario file of a seed.
#[must_use]
pub fn text(kind: Kind, seed: u64) -> String {
    if let Kind::Nested(vendor, paging) = kind {
        let at = Point::newest().name.to_owned();
        return crate::random::text_within(&Token { at, vendor, paging, seed }, Within::Kernel);
    }
    let rng = &mut Rng::new(seed);
    let mut text = format!("title = \"{}\"\nsource = [\"random\"]\n", kind.token(seed));
    let memory: Vec<String> =
        FRAMES.map(|frame| format!("\"{:#x}: u64 {:#x}\"", frame << 12, frame << 8 | 0xc3)).collect();
    let _ = writeln!(text, "memory = [{}]\nsteps = \"\"\"", memory.join(", "));
    let count = match kind {
        Kind::User => 8 + rng.below(17),
        // What is permitted is told by a search, which one case leaves small.
        _ => 1,
    };
    for _ in 0..count {
        match kind {
            Kind::User => user_step(rng, &mut text),
            _ => walk_steps(rng, &mut text),
        }
    }
    text.push_str("\"\"\"\n[matrix]\nvendor = [\"amd\"]\ntdp = [false]\n[machine]\nmemory = \"4M\"\n");
    for space in ["a", "b"] {
        let maps: Vec<String> = PAGES.iter().map(|page| format!("\"{page:#x} -> {}\"", mapping(rng))).collect();
        let (from, to) = ALIAS;
        let alias = format!("\"{from:#x} -> {to:#x} rw user\"");
        let _ = writeln!(text, "[space.{space}]\nmode = \"long4\"\nmap = [{}, {alias}]", maps.join(", "));
    }
    text.push_str("[guest.l1]\nspace = \"a\"\n[expect]\n\"*\" = { coherent = true }\n");
    text
}

fn pick<T: Copy>(rng: &mut Rng, all: &[T], otherwise: T) -> T {
    rng.one(all).copied().unwrap_or(otherwise)
}

fn page(rng: &mut Rng) -> u64 {
    pick(rng, &PAGES, PAGES[0])
}

fn frame(rng: &mut Rng) -> u64 {
    FRAMES.start + rng.below(FRAMES.end - FRAMES.start)
}

fn mapping(rng: &mut Rng) -> String {
    format!("{:#x} {}", frame(rng) << 12, pick(rng, &RIGHTS, RIGHTS[0]))
}

fn access(rng: &mut Rng) -> String {
    let at = page(rng);
    match rng.below(5) {
        0 | 1 => format!("read {at:#x} user"),
        2 | 3 => format!("write {at:#x} {:#x} user", rng.below(0x100) << 8 | 0xc3),
        _ => format!("exec {at:#x} user"),
    }
}

/// A page-table entry as user code may write it: a frame, and any of the bits that matter to 4 KiB pages.
fn entry(rng: &mut Rng) -> u64 {
    const BITS: [u64; 6] = [1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 8, 1 << 63];
    let bits = BITS.iter().filter(|_| rng.chance(1, 2)).sum::<u64>();
    let present = u64::from(rng.chance(7, 8));
    frame(rng) << 12 | bits | present
}

fn user_step(rng: &mut Rng, text: &mut String) {
    let step = match rng.below(20) {
        0..=8 => format!("l1: {}", access(rng)),
        9..=11 => {
            let at = ALIAS.0 + rng.below(4) * 8;
            format!("l1: write {at:#x} {:#x} user", entry(rng))
        }
        12 | 13 => format!("l1: invlpg {:#x}", page(rng)),
        14 => format!("l1: mov-cr3 {}", pick(rng, &["a", "b"], "a")),
        15 => format!("l1: mov-cr0 {}WP", sign(rng)),
        16 => format!("l1: mov-cr4 {}SMEP {}SMAP", sign(rng), sign(rng)),
        17 => format!("host: zap-gfn {:#x}", frame(rng)),
        18 => format!("host: move-page {:#x}", frame(rng)),
        _ => "host: zap-all".to_owned(),
    };
    let _ = writeln!(text, "{step}");
}

fn sign(rng: &mut Rng) -> char {
    if rng.chance(1, 2) { '+' } else { '-' }
}

/// Random bits in some entries of one page's walk, everything invalidated, an access, and the entries as it left them.
fn walk_steps(rng: &mut Rng, text: &mut String) {
    const BITS: [&str; 5] = ["W", "U", "A", "D", "XD"];
    let at = page(rng);
    for level in 1..=4 {
        let bits: Vec<String> = BITS.iter().filter(|_| rng.chance(1, 3)).map(|bit| bit.to_string()).collect();
        let bits: Vec<String> = bits.into_iter().map(|bit| format!("{}{bit}", sign(rng))).collect();
        // What maps the engine's own code is shared above level 3: user access and execution stay as they are there.
        let bits: Vec<String> =
            bits.into_iter().filter(|bit| level < 3 || !bit.ends_with("XD") && bit != "-W" && bit != "-U").collect();
        if !bits.is_empty() {
            let _ = writeln!(text, "l1: set-entry a {level} {at:#x} {}", bits.join(" "));
        }
    }
    if rng.chance(1, 6) {
        let _ = writeln!(text, "l1: set-entry a 1 {at:#x} {}P", sign(rng));
    }
    if rng.chance(1, 4) {
        let _ = writeln!(text, "l1: mov-cr0 {}WP\nl1: mov-cr4 {}SMEP {}SMAP", sign(rng), sign(rng), sign(rng));
    }
    let _ = writeln!(text, "l1: mov-cr3 a");
    let user = rng.chance(1, 2);
    let who = if user { " user" } else { "" };
    let verb = match rng.below(3) {
        0 => format!("read {at:#x}{who}"),
        1 => format!("write {at:#x} 0xc3{who}"),
        _ => format!("exec {at:#x}{who}"),
    };
    let _ = writeln!(text, "l1: {verb}");
    for level in 1..=4 {
        let _ = writeln!(text, "l1: read-entry a {level} {at:#x}");
    }
}
