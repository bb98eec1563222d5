//! A run in the words of KVM's own `kvmmmu` trace events, as `trace_pipe` prints them (formats of v6.18): name and text are
//! the kernel's, byte for byte, wherever the model has the field. Behind a `#` stand the role word and those of its bits
//! that the kernel's text hides; steps and observations are comment lines.
//!
//! Time is the model's: core cycles at 1 GHz. A vCPU's thread is `vcpuN`, its process id 1000 + N. What the kernel prints
//! as a hashed pointer is a host-physical address here.

use mmu::PageRole;
use mmu::spte::Format;
use sim_core::event::{Event, FastOutcome, PageView, Record, RoleWord, Stamp};
use std::fmt::Write as _;

/// Cycles of a microsecond at 1 GHz.
const CYCLES_PER_US: u64 = 1000;

/// What stands before the role word, behind the kernel's text of a page.
pub(crate) const ROLE_MARK: &str = "  # role ";

/// The trace of a run whose entries have this format.
#[must_use]
pub fn render(records: &[Record], format: Format) -> String {
    let mut text = String::new();
    for Record { stamp, event } in records {
        let _ = match (event, trace_event(event, format)) {
            (Event::StepBegin { step, text: what }, _) => writeln!(text, "# [{step}] {what}"),
            (Event::Observed { text: what, .. }, _) => writeln!(text, "# saw {what}"),
            (_, Some((name, what))) => {
                let hidden = role_of(event).map(hidden_bits).unwrap_or_default();
                writeln!(text, "{} {name}: {what}{hidden}", prefix(*stamp))
            }
            _ => Ok(()),
        };
    }
    text
}

/// `            vcpu0-1000    [000] .....     0.000012:`.
fn prefix(stamp: Stamp) -> String {
    let task = format!("vcpu{}", stamp.processor);
    let microseconds = stamp.end.0 / CYCLES_PER_US;
    let time = format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000);
    let (pid, cpu) = (1000 + u32::from(stamp.processor), stamp.processor);
    format!("{task:>16}-{pid:<7} [{cpu:03}] ..... {time:>12}:")
}

/// An event's name and text in the kernel's words, if the kernel has one for it.
#[must_use]
pub fn trace_event(event: &Event, format: Format) -> Option<(&'static str, String)> {
    Some(match event {
        Event::PageGet { page, created } => {
            ("kvm_mmu_get_page", format!("{} {}", page_text(page), if *created { "new" } else { "existing" }))
        }
        Event::PageUnsync { page } => ("kvm_mmu_unsync_page", page_text(page)),
        Event::PageSync { page } => ("kvm_mmu_sync_page", page_text(page)),
        Event::PageZap { page } => ("kvm_mmu_prepare_zap_page", page_text(page)),
        Event::ZapAllFast { generation, used_pages } => {
            ("kvm_mmu_zap_all_fast", format!("kvm-mmu-valid-gen {generation} used_pages {used_pages:x}"))
        }
        Event::SpteSet { gfn, level, spte, sptep } => {
            let rights = rights_text(*spte, format);
            let level = level.number();
            ("kvm_mmu_set_spte", format!("gfn {:x} spte {spte:x} ({rights}) level {level} at {:x}", gfn.0, sptep.0))
        }
        Event::SpteRequested { gfn, hfn, level } => {
            ("kvm_mmu_spte_requested", format!("gfn {:x} pfn {:x} level {}", gfn.0, hfn.0, level.number()))
        }
        Event::TdpSpteChanged { space, gfn, level, old, new } => {
            let level = level.number();
            let text = format!("as id {space} gfn {:x} level {level} old_spte {old:x} new_spte {new:x}", gfn.0);
            ("kvm_tdp_mmu_spte_changed", text)
        }
        Event::SplitHugePage { gfn, spte, level, errno } => {
            let level = level.number();
            ("kvm_mmu_split_huge_page", format!("gfn {:x} spte {spte:x} level {level} errno {errno}", gfn.0))
        }
        other => return fault_event(other),
    })
}

