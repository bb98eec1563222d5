//! The events that are read, one table: name, what the kernel writes, and what it means.
//!
//! Other events of `kvm` and `kvmmmu` say nothing about roles or about what a guest did that could become a step; they are
//! counted by name.

use super::page::{Layout, Page, with_mark};
use super::reason::{self, Reason};
use super::words::{Fields, Words};
use crate::file::{Fault, Vendor};

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It was made.
    Made,
    /// It was there when it was looked for.
    Found,
    /// It went out of sync.
    Unsync,
    /// It was brought into sync, or unlinked from what is out of sync.
    Sync,
    /// It was zapped.
    Zapped,
}

impl Fate {
    /// Every fate, in the order of the audit's columns.
    pub const ALL: [Self; 5] = [Self::Made, Self::Found, Self::Unsync, Self::Sync, Self::Zapped];

    /// Its column's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Found => "found",
            Self::Unsync => "unsync",
            Self::Sync => "sync",
            Self::Zapped => "zapped",
        }
    }
}

/// What an event tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Something became of a shadow page.
    Page(Fate, Page),
    /// An entry that maps a page was written.
    Entry {
        /// The guest frame.
        gfn: u64,
        /// The level.
        level: u64,
    },
    /// The TDP MMU changed an entry.
    TdpEntry,
    /// All pages became obsolete.
    ZapAll,
    /// The MMU walks the guest's tables.
    Walk {
        /// The address.
        address: u64,
        /// The page-fault error code.
        error: u64,
    },
    /// The guest faulted.
    Fault {
        /// Linear, or guest-physical under two-dimensional paging.
        address: u64,
        /// The error code.
        error: u64,
    },
    /// The guest left.
    Exit(Reason),
    /// A control register was written.
    CrWrite {
        /// Which.
        register: u64,
        /// Its new value.
        value: u64,
    },
    /// An MSR was written.
    MsrWrite {
        /// Which.
        index: u64,
        /// Its new value.
        value: u64,
    },
    /// L1 enters L2.
    Enter {
        /// Whose silicon.
        vendor: Option<Vendor>,
        /// Whether L2 has two-dimensional paging of L1's.
        nested_tdp: Option<bool>,
        /// Guest CR3, where L2 has none.
        cr3: Option<u64>,
    },
    /// The entry failed, in the kernel's words.
    EnterFailed(String),
    /// L2 is left for L1.
    Leave(Reason),
    /// INVLPGA.
    Invlpga {
        /// The linear address.
        address: u64,
        /// The ASID.
        asid: u64,
    },
    /// An SMI is entered, or RSM leaves it.
    Smm(Smm),
    /// So many events were lost here.
    Lost(u64),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Smm {
    /// Into SMM.
    Enters,
    /// Out of it.
    Leaves,
}

type Result<T> = std::result::Result<T, Fault>;

