//! The machine and its memory: size, memory slots, first contents, and guest address spaces with their maps.
//!
//! Step slots and the identity map that every address space needs come by themselves and are not declared here.

use super::Span;
use super::diagnostics::{Fault, quote};
use super::words::{Word, number, number_at, offset_in, range_in, words};
use cpu::profile::TlbProfile;
use mmu::state::{Config, TdpMode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::{Gpa, Gva};
use std::fmt;

/// The paging mode of an address space (SDM 3A 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Real-address mode: no protection, no paging.
    Real,
    /// Protected mode without paging, flat segments.
    Flat32,
    /// 32-bit paging.
    Legacy32,
    /// PAE paging.
    Pae,
    /// 4-level paging in 64-bit mode.
    Long4,
    /// 5-level paging in 64-bit mode.
    Long5,
}

/// One past the last address that real mode can form: FFFF:FFFF.
const REAL_END: u64 = 0x10_fff0;
/// One past the last 32-bit address.
const END_32: u64 = 1 << 32;

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 6] = [Self::Real, Self::Flat32, Self::Legacy32, Self::Pae, Self::Long4, Self::Long5];

    /// Its name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Flat32 => "flat32",
            Self::Legacy32 => "legacy32",
            Self::Pae => "pae",
            Self::Long4 => "long4",
            Self::Long5 => "long5",
        }
    }

    /// Whether it has page tables.
    #[must_use]
    pub const fn has_paging(self) -> bool {
        !matches!(self, Self::Real | Self::Flat32)
    }

    /// Whether it is 64-bit mode.
    #[must_use]
    pub const fn is_long(self) -> bool {
        matches!(self, Self::Long4 | Self::Long5)
    }

    /// Whether a linear address exists in it.
    #[must_use]
    pub const fn holds(self, at: u64) -> bool {
        match self {
            Self::Real => at < REAL_END,
            Self::Flat32 | Self::Legacy32 | Self::Pae => at < END_32,
            Self::Long4 => Gva(at).is_canonical(48),
            Self::Long5 => Gva(at).is_canonical(57),
        }
    }

    /// The levels of its tables.
    #[must_use]
    pub const fn levels(self) -> u8 {
        match self {
            Self::Real | Self::Flat32 => 0,
            Self::Legacy32 => 2,
            Self::Pae => 3,
            Self::Long4 => 4,
            Self::Long5 => 5,
        }
    }

    /// The page sizes it can map.
    #[must_use]
    pub const fn page_sizes(self) -> &'static [PageSize] {
        match self {
            Self::Real | Self::Flat32 => &[],
            Self::Legacy32 => &[PageSize::Size4K, PageSize::Size4M],
            Self::Pae => &[PageSize::Size4K, PageSize::Size2M],
            Self::Long4 | Self::Long5 => &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G],
        }
    }

    /// The bits of CR0, CR4 and EFER that the mode needs, before a guest's flag lists change them.
    #[must_use]
    pub const fn registers(self) -> (Cr0, Cr4, Efer) {
        let (protected, paged) = (Cr0::PE.union(Cr0::ET), Cr0::PE.union(Cr0::ET).union(Cr0::PG));
        let long = Efer::LME.union(Efer::LMA);
        match self {
            Self::Real => (Cr0::ET, Cr4::empty(), Efer::empty()),
            Self::Flat32 => (protected, Cr4::empty(), Efer::empty()),
            Self::Legacy32 => (paged, Cr4::PSE, Efer::empty()),
            Self::Pae => (paged, Cr4::PAE, Efer::empty()),
            Self::Long4 => (paged, Cr4::PAE, long),
            Self::Long5 => (paged, Cr4::PAE.union(Cr4::LA57), long),
        }
    }
}

/// The size of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 4 MiB, in 32-bit paging.
    Size4M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// Every size.
    pub const ALL: [Self; 4] = [Self::Size4K, Self::Size2M, Self::Size4M, Self::Size1G];

    /// Its name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Size4K => "4K",
            Self::Size2M => "2M",
            Self::Size4M => "4M",
            Self::Size1G => "1G",
        }
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size4M => 1 << 22,
            Self::Size1G => 1 << 30,
        }
    }
}