/// Events of faults, walks and MMIO entries.
fn fault_event(event: &Event) -> Option<(&'static str, String)> {
    Some(match event {
        Event::GuestWalk { address, error } => {
            ("kvm_mmu_pagetable_walk", format!("addr {address:x} pferr {error:x} {}", error_flags(u64::from(*error))))
        }
        Event::GuestWalkEntry { entry, level } => {
            ("kvm_mmu_paging_element", format!("pte {entry:x} level {}", level.number()))
        }
        Event::GuestWalkError { error } => {
            ("kvm_mmu_walker_error", format!("pferr {error:x} {}", error_flags(u64::from(*error))))
        }
        Event::GuestAccessed { gpa } => ("kvm_mmu_set_accessed_bit", format!("gpa {:x}", gpa.0)),
        Event::GuestDirty { gpa } => ("kvm_mmu_set_dirty_bit", format!("gpa {:x}", gpa.0)),
        Event::MarkMmio { sptep, gfn, access, generation } => {
            let text = format!("sptep:{:016x} gfn {:x} access {access:x} gen {generation:x}", sptep.0, gfn.0);
            ("mark_mmio_spte", text)
        }
        Event::CheckMmio { spte, kvm_generation, spte_generation } => {
            let valid = u8::from(kvm_generation == spte_generation);
            let text = format!("spte {spte:x} kvm_gen {kvm_generation:x} spte-gen {spte_generation:x} valid {valid}");
            ("check_mmio_spte", text)
        }
        Event::HandleMmio { address, gfn, access } => {
            ("handle_mmio_page_fault", format!("addr:{address:x} gfn {:x} access {access:x}", gfn.0))
        }
        Event::FastPageFault { vcpu, address, error, sptep, old, new, outcome } => {
            let flags = error_flags(*error);
            let (spurious, fixed) =
                (u8::from(*outcome == FastOutcome::Spurious), u8::from(*outcome == FastOutcome::Fixed));
            let place = format!("vcpu {vcpu} gva {address:x} error_code {flags} sptep {:016x}", sptep.0);
            // "%#llx" prints no prefix before a zero.
            let old = if *old == 0 { "0".to_owned() } else { format!("{old:#x}") };
            ("fast_page_fault", format!("{place} old {old} new {new:x} spurious {spurious} fixed {fixed}"))
        }
        _ => return None,
    })
}

/// `KVM_MMU_PAGE_PRINTK`.
fn page_text(page: &PageView) -> String {
    format!(
        "sp gen {} gfn {:x} {} root {} {}",
        page.generation,
        page.gfn.0,
        PageRole(page.role.0).kvm_text(),
        page.root_count,
        if page.unsync { "unsync" } else { "sync" }
    )
}

/// The rights of an entry: in the EPT format, "user" is what makes it readable.
fn rights_text(spte: u64, format: Format) -> String {
    let letter = |set: bool, letter: char| if set { letter } else { '-' };
    let (readable, executable, user) = match format {
        Format::Paging => (true, spte >> 63 == 0, spte & 4 != 0),
        Format::Ept => (spte & 1 != 0, spte & 4 != 0, spte & 1 != 0),
    };
    [(readable, 'r'), (spte & 2 != 0, 'w'), (executable, 'x'), (user, 'u')]
        .map(|(set, name)| letter(set, name))
        .iter()
        .collect()
}

/// The flags of an error code in the order of the kernel's table, and what it has no name for in hex.
fn error_flags(error: u64) -> String {
    const FLAGS: [(u64, &str); 8] =
        [(1, "P"), (2, "W"), (4, "U"), (0x20, "PK"), (0x40, "SS"), (0x8000, "SGX"), (8, "RSVD"), (0x10, "F")];
    let mut rest = error;
    let mut parts = Vec::new();
    for (bit, name) in FLAGS.into_iter().filter(|(bit, _)| error & bit != 0) {
        rest &= !bit;
        parts.push(name.to_owned());
    }
    if rest != 0 {
        parts.push(format!("{rest:#x}"));
    }
    parts.join("|")
}

const fn role_of(event: &Event) -> Option<RoleWord> {
    match event {
        Event::PageGet { page, .. }
        | Event::PageUnsync { page }
        | Event::PageSync { page }
        | Event::PageZap { page } => Some(page.role),
        _ => None,
    }
}