/// One row: an event, the text that the kernel writes, how that is read, and how its fields are.
struct Row {
    name: &'static str,
    form: &'static str,
    words: fn(&mut Words<'_>) -> Result<Option<Told>>,
    fields: fn(&Fields<'_>, Layout) -> Result<Option<Told>>,
}

const PAGE: &str = "sp gen 0 gfn 1 l4 8-byte q0 direct wux nxe ad root 0 sync";
const EXIT: &str = "vcpu 0 reason CR_ACCESS rip 0x1000 info1 0x0 info2 0x0 ...";

const ROWS: &[Row] = &[
    Row {
        name: "kvm_mmu_get_page",
        form: "sp gen 0 gfn 1 l4 8-byte q0 direct wux nxe ad root 0 sync new",
        words: |words| {
            let page = Page::from_words(words)?;
            let word = words.next("`new` or `existing`")?;
            let fate = match word.text {
                "new" => Fate::Made,
                "existing" => Fate::Found,
                _ => return Err(words.wrong(word, "`new` or `existing`")),
            };
            Ok(Some(Told::Page(fate, page)))
        },
        fields: |fields, layout| {
            let fate = if fields.get("created")? != 0 { Fate::Made } else { Fate::Found };
            Ok(Some(Told::Page(fate, Page::from_fields(fields, layout)?)))
        },
    },
    Row {
        name: "kvm_mmu_unsync_page",
        form: PAGE,
        words: |words| page(words, Fate::Unsync),
        fields: |fields, layout| Ok(Some(Told::Page(Fate::Unsync, Page::from_fields(fields, layout)?))),
    },
    Row {
        name: "kvm_mmu_sync_page",
        form: PAGE,
        words: |words| page(words, Fate::Sync),
        fields: |fields, layout| Ok(Some(Told::Page(Fate::Sync, Page::from_fields(fields, layout)?))),
    },
    Row {
        name: "kvm_mmu_prepare_zap_page",
        form: PAGE,
        words: |words| page(words, Fate::Zapped),
        fields: |fields, layout| Ok(Some(Told::Page(Fate::Zapped, Page::from_fields(fields, layout)?))),
    },
    Row {
        name: "kvm_mmu_set_spte",
        form: "gfn 200 spte 17c2a21 (r-x-) level 1 at 304c000",
        words: |words| {
            words.keyword("gfn")?;
            let gfn = words.hex("a guest frame")?;
            words.find(&["level"])?;
            Ok(Some(Told::Entry { gfn, level: words.decimal("a level")? }))
        },
        fields: |fields, _| Ok(Some(Told::Entry { gfn: fields.get("gfn")?, level: fields.get("level")? })),
    },
    Row {
        name: "kvm_tdp_mmu_spte_changed",
        form: "as id 0 gfn 10 level 1 old_spte 0 new_spte b77",
        words: |_| Ok(Some(Told::TdpEntry)),
        fields: |_, _| Ok(Some(Told::TdpEntry)),
    },
    Row {
        name: "kvm_mmu_zap_all_fast",
        form: "kvm-mmu-valid-gen 1 used_pages 1f",
        words: |_| Ok(Some(Told::ZapAll)),
        fields: |_, _| Ok(Some(Told::ZapAll)),
    },
    Row {
        name: "kvm_mmu_pagetable_walk",
        form: "addr 400000 pferr 6 W|U",
        words: |words| {
            words.keyword("addr")?;
            let address = words.hex("an address")?;
            words.keyword("pferr")?;
            Ok(Some(Told::Walk { address, error: words.hex("an error code")? }))
        },
        fields: |fields, _| Ok(Some(Told::Walk { address: fields.get("addr")?, error: fields.get("pferr")? })),
    },
    Row {
        name: "kvm_page_fault",
        form: "vcpu 0 rip 0x200000 address 0x0000000000200000 error_code 0x10",
        words: |words| {
            words.find(&["address"])?;
            let address = words.hex("an address")?;
            words.keyword("error_code")?;
            Ok(Some(Told::Fault { address, error: words.hex("an error code")? }))
        },
        fields: |fields, _| {
            Ok(Some(Told::Fault { address: fields.get("fault_address")?, error: fields.get("error_code")? }))
        },
    },
    Row { name: "kvm_exit", form: EXIT, words: |words| reason::read(words).map(Told::Exit).map(Some), fields: exit },
    Row {
        name: "kvm_cr",
        form: "cr_write 4 = 0x2620",
        words: |words| {
            let is_write = written(words, ["cr_write", "cr_read"])?;
            let register = words.hex("a register")?;
            words.keyword("=")?;
            let value = words.hex("a value")?;
            Ok(is_write.then_some(Told::CrWrite { register, value }))
        },
        fields: |fields, _| {
            let (register, value) = (fields.get("cr")?, fields.get("val")?);
            Ok((fields.get("rw")? != 0).then_some(Told::CrWrite { register, value }))
        },
    },
    Row {
        name: "kvm_msr",
        form: "msr_write c0000080 = 0xd01",
        words: |words| {
            let is_write = written(words, ["msr_write", "msr_read"])?;
            let index = words.hex("an MSR")?;
            words.keyword("=")?;
            let value = words.hex("a value")?;
            // "(#GP)" stands behind a write that was refused.
            Ok((is_write && words.peek().is_none()).then_some(Told::MsrWrite { index, value }))
        },
        fields: |fields, _| {
            let (index, value) = (fields.get("ecx")?, fields.get("data")?);
            let is_done = fields.get("write")? != 0 && fields.get_or("exception", 0)? == 0;
            Ok(is_done.then_some(Told::MsrWrite { index, value }))
        },
    },
    Row { name: "kvm_nested_vmenter", form: ENTER, words: enter, fields: enter_fields },
    // Its name before v6.0.
    Row { name: "kvm_nested_vmrun", form: ENTER, words: enter, fields: enter_fields },
    Row {
        name: "kvm_nested_vmenter_failed",
        form: "VMENTRY_INVALID_CONTROL_FIELD",
        words: |words| {
            let mut told = Vec::new();
            while words.peek().is_some() {
                told.push(words.next("the reason")?.text.to_owned());
            }
            Ok(Some(Told::EnterFailed(told.join(" "))))
        },
        fields: |_, _| Ok(Some(Told::EnterFailed(String::new()))),
    },
    Row {
        name: "kvm_nested_vmexit_inject",
        form: "reason: HLT ext_inf1: 0x0 ext_inf2: 0x0 ext_int: 0x0 ext_int_err: 0x0",
        words: |words| reason::read(words).map(Told::Leave).map(Some),
        fields: |fields, _| {
            let (isa, code) = (fields.get_or("isa", 0)?, fields.get("exit_code")?);
            Ok(Some(Told::Leave(Reason::of_number(isa, code, fields.get_or("exit_info1", 0)?))))
        },
    },
    Row {
        name: "kvm_invlpga",
        form: "rip: 0x1000 asid: 1 address: 0x400000",
        words: |words| {
            words.find(&["asid:"])?;
            let asid = words.decimal("an ASID")?;
            words.keyword("address:")?;
            Ok(Some(Told::Invlpga { asid, address: words.hex("an address")? }))
        },
        fields: |fields, _| Ok(Some(Told::Invlpga { asid: fields.get("asid")?, address: fields.get("address")? })),
    },
    Row { name: "kvm_smm_transition", form: SMM, words: smm, fields: smm_fields },
    // Its name before v5.19.
    Row { name: "kvm_enter_smm", form: SMM, words: smm, fields: smm_fields },
];

const ENTER: &str =
    "rip: 0x1000 vmcs: 0x303000 nested_rip: 0x2000 int_ctl: 0x0 event_inj: 0x0 nested_ept=n guest_cr3: 0x1000";
const SMM: &str = "vcpu 0: entering SMM, smbase 0x30000";

fn page(words: &mut Words<'_>, fate: Fate) -> Result<Option<Told>> {
    Ok(Some(Told::Page(fate, Page::from_words(words)?)))
}

/// Whether it is the first of two words.
fn written(words: &mut Words<'_>, [write, read]: [&str; 2]) -> Result<bool> {
    let word = words.next(write)?;
    match word.text {
        text if text == write => Ok(true),
        text if text == read => Ok(false),
        _ => Err(words.wrong(word, &format!("`{write}` or `{read}`"))),
    }
}

fn exit(fields: &Fields<'_>, _: Layout) -> Result<Option<Told>> {
    let (isa, code) = (fields.get_or("isa", 0)?, fields.get("exit_reason")?);
    let reason = Reason::of_number(isa, code, fields.get_or("info1", 0)?);
    Ok(Some(Told::Exit(reason.for_interruption(fields.get_or("intr_info", 0)?))))
}

fn enter(words: &mut Words<'_>) -> Result<Option<Told>> {
    const VENDORS: [(&str, Vendor); 2] = [("vmcs:", Vendor::Intel), ("vmcb:", Vendor::Amd)];
    words.find(&["vmcs:", "vmcb:"])?;
    let vendor = VENDORS.iter().find(|(mark, _)| *mark == words.last_text()).map(|(_, vendor)| *vendor);
    words.hex("an address")?;
    let (mut nested_tdp, mut cr3) = (None, None);
    while let Some(word) = words.peek() {
        words.next("a word")?;
        match word {
            "nested_ept=y" | "nested_npt=y" => nested_tdp = Some(true),
            "nested_ept=n" | "nested_npt=n" => nested_tdp = Some(false),
            "npt:" => nested_tdp = Some(words.optional("on")),
            "guest_cr3:" => cr3 = Some(words.hex("guest CR3")?),
            _ => {}
        }
    }
    Ok(Some(Told::Enter { vendor, nested_tdp, cr3 }))
}

fn enter_fields(fields: &Fields<'_>, _: Layout) -> Result<Option<Told>> {
    let vendor = reason::vendor_of(fields.get_or("isa", 0)?);
    let nested_tdp = fields.get_or("tdp_enabled", fields.get_or("npt", 2)?)?;
    let nested_tdp = (nested_tdp < 2).then_some(nested_tdp == 1);
    let cr3 = if nested_tdp == Some(false) { Some(fields.get_or("guest_pgd", u64::MAX)?) } else { None };
    Ok(Some(Told::Enter { vendor, nested_tdp, cr3: cr3.filter(|cr3| *cr3 != u64::MAX) }))
}

fn smm(words: &mut Words<'_>) -> Result<Option<Told>> {
    words.keyword("vcpu")?;
    words.next("a vCPU")?;
    let word = words.next("`entering` or `leaving`")?;
    match word.text {
        "entering" => Ok(Some(Told::Smm(Smm::Enters))),
        "leaving" => Ok(Some(Told::Smm(Smm::Leaves))),
        _ => Err(words.wrong(word, "`entering` or `leaving`")),
    }
}

fn smm_fields(fields: &Fields<'_>, _: Layout) -> Result<Option<Told>> {
    Ok(Some(Told::Smm(if fields.get("entering")? != 0 { Smm::Enters } else { Smm::Leaves })))
}

/// Whether an event is read.
#[must_use]
pub fn is_known(name: &str) -> bool {
    ROWS.iter().any(|row| row.name == name)
}

/// What an event tells; none if that is nothing of interest. Its name must be known.
///
/// # Errors
/// If the event's text is not what a kernel writes; places count in `text`.
pub fn read(name: &str, text: &str, layout: Layout) -> Result<Option<Told>> {
    let Some(row) = ROWS.iter().find(|row| row.name == name) else { return Ok(None) };
    if let Some(fields) = Fields::of(text) {
        return (row.fields)(&fields, layout);
    }
    match (row.words)(&mut Words::new(text, row.form))? {
        Some(Told::Page(fate, page)) => Ok(Some(Told::Page(fate, with_mark(page, text)?))),
        told => Ok(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu::PageRole;

    fn page_of(name: &str, text: &str) -> (Fate, Page) {
        match read(name, text, Layout::Now) {
            Ok(Some(Told::Page(fate, page))) => (fate, page),
            other => panic!("{text}: {other:?}"),
        }
    }

    /// Every row reads its own form.
    #[test]
    fn forms_are_read() {
        for row in ROWS {
            let form = row.form.trim_end_matches(" ...");
            assert!(read(row.name, form, Layout::Now).is_ok_and(|told| told.is_some()), "{}: {form}", row.name);
        }
    }

    /// One page in all forms.
    #[test]
    fn pages() {
        let role = 0x2_3784;
        for (text, known) in [
            ("sp gen 3 gfn 1a l4 8-byte q0 direct wux nxe ad root 1 sync new", PageRole::IN_KVM_TEXT.0),
            ("sp gfn 1a l4 8-byte q0 direct wux nxe ad root 1 sync new", PageRole::IN_KVM_TEXT.0),
            ("sp gen 3 gfn 1a l4 pae q0 direct wux nxe ad root 1 sync new", PageRole::IN_KVM_TEXT.0),
            ("sp gen 3 gfn 1a 4 pae q0 direct wux nxe root 1 sync new", PageRole::IN_KVM_TEXT.0 & !(1 << 16)),
            (
                "mmu_valid_gen=(3) gfn=0x1a (26) role=0x23784 (145284) root_count=0x1 (1) unsync=(0) created=(1)",
                u32::MAX,
            ),
            ("[FAILED TO PARSE] mmu_valid_gen=0x3 gfn=0x1a role=145284 root_count=1 unsync=0 created=1", u32::MAX),
            (
                "sp gen 3 gfn 1a l4 8-byte q0 direct wux nxe ad root 1 sync new  # role 0x23784 cr0_wp guest_mode",
                u32::MAX,
            ),
        ] {
            let (fate, page) = page_of("kvm_mmu_get_page", text);
            assert_eq!((fate, page.gfn, page.root_count, page.unsync), (Fate::Made, 0x1a, 1, false), "{text}");
            assert_eq!((page.role.word.0, page.role.known.0), (role & known, known), "{text}");
        }
    }

    /// What the kernel's text shows is read back as it was, over every such role.
    #[test]
    fn text_of_every_role() {
        let mask = PageRole::IN_KVM_TEXT.0;
        let mut word = 0u32;
        loop {
            let text = format!("sp gen 0 gfn 0 {} root 0 unsync", PageRole(word).kvm_text());
            let (_, page) = page_of("kvm_mmu_sync_page", &text);
            assert_eq!((page.role.word.0, page.unsync), (word, true), "{text}");
            // The next number made of the mask's bits.
            word = (word | !mask).wrapping_add(1) & mask;
            if word == 0 {
                break;
            }
        }
    }

    /// Bit 4 before v5.17.
    #[test]
    fn the_old_layout() {
        let fields = |role: u32| format!("mmu_valid_gen=0 gfn=1 role={role:#x} root_count=0 unsync=0 created=1");
        for (word, role) in [(0x3714, 0x3704), (0x3702, 0x3712), (0x3794, 0x3784), (0x3784, 0x3784)] {
            let told = read("kvm_mmu_get_page", &fields(word), Layout::Before);
            assert!(matches!(told, Ok(Some(Told::Page(_, page))) if page.role.word.0 == role), "{word:#x}: {told:?}");
        }
    }
}