/// A right of a mapping beyond reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// R/W = 1.
    Write = 1,
    /// XD = 0.
    Execute = 2,
    /// U/S = 1.
    User = 4,
    /// G = 1.
    Global = 8,
}

/// The rights of a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rights(u8);

impl Rights {
    /// Whether the mapping has this right.
    #[must_use]
    pub const fn has(self, right: Right) -> bool {
        self.0 & right as u8 != 0
    }

    /// These and one more.
    #[must_use]
    pub const fn with(self, right: Right) -> Self {
        Self(self.0 | right as u8)
    }
}

/// One page that an address space maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mapping {
    /// Where the line stands.
    pub span: Span,
    /// The linear address.
    pub from: Gva,
    /// The guest-physical address.
    pub to: Gpa,
    /// The page's size.
    pub size: PageSize,
    /// The rights.
    pub rights: Rights,
}

/// The line as it parses.
impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} r", self.from, self.to)?;
        let marks = [(Right::Write, "w"), (Right::Execute, "x"), (Right::User, " user"), (Right::Global, " global")];
        for (_, mark) in marks.into_iter().filter(|(right, _)| self.rights.has(*right)) {
            f.write_str(mark)?;
        }
        match self.size {
            PageSize::Size4K => Ok(()),
            size => write!(f, " {}", size.name()),
        }
    }
}

/// A guest address space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Space {
    /// Its name.
    pub name: String,
    /// Its paging mode.
    pub mode: Mode,
    /// What it maps, in the file's order.
    pub map: Vec<Mapping>,
    /// Where its root is, if it has no tables of its own.
    pub root: Option<Gpa>,
    /// The PCID in its CR3 value, none for 0 and CR4.PCIDE left alone.
    pub pcid: Option<u16>,
}

/// Which code sees a memory slot: the address spaces that it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SeenBy {
    /// All code.
    #[default]
    Everyone,
    /// Code in system-management mode.
    Smm,
}

/// What the host has behind a memory slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackedBy {
    /// Pages of its own.
    #[default]
    Pages,
    /// A device's memory, without struct pages (`VM_PFNMAP`).
    Device,
}

/// A memory slot beside main memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its first guest-physical byte.
    pub at: Gpa,
    /// Its size in 4 KiB pages.
    pub pages: u64,
    /// Whether user space does not see it (as KVM's APIC-access page).
    pub private: bool,
    /// Which code sees it.
    pub seen_by: SeenBy,
    /// Whether guest writes to it exit.
    pub read_only: bool,
    /// What the host has behind it.
    pub backed_by: BackedBy,
    /// Whether it is there from the start.
    pub present: bool,
}

/// The first contents of some guest-physical bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contents {
    /// The first byte's address.
    pub at: Gpa,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Machine {
    /// Bytes of main memory, from guest-physical 0.
    pub memory: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// Silicon features that this machine lacks, by name.
    pub silicon_without: Vec<String>,
    /// The geometry and habits of its translation caches.
    pub tlb: TlbProfile,
    /// The hypervisor's module parameters; `tdp` is the run's, not the machine's.
    pub module: Config,
    /// Logical processors; vCPU n begins on processor n, modulo their number.
    pub processors: u8,
    /// VPIDs that the hypervisor has for all guests (Intel).
    pub vpids: u16,
    /// ASIDs of each processor, 0 included, that the hypervisor has for its guests (AMD).
    pub asids: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            memory: 32 << 20,
            vcpus: 1,
            silicon_without: Vec::new(),
            tlb: TlbProfile::Base,
            module: Config::new(TdpMode::Off, 40),
            processors: 1,
            vpids: u16::MAX,
            asids: 0x8000,
        }
    }
}