/// The role word, and the bits that the kernel's text does not show.
fn hidden_bits(role: RoleWord) -> String {
    let hidden = PageRole(role.0 & !PageRole::IN_KVM_TEXT.0);
    let set = hidden.difference(PageRole(0)).into_iter().map(|name| format!(" {name}"));
    format!("{ROLE_MARK}{role}{}", set.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_core::addr::{Gfn, Gpa, Hfn, Hpa, Level};
    use sim_core::clock::Cycles;

    type Case = (Event, Format, &'static str, &'static str);

    fn check(cases: impl IntoIterator<Item = Case>) {
        for (event, format, name, text) in cases {
            assert_eq!(trace_event(&event, format), Some((name, text.to_owned())));
        }
    }

    /// The print formats of kvmmmu-formats-6.18: pages and entries.
    #[test]
    fn texts_of_pages_are_the_kernels() {
        let page = PageView { generation: 1, gfn: Gfn(0x80), role: RoleWord(0x2_3784), root_count: 1, unsync: false };
        let legacy = PageView { role: RoleWord(0xd733), unsync: true, root_count: 0, ..page };
        let sptep = Hpa(0x1234_5678);
        check([
            (
                Event::PageGet { page, created: true },
                Format::Ept,
                "kvm_mmu_get_page",
                "sp gen 1 gfn 80 l4 8-byte q0 direct wux nxe ad root 1 sync new",
            ),
            (
                Event::PageGet { page: legacy, created: false },
                Format::Paging,
                "kvm_mmu_get_page",
                "sp gen 1 gfn 80 l3 4-byte q1 wux nxe ad root 0 unsync existing",
            ),
            (
                Event::PageZap { page: PageView { role: RoleWord(0x1_0104), ..page } },
                Format::Ept,
                "kvm_mmu_prepare_zap_page",
                "sp gen 1 gfn 80 l4 8-byte q0 --x !nxe !ad root 1 sync",
            ),
            (
                Event::ZapAllFast { generation: 1, used_pages: 0x1f },
                Format::Ept,
                "kvm_mmu_zap_all_fast",
                "kvm-mmu-valid-gen 1 used_pages 1f",
            ),
            (
                Event::SpteSet { gfn: Gfn(0x200), level: Level::L1, spte: 0x8000_0000_0020_0e67, sptep },
                Format::Paging,
                "kvm_mmu_set_spte",
                "gfn 200 spte 8000000000200e67 (rw-u) level 1 at 12345678",
            ),
            (
                Event::SpteSet { gfn: Gfn(0x200), level: Level::L2, spte: 0x20_0b35, sptep },
                Format::Ept,
                "kvm_mmu_set_spte",
                "gfn 200 spte 200b35 (r-xu) level 2 at 12345678",
            ),
            (
                Event::SpteRequested { gfn: Gfn(0x10), hfn: Hfn(0x20), level: Level::L1 },
                Format::Ept,
                "kvm_mmu_spte_requested",
                "gfn 10 pfn 20 level 1",
            ),
            (
                Event::TdpSpteChanged { space: 0, gfn: Gfn(0x10), level: Level::L1, old: 0, new: 0xb77 },
                Format::Ept,
                "kvm_tdp_mmu_spte_changed",
                "as id 0 gfn 10 level 1 old_spte 0 new_spte b77",
            ),
            (
                Event::SplitHugePage { gfn: Gfn(0x200), spte: 0xbf7, level: Level::L2, errno: -12 },
                Format::Ept,
                "kvm_mmu_split_huge_page",
                "gfn 200 spte bf7 level 2 errno -12",
            ),
        ]);
    }

    /// The print formats of kvmmmu-formats-6.18: walks, MMIO entries and the fast path.
    #[test]
    fn texts_of_faults_are_the_kernels() {
        let sptep = Hpa(0x1234_5678);
        check([
            (
                Event::GuestWalk { address: 0x40_0000, error: 6 },
                Format::Paging,
                "kvm_mmu_pagetable_walk",
                "addr 400000 pferr 6 W|U",
            ),
            (
                Event::GuestWalkEntry { entry: 0x8_1023, level: Level::L4 },
                Format::Paging,
                "kvm_mmu_paging_element",
                "pte 81023 level 4",
            ),
            (Event::GuestWalkError { error: 0x19 }, Format::Paging, "kvm_mmu_walker_error", "pferr 19 P|RSVD|F"),
            (Event::GuestAccessed { gpa: Gpa(0x81000) }, Format::Paging, "kvm_mmu_set_accessed_bit", "gpa 81000"),
            (Event::GuestDirty { gpa: Gpa(0x81008) }, Format::Paging, "kvm_mmu_set_dirty_bit", "gpa 81008"),
            (
                Event::MarkMmio { sptep, gfn: Gfn(0xfee00), access: 7, generation: 0x2a },
                Format::Ept,
                "mark_mmio_spte",
                "sptep:0000000012345678 gfn fee00 access 7 gen 2a",
            ),
            (
                Event::CheckMmio { spte: 0x56, kvm_generation: 3, spte_generation: 2 },
                Format::Ept,
                "check_mmio_spte",
                "spte 56 kvm_gen 3 spte-gen 2 valid 0",
            ),
            (
                Event::HandleMmio { address: 0xfee0_0000, gfn: Gfn(0xfee00), access: 6 },
                Format::Ept,
                "handle_mmio_page_fault",
                "addr:fee00000 gfn fee00 access 6",
            ),
            (
                Event::FastPageFault {
                    vcpu: 0,
                    address: 0x1000,
                    error: 0x1_0000_0003,
                    sptep,
                    old: 0,
                    new: 0xb77,
                    outcome: FastOutcome::Fixed,
                },
                Format::Ept,
                "fast_page_fault",
                "vcpu 0 gva 1000 error_code P|W|0x100000000 sptep 0000000012345678 old 0 new b77 spurious 0 fixed 1",
            ),
        ]);
    }

    /// The prefix is trace_pipe's, and the hidden bits of a role come behind the kernel's text.
    #[test]
    fn lines_are_trace_pipes() {
        let page = PageView { generation: 0, gfn: Gfn(0x80), role: RoleWord(0x2_f704), root_count: 1, unsync: false };
        let stamp = Stamp { seq: 0, start: Cycles(0), end: Cycles(1_234_567_890), processor: 1 };
        let records = [Record { stamp, event: Event::PageUnsync { page } }];
        assert_eq!(
            render(&records, Format::Paging),
            "           vcpu1-1001    [001] .....     1.234567: kvm_mmu_unsync_page: sp gen 0 gfn 80 l4 8-byte q0 wux nxe \
             ad root 1 sync  # role 0x2f704 cr0_wp smep_andnot_wp smap_andnot_wp guest_mode\n"
        );
    }
}
