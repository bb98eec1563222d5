//! A shadow page as trace events tell it, in every form that kernels have had.
//!
//! | since | text |
//! |---|---|
//! | v4.x | `sp gen 3 gfn 1 l4 pae q0 direct wux nxe ad root 1 sync`, older ones without `l` and `ad` |
//! | v5.1 | `sp gfn 1 l4 8-byte q0 direct wux nxe ad root 1 sync` |
//! | v5.4 | `sp gen 0 gfn 1 l4 8-byte q0 direct wux nxe ad root 1 sync` |
//! | v6.4, option `fields` | `mmu_valid_gen=(0) gfn=0x1 (1) role=0x3784 (14212) root_count=0x1 (1) unsync=(0)` |
//! | rolecall | the text of v5.4, then `# role 0x23784` and the names of what the text hides |
//!
//! The text hides `cr0_wp`, `smep_andnot_wp`, `smap_andnot_wp`, `guest_mode`, `passthrough` and `smm`; a [`Seen`] says which bits
//! of its word are known. Bit 4 of the word is `has_4_byte_gpte` since v5.17 (KVM bb3b394d35e8); before, it said the opposite
//! (`gpte_is_8_bytes`, `cr4_pae`).

use super::word;
use super::words::{Fields, Words};
use crate::file::Fault;
use crate::file::diagnostics::quote;
use crate::file::words::words;
use crate::report::trace::ROLE_MARK;
use mmu::PageRole;
use mmu::change::Point;
use mmu::role::access_text;
use std::fmt;

/// A role, as far as a trace tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    /// The word; bits that are not known are 0.
    pub word: PageRole,
    /// The bits that are known.
    pub known: PageRole,
}

impl Seen {
    /// A role of which every bit is known.
    #[must_use]
    pub const fn whole(word: PageRole) -> Self {
        Self { word, known: PageRole(u32::MAX) }
    }

    /// What the kernel's text shows of a role.
    #[must_use]
    pub const fn in_text(word: PageRole) -> Self {
        let known = PageRole::IN_KVM_TEXT;
        Self { word: PageRole(word.0 & known.0), known }
    }

    /// Whether every bit is known.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.known.0 == u32::MAX
    }

    /// Whether the bits of a field are known.
    #[must_use]
    pub const fn knows(self, field: PageRole) -> bool {
        self.known.0 & field.0 == field.0
    }

    /// The role without what is each page's own: what all pages below a root have in common.
    #[must_use]
    pub const fn shared(self) -> Self {
        let mask = !PageRole::PER_PAGE.0;
        Self { word: PageRole(self.word.0 & mask), known: self.known }
    }

    /// The same page's role before or after it was zapped.
    #[must_use]
    pub const fn valid(self) -> Self {
        Self { word: self.word.with_invalid(0), known: self.known }
    }

    /// The fields, known in both, in which two roles differ.
    #[must_use]
    pub fn difference(self, other: Self) -> Vec<&'static str> {
        let both = self.known.0 & other.known.0;
        PageRole(self.word.0 & both).difference(PageRole(other.word.0 & both))
    }

    /// The known fields as a person reads them.
    #[must_use]
    pub fn describe(self) -> String {
        self.word.describe()
    }
}

/// The word; with a `?` behind it where bits are not known.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.word, if self.is_whole() { "" } else { "?" })
    }
}

/// How the kernel that wrote a page lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// The text of kernels before v5.1.
    Pae,
    /// The text of v5.1 to v5.3, which tells no generation.
    NoGeneration,
    /// The text since v5.4.
    Text,
    /// Fields.
    Fields,
    /// The text of this program's own traces.
    Own,
}

impl Form {
    /// What a person calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pae => "text of a kernel before v5.1",
            Self::NoGeneration => "text of v5.1 to v5.3",
            Self::Text => "text of v5.4 or later",
            Self::Fields => "fields",
            Self::Own => "rolecall's own",
        }
    }

    /// Whether the whole word is in it.
    #[must_use]
    pub const fn has_word(self) -> bool {
        matches!(self, Self::Fields | Self::Own)
    }
}

/// What bit 4 of a role word says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `has_4_byte_gpte`.
    #[default]
    Now,
    /// The opposite: kernels before v5.17.
    Before,
}

impl Layout {
    /// The layout at a point of history.
    #[must_use]
    pub fn at(point: Option<&Point>) -> Self {
        match point {
            Some(point) if !word::is_covered(point) => Self::Before,
            _ => Self::Now,
        }
    }

    fn role(self, word: u32) -> Seen {
        let word = PageRole(word);
        match self {
            Self::Now => Seen::whole(word),
            // Of a direct page the bit told the guest's paging, or nothing.
            Self::Before => Seen::whole(word.with_has_4_byte_gpte((1 - word.has_4_byte_gpte()) & (1 - word.direct()))),
        }
    }
}

/// A page as an event tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its generation, where the event tells it.
    pub generation: Option<u64>,
    /// The guest frame that it shadows, or the first that it maps.
    pub gfn: u64,
    /// Its role.
    pub role: Seen,
    /// How many roots refer to it.
    pub root_count: u64,
    /// Whether it is out of sync, before the event.
    pub unsync: bool,
    /// How it was written.
    pub form: Form,
}

/// What trace-cmd's own rendering of a page leads to.
const PLUGIN: &str = "trace-cmd's own rendering leaves out guest frames and role bits: use `trace-cmd report -R`";

