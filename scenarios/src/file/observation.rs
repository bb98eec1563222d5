//! What a step is expected to show, after `=>`. It prints exactly as it parses.
//!
//! ```text
//! => 0x1234              this
//! => may 0x1 | 0x2       exactly these, by some translation that the architecture permits each
//! => never 0x1           not this, by no translation that the architecture permits
//! ```

use super::diagnostics::{Fault, quote};
use super::words::{Word, is_name, number, number_at, offset_in, range_in, words};
use serde::{Deserialize, Serialize};
use sim_core::Gva;
use sim_core::arch::exception::{Exception, Vector};
use std::fmt;
use std::str::FromStr;

/// What a step shows to the level that takes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Observation {
    /// `0x1234`: the value that was read.
    Value(u64),
    /// `#PF(0x3) cr2 0x400000`: an exception. A part that is left out is not compared.
    Exception(Exception),
    /// `ok`: no exception, and no failure.
    Ok,
    /// `vmfail 7`: VMfailValid with this VM-instruction error number, or VMfailInvalid for 0 (SDM 3C 30.2, 30.4).
    VmFail(u32),
    /// `entry-failed` or `entry-failed msr-load`: VM entry failed after the checks on controls (SDM 3C 26.8).
    EntryFailed(Option<String>),
    /// `exit cpuid`: an exit to the level below, by its reason.
    Exit(String),
    /// `skipped`: nothing, for its level did not run when its turn came.
    Skipped,
    /// `dirty 0x200 0x201` or `dirty none`: the guest frames of a dirty log.
    Dirty(Vec<u64>),
    /// `young` or `old`: whether a guest frame was used since the host last asked.
    Age(PageAge),
    /// `paused`: the step is under way, and waits for `resume`. Bare silicon takes it at once or then.
    Paused,
    /// `-`: nothing, where only a hypervisor would show something. It agrees with whatever that is.
    Hidden,
}

/// Whether a guest frame was used since the host last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PageAge {
    /// It was.
    Young,
    /// It was not.
    Old,
}

/// What a step must show.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Expected {
    /// This observation.
    Shows(Observation),
    /// The set of observations over all translations that the architecture permits is exactly this one.
    May(Vec<Observation>),
    /// No translation that the architecture permits shows any of these.
    Never(Vec<Observation>),
}

impl Expected {
    /// Every observation that it names.
    #[must_use]
    pub fn observations(&self) -> &[Observation] {
        match self {
            Self::Shows(observation) => std::slice::from_ref(observation),
            Self::May(all) | Self::Never(all) => all,
        }
    }
}

impl FromStr for Expected {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let start = offset_in(text, text.trim_start());
        let keyword = text.split_whitespace().next().unwrap_or_default();
        let rest = &text[start + keyword.len()..];
        match keyword {
            "may" => alternatives(text, rest).map(Self::May),
            "never" => alternatives(text, rest).map(Self::Never),
            _ => match text.split_once('|') {
                Some((first, _)) => {
                    let at = first.len()..first.len() + 1;
                    let help = "write `may 0x1 | 0x2` where the architecture permits each of them";
                    Err(Fault::new(at, "alternatives without `may` or `never`", help))
                }
                None => text.parse().map(Self::Shows),
            },
        }
    }
}

/// What stands between the bars of `rest`, which is a part of `whole`.
fn alternatives(whole: &str, rest: &str) -> Result<Vec<Observation>, Fault> {
    let mut all = Vec::new();
    for part in rest.split('|') {
        let at = offset_in(whole, part);
        let observation: Observation = part.parse().map_err(|fault: Fault| fault.shifted(at))?;
        if all.contains(&observation) {
            let message = format!("{} is given twice", quote(part.trim()));
            return Err(Fault::new(range_in(whole, part.trim()), message, "keep one of the two"));
        }
        all.push(observation);
    }
    Ok(all)
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |all: &[Observation]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
        match self {
            Self::Shows(observation) => write!(f, "{observation}"),
            Self::May(all) => write!(f, "may {}", listed(all)),
            Self::Never(all) => write!(f, "never {}", listed(all)),
        }
    }
}

/// The kinds of [`Observation`], for the verb table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A value.
    Value,
    /// An exception.
    Exception,
    /// Success.
    Ok,
    /// A failed VMX instruction.
    VmFail,
    /// A failed VM entry.
    EntryFailed,
    /// An exit.
    Exit,
    /// A step that was left out.
    Skipped,
    /// A dirty log.
    Dirty,
    /// The age of a page.
    Age,
    /// A step under way.
    Paused,
    /// Nothing.
    Hidden,
}

impl Seen {
    /// How such an observation is written.
    #[must_use]
    pub const fn form(self) -> &'static str {
        match self {
            Self::Value => "0x1234",
            Self::Exception => "#PF(0x3) cr2 0x400000",
            Self::Ok => "ok",
            Self::VmFail => "vmfail N",
            Self::EntryFailed => "entry-failed [REASON]",
            Self::Exit => "exit REASON",
            Self::Skipped => "skipped",
            Self::Dirty => "dirty FRAME ... or dirty none",
            Self::Age => "young or old",
            Self::Paused => "paused",
            Self::Hidden => "-",
        }
    }
}

