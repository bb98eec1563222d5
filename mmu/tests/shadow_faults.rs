//! Shadow paging from a guest's tables to what hardware would do with the tables that L0 wrote (kvm-mmu.md A.6, A.7),
//! judged by a second walk and a second statement of SDM 3A 4.6.

#[expect(dead_code, reason = "each test uses its part of the machine")]
mod support;

use mmu::fault::FaultOutcome::{EmulateWrite, Fixed, Inject, Mmio};
use mmu::guest_walk::{EptViolation, WalkFault};
use mmu::request::Requests;
use mmu::state::{RoleRegs, TdpMode};
use sim_core::addr::{Gpa, Hfn};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::PageFaultError as Error;
use support::guest::{A, ALL, D, EPT_ALL, Layout, NX, P, PS, RW, Space, US};
use support::host::{Mapped, walk};
use support::{F, Guest, Machine, PRIVATE, PRIVATE_AT, R, RAM_AT, U, UNBACKED, W, at, mode};

const ROOT: u64 = 0x10_0000;
const PAGE: u64 = 0x40_0000;
const OTHER: u64 = 0x41_0000;

const fn behind(gpa: u64) -> Hfn {
    Hfn(RAM_AT.0 + (gpa >> 12))
}

/// A choice of CR0.WP, EFER.NXE, CR4.SMEP and CR4.SMAP, a bit each from the lowest.
#[derive(Clone, Copy, Debug)]
struct Bits(u32);

/// Only CR0.WP.
const PLAIN: Bits = Bits(1);

impl Bits {
    const fn wp(self) -> bool {
        self.0 & 1 != 0
    }

    const fn nx(self) -> bool {
        self.0 & 2 != 0
    }

    const fn smep(self) -> bool {
        self.0 & 4 != 0
    }

    const fn smap(self) -> bool {
        self.0 & 8 != 0
    }

    fn regs(self, layout: Layout) -> RoleRegs {
        let mut regs = match layout {
            Layout::Four | Layout::Ept => mode::long(),
            Layout::Pae => mode::pae(),
            Layout::Legacy => mode::legacy(),
        };
        regs.cr0.set(Cr0::WP, self.wp());
        regs.efer.set(Efer::NXE, self.nx());
        regs.cr4.set(Cr4::SMEP, self.smep());
        regs.cr4.set(Cr4::SMAP, self.smap());
        regs
    }
}

/// A vCPU on tables at [`ROOT`] that map `address` with this leaf, loaded and ready to fault.
fn shadowed(layout: Layout, regs: RoleRegs, address: u64, leaf: u64, above: u64) -> (Machine, Space) {
    let mut machine = Machine::new(at("v5.17"), TdpMode::Off, regs, ROOT, 1);
    let mut space = Space::new(layout, ROOT >> 12);
    space.map(&mut machine, address, leaf);
    let directory = space.entry(&mut machine, address, 2);
    let entry = machine.read(directory, space.bytes());
    machine.write(directory, entry & !(RW | US) | above, space.bytes());
    start(&mut machine);
    (machine, space)
}

fn start(machine: &mut Machine) {
    if machine.cpus[0].regs.root_level() == 3 {
        machine.load_pdptes(0, ROOT);
    }
    machine.run(0);
}

const LAYOUTS: [(Layout, u64); 3] =
    [(Layout::Four, 0x1234_5678_9000), (Layout::Pae, 0x8060_3000), (Layout::Legacy, 0xc060_3000)];
const ATTEMPTS: [Error; 6] = [R, W, F, U, W.union(U), F.union(U)];

/// SDM 3A 4.6.1 and 4.7: the error code if the access faults, P and RSVD included.
fn architecture(bits: Bits, access: u64, attempt: Error) -> Option<Error> {
    let user_page = access & US != 0;
    let user = attempt.contains(Error::U);
    let write = attempt.contains(Error::W);
    let fetch = attempt.contains(Error::F);
    let told = if bits.nx() || bits.smep() { attempt } else { attempt - Error::F };
    if access & NX != 0 && !bits.nx() {
        return Some(told | Error::P | Error::RSVD);
    }
    let rights = !user || user_page;
    let writing = !write || access & RW != 0 || (!user && !bits.wp());
    let executing = !fetch || (access & NX == 0 && (user || !user_page || !bits.smep()));
    let smap = user || fetch || !user_page || !bits.smap();
    (!(rights && writing && executing && smap)).then_some(told | Error::P)
}