const MAP_FORM: &str =
    "write `0x400000 -> 0x200000 rw`, with r, rw, rx or rwx, and if wanted: user, global, 2M, 4M, 1G";

/// Reads a map line such as `0x600000 -> 0x400000 rwx user 2M`.
pub(crate) fn parse_mapping(text: &str) -> Result<Mapping, Fault> {
    let mut rest = words(text, 0);
    let end = text.trim_end().len();
    let mut next = |what: &str| {
        rest.next().ok_or_else(|| Fault::new(end..end, format!("the map line ends before {what}"), MAP_FORM))
    };
    let from = number_at(next("a linear address")?, "the linear address")?;
    let arrow = next("`->`")?;
    if arrow.text != "->" {
        return Err(Fault::new(arrow.range(), format!("{} where `->` must be", quote(arrow.text)), MAP_FORM));
    }
    let to = number_at(next("a guest-physical address")?, "the guest-physical address")?;
    let mut rights = access(next("its rights")?)?;
    let mut size = None;
    for word in rest {
        let right = match word.text {
            "user" => Some(Right::User),
            "global" => Some(Right::Global),
            _ => None,
        };
        let page = PageSize::ALL.into_iter().find(|page| page.name() == word.text);
        let known = right.is_some() || page.is_some();
        if !known {
            let flags = ["user", "global", "4K", "2M", "4M", "1G"];
            return Err(Fault::unknown(word.range(), "map flag", word.text, flags));
        }
        if right.is_some_and(|right| rights.has(right)) || (page.is_some() && size.is_some()) {
            return Err(Fault::new(word.range(), format!("{} is said twice", quote(word.text)), MAP_FORM));
        }
        rights = right.map_or(rights, |right| rights.with(right));
        size = size.or(page);
    }
    let size = size.unwrap_or(PageSize::Size4K);
    Ok(Mapping { span: Span::default(), from: Gva(from), to: Gpa(to), size, rights })
}

fn access(word: Word<'_>) -> Result<Rights, Fault> {
    match word.text {
        "r" => Ok(Rights::default()),
        "rw" => Ok(Rights::default().with(Right::Write)),
        "rx" => Ok(Rights::default().with(Right::Execute)),
        "rwx" => Ok(Rights::default().with(Right::Write).with(Right::Execute)),
        other => Err(Fault::unknown(word.range(), "access", other, ["r", "rw", "rx", "rwx"])),
    }
}

/// What is wrong with a mapping in its mode; the fault covers the whole line.
pub(crate) fn check_mapping(mapping: &Mapping, mode: Mode, line: usize) -> Result<(), Fault> {
    let bytes = mapping.size.bytes();
    let name = mapping.size.name();
    let fail = |message: String, help: String| Err(Fault::new(0..line, message, help));
    if !mode.page_sizes().contains(&mapping.size) {
        let sizes: Vec<&str> = mode.page_sizes().iter().map(|size| size.name()).collect();
        return fail(format!("{} paging has no {name} pages", mode.name()), format!("it has {}", sizes.join(", ")));
    }
    for (what, address) in [("linear", mapping.from.0), ("guest-physical", mapping.to.0)] {
        if !address.is_multiple_of(bytes) {
            let help = format!("use {:#x}", address - address % bytes);
            return fail(format!("the {what} address {address:#x} is not aligned to its {name} page"), help);
        }
    }
    if !mode.holds(mapping.from.0) {
        let help = if mode.is_long() { "use a canonical address" } else { "addresses of this mode have 32 bits" };
        return fail(format!("{} is no linear address of {}", mapping.from, mode.name()), help.to_owned());
    }
    Ok(())
}

const CONTENTS_FORM: &str = "write `0x200000: 34 12` (bytes in hexadecimal) or `0x200000: u64 0x1234`";

