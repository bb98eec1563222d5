//! Why a guest was left, in the names that KVM gives to exit reasons: those of VMX in capitals, those of SVM in small letters
//! (`VMX_EXIT_REASONS` and `SVM_EXIT_REASONS` of the kernel's interface).

use super::words::Words;
use crate::file::{Fault, Vendor};

/// What an exit reason says about the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// INVLPG, of the address in the exit's first information field.
    Invlpg,
    /// A control register was touched.
    Control,
    /// An MSR was.
    Msr,
    /// L1 enters L2.
    Enter,
    /// An instruction that invalidates.
    Invalidate,
    /// A fault on the second stage.
    SecondStage,
    /// A page fault.
    PageFault,
    /// Anything else.
    Other,
}

/// One row: vendor, number, the kernel's name, meaning.
const ROWS: &[(Vendor, u64, &str, Meaning)] = &[
    (Vendor::Intel, 0, "EXCEPTION_NMI", Meaning::Other),
    (Vendor::Intel, 12, "HLT", Meaning::Other),
    (Vendor::Intel, 14, "INVLPG", Meaning::Invlpg),
    (Vendor::Intel, 18, "VMCALL", Meaning::Other),
    (Vendor::Intel, 20, "VMLAUNCH", Meaning::Enter),
    (Vendor::Intel, 24, "VMRESUME", Meaning::Enter),
    (Vendor::Intel, 28, "CR_ACCESS", Meaning::Control),
    (Vendor::Intel, 31, "MSR_READ", Meaning::Other),
    (Vendor::Intel, 32, "MSR_WRITE", Meaning::Msr),
    (Vendor::Intel, 48, "EPT_VIOLATION", Meaning::SecondStage),
    (Vendor::Intel, 49, "EPT_MISCONFIG", Meaning::SecondStage),
    (Vendor::Intel, 50, "INVEPT", Meaning::Invalidate),
    (Vendor::Intel, 53, "INVVPID", Meaning::Invalidate),
    (Vendor::Intel, 58, "INVPCID", Meaning::Invalidate),
    (Vendor::Amd, 0x10, "write_cr0", Meaning::Control),
    (Vendor::Amd, 0x13, "write_cr3", Meaning::Control),
    (Vendor::Amd, 0x14, "write_cr4", Meaning::Control),
    (Vendor::Amd, 0x4e, "PF excp", Meaning::PageFault),
    (Vendor::Amd, 0x65, "cr0_sel_write", Meaning::Control),
    (Vendor::Amd, 0x78, "hlt", Meaning::Other),
    (Vendor::Amd, 0x79, "invlpg", Meaning::Invlpg),
    (Vendor::Amd, 0x7a, "invlpga", Meaning::Other),
    (Vendor::Amd, 0x7c, "msr", Meaning::Msr),
    (Vendor::Amd, 0x80, "vmrun", Meaning::Enter),
    (Vendor::Amd, 0x81, "hypercall", Meaning::Other),
    (Vendor::Amd, 0xa2, "invpcid", Meaning::Invalidate),
    (Vendor::Amd, 0x400, "npf", Meaning::SecondStage),
];

/// An exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Whose reason it is, if that can be told.
    pub vendor: Option<Vendor>,
    /// The kernel's name, or its number.
    pub name: String,
    /// What it says.
    pub meaning: Meaning,
    /// The exit qualification, or EXITINFO1; none where the event does not tell it.
    pub info: Option<u64>,
}

/// `KVM_ISA_VMX` and `KVM_ISA_SVM`.
pub(super) const fn vendor_of(isa: u64) -> Option<Vendor> {
    match isa {
        1 => Some(Vendor::Intel),
        2 => Some(Vendor::Amd),
        _ => None,
    }
}

impl Reason {
    /// The reason with this number, of this vendor.
    pub(super) fn of_number(isa: u64, code: u64, info: u64) -> Self {
        let vendor = vendor_of(isa);
        let basic = if vendor == Some(Vendor::Intel) { code & 0xffff } else { code };
        let row = ROWS.iter().find(|(whose, number, ..)| vendor == Some(*whose) && *number == basic);
        let (name, meaning) = row.map_or((format!("{code:#x}"), Meaning::Other), |row| (row.2.to_owned(), row.3));
        Self { vendor, name, meaning, info: Some(info) }
    }

