//! Guests: what L1 starts with, what it puts in the VMCS or VMCB for each nested guest, and register flag lists.
//!
//! A flag list such as `+WP -PG` changes single bits on top of what the address space's mode implies. Only bits that
//! the architecture names can be changed (SDM 3A 2.5, 2.2.1; APM2 3.1).

use super::diagnostics::{Fault, quote};
use super::words::range_in;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use std::fmt;

/// The registers that flag lists change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ControlRegister {
    /// CR0.
    Cr0,
    /// CR4.
    Cr4,
    /// IA32_EFER.
    Efer,
}

impl ControlRegister {
    /// Every register that a flag list can change.
    pub const ALL: [Self; 3] = [Self::Cr0, Self::Cr4, Self::Efer];

    /// Its key in files and steps.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cr0 => "cr0",
            Self::Cr4 => "cr4",
            Self::Efer => "efer",
        }
    }

    /// Its named bits, lowest first.
    #[must_use]
    pub fn flags(self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Cr0 => Cr0::all().iter_names().map(|(name, bit)| (name, bit.bits())).collect(),
            Self::Cr4 => Cr4::all().iter_names().map(|(name, bit)| (name, bit.bits())).collect(),
            Self::Efer => Efer::all().iter_names().map(|(name, bit)| (name, bit.bits())).collect(),
        }
    }
}

/// Bits of one register to set and to clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flags {
    /// The register.
    pub register: ControlRegister,
    /// Bits that become 1.
    pub set: u64,
    /// Bits that become 0.
    pub clear: u64,
}

impl Flags {
    /// No change.
    #[must_use]
    pub const fn none(register: ControlRegister) -> Self {
        Self { register, set: 0, clear: 0 }
    }

    /// `value` with the changes made.
    #[must_use]
    pub const fn apply(self, value: u64) -> u64 {
        (value | self.set) & !self.clear
    }

    /// Whether nothing changes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.set == 0 && self.clear == 0
    }

    /// Reads `+WP -PG`, with or without white space between the flags.
    ///
    /// # Errors
    /// Names the flag that the register does not have, or that is given twice.
    pub fn parse(register: ControlRegister, text: &str) -> Result<Self, Fault> {
        let mut flags = Self::none(register);
        let mut rest = text.trim_start();
        while let Some(sign) = rest.chars().next() {
            let end = rest[sign.len_utf8()..].find(['+', '-']).map_or(rest.len(), |at| at + sign.len_utf8());
            let item = rest[..end].trim_end();
            flags.add(item, sign).map_err(|fault| fault.shifted(range_in(text, item).start))?;
            rest = rest[end..].trim_start();
        }
        Ok(flags)
    }

    fn add(&mut self, item: &str, sign: char) -> Result<(), Fault> {
        let known = self.register.flags();
        if !matches!(sign, '+' | '-') {
            return Err(Fault::new(
                0..item.len(),
                format!("a {} flag starts with + or -, unlike {}", self.register.name(), quote(item)),
                format!("write `+{}` to set a bit and `-{}` to clear it", known[0].0, known[0].0),
            ));
        }
        let name = &item[1..];
        let Some((_, bit)) = known.iter().find(|(flag, _)| *flag == name) else {
            let kind = format!("{} flag", self.register.name());
            return Err(Fault::unknown(1..item.len(), &kind, name, known.iter().map(|(flag, _)| *flag)));
        };
        if (self.set | self.clear) & bit != 0 {
            return Err(Fault::new(0..item.len(), format!("{name} is given twice"), "keep one of the two"));
        }
        match sign {
            '+' => self.set |= bit,
            _ => self.clear |= bit,
        }
        Ok(())
    }

    /// The list without white space, as the arguments of `enter` take it.
    #[must_use]
    pub fn compact(self) -> String {
        self.to_string().replace(' ', "")
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for (sign, bits) in [('+', self.set), ('-', self.clear)] {
            for (name, _) in self.register.flags().into_iter().filter(|(_, bit)| bits & bit != 0) {
                write!(f, "{space}{sign}{name}")?;
                space = " ";
            }
        }
        Ok(())
    }
}

/// The thing of a VMCS or VMCB that is made bad, so that VM entry must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Break {
    /// A VM-execution control, or a VMCB control, with an illegal value (SDM 3C 26.2.1; APM2 15.5.1).
    Control,
    /// A host-state field with an illegal value (SDM 3C 26.2.2). Intel only.
    HostState,
    /// A guest-state field with an illegal value (SDM 3C 26.3.1; APM2 15.5.1).
    GuestState,
    /// Guest CS and SS whose RPLs differ (SDM 3C 26.3.1.2): L0 sees it only after it has begun to switch to L2. Intel
    /// only.
    GuestSegments,
    /// A guest CR3 with a reserved bit set.
    Cr3,
    /// A PDPTE with a reserved bit set (SDM 3C 26.3.1.6; APM2 15.25.10).
    Pdptes,
    /// An entry of the VM-entry MSR-load area that cannot be loaded (SDM 3C 26.4). Intel only.
    MsrLoad,
    /// The second-stage table pointer with an illegal value (EPTP, nested CR3).
    NestedRoot,
}