/// Reads a memory line: `0x200000: 34 12`, or `0x201000: u64 0x1234` in little-endian order.
pub(crate) fn parse_contents(text: &str) -> Result<Contents, Fault> {
    let Some((address, values)) = text.split_once(':') else {
        return Err(Fault::new(0..text.len(), "no `:` after the address", CONTENTS_FORM));
    };
    let address = address.trim();
    let at = number_at(Word { text: address, start: range_in(text, address).start }, "the guest-physical address")?;
    let mut all = words(values, offset_in(text, values));
    let Some(first) = all.next() else {
        return Err(Fault::new(0..text.len(), "no bytes after the address", CONTENTS_FORM));
    };
    let width = match first.text {
        "u8" => Some(1),
        "u16" => Some(2),
        "u32" => Some(4),
        "u64" => Some(8),
        _ => None,
    };
    let bytes = match width {
        Some(width) => all.map(|word| little_endian(word, width)).collect::<Result<Vec<_>, _>>()?.concat(),
        None => std::iter::once(first).chain(all).map(byte).collect::<Result<Vec<_>, _>>()?,
    };
    if bytes.is_empty() {
        return Err(Fault::new(first.range(), format!("no number after `{}`", first.text), CONTENTS_FORM));
    }
    Ok(Contents { at: Gpa(at), bytes })
}

fn little_endian(word: Word<'_>, width: usize) -> Result<Vec<u8>, Fault> {
    let value = number_at(word, "a value")?;
    let bytes = value.to_le_bytes();
    if bytes[width..].iter().any(|byte| *byte != 0) {
        let message = format!("{} does not fit in {} bits", quote(word.text), 8 * width);
        return Err(Fault::new(word.range(), message, "use a wider type: u8, u16, u32, u64"));
    }
    Ok(bytes[..width].to_vec())
}

fn byte(word: Word<'_>) -> Result<u8, Fault> {
    let digits = word.text.len() == 2 && word.text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let value = number(&format!("0x{}", word.text)).and_then(|value| u8::try_from(value).ok());
    value.filter(|_| digits).ok_or_else(|| {
        Fault::new(word.range(), format!("{} is not a byte of two hexadecimal digits", quote(word.text)), CONTENTS_FORM)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_core::arch::control::PagingMode;

    #[test]
    fn mapping_lines() {
        for (line, printed) in [
            ("0x400000 -> 0x200000 rw", "0x400000 -> 0x200000 rw"),
            ("4096  ->  0 r", "0x1000 -> 0x0 r"),
            ("0x600000 -> 0x400000 rwx 2M user", "0x600000 -> 0x400000 rwx user 2M"),
            ("0x0 -> 0x0 rx global 1G", "0x0 -> 0x0 rx global 1G"),
        ] {
            assert_eq!(parse_mapping(line).unwrap().to_string(), printed, "{line}");
        }
    }

    #[test]
    fn contents_lines() {
        for (line, bytes) in [
            ("0x1000: 34 12", vec![0x34, 0x12]),
            ("0x1000: u16 0x1234", vec![0x34, 0x12]),
            ("0x1000: u8 1 2", vec![1, 2]),
            ("0x1000:u32 1", vec![1, 0, 0, 0]),
            ("0x1000: u64 0x1234", vec![0x34, 0x12, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(parse_contents(line).unwrap(), Contents { at: Gpa(0x1000), bytes }, "{line}");
        }
        for line in
            ["", "0x1000", "0x1000:", "0x1000: 1", "0x1000: 123", "0x1000: +1", "0x1000: u8 256", "0x1000: u8", "x: 12"]
        {
            assert!(parse_contents(line).is_err(), "{line}");
        }
    }

    /// SDM 3A 4.1.1: each mode's register bits select that mode.
    #[test]
    fn registers_select_the_mode() {
        for (mode, paging) in Mode::ALL.into_iter().zip([
            PagingMode::Off,
            PagingMode::Off,
            PagingMode::Legacy,
            PagingMode::Pae,
            PagingMode::Long4,
            PagingMode::Long5,
        ]) {
            let (cr0, cr4, efer) = mode.registers();
            assert_eq!(PagingMode::of(cr0, cr4, efer), paging, "{}", mode.name());
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
    }
}