    /// The reason of an exit with this VM-exit interruption information.
    pub(super) fn for_interruption(self, information: u64) -> Self {
        let is_page_fault = self.vendor == Some(Vendor::Intel) && information & 0x7ff == PAGE_FAULT;
        if is_page_fault { Self { meaning: Meaning::PageFault, ..self } } else { self }
    }

    fn of_name(name: String, info: Option<u64>) -> Self {
        let first = name.split(' ').next().unwrap_or_default();
        let row = ROWS.iter().find(|(_, _, known, _)| *known == name || *known == first);
        let (vendor, meaning) = row.map_or((spelled_by(&name), Meaning::Other), |row| (Some(row.0), row.3));
        Self { vendor, name, meaning, info }
    }
}

/// Whose names are spelled like this.
fn spelled_by(name: &str) -> Option<Vendor> {
    if name.starts_with("0x") || !name.contains(|letter: char| letter.is_ascii_alphabetic()) {
        None
    } else if name.contains(|letter: char| letter.is_ascii_lowercase()) {
        Some(Vendor::Amd)
    } else {
        Some(Vendor::Intel)
    }
}

/// `reason CR_ACCESS rip 0x1000 info1 0x204 ...`, in the forms of all releases.
pub(super) fn read(words: &mut Words<'_>) -> Result<Reason, Fault> {
    words.find(&["reason", "reason:"])?;
    let mut name = vec![words.next("an exit reason")?.text];
    while let Some(word) = words.peek() {
        if matches!(word, "rip" | "info" | "info1" | "ext_inf1:" | "info1:") {
            break;
        }
        name.push(words.next("an exit reason")?.text);
    }
    let info = match words.find(&["info1", "info", "ext_inf1:", "info1:"]) {
        Ok(()) => Some(words.hex("the exit's information")?),
        Err(_) => None,
    };
    let interruption = if words.find(&["intr_info"]).is_ok() { words.hex("an interruption")? } else { 0 };
    Ok(Reason::of_name(name.join(" "), info).for_interruption(interruption))
}

/// A hardware exception of vector 14, in VM-exit interruption information (SDM 3C table 24-15).
const PAGE_FAULT: u64 = 3 << 8 | 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_all_releases() {
        for (text, vendor, name, meaning, info) in [
            (
                "vcpu 0 reason CR_ACCESS rip 0x20 info1 0x204 info2 0x0",
                Vendor::Intel,
                "CR_ACCESS",
                Meaning::Control,
                Some(0x204),
            ),
            ("reason INVLPG rip 0xffff info 400000 0", Vendor::Intel, "INVLPG", Meaning::Invlpg, Some(0x40_0000)),
            (
                "vcpu 0 reason PF excp rip 0x20 info1 0x2 info2 0x900",
                Vendor::Amd,
                "PF excp",
                Meaning::PageFault,
                Some(2),
            ),
            ("reason: hlt ext_inf1: 0x0 ext_inf2: 0x0", Vendor::Amd, "hlt", Meaning::Other, Some(0)),
            (
                "vcpu 0 reason VMLAUNCH FAILED_VMENTRY rip 0x1",
                Vendor::Intel,
                "VMLAUNCH FAILED_VMENTRY",
                Meaning::Enter,
                None,
            ),
            (
                "vcpu 0 reason EXCEPTION_NMI rip 0x1 info1 0x2 info2 0x0 intr_info 0x80000b0e error_code 0x2",
                Vendor::Intel,
                "EXCEPTION_NMI",
                Meaning::PageFault,
                Some(2),
            ),
            ("vcpu 0 reason CPUID rip 0x1", Vendor::Intel, "CPUID", Meaning::Other, None),
        ] {
            let reason = read(&mut Words::new(text, "")).unwrap();
            assert_eq!(reason, Reason { vendor: Some(vendor), name: name.to_owned(), meaning, info }, "{text}");
        }
        assert_eq!(Reason::of_number(1, 0x8000_0014, 0).name, "VMLAUNCH");
        assert_eq!(Reason::of_number(2, 0x999, 0).name, "0x999");
        assert!(read(&mut Words::new("vcpu 0 rip 0x1", "")).is_err());
    }

    /// A name means one row.
    #[test]
    fn names_are_distinct() {
        for (index, (.., name, _)) in ROWS.iter().enumerate() {
            assert!(!ROWS[index + 1..].iter().any(|row| row.2 == *name), "{name} twice");
        }
    }
}