impl Break {
    /// Every thing that can be made bad.
    pub const ALL: [Self; 8] = [
        Self::Control,
        Self::HostState,
        Self::GuestState,
        Self::GuestSegments,
        Self::Cr3,
        Self::Pdptes,
        Self::MsrLoad,
        Self::NestedRoot,
    ];

    /// Its name in files and steps.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::HostState => "host-state",
            Self::GuestState => "guest-state",
            Self::GuestSegments => "guest-segments",
            Self::Cr3 => "cr3",
            Self::Pdptes => "pdptes",
            Self::MsrLoad => "msr-load",
            Self::NestedRoot => "nested-root",
        }
    }
}

/// L1's own registers at the start.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FirstLevel {
    /// The address space that L1 starts in.
    pub space: String,
    /// Changes to CR0.
    pub cr0: Flags,
    /// Changes to CR4.
    pub cr4: Flags,
    /// Changes to EFER.
    pub efer: Flags,
}

/// L1's nested tables, where a file does not name any.
pub const MAIN_TABLES: &str = "main";

/// What L1 puts in the VMCS or VMCB for one nested guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// The address space in its CR3, which also says its mode.
    pub space: String,
    /// Changes to guest CR0.
    pub cr0: Flags,
    /// Changes to guest CR4.
    pub cr4: Flags,
    /// Changes to guest EFER.
    pub efer: Flags,
    /// The VPID, none where L1 leaves the control off. Intel only; AMD always tags with an ASID.
    pub vpid: Option<u16>,
    /// Whether L1 turns on accessed and dirty flags in EPT (EPTP bit 6). Intel only.
    pub ept_ad: bool,
    /// The ASID. AMD only.
    pub asid: u16,
    /// TLB_CONTROL. AMD only.
    pub tlb_control: super::steps::TlbControl,
    /// Which of L1's nested tables it runs on: [`MAIN_TABLES`] unless the file says another name.
    pub nested: String,
    /// What VM exit loads (Intel host-state area), none where L1 puts there what it has at entry.
    pub host: Option<HostState>,
    /// What is bad from the start.
    pub broken: Option<Break>,
}

/// What a VM exit loads on Intel (SDM 3C 27.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostState {
    /// The address space in host CR3, none for L1's at entry.
    pub space: Option<String>,
    /// Changes to host CR0.
    pub cr0: Flags,
    /// Changes to host CR4.
    pub cr4: Flags,
    /// Changes to host EFER.
    pub efer: Flags,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_lists() {
        let wp = Cr0::WP.bits();
        let pg = Cr0::PG.bits();
        for (text, set, clear, printed) in [
            ("", 0, 0, ""),
            ("+WP", wp, 0, "+WP"),
            ("-PG +WP", wp, pg, "+WP -PG"),
            ("+WP-PG", wp, pg, "+WP -PG"),
            ("  +WP   -PG  ", wp, pg, "+WP -PG"),
        ] {
            let flags = Flags::parse(ControlRegister::Cr0, text).unwrap();
            assert_eq!((flags.set, flags.clear), (set, clear), "{text}");
            assert_eq!(flags.to_string(), printed);
            assert_eq!(flags.apply(pg), (pg | set) & !clear);
        }
    }

    #[test]
    fn bad_flag_lists() {
        for (text, at, part) in [
            ("WP", 0..2, "starts with + or -"),
            ("+WPP", 1..4, "unknown cr0 flag `WPP`"),
            ("+WP -WP", 4..7, "given twice"),
            ("+", 1..1, "unknown cr0 flag"),
            ("+WP é", 1..6, "unknown cr0 flag"),
            ("é+WP", 0..2, "starts with + or -"),
        ] {
            let fault = Flags::parse(ControlRegister::Cr0, text).unwrap_err();
            assert_eq!(fault.at, at, "{text}");
            assert!(fault.message.contains(part), "{text}: {}", fault.message);
        }
    }

    /// The schema's spelling is the steps' spelling.
    #[test]
    fn break_names_agree() {
        for broken in Break::ALL {
            assert_eq!(serde_json::to_value(broken).unwrap(), broken.name());
        }
    }
}
