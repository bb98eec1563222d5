//! What a shadow must not keep: stale entries that a link makes reachable, entries that a sync should drop, references
//! to a root that could not be built, write access that a slot does not give (kvm-mmu.md A.5.4, A.6, A.7).

#[expect(dead_code, reason = "each test uses its part of the machine")]
mod support;

use mmu::fault::FaultOutcome::{EmulateWrite, Fixed, Mmio, Retry};
use mmu::memslot::{AddressSpace, Memslot, Protection};
use mmu::request::Requests;
use mmu::state::{RoleRegs, TdpMode};
use sim_core::addr::{Gfn, Hfn};
use sim_core::arch::control::Efer;
use support::guest::{ALL, EPT_ALL, Layout, Space};
use support::host::{Mapped, walk};
use support::{Guest, Machine, PRIVATE, PRIVATE_AT, R, RAM_AT, U, UNBACKED, W, at, mode};

const ROOT: u64 = 0x10_0000;
const PAGE: u64 = 0x40_0000;

fn vcpu(regs: RoleRegs) -> Machine {
    Machine::new(at("v5.18"), TdpMode::Off, regs, ROOT, 1)
}

/// A.7.11, 65855ed8b034 (v5.15): a table that becomes reachable again is brought up to date first.
#[test]
fn unsync_children_are_synced_before_linking() {
    let mut machine = vcpu(mode::long());
    let mut a = Space::new(Layout::Four, ROOT >> 12);
    let va = 0x40_0000;
    a.map(&mut machine, va, PAGE | ALL);
    let leaf = a.entry(&mut machine, va, 1);
    a.map(&mut machine, va + 0x1000, leaf & !0xfff | ALL);
    a.map(&mut machine, va + 0x2000, (PAGE + 0x2000) | ALL);
    // A second root shares everything below its top table.
    let b = 0x18_0000;
    let top = machine.read(ROOT, 8);
    machine.write(b, top, 8);
    machine.run(0);
    assert_eq!(machine.fault(0, va, U), Fixed);
    assert_eq!(machine.fault(0, va + 0x1000, W | U), Fixed);
    machine.write(leaf, 0x50_0000 | ALL, 8);
    machine.mov_cr3(0, b);
    machine.run(0);
    assert_eq!(machine.fault(0, va + 0x2000, U), Fixed);
    let frame = walk(&machine, 0, va).map(|mapped| mapped.frame);
    assert_ne!(frame, Some(Hfn(RAM_AT.0 + 0x400)), "the stale page of before MOV CR3");
}

/// A.5.4: visibility of present PDPTRs is checked before anything is allocated.
#[test]
fn an_invisible_pdpte_leaves_no_references() {
    let mut machine = vcpu(mode::pae());
    machine.write(ROOT, 0x30_0001, 8);
    machine.write(ROOT + 8, UNBACKED.base().0 | 1, 8);
    machine.load_pdptes(0, ROOT);
    machine.run(0);
    assert!(machine.cpus[0].mmu.requests.contains(Requests::TRIPLE_FAULT));
    assert_eq!(machine.at_rest(), Vec::<String>::new());
}

/// A.6.8: a write of 8 bytes covers two 4-byte entries.
#[test]
fn a_wide_write_reaches_both_entries() {
    let mut machine = vcpu(mode::legacy());
    let mut s = Space::new(Layout::Legacy, ROOT >> 12);
    for va in [0x40_0000, 0x40_1000] {
        s.map(&mut machine, va, (PAGE + va) | ALL);
    }
    machine.run(0);
    for va in [0x40_0000, 0x40_1000] {
        assert_eq!(machine.fault(0, va, U), Fixed);
    }
    let leaf = s.entry(&mut machine, 0x40_0000, 1);
    machine.emulated_write(leaf, 0, 8);
    assert_eq!((walk(&machine, 0, 0x40_0000), walk(&machine, 0, 0x40_1000)), (None, None));
}

/// Maps a page and its own leaf table, makes the table unsync by writing this entry, and syncs.
fn written_and_synced(layout: Layout, regs: RoleRegs, value: u64) -> Option<Mapped> {
    let mut machine = vcpu(regs);
    let mut s = Space::new(layout, ROOT >> 12);
    let va = 0x40_0000;
    s.map(&mut machine, va, PAGE | ALL);
    let leaf = s.entry(&mut machine, va, 1);
    s.map(&mut machine, va + 0x1000, leaf & !0xfff | ALL);
    if layout == Layout::Pae {
        machine.load_pdptes(0, ROOT);
    }
    machine.run(0);
    assert_eq!(machine.fault(0, va, W | U), Fixed);
    assert_eq!(machine.fault(0, va + 0x1000, W | U), Fixed);
    machine.write(leaf, value, s.bytes());
    machine.mov_cr3(0, ROOT);
    machine.run(0);
    walk(&machine, 0, va)
}

/// A.6.6: without EFER.NXE the NX bit of a gpte is reserved, and a sync drops what it maps.
#[test]
fn sync_drops_nx_without_nxe() {
    let mut regs = mode::long();
    regs.efer -= Efer::NXE;
    assert_eq!(written_and_synced(Layout::Four, regs, PAGE | ALL | 1 << 63), None);
}