const FORMS: &str = "write a value (0x1234), an exception (#PF(0x3) cr2 0x400000), ok, vmfail N, entry-failed, exit REASON, \
     dirty FRAME ..., young, or old";

impl Observation {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Seen {
        match self {
            Self::Value(_) => Seen::Value,
            Self::Exception(_) => Seen::Exception,
            Self::Ok => Seen::Ok,
            Self::VmFail(_) => Seen::VmFail,
            Self::EntryFailed(_) => Seen::EntryFailed,
            Self::Exit(_) => Seen::Exit,
            Self::Skipped => Seen::Skipped,
            Self::Dirty(_) => Seen::Dirty,
            Self::Age(_) => Seen::Age,
            Self::Paused => Seen::Paused,
            Self::Hidden => Seen::Hidden,
        }
    }

    /// Whether two backends show the same: what one of them has not is not compared.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        let compared = |one: &Self| !matches!(one, Self::Hidden | Self::Paused);
        self == other || !compared(self) || !compared(other)
    }
}

impl FromStr for Observation {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let mut rest = words(text, 0);
        let Some(first) = rest.next() else {
            return Err(Fault::new(0..text.len(), "nothing follows `=>`", FORMS));
        };
        let mut argument = || rest.next();
        let observation = match first.text {
            "ok" => Self::Ok,
            "skipped" => Self::Skipped,
            "vmfail" => Self::VmFail(error_number(first, argument())?),
            "entry-failed" => Self::EntryFailed(argument().map(reason).transpose()?),
            "exit" => {
                let word = argument().ok_or_else(|| Fault::new(first.range(), "`exit` names no reason", FORMS))?;
                Self::Exit(reason(word)?)
            }
            "dirty" => Self::Dirty(frames(first, &mut argument)?),
            "paused" => Self::Paused,
            "young" => Self::Age(PageAge::Young),
            "old" => Self::Age(PageAge::Old),
            word if word.starts_with('#') => Self::Exception(exception(first, &mut argument)?),
            word => Self::Value(number(word).ok_or_else(|| {
                let known = ["ok", "vmfail", "entry-failed", "exit", "dirty", "young", "old"];
                let help = super::diagnostics::closest(word, known)
                    .map_or_else(|| FORMS.to_owned(), |meant| format!("did you mean `{meant}`?"));
                Fault::new(first.range(), format!("{} is not an observation", quote(word)), help)
            })?),
        };
        match rest.next() {
            Some(word) => Err(Fault::new(word.range(), format!("{} is one word too many", quote(word.text)), FORMS)),
            None => Ok(observation),
        }
    }
}

/// The frames of a dirty log, in order, or `none`.
fn frames<'a>(verb: Word<'a>, more: &mut impl FnMut() -> Option<Word<'a>>) -> Result<Vec<u64>, Fault> {
    let first =
        more().ok_or_else(|| Fault::new(verb.range(), "`dirty` names no frame", "dirty 0x200, or dirty none"))?;
    if first.text == "none" {
        return Ok(Vec::new());
    }
    let mut all = vec![number_at(first, "a guest frame")?];
    while let Some(word) = more() {
        let frame = number_at(word, "a guest frame")?;
        if all.last().is_some_and(|last| *last >= frame) {
            return Err(Fault::new(word.range(), "the frames are not in order", "write them ascending, each once"));
        }
        all.push(frame);
    }
    Ok(all)
}

fn error_number(verb: Word<'_>, word: Option<Word<'_>>) -> Result<u32, Fault> {
    let word =
        word.ok_or_else(|| Fault::new(verb.range(), "`vmfail` needs the VM-instruction error number", "vmfail 7"))?;
    u32::try_from(number_at(word, "the VM-instruction error")?)
        .map_err(|_| Fault::new(word.range(), "the VM-instruction error has 32 bits", "see SDM 3C 30.4"))
}

fn reason(word: Word<'_>) -> Result<String, Fault> {
    if is_name(word.text) {
        return Ok(word.text.to_owned());
    }
    Err(Fault::new(
        word.range(),
        format!("{} is not the name of a reason", quote(word.text)),
        "letters, digits, - and _, such as exit cpuid",
    ))
}