/// What the shadow must allow: the guest's rights; clean pages read-only until written; and after a supervisor write
/// with CR0.WP = 0 to a read-only page, the quirk of A.7.10.
fn shadow(bits: Bits, access: u64, clean: bool, attempt: Error) -> Mapped {
    let write = attempt.contains(Error::W);
    let mapped = Mapped {
        frame: behind(PAGE),
        write: access & RW != 0 && (write || !clean),
        user: access & US != 0,
        execute: access & NX == 0,
    };
    if write && access & RW == 0 && !bits.wp() {
        return Mapped { write: true, user: false, execute: mapped.execute && !bits.smep(), ..mapped };
    }
    mapped
}

fn permissions(layout: Layout, address: u64) {
    let mut cases = 0;
    for bits in 0..16 {
        // Without NXE a 4-byte entry has no NX bit; an 8-byte one has it reserved.
        let bits = Bits(if layout == Layout::Legacy { bits & !2 } else { bits });
        for choice in 0..64u64 {
            let pick = |n: u64, flag: u64| if choice >> n & 1 == 1 { flag } else { 0 };
            let nx = if layout == Layout::Legacy { 0 } else { pick(2, NX) };
            let clean = pick(3, D) == 0;
            let leaf = P | A | pick(0, RW) | pick(1, US) | nx | pick(3, D);
            let above = pick(4, RW) | pick(5, US);
            let access = leaf & (above | !(RW | US));
            let (machine, mut space) = shadowed(layout, bits.regs(layout), address, PAGE | leaf, above);
            for attempt in ATTEMPTS {
                let mut machine = machine.clone();
                let what = format!("{layout:?} {bits:?} leaf {leaf:#x} above {above:#x} attempt {attempt:?}");
                let outcome = machine.fault(0, address, attempt);
                let expected = architecture(bits, access, attempt);
                assert_eq!(outcome, expected.map_or(Fixed, |error| Inject(WalkFault::Page(error))), "{what}");
                let mapped = walk(&machine, 0, address);
                let want = expected.is_none().then(|| shadow(bits, access, clean, attempt));
                assert_eq!(mapped, want, "{what}");
                let at = space.entry(&mut machine, address, 1);
                let set = if expected.is_none() && attempt.contains(Error::W) { D } else { 0 };
                assert_eq!(machine.read(at, space.bytes()), PAGE | leaf | set, "{what}: A and D");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 16 * 64 * 6);
}

#[test]
fn permissions_of_64_bit_guests() {
    permissions(LAYOUTS[0].0, LAYOUTS[0].1);
}

#[test]
fn permissions_of_pae_guests() {
    permissions(LAYOUTS[1].0, LAYOUTS[1].1);
}

#[test]
fn permissions_of_32_bit_guests() {
    permissions(LAYOUTS[2].0, LAYOUTS[2].1);
}

/// A.1.1 quadrant, A.6.1: every page directory of a 32-bit guest's 1024 entries, through all four quadrants of the
/// directory and both halves of the tables.
#[test]
fn quadrants() {
    let mut machine = Machine::new(at("v5.17"), TdpMode::Off, mode::legacy(), ROOT, 1);
    let mut space = Space::new(Layout::Legacy, ROOT >> 12);
    let addresses: Vec<u64> = (0..4u64)
        .flat_map(|gib| [0, 0x20_0000, 0x40_0000, 0x3fc0_0000, 0x3fe0_0000].map(|offset| gib << 30 | offset | 0x7000))
        .collect();
    for (n, address) in addresses.iter().enumerate() {
        space.map(&mut machine, *address, (PAGE + n as u64 * 0x1000) | ALL);
    }
    start(&mut machine);
    for (n, address) in addresses.iter().enumerate() {
        assert_eq!(walk(&machine, 0, *address), None, "{address:#x}");
        assert_eq!(machine.fault(0, *address, W | U), Fixed, "{address:#x}");
        let mapped = walk(&machine, 0, *address).expect("mapped");
        assert_eq!(mapped.frame, behind(PAGE + n as u64 * 0x1000), "{address:#x}");
    }
    let halves = machine.vm.pages.all().filter(|(_, page)| page.role.level() == 1 && page.role.quadrant() == 1);
    assert_eq!(halves.count(), 8, "two addresses a GiB have bit 21 set, each in its own table");
    assert!(machine.at_entry(0).is_empty() && machine.at_rest().is_empty());
}

/// SDM 3A 4.3, 4.4.2, 4.5.4: large guest pages are mapped by 4 KiB leaves, each where it belongs.
#[test]
fn large_guest_pages() {
    for (layout, level, size) in
        [(Layout::Four, 2, 0x20_0000u64), (Layout::Pae, 2, 0x20_0000), (Layout::Legacy, 2, 0x40_0000)]
    {
        let regs = PLAIN.regs(layout);
        let mut machine = Machine::new(at("v5.17"), TdpMode::Off, regs, ROOT, 1);
        let mut space = Space::new(layout, ROOT >> 12);
        let at = space.entry(&mut machine, 0x4080_0000, level);
        machine.write(at, 0x80_0000 | PS | ALL, space.bytes());
        start(&mut machine);
        for offset in [0, 0x1000, 0x1f_f000, size - 0x1000] {
            assert_eq!(machine.fault(0, 0x4080_0000 + offset, W | U), Fixed, "{layout:?} {offset:#x}");
            let mapped = walk(&machine, 0, 0x4080_0000 + offset).expect("mapped");
            assert_eq!(mapped, Mapped { frame: behind(0x80_0000 + offset), write: true, user: true, execute: true });
        }
        assert!(machine.at_rest().is_empty(), "{layout:?}");
    }
}

/// A guest whose leaf table is mapped at `address + 0x1000`, so that it can write it.
fn self_mapped(layout: Layout, address: u64) -> (Machine, Space, u64) {
    let regs = PLAIN.regs(layout);
    let mut machine = Machine::new(at("v5.17"), TdpMode::Off, regs, ROOT, 1);
    let mut space = Space::new(layout, ROOT >> 12);
    space.map(&mut machine, address, PAGE | ALL);
    let entry = space.entry(&mut machine, address, 1);
    space.map(&mut machine, address + 0x1000, entry & !0xfff | ALL);
    start(&mut machine);
    (machine, space, entry)
}

/// A.6.7, A.6.5, A.6.6: a written leaf table goes out of sync, is stale until the sync and right after it.
#[test]
fn a_written_leaf_table_is_unsync_until_synced() {
    for (layout, address) in LAYOUTS {
        let (mut machine, space, entry) = self_mapped(layout, address);
        assert_eq!(machine.fault(0, address, W | U), Fixed, "{layout:?}");
        let unsync = |machine: &Machine| machine.vm.pages.all().filter(|(_, page)| page.unsync).count();
        assert_eq!(unsync(&machine), 0, "{layout:?}");
        assert_eq!(machine.fault(0, address + 0x1000, W | U), Fixed, "{layout:?}");
        assert_eq!(unsync(&machine), 1, "{layout:?}");
        assert!(walk(&machine, 0, address + 0x1000).expect("mapped").write, "{layout:?}");
        for (leaf, want) in [
            (OTHER | ALL, None),
            (PAGE | P | US | A | D, Some(Mapped { frame: behind(PAGE), write: false, user: true, execute: true })),
            (PAGE | P | RW | US | A, Some(Mapped { frame: behind(PAGE), write: false, user: true, execute: true })),
            (PAGE | P | RW | US | D, None),
            (0, None),
        ] {
            let mut machine = machine.clone();
            machine.write(entry, leaf, space.bytes());
            let stale = Mapped { frame: behind(PAGE), write: true, user: true, execute: true };
            assert_eq!(walk(&machine, 0, address), Some(stale), "{layout:?}: before the sync");
            // MOV CR3 of the same value: the guest asks for its change to be seen.
            machine.mov_cr3(0, ROOT);
            machine.run(0);
            assert_eq!(walk(&machine, 0, address), want, "{layout:?} leaf {leaf:#x}: after the sync");
            if leaf == OTHER | ALL {
                assert_eq!(machine.fault(0, address, R | U), Fixed, "{layout:?}");
                assert_eq!(walk(&machine, 0, address).expect("mapped").frame, behind(OTHER), "{layout:?}");
            }
            assert!(machine.at_rest().is_empty(), "{layout:?}: {:?}", machine.at_rest());
        }
    }
}

/// A.6.4, I14: a sync takes away whatever could write the table unseen, and a new write makes it unsync again.
#[test]
fn a_synced_table_is_write_protected_again() {
    for (layout, address) in LAYOUTS {
        let mut machine = Machine::new(at("v5.17"), TdpMode::Off, PLAIN.regs(layout), ROOT, 1);
        let mut space = Space::new(layout, ROOT >> 12);
        space.map(&mut machine, address, PAGE | ALL);
        let entry = space.entry(&mut machine, address, 1);
        let window = address ^ 0x1000_0000;
        space.map(&mut machine, window, entry & !0xfff | ALL);
        start(&mut machine);
        assert_eq!(machine.fault(0, address, W | U), Fixed, "{layout:?}");
        for _ in 0..2 {
            assert_eq!(machine.fault(0, window, W | U), Fixed, "{layout:?}");
            assert!(walk(&machine, 0, window).expect("mapped").write, "{layout:?}");
            assert_eq!(machine.vm.pages.all().filter(|(_, page)| page.unsync).count(), 1, "{layout:?}");
            machine.mov_cr3(0, ROOT);
            machine.run(0);
            assert_eq!(machine.vm.pages.all().filter(|(_, page)| page.unsync).count(), 0, "{layout:?}");
            assert!(!walk(&machine, 0, window).expect("mapped").write, "{layout:?}");
        }
    }
}

/// A.9.7: INVLPG replaces the leaf of an unsync table, and only that, by what the guest's entry says now (v5.17 `FNAME(invlpg)`).
#[test]
fn invlpg_replaces_one_stale_leaf() {
    let (layout, address) = LAYOUTS[0];
    let (mut machine, mut space, entry) = self_mapped(layout, address);
    space.map(&mut machine, address + 0x2000, OTHER | ALL);
    for offset in [0, 0x1000, 0x2000] {
        assert_eq!(machine.fault(0, address + offset, W | U), Fixed);
    }
    machine.write(entry, OTHER | ALL, 8);
    machine.mmu(0, |ctx, vcpu, _| ctx.invlpg(vcpu, address));
    assert_eq!(walk(&machine, 0, address).expect("made again").frame, behind(OTHER));
    assert!(walk(&machine, 0, address + 0x2000).is_some());
}

/// A.7.10, A.6.8: a write to a table above the leaves is emulated and takes effect at once.
#[test]
fn a_write_to_an_upper_table_is_emulated() {
    for (layout, address) in LAYOUTS {
        let regs = PLAIN.regs(layout);
        let mut machine = Machine::new(at("v5.17"), TdpMode::Off, regs, ROOT, 1);
        let mut space = Space::new(layout, ROOT >> 12);
        space.map(&mut machine, address, PAGE | ALL);
        let directory = space.entry(&mut machine, address, 2);
        space.map(&mut machine, address + 0x1000, directory & !0xfff | ALL);
        start(&mut machine);
        assert_eq!(machine.fault(0, address, W | U), Fixed, "{layout:?}");
        // A 4-byte directory entry has two halves, each with a shadow entry of its own (A.6.8).
        let other_half = address ^ 0x20_0000;
        if layout == Layout::Legacy {
            space.map(&mut machine, other_half, OTHER | ALL);
            assert_eq!(machine.fault(0, other_half, W | U), Fixed);
        }
        let outcome = machine.fault(0, address + 0x1000, W | U);
        assert_eq!(outcome, EmulateWrite(Gpa(directory & !0xfff)), "{layout:?}");
        assert!(walk(&machine, 0, address + 0x1000).is_none_or(|mapped| !mapped.write), "{layout:?}");
        assert_eq!(machine.fault(0, address + 0x1000, R | U), Fixed, "{layout:?}: reading is free");
        assert!(!walk(&machine, 0, address + 0x1000).expect("mapped").write, "{layout:?}");
        assert!(walk(&machine, 0, address).is_some(), "{layout:?}");
        let bytes = space.bytes();
        machine.emulated_write(directory, 0, bytes);
        assert_eq!(walk(&machine, 0, address), None, "{layout:?}: gone at once");
        assert_eq!(walk(&machine, 0, other_half), None, "{layout:?}: gone at once");
        assert!(machine.cpus[0].mmu.requests.contains(Requests::TLB_FLUSH), "{layout:?}");
        assert!(machine.at_rest().is_empty(), "{layout:?}");
    }
}

/// A.7.2, I18, 3a2936dedd20: a private slot is memory to L1 and MMIO to L2; an address without a slot is MMIO to both.
#[test]
fn private_slots_and_mmio() {
    let (layout, address) = LAYOUTS[0];
    let (mut machine, mut space) = shadowed(layout, mode::long(), address, PRIVATE.base().0 | ALL, RW | US);
    space.map(&mut machine, address + 0x1000, UNBACKED.base().0 | ALL);
    assert_eq!(machine.fault(0, address + 8, W | U), Fixed);
    assert_eq!(walk(&machine, 0, address).expect("mapped").frame, PRIVATE_AT);
    assert_eq!(machine.fault(0, address + 0x1008, W | U), Mmio(UNBACKED.base().offset(8)));
    machine.enter(0, Guest { regs: mode::long(), cr3: ROOT, nested: None });
    machine.run(0);
    assert_eq!(walk(&machine, 0, address), None, "L2 does not run on L1's tables");
    assert_eq!(machine.fault(0, address + 8, W | U), Mmio(PRIVATE.base().offset(8)));
    assert_eq!(walk(&machine, 0, address), None);
    machine.exit(0, mode::long(), ROOT);
    machine.run(0);
    assert_eq!(walk(&machine, 0, address).expect("mapped").frame, PRIVATE_AT);
    // The same under TDP, without nested TDP: B.3.3.
    let mut machine = Machine::new(at("v5.17"), TdpMode::Ept, mode::long(), ROOT, 1);
    machine.run(0);
    assert_eq!(machine.fault(0, PRIVATE.base().0, W), Fixed);
    machine.enter(0, Guest { regs: mode::long(), cr3: ROOT, nested: None });
    machine.run(0);
    assert_eq!(machine.fault(0, PRIVATE.base().0, W), Mmio(PRIVATE.base()));
    assert_eq!(machine.fault(0, UNBACKED.base().0, R), Mmio(UNBACKED.base()));
}

/// A vCPU in L2 on EPT tables that map one frame with this leaf; bit 6 of the EPTP is `ad`.
fn nested_ept(leaf: u64, above: u64, ad: u64) -> (Machine, Space) {
    let mut machine = Machine::new(at("v5.17"), TdpMode::Ept, mode::long(), ROOT, 1);
    let mut space = Space::new(Layout::Ept, 0x20_0000 >> 12);
    space.map(&mut machine, NGPA, leaf);
    let directory = space.entry(&mut machine, NGPA, 2);
    let entry = machine.read(directory, 8);
    machine.write(directory, entry & !7 | above, 8);
    machine.run(0);
    machine.enter(0, Guest { regs: mode::long(), cr3: ROOT, nested: Some(space.root | 0x1e | ad << 6) });
    machine.run(0);
    (machine, space)
}

const NGPA: u64 = 0x12_3456_7000;

/// SDM 3C 28.3.2, 28.3.3: every R/W/X of leaf and directory, with and without accessed and dirty bits, for reads,
/// writes and fetches; misconfigured combinations before violations.
#[test]
fn nested_ept_permissions() {
    let mut cases = 0;
    for ad in [0, 1] {
        for (leaf, above) in (0..8u64).flat_map(|leaf| (0..8u64).map(move |above| (leaf, above))) {
            let (machine, mut space) = nested_ept(PAGE | 6 << 3 | leaf, above, ad);
            for (attempt, needs) in [(U, 1), (W, 2), (F, 4)] {
                let mut machine = machine.clone();
                let what = format!("EPT leaf {leaf} above {above} AD {ad} attempt {attempt:?}");
                let granted = leaf & above;
                let violation =
                    |granted| Inject(WalkFault::EptViolation(EptViolation { access: needs as u32, granted }));
                let misconfigured = |entry: u64| matches!(entry, 2 | 6);
                let want = if misconfigured(above) {
                    Inject(WalkFault::EptMisconfiguration)
                } else if above == 0 {
                    violation(0)
                } else if misconfigured(leaf) {
                    Inject(WalkFault::EptMisconfiguration)
                } else if leaf == 0 || granted & needs == 0 {
                    violation(granted as u32)
                } else {
                    Fixed
                };
                assert_eq!(machine.fault(0, NGPA, attempt), want, "{what}");
                let mapped = (want == Fixed).then_some(Mapped {
                    frame: behind(PAGE),
                    write: granted & 2 != 0 && (ad == 0 || needs == 2),
                    user: granted & 1 != 0,
                    execute: granted & 4 != 0,
                });
                assert_eq!(walk(&machine, 0, NGPA), mapped, "{what}");
                let at = space.entry(&mut machine, NGPA, 1);
                let set = if want == Fixed { ad << 8 | if needs == 2 { ad << 9 } else { 0 } } else { 0 };
                assert_eq!(machine.read(at, 8), PAGE | 6 << 3 | leaf | set, "{what}: A and D");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 2 * 64 * 3);
}

/// SDM 3C 28.3.3.1: memory types 2, 3 and 7, and address bits beyond MAXPHYADDR, misconfigure a leaf.
#[test]
fn nested_ept_misconfigurations() {
    for (leaf, bad) in (0..8u64).map(|kind| (PAGE | 7 | kind << 3, matches!(kind, 2 | 3 | 7))).chain([
        (PAGE | EPT_ALL | 1 << 40, true),
        (PAGE | EPT_ALL | 1 << 51, true),
        (PAGE | EPT_ALL | 1 << 52, false),
    ]) {
        let (mut machine, _) = nested_ept(leaf, 7, 0);
        let want = if bad { Inject(WalkFault::EptMisconfiguration) } else { Fixed };
        assert_eq!(machine.fault(0, NGPA, U), want, "{leaf:#x}");
    }
}

/// Private slots and missing ones behind nested EPT: MMIO to L2 at L1's physical address.
#[test]
fn nested_ept_private_slots_and_mmio() {
    for gfn in [PRIVATE, UNBACKED] {
        let (mut machine, _) = nested_ept(gfn.base().0 | EPT_ALL, 7, 0);
        assert_eq!(machine.fault(0, NGPA | 0x10, U), Mmio(gfn.base().offset(0x10)));
        assert_eq!(walk(&machine, 0, NGPA), None);
    }
}

/// A.6.7 for nested tables: L1 writes its EPT leaf table through a root of its own; L2's shadow is unsync and right
/// after a sync. The upper tables are write-protected in L1's tables too.
#[test]
fn l1_writes_its_ept_tables() {
    let (mut machine, mut space) = nested_ept(PAGE | EPT_ALL, 7, 0);
    assert_eq!(machine.fault(0, NGPA, W), Fixed);
    let (leaf, directory) = (space.entry(&mut machine, NGPA, 1), space.entry(&mut machine, NGPA, 2));
    machine.exit(0, mode::long(), ROOT);
    machine.run(0);
    assert_eq!(machine.fault(0, directory, W), EmulateWrite(Gpa(directory)));
    assert_eq!(machine.fault(0, leaf, W), Fixed);
    assert_eq!(machine.vm.pages.all().filter(|(_, page)| page.unsync).count(), 1);
    machine.write(leaf, OTHER | 5 | 6 << 3, 8);
    let eptp = space.root | 0x1e;
    machine.enter(0, Guest { regs: mode::long(), cr3: ROOT, nested: Some(eptp) });
    machine.run(0);
    machine.mmu(0, |ctx, vcpu, view| ctx.sync_roots(vcpu, view)).expect("host memory");
    assert_eq!(walk(&machine, 0, NGPA), None);
    assert_eq!(machine.fault(0, NGPA, U), Fixed);
    let want = Mapped { frame: behind(OTHER), write: false, user: true, execute: true };
    assert_eq!(walk(&machine, 0, NGPA), Some(want));
    assert!(machine.at_rest().is_empty() && machine.at_entry(0).is_empty());
}

/// A memslot frame taken away (`kvm_unmap_gfn_range`) leaves no table that maps it, direct or shadow.
#[test]
fn zap_gfn_reaches_every_mapping() {
    for (layout, address) in LAYOUTS {
        let regs = PLAIN.regs(layout);
        let (mut machine, mut space) = shadowed(layout, regs, address, PAGE | ALL, RW | US);
        space.map(&mut machine, address + 0x5000, PAGE | ALL);
        for offset in [0, 0x5000] {
            assert_eq!(machine.fault(0, address + offset, W | U), Fixed);
        }
        machine.mmu(0, |ctx, _, _| ctx.zap_gfn(Gpa(PAGE).frame()));
        assert_eq!((walk(&machine, 0, address), walk(&machine, 0, address + 0x5000)), (None, None), "{layout:?}");
        assert!(
            machine.vm.pages.mappings(mmu::memslot::AddressSpace::Normal, Gpa(PAGE).frame()).is_empty(),
            "{layout:?}"
        );
        assert!(machine.cpus[0].mmu.requests.contains(Requests::TLB_FLUSH), "{layout:?}");
    }
}