/// A.6.6, SDM 3C 28.3.5: with accessed and dirty bits on, a clean EPT entry is read-only and an unused one is dropped.
#[test]
fn sync_of_ept_honours_accessed_and_dirty() {
    for (value, want) in [(PAGE | EPT_ALL | 1 << 8, Some(false)), (PAGE | EPT_ALL, None)] {
        let mut machine = Machine::new(at("v5.18"), TdpMode::Ept, mode::long(), ROOT, 1);
        let mut s = Space::new(Layout::Ept, 0x200);
        s.map(&mut machine, 0x40_0000, PAGE | EPT_ALL);
        let leaf = s.entry(&mut machine, 0x40_0000, 1);
        let guest = Guest { regs: mode::long(), cr3: ROOT, nested: Some(s.root | 0x5e) };
        machine.run(0);
        machine.enter(0, guest);
        machine.run(0);
        assert_eq!(machine.fault(0, 0x40_0000, W), Fixed);
        machine.exit(0, mode::long(), ROOT);
        machine.run(0);
        assert_eq!(machine.fault(0, leaf, W), Fixed);
        machine.write(leaf, value, 8);
        machine.enter(0, guest);
        machine.run(0);
        machine.mmu(0, |ctx, vcpu, view| ctx.sync_roots(vcpu, view)).expect("no error");
        assert_eq!(walk(&machine, 0, 0x40_0000).map(|mapped| mapped.write), want, "{value:#x}");
    }
}

/// A.6.6: a sync may not let its own table go out of sync again (`can_unsync` is 0).
#[test]
fn nothing_is_unsync_after_a_sync() {
    let mut machine = vcpu(mode::long());
    let mut s = Space::new(Layout::Four, ROOT >> 12);
    let va = 0x40_0000;
    s.map(&mut machine, va, PAGE | ALL);
    let leaf = s.entry(&mut machine, va, 1);
    s.map(&mut machine, va + 0x1000, leaf & !0xfff | ALL);
    machine.run(0);
    assert_eq!(machine.fault(0, va + 0x1000, W | U), Fixed);
    machine.mmu(0, |ctx, vcpu, view| ctx.sync_roots(vcpu, view)).expect("no error");
    assert_eq!(machine.vm.pages.all().filter(|(_, page)| page.unsync).count(), 0);
}

/// A.7.2, C-48 18c841e1f411 (v5.16): no SP to judge by, a reload is pending.
#[test]
fn a_fault_on_a_pae_root_retries_while_a_reload_is_pending() {
    for point in ["v5.17", "v5.18"] {
        let mut machine = Machine::new(at(point), TdpMode::Off, mode::pae(), ROOT, 1);
        let mut s = Space::new(Layout::Pae, ROOT >> 12);
        s.map(&mut machine, 0x40_0000, PAGE | ALL);
        machine.load_pdptes(0, ROOT);
        machine.run(0);
        machine.zap_all_fast();
        assert_eq!(machine.fault(0, 0x40_0000, U), Retry, "{point}");
    }
}

/// `KVM_MEM_READONLY`: reads are memory, writes exit.
#[test]
fn read_only_slots() {
    for tdp in [TdpMode::Off, TdpMode::Ept] {
        let mut machine = Machine::new(at("v5.18"), tdp, mode::long(), ROOT, 1);
        let slot = Memslot { protection: Protection::ReadOnly, ..Memslot::new("rom", Gfn(0x9_0000), 1, PRIVATE_AT) };
        machine.vm.slots.add(AddressSpace::Normal, slot).expect("no error");
        let gpa = 0x9000_0000;
        let mut s = Space::new(Layout::Four, ROOT >> 12);
        s.map(&mut machine, gpa, gpa | ALL);
        machine.run(0);
        assert_eq!(machine.fault(0, gpa, R), Fixed);
        assert!(!walk(&machine, 0, gpa).expect("no error").write, "{tdp:?}");
        assert!(matches!(machine.fault(0, gpa, W), Mmio(_) | EmulateWrite(_)), "{tdp:?}");
    }
}

/// A.5.4, kvm_is_visible_gfn: a private slot is not visible as a root.
#[test]
fn a_root_in_a_private_slot() {
    let mut machine = Machine::new(at("v5.18"), TdpMode::Off, mode::long(), PRIVATE.base().0, 1);
    machine.run(0);
    assert!(machine.cpus[0].mmu.requests.contains(Requests::TRIPLE_FAULT));
}

/// A.6.6: nor may it let another.
#[test]
fn two_unsync_tables_that_map_each_other() {
    let mut machine = vcpu(mode::long());
    let mut s = Space::new(Layout::Four, ROOT >> 12);
    let (x, y) = (0x40_0000, 0x80_0000);
    let (lx, ly) = (s.entry(&mut machine, x, 1), s.entry(&mut machine, y, 1));
    s.map(&mut machine, x, ly & !0xfff | ALL);
    s.map(&mut machine, y, lx & !0xfff | ALL);
    machine.run(0);
    assert_eq!(machine.fault(0, x, W | U), Fixed);
    assert_eq!(machine.fault(0, y, W | U), Fixed);
    machine.mmu(0, |ctx, vcpu, view| ctx.sync_roots(vcpu, view)).expect("no error");
    assert_eq!(machine.vm.pages.all().filter(|(_, page)| page.unsync).count(), 0);
}