/// `#PF`, `#PF(0x3)`, and for a page fault `cr2 ADDRESS` after it.
fn exception<'a>(word: Word<'a>, more: &mut impl FnMut() -> Option<Word<'a>>) -> Result<Exception, Fault> {
    let (mnemonic, code) = match word.text.split_once('(') {
        Some((mnemonic, code)) => (mnemonic, Some(code)),
        None => (word.text, None),
    };
    let names = Vector::ALL.map(Vector::mnemonic);
    let Some(vector) = Vector::ALL.into_iter().find(|vector| vector.mnemonic() == mnemonic) else {
        return Err(Fault::unknown(word.start..word.start + mnemonic.len(), "exception", mnemonic, names));
    };
    let error = code.map(|code| error_code(word, vector, code)).transpose()?;
    let Some(keyword) = more() else {
        return Ok(Exception { vector, error, cr2: None });
    };
    if keyword.text != "cr2" || vector != Vector::PageFault {
        let message = format!("{} can't follow {mnemonic}", quote(keyword.text));
        return Err(Fault::new(keyword.range(), message, "only a page fault has more: #PF(0x3) cr2 0x400000"));
    }
    let address = more().ok_or_else(|| Fault::new(keyword.range(), "`cr2` names no address", "cr2 0x400000"))?;
    Ok(Exception { vector, error, cr2: Some(Gva(number_at(address, "cr2")?)) })
}

fn error_code(word: Word<'_>, vector: Vector, code: &str) -> Result<u32, Fault> {
    if !vector.has_error_code() {
        let message = format!("{} has no error code", vector.mnemonic());
        return Err(Fault::new(word.range(), message, format!("write {}", vector.mnemonic())));
    }
    let digits = code.strip_suffix(')').and_then(number).and_then(|code| u32::try_from(code).ok());
    digits.ok_or_else(|| {
        Fault::new(
            word.range(),
            "the error code must be a 32-bit number in parentheses",
            format!("write {}(0x3)", vector.mnemonic()),
        )
    })
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::Ok => f.write_str("ok"),
            Self::Skipped => f.write_str("skipped"),
            Self::VmFail(error) => write!(f, "vmfail {error}"),
            Self::EntryFailed(None) => f.write_str("entry-failed"),
            Self::EntryFailed(Some(reason)) => write!(f, "entry-failed {reason}"),
            Self::Exit(reason) => write!(f, "exit {reason}"),
            Self::Dirty(frames) if frames.is_empty() => f.write_str("dirty none"),
            Self::Dirty(frames) => {
                f.write_str("dirty")?;
                frames.iter().try_for_each(|frame| write!(f, " {frame:#x}"))
            }
            Self::Age(PageAge::Young) => f.write_str("young"),
            Self::Age(PageAge::Old) => f.write_str("old"),
            Self::Paused => f.write_str("paused"),
            Self::Hidden => f.write_str("-"),
            Self::Exception(Exception { vector, error, cr2 }) => {
                f.write_str(vector.mnemonic())?;
                if let Some(error) = error {
                    write!(f, "({error:#x})")?;
                }
                cr2.map_or(Ok(()), |address| write!(f, " cr2 {address}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelled() {
        for (text, printed) in [
            ("7", "0x7"),
            ("ok", "ok"),
            ("#UD", "#UD"),
            ("#GP(0)", "#GP(0x0)"),
            ("#PF", "#PF"),
            ("#PF(3)  cr2 4096", "#PF(0x3) cr2 0x1000"),
            ("#PF cr2 0x1000", "#PF cr2 0x1000"),
            ("vmfail 7", "vmfail 7"),
            ("entry-failed", "entry-failed"),
            ("entry-failed msr-load", "entry-failed msr-load"),
            ("exit cpuid", "exit cpuid"),
            ("skipped", "skipped"),
            ("dirty none", "dirty none"),
            ("dirty 512 0x201", "dirty 0x200 0x201"),
            ("young", "young"),
            ("paused", "paused"),
            ("old", "old"),
        ] {
            assert_eq!(text.parse::<Observation>().unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn expectations() {
        for (text, printed) in [
            ("0x1", "0x1"),
            ("may 1", "may 0x1"),
            (" may  1|2 ", "may 0x1 | 0x2"),
            ("never #PF | 0x7", "never #PF | 0x7"),
            ("may #PF(1) cr2 0 | ok", "may #PF(0x1) cr2 0x0 | ok"),
        ] {
            assert_eq!(text.parse::<Expected>().unwrap().to_string(), printed, "{text}");
        }
        for (text, at) in
            [("1 | 2", 2..3), ("may", 3..3), ("may 1 |", 7..7), ("may 1 | 1", 8..9), ("never okk", 6..9), ("", 0..0)]
        {
            assert_eq!(text.parse::<Expected>().unwrap_err().at, at, "{text}");
        }
    }

    #[test]
    fn misspelled() {
        for (text, at) in [
            ("", 0..0),
            ("okk", 0..3),
            ("ok ok", 3..5),
            ("#PX", 0..3),
            ("#UD(0)", 0..6),
            ("#PF(x)", 0..6),
            ("#PF(1", 0..5),
            ("#GP(0) cr2 1", 7..10),
            ("#PF cr2", 4..7),
            ("vmfail", 0..6),
            ("vmfail 0x100000000", 7..18),
            ("exit", 0..4),
            ("exit é", 5..7),
            ("dirty", 0..5),
            ("dirty 2 1", 8..9),
            ("dirty none 1", 11..12),
        ] {
            assert_eq!(text.parse::<Observation>().unwrap_err().at, at, "{text}");
        }
    }
}