impl Page {
    /// The page in an event's fields.
    pub(super) fn from_fields(fields: &Fields<'_>, layout: Layout) -> Result<Self, Fault> {
        let word = fields.get("role")?;
        let word = u32::try_from(word).map_err(|_| {
            Fault::new(0..0, format!("the role word {word:#x} has more than 32 bits"), "a role has 32 bits")
        })?;
        Ok(Self {
            generation: Some(fields.get_or("mmu_valid_gen", 0)?),
            gfn: fields.get("gfn")?,
            role: layout.role(word),
            root_count: fields.get("root_count")?,
            unsync: fields.get("unsync")? != 0,
            form: Form::Fields,
        })
    }

    /// The page in an event's text.
    pub(super) fn from_words(words: &mut Words<'_>) -> Result<Self, Fault> {
        if words.peek().is_some_and(|word| matches!(word, "new" | "existing") || word.parse::<u8>().is_ok()) {
            let word = words.next("a page")?;
            return Err(Fault::new(word.range(), "a page without all of its role", PLUGIN));
        }
        words.keyword("sp")?;
        let told = words.optional("gen");
        let generation = if told { Some(generation(words)?) } else { None };
        words.keyword("gfn")?;
        let gfn = words.hex("a guest frame")?;
        let (role, form) = role(words, generation)?;
        words.keyword("root")?;
        let root_count = words.decimal("a count of roots")?;
        let word = words.next("`sync` or `unsync`")?;
        let unsync = match word.text {
            "sync" => false,
            "unsync" => true,
            _ => return Err(words.wrong(word, "`sync` or `unsync`")),
        };
        Ok(Self { generation, gfn, role, root_count, unsync, form })
    }
}

/// Decimal since v5.4, hexadecimal before: it is only compared.
fn generation(words: &mut Words<'_>) -> Result<u64, Fault> {
    words.hex("a generation")
}

/// `l4 8-byte q0 direct wux invalid nxe !ad`.
fn role(words: &mut Words<'_>, generation: Option<u64>) -> Result<(Seen, Form), Fault> {
    let word = words.next("a level")?;
    let level = words.decimal_in(word, word.text.strip_prefix('l').unwrap_or(word.text), "a level such as `l4`")?;
    let (bytes, form) = match words.peek() {
        Some("8-byte") => (8, if generation.is_some() { Form::Text } else { Form::NoGeneration }),
        Some("4-byte") => (4, if generation.is_some() { Form::Text } else { Form::NoGeneration }),
        Some("pae") => (8, Form::Pae),
        _ => (4, Form::Pae),
    };
    if form != Form::Pae || bytes == 8 {
        words.next("the size of entries")?;
    }
    let word = words.next("a quadrant")?;
    let quadrant =
        words.decimal_in(word, word.text.strip_prefix('q').unwrap_or_default(), "a quadrant such as `q0`")?;
    let direct = words.optional("direct");
    let word = words.next("rights")?;
    let access = (0..8).find(|access| access_text(*access) == word.text);
    let access = access.ok_or_else(|| words.wrong(word, "rights such as `wux` or `-u-`"))?;
    let invalid = words.optional("invalid");
    let nx = flag(words, "nxe", "!nxe")?;
    let with_ad = form != Form::Pae || words.peek() != Some("root");
    let ad = if with_ad { flag(words, "ad", "!ad")? } else { true };
    let fits = |value: u64, most: u64| u32::try_from(value).ok().filter(|_| value <= most);
    let too_large =
        |what: &str| Fault::new(words.last(), format!("the role's {what} does not fit its field"), words.help());
    let has_4_byte = bytes == 4 && !(direct && form == Form::Pae);
    let word = PageRole(0)
        .with_level(fits(level, 0xf).ok_or_else(|| too_large("level"))?)
        .with_has_4_byte_gpte(u32::from(has_4_byte))
        .with_quadrant(fits(quadrant, 3).ok_or_else(|| too_large("quadrant"))?)
        .with_direct(u32::from(direct))
        .with_access(access)
        .with_invalid(u32::from(invalid))
        .with_efer_nx(u32::from(nx))
        .with_ad_disabled(u32::from(!ad));
    let seen = Seen::in_text(word);
    Ok((if with_ad { seen } else { Seen { known: seen.known.with_ad_disabled(0), ..seen } }, form))
}

fn flag(words: &mut Words<'_>, set: &str, clear: &str) -> Result<bool, Fault> {
    let word = words.next(&quote(set))?;
    match word.text {
        text if text == set => Ok(true),
        text if text == clear => Ok(false),
        _ => Err(words.wrong(word, &format!("`{set}` or `{clear}`"))),
    }
}

/// The page of this program's own traces: the whole word stands behind the text, and must agree with it.
pub(super) fn with_mark(page: Page, text: &str) -> Result<Page, Fault> {
    let Some((before, mark)) = text.split_once(ROLE_MARK) else { return Ok(page) };
    let mut rest = words(mark, before.len() + ROLE_MARK.len());
    let fault = |message: String| Fault::new(before.len()..text.trim_end().len(), message, "write `# role 0x3704`");
    let word = rest.next().ok_or_else(|| fault("no role word behind `# role`".to_owned()))?;
    let value = word.text.strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let whole = Seen::whole(PageRole(value.ok_or_else(|| fault(format!("{} is no role word", quote(word.text))))?));
    match whole.difference(page.role).as_slice() {
        [] => Ok(Page { role: whole, form: Form::Own, ..page }),
        fields => Err(fault(format!("the role word {} is not what the text says: {}", word.text, fields.join(" ")))),
    }
}
